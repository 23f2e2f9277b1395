"""Which dimensions must be pruned together: the channel groups of a captured graph.

Every dimension of every value is described by an *axis*: None where its size is fixed, otherwise a tuple of
`Segment`s in order, `(group, size, inner)`: `size` channels of a group, each `inner` elements long. That is
all there is to know at the end; examples, for groups `g`, `h`:

    a convolution's output                  ((g, 64, 1),)
    two of them concatenated                ((g, 64, 1), (h, 32, 1))
    flattened with a 7 x 7 image            ((g, 64, 49),)
    features of 12 attention heads of 64    ((g, 12, 64),)
    query, key and value in one layer       ((g, 12, 64), (g, 12, 64), (g, 12, 64))
    32 query heads on 8 key/value heads     ((g, 8, 4 * 64),) for queries, ((g, 8, 64),) for keys
    32 channels in 4 convolution groups     ((g, 4, 8),) for whole groups, or ((g, 8, 1),) * 4 for
                                            equally many channels of each

The same group on two dimensions means that both keep the same channels, in the same order. Every dimension
of a parameter (and of a constant fill such as zeros) starts as a group of its own; operators pass, join,
divide or freeze groups by the rule of their family (`coupling_rules.py`), in one pass over the graph. How
groups are divided is the business of `coupling_groups.py`. An operator without a rule freezes what it
touches, with the reason. Only groups that a weight produces are offered.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from paretopress.spaces import coupling_axes
from paretopress.spaces.coupling_groups import Axis, GroupTable, Segment
from paretopress.spaces.graph import Graph, Node, Ref

__all__ = ["Axis", "ChannelGroup", "Coupling", "CouplingBuilder", "Segment", "analyse_coupling", "where"]


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Dimensions that must be pruned together.

    Attributes:
        name: Name of the first layer that produces the channels; with `:START` behind it where the layer's
            outputs belong to several groups.
        size: Number of channels: what is kept or removed is one of these. For attention these are heads.
        step: Channels are removed in contiguous blocks of this many, 1 for every group of this analysis.
        producers: Layers whose output channels belong to the group, depthwise layers included.
        consumers: Layers whose input channels belong to the group.
        frozen: Why the group cannot be pruned, `""` where it can.
        inner: Output features of its producers per channel: the head size for heads, else mostly 1.
    """

    name: str
    size: int
    step: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    frozen: str = ""
    inner: int = 1


@dataclass(frozen=True)
class Coupling:
    """The result of the analysis.

    Attributes:
        groups: Channel groups in execution order of their first producer.
        values: For every node the axis of each of its dimensions.
        parameters: For every parameter (by its name in the model's state) the axis of each dimension.
        lists: For every node that makes several tensors the axes of each of them.
    """

    groups: tuple[ChannelGroup, ...]
    values: Mapping[str, tuple[Axis, ...]]
    parameters: Mapping[str, tuple[Axis, ...]]
    lists: Mapping[str, tuple[tuple[Axis, ...], ...]]

    def group(self, name: str) -> ChannelGroup:
        """The group of that name. Raises `KeyError`."""
        found = next((group for group in self.groups if group.name == name), None)
        if found is None:
            raise KeyError(name)
        return found


def where(node: Node) -> str:
    """Name of an operator and of the module that runs it, for reasons."""
    return f"{node.short_op} in {node.module_path or 'the root module'}"


