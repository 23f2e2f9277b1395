"""Finalists: which candidates are worth building, and which of the built ones are worth verifying."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretopress.evaluators.candidate import Limits
from paretopress.search.expected_gain import Guess, expected_gains
from paretopress.search.outlook import Outlook, Prospect, tolerance
from paretopress.search.pareto import non_dominated, spread_order
from paretopress.search.records import TrialRecord
from paretopress.search.rehearsal import cut_away
from paretopress.spaces.policy import Policy

Array = NDArray[np.float64]
NEARLY_AS_GOOD = 1.5     # times the lowest divergence
MOST_WEIGHED = 1000      # candidates; what many others dominate is not worth the memory
SMALLEST_COST = 1e-12    # a model without weights has no bytes
# Of a cost: less of a difference is not worth a point of the front. How accurate a candidate turns out to be elsewhere
# is partly luck, as is by how much its predicted time errs.
CHEAPER = (0.95, 0.8, 0.65)
SMALLEST_GAP = 0.05      # of the range of an objective: what lies nearer to what is built fills no gap
ALIKE = 0.25             # of the channels of one or several groups: training makes much the same of two this near
MARGINS = (1.0, 0.97, 0.94, 0.91, 0.88)   # of a budget on costs: predicted times err by several percent


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


def next_builds(
    view: Outlook, objectives: Mapping[str, str], limits: Limits, count: int, samples: int = 0
) -> list[Prospect]:
    """Pick what to build next: what is expected to add most to the front of what is built.

    Args:
        view: What is known of the candidates.
        objectives: Names and directions.
        limits: Budgets.
        count: How many to pick.
        samples: Samples that accuracies were measured on, 0 to take them as exact.

    Returns:
        The picked ones, the most promising first. Where nothing is expected to add anything within the budgets, those
        that `choose` would verify.
    """
    pool = [one for one in view.prospects if one.excess == 0.0 and math.isfinite(one.divergence)]
    picked: list[Prospect] = []
    if pool and view.worst_divergence > view.least_divergence:
        names = {name: way for name, way in objectives.items() if name != "accuracy"}
        costs = np.maximum(costs_of([one.record for one in pool], names), SMALLEST_COST)
        divergences, errors = (np.array([getattr(one, name) for one in pool]) for name in ("divergence", "error"))
        rows = foremost(np.column_stack([divergences, costs]), MOST_WEIGHED, keep=errors == 0.0)
        guess = Guess(divergences[rows], errors[rows])
        gains = expected_gains(costs[rows], guess, view.worst_divergence, count, view.least_divergence)
        picked = [pool[rows[row]] for row in gains]
    if len(picked) < count:
        waiting = [one for one in view.prospects if not one.built and one not in picked]
        picked += choose(waiting, objectives, limits, count - len(picked), samples)
    return picked


def widest_gaps(
    view: Outlook, objectives: Mapping[str, str], count: int, picked: Sequence[Prospect] = ()
) -> list[Prospect]:
    """Pick what lies farthest from everything that is built, on the front that is expected.

    Of many candidates at the cheap end one may always turn out better than expected, so that improvements alone would
    be looked for there again and again, and the front would have a cluster and a hole. Distances are in the
    objectives' ranges, of the logarithms of costs and of the roots of divergences.

    Args:
        view: What is known of the candidates.
        objectives: Names and directions.
        count: How many to pick.
        picked: Candidates that will be built anyway.

    Returns:
        At most `count`, none where nothing is built or picked yet, or where there is no gap.
    """
    pool = [one for one in view.prospects if one.excess == 0.0 and math.isfinite(one.divergence)
            and one.divergence <= view.worst_divergence]
    known = np.array([one.built or one in picked for one in pool], dtype=bool)
    names = {name: way for name, way in objectives.items() if name != "accuracy"}
    if not known.any() or known.all() or not names:
        return []
    costs = np.log(np.maximum(costs_of([one.record for one in pool], names), SMALLEST_COST))
    places = np.column_stack([np.sqrt([one.divergence for one in pool]), costs])
    waiting = non_dominated(places) & ~known
    shown = places[waiting | known]
    places = places / np.maximum(np.ptp(shown, axis=0), SMALLEST_COST)
    distances = np.linalg.norm(places[:, None] - places[known][None], axis=2).min(axis=1)
    found: list[Prospect] = []
    while len(found) < count:
        farthest = int(np.argmax(np.where(waiting, distances, 0.0)))
        if not waiting[farthest] or distances[farthest] < SMALLEST_GAP:
            break
        found.append(pool[farthest])
        distances = np.minimum(distances, np.linalg.norm(places - places[farthest], axis=1))
    return found


def surest(
    prospects: Sequence[Prospect], rivals: Sequence[TrialRecord], objectives: Mapping[str, str], limits: Limits,
    each: int = 1, *, apart: bool = False,
) -> list[Prospect]:
    """The candidates that are likeliest to give what is asked for at least.

    What adds most to the front lies far beyond two questions that are answered first. Budgets on costs: which of the
    candidates that meet them, barely and with a margin, are the least divergent? And what people would try by hand, as
    a front that a uniform width or precision beats is not worth its time: which of the candidates that are cheaper in
    every cost, a little, by a fifth and by a third, are?

    Args:
        prospects: All candidates.
        rivals: Trials of what people would try by hand.
        objectives: Names and directions.
        limits: Budgets.
        each: How many for each margin: what training makes of candidates that are alike before it differs.
        apart: Whether no two may keep nearly the same channels: what training makes of one says what it makes of the
            other. Of candidates that keep the same ones the one that loses least before training stands for all, as
            that is then a matter of its formats.

    Returns:
        Those for each margin and one for each of `CHEAPER`; the same ones whatever has been built so far.
    """
    names = {name: way for name, way in objectives.items() if name != "accuracy"}
    pool = [one for one in prospects if one.excess == 0.0]
    picked: list[Prospect] = []
    for margin in MARGINS if limits.costs else ():
        inside = [one for one in pool if one not in picked and all(
            one.record.values[name] <= margin * limit for _, name, limit in limits.costs)]
        picked += least_divergent_apart(inside, each, picked) if apart else least_divergent(inside, each)
    if pool and rivals and names:
        least, costs = costs_of(rivals, names).min(axis=0), costs_of([one.record for one in pool], names)
        for share in CHEAPER:
            wins = (costs <= share * least).all(axis=1)
            picked += least_divergent([pool[row] for row in np.flatnonzero(wins) if pool[row] not in picked], 1)
    return picked


def least_divergent(prospects: Sequence[Prospect], count: int) -> list[Prospect]:
    """The candidates that promise to diverge least, the least first: before they are built, or after a rehearsal."""
    return sorted(prospects, key=lambda one: one.promise)[:count]


def least_divergent_apart(prospects: Sequence[Prospect], count: int, others: Sequence[Prospect]) -> list[Prospect]:
    """Those that promise to diverge least among candidates of different widths, from each other and from `others`.

    Args:
        prospects: To choose from.
        count: How many at most.
        others: What they must differ from, in the kept channels.
    """
    cut = cut_away([one.record.policy for one in (*prospects, *others)])
    if not cut.any():   # all keep all channels
        return least_divergent(prospects, count)
    picked: list[int] = []
    taken = list(range(len(prospects), len(cut)))
    standing: dict[bytes, int] = {}   # by what is cut away: the least divergent before training
    for row, one in enumerate(prospects):
        known = standing.setdefault(cut[row].tobytes(), row)
        if one.record.values["divergence"] < prospects[known].record.values["divergence"]:
            standing[cut[row].tobytes()] = row
    for row in sorted(standing.values(), key=lambda row: prospects[row].promise):
        if len(picked) == count:
            break
        if all(np.abs(cut[row] - cut[other]).sum() >= ALIKE for other in (*taken, *picked)):
            picked.append(row)
    return [prospects[row] for row in picked]


def unlike(prospects: Sequence[Prospect], others: Sequence[Prospect]) -> tuple[Prospect, ...]:
    """The candidates that keep other channels than all `others`; all of them where no candidate cuts any away."""
    if not prospects or not others:
        return tuple(prospects)
    cut = cut_away([one.record.policy for one in (*prospects, *others)])
    if not cut.any():
        return tuple(prospects)
    nearest = np.full(len(prospects), np.inf)
    for row in cut[len(prospects):]:
        nearest = np.minimum(nearest, np.abs(cut[: len(prospects)] - row).sum(axis=1))
    return tuple(one for one, far in zip(prospects, nearest >= ALIKE, strict=True) if far)


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
    others = _nearest([one for one in candidates if not one.allowed], count - len(picked))
    return [*picked, *_spread(others, candidates, objectives, limits, count - len(picked), samples)]


def _spread(
    pool: Sequence[Prospect], candidates: Sequence[Prospect], objectives: Mapping[str, str], limits: Limits,
    count: int, samples: int,
) -> list[Prospect]:
    """Members of a pool, well spread over accuracy or divergence and costs."""
    if not pool or count <= 0:
        return []
    losses = np.array([one.accuracy for one in pool]) * (-1.0 if limits.direction == "max" else 1.0)
    step = tolerance([one.accuracy for one in candidates], limits, samples)
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


def _nearest(candidates: Sequence[Prospect], count: int) -> list[Prospect]:
    """The candidates that come nearest to the budgets: within those on costs, and little more divergent than the best.

    Where none is within the budgets on costs, those that exceed them least.
    """
    cheap = [one for one in candidates if one.excess == 0.0]
    if not cheap:
        return sorted(candidates, key=lambda one: (one.excess, one.divergence))[:count]
    ranked = sorted(cheap, key=lambda one: one.divergence)
    return [one for place, one in enumerate(ranked)
            if place < count or one.divergence <= NEARLY_AS_GOOD * ranked[0].divergence]


def costs_of(records: Sequence[TrialRecord], objectives: Mapping[str, str]) -> Array:
    """Objective values to be minimised, `(records, objectives)`."""
    sign = {"min": 1.0, "max": -1.0}
    return np.array([[sign[objectives[name]] * record.values[name] for name in objectives] for record in records])


def foremost(costs: Array, count: int, keep: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Rows of a cost table that few others dominate: whole fronts, one behind the other, until there are enough.

    Args:
        costs: `(n, m)`, to be minimised.
        count: How many rows at least.
        keep: Rows that are returned anyway, `(n,)`.
    """
    left = np.arange(len(costs))
    while len(left) and len(costs) - len(left) < count:
        front = non_dominated(costs[left])
        if not front.any():   # what is not finite is never on a front
            break
        left = left[~front]
    return np.setdiff1d(np.arange(len(costs)), left[~keep[left]])


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
