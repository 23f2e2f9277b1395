"""The costs of a few thousand policies, side by side: `PolicyPricer` divides more of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from paretopress.evaluators.price_tables import Array, Integers, conversion_prices
from paretopress.evaluators.priced_space import KernelTable, PricedSpace, add_prices
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.batch_arithmetic import BatchArithmetic
from paretopress.spaces.batch_graph import PARTS, BatchGraph
from paretopress.spaces.batch_view import BatchView, Emission
from paretopress.spaces.cost_view import cost_view, unpadded
from paretopress.spaces.coupling import Axis
from paretopress.spaces.kernels import Boundary, Kernel
from paretopress.spaces.layers import Layer
from paretopress.spaces.plan import plan


@dataclass
class PriceBatch:
    """Policies that are priced side by side."""

    space: PricedSpace
    rows: Integers

    def __post_init__(self) -> None:
        self.count = len(self.rows)
        self._axis_sizes: dict[Axis, Integers] = {}
        self._elements: dict[str, Integers] = {}
        self._kept_rows: dict[int, dict[str, int]] = {}
        space = self.space
        self.kept = {group: counts[self.rows[:, column]] for group, (column, counts) in space.kept.items()}
        dropped = {group: self.kept[group] == 0 for group in space.wiring.droppable}
        self.graph = BatchGraph(space.wiring, dropped, self.count)
        self.parts = {main: self._parts(layer) for main, layer in space.layers.items()}
        integer = {main: self.graph.alive[main] & (self._widths(layer)[1] == 8)
                   for main, layer in space.layers.items() if main == layer.node}
        self.view = BatchView(self.graph, BatchArithmetic(self.graph, integer), self.parts)

    def costs(self, latency_names: tuple[str, ...]) -> dict[str, Array]:
        """All costs, by name; those of the devices' times are given."""
        devices = self.space.devices
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
        for number, (device, name) in enumerate(zip(devices, latency_names, strict=True)):
            in_place = device.document.memory.in_place is not None
            found[f"peak_memory@{device.id}"] = self._peak_in_place(device) if in_place else memory
            total = device.session_cost + prices[:, number]
            found[name] = total if device.tier == "T0" else total / 1e3
            power = device.document.active_power_mw
            if power is not None and device.document.latency is not None:
                found[f"energy@{device.id}"] = found[name] * (power.value / 1e3) * 1000.0
        return found

    def _widths(self, layer: Layer) -> tuple[Integers, Integers]:
        column, (weights, activations) = self.space.column(f"{layer.name}/weights"), self.space.widths[layer.name]
        if column is None:
            return np.broadcast_to(weights, self.count), np.broadcast_to(activations, self.count)
        return weights[self.rows[:, column]], activations[self.rows[:, column]]

    def _parts(self, layer: Layer) -> Integers:
        column, counts = self.space.column(f"{layer.name}/rank"), self.space.parts[layer.name]
        return np.broadcast_to(counts, self.count) if column is None else counts[self.rows[:, column]]

    @cached_property
    def _kept_everywhere(self) -> dict[str, int | Integers]:
        return {**self.space.dense_kept, **self.kept}

    def _axis(self, axis: Axis) -> Integers:
        if axis not in self._axis_sizes:
            assert axis is not None
            size = sum(self._kept_everywhere[s.group] * s.inner * s.outer for s in axis)
            self._axis_sizes[axis] = np.broadcast_to(np.asarray(size, dtype=np.int64), self.count)
        return self._axis_sizes[axis]

    def _kept_of(self, row: int) -> dict[str, int]:
        if row not in self._kept_rows:
            own = {group: int(counts[row]) for group, counts in self.kept.items()}
            self._kept_rows[row] = {**self.space.dense_kept, **own}
        return self._kept_rows[row]

    def elements(self, node: str) -> Integers:
        """Elements of a value, for one sample."""
        if node not in self._elements:
            total = np.full(self.count, self.space.dense_elements(node))
            for axis in self.space.axes(node):
                total = total * self._axis(axis)
            self._elements[node] = total
        return self._elements[node]

    def _priced(self) -> Iterator[tuple[Emission, Integers, Array]]:
        """Every kernel with the policies that have it and their rows of its table."""
        known = []
        fresh: list[tuple[KernelTable, Integers, list[list[Kernel]]]] = []
        for emission in self.view.emissions:
            table, places = self.space.kernel_table(emission), np.flatnonzero(emission.where)
            codes = table.rows.codes(self._digits(table, places), len(places))
            known.append((emission, table, places, codes))
            absent, positions = table.rows.missing(codes)
            if len(absent):
                integer = self.view.arithmetic.integer.get(emission.main, self.graph.nowhere)
                fresh.append((table, absent, [
                    table.kernels(self.space, self.rows[row], self._kept_of(row), bool(integer[row]))
                    for row in places[positions].tolist()
                ]))
        add_prices(self.space.devices, fresh)
        for emission, table, places, codes in known:
            yield emission, places, table.rows.rows(codes)

    def _digits(self, table: KernelTable, places: Integers) -> list[Integers]:
        digits = [self._axis(axis)[places] for axis in table.axes]
        if table.layer is None:
            integer = self.view.arithmetic.integer.get(table.emission.main, self.graph.nowhere)
            return [*digits, integer[places].astype(np.int64)]
        rank = self.space.column(f"{table.layer.name}/rank")
        ranks = self.rows[places, rank] if rank is not None else np.zeros(len(places), dtype=np.int64)
        return [*digits, ranks, *(widths[places] for widths in self._widths(table.layer))]

    def _conversion_prices(self) -> Array:
        """Prices of all changes of arithmetic, shape (n, devices)."""
        graph, devices = self.space.structure.graph, self.space.devices
        total = np.zeros((self.count, len(devices)))
        kinds = (("quantize", self.view.quantised()), ("dequantize", self.view.dequantised()))
        for kind, tensors in kinds:
            for name, where in tensors:
                tensor = unpadded(graph, name) if kind == "quantize" else name
                places, rank = np.flatnonzero(where), max(1, len(graph.by_name[tensor].shape))
                elements = self.elements(tensor)[places]
                table = self.space.conversion_table(kind, rank)
                absent, _ = table.missing(elements)
                if len(absent):
                    boundaries = [Boundary("", kind, size, rank) for size in absent.tolist()]
                    table.add(absent, conversion_prices(devices, boundaries))
                total[places] += table.rows(elements)
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
            width = np.where(self._widths(self.space.layers[emission.main])[1] == 8, 1, 4)
            for part in range(PARTS - 1):
                exists = emission.where & (part < parts - 1)
                size = np.where(exists, inner[emission.main][:, part], 0).astype(np.int64) * width
                live(size, np.full(self.count, place + part), np.full(self.count, place + part + 1))
        alive, peak = np.zeros(self.count, dtype=np.int64), np.zeros(self.count, dtype=np.int64)
        for step in change:
            alive += step
            np.maximum(peak, alive, out=peak)
        return peak.astype(np.float64)

    def _peak_in_place(self, device: DeviceProfile) -> Array:
        """Peak bytes where kernels write over what dies there: which buffer that is, one plan at a time says."""
        structure, policies = self.space.structure, map(self.space.policy, self.rows)
        return np.array([device.memory(cost_view(plan(structure, one))).peak_activation_bytes for one in policies],
                        dtype=np.float64)

    def _stored_bytes(self) -> Array:
        """Bytes of the artefact's tensors, as `Plan.stored_bytes`."""
        structure, arithmetic = self.space.structure, self.view.arithmetic
        total = np.zeros(self.count)
        for layer in structure.layers:
            places = np.flatnonzero(self.graph.alive[layer.node])
            digits = [digit[places] for digit in self._bytes_digits(layer)]
            table = self.space.bytes_table(layer)
            codes = table.codes(digits, len(places))
            absent, positions = table.missing(codes)
            if len(absent):
                plans = (self.space.plan_of(layer, self.rows[row], self._kept_of(row))
                         for row in places[positions].tolist())
                table.add(absent, np.array([[one.stored_bytes] for one in plans], dtype=np.float64))
            total[places] += table.rows(codes)[:, 0]
        ranges = sum((where.astype(np.int64) for where in arithmetic.ranges.values()), np.zeros(self.count, np.int64))
        for main, integer in arithmetic.layers.items():
            ranges = ranges + np.where(integer, self.parts[main] - 1, 0)
        for name, axes, fixed in self.space.other_state:
            elements = np.full(self.count, fixed)
            for axis in axes:
                elements = elements * self._axis(axis)
            for group in self.space.wiring.droppable:
                if name in structure.branches[group].state:
                    elements = np.where(self.graph.dropped[group], 0, elements)
            total += elements
        return total + 5.0 * ranges

    def _bytes_digits(self, layer: Layer) -> list[Integers]:
        columns = [self.space.column(f"{layer.name}/{kind}") for kind in ("rank", "sparsity", "weights")]
        options = [self.rows[:, column] for column in columns if column is not None]
        return [*(self._axis(axis) for axis in self.space.bytes_axes[layer.name]), *options]
