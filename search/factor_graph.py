"""What the kernels of a model cost for every combination of the few choices that touch each of them.

Loss is additive over units; cost is a sum of terms over the few units that touch a kernel: the groups of its input and
output, its own rank and format. Conversions between float and integer kernels couple neighbours and are left out.

A kernel depends on sizes, not on which groups they are the sums of, and alike layers have alike kernels: of the
hundreds of thousands of combinations that a network with residual stages has, each distinct kernel is made once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from paretopress.evaluators.costs import CostModel
from paretopress.evaluators.price_tables import kernel_costs
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.choices import Choice, Keep, Weights, activation_bits
from paretopress.spaces.cost_view import kernels_of, merged_sums
from paretopress.spaces.coupling import Axis
from paretopress.spaces.fusion import FusedKernel
from paretopress.spaces.kernels import Kernel
from paretopress.spaces.plan import Plan, kept_channels, plan, plan_layer
from paretopress.spaces.policy import DENSE, Policy
from paretopress.spaces.space import SearchSpace
from paretopress.spaces.structure import Structure

UNKNOWN_PRICE = 1e3   # times the dearest known kernel: what a device cannot execute is avoided, yet adds up
TERMS_KEPT = 8        # models with their spaces and devices, whose terms are kept

Term = tuple[tuple[str, ...], NDArray[np.float64]]
Integers = NDArray[np.int64]


class FactorGraph:
    """Cost terms of a space on one set of devices."""

    def __init__(self, structure: Structure, space: SearchSpace, costs: CostModel) -> None:
        self.structure, self.space, self.costs = structure, space, costs
        self.dense = plan(structure, DENSE)
        self.contexts = {32: self.dense, 8: plan(structure, Policy.of(structure.takers(Weights(8))))}
        self.merged = {bits: merged_sums(context) for bits, context in self.contexts.items()}
        self.by_main = {kernel.main: kernel for kernel in structure.fusion.kernels}
        self.droppable: dict[str, list[str]] = {}   # node to the groups that take it along
        for group, branch in structure.branches.items():
            if Keep(0.0) not in space.options.get(f"{group}/channels", ()):
                continue
            for name in (*branch.nodes, branch.sum):
                self.droppable.setdefault(name, []).append(group)
        self._made: dict[tuple[object, ...], tuple[list[Kernel], float]] = {}

    def terms(self) -> tuple[list[Term], list[Term]]:
        """Return the terms of relative time (1 = dense) and of relative size (1 = dense).

        Where a device cannot execute the dense model, its time is relative to the 8-bit model's.
        """
        time, size = [], []
        owners = self._owners()
        dense_costs = self.costs.predict(self.dense)
        integer_costs = self.costs.predict(self.contexts[8])
        whole = [next((costs[name] for costs in (dense_costs, integer_costs) if math.isfinite(costs[name])), 1.0)
                 for name in self.costs.latency_names]
        scale = [1.0 / max(value, 1e-12) for value in whole]
        for fused in self.structure.fusion.kernels:
            units = self._units(fused, owners.get(fused.main))
            if not units:
                continue
            made, places = self._enumerate(fused, units)
            shape = tuple(len(self.space.options[unit]) for unit in units)
            prices = self._price([kernels for kernels, _ in made], scale)
            time.append((units, prices[places].reshape(shape)))
            if fused.layer is not None:
                sizes = np.array([stored for _, stored in made], dtype=np.float64)
                size.append((units, sizes[places].reshape(shape) / dense_costs["size"]))
        return time, size

    def _owners(self) -> dict[str, str]:
        """Kernels without weights to the layer whose format decides theirs: the last one before them."""
        graph = self.structure.graph
        owner_of_value: dict[str, str] = {}
        owners: dict[str, str] = {}
        layer_of = {layer.node: layer.name for layer in self.structure.layers}
        for node in graph.nodes:
            if node.name in layer_of:
                owner_of_value[node.name] = layer_of[node.name]
                continue
            sources = [name for name in node.inputs if name in owner_of_value]
            if sources:
                last = max(sources, key=lambda name: graph.position[name])
                owner_of_value[node.name] = owner_of_value[last]
                owners[node.name] = owner_of_value[last]
        return owners

    def _units(self, fused: FusedKernel, owner: str | None) -> tuple[str, ...]:
        """Free units that a kernel's cost depends on."""
        names: list[str] = []
        values = self.structure.coupling.values
        sources = [name for name in self.structure.graph.by_name[fused.main].inputs if name in values]
        for name in (*sources, fused.output):
            for axis in values.get(name, ()):
                names += [f"{segment.group}/channels" for segment in axis or ()]
        names += self._droppable(fused)
        layer = fused.layer.name if fused.layer is not None else owner
        if fused.layer is not None:
            names.append(f"{layer}/rank")
        if layer is not None:
            names += [f"{layer}/sparsity", f"{layer}/weights"]
        return tuple(name for name in dict.fromkeys(names) if name in self.space.options)

    def _enumerate(
        self, fused: FusedKernel, units: Sequence[str]
    ) -> tuple[list[tuple[list[Kernel], float]], Integers]:
        """Kernels and stored bytes of the distinct combinations of options, and which of them each combination is."""
        options = [self.space.options[unit] for unit in units]
        grid = np.indices([len(choices) for choices in options]).reshape(len(units), -1)
        digits = np.stack(self._digits(fused, units, grid), axis=1)
        first, places = _distinct(digits)
        alike = self._signature(fused, units)
        made = []
        for row in first.tolist():
            key = (alike, *digits[row].tolist())
            if key not in self._made:
                numbers = grid[:, row].tolist()
                picked = {unit: choices[number] for unit, choices, number in zip(units, options, numbers, strict=True)}
                self._made[key] = self._kernels(fused, {unit: c for unit, c in picked.items() if c is not None})
            made.append(self._made[key])
        return made, places

    def _digits(self, fused: FusedKernel, units: Sequence[str], grid: Integers) -> list[Integers]:
        """What the kernels of combinations depend on: whether any choice is made, sizes, what is dropped, formats.

        Args:
            fused: The kernel.
            units: The units that combinations are of.
            grid: Option numbers, shape (units, combinations).
        """
        row = {unit: place for place, unit in enumerate(units)}
        chosen = [np.array([choice is not None for choice in self.space.options[unit]])[grid[row[unit]]]
                  for unit in units]
        digits = [np.logical_or.reduce(chosen).astype(np.int64)]
        for axis in self._axes(fused):
            size = np.zeros(grid.shape[1], dtype=np.int64)
            for segment in axis or ():
                unit = f"{segment.group}/channels"
                kept = self._kept[unit][grid[row[unit]]] if unit in row else self.dense.kept[segment.group]
                size += kept * segment.inner * segment.outer
            digits.append(size)
        digits += [(self._kept[unit][grid[row[unit]]] == 0).astype(np.int64) for unit in self._droppable(fused)]
        return digits + [grid[row[unit]] for unit in units if not unit.endswith("/channels")]

    def _ends(self, fused: FusedKernel) -> tuple[str, ...]:
        """The kernel's main operator, and the sums that it absorbs in some arithmetic."""
        return (fused.main, *(merged[fused.main] for merged in self.merged.values() if fused.main in merged))

    def _droppable(self, fused: FusedKernel) -> list[str]:
        """Units of the groups whose branch may take the kernel, or a sum that it absorbs, along."""
        groups = dict.fromkeys(group for end in self._ends(fused) for group in self.droppable.get(end, ()))
        return [f"{group}/channels" for group in groups]

    def _axes(self, fused: FusedKernel) -> tuple[Axis, ...]:
        """The dimensions that may change of what a kernel reads, of its weight, and of all that it makes."""
        graph, values = self.structure.graph, self.structure.coupling.values
        names = [*graph.by_name[fused.main].inputs]
        for end in self._ends(fused):
            names += [end, *self.by_main[end].absorbed]
        axes = [axis for name in names for axis in values.get(name, ())]
        axes += self.structure.weight_axes(fused.layer) if fused.layer is not None else ()
        return tuple(dict.fromkeys(axis for axis in axes if axis is not None))

    def _signature(self, fused: FusedKernel, units: Sequence[str]) -> tuple[object, ...]:
        """All that a kernel depends on beside `_digits`: those of alike layers differ in names alone."""
        layer = fused.layer
        formats = tuple(self.space.options[unit] for unit in units if not unit.endswith("/channels"))
        plain: dict[str, Choice] = {}
        unit = next((unit for unit in units if unit.endswith("/weights")), None)
        integer: dict[str, Choice] = {} if unit is None else {unit: Weights(8)}
        kernels = tuple(replace(kernel, name="", layer="")
                        for chosen in (plain, integer) for kernel in self._kernels(fused, chosen)[0])
        layout = (len(self._axes(fused)), len(self._droppable(fused)))   # what each of the digits stands for
        if layer is None:
            return (fused.family, formats, layout, kernels)
        return (fused.family, formats, layout, kernels, layer.takes_bias, replace(
            layer, name="", node="", weight="", bias="bias" if layer.bias else "", views=()))

    @cached_property
    def _kept(self) -> dict[str, Integers]:
        """Channels that every option of a group keeps."""
        found = {}
        for group in self.structure.coupling.groups:
            unit = f"{group.name}/channels"
            found[unit] = np.array([kept_channels(group, choice.ratio) if isinstance(choice, Keep) else group.size
                                    for choice in self.space.options.get(unit, ())], dtype=np.int64)
        return found

    def _kernels(self, fused: FusedKernel, chosen: Mapping[str, Choice]) -> tuple[list[Kernel], float]:
        bits = min((activation_bits(choice) for choice in chosen.values()), default=32)
        dropped = {unit.rpartition("/")[0] for unit, choice in chosen.items() if choice == Keep(0.0)}
        if dropped.intersection(self.droppable.get(fused.main, ())):
            return [], 0.0   # an activation that stays behind the sum is left out here
        kept = dict(self.dense.kept)
        for unit, choice in chosen.items():
            if isinstance(choice, Keep):
                group = self.structure.group(unit.rpartition("/")[0])
                kept[group.name] = kept_channels(group, choice.ratio)
        policy = Policy.of(chosen) if chosen else DENSE
        context = replace(self.contexts[bits], kept=kept, policy=policy)
        merged = self.merged[bits]
        if fused.layer is None:
            if fused.main in merged.values():
                return [], 0.0   # priced with the convolution that absorbs it
            return list(kernels_of(context, fused, None)), 0.0
        layer = plan_layer(self.structure, policy, kept, fused.layer)
        context = Plan(context.structure, policy, kept, (layer,), context.arithmetic)
        addition = self.by_main[merged[fused.main]] if fused.main in merged else None
        if addition is not None and dropped.intersection(self.droppable.get(addition.main, ())):
            addition = None
        return list(kernels_of(context, fused, addition)), float(layer.stored_bytes)

    def _price(self, groups: Sequence[Sequence[Kernel]], scale: Sequence[float]) -> NDArray[np.float64]:
        """Relative time of groups of kernels, averaged over the devices, shape (groups,)."""
        distinct = list(dict.fromkeys(kernel for kernels in groups for kernel in kernels))
        index = {kernel: position for position, kernel in enumerate(distinct)}
        total = np.zeros(len(groups))
        if not distinct:
            return total
        place = np.repeat(np.arange(len(groups)), [len(kernels) for kernels in groups])
        rows = np.array([index[kernel] for kernels in groups for kernel in kernels], dtype=np.int64)
        for device, factor in zip(self.costs.devices, scale, strict=True):
            prices = kernel_prices(device, distinct)
            unit = factor / 1000.0 if device.tier != "T0" else factor
            total += np.bincount(place, weights=prices[rows] * unit, minlength=len(groups))
        return total / len(self.costs.devices)


