"""Fronts of problems whose every table depends on one unit: the bi-objective multiple-choice knapsack.

The recursion over cost (Kellerer, Pferschy and Pisinger 2004, section 11.5) runs on a few grids, each over an
eighth of the range of the one before it, so that cheap assignments, whose front is steep, get fine steps. Costs are
rounded to the nearest step, which errs a few steps over all units, and real assignments are traced back and priced
exactly. The relaxation to fractions of choices, solved by its greedy rule (Sinha and Zoltners 1979), bounds what
any assignment of a given loss must cost; the recursion bounds it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretopress.search.factors import ExactProblem, FloatArray, IntArray, factors_of

WINDOWS = 3    # grids
NARROWER = 8   # times, each than the one before
LARGEST_INTEGER = 2**50


@dataclass(frozen=True, eq=False)
class CostFloor:
    """What an assignment must cost that loses less than a given value: a falling step or piecewise linear function.

    Attributes:
        losses: Shape `(n,)`, falling.
        costs: Shape `(n,)`, rising: of what loses as much.
        linear: Whether the bound is linear between them; otherwise it is a step.
    """

    losses: FloatArray
    costs: FloatArray
    linear: bool

    def below(self, losses: FloatArray) -> FloatArray:
        """Return the least cost of what loses less than each of some losses, minus infinity where none is known."""
        if self.linear:
            return np.interp(-losses, -self.losses, self.costs)
        place = np.searchsorted(-self.losses, -losses, side="right")
        return np.append(self.costs, np.inf)[place]


@dataclass(frozen=True, eq=False)
class Column:
    """The options of a unit that no other option of it dominates, by rising cost and falling loss."""

    options: IntArray
    cost: FloatArray
    loss: FloatArray


def is_separable(problem: ExactProblem) -> bool:
    """Whether every term of a problem depends on one unit."""
    return all(len(term.units) == 1 for term in (*problem.costs, *problem.loss_terms))


def separable_front(problem: ExactProblem, buckets: int) -> tuple[IntArray, list[CostFloor], bool]:
    """Return good assignments all along the front of a separable problem, and what bounds the front.

    Args:
        problem: The problem, with at least one unit.
        buckets: Steps of each grid.

    Returns:
        Assignments, shape `(n, units)`; bounds on the cost of whatever loses less than a value; and whether nothing
        was rounded, so that the whole front is among the assignments.
    """
    columns = [column_of(cost, loss) for _, cost, loss in factors_of(problem)]
    least = sum(float(column.cost[0]) for column in columns)
    base = least + problem.constant_cost
    span = sum(float(column.cost[-1]) for column in columns) - least
    unit = _unit(columns)
    rows, relaxed = _relaxation(columns, base)
    found = [rows]
    if unit is not None and span <= unit * buckets:
        steps = [np.rint((column.cost - column.cost[0]) / unit).astype(np.int64) for column in columns]
        found.append(_Recursion(columns, steps, round(span / unit) + 1).rows())
        return np.concatenate(found), [], True
    floors = [relaxed]
    for window in range(WINDOWS):
        width = span / NARROWER**window / buckets
        steps = [np.rint((column.cost - column.cost[0]) / width).astype(np.int64) for column in columns]
        recursion = _Recursion(columns, steps, buckets + 1)
        found.append(recursion.rows())
        over = sum(float((step * width - (column.cost - column.cost[0])).max())
                   for step, column in zip(steps, columns, strict=True))
        floors.append(recursion.floor(width, base - over))
    return np.concatenate(found), floors, False


def column_of(cost: FloatArray, loss: FloatArray) -> Column:
    """Return the column of a unit's costs and losses, shape `(options,)` each."""
    order = np.lexsort((loss, cost))
    falling = loss[order]
    kept = np.ones(len(order), dtype=bool)
    kept[1:] = falling[1:] < np.minimum.accumulate(falling)[:-1]
    order = order[kept]
    return Column(order, cost[order], loss[order])


def _unit(columns: Sequence[Column]) -> int | None:
    """Return the greatest common divisor of all cost differences, None where they are not integers."""
    steps = np.concatenate([column.cost - column.cost[0] for column in columns])
    if steps.max(initial=0.0) >= LARGEST_INTEGER or (steps != np.rint(steps)).any():
        return None
    return max(int(np.gcd.reduce(steps.astype(np.int64))), 1)


