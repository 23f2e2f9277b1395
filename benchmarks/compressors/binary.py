"""Binary ResNet-20: weights as signs, the first and the last layer in 8 bits, distilled without labels.

    python benchmarks/compressors/binary.py [--activations 8 1] [--seconds 1800] [--seed 0] [--threads 2] [--out FOLDER]

The network and the images are those of `examples/cifar` (the folder of shared data is named by PARETOPRESS_SHARED).
1,024 training images calibrate, all 20,000 train against the outputs of the dense network, all 5,000 validation images
score. Activations: 8-bit integers, or signs around a trained threshold per channel. "binary weights" compares the bytes
of the layers whose weights are signs with 4 bytes per weight of theirs; "all" compares whole artefacts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[2] / "examples" / "cifar"))

import cifar

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.compressed_model import run_batches
from paretopress.compressors.distillation import DistillationSettings, distil
from paretopress.compressors.entries import Entries
from paretopress.compressors.network import Network
from paretopress.compressors.program import Program, build_program
from paretopress.compressors.realise import realise
from paretopress.compressors.refit import refit
from paretopress.spaces.choices import Binary, Choice, Weights
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

CALIBRATION, BATCH = 1024, 250


def main() -> None:
    """Print and write one row per kind of activations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--activations", type=int, nargs="*", default=[8, 1])
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=DistillationSettings().learning_rate)
    parser.add_argument("--features", type=float, default=DistillationSettings().features)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [measure(activations, arguments) for activations in arguments.activations]
    (arguments.out / "binary.json").write_text(json.dumps(rows, indent=1) + "\n")


def measure(activations: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: accuracy before and after distillation, bytes and time."""
    model, (images, _) = cifar.resnet20(), cifar.images("train")
    program = build_program(model, (images[:2],))
    inputs = images[:CALIBRATION]
    calibration = calibrate(program, [[batch] for batch in inputs.split(256)], seed=arguments.seed)
    planned = plan(program.structure, policy(program, activations))
    network = refit(program, Entries(program, calibration), planned, [inputs], seed=arguments.seed)
    before, begin = score(program, network), time.perf_counter()
    settings = DistillationSettings(
        steps=arguments.steps, seconds=arguments.seconds, learning_rate=arguments.rate, features=arguments.features,
        held_out=0.02)

    def progress(done: int, total: int) -> None:
        if done % 500 == 0:
            print(f"  {done}/{total} in {time.perf_counter() - begin:.0f} s", flush=True)

    trained = distil(program, network, [images], settings, seed=arguments.seed, progress=progress)
    seconds, after = time.perf_counter() - begin, score(program, trained.network)
    binary = [layer for layer in planned.layers if isinstance(layer.form, Binary)]
    dense = sum(4 * torch.Size(layer.shape).numel() for layer in binary)
    stored = sum(layer.stored_bytes - 4 * layer.shape[0] * layer.has_bias for layer in binary)
    whole = plan(program.structure, Policy()).stored_bytes
    row = {
        "activations": activations, "seed": arguments.seed, "before": before, "after": after, "seconds": seconds,
        "binary_weights_smaller": dense / stored,
        "all_smaller": whole / realise(model, program, trained.network).size_bytes,
    }
    print(f"W1A{activations}: {100 * before:.2f}% solved layer by layer, {100 * after:.2f}% after {seconds:.0f} s of "
          f"distillation; binary weights {row['binary_weights_smaller']:.1f}x smaller, all {row['all_smaller']:.1f}x",
          flush=True)
    return row


def policy(program: Program, activations: int) -> Policy:
    """Signs everywhere but at the ends, which have 8 bits."""
    ends = program.structure.ends
    choices: dict[str, Choice] = {
        f"{layer.name}/weights": Weights(8, 8 if activations == 8 else 32) if layer.name in ends
        else Binary(1, activations) for layer in program.structure.layers
    }
    return Policy.of(choices)


def score(program: Program, network: Network) -> float:
    """Accuracy on the validation images."""
    images, labels = cifar.images("validation")
    with torch.inference_mode():
        outputs = [run_batches(program, network, [batch]) for batch in images.split(BATCH)]
    return float((torch.cat(outputs).argmax(dim=1) == labels).double().mean())


if __name__ == "__main__":
    main()