class CouplingBuilder:
    """What is known while the rules walk the graph. Groups are numbered; names come at the end."""

    def __init__(self, graph: Graph, fixed: Collection[str] = ()) -> None:
        self.graph, self.fixed = graph, fixed
        self.table = GroupTable()
        self.values: dict[str, tuple[Axis, ...]] = {}
        self.lists: dict[str, tuple[tuple[Axis, ...], ...]] = {}
        self.parameters: dict[str, tuple[Axis, ...]] = {}
        self.weights: set[str] = set()
        self._made: list[tuple[str, Axis, bool]] = []
        self._read: list[tuple[str, Axis]] = []

    def axes(self, node: Node) -> tuple[Axis, ...]:
        """The axes of a node seen earlier; all fixed where it has none."""
        return self.values.get(node.name, (None,) * len(node.shape))

    def operand(self, node: Node, argument: str) -> Node | None:
        """The node behind a tensor argument, None where it is something else."""
        ref = node.arguments.get(argument)
        return self.graph.by_name[ref.node] if isinstance(ref, Ref) else None

    def operand_axes(self, node: Node, argument: str) -> tuple[Axis, ...] | None:
        """The axes of a tensor argument, None where it is something else."""
        operand = self.operand(node, argument)
        return None if operand is None else self.axes(operand)

    def first_axes(self, node: Node) -> tuple[Axis, ...]:
        """The axes of an operator's first input."""
        return self.axes(self.graph.by_name[node.inputs[0]])

    def is_weight(self, node: Node) -> bool:
        """Whether a value follows from parameters and constants alone."""
        return node.name in self.weights

    def fresh(self, shape: Sequence[int]) -> tuple[Axis, ...]:
        """A group of its own for every dimension longer than 1."""
        return tuple((self.table.new(size),) if size > 1 else None for size in shape)

    def freeze(self, axis: Axis, reason: str) -> None:
        """Freeze every group of an axis; the first reason stays."""
        self.table.freeze(axis, reason)

    def freeze_all(self, axes: Sequence[Axis], reason: str) -> None:
        """Freeze the groups of several axes."""
        for axis in axes:
            self.table.freeze(axis, reason)

    def unify(self, first: Axis, second: Axis, reason: str) -> Axis:
        """The common axis of two dimensions of equal size, joining or freezing groups."""
        return coupling_axes.unify(self.table, first, second, reason)

    def produced_by(self, axis: Axis, layer: str, *, is_layer: bool = True) -> None:
        """Record what gives the channels of an axis: a layer of `layers.py`, or another module with weights."""
        self._made.append((layer, axis, is_layer))

    def consumed_by(self, axis: Axis, layer: str) -> None:
        """Record a layer that reads the channels of an axis."""
        self._read.append((layer, axis))

    def finish(self) -> Coupling:
        """Return the analysis with every group under its final name."""
        self.table.decide_all()
        made = [(layer, self.table.resolve(axis or ()), is_layer) for layer, axis, is_layer in self._made]
        names = _names(made)
        producers: dict[str, dict[str, None]] = {name: {} for name in names}
        consumers: dict[str, dict[str, None]] = {name: {} for name in names}
        inner: dict[str, int] = dict.fromkeys(names, 0)
        sizes: dict[str, int] = {}
        for layer, axis, is_layer in made:
            for segment in axis:
                sizes[segment.group] = segment.size
                inner[segment.group] = math.gcd(inner[segment.group], segment.inner)
                if is_layer:
                    producers[segment.group][layer] = None
        for layer, read in self._read:
            for segment in self.table.resolve(read or ()):
                if segment.group in names:
                    consumers[segment.group][layer] = None
        groups = tuple(
            ChannelGroup(
                name, sizes[key], 1, tuple(producers[key]), tuple(consumers[key]), self.table.frozen(key), inner[key]
            )
            for key, name in names.items()
        )
        fixed: dict[str, ChannelGroup] = {}
        known: dict[int, Axis] = {}   # by identity: values share the axes that operators pass on

        def final(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
            for axis in axes:
                if id(axis) not in known:
                    known[id(axis)] = self._final(axis, names, fixed)
            return tuple(known[id(axis)] for axis in axes)

        values = {name: final(axes) for name, axes in self.values.items()}
        parameters = {name: final(axes) for name, axes in self.parameters.items()}
        lists = {name: tuple(final(axes) for axes in several) for name, several in self.lists.items()}
        return Coupling((*groups, *fixed.values()), values, parameters, lists)

    def _final(self, axis: Axis, names: Mapping[str, str], fixed: dict[str, ChannelGroup]) -> Axis:
        """An axis under final names. A dimension without channels that a weight produces has a fixed size."""
        resolved = self.table.resolve(axis or ())
        if not any(segment.group in names for segment in resolved):
            return None
        for segment in resolved:
            if segment.group not in names and segment.group not in fixed:
                reason = self.table.frozen(segment.group) or "no weight makes these channels"
                fixed[segment.group] = ChannelGroup(f"fixed:{len(fixed)}", segment.size, 1, (), (), reason)
        return tuple(replace(s, group=names[s.group] if s.group in names else fixed[s.group].name) for s in resolved)


def _names(made: Sequence[tuple[str, tuple[Segment, ...], bool]]) -> dict[str, str]:
    """Final names of the groups that something produces, in execution order."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for layer, axis, _ in made:
        several = len({segment.group for segment in axis}) > 1
        offset = 0
        for segment in axis:
            if segment.group not in names:
                name = f"{layer}:{offset}" if several else layer
                while name in taken:
                    name += "'"
                names[segment.group] = name
                taken.add(name)
            offset += segment.length
    return names


def analyse_coupling(graph: Graph, fixed: Collection[str] = ()) -> Coupling:
    """Find the channel groups of a captured graph, in one pass over its nodes.

    Args:
        graph: The captured model.
        fixed: Names of buffers whose sizes cannot change, because the model's state does not hold them.
    """
    from paretopress.spaces.coupling_rules import apply_rule

    builder = CouplingBuilder(graph, fixed)
    for node in graph.nodes:
        apply_rule(builder, node)
    return builder.finish()
