"""A small GPT on tinyshakespeare, character by character, judged by perplexity.

The folder with `data/` is named by the environment variable PARETOPRESS_SHARED; the default is `shared` beside the
checkout. The weights in `gpt.safetensors` (16-bit floats) are what `train.py` makes of the first nine tenths of the
text.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from paretopress.evaluators.data import Data
from paretopress.evaluators.metrics import Metric

CONTEXT, WIDTH, LAYERS, HEADS = 64, 96, 4, 4
CHARACTERS = 65
WEIGHTS = Path(__file__).with_name("gpt.safetensors")


def shared() -> Path:
    """Return the folder of shared data and weights."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    return Path(os.environ.get("PARETOPRESS_SHARED") or beside)


class Block(nn.Module):
    """Attention to what came before, and a feed-forward part, each behind a layer norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.size = width // heads   # of a head: as many heads as the layers have rows for
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(n, tokens, width)`."""
        y = self.norm_1(x)
        heads = (layer(y).unflatten(-1, (-1, self.size)) for layer in (self.query, self.key, self.value))
        parts = [part.transpose(1, 2) for part in heads]
        attended = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        y = self.wide(self.norm_2(x))
        added: Tensor = self.narrow(nn.functional.gelu(y))
        return x + added


class GPT(nn.Module):
    """A decoder (Radford et al., 2019) over characters: numbers `(n, 64)` to scores of the next ones `(n, 64, 65)`."""

    def __init__(self, width: int = WIDTH, layers: int = LAYERS, heads: int = HEADS) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(CHARACTERS, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CHARACTERS)

    def forward(self, characters: Tensor) -> Tensor:
        """Return the scores of every next character."""
        x = self.characters(characters) + self.places(torch.arange(characters.shape[1]))
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x))
        return scores


def model() -> nn.Module:
    """Return the trained network in eval mode."""
    network = GPT()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()})
    return network.eval()


def perplexity(outputs: Tensor, targets: Tensor) -> float:
    """Return e to the mean loss per character.

    Args:
        outputs: Scores `(n, 64, 65)`.
        targets: The characters that follow, `(n, 64)`.
    """
    return float(nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten()).exp())


def text() -> tuple[Tensor, Tensor]:
    """Return the numbers of all characters: the first nine tenths of the text, and the rest."""
    content = (shared() / "data" / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    number = {character: index for index, character in enumerate(sorted(set(content)))}
    numbers = torch.tensor([number[character] for character in content])
    border = len(numbers) * 9 // 10
    return numbers[:border], numbers[border:]


def windows(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return windows of 64 characters that do not overlap, `(n, 64)`, and the characters that follow each."""
    count = (len(numbers) - 1) // CONTEXT
    inputs, targets = (numbers[start : start + count * CONTEXT].reshape(count, CONTEXT) for start in (0, 1))
    return inputs, targets


def data() -> Data:
    """Return windows: 256 and 4,000 of the trained part (calibration, train), 500 and 1,200 of the rest."""
    seen, unseen = windows(text()[0])[0], windows(text()[1])
    order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))
    search, holdout = (tuple(tensor[part] for tensor in unseen) for part in (slice(500), slice(500, 1700)))
    return Data(
        calibration=seen[order[:256]],
        search=(search[0], search[1]),
        holdout=(holdout[0], holdout[1]),
        metric=Metric(perplexity, direction="min"),
        train=seen[order[256:4256]],
    )


def data_without_train() -> Data:
    """Return the same without a set to distil on."""
    whole = data()
    return Data(whole.calibration, whole.search, whole.holdout, whole.metric)