def _relaxation(columns: Sequence[Column], base: float) -> tuple[IntArray, CostFloor]:
    """Return the assignments that solve the relaxation in whole choices, and the relaxation as a bound.

    Greedily by loss saved per cost, each unit climbs its own lower convex hull.
    """
    hulls = [hull_of(column.cost, column.loss) for column in columns]
    unit = np.repeat(np.arange(len(columns)), [len(hull) - 1 for hull in hulls])
    cost = np.concatenate([np.diff(column.cost[hull]) for column, hull in zip(columns, hulls, strict=True)])
    loss = np.concatenate([np.diff(column.loss[hull]) for column, hull in zip(columns, hulls, strict=True)])
    option = np.concatenate([column.options[hull[1:]] for column, hull in zip(columns, hulls, strict=True)])
    order = np.argsort(loss / cost, kind="stable")
    rows = np.empty((len(order) + 1, len(columns)), dtype=np.int64)
    rows[0] = [column.options[0] for column in columns]
    for place, column in enumerate(columns):
        # Each row shows the last step that its unit has taken by then.
        taken = np.flatnonzero(unit[order] == place)
        count = np.zeros(len(order) + 1, dtype=np.int64)
        count[taken + 1] = 1
        values = np.append(column.options[0], option[order[taken]])
        rows[:, place] = values[np.cumsum(count)]
    start = sum(float(column.loss[0]) for column in columns)
    losses = start + np.append(0.0, np.cumsum(loss[order]))
    return rows, CostFloor(losses, base + np.append(0.0, np.cumsum(cost[order])), linear=True)


def hull_of(costs: FloatArray, losses: FloatArray) -> IntArray:
    """Return the places of a column's rising costs and falling losses on its lower convex hull, the cheapest first."""
    places: list[int] = []
    cost, loss = costs.tolist(), losses.tolist()
    for place in range(len(cost)):
        while len(places) > 1:
            one, two = places[-2], places[-1]
            run, rise = cost[place] - cost[one], loss[place] - loss[one]
            if (loss[two] - loss[one]) * run < rise * (cost[two] - cost[one]):
                break
            places.pop()
        places.append(place)
    return np.array(places, dtype=np.int64)


class _Recursion:
    """Least loss at every cost on a grid, unit by unit, with the options that give it."""

    def __init__(self, columns: Sequence[Column], steps: Sequence[IntArray], length: int) -> None:
        """Args are the options, their costs in steps of the grid, the cheapest at 0, and the grid's length."""
        self.columns, self.steps = columns, steps
        self.chosen: list[NDArray[np.int16]] = []
        best = np.full(length, np.inf)
        best[0] = 0.0
        top = 0
        for column, step in zip(columns, steps, strict=True):
            before, best = best, np.full(length, np.inf)
            chosen = np.zeros(length, dtype=np.int16)
            for number, (shift, loss) in enumerate(zip(step.tolist(), column.loss.tolist(), strict=True)):
                reach = min(top + 1, length - shift)
                if reach <= 0:
                    break
                window = best[shift : shift + reach]
                candidate = before[:reach] + loss
                better = candidate < window
                np.copyto(window, candidate, where=better)
                np.copyto(chosen[shift : shift + reach], number, where=better)
            top = min(length - 1, top + int(step[-1]))
            self.chosen.append(chosen)
        self.best = best
        self.kept = np.flatnonzero(best < np.append(np.inf, np.minimum.accumulate(best)[:-1]))

    def rows(self) -> IntArray:
        """Return the assignment of every place on the front of the grid, shape `(n, units)`."""
        rows = np.empty((len(self.kept), len(self.columns)), dtype=np.int64)
        place = self.kept
        for number in range(len(self.columns) - 1, -1, -1):
            option = self.chosen[number][place]
            rows[:, number] = self.columns[number].options[option]
            place = place - self.steps[number][option]
        return rows

    def floor(self, width: float, base: float) -> CostFloor:
        """What the recursion proves: a loss that first appears at a step costs at least that much.

        Args:
            width: Of a step.
            base: Cost of the first step, less what rounding may have added to any assignment.
        """
        # What the grid does not reach costs at least its end.
        costs = base + width * np.append(self.kept, len(self.best))
        return CostFloor(np.append(self.best[self.kept], -np.inf), costs, linear=False)
