"""Pareto geometry on plain cost arrays: fronts, hypervolume, knee, spread and crowding.

Every function minimises every objective; callers flip the sign of what they maximise.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretopress.spaces.errors import DataError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def non_dominated(costs: ArrayLike) -> BoolArray:
    """Mark the rows that no other row dominates.

    A row dominates another when it is no worse in every objective and better in one. Of exactly equal
    rows the first is kept; rows with a NaN or an infinity are never on the front.

    Args:
        costs: Shape `(n, m)`.

    Returns:
        Shape `(n,)`. O(n log n) for m <= 2, O(n * front) beyond.

    Raises:
        DataError: If `costs` is not two-dimensional.
    """
    values = _matrix(costs)
    finite = np.flatnonzero(np.isfinite(values).all(axis=1))
    mask = np.zeros(len(values), dtype=bool)
    if len(finite) == 0 or values.shape[1] == 0:
        return mask
    # Lexicographic order is stable and puts every dominating row before the rows it dominates.
    order = finite[np.lexsort(values[finite].T[::-1])]
    ordered = values[order]
    if values.shape[1] == 1:
        mask[order[0]] = True
    elif values.shape[1] == 2:
        second = ordered[:, 1]
        best_before = np.concatenate(([np.inf], np.minimum.accumulate(second)[:-1]))
        mask[order[second < best_before]] = True
    else:
        mask[order[_front_of_sorted(ordered)]] = True
    return mask


def hypervolume(costs: ArrayLike, reference: ArrayLike) -> float:
    """Return the exact volume that the rows dominate within the box bounded by `reference`.

    Two and three objectives by a sweep (Beume et al. 2009); more by the exclusive volumes of WFG, one
    objective sliced off per level (While, Bradstreet and Barone 2012, "A Fast Way of Calculating Exact
    Hypervolumes").

    Args:
        costs: Shape `(n, m)`; rows that are not finite, or not better than the reference everywhere,
            add nothing.
        reference: Shape `(m,)`, the worst corner.

    Raises:
        DataError: If the shapes disagree or the reference is not finite.
    """
    values = _matrix(costs)
    corner = np.asarray(reference, dtype=np.float64)
    if corner.shape != (values.shape[1],) or not np.isfinite(corner).all():
        wanted = f"{values.shape[1]} finite numbers"
        raise DataError(f"hypervolume: reference must be {wanted}, got {corner.tolist()}")
    inside = values[np.isfinite(values).all(axis=1) & (values < corner).all(axis=1)]
    # Distances to the reference turn the volume into one of boxes that all start at the origin.
    return _volume(corner - inside)


def knee(costs: ArrayLike) -> int:
    """Return the row that is the knee of the front of `costs`.

    The knee is the front member farthest below the hyperplane through the extreme points (the best row
    of each objective) after each objective is scaled to [0, 1] over the front: `argmax (1 - w.x) / |w|`
    with `w` solving `E w = 1` for the extreme points `E` (Das 1999, "On characterizing the 'knee' of the
    Pareto curve based on normal-boundary intersection"). Where the extreme points do not span a plane with
    positive normal, `w = 1`: the row with the lowest sum of scaled costs. Ties, such as a front of two
    points, go to the lowest sum of costs relative to the worst magnitude of each objective, then to the
    first row.

    Args:
        costs: Shape `(n, m)`; dominated and non-finite rows are ignored.

    Raises:
        DataError: If no row is finite.
    """
    values = _matrix(costs)
    members = np.flatnonzero(non_dominated(values))
    if len(members) == 0:
        raise DataError("knee: no finite point to choose from")
    front = values[members]
    scaled = _scaled(front)
    normal = _plane_normal(scaled)
    depth = (1.0 - scaled @ normal) / np.linalg.norm(normal)
    deepest = np.flatnonzero(depth >= depth.max() - 1e-12)
    worst = np.abs(front).max(axis=0)
    relative = (front[deepest] / np.where(worst > 0, worst, 1.0)).sum(axis=1)
    return int(members[deepest[np.argmin(relative)]])


def spread_subset(
    costs: ArrayLike, count: int, relative_gap: float = 0.05, keep: Sequence[int] = ()
) -> list[int]:
    """Pick at most `count` well-spread front members, greedily by added hypervolume.

    Greedy maximisation of the (submodular) hypervolume is within 1 - 1/e of the best subset (Guerreiro,
    Fonseca and Paquete 2016). Volumes use costs scaled to [0, 1] over the front and the reference 1.1.

    Args:
        costs: Shape `(n, m)`.
        count: Most members to return; `keep` is returned whole even where it is longer.
        relative_gap: Every picked member differs from every other one in at least one objective by this
            fraction of the larger magnitude of the two. Members of `keep` are exempt among themselves.
        keep: Rows that are always in the result.

    Returns:
        Row numbers, sorted by the first objective.

    Raises:
        DataError: If `keep` names a row that does not exist or is not finite.
    """
    values = _matrix(costs)
    chosen = spread_order(values, count, relative_gap, keep)
    return sorted(chosen, key=lambda row: (*values[row].tolist(), row))


def spread_order(
    costs: ArrayLike, count: int, relative_gap: float = 0.05, keep: Sequence[int] = ()
) -> list[int]:
    """Return the rows of `spread_subset` in the order in which they were picked: every prefix is well spread."""
    values = _matrix(costs)
    chosen = list(dict.fromkeys(int(row) for row in keep))
    for row in chosen:
        if not 0 <= row < len(values) or not np.isfinite(values[row]).all():
            raise DataError(f"spread_subset: keep names row {row}, not a finite row of {len(values)}")
    members = np.flatnonzero(non_dominated(values))
    if len(members):
        _grow(values, members, chosen, count, relative_gap)
    return chosen


def crowding_distance(costs: ArrayLike) -> FloatArray:
    """Return the crowding distance of each row (Deb et al. 2002, NSGA-II, section III-B).

    The sum over objectives of the gap between a row's two neighbours, divided by the objective's range.
    The first and last row of each objective have infinite distance; objectives without range add nothing.

    Args:
        costs: Shape `(n, m)`, finite, of one front.

    Returns:
        Shape `(n,)`.
    """
    values = _matrix(costs)
    distance = np.zeros(len(values))
    if len(values) == 0:
        return distance
    for column in values.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
            distance[order[[0, -1]]] = np.inf
    return distance if len(values) > 2 else np.full(len(values), np.inf)


def _matrix(costs: ArrayLike) -> FloatArray:
    values = np.asarray(costs, dtype=np.float64)
    if values.ndim != 2:
        raise DataError(f"costs must have shape (points, objectives), got {values.shape}")
    return values


def _front_of_sorted(ordered: FloatArray) -> NDArray[np.intp]:
    """Return positions of the front of lexicographically sorted rows, peeling one member at a time."""
    remaining = np.arange(len(ordered))
    front: list[int] = []
    while len(remaining):
        first = remaining[0]
        front.append(int(first))
        rest = remaining[1:]
        remaining = rest[(ordered[rest] < ordered[first]).any(axis=1)]
    return np.asarray(front, dtype=np.intp)


def _volume(boxes: FloatArray) -> float:
    """Return the volume of the union of boxes `[0, row]`, shape `(n, m)`, all entries positive."""
    boxes = boxes[non_dominated(-boxes)]
    if len(boxes) == 0:
        return 0.0
    if boxes.shape[1] == 1:
        return float(boxes.max())
    if boxes.shape[1] == 2:
        return _area(boxes)
    boxes = boxes[np.argsort(-boxes[:, -1], kind="stable")]
    if boxes.shape[1] == 3:
        return _sweep(boxes)
    total = 0.0
    for row, box in enumerate(boxes[::-1]):
        # Boxes that reach farther in the last objective, cut to this one, share its last extent.
        others = np.minimum(boxes[: len(boxes) - row - 1, :-1], box[:-1])
        total += float(box[-1]) * (float(np.prod(box[:-1])) - _volume(others))
    return total


def _area(boxes: FloatArray) -> float:
    """Return the area of the union of two-dimensional boxes at the origin that form a front."""
    ordered = boxes[np.argsort(boxes[:, 0])]
    widths = np.diff(ordered[:, 0], prepend=0.0)
    return float(widths @ ordered[:, 1])


def _sweep(boxes: FloatArray) -> float:
    """Return the volume of three-dimensional boxes sorted by falling third extent."""
    total = 0.0
    section = np.empty((0, 2))
    depths = np.append(boxes[:, 2], 0.0)
    for row in range(len(boxes)):
        section = np.vstack((section, boxes[row, :2]))
        section = section[non_dominated(-section)]
        total += _area(section) * float(depths[row] - depths[row + 1])
    return total


def _scaled(front: FloatArray) -> FloatArray:
    """Scale each objective of a front to [0, 1]; an objective without range becomes 0."""
    low = front.min(axis=0)
    span = front.max(axis=0) - low
    scaled: FloatArray = (front - low) / np.where(span > 0, span, 1.0)
    return scaled


def _plane_normal(scaled: FloatArray) -> FloatArray:
    """Return `w` with `w.x = 1` through the extreme points, or ones where they span no falling plane."""
    objectives = scaled.shape[1]
    fallback = np.ones(objectives)
    total = scaled.sum(axis=1)
    extremes = scaled[[int(np.lexsort((total, column))[0]) for column in scaled.T]]
    if np.linalg.matrix_rank(extremes, tol=1e-9) < objectives:
        return fallback
    normal = np.asarray(np.linalg.solve(extremes, fallback), dtype=np.float64)
    return normal if (normal > 1e-9).all() else fallback


def _grow(values: FloatArray, members: NDArray[np.intp], chosen: list[int], count: int, gap: float) -> None:
    """Append to `chosen` the member that adds most hypervolume until `count` or nothing fits.

    Gains only shrink as the set grows, so stale gains in a heap are upper bounds (lazy greedy, Minoux 1978).
    """
    low = values[members].min(axis=0)
    span = values[members].max(axis=0) - low
    boxes = 1.1 - (values - low) / np.where(span > 0, span, 1.0)
    covered = _positive_volume(boxes, chosen)
    heap = [(-float(np.prod(boxes[row])), int(row), -1) for row in members if row not in chosen]
    heapq.heapify(heap)
    while heap and len(chosen) < count:
        stale, row, size = heapq.heappop(heap)
        if not _differs(values[row], values[chosen], gap):
            continue
        if size == len(chosen):
            chosen.append(row)
            covered -= stale
        else:
            gain = _positive_volume(boxes, [*chosen, row]) - covered
            heapq.heappush(heap, (-gain, row, len(chosen)))


def _positive_volume(boxes: FloatArray, rows: Iterable[int]) -> float:
    picked = boxes[list(rows)]
    return _volume(picked[(picked > 0).all(axis=1)])


def _differs(point: FloatArray, others: FloatArray, gap: float) -> bool:
    """Tell whether `point` is at least `gap` away from each other point in some objective."""
    if len(others) == 0:
        return True
    size = np.maximum(np.abs(point), np.abs(others))
    apart = (np.abs(point - others) >= gap * size) & (point != others)
    return bool(apart.any(axis=1).all())
