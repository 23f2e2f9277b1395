"""Variable elimination on the factor graph: for one objective (with a bound) and for Pareto sets.

Bucket elimination (Dechter 1999, "Bucket elimination: a unifying framework for reasoning") joins all tables
that mention a unit, minimises the unit out, and goes on with the message over its neighbours. Units that
touch many terms (residual streams) are eliminated last, so that conditioning on them needs no code.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paretopress.search.bounds import BoundSet, Scoped
from paretopress.search.factors import ExactProblem, FloatArray, factors_of
from paretopress.search.pareto_sets import Grid, SetTable, leaf, product, project

# Sets whose product has at most this many entries are merged before they meet a larger one.
SMALL_PRODUCT = 256


@dataclass(frozen=True, eq=False)
class Factor:
    """A table over `scope`: the objective to minimise, and one that breaks its ties."""

    scope: tuple[str, ...]
    first: FloatArray
    second: FloatArray


def elimination_order(
    options: Mapping[str, int], scopes: Iterable[Sequence[str]]
) -> tuple[list[str], list[int]]:
    """Return a greedy min-weight order and the cells of the table that each step joins.

    Each step eliminates the unit whose joined table is smallest (Kjaerulff 1990's min-weight heuristic); of
    equal ones the unit in fewest tables, so that the sets of many tables meet late.
    """
    scopes = list(scopes)
    tables = Counter(unit for scope in scopes for unit in scope)
    neighbours: dict[str, set[str]] = {unit: set() for unit in options}
    for scope in scopes:
        for unit in scope:
            neighbours[unit].update(other for other in scope if other != unit)
    size = {unit: _cells(options, unit, near) for unit, near in neighbours.items()}
    order: list[str] = []
    cells: list[int] = []
    while size:
        unit = min(size, key=lambda name: (size[name], tables[name]))
        cells.append(size.pop(unit))
        order.append(unit)
        near = neighbours.pop(unit)
        for other in near:
            neighbours[other] |= near
            neighbours[other] -= {other, unit}
        for other in near:
            size[other] = _cells(options, other, neighbours[other])
    return order, cells


def eliminate_sets(
    problem: ExactProblem, order: Sequence[str], grid: Grid, bounds: BoundSet | None
) -> SetTable:
    """Return the Pareto set of the whole problem as a table without units, the constant cost not included.

    Args:
        problem: The problem.
        order: Elimination order of all units.
        grid: How to round; its ceiling bounds the total cost without the problem's constant.
        bounds: Drops what adds nothing to its known assignments; the result may then be empty.
    """
    tables = [leaf(scope, cost, loss) for scope, cost, loss in factors_of(problem)]
    for unit in order:
        local = replace(grid, ceiling=grid.ceiling - sum(table.base for table in tables))
        joined = _join_sets([table for table in tables if unit in table.scope], local, unit, bounds)
        tables = [table for table in tables if unit not in table.scope]
        message = project(joined, unit, local)
        if bounds is not None:
            message = bounds.prune(message, unit, ())
        if len(message.low) == 0:
            return message
        tables.append(message)
    local = replace(grid, ceiling=grid.ceiling - sum(table.base for table in tables))
    return _join_sets(tables, local, None, bounds)


def minimise(
    options: Mapping[str, int], factors: Sequence[Factor], order: Sequence[str], max_table: int
) -> tuple[float, dict[str, int]]:
    """Minimise the sum of `first`, ties by the sum of `second`.

    Tables that would exceed `max_table` cells are split into mini-buckets (Dechter and Rish 2003), with the
    eliminated unit's minima matched across them (Ihler et al. 2012): the value is then a lower bound and the
    assignment a heuristic one. Without a split both are exact.

    Returns:
        The minimum of the first objective (or the lower bound) and an assignment.
    """
    remaining = list(factors)
    history: list[tuple[str, list[Factor]]] = []
    value = 0.0
    for unit in order:
        groups = _mini_buckets(options, [f for f in remaining if unit in f.scope], max_table)
        remaining = [f for f in remaining if unit not in f.scope]
        joined = _match_minima([_join(options, group, unit) for group in groups])
        history.append((unit, joined))
        for factor in joined:
            message = _minimise_last(factor)
            if message.scope:
                remaining.append(message)
            else:
                value += float(message.first)
    assignment: dict[str, int] = {}
    for unit, joined in reversed(history):
        parts = [tuple(assignment[name] for name in factor.scope[:-1]) for factor in joined]
        first = np.sum([f.first[at] for f, at in zip(joined, parts, strict=True)], axis=0)
        second = np.sum([f.second[at] for f, at in zip(joined, parts, strict=True)], axis=0)
        assignment[unit] = int(np.lexsort((second, first))[0])
    return value, assignment


def _cells(options: Mapping[str, int], unit: str, neighbours: Iterable[str]) -> int:
    return options[unit] * math.prod(options[other] for other in neighbours)


def _join_sets(tables: list[SetTable], grid: Grid, unit: str | None, bounds: BoundSet | None) -> SetTable:
    """Return the product of all tables: small sets together first, then one by one onto the largest.

    A product costs the smaller set times the grid, so two large sets should never meet.
    """
    pending = list(tables)
    minima: dict[SetTable, Scoped] = {}
    while len(pending) > 1:
        pending.sort(key=_density)
        small = pending.pop(0)
        near = _density(small) * _density(pending[0]) <= SMALL_PRODUCT
        joined = product(pending.pop(0 if near else len(pending) - 1), small, grid)
        if bounds is not None and bounds.worthwhile(joined):
            for table in pending:
                if table not in minima:
                    minima[table] = bounds.minima_of(table)
            joined = bounds.prune(joined, unit, [minima[table] for table in pending])
        pending.append(joined)
    return pending[0]


def _density(table: SetTable) -> float:
    return len(table.low) / table.cells


def _mini_buckets(options: Mapping[str, int], bucket: list[Factor], limit: int) -> list[list[Factor]]:
    """Partition factors, largest first, so that each part joins to at most `limit` cells."""
    groups: list[tuple[set[str], list[Factor]]] = []
    for factor in sorted(bucket, key=lambda f: -f.first.size):
        for scope, members in groups:
            if math.prod(options[name] for name in scope | set(factor.scope)) <= limit:
                scope |= set(factor.scope)
                members.append(factor)
                break
        else:
            groups.append((set(factor.scope), [factor]))
    return [members for _, members in groups]


def _join(options: Mapping[str, int], group: list[Factor], last: str) -> Factor:
    """Sum factors over the union of their scopes, with `last` as the last axis."""
    scope = [name for name in dict.fromkeys(n for f in group for n in f.scope) if name != last] + [last]
    shape = tuple(options[name] for name in scope)
    first, second = np.zeros(shape), np.zeros(shape)
    for factor in group:
        axes = sorted(range(len(factor.scope)), key=lambda axis: scope.index(factor.scope[axis]))
        aligned = tuple(options[name] if name in factor.scope else 1 for name in scope)
        first += factor.first.transpose(axes).reshape(aligned)
        second += factor.second.transpose(axes).reshape(aligned)
    return Factor(tuple(scope), first, second)


def _match_minima(joined: list[Factor]) -> list[Factor]:
    """Shift cost between mini-buckets so that each option of the last unit has the same minimum in all."""
    if len(joined) <= 1:
        return joined
    minima = [factor.first.min(axis=tuple(range(factor.first.ndim - 1))) for factor in joined]
    mean = np.mean(minima, axis=0)
    return [replace(f, first=f.first + (mean - low)) for f, low in zip(joined, minima, strict=True)]


def _minimise_last(factor: Factor) -> Factor:
    first = factor.first.min(axis=-1)
    tied = np.where(factor.first > first[..., None], np.inf, factor.second)
    return Factor(factor.scope[:-1], first, tied.min(axis=-1))
