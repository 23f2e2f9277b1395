"""A front found with predicted times against the same with every candidate timed.

    python benchmarks/hardware/measured_loop.py [--network demo|kws] [--target local] [--candidates 300] [--out FOLDER]

One pool of candidates, each scored once; only the source of the time differs. The pool: the policies that a search
starts from (exact fronts of the sensitivity table, even widths, uniform int8 and half width) and random changes around
them, from a single unit to all of them. The loss is the divergence from the dense model on the search samples, by which
a search picks its finalists; candidates above the divergence at which a search stops scoring are left out.

- *predicted*: the front of (loss, predicted time); its points are then timed, as finalists are.
- *measured*: every candidate is exported and timed in turn with the dense model, by the medians of the calls of both;
  the front is that of (loss, measured time).

A point of the measured front is recalled where some point of the predicted front, by its measured time, dominates it or
is within 5% of it in both objectives (losses also within 0.002 nats, half the smallest gap that 1,000 samples resolve).
Every candidate is timed twice, in two passes: what the second pass's front recalls of the first one's is as much as a
source of times can recall that has the noise of one measurement. One thread, seed 0.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paretopress.compressors.export_onnx import export_onnx, session
from paretopress.compressors.refit import settle
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.evaluation import State
from paretopress.evaluators.timing import host_description, time_alternately
from paretopress.search.correlation import spearman
from paretopress.search.executors import SerialExecutor, torch_threads
from paretopress.search.observer import Silent
from paretopress.search.pareto import non_dominated
from paretopress.search.preparation import prepare_evaluator
from paretopress.search.problem import Problem, SearchSettings, prepare_problem
from paretopress.search.seeds import exact_seeds
from paretopress.search.session import SEEDS
from paretopress.search.table import measure_table
from paretopress.search.workload import Workload
from paretopress.spaces.documents import finite
from paretopress.spaces.policy import DENSE, Policy

Array = NDArray[np.float64]
NEAR, NEAR_LOSS = 0.05, 0.002
SEED = 0


def main() -> None:
    """Print what was found, and write it as JSON and text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("demo", "kws"), default="demo")
    parser.add_argument("--target", default="local")
    parser.add_argument("--candidates", type=int, default=300)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    problem = problem_of(arguments.network, arguments.target)
    evaluator = replace(prepare_evaluator(problem, Silent()), slack=float("inf"))
    with torch_threads(1):
        policies, losses, accuracies, scoring = scored(problem, evaluator, arguments.candidates)
        start = time.perf_counter()
        name = problem.costs.latency_names[0]
        predicted = problem.pricer.predict(problem.pricer.rows(policies))[name]
        pricing = time.perf_counter() - start
        first, timing = timed(problem, evaluator, policies, arguments.runs)
        second, _ = timed(problem, evaluator, policies, arguments.runs)
    found = compared(losses, predicted, first, second)
    per_candidate = timing / len(policies)
    found |= {
        "network": arguments.network, "target": name.partition("@")[2], "pool": len(policies), "runs": arguments.runs,
        "seconds": {
            "scoring": round(scoring, 2), "pricing": round(pricing, 4), "exporting_and_timing": round(timing, 2),
            "predicted_in_all": round(pricing + per_candidate * found["points_predicted"], 2),
        },
        "saved": round(1.0 - (pricing + per_candidate * found["points_predicted"]) / timing, 4),
        "host": host_description(), "seed": SEED,
        "candidates": [
            {"policy": policy.hash, "divergence": round(float(loss), 6), "accuracy": round(float(accuracy), 4),
             "predicted_ms": round(float(p), 5), "measured_ms": [round(float(a), 5), round(float(b), 5)]}
            for policy, loss, accuracy, p, a, b in zip(
                policies, losses, accuracies, predicted, first, second, strict=True)
        ],
    }
    text = summary(found)
    print(text, end="")
    stem = "measured_loop" if arguments.network == "demo" else f"measured_loop_{arguments.network}"
    (arguments.out / f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / f"{stem}.txt").write_text(text)


def problem_of(network: str, target: str) -> Problem:
    """A network with its data, checked and priced."""
    if network == "demo":
        from paretopress.demo.factories import data, model
    else:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "kws"))
        from kws import data, model  # type: ignore[import-not-found, no-redef]
    return prepare_problem(model(), data(), SearchSettings(targets=(target,), trials=1, seed=SEED))


def scored(problem: Problem, evaluator: CandidateEvaluator, count: int) -> tuple[list[Policy], Array, Array, float]:
    """The pool: policies, divergences, accuracies, and the seconds that scoring took."""
    policies, losses, accuracies = [], [], []
    start = time.perf_counter()
    for policy in proposed(problem, evaluator, 20 * count):
        evaluation = evaluator(policy)
        if evaluation.state is State.COMPLETE:
            policies.append(policy)
            losses.append(evaluation.values["divergence"])
            accuracies.append(evaluation.values["accuracy"])
        if len(policies) == count:
            break
    return policies, np.array(losses), np.array(accuracies), time.perf_counter() - start


