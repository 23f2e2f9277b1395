"""Groups of channels while they are being found: atoms, groups defined by others, and undecided products.

A group is one of three things, and only ever moves down this list:

- an *atom*: channels that nothing has divided yet;
- a *product* `(lead, trail)`: a dimension that a view divided into `lead x trail` (heads and head size, or
  the groups and the channels of a grouped convolution). Either factor could be pruned, never both, and
  which one stays open until the whole graph has been seen: most often one of them gets frozen on the way;
- *defined* by an axis of other groups: joined with another group, cut in two, made coarser, or a decided
  product. Definitions are followed and shortened like the parents of a union-find.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

MOST_REPEATS = 64   # a longer run of equal segments along one dimension is frozen instead
_REJECTED = "the other factor of its dimension is pruned instead"


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of one group's channels along a dimension.

    Attributes:
        group: Name of the channel group.
        size: Number of channels.
        inner: Consecutive elements per channel: flattening `(c, h, w)` gives `inner = h * w`, a group of
            attention heads has `inner = head size` along the features of its linear layers.
        outer: How often the whole run repeats, where the batch was merged with it: `(n * heads, ...)`.
    """

    group: str
    size: int
    inner: int = 1
    outer: int = 1

    @property
    def length(self) -> int:
        """Elements along the dimension."""
        return self.size * self.inner * self.outer


Axis = tuple[Segment, ...] | None


@dataclass(slots=True)
class _Group:
    size: int
    order: int
    frozen: str = ""
    parts: tuple[Segment, ...] | None = None
    factors: tuple[tuple[Segment, ...], tuple[Segment, ...]] | None = None
    weak: bool = False      # prunable, but the other factor of a product is the better choice
    chosen: bool = False


