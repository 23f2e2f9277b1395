"""A family of residual networks of any depth, and two networks of other kinds, captured once each."""

import functools
from types import SimpleNamespace

import torch
from space_zoo import OptionABlock
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from paretopress.spaces.capture import capture
from paretopress.spaces.structure import analyse
from paretopress.spaces.unit_features import unit_features


class Residual(nn.Module):
    def __init__(self, blocks, width=8):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(*(OptionABlock(width, width, 1) for _ in range(blocks)))
        first = OptionABlock(width, 2 * width, 2)
        self.layer2 = nn.Sequential(first, *(OptionABlock(2 * width, 2 * width, 1) for _ in range(blocks - 1)))
        self.fc = nn.Linear(2 * width, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


class Separable(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.features = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU(), nn.Conv2d(12, 20, 1), nn.ReLU(),
            nn.Conv2d(20, 20, 3, 2, 1, groups=20), nn.ReLU(), nn.Conv2d(20, 24, 1), nn.ReLU(),
        )
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.features(F.relu(self.stem(x))).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.grow, self.shrink = nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)[:, :, :1] * torch.ones(16)
        q, k, v = (one(x).unflatten(2, (4, 4)).transpose(1, 2) for one in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.shrink(F.gelu(self.grow(self.norm(x))))
        return self.head(x.mean(1))


MAKERS = {
    "shallow": lambda: Residual(2), "deep": lambda: Residual(3), "wide": lambda: Residual(2, 12),
    "separable": Separable, "attention": Attention,
}


@functools.cache
def member(name):
    """The model with its structure and features."""
    torch.manual_seed(len(name))
    model = MAKERS[name]().eval()
    inputs = torch.randn(2, 3, 8, 8)
    structure = analyse(capture(model, (inputs,)), model)
    return SimpleNamespace(name=name, model=model, inputs=inputs, structure=structure,
                           features=unit_features(structure, model.state_dict()))
