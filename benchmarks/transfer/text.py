"""A small and a larger BERT-like encoder for one text task, trained here: which part of a text a passage is from.

    python text.py        trains both (about a minute each on one core) and prints their accuracies

The text is `tiny_shakespeare`, cut into passages of 32 characters; a passage belongs to the class of its fifth of the
file, so that neighbouring passages share names and words. Every tenth block of 64 passages is held out. Weights are
kept in the folder that the environment variable PARETOPRESS_TRANSFER_CACHE names.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from paretopress.evaluators.data import Data

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "kws"))
LENGTH, CLASSES, STEPS, BATCH = 32, 5, 500, 64


class Layer(nn.Module):
    """Attention and a perceptron, each after a normalisation, each beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.grow, self.shrink = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, length, width)` to the same."""
        y = self.norm1(x)
        q, k, v = (one(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for one in (self.query, self.key, self.value))
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.shrink(functional.gelu(self.grow(self.norm2(x))))


class Encoder(nn.Module):
    """An encoder for `(n, length)` characters."""

    def __init__(self, layers: int, width: int, heads: int, characters: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(characters, width), nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.layer = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores `(n, classes)`."""
        x = self.embed(x) + self.place
        for layer in self.layer:
            x = layer(x)
        scores: Tensor = self.classifier(self.norm(x).mean(1))
        return scores


@cache
def passages() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """Training and held-out `(passages, labels)`, and how many characters there are."""
    from kws import shared

    text = (shared() / "data" / "text" / "tinyshakespeare.txt").read_text()
    alphabet = sorted(set(text))
    index = {character: number for number, character in enumerate(alphabet)}
    codes = torch.tensor([index[character] for character in text])
    count = len(codes) // LENGTH
    rows = codes[: count * LENGTH].reshape(count, LENGTH)
    labels = torch.arange(count) * CLASSES // count
    held = (torch.arange(count) // 64) % 10 == 9
    return (rows[~held], labels[~held]), (rows[held], labels[held]), len(alphabet)


def trained(name: str, layers: int, width: int, heads: int) -> nn.Module:
    """The encoder of that size, trained or read back."""
    (inputs, labels), _, characters = passages()
    torch.manual_seed(0)
    model = Encoder(layers, width, heads, characters)
    folder = Path(os.environ.get("PARETOPRESS_TRANSFER_CACHE", "."))
    file = folder / f"{name}.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(0, len(inputs), (BATCH,))
        loss = functional.cross_entropy(model(inputs[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    save_file(model.state_dict(), file)
    return model.eval()


def small() -> nn.Module:
    """Two layers of 64."""
    return trained("text_small", 2, 64, 4)


def large() -> nn.Module:
    """Four layers of 96."""
    return trained("text_large", 4, 96, 6)


def data(seed: int) -> Data:
    """1,024 training passages for calibration, 1,000 held-out ones to search on, others as holdout."""
    (inputs, _), (held, labels), _ = passages()
    draw = torch.Generator().manual_seed(seed)
    rows, order = torch.randperm(len(inputs), generator=draw)[:1024], torch.randperm(len(held), generator=draw)
    search, holdout = order[:1000], order[1000:2000]
    return Data(inputs[rows], (held[search], labels[search]), (held[holdout], labels[holdout]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, (held, labels), _ = passages()
    for model in (small(), large()):
        with torch.no_grad():
            scores = model(held)
        print(f"{len(model.layer)} layers: {float((scores.argmax(1) == labels).float().mean()):.4f} of {len(held)}")
