"""Exact two-objective fronts of problems whose cost and loss are sums over a few units each.

With one table per unit the problem is the bi-objective multiple-choice knapsack (Kellerer, Pferschy and
Pisinger 2004, "Knapsack Problems", chapter 11); terms over several units are removed by variable elimination
(Dechter 1999) with Pareto sets as table entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from paretopress.search.bounds import bound_set, with_known
from paretopress.search.elimination import (
    Factor,
    eliminate_sets,
    elimination_order,
    minimise,
)
from paretopress.search.factors import (
    CostTerm,
    ExactFront,
    ExactProblem,
    FloatArray,
    FrontPoint,
    FrontPoints,
    IntArray,
    as_points,
    as_row,
    evaluate,
    factors_of,
)
from paretopress.search.lagrangian import lagrangian_front
from paretopress.search.merging import merged_front
from paretopress.search.pareto import non_dominated
from paretopress.search.pareto_sets import Grid, SetTable, trace
from paretopress.search.restrictions import restrict
from paretopress.search.separable import CostFloor, is_separable, separable_front
from paretopress.spaces.errors import ConfigError

__all__ = [
    "CostTerm",
    "ExactFront",
    "ExactProblem",
    "FrontPoint",
    "FrontPoints",
    "cheapest",
    "evaluate",
    "exchange_rates",
    "solve_budget",
    "solve_front",
]

# A first solve with this many times fewer buckets finds what prunes the full one, which then affords this
# many times more: pruned sets are short, so that most fronts come out exact.
COARSER = 4
FINER = 4
# Where nothing couples units, sets may have this many times more entries than buckets and are still not rounded.
LONGEST = 16


Floor = Callable[[FloatArray], FloatArray]


def solve_front(
    problem: ExactProblem, *, buckets: int = 4096, max_table: int = 1 << 22, tolerance: float = 0.0,
    pins: Mapping[str, int] | None = None, equal: Sequence[Sequence[str]] = (),
) -> ExactFront:
    """Return the front of (cost, loss) over all assignments.

    Exact when the costs are multiples of one unit and the front spans at most `buckets` of them, or when no
    Pareto set of a partial assignment outgrows `buckets` (products of more than 4 million pairs are rounded
    without trying). Otherwise costs are rounded down to buckets of the front's width, true costs and lower
    bounds are carried along, and the gap is what the two differ by in the end, or what the Lagrangian relaxation
    proves where that is less. Bound sets drop partial assignments that cannot matter (see `bounds`); from 256 buckets
    on a coarse solve sharpens them first, and the pruned sets may grow to four times `buckets`. Where every term
    depends on one unit, sets are merged without rounding instead (see `merging`) as long as they have at most sixteen
    times as many entries as `buckets`; the coarse solve, tried first where there is a tolerance, is the plain recursion
    over cost (see `separable`).

    Args:
        problem: The problem.
        buckets: Entries a Pareto set may have before it is rounded; the resolution of rounded costs.
        max_table: Most cells of a joined table; beyond it a Lagrangian sweep gives a front with a bound.
        tolerance: A coarse solve whose certified gap is no larger is the result.
        pins: Units that take one option.
        equal: Groups of units that take the same option number.

    Raises:
        ConfigError: If `buckets` or `max_table` is below 1 or `tolerance` below 0, and where a pinned unit or option
            does not exist or equal units differ in the number of their options.
    """
    if buckets < 1 or max_table < 1:
        raise ConfigError(f"buckets and max_table must be at least 1, got {buckets} and {max_table}")
    if not tolerance >= 0.0:
        raise ConfigError(f"tolerance must be at least 0, got {tolerance}")
    restricted = restrict(problem, {unit: [option] for unit, option in (pins or {}).items()}, equal)
    front = _solve(restricted.problem, buckets, max_table, None, tolerance)
    return replace(front, points=restricted.lifted(front.points))


def solve_budget(
    problem: ExactProblem, max_cost: float, *, buckets: int = 4096, max_table: int = 1 << 22,
    pins: Mapping[str, int] | None = None, equal: Sequence[Sequence[str]] = (),
) -> FrontPoint | None:
    """Return the assignment of lowest loss whose cost is at most `max_cost`, None where none exists.

    Where costs had to be rounded, a better assignment may exist within `solve_front(...).gap` of the budget. The
    other arguments are those of `solve_front`, and so is what is raised.
    """
    restricted = restrict(problem, {unit: [option] for unit, option in (pins or {}).items()}, equal)
    problem = restricted.problem
    least = cheapest(problem, max_table=max_table)
    if least.cost > max_cost:
        return None
    front = _solve(problem, buckets, max_table, max_cost, 0.0)
    affordable = int(np.searchsorted(front.points.costs, max_cost, side="right"))
    best = min([*front.points[:affordable][-1:], least], key=lambda point: (point.loss, point.cost))
    return restricted.lifted(as_points(problem, as_row(problem, best.assignment)[None]))[0]


def cheapest(problem: ExactProblem, *, max_table: int = 1 << 22) -> FrontPoint:
    """Return the assignment of lowest cost, ties by lowest loss (heuristic beyond `max_table` cells)."""
    order, cells = elimination_order(problem.options, [scope for scope, _, _ in factors_of(problem)])
    if max(cells, default=1) > max_table:
        return lagrangian_front(problem, order, max_table).points[0]
    return _extreme(problem, order, max_table, cost_first=True)


def exchange_rates(problem: ExactProblem, point: FrontPoint) -> list[tuple[str, int, float, float]]:
    """Return what every change of a single unit would do to a point.

    Args:
        problem: The problem.
        point: Any point of it, usually of its front.

    Returns:
        Tuples (unit, option, change of cost, change of loss): first the moves that save cost, by loss per
        cost saved, then the others by loss gained back per cost (most first).
    """
    row = as_row(problem, point.assignment)
    moves = [
        (position, unit, option)
        for position, (unit, count) in enumerate(problem.options.items())
        for option in range(count)
        if option != row[position]
    ]
    rows = np.tile(row, (len(moves) + 1, 1))
    for number, (position, _, option) in enumerate(moves):
        rows[number, position] = option
    costs, losses = evaluate(problem, rows)
    rates = [
        (unit, option, float(costs[number] - costs[-1]), float(losses[number] - losses[-1]))
        for number, (_, unit, option) in enumerate(moves)
    ]
    return sorted(rates, key=_rate)


def _rate(move: tuple[str, int, float, float]) -> tuple[bool, float]:
    _, _, cost, loss = move
    if cost < 0:
        return False, loss / -cost
    return True, loss / cost if cost > 0 else math.copysign(math.inf, loss) if loss else 0.0


def _solve(
    problem: ExactProblem, buckets: int, max_table: int, budget: float | None, tolerance: float
) -> ExactFront:
    if not problem.options:
        return ExactFront(as_points(problem, np.zeros((1, 0), dtype=np.int64)), 0.0, None, "elimination")
    sizes: tuple[int, ...] = (buckets,)
    points: FrontPoints | None = None
    floors: list[Floor] = []
    if is_separable(problem):
        points, gap, floors = _separable(problem, buckets, tolerance)
        if gap <= tolerance:
            return ExactFront(points, gap, buckets if gap > 0 else None, "elimination")
    order, cells = elimination_order(problem.options, [scope for scope, _, _ in factors_of(problem)])
    if points is not None:
        found = points.assignments
        ends = found[[0, -1]]
        if buckets >= 64 * COARSER:
            sizes = (buckets * FINER,)
    else:
        if max(cells, default=1) > max_table:
            return lagrangian_front(problem, order, max_table)
        extremes = [_extreme(problem, order, max_table, cost_first=first) for first in (True, False)]
        found = ends = np.stack([as_row(problem, end.assignment) for end in extremes])
        if buckets >= 64 * COARSER:
            sizes = (buckets // COARSER, buckets * FINER)
    bounds = bound_set(problem, order, ends, sum(cells))
    if bounds is None:
        sizes = (buckets,)
    else:
        floors.append(bounds.floor(problem))
        bounds = with_known(problem, bounds, found)
        found = bounds.known
    costs, _ = evaluate(problem, ends)
    top = float(costs[1]) if budget is None else min(float(costs[1]), budget)
    for size in sizes:
        whole = eliminate_sets(problem, order, _grid(problem, float(costs[0]), top, size), bounds)
        traced = _traced(problem, whole)
        if whole.rounded:
            floors.append(_floor(problem, whole, traced))
        points, gap = _front(problem, np.concatenate([traced, found]), floors, exact=not whole.rounded)
        found = points.assignments
        if gap <= tolerance:
            break
        if bounds is not None:
            bounds = with_known(problem, bounds, found)
    assert points is not None
    return ExactFront(points, gap, buckets if gap > 0 else None, "elimination")


def _separable(problem: ExactProblem, buckets: int, tolerance: float) -> tuple[FrontPoints, float, list[Floor]]:
    """Return the whole front of a separable problem, or, where that is too long, one with a gap and what bounds it."""
    for last in (False, True):
        if last or tolerance > 0.0:
            rows, steps, exact = separable_front(problem, buckets)
            floors: list[Floor] = [step.below for step in steps]
            points, gap = _front(problem, rows, floors, exact=exact)
            if last or gap <= tolerance:
                break
        whole = merged_front(problem, LONGEST * buckets)
        if whole is not None:
            points, gap = _front(problem, whole, (), exact=True)
            return points, gap, []
    return points, gap, floors


def _extreme(problem: ExactProblem, order: Sequence[str], max_table: int, *, cost_first: bool) -> FrontPoint:
    """Return an end of the front: least cost or least loss, ties by the other one."""
    factors = [
        Factor(scope, *((cost, loss) if cost_first else (loss, cost)))
        for scope, cost, loss in factors_of(problem)
    ]
    _, assignment = minimise(problem.options, factors, order, max_table)
    return as_points(problem, as_row(problem, assignment)[None])[0]


def _grid(problem: ExactProblem, bottom: float, top: float, buckets: int) -> Grid:
    """Return a grid of the costs' common unit where the front fits on it, else of `buckets` steps."""
    span = max(top - bottom, 0.0)
    size = max(abs(top), abs(bottom), span)
    ceiling = top - problem.constant_cost + 1e-9 * size
    unit = _common_unit([cost for _, cost, _ in factors_of(problem)])
    if unit is not None and span <= unit * buckets:
        return Grid(float(unit), True, buckets, ceiling)
    return Grid(max(span / buckets, 1e-12 * size, 1e-300), False, buckets, ceiling)


