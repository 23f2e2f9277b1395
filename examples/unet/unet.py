"""Segmentation of shapes in noise with a small U-Net: images and masks are drawn, nothing is downloaded.

The weights in `unet.safetensors` (16-bit floats) are what `train.py` makes of images with other seeds.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from paretopress.evaluators.data import Data

SIDE, WIDTH = 48, 12
CLASSES = 3  # background, discs, bars
WEIGHTS = Path(__file__).with_name("unet.safetensors")


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for count in (inputs, outputs):
        layers += [nn.Conv2d(count, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """U-Net (Ronneberger et al., MICCAI 2015) of three levels: `(n, 1, 48, 48)` to scores `(n, 3, 48, 48)`."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.down_1, self.down_2, self.bottom = _twice(1, width), _twice(width, 2 * width), _twice(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.rise_2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.rise_1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up_2, self.up_1 = _twice(4 * width, 2 * width), _twice(2 * width, width)
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of every pixel."""
        fine = self.down_1(x)
        middle = self.down_2(self.pool(fine))
        y = self.rise_2(self.bottom(self.pool(middle)))
        y = self.rise_1(self.up_2(torch.cat([y, middle], 1)))
        scores: Tensor = self.head(self.up_1(torch.cat([y, fine], 1)))
        return scores


def model() -> nn.Module:
    """Return the trained network in eval mode."""
    network = UNet()
    network.load_state_dict(
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(WEIGHTS).items()}
    )
    return network.eval()


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images `(count, 1, 48, 48)` and masks `(count, 48, 48)` of discs and bars, one of each, in noise."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    disc = (x - numbers(8, SIDE - 8)).square() + (y - numbers(8, SIDE - 8)).square() < numbers(4, 11).square()
    angle, across, along = numbers(0, torch.pi), numbers(1.5, 4), numbers(10, 20)
    right, below = x - numbers(10, SIDE - 10), y - numbers(10, SIDE - 10)
    forward, sideways = right * angle.cos() + below * angle.sin(), below * angle.cos() - right * angle.sin()
    bar = (forward.abs() < along) & (sideways.abs() < across)
    masks = torch.where(bar, 2, torch.where(disc, 1, 0))
    light = numbers(-0.4, 0.4) + (masks == 1) * numbers(0.6, 1.2) + (masks == 2) * numbers(0.6, 1.2)
    noise = 0.7 * torch.randn(count, SIDE, SIDE, generator=generator)
    return (light + noise).unsqueeze(1), masks


def overlap(outputs: Tensor, targets: Tensor) -> float:
    """Return the intersection of guessed and true pixels over their union, 0 to 1, averaged over the classes.

    Args:
        outputs: Scores `(n, 3, 48, 48)`.
        targets: Classes `(n, 48, 48)`.
    """
    guesses = outputs.argmax(1)
    shares = []
    for number in range(CLASSES):
        guessed, true = guesses == number, targets == number
        shares.append((guessed & true).sum() / (guessed | true).sum().clamp_min(1))
    return float(torch.stack(shares).mean())


def data() -> Data:
    """Return drawn images: 128 for calibration, 200 for the search, 400 for the holdout, 1,000 to distil on."""
    return Data(draw(128, 1)[0], draw(200, 2), draw(400, 3), overlap, draw(1000, 4)[0])


def data_without_train() -> Data:
    """Return the same without a set to distil on."""
    return Data(draw(128, 1)[0], draw(200, 2), draw(400, 3), overlap)
