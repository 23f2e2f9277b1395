"""Finalists: which candidates are worth verifying, built by the refit pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paretopress.compressors.entries import Entries
from paretopress.compressors.network import Network
from paretopress.compressors.refit import refit
from paretopress.evaluators.candidate import CandidateEvaluator, Limits
from paretopress.search.pareto import non_dominated, spread_subset
from paretopress.search.records import TrialRecord, TrialState
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


@dataclass(frozen=True)
class Finalist:
    """A candidate chosen for verification.

    Attributes:
        number: Its number in the front: 0 is the dense baseline.
        policy: The policy.
        name: `"dense"`, `"uniform int8"`, `"uniform half width"` or None.
        stitched: Accuracy on the search set before the refit; None until it is built.
        refitted: Accuracy on the search set of what is stored; None until it is built.
        tier: `"dense"`, `"entries"` or `"refit"`: which build is stored; `""` until it is built.
    """

    number: int
    policy: Policy
    name: str | None
    stitched: float | None = None
    refitted: float | None = None
    tier: str = ""


def costs_of(records: Sequence[TrialRecord], objectives: Mapping[str, str]) -> np.ndarray:
    """Objective values to be minimised, `(records, objectives)`."""
    sign = {"min": 1.0, "max": -1.0}
    return np.array([[sign[objectives[name]] * record.values[name] for name in objectives] for record in records])


def choose(
    records: Sequence[TrialRecord],
    objectives: Mapping[str, str],
    limits: Limits,
    count: int,
    keep: Sequence[Policy] = (),
    samples: int = 0,
) -> list[TrialRecord]:
    """Pick well-spread candidates by divergence and costs.

    The best accuracy among many candidates on few samples is mostly luck. The divergence from the dense
    model ranks them with far less noise, so a candidate counts with the accuracy that candidates of its
    divergence have (isotonic regression over all trials). Two thirds are picked by it, in steps of half a
    standard error: what the samples cannot tell apart is told apart by time and bytes. The others are
    picked by the divergence itself.

    Args:
        records: All trials.
        objectives: Names and directions.
        limits: Budgets.
        count: How many to pick.
        keep: Policies that are verified anyway and need not be picked.
        samples: Samples that accuracies were measured on, 0 to take them as exact.
    """
    kept = {policy.hash for policy in keep}
    complete = [r for r in records if r.state is TrialState.COMPLETE and "divergence" in r.values]
    expected = dict(zip((r.number for r in complete), expected_accuracies(complete, limits.direction), strict=True))
    others = [record for record in complete if record.policy.hash not in kept]
    pool = [record for record in others if _allowed(record, expected[record.number], limits)]
    if not pool:
        return sorted(others, key=lambda r: sum(max(0.0, value) for value in r.constraints.values()))[:count]
    losses = np.array([expected[record.number] for record in pool]) * (-1.0 if limits.direction == "max" else 1.0)
    step = accuracy_step(float(np.median([record.values["accuracy"] for record in complete])), samples)
    costs = costs_of(pool, {name: way for name, way in objectives.items() if name != "accuracy"})
    levels = np.floor((losses - losses.min()) / step) if step else losses
    by_accuracy = np.column_stack([levels, costs])
    by_divergence = np.column_stack([[record.values["divergence"] for record in pool], costs])
    first = spread_fronts(by_accuracy, -(-2 * count // 3))
    second = [index for index in spread_fronts(by_divergence, count) if index not in first]
    chosen = [*first, *second][:count]
    return sorted((pool[index] for index in chosen), key=lambda record: record.number)


def accuracy_step(accuracy: float, samples: int) -> float:
    """Half a standard error of an accuracy on so many samples; 0 for metrics that are not between 0 and 1."""
    if not samples or not 0.0 < accuracy < 1.0:
        return 0.0
    return 0.5 * math.sqrt(accuracy * (1.0 - accuracy) / samples)


def _allowed(record: TrialRecord, accuracy: float, limits: Limits) -> bool:
    costs_met = all(value <= 0.0 for name, value in record.constraints.items() if name != "max_drop")
    return costs_met and limits.check({}, accuracy).get("max_drop", 0.0) <= 0.0


def spread_fronts(costs: np.ndarray, count: int) -> list[int]:
    """Rows of a cost table: members of the front first, well spread, then of the front behind it.

    Args:
        costs: `(n, m)`, to be minimised.
        count: How many rows at most.
    """
    chosen: list[int] = []
    left = np.arange(len(costs))
    while len(left) and len(chosen) < count:
        front = left[non_dominated(costs[left])]
        picked = spread_subset(costs[front], min(count - len(chosen), len(front)))
        chosen += [int(front[index]) for index in picked]
        left = np.setdiff1d(left, front)
    return chosen


def expected_accuracies(records: Sequence[TrialRecord], direction: str) -> list[float]:
    """Accuracy that is expected of each record's divergence: it never rises with divergence.

    Isotonic regression by pooling adjacent violators (Barlow et al., "Statistical Inference under Order
    Restrictions", 1972).
    """
    sign = 1.0 if direction == "max" else -1.0
    order = sorted(range(len(records)), key=lambda index: (records[index].values["divergence"], records[index].number))
    blocks: list[list[float]] = []   # [mean, count], means never rising
    for index in order:
        blocks.append([sign * records[index].values["accuracy"], 1.0])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (first, before), (second, behind) = blocks[-2:]
            blocks[-2:] = [[(first * before + second * behind) / (before + behind), before + behind]]
    fitted = [mean for mean, count in blocks for _ in range(int(count))]
    result = [0.0] * len(records)
    for index, mean in zip(order, fitted, strict=True):
        result[index] = sign * mean
    return result


def build(
    evaluator: CandidateEvaluator,
    policy: Policy,
    inputs: Sequence[Tensor],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Network, str, float, float]:
    """Build a finalist by the refit pass; keep the stitched build where that one diverges less.

    Args:
        evaluator: Scores networks on the search set.
        policy: What to build.
        inputs: Calibration samples as one batch.
        seed: Seed of the refit's sampled positions.
        progress: Called with nodes done and in all.

    Returns:
        The network, which build it is, the stitched and the stored accuracy on the search set.
    """
    entries: Entries = evaluator.entries
    stitched, _ = evaluator.build(policy)
    before = evaluator.score(stitched)
    if policy.is_dense:
        return stitched, "dense", before["accuracy"], before["accuracy"]
    with torch.inference_mode():
        refitted = refit(entries.program, entries, plan(entries.program.structure, policy), inputs, seed=seed,
                         progress=progress)
    after = evaluator.score(refitted)
    if after["divergence"] <= before["divergence"]:
        return refitted, "refit", before["accuracy"], after["accuracy"]
    return stitched, "entries", before["accuracy"], before["accuracy"]