def _common_unit(tables: Sequence[FloatArray]) -> int | None:
    """Return the greatest common divisor of all cost differences, None where they are not integers."""
    unit = 0
    for table in tables:
        steps = table - table.min()
        if steps.max() >= 2**50 or (steps != np.rint(steps)).any():
            return None
        unit = math.gcd(unit, int(np.gcd.reduce(steps.astype(np.int64), axis=None)))
    return max(unit, 1)


def _traced(problem: ExactProblem, whole: SetTable) -> IntArray:
    """Trace the whole problem's set back to assignments, shape `(n, units)`."""
    if not len(whole.low):
        return np.empty((0, len(problem.options)), dtype=np.int64)
    options = trace(whole, np.arange(len(whole.low), dtype=np.int64))
    return np.stack([options[unit] for unit in problem.options], axis=1)


def _floor(problem: ExactProblem, whole: SetTable, traced: IntArray) -> Floor:
    """What the whole problem's set proves of what no known assignment dominates.

    An entry stands for assignments that lose no less than it does and cost at least its bound.
    """
    _, losses = evaluate(problem, traced)
    lows = whole.low + whole.base + problem.constant_cost
    return CostFloor(np.minimum.accumulate(losses), lows, linear=False).below


def _front(problem: ExactProblem, rows: IntArray, floors: Sequence[Floor], *, exact: bool) -> tuple[FrontPoints, float]:
    """Return the non-dominated assignments by rising cost, and their certified gap.

    Args:
        problem: The problem.
        rows: Shape `(n, units)`, the two ends of the front among them.
        floors: Bounds on the cost of what loses less than a value and is not dominated by any of `rows`.
        exact: Whether all of the front is among the assignments.
    """
    costs, losses = evaluate(problem, rows)
    if (np.diff(costs) <= 0.0).any() or (np.diff(losses) >= 0.0).any():
        kept = np.flatnonzero(non_dominated(np.stack([costs, losses], axis=1)))
        kept = kept[np.argsort(costs[kept], kind="stable")]
        costs, losses, rows = costs[kept], losses[kept], rows[kept]
    gap = 0.0 if exact else _gap(costs, losses, floors)
    return FrontPoints(problem.options, costs, losses, rows), gap


def _gap(costs: FloatArray, losses: FloatArray, floors: Sequence[Floor]) -> float:
    """Return by which fraction an assignment can be cheaper than the point that covers it.

    What loses less than one point, and not less than the next, is covered by that next one.

    Args:
        costs: Of the front, rising, from the least cost of all on.
        losses: Of the front, falling, to the least loss of all.
        floors: Bounds on the cost of what loses less than a value.
    """
    if len(costs) < 2:
        return 0.0
    lows = np.full(len(costs) - 1, costs[0])
    for floor in floors:
        lows = np.maximum(lows, floor(losses[:-1]))
    excess = costs[1:] - lows
    # Sums in another order differ in their last digits: no gap.
    wrong = excess > 1e-12 * float(np.abs(costs).max())
    if not wrong.any():
        return 0.0
    if (lows[wrong] <= 0).any():
        return math.inf
    return float((excess[wrong] / lows[wrong]).max()) + 1e-12
