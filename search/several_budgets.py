"""The least loss within several budgets at once, with a proven bound: Lagrangian and surrogate relaxation.

The multi-dimensional multiple-choice knapsack (Kellerer, Pferschy and Pisinger 2004, section 11.10). For weights on
the budgets the weighted sum is minimised exactly by variable elimination, which bounds the loss from below (Everett
1963; Geoffrion 1974); the best weights are found by cutting planes (Kelley 1960). Their weighted sum of costs is one
cost whose whole front is solved (surrogate relaxation, Glover 1975): what of it is within all budgets is the answer,
after single changes that improve it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paretopress.search.elimination import Factor, elimination_order, minimise
from paretopress.search.exact import solve_front
from paretopress.search.factors import (
    Assignment,
    CostTerm,
    ExactProblem,
    FloatArray,
    IntArray,
    as_row,
    evaluate,
    factors_of,
)
from paretopress.spaces.errors import ConfigError

CUTS = 40           # weights that are tried
LARGEST_WEIGHT = 1e4   # losses of the range per range of a cost: what such a weight does not enforce nothing does
PRECISE = 1e-6      # of the bound: cutting planes end where no weights can raise it more
TABLE_LIMIT = 1 << 20
STARTS = 4          # assignments that are improved by single changes
TILTS = (1.0, 1.5, 1 / 1.5, 3.0, 1 / 3.0)   # of the best weights: each gives a front of its own


@dataclass(frozen=True, eq=False)
class Resource:
    """A cost with a budget.

    Attributes:
        name: For messages and results.
        terms: Their sum, plus `constant`, is the cost.
        limit: What the cost may be at most.
        constant: What no option changes.
    """

    name: str
    terms: tuple[CostTerm, ...]
    limit: float
    constant: float = 0.0


@dataclass(frozen=True)
class Budgeted:
    """The best assignment found within all budgets.

    Attributes:
        assignment: Option number per unit, None where none was found.
        loss: Its loss, infinite without one.
        costs: Its cost by the resource's name, empty without one.
        bound: No assignment within all budgets loses less; infinite where there is proven to be none.
    """

    assignment: Mapping[str, int] | None
    loss: float
    costs: Mapping[str, float]
    bound: float

    @property
    def gap(self) -> float:
        """How much less another assignment may lose at most, in the loss' unit."""
        return 0.0 if self.assignment is None and math.isinf(self.bound) else max(0.0, self.loss - self.bound)


def solve_within(
    options: Mapping[str, int], losses: Mapping[str, FloatArray], resources: Sequence[Resource],
    *, loss_terms: tuple[CostTerm, ...] = (), buckets: int = 2048,
) -> Budgeted:
    """Return the assignment of least loss that was found within several budgets.

    Args:
        options: Number of options per unit.
        losses: Loss of each option of a unit.
        resources: Costs with their budgets, at least one.
        loss_terms: Losses that couple units.
        buckets: As of `solve_front`.

    Raises:
        ConfigError: No budget, or malformed terms.
    """
    if not resources:
        raise ConfigError("solving within budgets needs at least one budget")
    problems = [ExactProblem(options, losses, one.terms, loss_terms, one.constant) for one in resources]
    search = _Search(problems, np.array([one.limit for one in resources], dtype=np.float64))
    bound, weights = search.relax()
    if math.isfinite(bound):
        search.add_fronts(weights, buckets)
    best = search.best()
    if best is None:
        return Budgeted(None, math.inf, {}, bound)
    costs, loss = search.evaluate(best[None])
    column = {unit: place for place, unit in enumerate(options)}
    return Budgeted(Assignment(column, best), float(loss[0]),
                    {one.name: float(cost) for one, cost in zip(resources, costs[0], strict=True)},
                    min(bound, float(loss[0])))


