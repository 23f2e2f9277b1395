"""A small and a larger BERT-like encoder for one text task, trained here: what kind of character follows a passage.

    python text.py        trains both (one and four minutes on one core) and prints their accuracies

The text is `tiny_shakespeare`, a passage 32 characters of it. The kinds are vowels, consonants, capitals, spaces, and
all others; the last tenth of the text is held out. Weights are kept in the folder that the environment variable
PARETOPRESS_TRANSFER_CACHE names.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from paretopress.evaluators.data import Data

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "kws"))
LENGTH, CLASSES, STEPS, BATCH, RATE = 32, 5, 2000, 128, 3e-3


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
def characters() -> tuple[Tensor, Tensor, int]:
    """The text as character numbers `(n,)`, the kind of each, and how many different ones there are."""
    from kws import shared

    text = (shared() / "data" / "text" / "tinyshakespeare.txt").read_text()
    alphabet = sorted(set(text))
    index = {character: number for number, character in enumerate(alphabet)}
    kinds = torch.tensor([_kind(character) for character in alphabet])
    codes = torch.tensor([index[character] for character in text])
    return codes, kinds[codes], len(alphabet)


def _kind(character: str) -> int:
    if character.isupper():
        return 2
    if character.isalpha():
        return 0 if character in "aeiou" else 1
    return 3 if character == " " else 4


def passages(count: int, draw: torch.Generator, *, held: bool) -> tuple[Tensor, Tensor]:
    """Passages `(count, length)` that begin anywhere in a part of the text, and the kinds of what follows."""
    codes, kinds, _ = characters()
    border, last = len(codes) * 9 // 10, len(codes) - LENGTH - 1
    starts = torch.randint(border, last, (count,), generator=draw) if held else \
        torch.randint(0, border - LENGTH - 1, (count,), generator=draw)
    return codes[starts[:, None] + torch.arange(LENGTH)], kinds[starts + LENGTH]


@torch.enable_grad()
def trained(name: str, layers: int, width: int, heads: int) -> nn.Module:
    """The encoder of that size, trained or read back."""
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Encoder(layers, width, heads, characters()[2])
    file = Path(os.environ.get("PARETOPRESS_TRANSFER_CACHE", ".")) / f"{name}.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS, pct_start=0.1)
    for _ in range(STEPS):
        inputs, labels = passages(BATCH, draw, held=False)
        loss = functional.cross_entropy(model(inputs), labels)
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
    draw = torch.Generator().manual_seed(1000 + seed)
    inputs, _ = passages(1024, draw, held=False)
    held, kinds = passages(2200, draw, held=True)
    _, first = np.unique(held.numpy(), axis=0, return_index=True)   # no passage twice
    rows = torch.from_numpy(np.sort(first))
    search, holdout = rows[:1000], rows[1000:2000]
    return Data(inputs, (held[search], kinds[search]), (held[holdout], kinds[holdout]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    inputs, kinds = passages(20_000, torch.Generator().manual_seed(1), held=True)
    print(f"the most frequent kind: {float(torch.bincount(kinds).max()) / len(kinds):.4f}")
    for model in (small(), large()):
        with torch.no_grad():
            scores = torch.cat([model(some) for some in inputs.split(1000)])
        print(f"{len(model.layer)} layers: {float((scores.argmax(1) == kinds).float().mean()):.4f} of {len(kinds)}")
