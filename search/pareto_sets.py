"""Tables whose entries are Pareto sets of (cost, loss): what variable elimination sends between units.

Sets are stored one after another (compressed rows): cell `i` owns entries `offsets[i]:offsets[i + 1]`, in
increasing `low` and strictly decreasing `loss`. Every entry holds the true `cost` and `loss` of one real
partial assignment, and `low`, a lower bound on the cost of every partial assignment it stands for, both less
the table's `base`. Without rounding `low == cost`. Sums add all three, so the bound stays proven
however often sets are rounded.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paretopress.search.factors import FloatArray, IntArray

# Above this many candidates a cell is merged on its own, below it cells are merged in bulk.
HEAVY = 512
# Above this many candidates a cell is thinned on the cost grid before it is sorted.
CROWDED = 2048
# Candidates expanded at once.
CHUNK = 1 << 20
# Above this many pairs a set product is rounded to the grid without trying it exactly first.
EXACT_PAIRS = 1 << 22
# Entries a table may hold; larger tables keep fewer entries per cell.
ENTRY_LIMIT = 1 << 22


@dataclass(frozen=True)
class Grid:
    """How costs are rounded.

    Attributes:
        width: Pitch of the cost grid.
        exact: All costs are multiples of the width: the grid changes nothing.
        buckets: Most entries of a set before it is rounded.
        ceiling: Entries whose lower bound exceeds this are dropped.
    """

    width: float
    exact: bool
    buckets: int
    ceiling: float

    def index(self, low: FloatArray) -> IntArray:
        """Return the grid position at or below each bound; the margin absorbs floating-point noise."""
        return np.floor(low / self.width + 1e-9).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Step:
    """The elimination of one unit, kept to trace entries back to options.

    Attributes:
        unit: The eliminated unit, None where a step only bundles pointers.
        option: Its option per entry.
        parents: Earlier steps with the entry of theirs that each entry builds on.
    """

    unit: str | None
    option: IntArray
    parents: tuple[tuple[Step, IntArray], ...]


@dataclass(frozen=True, eq=False)
class SetTable:
    """A table over `scope` (shape `shape`, C order) of Pareto sets; see the module's docstring."""

    scope: tuple[str, ...]
    shape: tuple[int, ...]
    offsets: IntArray
    low: FloatArray
    cost: FloatArray
    loss: FloatArray
    parents: tuple[tuple[Step, IntArray], ...]
    base: float = 0.0
    rounded: bool = False

    @property
    def cells(self) -> int:
        """Number of cells of the table."""
        return len(self.offsets) - 1


def leaf(scope: tuple[str, ...], cost: FloatArray, loss: FloatArray) -> SetTable:
    """Return the table with one entry per cell; `cost` and `loss` have the scope's shape."""
    base = float(cost.min())
    flat = np.ascontiguousarray(cost - base, dtype=np.float64).ravel()
    offsets = np.arange(flat.size + 1, dtype=np.int64)
    return SetTable(scope, cost.shape, offsets, flat, flat, np.ascontiguousarray(loss).ravel(), (), base)


def product(left: SetTable, right: SetTable, grid: Grid) -> SetTable:
    """Return the table over both scopes whose sets are the pruned sums of the two tables' sets."""
    sizes = dict(zip(left.scope, left.shape, strict=True)) | dict(zip(right.scope, right.shape, strict=True))
    scope, shape = tuple(sizes), tuple(sizes.values())
    cell_left, cell_right = _spread(left, sizes), _spread(right, sizes)
    count_left, count_right = np.diff(left.offsets)[cell_left], np.diff(right.offsets)[cell_right]
    pairs = count_left * count_right
    single = (count_left <= 1) | (count_right <= 1)
    heavy = np.flatnonzero((pairs > HEAVY) & ~single)
    rounded = left.rounded or right.rounded
    light = np.flatnonzero((pairs > 0) & ((pairs <= HEAVY) | single))
    parts = [
        _bulk(left, right, cells, cell_left[cells], cell_right[cells], bool(single[cells].all()))
        for cells in _chunks(light, pairs)
    ]
    for one in heavy:
        a = slice(left.offsets[cell_left[one]], left.offsets[cell_left[one] + 1])
        b = slice(right.offsets[cell_right[one]], right.offsets[cell_right[one] + 1])
        dense = grid.exact or rounded or pairs[one] > EXACT_PAIRS
        merge = _merge_on_grid if dense else _merge_exactly
        low, at_left, at_right = merge(left.low[a], left.loss[a], right.low[b], right.loss[b], grid)
        parts.append((np.full(len(low), one), low, at_left + a.start, at_right + b.start))
        rounded = rounded or (dense and not grid.exact)
    cell, low, at_left, at_right = _collect(parts, grid.ceiling)
    parents = tuple((step, entry[at_left]) for step, entry in left.parents)
    parents += tuple((step, entry[at_right]) for step, entry in right.parents)
    cost = left.cost[at_left] + right.cost[at_right]
    loss = left.loss[at_left] + right.loss[at_right]
    offsets = _offsets(cell, len(pairs))
    parents = _bundle(parents, len(low))
    base = left.base + right.base
    return _rounded_to_limit(SetTable(scope, shape, offsets, low, cost, loss, parents, base, rounded), grid)


