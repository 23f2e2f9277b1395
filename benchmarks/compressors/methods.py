"""Accuracy after pruning or quantisation without fine-tuning, method by method, at uniform levels.

    python benchmarks/compressors/methods.py [--only pruning quantising] [--models NAME ...] [--seeds 3] [--out FOLDER]

The networks and data are those of `examples/cifar` and `examples/kws` (the folder of shared data is named by
PARETOPRESS_SHARED). ResNets: 1,024 training images calibrate, all 5,000 validation images score. DS-CNN: 256 stimuli
calibrate, the 244 others score, so that one of them is 0.4 points. Of the ResNets only the inner widths of the residual
blocks are pruned, of DS-CNN all widths, all by one ratio, which is chosen for the wanted number of
multiply-accumulates. A seed draws the calibration images (seed 0: the first rows) and the places in the feature maps
that are looked at. Retention is the accuracy divided by that of the dense network.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path += [str(Path(__file__).parents[2] / "examples" / name) for name in ("cifar", "kws")]

import cifar
import kws

from paretopress.compressors.calibration import Calibration, base_network, calibrate
from paretopress.compressors.entries import Entries, Importance
from paretopress.compressors.network import Network, forward
from paretopress.compressors.program import Program, build_program
from paretopress.compressors.refit import refit
from paretopress.compressors.tuning import tune
from paretopress.spaces.choices import Choice, Keep, Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.plan import Plan, plan
from paretopress.spaces.policy import Policy

CALIBRATION = 1024
BATCH = 256
ROWS = 20_000

Builder = Callable[[Program, Calibration, Plan, torch.Tensor, int], Network]


def stitched(importance: Importance, *, compensate: bool, matched: bool = True) -> Builder:
    """Channels chosen by an importance; consumers refitted or not; statistics matched or not."""
    def build(program: Program, calibration: Calibration, planned: Plan, _: torch.Tensor, __: int) -> Network:
        entries = Entries(program, calibration, importance, compensate)
        network = entries.stitch(planned)
        return tune(program, network, calibration)[0] if matched else network
    return build


def refitted(importance: Importance) -> Builder:
    """Every layer solved again on its own compressed prefix, for the dense outputs and what the shortcut is missing."""
    def build(
        program: Program, calibration: Calibration, planned: Plan, inputs: torch.Tensor, seed: int
    ) -> Network:
        return refit(program, Entries(program, calibration, importance), planned, [inputs], seed=seed)
    return build


PRUNING: dict[str, Builder] = {
    "L1, nothing else": stitched("l1", compensate=False, matched=False),
    "L1, statistics matched": stitched("l1", compensate=False),
    "L1, least squares": stitched("l1", compensate=True),
    "L1, residual-aware": refitted("l1"),
    "OBS, least squares": stitched("obs", compensate=True),
    "OBS, residual-aware": refitted("obs"),
}
QUANTISING: dict[str, Builder] = {
    "error feedback": stitched("obs", compensate=True),
    "error feedback, solved again": refitted("obs"),
}
REFERENCES = {   # accuracy of the same methods on the original weights and the same kind of images, as retention
    ("resnet56", 2.08): {"L1, nothing else": 10.8 / 82.6, "L1, statistics matched": 42.4 / 82.6,
                         "L1, least squares": 69.1 / 82.6, "L1, residual-aware": 73.6 / 82.6,
                         "OBS, residual-aware": 76.3 / 82.6},
    ("resnet56", 2.62): {"OBS, residual-aware": 72.9 / 82.6},
}
PRUNED = (("resnet56", 2.08), ("resnet56", 2.62), ("resnet20", 2.0), ("ds_cnn", 1.25), ("ds_cnn", 1.5))
WIDTHS = ((4, 0.3), (3, 1.0), (2, 10.0))   # bits, and the points that may be lost


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    models = list(dict.fromkeys(name for name, _ in PRUNED))
    parser.add_argument("--only", nargs="*", default=["pruning", "quantising"])
    parser.add_argument("--models", nargs="*", default=models, choices=models)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    print(f"torch {torch.__version__}, {platform.machine()}, {arguments.seeds} seeds, no fine-tuning", flush=True)
    for model in arguments.models:
        subject = Subject(model)
        print(f"\n{model}: dense {100 * subject.dense:.2f}% on {len(subject.validation[0]):,} validation samples",
              flush=True)
        if "pruning" in arguments.only:
            for factor in (factor for name, factor in PRUNED if name == model):
                rows += subject.pruned(factor, arguments.seeds)
        if "quantising" in arguments.only:
            rows += subject.quantised(arguments.seeds)
        (arguments.out / "methods.json").write_text(json.dumps(rows, indent=1) + "\n")


class Subject:
    """A network with its data and its dense score."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "ds_cnn":
            found = kws.data()
            self.model, (self.images, _), self.validation = kws.model(), found.search, found.holdout
        else:
            self.model, (self.images, _) = getattr(cifar, name)(), cifar.images("train")
            self.validation = cifar.images("validation")
        self.program = build_program(self.model, (self.images[:2],))
        dense = plan(self.program.structure, Policy())
        self.macs = _macs(dense)
        self.dense = self.score(base_network(self.program))
        self._known: dict[int, tuple[Calibration, torch.Tensor]] = {}

    def calibrated(self, seed: int) -> tuple[Calibration, torch.Tensor]:
        """Statistics of the calibration images of a seed, and these images."""
        rows = min(ROWS, len(self.images))
        order = torch.arange(rows) if seed == 0 else torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        inputs = self.images[order[:CALIBRATION]]
        batches = [[batch] for batch in inputs.split(BATCH)]
        return calibrate(self.program, batches, seed=seed), inputs

    def score(self, network: Network) -> float:
        """Accuracy on the validation images."""
        images, labels = self.validation
        with torch.inference_mode():
            outputs = [forward(self.program, network, [batch]) for batch in images.split(BATCH)]
        return float((torch.cat(outputs).argmax(dim=1) == labels).double().mean())

    def pruned(self, factor: float, seeds: int) -> list[dict[str, Any]]:
        """Every method at the one ratio of inner widths that divides the multiply-accumulates by `factor`."""
        ratio, reached = self._ratio(factor)
        print(f"\nwidths at {ratio:.4f}: {reached:.2f}x fewer multiply-accumulates")
        references = REFERENCES.get((self.name, factor), {})
        policy = self._inner(ratio)
        return [self.measured(name, f"{reached:.2f}x", policy, builder, seeds, references.get(name))
                for name, builder in PRUNING.items()]

    def quantised(self, seeds: int) -> list[dict[str, Any]]:
        """Weights of all layers at every width; activations stay in floats."""
        rows = []
        for bits, allowed in WIDTHS:
            print(f"\nweights of {bits} bits (may lose {allowed:g} points)")
            policy = Policy.of(self.program.structure.takers(Weights(bits, 32)))
            rows += [self.measured(name, f"W{bits}", policy, builder, seeds, None)
                     for name, builder in QUANTISING.items()]
        return rows

    def _inner(self, ratio: float) -> Policy:
        groups = [group for group in self.program.structure.coupling.groups if not group.frozen
                  and (self.name == "ds_cnn" or ("layer" in group.name and group.name.endswith("conv1")))]
        choices: dict[str, Choice] = {f"{group.name}/channels": Keep(ratio) for group in groups}
        return Policy.of(choices)

    def _ratio(self, factor: float) -> tuple[float, float]:
        """The ratio of inner widths that comes nearest to a factor in multiply-accumulates."""
        tried = {ratio / 64: self.macs / _macs(plan(self.program.structure, self._inner(ratio / 64)))
                 for ratio in range(4, 64)}
        best = min(tried, key=lambda ratio: abs(tried[ratio] - factor))
        return best, tried[best]

    def measured(
        self, name: str, level: str, policy: Policy, builder: Builder, seeds: int, reference: float | None
    ) -> dict[str, Any]:
        """Accuracy of a policy under a method, over the seeds."""
        planned, found, begin = plan(self.program.structure, policy), [], time.perf_counter()
        for seed in range(seeds):
            calibration, inputs = self._known.setdefault(seed, self.calibrated(seed))
            found.append(self.score(builder(self.program, calibration, planned, inputs, seed)))
        mean, spread = statistics.mean(found), max(found) - min(found)
        row = {"model": self.name, "method": name, "level": level, "accuracy": mean, "spread": spread,
               "retention": mean / self.dense, "reference_retention": reference, "bytes": planned.stored_bytes,
               "seconds": (time.perf_counter() - begin) / seeds}
        against = "" if reference is None else f"   reference {100 * reference:.1f}%"
        print(f"  {name:30s} {100 * mean:6.2f}% (spread {100 * spread:4.2f})  retention {100 * row['retention']:5.1f}%"
              f"{against}   {row['seconds']:.0f} s", flush=True)
        return row


def _macs(planned: Plan) -> int:
    return sum(kernel.macs for kernel in cost_view(planned).kernels)


if __name__ == "__main__":
    main()
