"""What operators do to single dimensions: take a part of it, divide it, merge several into one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from paretopress.spaces.coupling_groups import MOST_REPEATS, Axis, GroupTable, Segment
from paretopress.spaces.kernels import product


def unify(table: GroupTable, first: Axis, second: Axis, reason: str) -> Axis:
    """The common axis of two dimensions of equal size, with groups joined, or frozen where they cannot be."""
    if first is None or second is None:
        table.freeze(first, reason)
        table.freeze(second, reason)
        return first if second is None else second
    table.unify(first, second, reason)
    return first


def part(table: GroupTable, axis: Axis, start: int, stop: int, reason: str) -> Axis:
    """The axis of elements `start` to `stop` of a dimension; frozen where a channel would be divided."""
    if axis is None or stop <= start:
        return None
    for place in (start, stop):
        if repeats(axis) > 1 or not _cut(table, axis, place):
            table.freeze(axis, f"{reason} divides channels that belong together")
            return None
    taken, offset = [], 0
    for segment in table.resolve(axis):
        if start <= offset and offset + segment.length <= stop:
            taken.append(segment)
        offset += segment.length
    return tuple(taken)


def repeats(axis: tuple[Segment, ...]) -> int:
    """How often a whole axis repeats because the batch was merged with it."""
    return axis[0].outer


def repeated(axis: Axis, count: int) -> Axis:
    """An axis that repeats `count` times behind the batch, in place of as often as it did."""
    return None if axis is None else tuple(replace(segment, outer=count) for segment in axis)


def _cut(table: GroupTable, axis: tuple[Segment, ...], place: int) -> bool:
    """Make `place` a border between segments; False where it lies inside a channel."""
    for _ in range(_most_steps(axis)):
        offset = 0
        for segment in table.resolve(axis):
            if offset >= place:
                return True
            if offset + segment.length > place:
                if (place - offset) % segment.inner:
                    return False
                table.cut(segment.group, (place - offset) // segment.inner)
                break
            offset += segment.length
        else:
            return True
    return False


def divide(table: GroupTable, axis: Axis, sizes: Sequence[int], reason: str) -> list[Axis]:
    """The axes of the dimensions that one dimension is divided into by a view."""
    if axis is None or len(sizes) == 1:
        return [axis, *(None,) * (len(sizes) - 1)]
    lead, trail = sizes[0], product(tuple(sizes[1:]))
    if (outer := repeats(axis)) > 1:
        if outer % lead:
            table.freeze(axis, f"{reason} divides the batch and what was merged with it")
            return [None] * len(sizes)
        return [None, *divide(table, repeated(axis, outer // lead), sizes[1:], reason)]
    if lead == 1:
        return [None, *divide(table, axis, sizes[1:], reason)]
    if trail == 1:
        return [axis, *(None,) * (len(sizes) - 1)]
    for _ in range(_most_steps(axis)):
        if (factors := _factors(table, axis, trail)) is None:
            break
        leads, trails = factors
        if not leads:   # groups had to be redefined first
            continue
        return [_joined(table, leads, reason), *divide(table, _common(table, trails, reason), sizes[1:], reason)]
    table.freeze(axis, f"{reason} divides channels that belong together")
    return [None] * len(sizes)


_Pieces = list[tuple[Axis, int]]   # axes with the lengths that they stand for


def _most_steps(axis: tuple[Segment, ...]) -> int:
    """Far more redefinitions than the groups of an axis take, so that none can go on for ever."""
    return 8 * len(axis) + 64


def _factors(table: GroupTable, axis: tuple[Segment, ...], trail: int) -> tuple[_Pieces, list[Axis]] | None:
    """Leading and trailing factor of every segment: none where groups had to be redefined first, None for ever."""
    leads: _Pieces = []
    trails: list[Axis] = []
    for segment in table.resolve(axis):
        if segment.length % trail:
            return None
        count = segment.length // trail
        if segment.inner % trail == 0:
            leads.append(((Segment(segment.group, segment.size, segment.inner // trail),), count))
            trails.append(None)
        elif trail % segment.inner == 0:
            if count == 1:
                leads.append((None, 1))
                trails.append((segment,))
                continue
            factors = table.factor(segment.group, count, trail // segment.inner)
            if factors is None:
                return [], []
            leads.append(((factors[0],), count))
            trails.append((Segment(factors[1].group, factors[1].size, segment.inner),))
        else:
            common = math.lcm(segment.inner, trail)
            if segment.length % common:
                return None
            table.coarsen(segment.group, common // segment.inner)
            return [], []
    return leads, trails


def _joined(table: GroupTable, pieces: _Pieces, reason: str) -> Axis:
    """Axes one behind the other; those without channels are frozen segments among those that have some."""
    if all(axis is None for axis, _ in pieces):
        return None
    segments: list[Segment] = []
    for axis, length in pieces:
        segments += axis if axis is not None else (table.new(length, f"{reason} fixes this part's size"),)
    return tuple(segments)


def _common(table: GroupTable, axes: Sequence[Axis], reason: str) -> Axis:
    common = axes[0]
    for axis in axes[1:]:
        if axis is not None or common is not None:
            common = unify(table, common, axis, f"{reason} makes dimensions of parts that differ")
    return common


def merge(table: GroupTable, axes: Sequence[Axis], sizes: Sequence[int], reason: str) -> Axis:
    """The axis of several dimensions, of some sizes, merged into one."""
    merged, size = axes[0], sizes[0]
    for axis, length in zip(axes[1:], sizes[1:], strict=True):
        merged = _merge_two(table, (merged, size), (axis, length), reason)
        size *= length
    return merged


def _merge_two(table: GroupTable, first: tuple[Axis, int], second: tuple[Axis, int], reason: str) -> Axis:
    (lead, length), (trail, behind) = first, second
    if behind == 1:
        return lead
    if length == 1:
        return trail
    for axis in (lead, trail):
        if axis is not None and repeats(axis) > 1:
            table.freeze(lead, f"{reason} merges what was merged with the batch once more")
            table.freeze(trail, f"{reason} merges what was merged with the batch once more")
            return None
    if trail is None:
        return None if lead is None else tuple(Segment(s.group, s.size, s.inner * behind) for s in lead)
    if lead is not None:
        return (table.product(lead, trail),)
    if length * len(trail) > MOST_REPEATS:
        table.freeze(trail, f"{reason} merges it behind another dimension")
        return None
    return trail * length
