"""What the prices of a space's policies depend on: facts of layers and values, and a table for every kernel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from paretopress.evaluators.price_tables import Integers, KeyTable, kernel_costs, rounded
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.arithmetic import Arithmetic
from paretopress.spaces.batch_graph import PARTS, Wiring
from paretopress.spaces.batch_view import Emission
from paretopress.spaces.choices import Choice, Keep
from paretopress.spaces.cost_view import layer_kernels, plain_kernel, subsampling_kernel, unpadded
from paretopress.spaces.coupling import Axis
from paretopress.spaces.fusion import FusedKernel
from paretopress.spaces.kernels import Kernel
from paretopress.spaces.layers import Layer, LayerKind
from paretopress.spaces.plan import LayerPlan, Plan, kept_channels, plan_layer
from paretopress.spaces.policy import Policy
from paretopress.spaces.structure import Structure
from paretopress.spaces.weights_applied import source_of

WIDTHS = 64    # above any number of bits
NO_PLACEMENT = Arithmetic(frozenset(), (), {}, frozenset())


class PricedSpace:
    """A model with its options on some devices. Tables grow with what is priced."""

    def __init__(
        self, structure: Structure, options: Mapping[str, Sequence[Choice | None]], devices: Sequence[DeviceProfile]
    ) -> None:
        """Args are the model, every unit's options, and the target devices."""
        self.structure, self.devices = structure, tuple(devices)
        self.units = tuple(options)
        self.options = [tuple(choices) for choices in options.values()]
        self._column = {unit: column for column, unit in enumerate(self.units)}
        droppable = tuple(group for group in structure.branches if Keep(0.0) in options.get(f"{group}/channels", ()))
        self.wiring = Wiring(structure, droppable)
        self._kernels: dict[tuple[str, str, str, str, bool], KernelTable] = {}
        self._bytes: dict[str, KeyTable] = {}
        self._conversions: dict[tuple[str, int], KeyTable] = {}

    def column(self, unit: str) -> int | None:
        """Where a unit stands in a row, None where the space does not have it."""
        return self._column.get(unit)

    def choice(self, row: Integers, unit: str) -> Choice | None:
        """What a row chooses for a unit."""
        column = self._column.get(unit)
        return None if column is None else self.options[column][row[column]]

    def policy(self, row: Integers) -> Policy:
        """What a row stands for."""
        chosen = {unit: choices[number] for unit, choices, number in zip(self.units, self.options, row, strict=True)}
        return Policy.of({unit: choice for unit, choice in chosen.items() if choice is not None})

    @cached_property
    def kept(self) -> dict[str, tuple[int, Integers]]:
        """For every group that may lose channels its column and how many each option keeps."""
        found = {}
        for group in self.structure.coupling.groups:
            column = self._column.get(f"{group.name}/channels")
            if column is not None:
                counts = [kept_channels(group, choice.ratio) if isinstance(choice, Keep) else group.size
                          for choice in self.options[column]]
                found[group.name] = (column, np.array(counts, dtype=np.int64))
        return found

    @cached_property
    def dense_kept(self) -> dict[str, int]:
        """Channels of every group of the dense model."""
        return {group.name: group.size for group in self.structure.coupling.groups}

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """For every node that applies a layer the layer that speaks for it, without look-ups in tables of words."""
        by_name = {layer.name: layer for layer in self.structure.layers}
        mains = self.wiring.mains.values()
        return {kernel.main: by_name[kernel.layer.name] for kernel in mains
                if kernel.layer is not None and kernel.layer.kind is not LayerKind.EMBEDDING}

    @cached_property
    def parts(self) -> dict[str, Integers]:
        """For every layer and option of its rank how many real layers stand in its place."""
        found = {}
        for layer in self.structure.layers:
            choices = self._choices(f"{layer.name}/rank")
            plans = [self._alone(layer, "rank", choice) for choice in choices]
            found[layer.name] = np.array([len(one.parts) for one in plans], dtype=np.int64)
        return found

    def _choices(self, unit: str) -> tuple[Choice | None, ...]:
        column = self._column.get(unit)
        return (None,) if column is None else self.options[column]

    def _alone(self, layer: Layer, kind: str, choice: Choice | None) -> LayerPlan:
        policy = Policy.of({f"{layer.name}/{kind}": choice} if choice is not None else {})
        return plan_layer(self.structure, policy, self.dense_kept, layer)

    @cached_property
    def bytes_axes(self) -> dict[str, tuple[Axis, ...]]:
        """For every layer the dimensions that its stored bytes depend on."""
        found: dict[str, tuple[Axis, ...]] = {}
        for layer in self.structure.layers:
            axes = [*self.structure.weight_axes(layer)]
            if layer.groups > 1:
                axes += self.axes(source_of(self.structure.graph.by_name[layer.node]))[:1]
            found[layer.name] = tuple(dict.fromkeys(axis for axis in axes if axis is not None))
        return found

    @cached_property
    def other_state(self) -> tuple[tuple[str, tuple[Axis, ...], int], ...]:
        """Stored tensors that are no layer's: name, dimensions that may change, bytes without these."""
        structure = self.structure
        owned = {name for layer in structure.layers for name in (layer.weight, layer.bias) if name}
        found = []
        for name, (shape, width) in structure.state.items():
            if name in owned or name in structure.folded_state or structure.aliases.get(name, name) != name:
                continue
            axes = structure.coupling.parameters.get(name) or (None,) * len(shape)
            fixed = math.prod(size for axis, size in zip(axes, shape, strict=True) if axis is None)
            found.append((name, tuple(axis for axis in axes if axis is not None), fixed * width))
        return tuple(found)

    @cached_property
    def widths(self) -> dict[str, tuple[Integers, Integers]]:
        """For every layer and option of its weights: bits of a weight, bits of activations."""
        found = {}
        for layer in self.structure.layers:
            choices = self._choices(f"{layer.name}/weights")
            plans = [self._alone(layer, "weights", choice) for choice in choices]
            found[layer.name] = (np.array([one.weight_bits for one in plans], dtype=np.int64),
                                 np.array([one.activation_bits for one in plans], dtype=np.int64))
        return found

    def plan_of(self, layer: Layer, row: Integers, kept: Mapping[str, int]) -> LayerPlan:
        """What becomes of one layer in a policy that is not dense."""
        units = (f"{layer.name}/{kind}" for kind in ("rank", "sparsity", "weights"))
        chosen = {unit: choice for unit in units if (choice := self.choice(row, unit)) is not None}
        found = plan_layer(self.structure, Policy.of(chosen), kept, layer)
        return replace(found, has_bias=bool(layer.bias) or (not layer.frozen and layer.takes_bias))

    def context(self, layer: LayerPlan | None, kept: Mapping[str, int], integer: Sequence[str]) -> Plan:
        """A plan in which one kernel stands."""
        layers = () if layer is None else (layer,)
        placed = replace(NO_PLACEMENT, integer_kernels=frozenset(integer))
        return Plan(self.structure, Policy(), kept, layers, placed)

    def axes(self, node: str) -> tuple[Axis, ...]:
        """The dimensions of a value that policies may change."""
        axes = self.structure.coupling.values.get(node) or ()
        return tuple(axis for axis in axes[1:] if axis is not None)

    def dense_elements(self, node: str) -> int:
        """Elements of a value for one sample without the dimensions that policies may change."""
        axes = self.structure.coupling.values.get(node) or ()
        shape = Plan(self.structure, Policy(), self.dense_kept, (), NO_PLACEMENT).shape(node)
        changing = [place for place, axis in enumerate(axes) if place and axis is not None]
        return math.prod(size for place, size in enumerate(shape) if place not in changing)

    def kernel_table(self, emission: Emission) -> KernelTable:
        """The table of one kernel in one form."""
        key = (emission.main, emission.tail, emission.addition, emission.addition_tail, emission.chain)
        if key not in self._kernels:
            self._kernels[key] = KernelTable(self, emission)
        return self._kernels[key]

    def bytes_table(self, layer: Layer) -> KeyTable:
        """Stored bytes of one layer."""
        if layer.name not in self._bytes:
            radices = [radix(axis) for axis in self.bytes_axes[layer.name]]
            units = (f"{layer.name}/{kind}" for kind in ("rank", "sparsity", "weights"))
            radices += [len(self._choices(unit)) for unit in units if unit in self._column]
            self._bytes[layer.name] = KeyTable(radices, 1)
        return self._bytes[layer.name]

    def conversion_table(self, kind: str, rank: int) -> KeyTable:
        """Prices of conversions of tensors with that many dimensions by their elements."""
        return self._conversions.setdefault((kind, rank), KeyTable([1], len(self.devices)))

    @property
    def entries(self) -> int:
        """How many rows the tables hold."""
        tables = [table.rows for table in self._kernels.values()]
        return sum(map(len, (*tables, *self._bytes.values(), *self._conversions.values())))


