"""Small networks for sequences, sounds, pairs and plain vectors."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name


class Tagger(nn.Module):
    """Word tagger: embedding, bidirectional recurrent layers, linear head."""

    def __init__(self, cell=nn.LSTM, words=5000, size=128, hidden=128, layers=2, tags=17):
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.recurrent = cell(size, hidden, layers, batch_first=True, bidirectional=True)
        self.hidden, self.head = nn.Linear(2 * hidden, hidden), nn.Linear(hidden, tags)

    def forward(self, words):
        states, _ = self.recurrent(self.embedding(words))
        return self.head(torch.tanh(self.hidden(states)))


class WaveBlock(nn.Module):
    """Gated residual block with a causal dilated convolution."""

    def __init__(self, channels, skip, dilation):
        super().__init__()
        self.left = dilation
        self.dilated = nn.Conv1d(channels, 2 * channels, 2, dilation=dilation)
        self.residual, self.skip = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, skip, 1)

    def forward(self, x):
        signal, gate = self.dilated(F.pad(x, (self.left, 0))).chunk(2, dim=1)
        y = torch.tanh(signal) * torch.sigmoid(gate)
        return x + self.residual(y), self.skip(y)


class WaveNet(nn.Module):
    """van den Oord et al. 2016."""

    def __init__(self, channels=64, skip=256, layers=10, stacks=2, levels=256):
        super().__init__()
        self.causal = nn.Conv1d(1, channels, 1)
        self.blocks = nn.ModuleList(
            WaveBlock(channels, skip, 1 << place) for _ in range(stacks) for place in range(layers)
        )
        self.out1, self.out2 = nn.Conv1d(skip, skip, 1), nn.Conv1d(skip, levels, 1)

    def forward(self, x):
        x, total = self.causal(x), 0
        for block in self.blocks:
            x, skip = block(x)
            total = total + skip
        return self.out2(F.relu(self.out1(F.relu(total))))


class SiamNet(nn.Module):
    """One branch called twice; the distance of the two embeddings decides (Koch et al. 2015)."""

    def __init__(self, width=64, hidden=4096):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(1, width, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 4 * width, 3),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
        )
        self.linear, self.out = nn.Sequential(nn.Linear(16 * width, hidden), nn.Sigmoid()), nn.Linear(hidden, 1)

    def embed(self, x):
        x = self.branch(x)
        return self.linear(x.view(x.size()[0], -1))

    def forward(self, first, second):
        return self.out(torch.abs(self.embed(first) - self.embed(second)))


class PlainMlp(nn.Sequential):
    """Linear, normalisation, activation."""

    def __init__(self, sizes=(784, 512, 256, 10)):
        layers = [nn.Flatten()]
        for cin, cout in pairwise(sizes[:-1]):
            layers += [nn.Linear(cin, cout), nn.BatchNorm1d(cout), nn.ReLU()]
        super().__init__(*layers, nn.Linear(*sizes[-2:]))


class AutoEncoder(nn.Sequential):
    """Anomaly detection of MLPerf Tiny: linear layers around a narrow middle."""

    def __init__(self, size=640, hidden=128, middle=8):
        widths, layers = [size, *[hidden] * 4, middle, *[hidden] * 4], []
        for cin, cout in pairwise(widths):
            layers += [nn.Linear(cin, cout), nn.BatchNorm1d(cout), nn.ReLU()]
        super().__init__(*layers, nn.Linear(hidden, size))
