"""A text classifier of the size of BERT on sentences that are made here: nothing is downloaded or trained for long.

The encoder has random weights (seed 0) and the classifier on top of it is solved for by ridge regression, which is
enough to tell topics apart; the classifier is kept in the cache folder. What compresses it cannot tell the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paretopress.evaluators.data import Data

TOKENS = 16
PADDING, START, END = 0, 1, 2
TOPICS = {
    "weather": "rain snow storm cloud wind sunshine frost thunder fog drizzle heat hail breeze",
    "kitchen": "onion butter flour oven pan soup salt pepper dough garlic spoon recipe sugar",
    "sea": "ship harbour wave anchor sail tide gull captain reef island net shore lighthouse",
    "music": "violin chord drum melody choir tempo rhythm piano flute singer stage tune bass",
    "garden": "rose soil spade seed hedge lawn weed tulip bee compost trellis blossom apple",
    "railway": "train station ticket platform track signal carriage engine tunnel guard rail timetable bridge",
}
COMMON = (
    "the a of and to in it was with for on that his her they we had not from old new small great long early late "
    "yesterday today again always never before after near behind under over because while morning evening people day "
    "year house street town man woman child saw found took made left came went said thought wanted brought kept lost"
)
WORDS = [*dict.fromkeys(" ".join([COMMON, *TOPICS.values()]).split())]
NUMBERS = {word: index + 3 for index, word in enumerate(WORDS)}


class Classifier(nn.Module):
    """A BERT with a classifier: token numbers and masks `(n, 16)` to scores `(n, 6)`."""

    def __init__(self, size: int, layers: int, heads: int) -> None:
        import transformers

        super().__init__()
        config = transformers.BertConfig(
            vocab_size=len(WORDS) + 3,
            hidden_size=size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * size,
            max_position_embeddings=TOKENS,
            num_labels=len(TOPICS),
            initializer_range=0.05,
        )
        self.bert = transformers.BertForSequenceClassification(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the scores of the topics."""
        scores: Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).logits
        return scores


def model() -> nn.Module:
    """Return a classifier with an encoder as large as BERT's: 12 layers of 768, 86 million parameters."""
    return _solved(768, 12, 12)


def small_model() -> nn.Module:
    """Return one of 4 layers of 128, 0.9 million parameters, for a look in a minute."""
    return _solved(128, 4, 4)


def sentences(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return token numbers and masks `(count, 16)`, and topics `(count,)`; 2 to 4 words tell the topic."""
    generator = torch.Generator().manual_seed(seed)

    def number(below: int) -> int:
        return int(torch.randint(below, (1,), generator=generator))

    ids = torch.full((count, TOKENS), PADDING)
    topics = torch.randint(len(TOPICS), (count,), generator=generator)
    own, common = [words.split() for words in TOPICS.values()], COMMON.split()
    for row, topic in enumerate(topics.tolist()):
        words = [own[topic][number(len(own[topic]))] for _ in range(2 + number(3))]
        words += [common[number(len(common))] for _ in range(4 + number(TOKENS - 9))]
        order = torch.randperm(len(words), generator=generator).tolist()
        known = [START, *(NUMBERS[words[place]] for place in order), END][:TOKENS]
        ids[row, : len(known)] = torch.tensor(known)
    return {"input_ids": ids, "attention_mask": (ids != PADDING).to(torch.int64)}, topics


def data() -> Data:
    """Return made-up sentences: 256 for calibration, 400 for the search, 600 for the holdout."""
    return Data(calibration=sentences(256, 1)[0], search=sentences(400, 2), holdout=sentences(600, 3))


def _solved(size: int, layers: int, heads: int) -> nn.Module:
    """The network with its classifier from the cache, solved for where it is not there yet."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Classifier(size, layers, heads).eval()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paretopress"
    path = base / f"textclass-{size}-{layers}.safetensors"
    head = network.bert.classifier
    if not path.exists():
        base.mkdir(parents=True, exist_ok=True)
        weight = _ridge(network, *sentences(1500, 0))
        save_file({"weight": weight[:-1].T.contiguous(), "bias": weight[-1].contiguous()}, path)
    head.load_state_dict(load_file(path))
    return network


@torch.no_grad()
def _ridge(network: Classifier, inputs: dict[str, Tensor], topics: Tensor) -> Tensor:
    """Weights and biases `(size + 1, 6)` with the least squared error on scores of 8 for the topic and 0 for others."""
    parts = []
    for start in range(0, len(topics), 100):
        rows = {name: tensor[start : start + 100] for name, tensor in inputs.items()}
        parts.append(network.bert.bert(**rows, return_dict=True).pooler_output)
    features = torch.cat(parts).double()
    augmented = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    wanted = 8.0 * nn.functional.one_hot(topics, len(TOPICS)).double()
    ridge = 1e-4 * augmented.square().mean() * len(augmented) * torch.eye(augmented.shape[1], dtype=torch.float64)
    return torch.linalg.solve(augmented.T @ augmented + ridge, augmented.T @ wanted).float()
