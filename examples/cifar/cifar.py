"""CIFAR-10 as strongly compressed JPEG with the residual networks of He et al. 2016.

The folder with `models/` and `data/` is named by the environment variable PARETOPRESS_SHARED; the default is
`shared` beside the checkout. Reading the images needs `pip install paretopress[examples]`.

All networks were fine-tuned on the whole training set and never on the validation images: calibration and
train are training images, search and holdout are the two halves of the validation images.
"""

from __future__ import annotations

import io
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from paretopress.evaluators.data import Data

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CALIBRATION, SEARCH = 1024, 2500  # images


def shared() -> Path:
    """Return the folder of shared data and weights."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    return Path(os.environ.get("PARETOPRESS_SHARED") or beside)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (option A, He et al., arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.padding = 0 if stride == 1 and inputs == outputs else outputs // 4

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, inputs, h, w)` to `(n, outputs, h / stride, w / stride)`."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return torch.relu(x + y)


class ResNet(nn.Module):
    """CIFAR ResNet-(6n+2) for normalised `(n, 3, 32, 32)` images."""

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1)
        self.layer2 = _stage(16, 32, blocks, 2)
        self.layer3 = _stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores `(n, classes)`."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        scores: Tensor = self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def _trained(depth: int) -> nn.Module:
    network = ResNet((depth - 2) // 6)
    network.load_state_dict(load_file(shared() / "models" / f"resnet{depth}_cifar10_jpeg.safetensors"))
    return network.eval()


def resnet20() -> nn.Module:
    """Return ResNet-20 with trained weights in eval mode."""
    return _trained(20)


def resnet32() -> nn.Module:
    """Return ResNet-32 with trained weights in eval mode."""
    return _trained(32)


def resnet56() -> nn.Module:
    """Return ResNet-56 with trained weights in eval mode."""
    return _trained(56)


model = resnet20


@cache
def images(name: str) -> tuple[Tensor, Tensor]:
    """Return `(n, 3, 32, 32)` normalised float32 images and `(n,)` labels of `train` or `validation`.

    The decoded images are kept in memory, never on disk.
    """
    from PIL import Image
    from pyarrow.parquet import read_table

    table = read_table(shared() / "data" / "cifar10_jpeg" / f"{name}.parquet")
    encoded = (row["bytes"] for row in table["image"].to_pylist())
    decoded = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in encoded]
    pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)
    normalised = pixels.float().div_(255.0)
    normalised.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(DEVIATION).view(3, 1, 1))
    return normalised.contiguous(), torch.from_numpy(table["label"].to_numpy().copy())


def data() -> Data:
    """Return calibration (1,024 inputs), train (20,000), search (2,500) and holdout (2,500)."""
    train, (pixels, labels) = images("train"), images("validation")
    return Data(
        calibration=train[0][:CALIBRATION],
        search=(pixels[:SEARCH], labels[:SEARCH]),
        holdout=(pixels[SEARCH:], labels[SEARCH:]),
        train=train,
    )


def data_without_train() -> Data:
    """Return the same data without train, as for a model whose training data are gone."""
    return replace(data(), train=None)
