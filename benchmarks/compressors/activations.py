"""Accuracy of a CIFAR ResNet by the bits of weights and activations, without any training.

    python benchmarks/compressors/activations.py [--model resnet20] [--seeds 3] [--out FOLDER]

Network, images, calibration and scores are those of `methods.py`; the first and the last layer keep 8 bits. Where
ranges are found at run time, a batch of 256 images shares them; `--alone` scores that many images one by one too.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from methods import Subject, refitted

from paretopress.compressors.network import Network, forward
from paretopress.spaces.methods import quantisation
from paretopress.spaces.plan import plan

FORMATS = ((8, 32), (8, 16), (8, 8), (8, "dynamic"), (8, 4), (4, 32), (4, 16), (4, 8), (4, "dynamic"), (4, 4))


@dataclass(frozen=True)
class Score:
    """Accuracies of one network: on all images, and on the first ones in a batch and one by one."""

    whole: float
    first: float
    alone: float


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--alone", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    subject = Subject(arguments.model)
    print(f"{arguments.model}: dense {100 * subject.dense:.2f}%, {arguments.seeds} seeds", flush=True)
    rows = [row(subject, bits, activations, arguments) for bits, activations in FORMATS]
    (arguments.out / "activations.json").write_text(json.dumps(rows, indent=1) + "\n")


def row(subject: Subject, bits: int, activations: int | str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of all layers in one format, over the seeds."""
    policy = quantisation(bits, activations).assign(subject.program.structure).policy
    planned, build, found = plan(subject.program.structure, policy), refitted("obs"), []
    for seed in range(arguments.seeds):
        calibration, inputs = subject.calibrated(seed)
        network = build(subject.program, calibration, planned, inputs, seed)
        found.append(score(subject, network, arguments.alone if activations == "dynamic" else 0))
    result = {
        "model": subject.name, "bits": bits, "activations": activations, "bytes": planned.stored_bytes,
        "accuracy": statistics.mean(one.whole for one in found),
        "spread": max(one.whole for one in found) - min(one.whole for one in found),
    }
    text = f"W{bits} A{activations!s:8s} {100 * result['accuracy']:6.2f}% (spread {100 * result['spread']:.2f})"
    if activations == "dynamic":
        result |= {name: statistics.mean(getattr(one, name) for one in found) for name in ("first", "alone")}
        first, alone = (f"{100 * result[name]:.2f}%" for name in ("first", "alone"))
        text += f", first {arguments.alone} images {first}, one by one {alone}"
    print(f"{text}, {planned.stored_bytes:,} bytes", flush=True)
    return result


def score(subject: Subject, network: Network, alone: int) -> Score:
    """Accuracy on the validation images."""
    images, labels = subject.validation

    def right(count: int, batch: int) -> float:
        with torch.inference_mode():
            outputs = [forward(subject.program, network, [one]) for one in images[:count].split(batch)]
        return float((torch.cat(outputs).argmax(dim=1) == labels[:count]).double().mean())

    return Score(subject.score(network), *((right(alone, size) for size in (256, 1)) if alone else (0.0, 0.0)))


if __name__ == "__main__":
    main()
