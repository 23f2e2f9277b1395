"""Tuning a stitched network in one forward pass over calibration samples.

At every layer in turn: re-estimate the batch normalisation that was folded into it (mean and spread of
its output are matched to the dense model's), correct its bias, and set the ranges of quantised tensors,
each on the activations that the already tuned prefix produces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from paretopress.compressors.calibration import Calibration, mean_and_std
from paretopress.compressors.goals import Goal, layer_goals, shortcut_value
from paretopress.compressors.inputs import input_grid
from paretopress.compressors.network import Network, Part, Range, apply_part, apply_parts, axis_index, runner
from paretopress.compressors.program import Program, Values
from paretopress.compressors.quantisation import quantise_tensor, tensor_range
from paretopress.compressors.statistics_match import match_statistics
from paretopress.spaces.arithmetic import INNER
from paretopress.spaces.factor_forms import part_layers
from paretopress.spaces.plan import LayerPlan
from paretopress.spaces.weights_applied import source_of


class Tuning:
    """The state of one tuning pass: parts and ranges as they are settled."""

    def __init__(self, program: Program, network: Network, calibration: Calibration) -> None:
        self.program, self.network, self.calibration = program, network, calibration
        self.parts: dict[str, tuple[Part, ...]] = dict(network.parts)
        self.ranges: dict[str, Range] = dict(network.ranges)
        self.left = program.under(network.plan.structure)
        self.dense: Values = dict(calibration.values)
        self.goals = layer_goals(program.graph, network.plan.structure)
        self.wanted = {node: (one.output_mean, one.output_std) for node, one in calibration.layers.items()}

    def apply(self, layer: LayerPlan, x: Tensor, values: Values) -> Tensor:
        """Apply a layer, match its output statistics to the dense ones, and keep the corrected layer."""
        self.choose_grids(layer, x)
        y = apply_parts(self.network, layer, x, self.quantise)
        if layer.layer.frozen or not layer.layer.takes_bias:   # nowhere to put a correction
            return y
        scale, shift = self._correction(layer, y, values)
        parts = self.parts[layer.layer.node]
        self.parts[layer.layer.node] = (*parts[:-1], parts[-1].scaled(scale, shift))
        shape = (1, -1, *(1,) * len(layer.layer.window)) if layer.layer.window else (-1,)
        return y * scale.reshape(shape) + shift.reshape(shape)

    def choose_grids(self, layer: LayerPlan, x: Tensor) -> None:
        """Choose the grids of the inputs that a layer rounds for itself, by what it reads."""
        bits = layer.grid_bits
        if not bits:
            return
        node, found = layer.layer.node, []
        parts = self.network.parts[node]
        for operation, part in zip(part_layers(layer.layer, layer.factors), parts, strict=True):
            found.append(replace(part, inputs=input_grid(x, bits, self.calibration.ranges)))
            if len(found) < len(parts):
                x = apply_part(operation, found[-1], x, layer.groups)
        self.keep_parts(node, tuple(found))

    def keep_parts(self, node: str, parts: tuple[Part, ...]) -> None:
        """Compute with these parts of a layer from now on."""
        self.parts[node] = parts
        self.network = replace(self.network, parts={**self.network.parts, node: parts})

    def _kept(self, layer: LayerPlan) -> Tensor | None:
        """Output channels of a layer that are kept, None where all are."""
        return axis_index(self.network.plan.structure.weight_axes(layer.layer)[0], self.network.selection)

    def _target(self, goal: Goal, values: Values) -> Tensor:
        """The output a layer should have, with what the shortcut or a dropped branch behind it is missing."""
        shortcut = shortcut_value(self.left, self.network.plan, goal.shortcut, values) if goal.shortcut else None
        axes = self.network.plan.structure.coupling.values.get(goal.value) or ()
        return goal.target(self.dense, shortcut, axes, self.network.selection)

    def quantise(self, tensor: str, value: Tensor) -> Tensor:
        """Set the range of a tensor when it is first seen, and quantise it."""
        key = self.network.plan.arithmetic.range_of(tensor)
        if key not in self.ranges:
            self.ranges[key] = tensor_range(value, self.calibration.ranges)
        return quantise_tensor(value, *self.ranges[key])

    def _correction(self, layer: LayerPlan, y: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        structure, rows = self.network.plan.structure, self._kept(layer)
        wanted_mean, wanted_std = (
            one if rows is None else one[rows] for one in self.wanted[layer.layer.node])
        mean, std = mean_and_std(y, layer.layer)
        goal = self.goals.get(layer.layer.node)
        if goal is not None and goal.stands_in:
            return torch.ones_like(mean), mean_and_std(self._target(goal, values), layer.layer)[0] - mean
        if layer.layer.name in structure.folded_layers:
            return match_statistics(wanted_mean, wanted_std, mean, std)
        return torch.ones_like(mean), wanted_mean - mean


def tune(
    program: Program, network: Network, calibration: Calibration, *, cached: bool = True
) -> tuple[Network, Mapping[str, Any]]:
    """Tune a stitched network.

    Args:
        program: The captured dense model.
        network: A stitched network without ranges.
        calibration: Dense statistics and the samples to tune on.
        cached: Resume from the dense values where nothing before a node has changed.

    Returns:
        The tuned network, and the values of the output nodes on the tuning samples.
    """
    tuning = Tuning(program, network, calibration)
    changed = changed_nodes(program, network) if cached else None
    program = program.under(network.plan.structure)
    names = frozenset(node.name for node in program.graph.operators())
    skip = frozenset() if changed is None else names - changed
    with torch.inference_mode():
        values = program.run(
            calibration.inputs, runner(program, network, apply=tuning.apply, quantise=tuning.quantise),
            cached={name: calibration.values[name] for name in skip}, skip=skip,
        )
    return with_integer_biases(replace(network, parts=tuning.parts, ranges=tuning.ranges)), values


def with_integer_biases(network: Network) -> Network:
    """Round the biases of integer layers to the grid they are computed on: input scale times row scale.

    Integer kernels add an int32 bias; rounding it here makes the PyTorch reference compute the same.
    """
    arithmetic, graph = network.plan.arithmetic, network.plan.structure.graph
    parts = dict(network.parts)
    for layer in network.plan.layers:
        node = layer.layer.node
        if layer.activation_bits != 8:
            continue
        source = source_of(graph.by_name[node]) if len(parts[node]) == 1 else node + INNER[len(parts[node]) - 2]
        last = parts[node][-1]
        if last.bias is not None and last.rows is not None:
            grid = last.rows[1] * network.ranges[arithmetic.range_of(source)][0]
            rounded = (last.bias.double() / grid.double()).round() * grid.double()
            parts[node] = (*parts[node][:-1], replace(last, bias=rounded.to(last.bias.dtype)))
    return replace(network, parts=parts)


def changed_nodes(program: Program, network: Network) -> frozenset[str]:
    """Nodes whose values differ from the dense network's."""
    plan = network.plan
    structure, dense = plan.structure, program.graph
    program = program.under(structure)
    starts = {layer.layer.node for layer in plan.layers if layer.touched or layer.shape != layer.layer.shape}
    starts |= set(plan.arithmetic.ranges) & set(program.graph.by_name)
    starts |= set(plan.arithmetic.integer_kernels)
    starts -= set(program.graph.inputs)
    for name in plan.arithmetic.ranges:
        if name in plan.arithmetic.sources:
            starts.discard(name)
    pruned = {group.name for group in structure.coupling.groups if plan.kept[group.name] < group.size}
    for node in program.graph.operators():
        axes = structure.coupling.values.get(node.name) or ()
        if any(segment.group in pruned for axis in axes for segment in axis or ()):
            starts.add(node.name)
    starts |= {name for name, goal in layer_goals(dense, structure).items() if goal.stands_in}
    starts |= {node.name for node in program.graph.operators() if node.inputs != dense.by_name[node.name].inputs}
    return program.downstream(sorted(starts))
