"""A network for CIFAR-10 in the manner of VGG, trained here: plain 3x3 convolutions, no shortcuts.

    python plain_cnn.py   trains it (some twenty minutes) and prints its accuracy

Six convolutions with batch normalisation, halved twice by pooling (Simonyan and Zisserman, arXiv:1409.1556). It learns
from the training images, mirrored and moved by up to four pixels, and from the scores that ResNet-56 gives them.
Weights are kept in the folder that the environment variable PARETOPRESS_TRANSFER_CACHE names.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "cifar"))
WIDTHS = (24, 24, 48, 48, 96, 96)
EPOCHS, BATCH, MOVE = 8, 64, 4
TEMPERATURE = 3.0


class PlainNet(nn.Module):
    """Convolutions of `WIDTHS` channels for normalised `(n, 3, 32, 32)` images."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for number, width in enumerate(WIDTHS):
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if number % 2 and number < len(WIDTHS) - 1 else []
            inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores `(n, classes)`."""
        scores: Tensor = self.classifier(functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return scores


def plain_net() -> nn.Module:
    """Return the network in eval mode, trained or read back; the same every time on one machine."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PlainNet()
        file = Path(os.environ.get("PARETOPRESS_TRANSFER_CACHE", ".")) / "plain_net.safetensors"
        if file.exists():
            model.load_state_dict(load_file(file))
        else:
            _train(model)
            save_file(model.state_dict(), file)
    return model.eval()


@torch.enable_grad()
def _train(model: nn.Module) -> None:
    import cifar

    inputs, labels = cifar.images("train")
    with torch.no_grad():
        teacher = cifar.resnet56()
        wanted = torch.cat([teacher(rows) for rows in inputs.split(250)])
        mirrored = torch.cat([teacher(rows.flip(3)) for rows in inputs.split(250)])
    steps = EPOCHS * (len(inputs) // BATCH)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.15, steps)
    model.train()
    for _ in range(steps):
        rows = torch.randint(0, len(inputs), (BATCH,))
        flipped = torch.rand(BATCH) < 0.5
        images = torch.where(flipped[:, None, None, None], inputs[rows].flip(3), inputs[rows])
        scores = model(_moved(images))
        target = torch.where(flipped[:, None], mirrored[rows], wanted[rows])
        learnt = functional.kl_div((scores / TEMPERATURE).log_softmax(1), (target / TEMPERATURE).softmax(1),
                                   reduction="batchmean") * TEMPERATURE**2
        loss = learnt + functional.cross_entropy(scores, labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _moved(images: Tensor) -> Tensor:
    """Images moved by up to four pixels, all of a batch alike."""
    padded = functional.pad(images, (MOVE,) * 4)
    down, right = (int(torch.randint(0, 2 * MOVE + 1, (1,))) for _ in range(2))
    return padded[:, :, down:down + images.shape[2], right:right + images.shape[3]]


if __name__ == "__main__":
    import cifar

    pixels, classes = cifar.images("validation")
    network = plain_net()
    with torch.no_grad():
        found = torch.cat([network(rows) for rows in pixels.split(250)])
    print(f"{sum(tensor.numel() for tensor in network.parameters())} parameters: "
          f"{float((found.argmax(1) == classes).float().mean()):.4f} of {len(classes)} validation images")