def proposed(problem: Problem, evaluator: CandidateEvaluator, most: int) -> Sequence[Policy]:
    """What a search starts from, then random changes around it, each policy once."""
    table, _ = measure_table(problem.space, SerialExecutor(Workload.of(problem, evaluator)))
    seeds = exact_seeds(problem.program.structure, problem.space, table, problem.costs, SEEDS)
    starts = [*seeds.policies, *problem.comparisons().values(), *problem.even_widths()]
    space, rng = problem.option_space, random.Random(SEED)
    genomes = dict.fromkeys(space.canonical(space.genome(policy)) for policy in starts)
    around = list(genomes)
    while len(genomes) < most:
        genomes.setdefault(space.canonical(space.scattered(rng.choice(around), rng)))
    return [space.policy(genome) for genome in genomes if genome != space.dense]


def timed(
    problem: Problem, evaluator: CandidateEvaluator, policies: Sequence[Policy], runs: int
) -> tuple[Array, float]:
    """Milliseconds of every policy, as if the dense model always took its median time; seconds taken."""
    entries, program = evaluator.entries, problem.program
    batch = problem.data.holdout.first(1 if program.graph.dynamic_batch else program.graph.batch)[0]
    inputs = program.flatten_inputs(batch.args, batch.kwargs)
    pairs = []
    with tempfile.TemporaryDirectory(prefix="paretopress-") as folder:
        dense = Path(folder) / "dense.onnx"
        export_onnx(program, settle(entries, problem.plan(DENSE))[0], dense)
        reference, path, seconds = session(dense), Path(folder) / "candidate.onnx", 0.0
        for policy in policies:
            network = settle(entries, problem.plan(policy))[0]   # scoring has it already
            start = time.perf_counter()
            export_onnx(program, network, path)
            timing = time_alternately(session(path), reference, inputs, runs)
            seconds += time.perf_counter() - start
            pairs.append((timing.median, timing.baseline))
    table = np.array(pairs)
    return table[:, 0] / table[:, 1] * np.median(table[:, 1]), seconds


def front_of(losses: Array, times: Array) -> NDArray[np.int64]:
    """Which candidates are on the front of loss and time."""
    return np.flatnonzero(non_dominated(np.stack([losses, times], axis=1)))


def recall(truth: NDArray[np.int64], found: NDArray[np.int64], losses: Array, times: Array) -> float:
    """Share of the points of one front that the points of another recall, by these times."""
    hits = 0
    for point in truth:
        slack = np.maximum(NEAR * losses[point], NEAR_LOSS)
        near = (losses[found] <= losses[point] + slack) & (times[found] <= times[point] * (1.0 + NEAR))
        hits += bool(near.any())
    return hits / len(truth)


def compared(losses: Array, predicted: Array, first: Array, second: Array) -> dict[str, Any]:
    """Recall and errors of the predicted front, and of a second measurement."""
    truth, by_prediction, again = (front_of(losses, times) for times in (first, predicted, second))
    errors = predicted / first - 1.0
    return {
        "points_measured": len(truth), "points_predicted": len(by_prediction),
        "recall": round(recall(truth, by_prediction, losses, first), 4),
        "recall_of_second_measurement": round(recall(truth, again, losses, first), 4),
        "spearman": finite(spearman(predicted.tolist(), first.tolist()) or 0.0),
        "spearman_of_second_measurement": finite(spearman(second.tolist(), first.tolist()) or 0.0),
        "within_10_pct": round(float(np.mean(np.abs(errors) <= 0.1)), 4),
        "median_error_pct": round(100.0 * float(np.median(errors)), 2),
        "median_difference_of_measurements_pct": round(100.0 * float(np.median(np.abs(second / first - 1.0))), 2),
    }


def summary(found: dict[str, Any]) -> str:
    """The result in a few lines."""
    seconds, host = found["seconds"], found["host"]
    lines = [
        (f"{found['network']}, {found['pool']} candidates, target {found['target']}; {host['cpu']}, {host['runtime']}, "
        f"one thread, {found['runs']} calls each."),
        (f"Recall of the {found['points_measured']} points of the measured front by the {found['points_predicted']} of "
        f"the predicted one: {found['recall']:.3f}; by a second measurement: "
        f"{found['recall_of_second_measurement']:.3f}."),
        (f"Predicted times: rank correlation {found['spearman']:.4f} (a second measurement "
        f"{found['spearman_of_second_measurement']:.4f}), {found['within_10_pct']:.0%} within 10%, median error "
        f"{found['median_error_pct']:+.1f}%; two measurements differ by "
        f"{found['median_difference_of_measurements_pct']}% (median)."),
        (f"Exporting and timing every candidate: {seconds['exporting_and_timing']} s; pricing all and timing the "
        f"front: {seconds['predicted_in_all']} s ({found['saved']:.0%} less). Scoring took {seconds['scoring']} s "
        f"either way."),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
