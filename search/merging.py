"""The whole front of a problem whose every table depends on one unit: Pareto sets of groups, merged in pairs.

The excess of a partial assignment at a multiplier is its `loss + multiplier * cost` over the least one of its units.
Excesses are at least 0 and add up over groups of units. A group's windows are the ranges of its cost in which one of
the multipliers, which fall, leaves least excess. Below the staircase of what is known, the excess at the multiplier
of a window is at most that of the corners in that window, its slack: the triangles of the two-phase method (Ulungu and
Teghem 1995, "The two phases method: an efficient procedure to solve bi-objective combinatorial optimization problems").
So a partial assignment matters only where some excess of it is within the slack there, and two groups are merged window
by window from what is left. Completed by the best of all other units, it is also a known assignment, which lowers the
staircase for the next merge. Nothing is rounded, so that the front is exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paretopress.search.factors import ExactProblem, FloatArray, IntArray, factors_of
from paretopress.search.separable import Column, column_of, hull_of

MULTIPLIERS = 256       # at most, of the hulls' slopes
FEWEST = 32             # of them for the smallest groups
CLOSEST = 1.0 - 1e-6    # nearer multipliers would leave the edges of their windows to rounding errors
CELLS = 64              # of a window, for the last look at the staircase
MOST_PAIRS = 1 << 22    # that one level of merges may look at
NOISE = 1e-10           # of a weighted sum: a looser slack only keeps more
DENOMINATORS = 64       # by which the least cost may have to be divided to give the common unit of all
EXACT_INTEGER = 2.0**40


@dataclass(frozen=True, eq=False)
class _Sets:
    """Pareto sets of groups, one after another, each by rising cost and falling loss.

    Attributes:
        starts: Shape `(groups + 1,)`, where each set begins.
        cost, loss: Per entry.
        places: Where in their columns the units of its group are, per entry; of no meaning beyond the last unit.
    """

    starts: IntArray
    cost: FloatArray
    loss: FloatArray
    places: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class _Optima:
    """What minimises `loss + multiplier * cost` in each group.

    Attributes:
        multipliers: Shape `(k,)`, falling.
        cost, loss: Of the minimiser, shape `(groups, k)`.
    """

    multipliers: FloatArray
    cost: FloatArray
    loss: FloatArray

    @property
    def least(self) -> FloatArray:
        """The minima, shape `(groups, k)`."""
        return self.loss + self.multipliers * self.cost

    @property
    def edges(self) -> FloatArray:
        """Costs between neighbouring windows, rising: where two multipliers' excesses are equal, `(groups, k - 1)`."""
        least = self.least
        edges = (least[:, :-1] - least[:, 1:]) / (self.multipliers[:-1] - self.multipliers[1:])
        within: FloatArray = np.clip(np.maximum.accumulate(edges, axis=1), self.cost[:, :1], self.cost[:, -1:])
        return within

    def merged(self) -> _Optima:
        """Return the optima of pairs of neighbouring groups; a last one without a neighbour stays."""
        paired = len(self.cost) // 2 * 2
        cost, loss = (np.concatenate([part[0:paired:2] + part[1:paired:2], part[paired:]])
                      for part in (self.cost, self.loss))
        return replace(self, cost=cost, loss=loss)

    def whole(self) -> _Optima:
        """Return the optima of all groups together."""
        return replace(self, cost=self.cost.sum(axis=0)[None], loss=self.loss.sum(axis=0)[None])

    def every(self, stride: int) -> _Optima:
        """Return the optima for some of the multipliers."""
        return _Optima(self.multipliers[::stride], self.cost[:, ::stride], self.loss[:, ::stride])


