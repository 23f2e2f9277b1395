"""The demo's factories: `--model paretopress.demo.factories:model --data paretopress.demo.factories:data`."""

from __future__ import annotations

import io
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor, nn

from paretopress.demo.model import DigitsNet
from paretopress.evaluators.data import Data
from paretopress.evaluators.metrics import top1

CALIBRATION = 256  # of the training images


def model() -> nn.Module:
    """Return the trained network in eval mode; it classifies `(n, 1, 8, 8)` images into 10 digits."""
    network = DigitsNet()
    network.load_state_dict(load(_resource("digits.safetensors")))
    return network.eval()


def data() -> Data:
    """Return scikit-learn's digits in the split that the network was trained with."""
    with np.load(io.BytesIO(_resource("digits.npz")), allow_pickle=False) as archive:
        train, search, holdout = (_pair(archive, name) for name in ("train", "search", "holdout"))
    return Data(train[0][:CALIBRATION], search, holdout, metric=top1, train=train)


def _resource(name: str) -> bytes:
    return files("paretopress.demo").joinpath(name).read_bytes()


def _pair(archive: Any, name: str) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - numpy's NpzFile has no stub
    images = torch.from_numpy(archive[f"{name}_images"]).unsqueeze(1).float() / 16.0
    return images, torch.from_numpy(archive[f"{name}_labels"]).long()
