"""Exact seeds: the table's losses and the devices' kernel costs as one factor graph, solved exactly.

Conversions between float and integer kernels couple neighbours and are left out (`factor_graph.py`): every seed is
priced again with the whole plan.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paretopress.evaluators.costs import CostModel, runnable_options, violations
from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.search.conditions import NO_CONDITIONS, Conditions
from paretopress.search.exact import CostTerm, ExactFront, ExactProblem, FrontPoint, FrontPoints, solve_front
from paretopress.search.factor_graph import kernel_terms
from paretopress.spaces.choices import compatible
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SearchSpace
from paretopress.spaces.structure import Structure

SMALLEST_LOSS = 1e-4   # nats: what loses less is as good as dense
EDGE = 2.0    # times the least loss within the budgets
MIXES = (1.0, 0.75, 0.5, 0.25, 0.0)   # weight of relative time against relative size


@dataclass(frozen=True)
class Seeds:
    """Policies from the exact fronts.

    Attributes:
        policies: Distinct policies, the dense one first.
        gap: The largest certified gap of the fronts they come from.
        losses: The table's loss of each policy.
    """

    policies: tuple[Policy, ...]
    gap: float
    losses: tuple[float, ...]


def exact_fronts(
    structure: Structure, space: SearchSpace, table: SensitivityTable, costs: CostModel,
    conditions: Conditions = NO_CONDITIONS,
) -> dict[float, ExactFront]:
    """Solve the whole (cost, loss) front for several mixes of relative time and relative size.

    Options that some target cannot execute are left out of every mix, and so are those that the conditions exclude.
    """
    time, size = kernel_terms(structure, space, costs)
    runnable = conditions.offered(space, runnable_options(structure, space, costs))
    losses = {unit: np.array(row, dtype=np.float64)[list(runnable[unit])] for unit, row in table.losses.items()}
    options = {unit: len(numbers) for unit, numbers in runnable.items()}
    fronts = {}
    for mix in MIXES:
        scaled = [_term(units, mix * values, runnable) for units, values in time if mix > 0.0]
        scaled += [_term(units, (1.0 - mix) * values, runnable) for units, values in size if mix < 1.0]
        problem = ExactProblem(options=options, losses=losses, costs=tuple(scaled))
        front = solve_front(problem, equal=conditions.shared)
        rows = np.empty_like(front.points.assignments)
        for place, unit in enumerate(front.points.units):
            rows[:, place] = np.array(runnable[unit])[front.points.assignments[:, place]]
        points = FrontPoints(front.points.units, front.points.costs, front.points.losses, rows)
        fronts[mix] = replace(front, points=points)
    return fronts


def _term(units: tuple[str, ...], values: np.ndarray, runnable: Mapping[str, Sequence[int]]) -> CostTerm:
    """A cost term over the options that can be executed."""
    return CostTerm(units, values[np.ix_(*(runnable[unit] for unit in units))])


def policy_of(space: SearchSpace, assignment: Mapping[str, int], model: str) -> Policy:
    """The policy of an assignment of option numbers, without what does not go together."""
    chosen = ((unit, space.options[unit][option]) for unit, option in assignment.items())
    kept = compatible({unit: choice for unit, choice in chosen if choice is not None})
    return Policy.of(kept, model=model, space=space.fingerprint)


def exact_seeds(
    structure: Structure,
    space: SearchSpace,
    table: SensitivityTable,
    costs: CostModel,
    count: int,
    limits: Sequence[tuple[str, str, float]] = (),
) -> Seeds:
    """Return about `count` policies, spread over the exact fronts evenly in the logarithm of their loss.

    Of each front only what is within the budgets on costs, with the whole plan's costs, is spread over. Half of the
    seeds lie just inside them: that is where a budget's answer is, and where the table, which knows no interactions,
    orders candidates least reliably.

    Args:
        structure: The model.
        space: Its space.
        table: Losses of its choices.
        costs: Target devices.
        count: Number of seeds beside the dense policy.
        limits: Budgets on costs, `(label, cost name, limit)`.
    """
    fronts = exact_fronts(structure, space, table, costs)
    found: dict[Policy, float] = {Policy.of({}, model=structure.fingerprint, space=space.fingerprint): 0.0}

    def affordable(point: FrontPoint) -> bool:
        policy = policy_of(space, point.assignment, structure.fingerprint)
        return not any(over > 0.0 for over in violations(limits, costs.predict(plan(structure, policy))).values())

    per_front = max(2, -(-count // len(fronts)))
    for front in fronts.values():
        inside = within(front.points, affordable) if limits else []
        points = spread_inside(inside, per_front) if inside else spread_by_loss(front.points, per_front)
        for point in points:
            found.setdefault(policy_of(space, point.assignment, structure.fingerprint), point.loss)
    gap = max(front.gap for front in fronts.values())
    return Seeds(tuple(found), gap, tuple(found.values()))


def within(points: Sequence[FrontPoint], affordable: Callable[[FrontPoint], bool]) -> list[FrontPoint]:
    """The points of a front from the least loss on that is affordable.

    The cost that the front weighs falls as the loss rises, each of its parts only nearly so: the first affordable point
    is searched for by bisection, and what lies behind it may exceed a budget a little, which exploring screens.
    """
    ordered = sorted(points, key=lambda point: point.loss)
    return ordered[bisect.bisect_left(ordered, True, key=affordable):]


def spread_inside(points: Sequence[FrontPoint], count: int, ceiling: float = 1.0) -> list[FrontPoint]:
    """Pick points from the least loss on: half of them up to twice that loss, the others up to `ceiling` nats."""
    floor = max(points[0].loss, SMALLEST_LOSS)
    near = -(-count // 2)
    edge = EDGE * floor
    beyond = np.geomspace(edge, max(edge, ceiling), count - near + 1)[1:]
    return nearest_below(points, [*np.geomspace(floor, edge, near), *beyond])


def spread_by_loss(
    points: Sequence[FrontPoint], count: int, floor: float = SMALLEST_LOSS, ceiling: float = 1.0
) -> list[FrontPoint]:
    """Pick points whose losses are spread evenly on a logarithmic scale between `floor` and `ceiling` nats."""
    return nearest_below(points, np.geomspace(floor, ceiling, count))


def nearest_below(points: Sequence[FrontPoint], wanted: Iterable[float]) -> list[FrontPoint]:
    """For every loss the point that comes nearest without exceeding it; each once, none where all exceed it."""
    losses = np.array([point.loss for point in points])
    picked: dict[int, FrontPoint] = {}
    for loss in wanted:
        below = np.flatnonzero(losses <= loss)
        if len(below):
            index = int(below[np.argmax(losses[below])])
            picked.setdefault(index, points[index])
    return list(picked.values())
