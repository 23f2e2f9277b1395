"""A network: real tensors for every layer of a plan, and how the captured graph runs on them.

There is no separate simulator. A candidate holds the smaller, factorised, dequantised weights and the
quantisation ranges of its activations; packing them is a lossless re-encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from paretopress.compressors.inputs import LayerInputs
from paretopress.compressors.program import Program, Values, apply_layer, call
from paretopress.compressors.quantisation import quantise_tensor
from paretopress.compressors.resized_arguments import argument_changes
from paretopress.compressors.stored import StoredWeight
from paretopress.spaces.arithmetic import INNER
from paretopress.spaces.coupling import Axis
from paretopress.spaces.factor_forms import part_layers
from paretopress.spaces.graph import Node
from paretopress.spaces.kernels import product
from paretopress.spaces.layers import Layer
from paretopress.spaces.plan import LayerPlan, Plan
from paretopress.spaces.weight_layout import by_outputs
from paretopress.spaces.weights_applied import source_of

Range = tuple[float, int]            # scale and zero point of an 8-bit tensor
Selection = Mapping[str, Tensor]     # kept channel indices of every group


@dataclass(frozen=True)
class Part:
    """One real layer: a whole layer or one of its factors.

    Attributes:
        weight: Float weights that are computed with, `(out, in / groups, *window)`.
        bias: `(out,)` or None.
        stored: What is stored in place of the weight, as a matrix; None where it is the weight itself.
        inputs: What becomes of its input before it computes, None where that is read as it is.
    """

    weight: Tensor
    bias: Tensor | None
    stored: StoredWeight | None = None
    inputs: LayerInputs | None = None

    @property
    def rows(self) -> tuple[Tensor, Tensor] | None:
        """Integers `(out, columns)` int8 and scales `(out,)` that stand for the weight, None where none do."""
        return None if self.stored is None else self.stored.rows()

    def scaled(self, scale: Tensor, shift: Tensor) -> Part:
        """Return the part with its output turned into `scale * y + shift` per channel.

        What is stored survives: row scales and the bias absorb it.
        """
        bias = torch.zeros_like(shift) if self.bias is None else self.bias
        bias = bias * scale + shift
        if self.stored is None:
            shape = (-1, *(1,) * (self.weight.ndim - 1))
            return replace(self, weight=self.weight * scale.reshape(shape), bias=bias)
        stored = self.stored.scaled(scale)
        return replace(self, weight=stored.weight().reshape(self.weight.shape), bias=bias, stored=stored)


class PackedPart(Part):
    """A part whose float weight is computed from what is stored whenever it is read.

    Args:
        shape: Of the weight, by outputs.
        bias: `(out,)` or None.
        read: Reads what is stored.
        inputs: What becomes of its input before it computes, None where that is read as it is.
    """

    shape: tuple[int, ...]
    read: Callable[[], StoredWeight]

    def __init__(
        self, shape: tuple[int, ...], bias: Tensor | None, read: Callable[[], StoredWeight], inputs: LayerInputs | None
    ) -> None:
        for name, value in (("shape", shape), ("bias", bias), ("read", read), ("inputs", inputs)):
            object.__setattr__(self, name, value)

    @property
    def weight(self) -> Tensor:
        """The float weight, anew."""
        return self.stored.weight().reshape(self.shape)

    @property
    def stored(self) -> StoredWeight:
        """What is stored, anew."""
        return self.read()


@dataclass(frozen=True)
class Network:
    """All tensors of a candidate.

    Attributes:
        plan: What they realise.
        parts: Layer node to its part, or to its two or three parts when factorised.
        state: Every other parameter, buffer and constant, at its pruned size.
        ranges: Range of every tensor in `plan.arithmetic.ranges`.
        selection: Kept channels of every pruned group.
        folded: Whether `parts` have batch normalisation folded in.
        equalised: Pairs of layers that were rescaled against each other before anything else was done to them; the
            values between them are not the dense model's then (`compressors/equalisation.py`).
    """

    plan: Plan
    parts: Mapping[str, tuple[Part, ...]]
    state: Mapping[str, Tensor]
    ranges: Mapping[str, Range]
    selection: Selection
    folded: bool
    equalised: int = 0


Apply = Callable[[LayerPlan, Tensor, Values], Tensor]
Quantise = Callable[[str, Tensor], Tensor]


def axis_index(axis: Axis, selection: Selection) -> Tensor | None:
    """Return the positions kept along a dimension, or None where all are.

    Args:
        axis: The dimension's axis.
        selection: Kept channels per group, sorted; a group that is missing keeps all.
    """
    if axis is None or not any(segment.group in selection for segment in axis):
        return None
    pieces, offset = [], 0
    for segment in axis:
        kept = selection.get(segment.group)
        channels = torch.arange(segment.size) if kept is None else kept
        inner = channels.unsqueeze(1) * segment.inner + torch.arange(segment.inner)
        pieces.append(inner.flatten() + offset)
        offset += segment.size * segment.inner
    once = torch.cat(pieces)
    return (torch.arange(axis[0].outer).unsqueeze(1) * offset + once).flatten()   # all of it may repeat


def channels_along(axis: Axis, starts: Mapping[str, int]) -> Tensor | None:
    """Return which channel every position along a dimension belongs to, None where it has none of the groups.

    Args:
        axis: The dimension's axis.
        starts: The number of the first channel of each group in question; of other groups it is -1 throughout.
    """
    if not axis or not any(segment.group in starts for segment in axis):
        return None
    pieces = [
        starts[segment.group] + torch.arange(segment.size) if segment.group in starts
        else torch.full((segment.size,), -1)
        for segment in axis
    ]
    once = torch.cat([piece.repeat_interleave(segment.inner) for piece, segment in zip(pieces, axis, strict=True)])
    return once.repeat(axis[0].outer)


def select(tensor: Tensor, axes: Sequence[Axis], selection: Selection) -> Tensor:
    """Return a parameter at its pruned size."""
    for dimension, axis in enumerate(axes):
        index = axis_index(axis, selection)
        if index is not None:
            tensor = tensor.index_select(dimension, index)
    return tensor


def runner(
    program: Program, network: Network, *, apply: Apply | None = None, quantise: Quantise | None = None
) -> Callable[[Node, Values], Any]:
    """Return the function that `Program.run` computes nodes with.

    Args:
        program: The captured model.
        network: The tensors to run with.
        apply: Replaces how a layer is applied (calibration and tuning look and change here).
        quantise: Replaces how a tensor is quantised (tuning sets ranges here).
    """
    plan = network.plan
    arithmetic = plan.arithmetic
    program = program.under(plan.structure)
    folds = plan.structure.fusion.folds if network.folded else {}
    apply = apply or (lambda layer, x, _: apply_parts(network, layer, x, quantise_known))

    def quantise_known(tensor: str, value: Tensor) -> Tensor:
        return quantise_tensor(value, *network.ranges[arithmetic.range_of(tensor)])

    quantise = quantise or quantise_known

    def read(tensor: str, values: Values) -> Tensor:
        """A tensor as an integer kernel reads it."""
        value = values[tensor]
        return quantise(tensor, value) if tensor in arithmetic.sources else value

    def evaluate(node: Node, values: Values) -> Any:  # noqa: ANN401
        if node.op in ("parameter", "constant"):
            return network.state.get(node.target)
        if node.name in plan.structure.weight_views:
            return None
        if node.name in folds:
            value = values[node.inputs[0]]
        elif node.name in plan.by_node and not plan.by_node[node.name].layer.frozen:
            layer = plan.by_node[node.name]
            source = source_of(node)
            x = read(source, values) if layer.activation_bits == 8 else values[source]
            value = apply(layer, x, values)
        elif node.name in arithmetic.integer_kernels:
            seen = {name: read(name, values) for name in node.inputs if isinstance(values.get(name), Tensor)}
            value = call(program, node, {**values, **seen}, argument_changes(plan, node))
        else:
            value = call(program, node, values, argument_changes(plan, node))
        if node.name in arithmetic.ranges and node.name not in arithmetic.sources:
            return quantise(node.name, value)
        return value

    return evaluate


def apply_parts(network: Network, layer: LayerPlan, x: Tensor, quantise: Quantise) -> Tensor:
    """Apply a layer's part or parts to its (already quantised) input."""
    parts = network.parts[layer.layer.node]
    operations = part_layers(layer.layer, layer.factors)
    for index, (operation, part) in enumerate(zip(operations, parts, strict=True)):
        x = apply_part(operation, part, x, layer.groups)
        if layer.activation_bits == 8 and index < len(parts) - 1:
            x = quantise(layer.layer.node + INNER[index], x)
    return x