@dataclass(frozen=True, eq=False)
class _Staircase:
    """Cost and loss of the best known assignments of the whole, by rising cost and falling loss."""

    cost: FloatArray
    loss: FloatArray

    @classmethod
    def of(cls, cost: FloatArray, loss: FloatArray) -> _Staircase:
        kept = _undominated(cost, loss)
        return cls(cost[kept], loss[kept])

    def with_points(self, cost: FloatArray, loss: FloatArray) -> _Staircase:
        return _Staircase.of(np.concatenate([self.cost, cost]), np.concatenate([self.loss, loss]))

    def slack(self, whole: _Optima) -> FloatArray:
        """Return the largest excess below the staircase in each window of the whole, shape `(k,)`."""
        multipliers, least, edges = whole.multipliers, whole.least[0], whole.edges[0]
        # Corners lie at the cost of one step and the loss of the one before; edges of windows cut steps.
        before = np.searchsorted(self.cost, edges, side="left") - 1
        window = np.append(np.searchsorted(edges, self.cost[1:], side="left"), np.arange(len(edges)))
        corner_cost = np.append(self.cost[1:], edges)
        corner_loss = np.append(self.loss[:-1], np.where(before >= 0, self.loss[before], -np.inf))
        slack = np.full(len(multipliers), -np.inf)
        np.maximum.at(slack, window, corner_loss + multipliers[window] * corner_cost - least[window])
        slack += NOISE * (self.loss[0] + multipliers * self.cost[-1])
        return slack

    def below(self, cost: FloatArray) -> FloatArray:
        """Return the known loss at no more than each cost, infinity where there is none."""
        place = np.searchsorted(self.cost, cost, side="right") - 1
        return np.where(place >= 0, self.loss[place], np.inf)


@dataclass(frozen=True, eq=False)
class _Members:
    """Entries on one side of the merges of a level that matter at a multiplier.

    Attributes:
        entry: Their numbers.
        run: Number of the multiplier times the number of merges, plus number of the merge; rising.
        excess: At that multiplier. Costs rise within a run.
    """

    entry: IntArray
    run: IntArray
    excess: FloatArray

    def within(self, allowed: FloatArray) -> _Members:
        """Return those of no more excess than is allowed, shape `(pairs, k)`."""
        kept = np.flatnonzero(self.excess <= allowed.T.ravel()[self.run])
        return _Members(self.entry[kept], self.run[kept], self.excess[kept])


def merged_front(problem: ExactProblem, most: int) -> IntArray | None:
    """Return the whole front of a separable problem by rising cost, shape `(n, units)`; None where it is too long.

    Costs that are multiples of one unit but for rounding errors count as such: their ties are ties.

    Args:
        problem: The problem, with at least one unit.
        most: Entries that a set may have.
    """
    whole = [column_of(cost, loss) for _, cost, loss in factors_of(problem)]
    moving = [number for number, column in enumerate(whole) if len(column.cost) > 1]
    found = _places([whole[number] for number in moving], most) if moving else np.zeros((1, 0), dtype=np.int32)
    if found is None:
        return None
    rows = np.empty((len(whole), len(found)), dtype=np.int64)   # by units: what comes next looks them up one by one
    for row, column in zip(rows, whole, strict=True):
        row[:] = column.options[0]
    for number, place in zip(moving, found.T, strict=False):
        rows[number] = whole[number].options[place]
    return rows.T


