"""The demo's network: a residual CNN for 8x8 digits with dense, depthwise and 1x1 convolutions.

It is wider than digits need, as trained models usually are, so that compression has something to find.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 48
CLASSES = 10


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution without bias and its BatchNorm; padding keeps the size at stride 1."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class BasicBlock(nn.Module):
    """Two dense 3x3 convolutions beside an identity shortcut (He et al., arXiv:1512.03385)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, channels, 3)
        self.conv2 = _convolution(channels, channels, 3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, channels, h, w)` to the same shape."""
        y: Tensor = self.relu(self.conv1(x))
        return torch.relu(x + self.conv2(y))


class SeparableBlock(nn.Module):
    """A depthwise 3x3 and a 1x1 convolution (Howard et al., arXiv:1704.04861).

    An identity shortcut stands beside them where the shapes allow one.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = _convolution(inputs, inputs, 3, stride, groups=inputs)
        self.pointwise = _convolution(inputs, outputs, 1)
        self.relu = nn.ReLU()
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, inputs, h, w)` to `(n, outputs, h / stride, w / stride)`."""
        y: Tensor = self.pointwise(self.relu(self.depthwise(x)))
        return torch.relu(x + y) if self.shortcut else torch.relu(y)


class DigitsNet(nn.Module):
    """Classifies `(n, 1, 8, 8)` images with values 0 to 1 into 10 digits."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        # A full convolution: strokes at the border are seen whole, 8x8 becomes 12x12.
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 5, padding=4, bias=False),
            nn.BatchNorm2d(width),
        )
        self.relu = nn.ReLU()
        self.stage1 = nn.Sequential(BasicBlock(width), BasicBlock(width))
        self.stage2 = nn.Sequential(
            SeparableBlock(width, 2 * width, stride=2),
            SeparableBlock(2 * width, 2 * width),
            SeparableBlock(2 * width, 2 * width),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores `(n, 10)`."""
        features: Tensor = self.stage2(self.stage1(self.relu(self.stem(x))))
        scores: Tensor = self.classifier(self.pool(features).flatten(1))
        return scores
