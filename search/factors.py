"""The discrete two-objective problem the exact solver works on: units, options, and sums of small tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from numpy.typing import NDArray

from paretopress.spaces.errors import ConfigError, unknown_name

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CostTerm:
    """A term of a sum that depends on the options of a few units.

    Attributes:
        units: The units it depends on, each once.
        table: Shape: number of options per unit, in the order of `units`. Entries may be negative.
    """

    units: tuple[str, ...]
    table: FloatArray


@dataclass(frozen=True, eq=False)
class ExactProblem:
    """Minimise (cost, loss) over one option per unit, both sums of tables (a factor graph).

    Attributes:
        options: Number of options per unit, at least 1.
        losses: Additive loss (>= 0) of each option of a unit; an absent unit has none.
        costs: Terms whose sum, plus `constant_cost`, is the cost.
        loss_terms: Optional losses that couple several units.
        constant_cost: Cost no option changes.

    Raises:
        ConfigError: On unknown or repeated units, wrong shapes, and entries that are not finite.
    """

    options: Mapping[str, int]
    losses: Mapping[str, FloatArray]
    costs: tuple[CostTerm, ...]
    loss_terms: tuple[CostTerm, ...] = field(default=())
    constant_cost: float = 0.0

    def __post_init__(self) -> None:
        for unit, count in self.options.items():
            if count < 1:
                raise ConfigError(f"unit {unit!r} has {count} options, at least 1 is needed")
        for unit, loss in self.losses.items():
            _check(self.options, (unit,), loss, "loss")
            if np.min(loss) < 0:
                raise ConfigError(f"loss of unit {unit!r} must be >= 0, got {float(np.min(loss))}")
        for kind, terms in (("cost", self.costs), ("loss", self.loss_terms)):
            for term in terms:
                _check(self.options, term.units, term.table, kind)


class Assignment(Mapping[str, int]):
    """Option number per unit, read from a row of a front's array: fronts have thousands of points."""

    __slots__ = ("_column", "_row")

    def __init__(self, column: Mapping[str, int], row: IntArray) -> None:
        """Args are the place of every unit in the row, and the row, shape `(units,)`."""
        self._column, self._row = column, row

    def __getitem__(self, unit: str) -> int:
        return int(self._row[self._column[unit]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._column)

    def __len__(self) -> int:
        return len(self._column)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(frozen=True)
class FrontPoint:
    """One assignment and what it costs and loses.

    Attributes:
        cost: Sum of the cost terms, the constant included.
        loss: Sum of the losses.
        assignment: Option number per unit.
    """

    cost: float
    loss: float
    assignment: Mapping[str, int]


class FrontPoints(Sequence[FrontPoint]):
    """The points of a front, made when they are looked at: fronts have thousands of them.

    Attributes:
        units: Names of the columns of `assignments`.
        costs: Shape `(n,)`.
        losses: Shape `(n,)`.
        assignments: Shape `(n, units)`, option numbers.
    """

    def __init__(self, units: Iterable[str], costs: FloatArray, losses: FloatArray, assignments: IntArray) -> None:
        """Args are the attributes."""
        self.units = tuple(units)
        self.costs, self.losses, self.assignments = costs, losses, assignments
        self._column = {unit: place for place, unit in enumerate(self.units)}

    def __len__(self) -> int:
        return len(self.costs)

    @overload
    def __getitem__(self, index: int) -> FrontPoint: ...

    @overload
    def __getitem__(self, index: slice) -> FrontPoints: ...

    def __getitem__(self, index: int | slice) -> FrontPoint | FrontPoints:
        if isinstance(index, slice):
            return FrontPoints(self.units, self.costs[index], self.losses[index], self.assignments[index])
        assignment = Assignment(self._column, self.assignments[index])
        return FrontPoint(float(self.costs[index]), float(self.losses[index]), assignment)

    def __iter__(self) -> Iterator[FrontPoint]:
        rows = zip(self.costs.tolist(), self.losses.tolist(), self.assignments, strict=True)
        return (FrontPoint(cost, loss, Assignment(self._column, row)) for cost, loss, row in rows)


@dataclass(frozen=True)
class ExactFront:
    """The two-objective front and how far it can be from the true one.

    Attributes:
        points: Increasing cost, strictly decreasing loss.
        gap: Certified: every assignment with cost c and loss l has a point here with loss <= l and cost
            <= (1 + gap) * c, up to floating-point rounding. 0 means exact, infinity that nothing is known.
        buckets: Resolution of costs where they were rounded, None where nothing was.
        method: `"elimination"` or `"lagrangian"`.
    """

    points: FrontPoints
    gap: float
    buckets: int | None
    method: str


def evaluate(problem: ExactProblem, assignments: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return the true cost and loss of assignments.

    Args:
        problem: The problem.
        assignments: Shape `(n, units)`, option numbers in the order of `problem.options`.

    Returns:
        Costs and losses, shape `(n,)` each.
    """
    column = {unit: position for position, unit in enumerate(problem.options)}
    costs = np.full(len(assignments), float(problem.constant_cost))
    losses = np.zeros(len(assignments))
    for term in problem.costs:
        costs += _lookup(term, assignments, column)
    for unit, loss in problem.losses.items():
        losses += np.asarray(loss, dtype=np.float64)[assignments[:, column[unit]]]
    for term in problem.loss_terms:
        losses += _lookup(term, assignments, column)
    return costs, losses


def as_row(problem: ExactProblem, assignment: Mapping[str, int]) -> IntArray:
    """Return an assignment as a row in the order of `problem.options`.

    Raises:
        ConfigError: If a unit is missing or an option does not exist.
    """
    for unit, count in problem.options.items():
        if unit not in assignment:
            raise ConfigError(f"the assignment lacks unit {unit!r}")
        if not 0 <= assignment[unit] < count:
            raise ConfigError(f"unit {unit!r} has options 0..{count - 1}, got {assignment[unit]}")
    return np.array([assignment[unit] for unit in problem.options], dtype=np.int64)


def as_points(problem: ExactProblem, assignments: IntArray) -> FrontPoints:
    """Return one point per row of `assignments`, evaluated on the problem's tables."""
    return FrontPoints(problem.options, *evaluate(problem, assignments), assignments)


def factors_of(problem: ExactProblem) -> list[tuple[tuple[str, ...], FloatArray, FloatArray]]:
    """Return every table of the problem as (scope, cost, loss); units without any get a zero table."""
    tables: dict[tuple[str, ...], tuple[FloatArray, FloatArray]] = {
        (unit,): (np.zeros(count), np.zeros(count)) for unit, count in problem.options.items()
    }
    additions = [(term.units, term.table, 0) for term in problem.costs]
    additions += [((unit,), loss, 1) for unit, loss in problem.losses.items()]
    additions += [(term.units, term.table, 1) for term in problem.loss_terms]
    for units, table, objective in additions:
        shape = tuple(problem.options[unit] for unit in units)
        pair = tables.setdefault(units, (np.zeros(shape), np.zeros(shape)))
        pair[objective][...] += table
    return [(units, cost, loss) for units, (cost, loss) in tables.items()]


def walk_between(problem: ExactProblem, assignments: IntArray) -> list[IntArray]:
    """Return the assignments met when walking from each to the next, one unit at a time, best rate first."""
    pairs = [(start, np.flatnonzero(start != end), end) for start, end in itertools.pairwise(assignments)]
    # All single changes of all pairs are priced at once, each pair's start behind its changes.
    singles = []
    for start, changed, end in pairs:
        single = np.tile(start, (len(changed) + 1, 1))
        single[np.arange(len(changed)), changed] = end[changed]
        singles.append(single)
    if not singles:
        return []
    costs, losses = evaluate(problem, np.concatenate(singles))
    stops = np.cumsum([len(single) for single in singles]) - 1
    paths = []
    for (start, changed, end), stop in zip(pairs, stops.tolist(), strict=True):
        own = slice(stop - len(changed), stop)
        rate = np.arctan2(losses[own] - losses[stop], costs[own] - costs[stop])
        ordered = changed[np.argsort(rate, kind="stable")]
        # Step k has the first k + 1 changes made.
        made = np.tri(len(ordered), dtype=bool)
        walk = np.tile(start, (len(ordered), 1))
        walk[:, ordered] = np.where(made, end[ordered], start[ordered])
        paths.append(walk)
    return paths


def _lookup(term: CostTerm, assignments: IntArray, column: Mapping[str, int]) -> FloatArray:
    table = np.asarray(term.table, dtype=np.float64)
    values: FloatArray = table[tuple(assignments[:, column[unit]] for unit in term.units)]
    return values


def _check(options: Mapping[str, int], units: tuple[str, ...], table: FloatArray, kind: str) -> None:
    for unit in units:
        if unit not in options:
            raise ConfigError(f"{kind} term: {unknown_name('unit', unit, options)}")
    if len(set(units)) != len(units):
        raise ConfigError(f"{kind} term over {units} names a unit twice")
    shape = tuple(options[unit] for unit in units)
    if np.shape(table) != shape:
        raise ConfigError(f"{kind} term over {units} must have shape {shape}, got {np.shape(table)}")
    if not np.isfinite(table).all():
        raise ConfigError(f"{kind} term over {units} has entries that are not finite")