def _distinct(digits: Integers) -> tuple[Integers, Integers]:
    """First rows of every kind, and the kind of each row; rows are of integers that are not negative."""
    radices = digits.max(axis=0) + 1
    if math.prod(radices.tolist()) < 1 << 62:
        codes = np.ravel_multi_index(tuple(digits.T), tuple(radices.tolist()))
        _, first, places = np.unique(codes, return_index=True, return_inverse=True)
    else:
        _, first, places = np.unique(digits, axis=0, return_index=True, return_inverse=True)
    return first, places.reshape(-1)


def kernel_prices(device: DeviceProfile, kernels: Sequence[Kernel]) -> NDArray[np.float64]:
    """Price kernels, shape (n,); those that the device cannot execute get a large finite price."""
    prices = kernel_costs(device, kernels)
    unknown = np.isinf(prices)
    dearest = float(prices[~unknown].max(initial=0.0)) or 1.0
    return np.where(unknown, UNKNOWN_PRICE * dearest, prices)


_terms: dict[tuple[str, ...], tuple[list[Term], list[Term]]] = {}


def kernel_terms(structure: Structure, space: SearchSpace, costs: CostModel) -> tuple[list[Term], list[Term]]:
    """`FactorGraph.terms`, kept for the next time: what can be reached, seeds and surrogates all begin with them."""
    key = (structure.fingerprint, space.fingerprint, *(device.fingerprint for device in costs.devices))
    if key not in _terms:
        while len(_terms) >= TERMS_KEPT:
            del _terms[next(iter(_terms))]
        _terms[key] = FactorGraph(structure, space, costs).terms()
        for _, values in itertools.chain(*_terms[key]):
            values.setflags(write=False)
    time, size = _terms[key]
    return list(time), list(size)
