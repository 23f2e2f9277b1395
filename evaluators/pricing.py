"""Predicted costs of many policies at once: the same numbers as `CostModel.predict`, thousands of times a second.

A network's cost is a sum over its kernels, and a kernel's cost depends on little: how many channels its inputs and
outputs keep, its own rank and format, whether it computes in integers, what it absorbs. `spaces/batch_view.py` finds
these facts for n policies side by side; here they are keys into a table per kernel. A key that a table lacks is priced
by the same code that prices single plans (`spaces/cost_view.py`, `DeviceProfile.kernel_cost`), once.

Which option of a unit a policy takes is an index: policies are rows of shape `(n, units)`, int64, in the order of
`PolicyPricer.units`, option 0 being the first of the unit's options.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paretopress.evaluators.price_tables import KeyTable
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.arithmetic import Arithmetic
from paretopress.spaces.batch_arithmetic import BatchArithmetic

from paretopress.spaces.batch_graph import PARTS, BatchGraph, Wiring
from paretopress.spaces.batch_view import BatchView, Emission
from paretopress.spaces.choices import Choice, Keep
from paretopress.spaces.coupling import Axis
from paretopress.spaces.cost_view import layer_kernels, plain_kernel, subsampling_kernel, unpadded
from paretopress.spaces.errors import ConfigError, ProfileError
from paretopress.spaces.fusion import FusedKernel
from paretopress.spaces.kernels import Boundary, Kernel
from paretopress.spaces.layers import Layer, LayerKind
from paretopress.spaces.plan import LayerPlan, Plan, kept_channels, plan, plan_layer
from paretopress.spaces.policy import Policy
from paretopress.spaces.structure import Structure
from paretopress.spaces.weights_applied import source_of

if TYPE_CHECKING:
    from paretopress.evaluators.costs import CostModel

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]
WIDTHS = 64    # above any number of bits
CHUNK = 4096   # policies side by side: their arrays fit into the cache
NO_PLACEMENT = Arithmetic(frozenset(), (), {}, frozenset())


class PolicyPricer:
    """Prices policies of one model in one space.

    Tables grow with what is priced, so that an instance is worth keeping. It is not safe for threads.
    """

    def __init__(
        self, structure: Structure, options: Mapping[str, Sequence[Choice | None]], costs: CostModel
    ) -> None:
        """Args are the model, every unit's options, and the target devices."""
        self.structure, self.costs = structure, costs
        self.units = tuple(options)
        self._options = [tuple(choices) for choices in options.values()]
        self._column = {unit: column for column, unit in enumerate(self.units)}
        droppable = tuple(group for group in structure.branches if Keep(0.0) in options.get(f"{group}/channels", ()))
        self._wiring = Wiring(structure, droppable)
        self._kernels: dict[tuple[str, str, str, str, bool], KernelTable] = {}
        self._bytes: dict[str, KeyTable] = {}
        self._conversions: dict[tuple[str, int], KeyTable] = {}
        self._dense_costs: dict[str, float] | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the costs, as `CostModel.predict` has them."""
        return tuple(self._dense())

    def predict(self, rows: Integers) -> dict[str, Array]:
        """Return all predicted costs of policies.

        Args:
            rows: Option numbers, shape `(n, units)`; what does not go together must not stand in one row.

        Returns:
            By the names of `CostModel.predict` arrays of shape `(n,)`, equal to its numbers up to rounding.

        Raises:
            ConfigError: Another number of units, or an option that a unit does not have.
        """
        rows = self._checked(rows)
        chunks = [self._predict(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]
        return {name: np.concatenate([np.empty(0), *(chunk[name] for chunk in chunks)]) for name in self.names}

    def rows(self, policies: Sequence[Policy]) -> Integers:
        """Return policies as rows. Raises `PolicyError` where the space does not have a unit or a choice."""
        from paretopress.spaces.errors import PolicyError, unknown_name

        found = np.zeros((len(policies), len(self.units)), dtype=np.int64)
        for column, choices in enumerate(self._options):
            found[:, column] = choices.index(None) if None in choices else 0
        for row, policy in zip(found, policies, strict=True):
            for unit, choice in policy:
                if unit not in self._column:
                    raise PolicyError(f"policy {policy.hash}: {unknown_name('unit', unit, self.units)}")
                column = self._column[unit]
                if choice not in self._options[column]:
                    raise PolicyError(f"policy {policy.hash}: {choice} is not an option of unit {unit!r}")
                row[column] = self._options[column].index(choice)
        return found

    def _checked(self, rows: Integers) -> Integers:
        rows = np.asarray(rows, dtype=np.int64)
        if rows.ndim != 2 or rows.shape[1] != len(self.units):
            raise ConfigError(f"rows of option numbers have shape (n, {len(self.units)}), got {rows.shape}")
        counts = np.array([len(choices) for choices in self._options], dtype=np.int64)
        wrong = np.argwhere((rows < 0) | (rows >= counts))
        if len(wrong):
            row, column = wrong[0]
            raise ConfigError(
                f"row {row}: unit {self.units[column]!r} has options 0..{counts[column] - 1}, got {rows[row, column]}"
            )
        return rows

    def _dense(self) -> dict[str, float]:
        if self._dense_costs is None:
            self._dense_costs = self.costs.predict(plan(self.structure, Policy()))
        return self._dense_costs

    def _predict(self, rows: Integers) -> dict[str, Array]:
        found = _Batch(self, rows).costs()
        for row in np.flatnonzero(self._is_dense(rows)):   # batch normalisation is not folded there
            for name, value in self._dense().items():
                found[name][row] = value
        return found

    def _is_dense(self, rows: Integers) -> Bools:
        dense = np.ones(len(rows), dtype=bool)
        for column, choices in enumerate(self._options):
            dense &= np.array([choice is None for choice in choices])[rows[:, column]]
        return dense

    def column(self, unit: str) -> int | None:
        """Where a unit stands in a row, None where the space does not have it."""
        return self._column.get(unit)

    def choice(self, row: Integers, unit: str) -> Choice | None:
        """What a row chooses for a unit."""
        column = self._column.get(unit)
        return None if column is None else self._options[column][row[column]]

    @cached_property
    def kept(self) -> dict[str, tuple[int, Integers]]:
        """For every group that may lose channels its column and how many each option keeps."""
        found = {}
        for group in self.structure.coupling.groups:
            column = self._column.get(f"{group.name}/channels")
            if column is not None:
                counts = [kept_channels(group, choice.ratio) if isinstance(choice, Keep) else group.size
                          for choice in self._options[column]]
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
        mains = self._wiring.mains.values()
        return {kernel.main: by_name[kernel.layer.name] for kernel in mains
                if kernel.layer is not None and kernel.layer.kind is not LayerKind.EMBEDDING}

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
        return (None,) if column is None else self._options[column]

    def _alone(self, layer: Layer, kind: str, choice: Choice | None) -> LayerPlan:
        policy = Policy.of({f"{layer.name}/{kind}": choice} if choice is not None else {})
        return plan_layer(self.structure, policy, self.dense_kept, layer)

    @cached_property
    def bytes_axes(self) -> dict[str, tuple[Axis, ...]]:
        """For every layer the dimensions that its stored bytes depend on."""
        found = {}
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
        return self._conversions.setdefault((kind, rank), KeyTable([1], len(self.costs.devices)))

    @property
    def wiring(self) -> Wiring:
        """What all policies have in common."""
        return self._wiring

    @property
    def entries(self) -> int:
        """How many rows the tables hold."""
        tables = [table.rows for table in self._kernels.values()]
        return sum(map(len, (*tables, *self._bytes.values(), *self._conversions.values())))


class KernelTable:
    """What one kernel, or the kernels of one layer, cost in one form.

    A row holds the multiply-accumulates, the elements between the real layers, and the price on each device.
    """

    def __init__(self, pricer: PolicyPricer, emission: Emission) -> None:
        self.emission = emission
        self.fused = FusedKernel(emission.main, self._absorbed(pricer, emission.main, emission.tail),
                                 pricer.wiring.mains[emission.main].family, pricer.wiring.mains[emission.main].layer)
        self.layer = pricer.layers.get(emission.main)
        graph = pricer.structure.graph
        values = [*pricer.wiring.activations[emission.main], emission.main]
        values += [name for name in (emission.tail, emission.addition) if name]
        if self.layer is not None:
            values.append(unpadded(graph, source_of(graph.by_name[emission.main])))
        if emission.chain:
            chain = next(one for one in pricer.structure.subsamplings if one.output == emission.main)
            values.append(chain.source)
        axes = [axis for name in values for axis in pricer.axes(name)]
        if self.layer is not None:
            axes += [axis for axis in pricer.structure.weight_axes(self.layer) if axis is not None]
        self.axes = tuple(dict.fromkeys(axes))
        radices = [radix(axis) for axis in self.axes]
        if self.layer is not None:
            radices += [len(pricer.parts[self.layer.name]), WIDTHS, WIDTHS]
        else:
            radices.append(2)
        self.rows = KeyTable(radices, PARTS + len(pricer.costs.devices))

    @staticmethod
    def _absorbed(pricer: PolicyPricer, main: str, tail: str) -> tuple[str, ...]:
        return (*pricer.wiring.mains[main].absorbed, *([tail] if tail else []))

    def kernels(self, pricer: PolicyPricer, row: Integers, kept: Mapping[str, int], integer: bool) -> list[Kernel]:
        """The kernels of one policy, by the code that makes them for single plans."""
        emission, structure = self.emission, pricer.structure
        if emission.chain:
            chain = next(one for one in structure.subsamplings if one.output == emission.main)
            return [subsampling_kernel(pricer.context(None, kept, chain.nodes), chain)]
        if self.layer is None:
            return [plain_kernel(pricer.context(None, kept, [emission.main] if integer else []), self.fused)]
        layer = pricer.plan_of(self.layer, row, kept)
        context, graph = pricer.context(layer, kept, []), structure.graph
        tail = tuple(graph.by_name[name].short_op for name in self.fused.absorbed)
        output, extra = self.fused.output, 0
        if emission.addition:
            names = self._absorbed(pricer, emission.addition, emission.addition_tail)
            tail = (*tail, "add", *(graph.by_name[name].short_op for name in names))
            output = names[-1] if names else emission.addition
            extra = math.prod(context.shape(self.fused.output))
        tail = tuple(name for name in tail if name != "batch_norm")
        return list(layer_kernels(context, layer, emission.main, output, tail, extra))


@dataclass
class _Batch:
    """Policies that are priced side by side."""

    pricer: PolicyPricer
    rows: Integers

    def __post_init__(self) -> None:
        self.count = len(self.rows)
        self._axis_sizes: dict[Axis, Integers] = {}
        self._elements: dict[str, Integers] = {}
        self._kept_rows: dict[int, dict[str, int]] = {}
        pricer = self.pricer
        self.kept = {group: counts[self.rows[:, column]] for group, (column, counts) in pricer.kept.items()}
        dropped = {group: self.kept[group] == 0 for group in pricer.wiring.droppable}
        self.graph = BatchGraph(pricer.wiring, dropped, self.count)
        self.parts = {main: self._parts(layer) for main, layer in pricer.layers.items()}
        integer = {main: self.graph.alive[main] & (self._widths(layer)[1] == 8)
                   for main, layer in pricer.layers.items() if main == layer.node}
        self.view = BatchView(self.graph, BatchArithmetic(self.graph, integer), self.parts)

    def costs(self) -> dict[str, Array]:
        """All costs, by name."""
        pricer, devices = self.pricer, self.pricer.costs.devices
        macs, prices = np.zeros(self.count), np.zeros((self.count, len(devices)))
        inner: dict[str, Array] = {}
        for emission, places, values in self._priced():
            macs[places] += values[:, 0]
            prices[places] += values[:, PARTS:]
            if emission.main in self.parts:
                between = inner.setdefault(emission.main, np.zeros((self.count, PARTS - 1)))
                between[places] = values[:, 1:PARTS]
        prices += self._conversion_prices()
        memory = self._peak(inner)
        found: dict[str, Array] = {"size": self._stored_bytes(), "macs": macs}
        for number, (device, name) in enumerate(zip(devices, pricer.costs.latency_names, strict=True)):
            found[f"peak_memory@{device.id}"] = memory
            total = device.session_cost + prices[:, number]
            found[name] = total if device.tier == "T0" else total / 1e3
            power = device.document.active_power_mw
            if power is not None and device.document.latency is not None:
                found[f"energy@{device.id}"] = found[name] * (power.value / 1e3) * 1000.0
        return found

    def _widths(self, layer: Layer) -> tuple[Integers, Integers]:
        column, (weights, activations) = self.pricer.column(f"{layer.name}/weights"), self.pricer.widths[layer.name]
        if column is None:
            return np.broadcast_to(weights, self.count), np.broadcast_to(activations, self.count)
        return weights[self.rows[:, column]], activations[self.rows[:, column]]

    def _parts(self, layer: Layer) -> Integers:
        column, counts = self.pricer.column(f"{layer.name}/rank"), self.pricer.parts[layer.name]
        return np.broadcast_to(counts, self.count) if column is None else counts[self.rows[:, column]]

    @cached_property
    def _kept_everywhere(self) -> dict[str, int | Integers]:
        return {**self.pricer.dense_kept, **self.kept}

    def _axis(self, axis: Axis) -> Integers:
        if axis not in self._axis_sizes:
            assert axis is not None
            size = sum(self._kept_everywhere[s.group] * s.inner * s.outer for s in axis)
            self._axis_sizes[axis] = np.broadcast_to(np.asarray(size, dtype=np.int64), self.count)
        return self._axis_sizes[axis]

    def _kept_of(self, row: int) -> dict[str, int]:
        if row not in self._kept_rows:
            own = {group: int(counts[row]) for group, counts in self.kept.items()}
            self._kept_rows[row] = {**self.pricer.dense_kept, **own}
        return self._kept_rows[row]

    def elements(self, node: str) -> Integers:
        """Elements of a value, for one sample."""
        if node not in self._elements:
            total = np.full(self.count, self.pricer.dense_elements(node))
            for axis in self.pricer.axes(node):
                total = total * self._axis(axis)
            self._elements[node] = total
        return self._elements[node]

    def _priced(self) -> Iterator[tuple[Emission, Integers, Array]]:
        """Every kernel with the policies that have it and their rows of its table."""
        known = []
        fresh: list[tuple[KernelTable, Integers, list[list[Kernel]]]] = []
        for emission in self.view.emissions:
            table, places = self.pricer.kernel_table(emission), np.flatnonzero(emission.where)
            codes = table.rows.codes(self._digits(table, places), len(places))
            known.append((emission, table, places, codes))
            absent, positions = table.rows.missing(codes)
            if len(absent):
                integer = self.view.arithmetic.integer.get(emission.main, self.graph.nowhere)
                fresh.append((table, absent, [
                    table.kernels(self.pricer, self.rows[row], self._kept_of(row), bool(integer[row]))
                    for row in places[positions].tolist()
                ]))
        add_prices(self.pricer.costs.devices, fresh)
        for emission, table, places, codes in known:
            yield emission, places, table.rows.rows(codes)

    def _digits(self, table: KernelTable, places: Integers) -> list[Integers]:
        digits = [self._axis(axis)[places] for axis in table.axes]
        if table.layer is None:
            integer = self.view.arithmetic.integer.get(table.emission.main, self.graph.nowhere)
            return [*digits, integer[places].astype(np.int64)]
        rank = self.pricer.column(f"{table.layer.name}/rank")
        ranks = self.rows[places, rank] if rank is not None else np.zeros(len(places), dtype=np.int64)
        return [*digits, ranks, *(widths[places] for widths in self._widths(table.layer))]

    def _conversion_prices(self) -> Array:
        """Prices of all changes of arithmetic, shape (n, devices)."""
        graph, devices = self.pricer.structure.graph, self.pricer.costs.devices
        total = np.zeros((self.count, len(devices)))
        kinds = (("quantize", self.view.quantised()), ("dequantize", self.view.dequantised()))
        for kind, tensors in kinds:
            for name, where in tensors:
                tensor = unpadded(graph, name) if kind == "quantize" else name
                places, rank = np.flatnonzero(where), max(1, len(graph.by_name[tensor].shape))
                elements = self.elements(tensor)[places]
                table = self.pricer.conversion_table(kind, rank)
                total[places] += table.ensured(elements, lambda positions, kind=kind, rank=rank, sizes=elements: (
                    conversion_prices(devices, [Boundary("", kind, int(sizes[p]), rank) for p in positions])))
        return total

    def _peak(self, inner: Mapping[str, Array]) -> Array:
        """Peak bytes of live activation buffers, as `memory.peak_bytes`."""
        view, everyone = self.view, np.arange(self.count)
        change = np.zeros((view.end + 3, self.count), dtype=np.int64)   # slot -1 comes first

        def live(size: Integers, first: Integers, last: Integers) -> None:
            for slot, amount in ((first + 1, size), (np.maximum(first, last) + 2, -size)):
                if (slot == slot[0]).all():   # far faster than one index per policy
                    change[slot[0]] += amount
                else:
                    change[slot, everyone] += amount

        before = np.full(self.count, -1)
        for node in self.graph.wiring.values:
            if node.op == "input":
                live(self.elements(node.name) * view.width(node.name), before, view.read_last[node.name])
        for emission in view.emissions:
            parts, place = self.parts.get(emission.main), view.slot(emission.place)
            last = np.full(self.count, place) if parts is None else place + parts - 1
            output = emission.addition_tail or emission.addition or emission.tail or self.graph.head(emission.main)
            size = self.elements(output) * view.width(output)
            live(np.where(emission.where, size, 0), last, view.read_last[output])
            if parts is None or int(parts.max()) == 1:
                continue
            width = np.where(self._widths(self.pricer.layers[emission.main])[1] == 8, 1, 4)
            for part in range(PARTS - 1):
                exists = emission.where & (part < parts - 1)
                size = np.where(exists, inner[emission.main][:, part], 0).astype(np.int64) * width
                live(size, np.full(self.count, place + part), np.full(self.count, place + part + 1))
        alive, peak = np.zeros(self.count, dtype=np.int64), np.zeros(self.count, dtype=np.int64)
        for step in change:
            alive += step
            np.maximum(peak, alive, out=peak)
        return peak.astype(np.float64)

    def _stored_bytes(self) -> Array:
        """Bytes of the artefact's tensors, as `Plan.stored_bytes`."""
        structure, arithmetic = self.pricer.structure, self.view.arithmetic
        total = np.zeros(self.count)
        for layer in structure.layers:
            places = np.flatnonzero(self.graph.alive[layer.node])
            digits = [digit[places] for digit in self._bytes_digits(layer)]
            table = self.pricer.bytes_table(layer)
            codes = table.codes(digits, len(places))
            total[places] += table.ensured(codes, lambda positions, layer=layer, places=places: np.array([
                [self.pricer.plan_of(layer, self.rows[row], self._kept_of(row)).stored_bytes]
                for row in places[positions].tolist()
            ], dtype=np.float64))[:, 0]
        ranges = sum((where.astype(np.int64) for where in arithmetic.ranges.values()), np.zeros(self.count, np.int64))
        for main, integer in arithmetic.layers.items():
            ranges = ranges + np.where(integer, self.parts[main] - 1, 0)
        for name, axes, fixed in self.pricer.other_state:
            elements = np.full(self.count, fixed)
            for axis in axes:
                elements = elements * self._axis(axis)
            for group in self.pricer.wiring.droppable:
                if name in structure.branches[group].state:
                    elements = np.where(self.graph.dropped[group], 0, elements)
            total += elements
        return total + 5.0 * ranges

    def _bytes_digits(self, layer: Layer) -> list[Integers]:
        columns = [self.pricer.column(f"{layer.name}/{kind}") for kind in ("rank", "sparsity", "weights")]
        options = [self.rows[:, column] for column in columns if column is not None]
        return [*(self._axis(axis) for axis in self.pricer.bytes_axes[layer.name]), *options]


