"""Bound sets: which partial assignments can still reach the front, proven by Lagrangian relaxation.

The lower bound of a partial assignment at a multiplier is its own `loss + multiplier * cost` plus the exact
minimum of everything outside, which one inside and one outside pass over the elimination tree give for every
cell of every message. A partial assignment is dropped when each completion is weakly dominated by a known
assignment (bound sets: Ehrgott and Gandibleux 2007; in dynamic programmes: Bazgan, Hugot and Vanderpooten
2009). The known assignments are kept, so that nothing is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paretopress.search.factors import ExactProblem, FloatArray, IntArray, evaluate, factors_of, walk_between
from paretopress.search.pareto import non_dominated
from paretopress.search.pareto_sets import SetTable, select

COARSE = 32
FINE = 96
# Each round adds the multipliers of the slopes between the supported points found so far.
ROUNDS = 3
# Cells of all joined tables times multipliers that may be held at once (256 MB).
CELL_LIMIT = 1 << 25
# Smaller tables are not worth pruning.
WORTHWHILE = 512

Scoped = tuple[tuple[str, ...], FloatArray]


@dataclass(frozen=True, eq=False)
class BoundSet:
    """Known assignments and what proves that a partial assignment adds nothing to them.

    Attributes:
        multipliers: Shape `(k,)`, weights of the cost.
        minima: Shape `(k,)`, least weighted sum of the whole problem.
        thresholds: Shape `(k,)`: only below one of these can a completion be better than what is known.
        outside: Per eliminated unit, (scope, minima of all that is outside its message), shape `(k, *shape)`.
        known: Shape `(n, units)`, assignments by rising cost, the ends of the front among them.
    """

    multipliers: FloatArray
    minima: FloatArray
    thresholds: FloatArray
    outside: Mapping[str, Scoped]
    known: IntArray

    def prune(self, table: SetTable, unit: str | None, remaining: Sequence[Scoped]) -> SetTable:
        """Drop entries of a table that only lead to what the known assignments dominate.

        Args:
            table: A table in the bucket of `unit`.
            unit: The unit about to be eliminated, None when all units are.
            remaining: `minima_of` the tables still to be joined in that bucket.
        """
        if not self.worthwhile(table):
            return table
        parts = [*remaining] if unit is None else [self.outside[unit], *remaining]
        scope = tuple(dict.fromkeys((*table.scope, *(name for names, _ in parts for name in names))))
        rest: FloatArray = np.zeros((len(self.multipliers), *([1] * len(scope))))
        for names, values in parts:
            rest = rest + align(values, names, scope)
        rest = rest.min(axis=tuple(range(len(table.scope) + 1, len(scope) + 1)))
        rest = np.broadcast_to(rest, (len(self.multipliers), *table.shape)).reshape(len(self.multipliers), -1)
        cell = np.repeat(np.arange(table.cells), np.diff(table.offsets))
        cost = table.low + table.base
        useful = np.zeros(len(cost), dtype=bool)
        for multiplier, threshold, row in zip(self.multipliers, self.thresholds, rest, strict=True):
            useful |= table.loss + multiplier * cost + row[cell] <= threshold
        return select(table, np.flatnonzero(useful))

    def worthwhile(self, table: SetTable) -> bool:
        """Tell whether a table has enough entries for pruning to pay."""
        return len(table.low) >= WORTHWHILE

    def floor(self, problem: ExactProblem) -> Callable[[FloatArray], FloatArray]:
        """What weak duality proves: the least cost of whatever loses less than each of some losses."""
        multipliers, minima = self.multipliers[:, None], self.minima[:, None]

        def below(losses: FloatArray) -> FloatArray:
            found: FloatArray = ((minima - losses) / multipliers).max(axis=0) + problem.constant_cost
            return found

        return below

    def minima_of(self, table: SetTable) -> Scoped:
        """Return the least weighted sum in each cell of a table, infinity in empty cells."""
        filled = np.flatnonzero(np.diff(table.offsets))
        minima = np.full((len(self.multipliers), table.cells), np.inf)
        if len(filled):
            # A few multipliers at a time: enough to leave Python, not enough to fill the memory.
            block = max(1, (1 << 20) // len(table.low))
            for start in range(0, len(self.multipliers), block):
                part = slice(start, start + block)
                values = table.loss + np.multiply.outer(self.multipliers[part], table.low + table.base)
                minima[part, filled] = np.minimum.reduceat(values, table.offsets[filled], axis=1)
        return table.scope, minima.reshape(-1, *table.shape)


def bound_set(problem: ExactProblem, order: Sequence[str], ends: IntArray, cells: int) -> BoundSet | None:
    """Return the bound set of a problem, None where its tables are too large for it.

    Args:
        problem: The problem.
        order: Elimination order of all units.
        ends: Shape `(2, units)`: assignments of least cost and of least loss, ties by the other.
        cells: Cells of all tables that the elimination joins.
    """
    fine = min(FINE, CELL_LIMIT // cells)
    costs, losses = evaluate(problem, ends)
    if fine < 8 or costs[1] <= costs[0] or losses[0] <= losses[1]:
        return None
    slope = (losses[0] - losses[1]) / (costs[1] - costs[0])
    coarse = slope * np.geomspace(1e-3, 1e3, min(COARSE, fine))
    tree = _Tree(problem, order, coarse)
    supported = _front_rows(problem, np.concatenate([ends, tree.decode()]))
    for _ in range(ROUNDS):
        multipliers = np.sort(_slopes(problem, supported))
        if len(multipliers) > fine:
            multipliers = multipliers[np.linspace(0, len(multipliers) - 1, fine).astype(int)]
        tree = _Tree(problem, order, multipliers)
        supported = _front_rows(problem, np.concatenate([supported, tree.decode()]))
    known = _front_rows(problem, np.concatenate([supported, *walk_between(problem, supported)]))
    thresholds = _thresholds(problem, known, multipliers, tree.minima())
    return BoundSet(multipliers, tree.minima(), thresholds, tree.outside(), known)


def with_known(problem: ExactProblem, bounds: BoundSet, rows: IntArray) -> BoundSet:
    """Return the bound set sharpened by more known assignments, shape `(n, units)`."""
    known = _front_rows(problem, np.concatenate([bounds.known, rows]))
    thresholds = _thresholds(problem, known, bounds.multipliers, bounds.minima)
    return replace(bounds, known=known, thresholds=thresholds)


def align(values: FloatArray, scope: Sequence[str], target: Sequence[str]) -> FloatArray:
    """Return `values`, shape `(k, *scope)`, with its axes in the order of `target` and 1 where absent."""
    axes = sorted(range(len(scope)), key=lambda axis: target.index(scope[axis]))
    size = dict(zip(scope, values.shape[1:], strict=True))
    turned = values.transpose(0, *(axis + 1 for axis in axes))
    return turned.reshape(values.shape[0], *(size.get(name, 1) for name in target))


class _Tree:
    """Elimination of the weighted sum for many multipliers at once, kept for decoding and outside minima."""

    def __init__(self, problem: ExactProblem, order: Sequence[str], multipliers: FloatArray) -> None:
        self.units = list(problem.options)
        self.order = order
        self.joined: dict[str, Scoped] = {}
        self.messages: dict[str, Scoped] = {}
        self.parent: dict[str, str] = {}
        tables: list[tuple[str | None, Scoped]] = []
        for scope, cost, loss in factors_of(problem):
            weight = multipliers.reshape(-1, *([1] * len(scope)))
            tables.append((None, (scope, weight * cost + loss)))
        for unit in order:
            involved = [(source, table) for source, table in tables if unit in table[0]]
            tables = [(source, table) for source, table in tables if unit not in table[0]]
            names = dict.fromkeys(name for _, (scope, _) in involved for name in scope if name != unit)
            scope = (*names, unit)
            total: FloatArray = np.zeros((len(multipliers), *([1] * len(scope))))
            for source, (own, values) in involved:
                total = total + align(values, own, scope)
                if source is not None:
                    self.parent[source] = unit
            self.joined[unit] = (scope, total)
            self.messages[unit] = (scope[:-1], total.min(axis=-1))
            tables.append((unit, self.messages[unit]))

    def decode(self) -> IntArray:
        """Return one minimising assignment per multiplier, shape `(k, units)`."""
        chosen: dict[str, IntArray] = {}
        for unit in reversed(self.order):
            scope, total = self.joined[unit]
            at = (np.arange(len(total)), *(chosen[name] for name in scope[:-1]))
            chosen[unit] = total[at].argmin(axis=-1)
        return np.stack([chosen[unit] for unit in self.units], axis=1)

    def minima(self) -> FloatArray:
        """Return the least weighted sum of the whole problem, shape `(k,)`."""
        total: FloatArray = np.sum([values for scope, values in self.messages.values() if not scope], axis=0)
        return total

    def outside(self) -> dict[str, Scoped]:
        """Return, per unit, the minimum of everything that its message does not cover."""
        result: dict[str, Scoped] = {}
        for unit in reversed(self.order):
            scope, message = self.messages[unit]
            if not scope:
                result[unit] = ((), self.minima() - message)
                continue
            parent = self.parent[unit]
            whole, total = self.joined[parent]
            rest = total + align(result[parent][1], result[parent][0], whole) - align(message, scope, whole)
            hidden = tuple(axis + 1 for axis, name in enumerate(whole) if name not in scope)
            result[unit] = (tuple(name for name in whole if name in scope), rest.min(axis=hidden))
        return result


def _front_rows(problem: ExactProblem, rows: IntArray) -> IntArray:
    costs, losses = evaluate(problem, rows)
    kept = np.flatnonzero(non_dominated(np.stack([costs, losses], axis=1)))
    return rows[kept[np.argsort(costs[kept], kind="stable")]]


def _slopes(problem: ExactProblem, rows: IntArray) -> FloatArray:
    """Return the loss per cost between neighbours on a front."""
    costs, losses = evaluate(problem, rows)
    slopes: FloatArray = -np.diff(losses) / np.diff(costs)
    return slopes


def _thresholds(
    problem: ExactProblem, known: IntArray, multipliers: FloatArray, minima: FloatArray
) -> FloatArray:
    """Return the weighted sum that a better assignment must stay below, per multiplier.

    What no known assignment dominates lies left of and below the corner (cost of the dearer, loss of the
    cheaper) of two known neighbours; each corner is watched by the multiplier that leaves least area
    between the corner and its line.
    """
    costs, losses = evaluate(problem, known)
    costs = costs - problem.constant_cost
    corners = losses[:-1, None] + multipliers * costs[1:, None]
    watcher = ((corners - minima) / np.sqrt(multipliers)).argmin(axis=1)
    thresholds = np.full(len(multipliers), -math.inf)
    np.maximum.at(thresholds, watcher, corners[np.arange(len(watcher)), watcher])
    # Sums in another order differ in their last digits; a looser threshold only keeps more.
    noise: FloatArray = 1e-10 * (np.abs(losses).max() + multipliers * np.abs(costs).max())
    return thresholds + noise