class GroupTable:
    """All groups of one analysis."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}

    def new(self, size: int, reason: str = "") -> Segment:
        """Start an atom of `size` channels, frozen where `reason` is given."""
        name = f"{len(self._groups)}"
        self._groups[name] = _Group(size, len(self._groups), reason)
        return Segment(name, size)

    def frozen(self, name: str) -> str:
        """Why a group is frozen, `""` where it is not."""
        return self._groups[name].frozen

    def resolve(self, axis: Iterable[Segment]) -> tuple[Segment, ...]:
        """The same axis in terms of atoms and products."""
        found: list[Segment] = []
        for segment in axis:
            group = self._groups[segment.group]
            if group.parts is None:
                found.append(segment)
                continue
            group.parts = self.resolve(group.parts)
            inner, outer = segment.inner, segment.outer
            if inner == outer == 1:   # nearly always: parts never repeat themselves
                found += group.parts
            else:
                found += [Segment(part.group, part.size, part.inner * inner, outer) for part in group.parts]
        return tuple(found)

    def freeze(self, axis: Axis, reason: str) -> None:
        """Freeze every group of an axis; the first reason stays."""
        for segment in self.resolve(axis or ()):
            group = self._groups[segment.group]
            group.frozen = group.frozen or reason
            for factor in group.factors or ():
                self.freeze(factor, reason)

    def weaken(self, axis: Axis) -> None:
        """Say that the groups of an axis should rather not be the factor of a product that is pruned."""
        for segment in self.resolve(axis or ()):
            group = self._groups[segment.group]
            group.weak = True
            for factor in group.factors or ():
                self.weaken(factor)

    def as_group(self, axis: tuple[Segment, ...]) -> Segment:
        """One group that stands for a whole axis."""
        axis = self.resolve(axis)
        if len(axis) == 1 and axis[0].inner == 1:
            return axis[0]
        whole = self.new(sum(segment.length for segment in axis))
        self._groups[whole.group].parts = axis
        return whole

    def product(self, lead: tuple[Segment, ...], trail: tuple[Segment, ...]) -> Segment:
        """The group of a dimension made of two merged ones."""
        lead, trail = (self.as_group(lead),), (self.as_group(trail),)
        whole = self.new(lead[0].size * trail[0].size)
        self._groups[whole.group].factors = (lead, trail)
        return whole

    def factor(self, name: str, lead: int, trail: int) -> tuple[Segment, Segment] | None:
        """Divide an atom or product into `lead x trail`; None where that had to redefine it first."""
        group = self._groups[name]
        if group.factors is None:
            group.factors = (self.new(lead, group.frozen),), (self.new(trail, group.frozen),)
            for factor in group.factors if group.weak else ():
                self.weaken(factor)
        first, second = group.factors
        if (first[0].size, second[0].size) == (lead, trail):
            return first[0], second[0]
        self._decide(name, 0)
        return None

    def cut(self, name: str, place: int) -> None:
        """Divide a group before channel `place`; a product is only decided, which the caller looks at again."""
        group = self._groups[name]
        if group.factors is not None:
            self._decide(name, 0)
            return
        self._define(name, (self.new(place, group.frozen), self.new(group.size - place, group.frozen)))

    def coarsen(self, name: str, factor: int) -> None:
        """Make `factor` channels one; a product is only decided, which the caller looks at again."""
        if factor == 1:
            return
        group = self._groups[name]
        if group.factors is not None:
            self._decide(name, 0)
            return
        coarse = self.new(group.size // factor, group.frozen)
        self._define(name, (Segment(coarse.group, coarse.size, factor),))

    def join(self, first: str, second: str) -> None:
        """Make two atoms or products of equal size one; products of other factors are only decided."""
        one, other = self._groups[first], self._groups[second]
        if first == second:
            return
        if one.factors is not None and other.factors is not None:
            sizes = [tuple(factor[0].size for factor in group.factors or ()) for group in (one, other)]
            if sizes[0] != sizes[1]:
                self._decide(first, 0)
                self._decide(second, 0)
                return
            for mine, its in zip(one.factors, other.factors, strict=True):
                self.unify(mine, its, "")
        atom_first = (one.factors is None, one.order) > (other.factors is None, other.order)
        gone, stays = (first, second) if atom_first else (second, first)
        if self._groups[gone].parts is None and self._groups[stays].parts is None:
            self._define(gone, (Segment(stays, one.size),))

    def unify(self, first: tuple[Segment, ...], second: tuple[Segment, ...], reason: str) -> bool:
        """Join two axes of equal length element by element, dividing groups where they need it.

        Returns:
            Whether it was possible; where not, both are frozen with the reason.
        """
        outer = {segment.outer for segment in (*first, *second)}
        if len(outer) == 1 and outer != {1}:   # the whole axis repeats on both sides
            first, second = (tuple(replace(s, outer=1) for s in axis) for axis in (first, second))
        one, other = list(reversed(first)), list(reversed(second))   # what is left, its next segment last
        for _ in range(8 * (len(first) + len(second)) + 64 if len(outer) == 1 else 0):
            while self._next(one) == self._next(other):
                if not one or not other:
                    return True
                one.pop()
                other.pop()
            if not one or not other or not (self._covered(one, other) or self._align(one[-1], other[-1])):
                break
        why = f"{reason}: segments of different sizes meet" if reason else "segments of different sizes meet"
        self.freeze(tuple(one), why)
        self.freeze(tuple(other), why)
        return False

    def _next(self, left: list[Segment]) -> Segment | None:
        """The next segment of what is left of an axis, in terms of atoms and products."""
        if left:
            left += reversed(self.resolve((left.pop(),)))
        return left[-1] if left else None

    def _covered(self, one: list[Segment], other: list[Segment]) -> bool:
        """Define an atom that several whole segments lie beside by all of them at once, so that time stays linear."""
        atom, beside = (one, other) if one[-1].length > other[-1].length else (other, one)
        group = self._groups[atom[-1].group]
        if group.factors is not None or atom[-1].inner != 1:
            return False
        pieces: list[Segment] = []
        missing = atom[-1].length
        while beside and self._next(beside) is not None and beside[-1].length <= missing:
            pieces.append(beside.pop())
            missing -= pieces[-1].length
        beside += reversed(pieces)
        if missing or len(pieces) < 2:
            return False
        self._define(atom[-1].group, tuple(pieces))
        return True

    def _align(self, one: Segment, other: Segment) -> bool:
        """One step towards equal first segments: a cut, a coarsening or a join; False where none leads there."""
        if one.length != other.length:
            longer, length = (one, other.length) if one.length > other.length else (other, one.length)
            if length % longer.inner:
                return False
            self.cut(longer.group, length // longer.inner)
        elif one.inner == other.inner:
            self.join(one.group, other.group)
        else:
            common = math.lcm(one.inner, other.inner)
            if one.length % common or one.group == other.group:
                return False
            self.coarsen(one.group, common // one.inner)
            if self._groups[other.group].parts is None:
                self.coarsen(other.group, common // other.inner)
        return True

    def _define(self, name: str, parts: tuple[Segment, ...]) -> None:
        group = self._groups[name]
        parts = self.resolve(parts)
        if any(part.group == name for part in parts):
            self.freeze(parts, "its channels would have to be pruned together with their own neighbours")
            return
        group.parts, group.factors = parts, None
        if group.frozen:
            self.freeze(parts, group.frozen)
        if group.weak:
            self.weaken(parts)

    def _decide(self, name: str, keep: int) -> None:
        """Settle which factor of a product can be pruned: 0 for the leading, 1 for the trailing one."""
        group = self._groups[name]
        assert group.factors is not None
        lead, trail = group.factors
        kept, rejected = (lead, trail) if keep == 0 else (trail, lead)
        self.freeze(rejected, _REJECTED)
        for segment in self.resolve(kept):
            self._groups[segment.group].chosen = True
        if keep == 0:
            self._define(name, tuple(Segment(s.group, s.size, s.inner * trail[0].size) for s in lead))
        else:
            if lead[0].size > MOST_REPEATS:
                self.freeze(trail, f"it repeats {lead[0].size} times along one dimension")
            self._define(name, trail * lead[0].size)

    def decide_all(self) -> None:
        """Settle every product that is still open: the factor that can be pruned, else the one with more units.

        Of equals the trailing one: a grouped convolution gets narrower groups instead of fewer, so that its weights
        shrink with the square of what is kept.
        """
        for name, group in list(self._groups.items()):
            if group.factors is not None and group.parts is None:
                outlooks = [self._outlook(factor) for factor in group.factors]
                self._decide(name, int(outlooks[1] >= outlooks[0]))

    def _outlook(self, axis: tuple[Segment, ...]) -> tuple[bool, bool, bool, int]:
        """How good it is to prune an axis: whether it can be, was chosen already, is strong, and its units."""
        views = []
        for segment in self.resolve(axis):
            group = self._groups[segment.group]
            if group.factors is not None:
                views.append(max(self._outlook(factor) for factor in group.factors))
            else:
                views.append((not group.frozen, group.chosen and not group.frozen, not group.weak, group.size))
        return max(views)
