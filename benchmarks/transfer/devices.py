"""A run on x86 solved again for other devices, against a search made for them: `devices.py CACHE OUTPUT.json NAME...`.

Seconds are those of `policy transfer` after the model and its data are loaded. The fresh search measures its own table
and solves that. Both fronts are judged by the fresh table: the hypervolume of loss (to 0.5 nats), time and bytes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from problems import MODELS, case, measured

from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.search.observer import Silent
from paretopress.search.pareto import hypervolume
from paretopress.search.policy_reuse import reuse
from paretopress.search.resolving import Resolved, solved_again

DEVICES = ("stm32-h7a3", "cortex-a76-tflite")
WORST_LOSS = 0.5


def volume(found: Resolved, table: SensitivityTable) -> float:
    """Hypervolume of a front by the losses of a table; costs relative to the dearest point where dense cannot run."""
    problem = found.problem
    names = [name for name in problem.cost_objectives if name.startswith(("latency", "relative")) or name == "size"]
    top = [problem.baseline[name] if np.isfinite(problem.baseline[name]) else
           max(point.predicted[name] for point in found.points) for name in names]
    rows = []
    for point in found.points:
        loss = sum(table.losses[unit][problem.space.options[unit].index(choice)] for unit, choice in point.policy)
        rows.append([loss / WORST_LOSS, *(point.predicted[name] / most for name, most in zip(names, top, strict=True))])
    return hypervolume(np.array(rows), np.ones(len(names) + 1))


def compared(name: str, device: str, cache: Path) -> dict[str, Any]:
    """One model on one device."""
    recipe = measured(case(name, 0, cache))
    model, data = MODELS[name][0](), MODELS[name][1](0)
    start = time.perf_counter()
    found = reuse(recipe, model, data, targets=(device,), observer=Silent())
    seconds = time.perf_counter() - start
    assert found.kind == "device"
    assert found.resolved is not None
    fresh_case = case(name, 0, cache, device)
    fresh = measured(fresh_case)
    table = SensitivityTable(fresh.losses)
    again = solved_again(fresh_case.problem, table, fresh.cells, time.perf_counter(), (), Silent())
    own, best = volume(found.resolved, table), volume(again, table)
    return {"model": name, "device": device, "seconds": round(seconds, 2), "choices measured": found.resolved.computed,
            "choices known": found.resolved.covered, "fresh choices": fresh.cells,
            "fresh images": fresh_case.counted.images, "hypervolume": own, "hypervolume fresh": best,
            "relative": own / best if best else None}


def main() -> None:
    cache, output = Path(sys.argv[1]), Path(sys.argv[2])
    rows = []
    for name in sys.argv[3:]:
        for device in DEVICES:
            rows.append(compared(name, device, cache))
            output.write_text(json.dumps(rows, indent=1) + "\n")
            print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
