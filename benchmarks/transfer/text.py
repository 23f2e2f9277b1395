"""A small and a larger BERT for one text task, trained here: which character is missing in the middle of a passage.

    python text.py        trains both (10 and 15 minutes on one core) and prints their accuracies

The text is `tiny_shakespeare`, character by character, in passages of 33; the last tenth is held out. Both learn as
BERT does (Devlin et al., arXiv:1810.04805), to name masked characters: the one in the middle, and every sixth of the
others. What is compressed names the one in the middle. Weights are kept in the folder that the environment variable
PARETOPRESS_TRANSFER_CACHE names.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from paretopress.evaluators.data import Data

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "gpt"))
LENGTH, MIDDLE = 33, 16
CHARACTERS = MASK = 65
BATCH, MASKED = 64, 1 / 6
CALIBRATION = 1024


class MaskedCharacter(nn.Module):
    """A BERT over characters `(n, 33)` that scores what stands in the middle `(n, 65)`."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        import transformers

        super().__init__()
        config = transformers.BertConfig(
            vocab_size=CHARACTERS + 1, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=4 * width, max_position_embeddings=LENGTH, type_vocab_size=1,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(width, CHARACTERS)

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Return the last hidden states `(n, 33, width)`."""
        found: Tensor = self.bert(input_ids=input_ids, return_dict=True).last_hidden_state
        return found

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the scores of the character in the middle."""
        scores: Tensor = self.classifier(self.hidden(input_ids)[:, MIDDLE])
        return scores


@cache
def characters() -> tuple[Tensor, Tensor]:
    """The numbers of all characters: what is trained on, and the rest."""
    import gpt

    return gpt.text()


def passages(numbers: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Passages `(n, 33)` whose middle is masked, and what stands there `(n,)`."""
    rows = numbers[starts[:, None] + torch.arange(LENGTH)]
    labels = rows[:, MIDDLE].clone()
    rows[:, MIDDLE] = MASK
    return rows, labels


def trained(name: str, layers: int, width: int, heads: int, steps: int) -> nn.Module:
    """The network of that size, trained or read back."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MaskedCharacter(layers, width, heads)
        file = Path(os.environ.get("PARETOPRESS_TRANSFER_CACHE", ".")) / f"{name}.safetensors"
        if file.exists():
            model.load_state_dict(load_file(file))
        else:
            _train(model, characters()[0], steps)
            save_file(model.state_dict(), file)
    return model.eval()


@torch.enable_grad()
def _train(model: MaskedCharacter, numbers: Tensor, steps: int) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps)
    model.train()
    for _ in range(steps):
        rows = numbers[torch.randint(0, len(numbers) - LENGTH, (BATCH,))[:, None] + torch.arange(LENGTH)]
        masked = torch.rand(rows.shape) < MASKED
        masked[:, MIDDLE] = True
        hidden = model.hidden(rows.masked_fill(masked, MASK))
        loss = functional.cross_entropy(model.classifier(hidden[masked]), rows[masked])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()


def small() -> nn.Module:
    """Two layers of 64."""
    return trained("bert_small", 2, 64, 4, 6000)


def large() -> nn.Module:
    """Four layers of 96."""
    return trained("bert_large", 4, 96, 6, 5000)


def data(seed: int) -> Data:
    """1,024 trained passages for calibration, half of the held-out ones to search on, the others as holdout."""
    seen, unseen = characters()
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randperm(len(seen) // LENGTH, generator=draw)[:CALIBRATION] * LENGTH
    held = torch.randperm(len(unseen) // LENGTH, generator=draw) * LENGTH
    search, holdout = held[: len(held) // 2], held[len(held) // 2:]
    return Data(passages(seen, starts)[0], passages(unseen, search), passages(unseen, holdout))


if __name__ == "__main__":
    torch.set_num_threads(1)
    inputs, labels = passages(characters()[1], torch.arange(len(characters()[1]) // LENGTH) * LENGTH)
    for network in (small(), large()):
        with torch.no_grad():
            scores = torch.cat([network(rows) for rows in inputs.split(500)])
        print(f"{len(network.bert.encoder.layer)} layers: {float((scores.argmax(1) == labels).float().mean()):.4f} "
              f"of {len(labels)}")
