"""Fronts with a proven gap where variable elimination would need tables that are too large.

For each multiplier the sum `loss + multiplier * cost` is minimised by coordinate descent, and bounded from
below by mini-bucket elimination (Dechter and Rish 2003). Weak duality (Everett 1963; Geoffrion 1974) turns
the bounds into one on the cost that any assignment of a given loss must have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from paretopress.search.elimination import Factor, minimise
from paretopress.search.factors import (
    ExactFront,
    ExactProblem,
    FloatArray,
    IntArray,
    as_points,
    evaluate,
    factors_of,
    walk_between,
)
from paretopress.search.pareto import non_dominated

MULTIPLIERS = 48
# Mini-buckets of this size bound every multiplier in a few seconds; larger ones bound more tightly.
TABLE_LIMIT = 1 << 18
SWEEPS = 50

# Scope, cost and loss of each table of a problem.
Tables = list[tuple[tuple[str, ...], FloatArray, FloatArray]]


def lagrangian_front(problem: ExactProblem, order: Sequence[str], max_table: int) -> ExactFront:
    """Return an approximate front with a certified gap.

    Args:
        problem: The problem.
        order: Elimination order of all units.
        max_table: Most cells of a joined table.
    """
    limit = min(max_table, TABLE_LIMIT)
    tables = factors_of(problem)
    multipliers = _multipliers(tables)
    weights = [(1.0, 0.0), *((multiplier, 1.0) for multiplier in multipliers), (0.0, 1.0)]
    bounds = []
    starts = []
    for on_cost, on_loss in weights:
        bound, assignment = _relaxed(problem, tables, order, limit, on_cost, on_loss)
        bounds.append(bound + on_cost * problem.constant_cost)
        starts.append([assignment[unit] for unit in problem.options])
    on = np.array(weights)
    found = _descend(problem, np.array(starts, dtype=np.int64), on)
    # A neighbour's optimum is often a better start than one's own relaxation.
    shifted = [_descend(problem, np.roll(found, shift, axis=0), on) for shift in (1, -1)]
    archive = _pruned(problem, np.concatenate([found, *shifted, np.array(starts, dtype=np.int64)]))
    archive = _pruned(problem, np.concatenate([archive, *walk_between(problem, archive)]))
    points = as_points(problem, archive)
    gap = _gap(np.stack([points.costs, points.losses], axis=1), multipliers, np.array(bounds))
    return ExactFront(points, gap, None, "lagrangian")


def _multipliers(tables: Tables) -> FloatArray:
    """Return a geometric grid, falling, from where only cost counts to where only loss counts."""
    cost = sum(float(np.ptp(table)) for _, table, _ in tables)
    loss = sum(float(np.ptp(table)) for _, _, table in tables)
    if cost == 0 or loss == 0:
        return np.ones(1)
    multipliers: FloatArray = loss / cost * np.geomspace(1e3, 1e-3, MULTIPLIERS)
    return multipliers


def _relaxed(
    problem: ExactProblem, tables: Tables, order: Sequence[str], limit: int, on_cost: float, on_loss: float
) -> tuple[float, dict[str, int]]:
    factors = [
        Factor(scope, on_cost * cost + on_loss * loss, loss if on_cost else cost)
        for scope, cost, loss in tables
    ]
    return minimise(problem.options, factors, order, limit)


def _descend(problem: ExactProblem, assignments: IntArray, weights: FloatArray) -> IntArray:
    """Improve each assignment for its own weights, one unit at a time, until no single change helps.

    Args:
        problem: The problem.
        assignments: Shape `(n, units)`.
        weights: Shape `(n, 2)`, on cost and loss.
    """
    column = {unit: position for position, unit in enumerate(problem.options)}
    touching: dict[str, Tables] = {unit: [] for unit in problem.options}
    for scope, cost, loss in factors_of(problem):
        for unit in scope:
            touching[unit].append((scope, cost, loss))
    current = assignments.copy()
    rows = np.arange(len(current))
    for _ in range(SWEEPS):
        before = current.copy()
        for unit, tables in touching.items():
            value = np.zeros((len(current), problem.options[unit]))
            for scope, cost, loss in tables:
                axis = scope.index(unit)
                at = tuple(current[:, column[name]] for name in scope if name != unit)
                value += weights[:, :1] * np.moveaxis(cost, axis, -1)[at]
                value += weights[:, 1:] * np.moveaxis(loss, axis, -1)[at]
            best = value.argmin(axis=1)
            held = current[:, column[unit]]
            improves = value[rows, best] < value[rows, held] - 1e-12 * np.abs(value[rows, held])
            current[:, column[unit]] = np.where(improves, best, held)
        if (current == before).all():
            break
    return current


def _pruned(problem: ExactProblem, assignments: IntArray) -> IntArray:
    """Return the non-dominated assignments by rising cost."""
    costs, losses = evaluate(problem, assignments)
    kept = np.flatnonzero(non_dominated(np.stack([costs, losses], axis=1)))
    return assignments[kept[np.argsort(costs[kept], kind="stable")]]


def _gap(front: FloatArray, multipliers: FloatArray, bounds: FloatArray) -> float:
    """Return the certified gap of a front, shape `(n, 2)` of (cost, loss) by rising cost.

    An assignment with loss below point k - 1 and not below point k is covered by point k. Its cost is at
    least `max (bound(multiplier) - loss of k - 1) / multiplier`, and at least the bound on any cost.
    """
    least_cost, least_loss = float(bounds[0]), float(bounds[-1])
    noise = 1e-9 * max(float(np.abs(front).max()), 1e-300)
    if float(front[-1, 1]) > least_loss + noise:
        return math.inf
    lows = np.full(len(front), least_cost)
    if len(front) > 1:
        dual = (bounds[1:-1, None] - front[None, :-1, 1]) / multipliers[:, None]
        lows[1:] = np.maximum(least_cost, dual.max(axis=0))
    excess = front[:, 0] - lows
    if (excess <= 1e-12 * np.abs(front[:, 0])).all():
        return 0.0
    if (lows <= 0).any():
        return math.inf
    return float(max((excess / lows).max(), 0.0)) + 1e-12
