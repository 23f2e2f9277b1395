"""Accuracy of a CIFAR ResNet by the kind of factors at about half of the weights, without any training.

    python benchmarks/compressors/ranks.py [--model resnet20] [--kinds svd spatial tucker nmf] [--shares 0.5 0.75]
        [--seeds 3] [--out FOLDER]

Network, images, calibration and scores are those of `methods.py`; the first and the last layer stay whole. A share is
that of the rank at which a layer would have as many weights in factors as in one piece; `tucker` shrinks two ranks,
so that fewer weights are left.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from methods import Subject, refitted, stitched

from paretopress.spaces.choices import FACTORISATIONS
from paretopress.spaces.methods import factorisation
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--kinds", nargs="*", default=list(FACTORISATIONS), choices=FACTORISATIONS)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.5, 0.75])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    subject = Subject(arguments.model)
    print(f"{arguments.model}: dense {100 * subject.dense:.2f}%, {arguments.seeds} seeds", flush=True)
    rows: list[dict[str, Any]] = []
    for share in arguments.shares:
        for kind in arguments.kinds:
            rows += measured(subject, kind, share, arguments.seeds)
    (arguments.out / "ranks.json").write_text(json.dumps(rows, indent=1) + "\n")


def measured(subject: Subject, kind: str, share: float, seeds: int) -> list[dict[str, Any]]:
    """One kind at one share of its break-even ranks, layers fitted once and solved again."""
    structure = subject.program.structure
    assigned = factorisation(dict.fromkeys(structure.ends) | {"*": share}, kind).assign(structure)
    whole, planned = plan(structure, Policy()), plan(structure, assigned.policy)
    factored = {unit.rsplit("/", 1)[0] for unit, _ in assigned.policy}
    bytes_of = {one.layer.name: one.stored_bytes for one in whole.layers}
    kept = sum(one.stored_bytes for one in planned.layers if one.layer.name in factored)
    kept /= sum(bytes_of[name] for name in factored)
    print(f"\n{kind} at {share:g} of break-even: {100 * kept:.0f}% of the bytes of {len(factored)} layers", flush=True)
    builders = {"fitted once": stitched("obs", compensate=True), "solved again": refitted("obs")}
    rows = [subject.measured(name, f"{kind} {share:g}", assigned.policy, builder, seeds, None)
            for name, builder in builders.items()]
    return [{**row, "kept": kept, "layers": len(factored)} for row in rows]


if __name__ == "__main__":
    main()