class KernelTable:
    """What one kernel, or the kernels of one layer, cost in one form.

    A row holds the multiply-accumulates, the elements between the real layers, and the price on each device.
    """

    def __init__(self, space: PricedSpace, emission: Emission) -> None:
        self.emission = emission
        self.fused = FusedKernel(emission.main, self._absorbed(space, emission.main, emission.tail),
                                 space.wiring.mains[emission.main].family, space.wiring.mains[emission.main].layer)
        self.layer = space.layers.get(emission.main)
        graph = space.structure.graph
        values = [*space.wiring.activations[emission.main], emission.main]
        values += [name for name in (emission.tail, emission.addition) if name]
        if self.layer is not None:
            values.append(unpadded(graph, source_of(graph.by_name[emission.main])))
        if emission.chain:
            chain = next(one for one in space.structure.subsamplings if one.output == emission.main)
            values.append(chain.source)
        axes = [axis for name in values for axis in space.axes(name)]
        if self.layer is not None:
            axes += [axis for axis in space.structure.weight_axes(self.layer) if axis is not None]
        self.axes = tuple(dict.fromkeys(axes))
        radices = [radix(axis) for axis in self.axes]
        if self.layer is not None:
            radices += [len(space.parts[self.layer.name]), WIDTHS, WIDTHS]
        else:
            radices.append(2)
        self.rows = KeyTable(radices, PARTS + len(space.devices))

    @staticmethod
    def _absorbed(space: PricedSpace, main: str, tail: str) -> tuple[str, ...]:
        return (*space.wiring.mains[main].absorbed, *([tail] if tail else []))

    def kernels(self, space: PricedSpace, row: Integers, kept: Mapping[str, int], integer: bool) -> list[Kernel]:
        """The kernels of one policy, by the code that makes them for single plans."""
        emission, structure = self.emission, space.structure
        if emission.chain:
            chain = next(one for one in structure.subsamplings if one.output == emission.main)
            return [subsampling_kernel(space.context(None, kept, chain.nodes), chain)]
        if self.layer is None:
            return [plain_kernel(space.context(None, kept, [emission.main] if integer else []), self.fused)]
        layer = space.plan_of(self.layer, row, kept)
        context, graph = space.context(layer, kept, []), structure.graph
        tail = tuple(graph.by_name[name].short_op for name in self.fused.absorbed)
        output, extra = self.fused.output, 0
        if emission.addition:
            names = self._absorbed(space, emission.addition, emission.addition_tail)
            tail = (*tail, "add", *(graph.by_name[name].short_op for name in names))
            output = names[-1] if names else emission.addition
            extra = math.prod(context.shape(self.fused.output))
        tail = tuple(name for name in tail if name != "batch_norm")
        return list(layer_kernels(context, layer, emission.main, output, tail, extra))


def radix(axis: Axis) -> int:
    """How many sizes a dimension may have."""
    return 1 + sum(segment.length for segment in axis or ())


def add_prices(
    devices: Sequence[DeviceProfile], fresh: Sequence[tuple[KernelTable, Integers, list[list[Kernel]]]]
) -> None:
    """Price new rows of many tables together, and add them.

    Args:
        devices: The target devices.
        fresh: Tables, with the keys that they lack and the kernels of each key.
    """
    kernels = [kernel for _, _, groups in fresh for group in groups for kernel in group]
    if not kernels:
        return
    distinct = {replace(kernel, name=""): index for index, kernel in enumerate(kernels)}
    numbers = {kernel: number for number, kernel in enumerate(distinct)}
    prices = rounded(np.stack([kernel_costs(device, list(distinct)) for device in devices], axis=1))
    for table, codes, groups in fresh:
        values = np.zeros((len(codes), PARTS + len(devices)))
        for row, group in zip(values, groups, strict=True):
            row[0] = sum(kernel.macs for kernel in group)
            row[1 : len(group)] = [kernel.output_elements for kernel in group[:-1]]
            row[PARTS:] = sum(prices[numbers[replace(kernel, name="")]] for kernel in group)
        table.rows.add(codes, values)
