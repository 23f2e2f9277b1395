"""Finalists: which candidates are worth building, and which of the built ones are worth verifying."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretopress.evaluators.candidate import DROP, Limits
from paretopress.search.pareto import non_dominated, spread_order
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.workload import Built
from paretopress.spaces.policy import Policy

Array = NDArray[np.float64]
SMALLEST_DIVERGENCE = 1e-9
PAIRS_FOR_A_SLOPE = 6          # fewer builds say how much the refit gains, but not how that changes
NEARLY_AS_GOOD = 1.5           # times the lowest divergence
SLOPES = (0.3, 1.2)            # of log(divergence after the refit) over log(before it)


@dataclass(frozen=True)
class Finalist:
    """A candidate chosen for verification.

    Attributes:
        number: Its number in the front: 0 is the dense baseline.
        policy: The policy.
        name: `"dense"`, `"uniform int8"`, `"uniform half width"` or None.
        stitched: Accuracy on the search set before the refit; None until it is built.
        refitted: Accuracy on the search set of what is stored; None until it is built.
        tier: `"dense"`, `"entries"`, `"refit"` or `"distilled"`: which build is stored; `""` until it is built.
    """

    number: int
    policy: Policy
    name: str | None
    stitched: float | None = None
    refitted: float | None = None
    tier: str = ""


@dataclass(frozen=True)
class Prospect:
    """A candidate as far as it is known.

    Attributes:
        record: Its trial.
        accuracy: Accuracy on the search set to be expected of it once it is built.
        divergence: Divergence on the search set, measured where it is built, else expected.
        built: Whether it is built.
        allowed: Whether it is expected to meet every budget.
    """

    record: TrialRecord
    accuracy: float
    divergence: float
    built: bool
    allowed: bool


@dataclass(frozen=True)
class AccuracyCurve:
    """The accuracy that candidates of a divergence have: it never rises with divergence.

    The best accuracy among many candidates on few samples is mostly luck. The divergence from the dense
    model ranks them with far less noise. Isotonic regression by pooling adjacent violators (Barlow et al.,
    "Statistical Inference under Order Restrictions", 1972).

    Attributes:
        divergences: Rising, shape (n,).
        accuracies: Of these divergences, shape (n,).
    """

    divergences: Array
    accuracies: Array

    @classmethod
    def fit(cls, divergences: Sequence[float], accuracies: Sequence[float], direction: str) -> AccuracyCurve:
        """Fit a curve to at least one candidate."""
        sign = 1.0 if direction == "max" else -1.0
        order = np.argsort(np.asarray(divergences), kind="stable")
        blocks: list[list[float]] = []   # [mean, count], means never rising
        for index in order:
            blocks.append([sign * accuracies[index], 1.0])
            while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
                (first, before), (second, behind) = blocks[-2:]
                blocks[-2:] = [[(first * before + second * behind) / (before + behind), before + behind]]
        fitted = np.array([sign * mean for mean, count in blocks for _ in range(int(count))])
        return cls(np.asarray(divergences, dtype=np.float64)[order], fitted)

    def at(self, divergences: Sequence[float]) -> Array:
        """Expected accuracies, shape (n,)."""
        found: Array = np.interp(divergences, self.divergences, self.accuracies)
        return found


def prospects(
    records: Sequence[TrialRecord],
    built: Mapping[str, Built],
    limits: Limits,
    without: Sequence[Policy] = (),
    samples: int = 0,
) -> list[Prospect]:
    """What is known of every candidate, in the order of the trials.

    What the builds so far gained by the refit is expected of the others too. A candidate that misses the
    allowed accuracy by less than the samples can tell may meet it: verification decides.

    Args:
        records: All trials.
        built: What was built, by policy hash.
        limits: Budgets.
        without: Policies that are verified anyway.
        samples: Samples that accuracies were measured on, 0 to take them as exact.
    """
    complete = [r for r in records if r.state is TrialState.COMPLETE and "divergence" in r.values]
    if not complete:
        return []
    before = [record.values["divergence"] for record in complete]
    judged = [one for one in built.values() if one.tier != "distilled"]   # others may have been trained on the samples
    curve = AccuracyCurve.fit(
        [*before, *(one.divergence for one in judged)],
        [*(record.values["accuracy"] for record in complete), *(one.refitted for one in judged)],
        limits.direction,
    )
    pairs = [(loss, built[r.policy.hash].divergence) for r, loss in zip(complete, before, strict=True)
             if r.policy.hash in built]
    after = expected_after_refit(pairs, before)
    divergences = [built[r.policy.hash].divergence if r.policy.hash in built else float(loss)
                   for r, loss in zip(complete, after, strict=True)]
    left_out = {policy.hash for policy in without}
    slack = _tolerance([record.values["accuracy"] for record in complete], limits, samples)
    return [
        Prospect(record, float(accuracy), loss, record.policy.hash in built,
                 _allowed(record, float(accuracy) + slack, limits))
        for record, accuracy, loss in zip(complete, curve.at(divergences), divergences, strict=True)
        if record.policy.hash not in left_out
    ]


def expected_after_refit(pairs: Sequence[tuple[float, float]], before: Sequence[float]) -> Array:
    """Divergences to be expected after the refit, shape (n,), never above those before it.

    Args:
        pairs: (before, after) of what was built.
        before: Of the candidates in question.
    """
    x = np.log(np.maximum(np.asarray(before, dtype=np.float64), SMALLEST_DIVERGENCE))
    if not pairs:
        return np.exp(x)
    logs = np.log(np.maximum(np.asarray(pairs, dtype=np.float64), SMALLEST_DIVERGENCE))
    spread = float(logs[:, 0].std())
    slope = 1.0
    if len(pairs) >= PAIRS_FOR_A_SLOPE and spread > 0.1:
        slope = float(np.clip(np.polyfit(logs[:, 0], logs[:, 1], 1)[0], *SLOPES))
    shift = float(np.median(logs[:, 1] - slope * logs[:, 0]))
    return np.minimum(np.exp(slope * x + shift), np.exp(x))


def choose(
    candidates: Sequence[Prospect], objectives: Mapping[str, str], limits: Limits, count: int, samples: int = 0
) -> list[Prospect]:
    """Pick well-spread candidates by divergence and costs.

    A candidate counts with the accuracy that candidates of its divergence have. Two thirds are picked by
    it, in steps of half a standard error: what the samples cannot tell apart is told apart by time and
    bytes. The others are picked by the divergence itself.

    Args:
        candidates: To choose from.
        objectives: Names and directions.
        limits: Budgets.
        count: How many to pick.
        samples: Samples that accuracies were measured on, 0 to take them as exact.

    Returns:
        The picked ones, the most important first: every prefix is spread over the front. Where too few are expected
        to meet every budget, those that come nearest follow.
    """
    allowed = [candidate for candidate in candidates if candidate.allowed]
    picked = _spread(allowed, candidates, objectives, limits, count, samples)
    others = _nearest([one for one in candidates if not one.allowed], limits, count - len(picked))
    return [*picked, *_spread(others, candidates, objectives, limits, count - len(picked), samples)]


def _spread(
    pool: Sequence[Prospect], candidates: Sequence[Prospect], objectives: Mapping[str, str], limits: Limits,
    count: int, samples: int,
) -> list[Prospect]:
    """Members of a pool, well spread over accuracy or divergence and costs."""
    if not pool or count <= 0:
        return []
    losses = np.array([one.accuracy for one in pool]) * (-1.0 if limits.direction == "max" else 1.0)
    step = _tolerance([one.accuracy for one in candidates], limits, samples)
    costs = costs_of([one.record for one in pool], {k: way for k, way in objectives.items() if k != "accuracy"})
    levels = np.floor((losses - losses.min()) / step) if step else losses
    first = spread_fronts(np.column_stack([levels, costs]), count)
    second = spread_fronts(np.column_stack([[one.divergence for one in pool], costs]), count)
    return [pool[index] for index in _two_to_one(first, second, count)]


def _two_to_one(first: Sequence[int], second: Sequence[int], count: int) -> list[int]:
    """Merge two rankings without repetition: two of the first for each of the second."""
    rankings = [list(first), list(second)]
    merged: list[int] = []
    for turn in range(3 * count):
        ranking = rankings[1 if turn % 3 == 2 else 0]
        while ranking and ranking[0] in merged:
            ranking.pop(0)
        if ranking:
            merged.append(ranking.pop(0))
    return merged[:count]


def accuracy_step(accuracy: float, samples: int, direction: str) -> float:
    """Half a standard error of an accuracy on so many samples; 0 for errors, and for what is not between 0 and 1."""
    if direction != "max" or not samples or not 0.0 < accuracy < 1.0:
        return 0.0
    return 0.5 * math.sqrt(accuracy * (1.0 - accuracy) / samples)


def _tolerance(accuracies: Sequence[float], limits: Limits, samples: int) -> float:
    """What does not count as a difference: half a standard error, and never more than half of the allowed drop."""
    best = float(max(accuracies) if limits.direction == "max" else min(accuracies))
    step = accuracy_step(best, samples, limits.direction)
    return step if limits.accuracy is None else min(step, 0.5 * max(0.0, best - limits.accuracy))


def _allowed(record: TrialRecord, accuracy: float, limits: Limits) -> bool:
    costs_met = all(value <= 0.0 for name, value in record.constraints.items() if not name.startswith(DROP))
    return costs_met and limits.check({}, accuracy).get(limits.drop_label, 0.0) <= 0.0


def _nearest(candidates: Sequence[Prospect], limits: Limits, count: int) -> list[Prospect]:
    """The candidates that come nearest to the budgets: within those on costs, and little more divergent than the best.

    Where none is within the budgets on costs, those that exceed them least.
    """
    cheap = [one for one in candidates if _excess(one.record, limits) == 0.0]
    if not cheap:
        return sorted(candidates, key=lambda one: (_excess(one.record, limits), one.divergence))[:count]
    ranked = sorted(cheap, key=lambda one: one.divergence)
    return [one for place, one in enumerate(ranked)
            if place < count or one.divergence <= NEARLY_AS_GOOD * ranked[0].divergence]


def _excess(record: TrialRecord, limits: Limits) -> float:
    """By what fractions of them the budgets on costs are exceeded, in all."""
    return sum(max(0.0, record.constraints.get(label, 0.0)) / abs(limit) if limit else 0.0
               for label, _, limit in limits.costs)


def costs_of(records: Sequence[TrialRecord], objectives: Mapping[str, str]) -> Array:
    """Objective values to be minimised, `(records, objectives)`."""
    sign = {"min": 1.0, "max": -1.0}
    return np.array([[sign[objectives[name]] * record.values[name] for name in objectives] for record in records])


def spread_fronts(costs: Array, count: int) -> list[int]:
    """Rows of a cost table: members of the front first, well spread, then of the front behind it.

    Args:
        costs: `(n, m)`, to be minimised.
        count: How many rows at most.
    """
    chosen: list[int] = []
    left = np.arange(len(costs))
    while len(left) and len(chosen) < count:
        front = left[non_dominated(costs[left])]
        picked = spread_order(costs[front], min(count - len(chosen), len(front)))
        chosen += [int(front[index]) for index in picked]
        left = np.setdiff1d(left, front)
    return chosen
