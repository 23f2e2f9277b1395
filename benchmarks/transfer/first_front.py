"""How long a search takes until its first verified front, with and without another model's recipe.

    python first_front.py CACHE OUTPUT.json --source ds_cnn --target ds_cnn_wide --seeds 0 1 2

Both searches evaluate 12 candidates and verify three of them: built, stored, reloaded in a clean process, scored on the
holdout, exported and timed. Seconds are those of the whole search on one core, from a captured model to `front.json`;
they differ by the sensitivity table, which the cold search measures whole. The recipe is that of `search_cost.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from problems import MODELS, TARGET
from search_cost import source_recipe

from paretopress.search.observer import Silent
from paretopress.search.problem import SearchSettings
from paretopress.search.session import run_search
from paretopress.spaces.recipe import Recipe

TRIALS, FINALISTS, RUNS = 12, 3, 50


def searched(target: str, seed: int, library: tuple[Recipe, ...]) -> dict[str, Any]:
    """One search: its seconds, and how many of its finalists are on the verified front."""
    build, data = MODELS[target]
    model, samples = build(), data(seed)
    settings = SearchSettings(targets=(TARGET,), trials=TRIALS, seed=seed, distil="off", finalists=FINALISTS, workers=1,
                              timing_runs=RUNS, library=library)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = run_search(model, samples, settings, Path(folder) / "run", observer=Silent())
        seconds = time.perf_counter() - start
        front = json.loads((run / "front.json").read_text())
    return {"seconds": round(seconds, 1), "points": len(front["points"]),
            "on the front": sum(point["why_not"] is None for point in front["points"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=40, help="of the source's run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in given.seeds:
        recipe = source_recipe(given.source, seed, given.cache, given.trials)
        warm, cold = searched(given.target, seed, (recipe,)), searched(given.target, seed, ())
        rows.append({"seed": seed, "cold": cold, "warm": warm, "ratio": cold["seconds"] / warm["seconds"]})
        print(json.dumps(rows[-1]), flush=True)
        ratios = [row["ratio"] for row in rows]
        summary = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        given.output.write_text(json.dumps({"source": given.source, "target": given.target, "trials": TRIALS,
                                            "finalists": FINALISTS, "ratio": summary, "seeds": rows}, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
