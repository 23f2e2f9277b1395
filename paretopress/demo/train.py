"""Trains the demo's network on scikit-learn's digits and writes its weights, data and provenance.

Run `python -m paretopress.demo.train [--output FOLDER] [--seed 0] [--epochs 80]`. The files beside this
script were written by it. It needs `pip install paretopress[demo]`, takes some minutes on one core,
downloads nothing, and gives the same files again on the same machine and versions. Hyperparameters were not
tuned: the first setting tried was kept. No set but train is looked at before the scores at the end.
"""

from __future__ import annotations

import argparse
import io
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from paretopress.demo.model import DigitsNet
from paretopress.spaces.documents import write_atomic, write_json

SEARCH, HOLDOUT = 400, 500  # images; the remaining 897 train, the first 256 of which calibrate
BATCH = 64


def split_digits(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return `{train,search,holdout}_{images,labels}`: uint8 `(n, 8, 8)` from 0 to 16, and uint8 `(n,)`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    holdout, search, train_rows = np.split(order, [HOLDOUT, HOLDOUT + SEARCH])
    parts = {"train": train_rows, "search": search, "holdout": holdout}
    split: dict[str, np.ndarray[Any, Any]] = {}
    for name, rows in parts.items():
        split[f"{name}_images"] = digits.images[rows].astype(np.uint8)
        split[f"{name}_labels"] = digits.target[rows].astype(np.uint8)
    return split


def inputs_of(images: np.ndarray[Any, Any]) -> Tensor:
    """Return `(n, 1, 8, 8)` float32 from 0 to 1."""
    return torch.from_numpy(images).unsqueeze(1).float() / 16.0


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images turned by up to 10 degrees, scaled by up to 10% and shifted by up to one pixel."""
    count = len(images)

    def uniform(bound: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * bound

    angle, scale = uniform(math.radians(10.0)), 1.0 + uniform(0.1)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack([cosine, -sine, uniform(0.25)], 1), torch.stack([sine, cosine, uniform(0.25)], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def train(images: Tensor, labels: Tensor, seed: int, epochs: int) -> DigitsNet:
    """Return a network trained with AdamW, a one-cycle schedule and label smoothing, in eval mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = DigitsNet().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            optimiser.zero_grad()
            loss = loss_of(model(augment(images[rows], generator)), labels[rows])
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """Return the share of correct first guesses."""
    guesses = model(inputs_of(images)).argmax(1)
    return float((guesses == torch.from_numpy(labels)).double().mean())


def write(
    folder: Path, model: DigitsNet, split: dict[str, np.ndarray[Any, Any]], provenance: dict[str, Any]
) -> None:
    """Write `digits.safetensors`, `digits.npz` and `digits.json`."""
    archive = io.BytesIO()
    np.savez_compressed(archive, allow_pickle=False, **split)
    weights = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    write_atomic(folder / "digits.npz", lambda stream: stream.write(archive.getvalue()))
    write_atomic(folder / "digits.safetensors", lambda stream: stream.write(weights))
    write_json(folder / "digits.json", provenance)


def main() -> None:
    """Train, score and write."""
    parser = argparse.ArgumentParser(description="Train the demo's network.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=80)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    import sklearn

    split = split_digits(settings.seed)
    labels = torch.from_numpy(split["train_labels"]).long()
    model = train(inputs_of(split["train_images"]), labels, settings.seed, settings.epochs)
    names = ("train", "search", "holdout")
    scores = {name: accuracy(model, split[f"{name}_images"], split[f"{name}_labels"]) for name in names}
    provenance = {
        "data": "scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits (CC BY 4.0)",
        "script": "python -m paretopress.demo.train",
        "seed": settings.seed,
        "epochs": settings.epochs,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "images": {name: len(split[f"{name}_labels"]) for name in names},
        "accuracy": scores,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }
    write(settings.output, model, split, provenance)
    print(scores)


if __name__ == "__main__":
    main()
