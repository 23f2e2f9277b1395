"""What ending the scoring of hopeless candidates early saves, and what it costs.

    python benchmarks/search/subsets.py [--model ds_cnn] [--trials 200] [--sampler nsga2] [--seeds 2] [--out FOLDER]

Explores as a search does (device `x86-zen4-vnni-onnxruntime`, no budgets) with the sequential test on subsets, then
scores every candidate that it stopped on all samples too: its true values say whether the front of the run lacks any
point, and how far the estimates from a part of the samples are off. Images count what tunes a candidate and what scores
it; the sensitivity table is the same for both and left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path += [str(Path(__file__).parents[2] / "examples" / name) for name in ("cifar", "kws")]

from paretopress.evaluators.evaluation import Evaluation
from paretopress.search.executors import SerialExecutor, torch_threads
from paretopress.search.exploration import ExplorationSettings, explore
from paretopress.search.ledger import Run
from paretopress.search.measured_problem import MeasuredProblem, measured_problem
from paretopress.search.pareto import non_dominated
from paretopress.search.problem import SearchSettings
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.rivalry import Rivalry
from paretopress.search.workload import Workload

DEVICE = "x86-zen4-vnni-onnxruntime"


def explored(measured: MeasuredProblem, sampler: str, trials: int, seed: int) -> list[TrialRecord]:
    """The trials of one exploration."""
    problem, settings = measured.problem, ExplorationSettings(sampler, trials, seed=seed)
    workload = Workload.of(problem, measured.evaluator)
    with (
        tempfile.TemporaryDirectory() as folder,
        Run.open(folder, problem.fingerprints(), {}) as run,
        SerialExecutor(workload) as executor,
    ):
        return explore(
            problem.space.options, problem.objectives, measured.seeds, executor, run, settings,
            measured.evaluator.constraints, inside=problem.units_inside_branches(), guide=measured.guide,
            rivalry=Rivalry(problem.objectives),
        )


def front(rows: Sequence[Evaluation | TrialRecord], names: Sequence[str]) -> set[tuple[float, ...]]:
    """Objective values of the front."""
    costs = np.array([[-one.values["accuracy"], *(one.values[name] for name in names)] for one in rows])
    return {tuple(row) for row in costs[non_dominated(costs)].tolist()}


def judged(measured: MeasuredProblem, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """What the test saved and cost in one run."""
    names = measured.problem.cost_objectives
    stopped = [one for one in records if (one.reason or "").startswith("screened by subset")]
    complete = [one for one in records if one.state is TrialState.COMPLETE]
    truth = [measured.evaluate(one.policy) for one in stopped]
    found, wanted = front(complete, names), front([*complete, *truth], names)
    images = sum(one.images for one in records)
    whole = images + sum(true.images - one.images for one, true in zip(stopped, truth, strict=True))
    errors = [one.values["accuracy"] - true.values["accuracy"] for one, true in zip(stopped, truth, strict=True)]
    return {
        "trials": len(records), "complete": len(complete), "stopped": len(stopped), "images": images,
        "images_in_full": whole, "front": len(wanted), "missed": len(wanted - found),
        "bias": statistics.fmean(errors) if errors else 0.0,
        "error": float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0,
    }


def main() -> None:
    """Print the table and write it as text and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ds_cnn", choices=("ds_cnn", "resnet20", "resnet32", "resnet56"))
    parser.add_argument("--sampler", default="nsga2")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    import cifar
    import kws

    name = arguments.model
    model, data = (kws.model(), kws.data()) if name == "ds_cnn" else (getattr(cifar, name)(), cifar.data())
    with torch_threads(1):
        measured = measured_problem(model, data, SearchSettings((DEVICE,), trials=1, distil="off"))
        runs = []
        for seed in range(arguments.seeds):
            runs.append(judged(measured, explored(measured, arguments.sampler, arguments.trials, seed)))
            print(f"seed {seed}: {runs[-1]}", file=sys.stderr, flush=True)
    samples = measured.evaluator.samples.count
    lines = [f"{name}, sampler {arguments.sampler}, {samples} samples to score on, torch {torch.__version__}",
             (f"{'seed':>4s}{'trials':>8s}{'scored':>8s}{'stopped':>9s}{'images':>10s}{'in full':>10s}{'saved':>7s}"
              f"{'front':>7s}{'missed':>8s}{'bias':>9s}{'error':>8s}")]
    for seed, run in enumerate(runs):
        lines.append(
            f"{seed:>4d}{run['trials']:>8d}{run['complete']:>8d}{run['stopped']:>9d}{run['images']:>10,d}"
            f"{run['images_in_full']:>10,d}{1.0 - run['images'] / run['images_in_full']:>7.1%}{run['front']:>7d}"
            f"{run['missed']:>8d}{100 * run['bias']:>7.2f}pp{100 * run['error']:>6.2f}pp"
        )
    print("\n".join(lines))
    stem = arguments.out / f"subsets_{name}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    stem.with_suffix(".json").write_text(json.dumps({"samples": samples, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