def _places(columns: Sequence[Column], most: int) -> NDArray[np.int32] | None:
    """Return where in their columns the units are along the front, shape `(n, units or more)`."""
    starts = np.append(0, np.cumsum([len(column.cost) for column in columns]))
    cost = _on_unit(np.concatenate([column.cost - column.cost[0] for column in columns]))
    loss = np.concatenate([column.loss - column.loss[-1] for column in columns])
    places = np.concatenate([np.arange(len(column.cost), dtype=np.int32) for column in columns])
    sets = _Sets(starts, cost, loss, places[:, None])
    optima = _optima(sets)
    ends = np.array([0.0, cost[starts[1:] - 1].sum()]), np.array([loss[starts[:-1]].sum(), 0.0])
    stairs = _Staircase.of(*ends).with_points(optima.cost.sum(axis=0), optima.loss.sum(axis=0))
    while len(sets.starts) > 2:
        # Few large sets are worth more multipliers than many small ones.
        count, pairs = len(optima.multipliers), len(optima.cost) // 2
        stride = min(max(count * pairs // (2 * MULTIPLIERS), 1), max(count // FEWEST, 1))
        merged = _level(sets, optima.every(stride), stairs, most)
        if merged is None:
            return None
        sets, stairs = merged
        optima = optima.merged()
    return sets.places


def _on_unit(costs: FloatArray) -> FloatArray:
    """Return costs as multiples of their common unit where they have one but for rounding errors, else as they are."""
    distinct = np.unique(costs)[1:]
    multiples = np.multiply.outer(np.arange(1.0, DENOMINATORS + 1), distinct / distinct[0])
    whole = np.flatnonzero((np.abs(multiples - np.rint(multiples)) < 1e-3).all(axis=1))
    if not len(whole):
        return costs
    steps = np.rint(multiples[whole[0]])
    unit = float(distinct @ steps / (steps @ steps))
    if steps[-1] >= EXACT_INTEGER or np.abs(distinct - unit * steps).max() > 1e-11 * distinct[-1]:
        return costs
    whole_costs: FloatArray = np.rint(costs / unit)
    return whole_costs


def _optima(sets: _Sets) -> _Optima:
    """Return the optima of single units at the slopes of their hulls, or as many of them as are looked at."""
    hulls = [start + hull_of(sets.cost[start:stop], sets.loss[start:stop])
             for start, stop in itertools.pairwise(sets.starts.tolist())]
    slopes = [-np.diff(sets.loss[hull]) / np.diff(sets.cost[hull]) for hull in hulls]
    distinct = np.unique(np.concatenate(slopes))[::-1]
    distinct = distinct[np.append(True, distinct[1:] < CLOSEST * distinct[:-1])]
    chosen = np.linspace(0, len(distinct) - 1, min(len(distinct), MULTIPLIERS)).astype(np.int64)
    multipliers = distinct[chosen]
    best = np.stack([hull[np.searchsorted(-slope, -multipliers, side="right")]
                     for hull, slope in zip(hulls, slopes, strict=True)])
    return _Optima(multipliers, sets.cost[best], sets.loss[best])


def _level(sets: _Sets, optima: _Optima, stairs: _Staircase, most: int) -> tuple[_Sets, _Staircase] | None:
    """Merge neighbouring groups; return their sets and the staircase with what was met, None where it is too much."""
    whole, merged = optima.whole(), optima.merged()
    last = len(merged.cost) == 1
    growth = np.zeros((1, 1, 1)) if last else _growth(merged, len(optima.cost) // 2)
    slack = stairs.slack(whole)
    allowed = slack[None] if last else (slack - growth).max(axis=2)
    sides = [_members(sets, optima, allowed, side) for side in (0, 1)]
    stairs = _with_completed(stairs, sets, optima, whole, sides)
    slack = stairs.slack(whole)
    allowed = slack[None] if last else (slack - growth).max(axis=2)
    edges = whole.edges if last else merged.edges[: len(allowed)]
    found = _pairs(sets, edges, sides[0].within(allowed), sides[1].within(allowed), allowed)
    if found is None:
        return None
    left, right, run = found
    if last:
        cost, loss = sets.cost[left] + sets.cost[right], sets.loss[left] + sets.loss[right]
        kept = _on_or_below(stairs, edges[0], cost, loss, run)
        left, right, run = left[kept], right[kept], run[kept]
    result = _joined(sets, left, right, run % len(allowed), len(allowed))
    return None if np.diff(result.starts).max() > most else (result, stairs)


def _growth(optima: _Optima, pairs: int) -> FloatArray:
    """Return by how much the excess of any entry grows, at least, from the multiplier of its window to each other one.

    Shape `(pairs, k, k)`: window, other multiplier. It is linear in the cost: one end of the window has the least.
    """
    least, cost, edges = optima.least[:pairs], optima.cost[:pairs], optima.edges[:pairs]
    lower, upper = np.concatenate([cost[:, :1], edges], axis=1), np.concatenate([edges, cost[:, -1:]], axis=1)
    steeper = optima.multipliers - optima.multipliers[:, None]
    growth = np.where(steeper > 0.0, lower[:, :, None], upper[:, :, None])
    growth *= steeper
    growth += least[:, :, None]
    growth -= least[:, None, :]
    return growth


def _members(sets: _Sets, optima: _Optima, allowed: FloatArray, side: int) -> _Members:
    """Return the entries of all left (0) or right (1) groups with an excess that is allowed.

    Args:
        sets: All groups.
        optima: Of them.
        allowed: Largest excess per merge and multiplier, shape `(pairs, k)`.
        side: 0 or 1.
    """
    pairs, count = allowed.shape
    groups = np.arange(side, 2 * pairs, 2)
    least, edges = optima.least[groups], optima.edges[groups]
    # Excesses at a multiplier are least in its own window and grow away from it: a range of windows can hold members.
    excess = edges[:, None, :] * optima.multipliers[:, None]
    excess += (least[:, 1:] - optima.multipliers[1:] * edges)[:, None, :]
    inside = excess <= (least + allowed)[:, :, None]
    own, edged = np.arange(count), inside.any(axis=2)
    first = final = np.broadcast_to(own, (pairs, count))
    if count > 1:
        first = np.where(edged, np.minimum(inside.argmax(axis=2), own), own)
        final = np.where(edged, np.maximum(count - 1 - inside[:, :, ::-1].argmax(axis=2), own), own)
    bounds = np.empty((pairs, count + 1), dtype=np.int64)
    for row, edge, start, stop in zip(bounds, edges, sets.starts[groups], sets.starts[groups + 1], strict=True):
        row[0], row[-1] = start, stop
        row[1:-1] = start + np.searchsorted(sets.cost[start:stop], edge)
    begin = np.take_along_axis(bounds, first, axis=1).T.ravel()
    run, entry = _runs(begin, np.take_along_axis(bounds, final + 1, axis=1).T.ravel() - begin)
    found = sets.cost[entry] * np.repeat(optima.multipliers, pairs)[run] + sets.loss[entry] - least.T.ravel()[run]
    kept = np.flatnonzero(found <= allowed.T.ravel()[run])
    return _Members(entry[kept], run[kept], found[kept])


def _with_completed(
    stairs: _Staircase, sets: _Sets, optima: _Optima, whole: _Optima, sides: Sequence[_Members]
) -> _Staircase:
    """Return the staircase with all members, completed by what is best for the other groups at their multipliers."""
    slack, pairs = stairs.slack(whole), len(optima.cost) // 2
    costs, losses = [], []
    for side, members in enumerate(sides):
        at, pair = np.divmod(members.run, pairs)
        kept = np.flatnonzero(members.excess <= slack[at])
        entry, at, group = members.entry[kept], at[kept], 2 * pair[kept] + side
        costs.append(sets.cost[entry] + (whole.cost - optima.cost)[group, at])
        losses.append(sets.loss[entry] + (whole.loss - optima.loss)[group, at])
    return stairs.with_points(np.concatenate(costs), np.concatenate(losses))


def _pairs(
    sets: _Sets, edges: FloatArray, left: _Members, right: _Members, allowed: FloatArray
) -> tuple[IntArray, IntArray, IntArray] | None:
    """Return all pairs of members whose cost lies in the window of their multiplier and whose excess is allowed there.

    Args:
        sets: All groups.
        edges: Of the windows of the merged groups, shape `(pairs, k - 1)`.
        left: Members of one side.
        right: Of the other.
        allowed: Shape `(pairs, k)`.

    Returns:
        Entries of both sides and the runs of their members; None where there are too many to look at.
    """
    span = 2.0 * float(sets.cost.max())
    ends = np.full((len(edges), 1), span)
    lower, upper = np.concatenate([-ends, edges], axis=1), np.concatenate([edges, ends], axis=1)
    keys = right.run * span + sets.cost[right.entry]
    cost, margin = sets.cost[left.entry], 1e-13 * span * (left.run + 1)
    begin, stop = (
        np.searchsorted(keys, left.run * span + np.clip(edge.T.ravel()[left.run] - cost, 0.0, 0.75 * span) + margins)
        for edge, margins in ((lower, -margin), (upper, margin)))
    count = stop - begin
    if count.sum() > MOST_PAIRS:
        return None
    owner, place = _runs(begin, count)
    kept = np.flatnonzero(right.excess[place] <= (allowed.T.ravel()[left.run] - left.excess)[owner])
    owner = owner[kept]
    return left.entry[owner], right.entry[place[kept]], left.run[owner]


def _on_or_below(stairs: _Staircase, edges: FloatArray, cost: FloatArray, loss: FloatArray, at: IntArray) -> IntArray:
    """Return which assignments no known one beats that is cheaper by about a cell, a small part of a window.

    Args:
        stairs: What is known.
        edges: Of the windows of the whole, shape `(k - 1,)`.
        cost: Of the assignments.
        loss: Of them.
        at: The windows that their costs lie in.
    """
    lower, upper = np.append(0.0, edges), np.append(edges, stairs.cost[-1])
    width = np.maximum((upper - lower) / CELLS, 1e-12 * stairs.cost[-1])
    known = stairs.below(np.add.outer(lower, -1e-12 * stairs.cost[-1]) + np.multiply.outer(width, np.arange(CELLS)).T)
    cell = ((cost - lower[at]) / width[at]).astype(np.int64)
    np.clip(cell, 0, CELLS - 1, out=cell)
    return np.flatnonzero(loss <= known[cell, at] + 1e-12 * stairs.loss[0])


def _joined(sets: _Sets, left: IntArray, right: IntArray, pair: IntArray, pairs: int) -> _Sets:
    """Return the Pareto sets of the merged groups, and last that of a group without a neighbour."""
    cost, loss = sets.cost[left] + sets.cost[right], sets.loss[left] + sets.loss[right]
    parts = []
    for number in range(pairs):
        own = np.flatnonzero(pair == number)
        parts.append(own[_undominated(cost[own], loss[own])])
    kept = np.concatenate(parts)
    places = np.concatenate([sets.places[left[kept]], sets.places[right[kept]]], axis=1)
    lengths = [len(part) for part in parts]
    alone = slice(sets.starts[2 * pairs], sets.starts[-1])
    if alone.start < alone.stop:
        lengths.append(alone.stop - alone.start)
        places = np.concatenate([places, np.tile(sets.places[alone], (1, 2))])
    return _Sets(np.append(0, np.cumsum(lengths)), np.append(cost[kept], sets.cost[alone]),
                 np.append(loss[kept], sets.loss[alone]), places)


def _runs(begin: IntArray, count: IntArray) -> tuple[IntArray, IntArray]:
    """Return the numbers `begin[i]`, ..., `begin[i] + count[i] - 1` of all runs, behind the numbers of the runs."""
    owner = np.repeat(np.arange(len(count)), count)
    shift = begin - (np.cumsum(count) - count)
    return owner, np.arange(len(owner)) + shift[owner]


def _undominated(cost: FloatArray, loss: FloatArray) -> IntArray:
    """Return the places of the front by rising cost, one of equal points."""
    order = np.argsort(cost, kind="stable")   # the same of equal points on every processor
    falling = loss[order]
    kept = np.ones(len(order), dtype=bool)
    kept[1:] = falling[1:] < np.minimum.accumulate(falling)[:-1]
    order = order[kept]
    # Of equal costs the last one loses least.
    final = np.ones(len(order), dtype=bool)
    final[:-1] = np.diff(cost[order]) > 0.0
    return order[final]
