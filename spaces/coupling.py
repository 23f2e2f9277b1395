"""Which dimensions must be pruned together: union-find over the channel axes of the captured graph.

Every dimension of every value is described by an *axis*: None where its size is fixed, otherwise a
tuple of `Segment`s in order. A convolution or linear layer starts a new segment on its output axis;
every other operator passes, joins or freezes segments by the rule of its family
(`coupling_rules.py`). An operator without a rule freezes what it touches, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from paretopress.spaces.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of one group's channels along a dimension.

    Attributes:
        group: Name of the channel group.
        size: Number of channels.
        inner: Consecutive elements per channel (flattening `(c, h, w)` gives `inner = h * w`).
    """

    group: str
    size: int
    inner: int = 1


Axis = tuple[Segment, ...] | None


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Dimensions that must be pruned together.

    Attributes:
        name: Name of the first layer that produces the channels.
        size: Number of channels.
        step: Channels are removed in contiguous blocks of this many (group normalisation), else 1.
        producers: Layers whose output channels belong to the group, depthwise layers included.
        consumers: Layers whose input channels belong to the group.
        frozen: Why the group cannot be pruned, `""` where it can.
    """

    name: str
    size: int
    step: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    frozen: str = ""


@dataclass(frozen=True)
class Coupling:
    """The result of the analysis.

    Attributes:
        groups: Channel groups in execution order of their first producer.
        values: For every node the axis of each of its dimensions.
        parameters: For every parameter (by its name in the model's state) the axis of each dimension.
    """

    groups: tuple[ChannelGroup, ...]
    values: Mapping[str, tuple[Axis, ...]]
    parameters: Mapping[str, tuple[Axis, ...]]

    def group(self, name: str) -> ChannelGroup:
        """The group of that name. Raises `KeyError`."""
        return next(group for group in self.groups if group.name == name)


class CouplingBuilder:
    """Union-find state while the rules walk the graph. Groups are numbered; names come at the end."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: dict[str, tuple[Axis, ...]] = {}
        self.parameters: dict[str, tuple[Axis, ...]] = {}
        self._parent: dict[str, str] = {}
        self._order: dict[str, int] = {}
        self._size: dict[str, int] = {}
        self._step: dict[str, int] = {}
        self._frozen: dict[str, str] = {}
        self._producers: dict[str, list[str]] = {}
        self._consumers: dict[str, list[str]] = {}

    def new_group(self, name: str, size: int, reason: str = "") -> Segment:
        """Start a group of `size` channels, frozen where `reason` is given."""
        while name in self._parent:
            name += "'"
        self._parent[name] = name
        self._order[name] = len(self._order)
        self._size[name], self._step[name] = size, 1
        self._producers[name], self._consumers[name] = [], []
        if reason:
            self._frozen[name] = reason
        return Segment(name, size)

    def find(self, name: str) -> str:
        """The representative of a group, with path halving."""
        while self._parent[name] != name:
            self._parent[name] = self._parent[self._parent[name]]
            name = self._parent[name]
        return name

    def join(self, first: str, second: str) -> None:
        """Join two groups of equal size; the earlier one gives the name."""
        root, other = self.find(first), self.find(second)
        if root == other:
            return
        if self._order[other] < self._order[root]:
            root, other = other, root
        self._parent[other] = root
        self._step[root] = math.lcm(self._step[root], self._step[other])
        self._producers[root] += self._producers.pop(other)
        self._consumers[root] += self._consumers.pop(other)
        if other in self._frozen:
            self._frozen.setdefault(root, self._frozen.pop(other))

    def freeze(self, axis: Axis, reason: str) -> None:
        """Freeze every group of an axis; the first reason stays."""
        for segment in axis or ():
            self._frozen.setdefault(self.find(segment.group), reason)

    def freeze_all(self, axes: Sequence[Axis], reason: str) -> None:
        """Freeze the groups of several axes."""
        for axis in axes:
            self.freeze(axis, reason)

    def require_step(self, axis: Axis, step: int) -> None:
        """Demand that channels of an axis are removed in contiguous blocks of `step`."""
        for segment in axis or ():
            root = self.find(segment.group)
            self._step[root] = math.lcm(self._step[root], step)

    def produced_by(self, axis: Axis, layer: str) -> None:
        """Record a layer that gives the channels of an axis."""
        for segment in axis or ():
            self._producers[self.find(segment.group)].append(layer)

    def consumed_by(self, axis: Axis, layer: str) -> None:
        """Record a layer that reads the channels of an axis."""
        for segment in axis or ():
            self._consumers[self.find(segment.group)].append(layer)

    def unify(self, first: Axis, second: Axis, reason: str) -> Axis:
        """Return the common axis of two dimensions of equal size, joining or freezing groups."""
        if first is None or second is None:
            self.freeze(first, reason)
            self.freeze(second, reason)
            return first if second is None else second
        if [(s.size, s.inner) for s in first] == [(s.size, s.inner) for s in second]:
            for one, other in zip(first, second, strict=True):
                self.join(one.group, other.group)
            return first
        self.freeze(first, f"{reason}: segments of different sizes meet")
        self.freeze(second, f"{reason}: segments of different sizes meet")
        return first

    def axes(self, node: Node) -> tuple[Axis, ...]:
        """The axes of a node seen earlier; all fixed where it has none."""
        return self.values.get(node.name, (None,) * len(node.shape))

    def finish(self) -> Coupling:
        """Return the analysis with every group under its final name."""
        roots = [name for name in self._parent if self.find(name) == name]
        groups = tuple(
            ChannelGroup(
                name,
                self._size[name],
                self._step[name],
                tuple(dict.fromkeys(self._producers[name])),
                tuple(dict.fromkeys(self._consumers[name])),
                self._frozen.get(name, ""),
            )
            for name in roots
        )
        values = {name: tuple(self._named(axis) for axis in axes) for name, axes in self.values.items()}
        parameters = {
            name: tuple(self._named(axis) for axis in axes) for name, axes in self.parameters.items()
        }
        return Coupling(groups, values, parameters)

    def _named(self, axis: Axis) -> Axis:
        return None if axis is None else tuple(replace(s, group=self.find(s.group)) for s in axis)


def analyse_coupling(graph: Graph) -> Coupling:
    """Find the channel groups of a captured graph, in one pass over its nodes."""
    from paretopress.spaces.coupling_rules import apply_rule

    builder = CouplingBuilder(graph)
    for node in graph.nodes:
        apply_rule(builder, node)
    return builder.finish()
