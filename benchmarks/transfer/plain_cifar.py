"""A network for CIFAR-10 of another family than the ResNets: convolutions without shortcuts (VGG, arXiv:1409.1556).

    python plain_cifar.py        trains it (about three minutes on one core) and prints its accuracy

Trained on the 20,000 training images, moved by up to four pixels and mirrored. Weights are kept in the folder that the
environment variable PARETOPRESS_TRANSFER_CACHE names.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "cifar"))
PLAN = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (96, 2), (96, 1))   # channels and strides
EPOCHS, BATCH, RATE, MARGIN = 7, 128, 0.15, 4


class Plain(nn.Module):
    """3x3 convolutions, each with batch normalisation and ReLU, then an average and a classifier."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        inputs = (3, *(channels for channels, _ in PLAN))
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 3, stride, 1, bias=False)
                                   for before, (after, stride) in zip(inputs, PLAN, strict=False))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels, _ in PLAN)
        self.classifier = nn.Linear(inputs[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(n, 3, 32, 32)` to the scores `(n, classes)`."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        scores: Tensor = self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


def plain() -> nn.Module:
    """Return the network in eval mode, trained or read back."""
    file = Path(os.environ.get("PARETOPRESS_TRANSFER_CACHE", ".")) / "plain_cifar.safetensors"
    torch.manual_seed(0)
    model = Plain()
    if not file.exists():
        _train(model)
        save_file(model.state_dict(), file)
    model.load_state_dict(load_file(file))
    return model.eval()


@torch.enable_grad()
def _train(model: nn.Module) -> None:
    import cifar

    pixels, labels = cifar.images("train")
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = len(pixels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, EPOCHS * steps, pct_start=0.2)
    model.train().to(memory_format=torch.channels_last)
    start = time.perf_counter()
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(pixels))[: steps * BATCH].split(BATCH):
            scores = model(_varied(pixels[rows]).contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(scores, labels[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    model.to(memory_format=torch.contiguous_format)


def _varied(pixels: Tensor) -> Tensor:
    """Images moved by up to four pixels, all by the same, and half of them mirrored."""
    down, right = torch.randint(0, 2 * MARGIN + 1, (2,)).tolist()
    height, width = pixels.shape[2:]
    moved = functional.pad(pixels, (MARGIN,) * 4)[:, :, down:down + height, right:right + width]
    mirrored = torch.rand(len(pixels), 1, 1, 1) < 0.5
    return torch.where(mirrored, moved.flip(3), moved)


if __name__ == "__main__":
    import cifar

    torch.set_num_threads(1)
    network = plain()
    pixels, labels = cifar.images("validation")
    with torch.no_grad():
        found = torch.cat([network(some).argmax(1) for some in pixels.split(500)])
    print(f"{float((found == labels).float().mean()):.4f} of {len(labels)} validation images, "
          f"{sum(one.numel() for one in network.parameters())} parameters")