def project(table: SetTable, unit: str, grid: Grid) -> SetTable:
    """Return the table without `unit`: each set is the pruned union over the unit's options."""
    axis = table.scope.index(unit)
    count = table.shape[axis]
    scope = table.scope[:axis] + table.scope[axis + 1 :]
    shape = table.shape[:axis] + table.shape[axis + 1 :]
    inner = int(np.prod(table.shape[axis + 1 :], dtype=np.int64))
    number = np.arange(table.cells, dtype=np.int64)
    option_of_cell = number // inner % count
    target_of_cell = number // (inner * count) * inner + number % inner
    lengths = np.diff(table.offsets)
    target = np.repeat(target_of_cell, lengths)
    option = np.repeat(option_of_cell, lengths)
    kept = _prune_cells(target, table.low, table.loss, grid.width, table.cells // count)
    step = Step(unit, option[kept], tuple((step, entry[kept]) for step, entry in table.parents))
    entry = np.arange(len(kept), dtype=np.int64)
    offsets = _offsets(target[kept], table.cells // count)
    # What every cell costs at least moves into the base: the grid only spans what can differ.
    least = float(table.low[kept].min(initial=np.inf)) if len(kept) else 0.0
    low, cost, loss = table.low[kept] - least, table.cost[kept] - least, table.loss[kept]
    base, parents = table.base + least, ((step, entry),)
    return _rounded_to_limit(
        SetTable(scope, shape, offsets, low, cost, loss, parents, base, table.rounded), grid
    )


def select(table: SetTable, entries: IntArray) -> SetTable:
    """Return the table with only some entries, given in rising order."""
    parents = tuple((step, entry[entries]) for step, entry in table.parents)
    offsets = np.searchsorted(entries, table.offsets).astype(np.int64)
    low, cost, loss = table.low[entries], table.cost[entries], table.loss[entries]
    return replace(table, offsets=offsets, low=low, cost=cost, loss=loss, parents=parents)


def trace(table: SetTable, entries: IntArray) -> dict[str, IntArray]:
    """Return the option of every eliminated unit for the given entries."""
    assignment: dict[str, IntArray] = {}
    pending = [(step, entry[entries]) for step, entry in table.parents]
    while pending:
        step, chosen = pending.pop()
        if step.unit is not None:
            assignment[step.unit] = step.option[chosen]
        pending.extend((parent, entry[chosen]) for parent, entry in step.parents)
    return assignment


def _spread(table: SetTable, sizes: dict[str, int]) -> IntArray:
    """Return, for each cell over the units of `sizes`, the cell of `table` it falls in."""
    position = {unit: axis for axis, unit in enumerate(sizes)}
    order = sorted(range(len(table.scope)), key=lambda axis: position[table.scope[axis]])
    cells = np.arange(table.cells, dtype=np.int64).reshape(table.shape).transpose(order)
    own = set(table.scope)
    aligned = cells.reshape([size if unit in own else 1 for unit, size in sizes.items()])
    return np.broadcast_to(aligned, tuple(sizes.values())).ravel()


def _chunks(cells: IntArray, pairs: IntArray) -> list[IntArray]:
    """Split cells into runs of about `CHUNK` candidates."""
    if len(cells) == 0:
        return []
    group = (np.cumsum(pairs[cells]) - 1) // CHUNK
    return np.split(cells, np.flatnonzero(np.diff(group)) + 1)


Candidates = tuple[IntArray, FloatArray, IntArray, IntArray]


def _bulk(
    left: SetTable, right: SetTable, cells: IntArray, in_left: IntArray, in_right: IntArray, single: bool
) -> Candidates:
    """Merge many small cells at once: expand all pairs, then prune within each cell."""
    count_right = np.diff(right.offsets)[in_right]
    pairs = np.diff(left.offsets)[in_left] * count_right
    owner = np.repeat(np.arange(len(cells), dtype=np.int64), pairs)
    pair = np.arange(len(owner), dtype=np.int64) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    at_left = left.offsets[in_left][owner] + pair // count_right[owner]
    at_right = right.offsets[in_right][owner] + pair % count_right[owner]
    low = left.low[at_left] + right.low[at_right]
    if not single:
        kept = _prune(owner, low, left.loss[at_left] + right.loss[at_right])
        owner, low, at_left, at_right = owner[kept], low[kept], at_left[kept], at_right[kept]
    return cells[owner], low, at_left, at_right


def _prune(cell: IntArray, low: FloatArray, loss: FloatArray) -> IntArray:
    """Return the entries on the front of their cell, sorted by cell and bound."""
    order = np.lexsort((loss, low, cell))
    falling = loss[order]
    by_loss = np.argsort(falling, kind="stable")
    rank = np.zeros(len(order), dtype=np.int64)
    rank[by_loss[1:]] = np.cumsum(np.diff(falling[by_loss]) > 0)
    # A later cell starts below everything before it, so one running minimum serves all cells.
    key = rank - cell[order] * (len(order) + 1)
    kept = np.ones(len(order), dtype=bool)
    kept[1:] = key[1:] < np.minimum.accumulate(key)[:-1]
    return order[kept]


def _prune_cells(cell: IntArray, low: FloatArray, loss: FloatArray, width: float, cells: int) -> IntArray:
    """Prune like `_prune`, thinning each crowded cell on the cost grid before it is sorted."""
    if len(cell) <= HEAVY * cells:
        return _prune(cell, low, loss)
    order = np.argsort(cell, kind="stable")
    bounds = _offsets(cell[order], cells)
    parts = []
    for start, stop in itertools.pairwise(bounds.tolist()):
        members = order[start:stop]
        parts.append(members[_prune_one(low[members], loss[members], width)])
    return np.concatenate(parts)


def _prune_one(low: FloatArray, loss: FloatArray, width: float) -> IntArray:
    """Return the front of one cell; candidates beaten by a cheaper bucket never reach the sort."""
    members = np.arange(len(low), dtype=np.int64)
    if len(low) > CROWDED:
        bucket = ((low - low.min()) / max(width, float(np.ptp(low)) / (1 << 16), 1e-300)).astype(np.int64)
        best = np.full(int(bucket.max()) + 1, np.inf)
        np.minimum.at(best, bucket, loss)
        cheaper = np.concatenate(([np.inf], np.minimum.accumulate(best)[:-1]))
        members = np.flatnonzero(loss < cheaper[bucket])
    order = members[np.lexsort((loss[members], low[members]))]
    falling = loss[order]
    kept = np.ones(len(order), dtype=bool)
    kept[1:] = falling[1:] < np.minimum.accumulate(falling)[:-1]
    return order[kept]


Merged = tuple[FloatArray, IntArray, IntArray]


def _merge_exactly(
    low_a: FloatArray, loss_a: FloatArray, low_b: FloatArray, loss_b: FloatArray, grid: Grid
) -> Merged:
    """Return the front of all pairwise sums as (low, entry of a, entry of b)."""
    low = np.add.outer(low_a, low_b).ravel()
    kept = _prune_one(low, np.add.outer(loss_a, loss_b).ravel(), grid.width)
    return low[kept], kept // len(low_b), kept % len(low_b)


def _merge_on_grid(
    low_a: FloatArray, loss_a: FloatArray, low_b: FloatArray, loss_b: FloatArray, grid: Grid
) -> Merged:
    """Return the front of all pairwise sums after rounding bounds down to the grid.

    The knapsack recursion over cost (Kellerer, Pferschy and Pisinger 2004, section 11.5): one shifted
    minimum over the whole grid per entry of the smaller set.
    """
    if len(low_a) < len(low_b):
        low, at_b, at_a = _merge_on_grid(low_b, loss_b, low_a, loss_a, grid)
        return low, at_a, at_b
    index_a, index_b = grid.index(low_a), grid.index(low_b)
    reachable = int(min(index_a[-1] + index_b[-1], grid.ceiling / grid.width + 1)) + 1
    length = max(reachable, 1)
    base = np.full(int(index_a[-1]) + 1, np.inf)
    entry = np.zeros(len(base), dtype=np.int64)
    # Losses fall along a set, so of several entries in one bucket the last, best one stays.
    base[index_a] = loss_a
    entry[index_a] = np.arange(len(index_a))
    best = np.full(length, np.inf)
    choice = np.zeros(length, dtype=np.int32)
    for position, shift in enumerate(index_b.tolist()):
        reach = min(len(base), length - shift)
        if reach <= 0:
            break
        candidate = base[:reach] + loss_b[position]
        window = best[shift : shift + reach]
        better = candidate < window
        np.copyto(window, candidate, where=better)
        np.copyto(choice[shift : shift + reach], position, where=better)
    cheaper = np.concatenate(([np.inf], np.minimum.accumulate(best)[:-1]))
    kept = np.flatnonzero(best < cheaper)
    at_b = choice[kept].astype(np.int64)
    return np.asarray(kept * grid.width, dtype=np.float64), entry[kept - index_b[at_b]], at_b


def _collect(parts: list[Candidates], ceiling: float) -> Candidates:
    """Join merged cells in cell order without what lies above the ceiling."""
    if not parts:
        empty = np.empty(0, dtype=np.int64)
        return empty, np.empty(0), empty, empty
    cell, low, at_left, at_right = (np.concatenate(column) for column in zip(*parts, strict=True))
    kept = np.flatnonzero(low <= ceiling)
    kept = kept[np.argsort(cell[kept], kind="stable")]
    return cell[kept], low[kept], at_left[kept], at_right[kept]


def _rounded_to_limit(table: SetTable, grid: Grid) -> SetTable:
    """Keep one entry per cost bucket where sets are too long; the entry inherits the bucket's bound."""
    limit = max(4, ENTRY_LIMIT // table.cells)
    if not grid.exact:
        limit = min(limit, grid.buckets)
    lengths = np.diff(table.offsets)
    if lengths.max(initial=0) <= limit or (grid.exact and len(table.low) <= ENTRY_LIMIT):
        return table
    width = max(grid.width, float(table.low.max() - table.low.min()) / limit)
    cell = np.repeat(np.arange(table.cells, dtype=np.int64), lengths)
    bucket = np.floor(table.low / width)
    first = np.ones(len(cell), dtype=bool)
    first[1:] = (cell[1:] != cell[:-1]) | (bucket[1:] != bucket[:-1])
    starts = np.flatnonzero(first)
    # Loss falls along the bucket: its last entry has the least loss, its first the least bound.
    kept = np.append(starts[1:], len(cell)) - 1
    parents = tuple((step, entry[kept]) for step, entry in table.parents)
    offsets = _offsets(cell[kept], table.cells)
    low, cost, loss = table.low[starts], table.cost[kept], table.loss[kept]
    return replace(table, offsets=offsets, low=low, cost=cost, loss=loss, parents=parents, rounded=True)


def _offsets(sorted_cell: IntArray, cells: int) -> IntArray:
    return np.searchsorted(sorted_cell, np.arange(cells + 1)).astype(np.int64)


def _bundle(parents: tuple[tuple[Step, IntArray], ...], entries: int) -> tuple[tuple[Step, IntArray], ...]:
    """Hide many pointers behind one step, so that later products carry one array instead of many."""
    if len(parents) <= 8:
        return parents
    numbers: NDArray[np.int64] = np.arange(entries, dtype=np.int64)
    return ((Step(None, numbers, parents), numbers),)
