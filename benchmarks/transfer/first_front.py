"""How long a search takes until its first verified front, with and without what another model's run learnt.

    python first_front.py CACHE OUTPUT.json --source resnet20 --target resnet32 --seeds 0 1 2 3 4

Both searches are whole ones, from the model to verified files: capture, calibration, table (predicted and corrected
where there is a library), trials, finalists, files, timing. They differ by the library alone, run one after the other,
and the one that is first changes from seed to seed. The hypervolume is that of the verified points: accuracy on holdout
data no more than 10 points below the dense model's, predicted time and stored bytes below its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from problems import MODELS, TARGET
from search_cost import compact, source_recipe, spread

import paretopress
from paretopress.evaluators.timing import host_description
from paretopress.result import Point
from paretopress.search.live import relative_hypervolume
from paretopress.search.problem import SearchSettings
from paretopress.search.session import run_search
from paretopress.spaces.recipe import Recipe

TRIALS, FINALISTS, RUNS = 16, 4, 50


def searched(target: str, seed: int, folder: Path, library: tuple[Recipe, ...]) -> dict[str, Any]:
    """Search once, and tell the seconds and the verified front."""
    model, data = MODELS[target]
    network, sets = model(), data(seed)
    settings = SearchSettings(targets=(TARGET,), trials=TRIALS, finalists=FINALISTS, seed=seed, distil="off",
                              timing_runs=RUNS, library=library)
    begin = time.perf_counter()
    run = run_search(network, sets, settings, folder)
    seconds = time.perf_counter() - begin
    front = paretopress.Result.load(run).front
    rows = [row_of(point) for point in (front.baseline, *front.points) if point.measured]
    return {"seconds": round(seconds, 1), "points": len(front.points),
            "hypervolume": relative_hypervolume(np.array(rows), np.array(rows[0])) or 0.0}


def row_of(point: Point) -> list[float]:
    """Accuracy on holdout data with its sign changed, predicted milliseconds and stored bytes."""
    return [-point.measured["accuracy"], point.predicted[f"latency@{TARGET}"], point.measured["size_bytes"]]


def compared(library: tuple[Recipe, ...], target: str, seed: int) -> dict[str, Any]:
    """Both searches of one seed, the warm one first where the seed is odd."""
    found: dict[str, Any] = {"seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm") if seed % 2 == 0 else ("warm", "cold"):
            found[name] = searched(target, seed, Path(folder) / name, library if name == "warm" else ())
    found["times shorter"] = found["cold"]["seconds"] / found["warm"]["seconds"]
    found["hypervolume, warm over cold"] = found["warm"]["hypervolume"] / max(found["cold"]["hypervolume"], 1e-9)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--source-trials", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in given.seeds:
        library = (source_recipe(given.source, seed, given.cache, given.source_trials),)
        rows.append(compared(library, given.target, seed))
        plain = {"source": given.source, "target": given.target, "trials": TRIALS, "machine": host_description(),
                 "summary": {name: spread([row[name] for row in rows])
                             for name in ("times shorter", "hypervolume, warm over cold")}, "seeds": rows}
        given.output.write_text(compact(plain))
        print(json.dumps(rows[-1]), flush=True)
    print(json.dumps(plain["summary"], indent=1))


if __name__ == "__main__":
    main()