class _Search:
    """Relaxations of one problem with several costs, and the assignments that they met."""

    def __init__(self, problems: Sequence[ExactProblem], limits: FloatArray) -> None:
        self.problems, self.limits = problems, limits
        self.options = problems[0].options
        self.tables = [{scope: (cost, loss) for scope, cost, loss in factors_of(one)} for one in problems]
        scopes = {scope: None for tables in self.tables for scope in tables}
        self.scopes = list(scopes)
        self.order, _ = elimination_order(self.options, self.scopes)
        self.constants = np.array([one.constant_cost for one in problems])
        # Weights count in losses of the whole range per range of a cost, so that all are of one size.
        self.loss_range = max(sum(float(np.ptp(table[1])) for table in self.tables[0].values()), 1e-300)
        self.ranges = np.array([max(sum(float(np.ptp(cost)) for cost, _ in tables.values()), 1e-300)
                                for tables in self.tables])
        self.seen: list[IntArray] = []

    def evaluate(self, rows: IntArray) -> tuple[FloatArray, FloatArray]:
        """Return costs `(n, resources)` and losses `(n,)`."""
        found = [evaluate(one, rows) for one in self.problems]
        return np.stack([cost for cost, _ in found], axis=1), found[0][1]

    def weighted(self, weights: FloatArray) -> tuple[float, FloatArray, float]:
        """Minimise the loss plus weighted violations.

        Returns:
            The minimum (or a lower bound), the violations of the assignment that has it, in ranges, and its loss.
        """
        prices = weights * self.loss_range / self.ranges
        factors = []
        for scope in self.scopes:
            loss = self._table(0, scope)[1]
            cost = sum(price * self._table(number, scope)[0] for number, price in enumerate(prices))
            factors.append(Factor(scope, loss + cost, cost + np.zeros_like(loss)))
        value, assignment = minimise(self.options, factors, self.order, TABLE_LIMIT)
        row = as_row(self.problems[0], assignment)
        self.seen.append(row)
        costs, losses = self.evaluate(row[None])
        return (value + float(prices @ (self.constants - self.limits)), (costs[0] - self.limits) / self.ranges,
                float(losses[0]))

    def _table(self, number: int, scope: tuple[str, ...]) -> tuple[FloatArray, FloatArray]:
        shape = tuple(self.options[unit] for unit in scope)
        return self.tables[number].get(scope) or (np.zeros(shape), np.zeros(shape))

    def relax(self) -> tuple[float, FloatArray]:
        """Return the best bound on the loss, infinite where nothing is within the budgets, and its weights."""
        from scipy.optimize import linprog

        count = len(self.problems)
        least = [self.least_cost(number) for number in range(count)]
        margin = 1e-9 * np.abs(self.limits)
        if (np.array(least) > self.limits + margin).any():
            return math.inf, np.zeros(count)
        best, chosen, weights = -math.inf, np.zeros(count), np.zeros(count)
        left, right = [], []
        for _ in range(CUTS):
            value, violations, loss = self.weighted(weights)
            if value > best:
                best, chosen = value, weights
            # No weights give more than loss + weights * violations of any assignment: z - weights * v <= loss.
            left.append([1.0, *(-self.loss_range * violations)])
            right.append(loss)
            bounds = [(None, None), *[(0.0, LARGEST_WEIGHT)] * count]
            master = linprog([-1.0, *[0.0] * count], A_ub=np.array(left), b_ub=np.array(right), bounds=bounds)
            if master.x is None or master.fun is None or -master.fun - best <= PRECISE * max(abs(best), 1e-12):
                break
            weights = np.asarray(master.x[1:], dtype=np.float64)
        slack = 1e-9 * self.loss_range
        return best - slack, chosen

    def least_cost(self, number: int) -> float:
        """Return the least value of one cost, or a lower bound of it."""
        factors = [Factor(scope, *self.tables[number][scope]) for scope in self.tables[number]]
        value, assignment = minimise(self.options, factors, self.order, TABLE_LIMIT)
        self.seen.append(as_row(self.problems[0], assignment))
        return value + float(self.constants[number])

    def add_fronts(self, weights: FloatArray, buckets: int) -> None:
        """Solve fronts against weighted sums of the costs near the best weights, and remember their points."""
        weights = np.where(weights > 0.0, weights, 1e-3 * max(float(weights.max()), 1e-6))
        mixes = {tuple(weights * np.where(np.arange(len(weights)) == place, tilt, 1.0))
                 for place in range(len(weights)) for tilt in (TILTS if len(weights) > 1 else TILTS[:1])}
        base = self.problems[0]
        for mix in sorted(mixes):
            terms = tuple(CostTerm(term.units, price / size * np.asarray(term.table))
                          for one, price, size in zip(self.problems, mix, self.ranges, strict=True)
                          for term in one.costs)
            front = solve_front(ExactProblem(self.options, base.losses, terms, base.loss_terms),
                                buckets=buckets, tolerance=1e-3)
            self.seen += [np.array(list(point.assignment.values()), dtype=np.int64) for point in front.points]

    def best(self) -> IntArray | None:
        """Return the best assignment within all budgets that single changes lead to; None where none was found.

        What exceeds budgets least, in ranges, comes first; of equals what loses least.
        """
        rows = np.unique(np.stack(self.seen), axis=0)
        starts = self._ranked(rows)[:STARTS]
        ends = np.stack([self._improved(rows[start]) for start in starts])
        best = ends[self._ranked(ends)[0]]
        costs, _ = self.evaluate(best[None])
        return best if (costs <= self.limits).all() else None

    def _ranked(self, rows: IntArray) -> IntArray:
        """Return the order of assignments, the best first."""
        costs, losses = self.evaluate(rows)
        over = (np.maximum(costs - self.limits, 0.0) / self.ranges).sum(axis=1)
        return np.lexsort((losses, over))

    def _improved(self, row: IntArray) -> IntArray:
        """Change one unit at a time, each time in the best way, until nothing improves."""
        moves = np.array([(place, option) for place, count in enumerate(self.options.values())
                          for option in range(count)], dtype=np.int64).reshape(-1, 2)
        while True:
            near = np.tile(row, (len(moves) + 1, 1))
            near[np.arange(len(moves)), moves[:, 0]] = moves[:, 1]
            # The row itself stands first among equals, so that this ends.
            near = np.roll(near, 1, axis=0)
            first = self._ranked(near)[0]
            if first == 0 or (near[first] == row).all():
                return row
            row = near[first]