def radix(axis: Axis) -> int:
    """How many sizes a dimension may have."""
    return 1 + sum(segment.length for segment in axis or ())


def kernel_costs(device: DeviceProfile, kernels: Sequence[Kernel]) -> Array:
    """Price kernels, shape (n,), infinite where the device cannot execute them or has no figures.

    Whether a kernel is known depends on its family and its widths alone.
    """
    try:
        return device.kernel_cost(kernels)
    except ProfileError:
        pass
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, kernel in enumerate(kernels):
        alike.setdefault((kernel.family, kernel.weight_bits, kernel.activation_bits), []).append(index)
    prices = np.full(len(kernels), np.inf)
    for members in alike.values():
        try:
            prices[members] = device.kernel_cost([kernels[index] for index in members])
        except ProfileError:
            continue
    return prices


def conversion_prices(devices: Sequence[DeviceProfile], boundaries: Sequence[Boundary]) -> Array:
    """Price conversions on every device, shape (n, devices), infinite where it has no figures."""
    found = np.full((len(boundaries), len(devices)), np.inf)
    for number, device in enumerate(devices):
        try:
            found[:, number] = device.boundary_cost(boundaries)
        except ProfileError:
            continue
    return found


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
    prices = np.stack([kernel_costs(device, list(distinct)) for device in devices], axis=1)
    for table, codes, groups in fresh:
        values = np.zeros((len(codes), PARTS + len(devices)))
        for row, group in zip(values, groups, strict=True):
            row[0] = sum(kernel.macs for kernel in group)
            row[1 : len(group)] = [kernel.output_elements for kernel in group[:-1]]
            row[PARTS:] = sum(prices[numbers[replace(kernel, name="")]] for kernel in group)
        table.rows.add(codes, values)
