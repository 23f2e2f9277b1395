"""Problems with some choices taken away: options that are not allowed, and units that must choose alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paretopress.search.factors import (
    CostTerm,
    ExactProblem,
    FloatArray,
    FrontPoints,
    IntArray,
)
from paretopress.spaces.errors import ConfigError, unknown_name


@dataclass(frozen=True, eq=False)
class Restricted:
    """A smaller problem, and how its assignments become those of the whole one.

    Attributes:
        problem: The smaller problem; of units that choose alike the first one is left.
        options: Numbers of the options that are left of every unit that is.
        stands_in: Every unit of the whole problem to the one that is left of its group.
        restricts: Whether anything was taken away.
    """

    problem: ExactProblem
    options: Mapping[str, IntArray]
    stands_in: Mapping[str, str]
    restricts: bool = True

    def lifted(self, points: FrontPoints) -> FrontPoints:
        """Return points of the smaller problem as points of the whole one."""
        if not self.restricts:
            return points
        place = {unit: number for number, unit in enumerate(points.units)}
        rows = np.empty((len(self.stands_in), len(points)), dtype=np.int64)
        for row, left in zip(rows, self.stands_in.values(), strict=True):
            row[:] = self.options[left][points.assignments[:, place[left]]]
        return FrontPoints(self.stands_in, points.costs, points.losses, rows.T)


def restrict(
    problem: ExactProblem, allowed: Mapping[str, Sequence[int]], equal: Sequence[Sequence[str]] = ()
) -> Restricted:
    """Return a problem with only some options of some units, and with units that take the same option number.

    Args:
        problem: The problem.
        allowed: Option numbers per unit; a unit that is absent keeps all. One number pins the unit.
        equal: Groups of units that choose alike; groups with a unit in common are one group.

    Raises:
        ConfigError: An unknown unit or option, no option left, or a group whose units differ in the number of options.
    """
    for unit in (*allowed, *(name for group in equal for name in group)):
        if unit not in problem.options:
            raise ConfigError(f"restriction: {unknown_name('unit', unit, problem.options)}")
    for unit, numbers in allowed.items():
        for number in numbers:
            if not 0 <= number < problem.options[unit]:
                raise ConfigError(f"unit {unit!r} has options 0..{problem.options[unit] - 1}, got {number}")
    if not allowed and not equal:
        return Restricted(problem, {}, {}, restricts=False)
    stands_in = _leaders(problem, equal)
    options: dict[str, IntArray] = {}
    for unit, leader in stands_in.items():
        own = np.unique(np.array(list(allowed.get(unit, range(problem.options[unit]))), dtype=np.int64))
        options[leader] = np.intersect1d(options[leader], own) if leader in options else own
        if not len(options[leader]):
            raise ConfigError(f"unit {unit!r}: no option is left that it may take")
    if all(len(options.get(unit, ())) == count for unit, count in problem.options.items()):
        return Restricted(problem, options, stands_in, restricts=False)
    losses: dict[str, FloatArray] = {}
    for unit, loss in problem.losses.items():
        leader = stands_in[unit]
        losses[leader] = losses.get(leader, 0.0) + np.asarray(loss)[options[leader]]
    smaller = ExactProblem(
        {unit: len(numbers) for unit, numbers in options.items()}, losses,
        tuple(_term(term, options, stands_in) for term in problem.costs),
        tuple(_term(term, options, stands_in) for term in problem.loss_terms), problem.constant_cost,
    )
    return Restricted(smaller, options, stands_in)


def _leaders(problem: ExactProblem, equal: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return per unit the first unit, in the order of the problem, of those it chooses alike with."""
    leader = {unit: unit for unit in problem.options}
    rank = {unit: place for place, unit in enumerate(problem.options)}
    for group in equal:
        if not group:
            continue
        sizes = {problem.options[unit] for unit in group}
        if len(sizes) > 1:
            counts = ", ".join(f"{unit!r} {problem.options[unit]}" for unit in group)
            raise ConfigError(f"units that choose alike need the same number of options, got {counts}")
        joined = {leader[unit] for unit in group}
        first = min(joined, key=rank.__getitem__)
        leader = {unit: first if own in joined else own for unit, own in leader.items()}
    return leader


def _term(term: CostTerm, options: Mapping[str, IntArray], stands_in: Mapping[str, str]) -> CostTerm:
    """Return a term over what is left of its units: slices of their options, diagonals of those that choose alike."""
    units = tuple(dict.fromkeys(stands_in[unit] for unit in term.units))
    index = []
    for unit in term.units:
        axis = units.index(stands_in[unit])
        shape = [1] * len(units)
        shape[axis] = -1
        index.append(options[units[axis]].reshape(shape))
    return CostTerm(units, np.asarray(term.table, dtype=np.float64)[tuple(index)])
