"""Time and memory of a whole database of compressed layers, forced eagerly, and of stitching candidates from it.

    python benchmarks/compressors/database.py [--model resnet56] [--out FOLDER]

Every layer at 8 keep levels of its inputs, in floats and in 8, 4, 3 and 2 bits, and at 6 ranks where they pay. The
network and the images are those of `examples/cifar` (the folder of shared data is named by PARETOPRESS_SHARED). One
thread. The calibration pass is compared with a plain forward pass over the same images, side by side. Memory is the
largest resident set of this process; before anything is compressed it is printed too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[2] / "examples" / "cifar"))

import cifar

from paretopress.compressors.calibration import base_network, calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.network import forward
from paretopress.compressors.program import Program, build_program
from paretopress.spaces.choices import Choice, Factorised, Keep, Weights
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

LEVELS = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
FORMATS = (None, Weights(8, 32), Weights(4, 32), Weights(3, 32), Weights(2, 32))
RANKS = (0.25, 0.4, 0.5, 0.65, 0.75, 0.9)   # of the break-even rank
IMAGES, BATCH, CANDIDATES = 1024, 256, 200


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = cifar.images("train")[0][:IMAGES]
    program = build_program(getattr(cifar, arguments.model)(), (images[:2],))
    start = _gigabytes()
    plain, whole = _forward_seconds(program, images), time.perf_counter()
    calibration = calibrate(program, [[batch] for batch in images.split(BATCH)])
    calibrated = time.perf_counter() - whole
    entries, whole = Entries(program, calibration), time.perf_counter()
    count = _force(program, entries)
    forced, peak = time.perf_counter() - whole, _gigabytes()
    stitched = _stitching(program, entries)
    figures = {
        "model": arguments.model, "entries": count, "plain_forward_seconds": plain, "calibration_seconds": calibrated,
        "calibration_over_forward": calibrated / plain, "forced_seconds": forced, "gigabytes_at_start": start,
        "gigabytes": peak, "stitch_median_ms": statistics.median(stitched), "stitch_worst_ms": max(stitched),
    }
    print(f"{arguments.model}: {count} entries in {forced:.0f} s, at most {peak:.2f} GiB (at start {start:.2f})\n"
          f"calibration {calibrated:.1f} s, {calibrated / plain:.1f} times a plain forward pass of {plain:.1f} s\n"
          f"one candidate stitched in {statistics.median(stitched):.1f} ms (worst {max(stitched):.1f} ms)")
    (arguments.out / "database.json").write_text(json.dumps(figures, indent=1) + "\n")


def _gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _forward_seconds(program: Program, images: torch.Tensor) -> float:
    network, begin = base_network(program), time.perf_counter()
    with torch.inference_mode():
        for batch in images.split(BATCH):
            forward(program, network, [batch])
    return time.perf_counter() - begin


def _uniform(program: Program, level: float, form: Weights | None, rank: float | None) -> Policy:
    structure, choices = program.structure, dict[str, Choice]()
    if level < 1.0:
        choices |= {f"{group.name}/channels": Keep(level) for group in structure.coupling.groups if not group.frozen}
    for layer in structure.layers:
        if form is not None:
            choices[f"{layer.name}/weights"] = form
        if rank is not None and not layer.why_no_rank:
            rows, columns = (max(1, round(level * size)) for size in layer.sides(layer.shape))
            wanted = round(rank * rows * columns / (rows + columns))
            if 0 < wanted < min(layer.sides(layer.shape)):
                choices[f"{layer.name}/rank"] = Factorised("svd", wanted)
    return Policy.of(choices)


def _force(program: Program, entries: Entries) -> int:
    count = 0
    for level, form, rank in itertools.product(LEVELS, FORMATS, (None, *RANKS)):
        if rank is not None and form not in (None, FORMATS[1]):
            continue   # one sweep gives all widths of a factor
        network = entries.stitch(plan(program.structure, _uniform(program, level, form, rank)))
        count += len(network.parts)
    return count


def _stitching(program: Program, entries: Entries) -> list[float]:
    """Milliseconds of stitching random candidates whose layers are all in the database."""
    draw, found = random.Random(0), []
    units = [layer.name for layer in program.structure.layers]
    for _ in range(CANDIDATES):
        base = _uniform(program, draw.choice(LEVELS), None, None)
        formats = {f"{name}/weights": draw.choice(FORMATS) for name in units}
        planned = plan(program.structure, base.replace(formats))
        begin = time.perf_counter()
        entries.stitch(planned)
        found.append(1000 * (time.perf_counter() - begin))
    return found


if __name__ == "__main__":
    main()
