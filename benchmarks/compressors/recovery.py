"""ResNet-20 at half of its multiply-accumulates: what training gives back, and whether it helps to go there in steps.

    python benchmarks/compressors/recovery.py [--schedules one-shot iterative lasso] [--seconds 600] [--seeds 1]
        [--threads 2] [--bfloat16] [--out FOLDER]

The network and the images are those of `examples/cifar` (the folder of shared data is named by PARETOPRESS_SHARED).
Inner widths only, all by one ratio. 1,024 training images calibrate; 19,000 train against the outputs of the dense
network, without labels, for the same time in every schedule; all 5,000 validation images score.
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

from paretopress import Data, Policy
from paretopress.applying import apply_policy
from paretopress.compressors.augmentation import Augmentation
from paretopress.compressors.distillation import DistillationSettings, computes_in_bfloat16
from paretopress.spaces.choices import Keep

RATIO, BATCH, STEPS = 0.484375, 250, 20_000   # the ratio of `methods.py` at 2.00 times fewer
FEATURES = 40.0
IMAGES = Augmentation(mixup=1.0, noise=0.0, difference=0.0, shift=0.125, mirror=0.5)
WIDTHS = tuple(f"layer{stage}.{block}.conv1/channels" for stage in (1, 2, 3) for block in range(3))


def main() -> None:
    """Print and write one row per schedule and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", nargs="*", default=["one-shot", "iterative", "lasso"])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=DistillationSettings().learning_rate)
    parser.add_argument("--features", type=float, default=FEATURES)
    parser.add_argument("--bfloat16", action="store_true", help="compute products in bfloat16 where that is faster")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, train = cifar.resnet20(), cifar.images("train")
    search = tuple(tensor[-1000:] for tensor in train)
    data = Data(calibration=train[0][:1024], search=search, holdout=cifar.images("validation"), train=train[0][:-1000])
    dense = score(model)
    print(f"dense {100 * dense:.2f}%", flush=True)
    rows: list[dict[str, Any]] = []
    for schedule in arguments.schedules:
        for seed in range(arguments.seeds):
            rows.append(measured(model, data, dense, schedule, seed, arguments))
            (arguments.out / "recovery.json").write_text(json.dumps(rows, indent=1) + "\n")


def measured(
    model: torch.nn.Module, data: Data, dense: float, schedule: str, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One row: accuracy after the whole time."""
    policy = Policy.of({unit: Keep(RATIO) for unit in WIDTHS})
    settings = DistillationSettings(
        steps=STEPS, seconds=arguments.seconds, held_out=0.02, augmentation=IMAGES, learning_rate=arguments.rate,
        features=arguments.features, narrowed=False, temperature=arguments.temperature, bfloat16=arguments.bfloat16)
    begin = time.perf_counter()
    found = apply_policy(model, data, policy, distillation=settings, schedule=schedule, seed=seed)
    row = {"schedule": schedule, "seed": seed, "dense": dense, "accuracy": score(found), "tier": found.tier,
           "training_seconds": arguments.seconds, "temperature": arguments.temperature, "rate": arguments.rate,
           "features": arguments.features,
           "bfloat16": arguments.bfloat16 and computes_in_bfloat16(), "seconds": time.perf_counter() - begin}
    print(f"{schedule}, seed {seed}: {100 * row['accuracy']:.2f}% ({100 * (row['accuracy'] - dense):+.2f} points) "
          f"after {arguments.seconds:.0f} s of training, {row['seconds']:.0f} s in all", flush=True)
    return row


def score(model: torch.nn.Module) -> float:
    """Accuracy on the validation images."""
    images, labels = cifar.images("validation")
    with torch.inference_mode():
        outputs = torch.cat([model(batch) for batch in images.split(BATCH)])
    return float((outputs.argmax(dim=1) == labels).double().mean())


if __name__ == "__main__":
    main()