def apply_part(operation: Layer, part: Part, x: Tensor, groups: int) -> Tensor:
    """Apply one real layer to its input as it is made."""
    return apply_layer(operation, as_read(operation, part, x), part.weight, part.bias, groups)


def as_read(layer: Layer, part: Part, x: Tensor) -> Tensor:
    """A real layer's input as it computes on it: signs or rounded, where it makes it so."""
    return x if part.inputs is None else part.inputs.of(x, 1 if layer.window else x.ndim - 1)


def forward(program: Program, network: Network, inputs: Sequence[Tensor]) -> Any:  # noqa: ANN401
    """Run a network and return what the user's model would return."""
    program = program.under(network.plan.structure)
    return program.outputs(program.run(inputs, runner(program, network)))


def layer_columns(weight: Tensor) -> Tensor:
    """A weight as a matrix `(out, columns)`."""
    return weight.reshape(weight.shape[0], -1)


def kept_columns(layer: Layer, axis: Axis, selection: Selection) -> Tensor | None:
    """Columns of a layer's weight matrix that stay, None where all do."""
    index = axis_index(axis, selection)
    if index is None:
        return None
    window = product(layer.window)
    return (index.unsqueeze(1) * window + torch.arange(window)).flatten()


def dense_network(program: Program, plan: Plan) -> Network:
    """The unchanged model as a network of the dense plan."""
    parts = {}
    for layer_plan in plan.layers:
        layer = layer_plan.layer
        bias = program.state[layer.bias] if layer.bias else None
        parts[layer.node] = (Part(by_outputs(layer, program.state[layer.weight], layer.groups), bias),)
    return Network(plan, parts, program.state, {}, {}, folded=False)
