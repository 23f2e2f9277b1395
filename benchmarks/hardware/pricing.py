"""Candidates priced per second: one by one against many side by side.

    python benchmarks/hardware/pricing.py [--candidates 8192] [--out FOLDER]

ResNet-56 on 32 x 32 images, every choice of the default space (widths, dropped branches, ranks, formats, 8-bit and
float layers), latency, size, multiply-accumulates and peak memory on one and on three devices. Policies are drawn as a
search draws them: from the dense one, each unit changed with a probability that is log-uniform from one unit to all.
Both sides price the same policies in turns, on one thread, and must agree to 1e-9. `first pass` fills the tables with
these policies; the rates are those of later passes. Also timed: finding out which choices pay, before a search begins.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paretopress.evaluators.costs import (
    CostModel,
    drop_slower_ranks,
    drop_slower_twins,
    drop_what_cannot_run,
    drop_what_does_not_pay,
)
from paretopress.evaluators.pricing import PolicyPricer
from paretopress.evaluators.timing import host_description
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.search.option_space import OptionSpace
from paretopress.spaces.capture import capture
from paretopress.spaces.plan import plan
from paretopress.spaces.space import SpaceSettings, build_space
from paretopress.spaces.structure import Structure, analyse

DEVICES = ("x86-zen4-vnni-onnxruntime", "cortex-a76-tflite", "h200-sxm")
ALONE = 24       # policies that are priced one by one between two passes
PASSES = 3
TOLERANCE = 1e-9


def main() -> None:
    """Print the rates, and write them as JSON and text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=8192)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    structure = resnet56()
    rows = [rates(structure, DEVICES[:count], arguments.candidates) for count in (1, len(DEVICES))]
    found = {"network": "ResNet-56, 32 x 32", "candidates": arguments.candidates, "rows": rows,
             "seconds_of_what_pays": what_pays(structure), "host": host_description(), "seed": 0}
    text = summary(found)
    print(text, end="")
    (arguments.out / "pricing.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "pricing.txt").write_text(text)


def resnet56() -> Structure:
    """The network of `examples/cifar`, with random weights: they do not change what it costs."""
    path = Path(__file__).resolve().parents[2] / "examples" / "cifar" / "cifar.py"
    spec = importlib.util.spec_from_file_location("cifar", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.ResNet(9).eval()
    return analyse(capture(model, (torch.randn(2, 3, 32, 32),)), model)


def rates(structure: Structure, devices: Sequence[str], count: int) -> dict[str, Any]:
    """Candidates per second of both sides on some devices."""
    costs = CostModel(tuple(load_profile(name) for name in devices))
    space = build_space(structure, [device.capabilities() for device in costs.devices], SpaceSettings())
    options = OptionSpace.of(space.options)
    pricer = PolicyPricer(structure, dict(zip(options.units, options.options, strict=True)), costs)
    rng = random.Random(0)
    genomes = [options.canonical(options.scattered(options.dense, rng)) for _ in range(count)]
    rows = np.array(genomes, dtype=np.int64)
    start = time.perf_counter()
    priced = pricer.predict(rows)
    first = time.perf_counter() - start
    alone, together = [], []
    for number in range(PASSES):
        mine = range(number * ALONE, (number + 1) * ALONE)
        start = time.perf_counter()
        single = [costs.predict(plan(structure, options.policy(genomes[row]))) for row in mine]
        alone.append(ALONE / (time.perf_counter() - start))
        start = time.perf_counter()
        pricer.predict(rows)
        together.append(count / (time.perf_counter() - start))
        check(priced, mine, single)
    one, many = float(np.median(alone)), float(np.median(together))
    small = rows[:384]   # changes of one policy, as a descent of the search draws them
    start = time.perf_counter()
    pricer.predict(small)
    return {
        "devices": list(devices), "units": len(options.units), "kernels": len(structure.fusion.kernels),
        "droppable_branches": len(structure.branches), "one_by_one_per_s": round(one, 1),
        "together_per_s": round(many, 1), "ratio": round(many / one, 1),
        "together_per_s_of_passes": [round(rate, 1) for rate in together],
        "first_pass_s": round(first, 2), "table_rows": pricer.entries,
        "of_384_per_s": round(len(small) / (time.perf_counter() - start), 1),
    }


def check(priced: dict[str, NDArray[np.float64]], rows: Sequence[int], single: Sequence[dict[str, float]]) -> None:
    """Both sides must agree."""
    for row, costs in zip(rows, single, strict=True):
        for name, value in costs.items():
            if not np.isclose(priced[name][row], value, rtol=TOLERANCE, atol=0.0):
                raise SystemExit(f"policy {row}: {name} is {priced[name][row]} side by side and {value} alone")


def what_pays(structure: Structure) -> float:
    """Seconds of finding out which choices pay, as every search does before it begins."""
    costs = CostModel((load_profile(DEVICES[0]),))
    space = build_space(structure, [device.capabilities() for device in costs.devices], SpaceSettings())
    start = time.perf_counter()
    space = drop_what_cannot_run(structure, space, costs)
    space = drop_slower_twins(structure, drop_slower_ranks(structure, space, costs), costs)
    drop_what_does_not_pay(structure, space, costs)
    return round(time.perf_counter() - start, 2)


def summary(found: dict[str, Any]) -> str:
    """The result in a few lines."""
    host = found["host"]
    lines = [f"{found['network']}, {found['candidates']} policies, one thread; {host['cpu']}."]
    for row in found["rows"]:
        passes = row["together_per_s_of_passes"]
        lines.append(
            f"{len(row['devices'])} device(s): {row['together_per_s']:,.0f} candidates/s side by side "
            f"({min(passes):,.0f} to {max(passes):,.0f} in {len(passes)} passes), {row['one_by_one_per_s']:,.0f}/s one "
            f"by one: {row['ratio']:.0f} times; 384 at a time {row['of_384_per_s']:,.0f}/s. First pass "
            f"{row['first_pass_s']} s for {row['table_rows']:,} table rows."
        )
    lines.append(f"Which choices pay, before a search begins: {found['seconds_of_what_pays']} s.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
