"""MLPerf Tiny keyword spotting: the reference DS-CNN (Apache-2.0) on 500 of its stimuli (CC BY 4.0).

The folder with `models/` and `data/` is named by the environment variable PARETOPRESS_SHARED; the default is
`shared` beside the checkout. The network saw none of these stimuli.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from paretopress.evaluators.data import Data

CLASSES = 12


def shared() -> Path:
    """Return the folder of shared data and weights."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    return Path(os.environ.get("PARETOPRESS_SHARED") or beside)


def _convolution(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
    return [convolution, nn.BatchNorm2d(outputs, eps=1e-3), nn.ReLU()]


class DSCNN(nn.Module):
    """DS-CNN of MLPerf Tiny (Banbury et al., arXiv:2106.07597) for `(n, 1, 49, 10)` MFCC frames."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ZeroPad2d((1, 1, 4, 5)), *_convolution(1, width, (10, 4), stride=2)]
        for _ in range(4):
            layers += _convolution(width, width, 3, padding=1, groups=width)
            layers += _convolution(width, width, 1)
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores `(n, 12)`."""
        scores: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return scores


def model() -> nn.Module:
    """Return the trained network in eval mode."""
    network = DSCNN()
    network.load_state_dict(load_file(shared() / "models" / "ds_cnn_kws.safetensors"))
    return network.eval()


def data() -> Data:
    """Return 256 stimuli for calibration and search and 244 for the holdout; there is nothing to train on."""
    seen = _stimuli("calibration")
    return Data(calibration=seen, search=seen, holdout=_stimuli("validation"))


def _stimuli(name: str) -> tuple[Tensor, Tensor]:
    with np.load(shared() / "data" / "kws01" / f"{name}.npz", allow_pickle=False) as archive:
        return torch.from_numpy(archive["x"]), torch.from_numpy(archive["y"])
