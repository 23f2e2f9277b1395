"""Refit: one sequential, residual-aware pass that rebuilds a network on its own compressed prefix.

Every layer is solved again by least squares from the inputs it will really see (pruned, quantised) to
the outputs of the dense model; a layer whose output is added to a shortcut also repairs the shortcut's
error (He et al. 2017, section 3.2). Factors and integers are then redone on the new moments. For
survivors only: it costs two forward passes over the calibration set and one solve per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from paretopress.compressors.calibration import Calibration, accumulate
from paretopress.compressors.entries import Entries, Matrix, layer_parts
from paretopress.compressors.least_squares import refit_from_moments
from paretopress.compressors.moments import Moments
from paretopress.compressors.network import Network, Part, axis_index, runner
from paretopress.compressors.program import Program, Values
from paretopress.compressors.tuning import Tuning, changed_nodes, with_integer_biases
from paretopress.spaces.fusion import is_residual_sum
from paretopress.spaces.graph import Node
from paretopress.spaces.layers import LayerKind
from paretopress.spaces.plan import LayerPlan, Plan

OBSERVATIONS_PER_COLUMN = 4   # fewer and the solution fits noise: the layer is only tuned
DAMPING = 1e-3


class _Refit(Tuning):
    """A tuning pass that also solves every layer again."""

    def __init__(
        self, program: Program, network: Network, calibration: Calibration, entries: Entries, dense: Values, seed: int
    ) -> None:
        super().__init__(program, network, calibration)
        self.entries, self.dense = entries, dense
        self.changed = changed_nodes(program, network)
        self.generator = torch.Generator().manual_seed(seed)

    def apply(self, layer: LayerPlan, x: Tensor, values: Values) -> Tensor:
        """Solve a layer on its compressed inputs, then tune it."""
        node = layer.layer.node
        solvable = layer.layer.kind in (LayerKind.CONV, LayerKind.LINEAR) and not layer.layer.frozen
        if solvable and node in self.changed:
            parts = self._solve(layer, x, values)
            if parts is not None:
                self.parts[node] = parts
                self.network = replace(self.network, parts={**self.network.parts, node: parts})
        return super().apply(layer, x, values)

    def _solve(self, layer: LayerPlan, x: Tensor, values: Values) -> tuple[Part, ...] | None:
        target = self._target(layer, values)
        moments = Moments()
        accumulate(moments, layer.layer, x, self.generator, groups=1, targets=target)
        weight, bias = self.entries.float_matrix(layer, self.network.selection)
        if moments.count < OBSERVATIONS_PER_COLUMN * weight.shape[1]:
            return None
        second = moments.second_moments()[0]
        fitted, intercept = refit_from_moments(moments.cross()[0], second, DAMPING, weight)
        return layer_parts(layer, Matrix(fitted, intercept), second)

    def _target(self, layer: LayerPlan, values: Values) -> Tensor:
        """The dense output of the kept channels, plus what the shortcut behind it is missing."""
        plan, node = self.network.plan, self.program.graph.by_name[layer.layer.node]
        target = _kept(self.dense[node.name], plan, layer, self)
        other = _shortcut(self.program, node)
        if other is not None and other in values and other in self.dense:
            missing = _kept(self.dense[other], plan, layer, self)
            if missing.shape == values[other].shape == target.shape:
                target = target + missing - values[other]
        return target


def _kept(value: Tensor, plan: Plan, layer: LayerPlan, state: _Refit) -> Tensor:
    axes = plan.structure.coupling.parameters.get(layer.layer.weight)
    rows = axis_index(axes[0], state.network.selection) if axes else None
    return value if rows is None else value.index_select(1 if layer.layer.window else value.ndim - 1, rows)


def _shortcut(program: Program, node: Node) -> str | None:
    """The other operand of the residual sum that a layer's folded output goes into, if it does."""
    graph, name = program.graph, node.name
    users = graph.users[name]
    if len(users) == 1 and users[0] in program.structure.fusion.folds:
        name = users[0]
        users = graph.users[name]
    if len(users) != 1 or not is_residual_sum(graph, graph.by_name[users[0]]):
        return None
    others = [other for other in graph.by_name[users[0]].inputs if other != name]
    return others[0] if len(others) == 1 and graph.position[others[0]] < graph.position[node.name] else None


def refit(
    program: Program,
    entries: Entries,
    plan: Plan,
    inputs: Sequence[Tensor],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Network:
    """Build the network of a plan with every layer solved on its own compressed prefix.

    Args:
        program: The captured dense model.
        entries: Dense entries; channel choices and priors come from here.
        plan: What to build.
        inputs: Calibration samples as one batch, one tensor per model input.
        seed: Seed of the sampled output positions.
        progress: Called with nodes done and in all.
    """
    calibration = entries.calibration
    network = entries.stitch(plan)
    dense: Values = dict(zip(program.graph.inputs, inputs, strict=True))
    state = _Refit(program, network, calibration, entries, dense, seed)
    run_dense = runner(program, calibration.base)

    def quantise(tensor: str, value: Tensor) -> Tensor:
        return state.quantise(tensor, value)

    def evaluate(node: Node, values: Values) -> object:
        dense[node.name] = run_dense(node, dense)
        value = runner(program, state.network, apply=state.apply, quantise=quantise)(node, values)
        position = program.graph.position[node.name]
        for name in node.inputs:
            if program.last_use[name] == position:
                dense.pop(name, None)
        if progress:
            progress(position + 1, len(program.graph.nodes))
        return value

    with torch.inference_mode():
        program.run(inputs, evaluate)
    return with_integer_biases(program, replace(state.network, parts=state.parts, ranges=state.ranges))

