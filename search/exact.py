"""Exact two-objective fronts of problems whose cost and loss are sums over a few units each.

With one table per unit the problem is the bi-objective multiple-choice knapsack (Kellerer, Pferschy and
Pisinger 2004, "Knapsack Problems", chapter 11); terms over several units are removed by variable elimination
(Dechter 1999) with Pareto sets as table entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    IntArray,
    as_points,
    as_row,
    evaluate,
    factors_of,
)
from paretopress.search.lagrangian import lagrangian_front
from paretopress.search.pareto import non_dominated
from paretopress.search.pareto_sets import Grid, SetTable, trace
from paretopress.spaces.errors import ConfigError

__all__ = [
    "CostTerm",
    "ExactFront",
    "ExactProblem",
    "FrontPoint",
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


def solve_front(problem: ExactProblem, *, buckets: int = 4096, max_table: int = 1 << 22) -> ExactFront:
    """Return the front of (cost, loss) over all assignments.

    Exact when the costs are multiples of one unit and the front spans at most `buckets` of them, or when no
    Pareto set of a partial assignment outgrows `buckets` (products of more than 4 million pairs are rounded
    without trying). Otherwise costs are rounded down to buckets of the front's width, true costs and lower
    bounds are carried along, and the gap is what the two differ by in the end. Bound sets drop partial
    assignments that cannot matter (see `bounds`); from 256 buckets on a coarse solve sharpens them first, and
    the pruned sets may grow to four times `buckets`.

    Args:
        problem: The problem.
        buckets: Entries a Pareto set may have before it is rounded; the resolution of rounded costs.
        max_table: Most cells of a joined table; beyond it a Lagrangian sweep gives a front with a bound.

    Raises:
        ConfigError: If `buckets` or `max_table` is below 1.
    """
    if buckets < 1 or max_table < 1:
        raise ConfigError(f"buckets and max_table must be at least 1, got {buckets} and {max_table}")
    return _solve(problem, buckets, max_table, None)


def solve_budget(
    problem: ExactProblem, max_cost: float, *, buckets: int = 4096, max_table: int = 1 << 22
) -> FrontPoint | None:
    """Return the assignment of lowest loss whose cost is at most `max_cost`, None where none exists.

    Where costs had to be rounded, a better assignment may exist within `solve_front(...).gap` of the budget.
    """
    least = cheapest(problem, max_table=max_table)
    if least.cost > max_cost:
        return None
    front = _solve(problem, buckets, max_table, max_cost)
    affordable = [point for point in front.points if point.cost <= max_cost]
    return min([*affordable, least], key=lambda point: (point.loss, point.cost))


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


def _solve(problem: ExactProblem, buckets: int, max_table: int, budget: float | None) -> ExactFront:
    order, cells = elimination_order(problem.options, [scope for scope, _, _ in factors_of(problem)])
    if not order:
        return ExactFront(as_points(problem, np.zeros((1, 0), dtype=np.int64)), 0.0, None, "elimination")
    if max(cells, default=1) > max_table:
        return lagrangian_front(problem, order, max_table)
    ends = [_extreme(problem, order, max_table, cost_first=first) for first in (True, False)]
    rows = np.stack([as_row(problem, end.assignment) for end in ends])
    bounds = bound_set(problem, order, rows, sum(cells))
    top = ends[1].cost if budget is None else min(ends[1].cost, budget)
    sizes = (buckets // COARSER, buckets * FINER) if bounds and buckets >= 64 * COARSER else (buckets,)
    found, gap = rows, math.inf
    for size in sizes:
        whole = eliminate_sets(problem, order, _grid(problem, ends[0].cost, top, size), bounds)
        found, certified = _front(problem, whole, found if bounds is None else bounds.known)
        # Each round knows what the earlier ones found, so their certificates hold for it too.
        gap = min(gap, certified)
        if gap == 0.0:
            break
        if bounds is not None:
            bounds = with_known(problem, bounds, found)
    return ExactFront(as_points(problem, found), gap, buckets if gap > 0 else None, "elimination")


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


def _front(problem: ExactProblem, whole: SetTable, known: IntArray) -> tuple[IntArray, float]:
    """Trace the whole problem's set back to assignments, join the known ones, and certify the gap.

    Returns:
        Non-dominated assignments by rising cost, and the gap.
    """
    traced = np.empty((0, known.shape[1]), dtype=np.int64)
    if len(whole.low):
        options = trace(whole, np.arange(len(whole.low), dtype=np.int64))
        traced = np.stack([options[unit] for unit in problem.options], axis=1)
    assignments = np.concatenate([traced, known])
    costs, losses = evaluate(problem, assignments)
    kept = np.flatnonzero(non_dominated(np.stack([costs, losses], axis=1)))
    kept = kept[np.argsort(costs[kept], kind="stable")]
    gap = 0.0
    if whole.rounded:
        lows = whole.low + whole.base + problem.constant_cost
        gap = _gap(lows, losses[: len(traced)], costs[kept], losses[kept])
    return assignments[kept], gap


def _gap(lows: FloatArray, covered: FloatArray, costs: FloatArray, losses: FloatArray) -> float:
    """Return by which fraction an assignment can be cheaper than the point that covers it.

    Args:
        lows: Bound on the cost of what each entry stands for.
        covered: Loss of each entry; what it stands for loses no less.
        costs: Of the front, rising.
        losses: Of the front, falling.
    """
    cover = costs[np.searchsorted(-losses, -covered)]
    excess = cover - lows
    # Sums in another order differ in their last digits: no gap.
    noise = 1e-12 * float(np.abs(costs).max())
    if (excess <= noise).all():
        return 0.0
    if (lows[excess > noise] <= 0).any():
        return math.inf
    return max(float((excess / np.where(lows > 0, lows, np.inf)).max()), 0.0) + 1e-12
