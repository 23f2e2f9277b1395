"""Where a network's ONNX graph quantises, dequantises and computes; what writes the operators is a backend.

The integer initialisers, scales and zero points are the artefact's own; no tool re-quantises. Weights
are int8 per channel behind `DequantizeLinear`, activations uint8 per tensor, biases int32 at the product
of both scales, which is the form ONNX Runtime fuses into integer kernels. Widths below 8 bits are held in
int8 (exact values, int8 speed). Operators that only move data work on the integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic

import torch
from torch import Tensor

from paretopress.compressors.affine import Affine
from paretopress.compressors.inputs import DynamicRange
from paretopress.compressors.network import Network, Part
from paretopress.compressors.onnx_backend import Backend, T
from paretopress.compressors.onnx_inputs import dynamic_layer, own_input
from paretopress.compressors.program import Program, Values, operator_weight
from paretopress.compressors.resized_arguments import argument_changes
from paretopress.compressors.stored import Floats, Integers, Shared
from paretopress.spaces.arithmetic import INNER
from paretopress.spaces.factor_forms import part_layers
from paretopress.spaces.graph import Node
from paretopress.spaces.layers import Layer, LayerKind
from paretopress.spaces.plan import LayerPlan
from paretopress.spaces.shortcuts import Subsampling
from paretopress.spaces.weights_applied import source_of

OPSET = 20
_PADDINGS = ("pad", "constant_pad_nd")


class Lowering(Generic[T]):
    """Computes the nodes of a program with ONNX's own quantisation operators where the plan is in integers."""

    def __init__(self, program: Program, network: Network, backend: Backend[T]) -> None:
        self.program, self.network, self.backend = program, network, backend
        self._integers: dict[str, T] = {}

    def run(self, inputs: Sequence[T]) -> Values:
        """Return the values of the graph's outputs."""
        self._integers = {}
        return self.program.run(inputs, self._evaluate)  # type: ignore[arg-type]

    def _evaluate(self, node: Node, values: Values) -> Any:  # noqa: ANN401
        network, arithmetic = self.network, self.network.plan.arithmetic
        if node.op in ("parameter", "constant"):
            tensor = network.state.get(node.target)
            return None if tensor is None else self.backend.constant(node.target, tensor)
        if node.name in network.plan.structure.weight_views:
            return None
        if network.folded and node.name in self.program.structure.fusion.folds:
            value = values[node.inputs[0]]
        elif node.name in network.plan.by_node and not network.plan.by_node[node.name].layer.frozen:
            value = self._layer(network.plan.by_node[node.name], node, values)
        elif node.name in network.plan.subsamplings:
            return self._subsample(network.plan.subsamplings[node.name], node, values)
        elif node.name in arithmetic.shared:
            return self._move(node, values)
        else:
            read = node.inputs if node.name in arithmetic.integer_kernels else ()
            seen = {name: self._read(name, values) for name in read if name in arithmetic.sources}
            value = self.backend.call(node, {**values, **seen}, argument_changes(network.plan, node))
        if node.name in arithmetic.ranges and node.name not in arithmetic.sources:
            return self._dequantise(node.name, self._quantise(node.name, value))
        return value

    def _read(self, tensor: str, values: Values) -> T:
        """A tensor as an integer kernel reads it: behind DequantizeLinear."""
        value: T = values[tensor]
        if tensor in self.network.plan.arithmetic.sources:
            integers = self._integers.get(tensor)
            return self._dequantise(tensor, self._quantise(tensor, value) if integers is None else integers)
        return value

    def _range(self, tensor: str) -> tuple[T, T]:
        key = self.network.plan.arithmetic.range_of(tensor)
        scale, zero_point = self.network.ranges[key]
        return (
            self.backend.constant(f"scale:{key}", torch.tensor(scale, dtype=torch.float32)),
            self.backend.constant(f"zero_point:{key}", torch.tensor(zero_point, dtype=torch.uint8)),
        )

    def _quantise(self, tensor: str, value: T) -> T:
        integers = self.backend.quantise(f"{tensor}_quantised", value, *self._range(tensor))
        self._integers[tensor] = integers
        return integers

    def _dequantise(self, tensor: str, integers: T) -> T:
        return self.backend.dequantise(f"{tensor}_dequantised", integers, *self._range(tensor))

    def _move(self, node: Node, values: Values) -> T:
        """Move integers instead of floats; zero padding pads with the zero point."""
        source = node.inputs[0]
        read = self._read(source, values)   # a source in floats is quantised here
        key = self.network.plan.arithmetic.range_of(node.name)
        if node.short_op.startswith("max_pool"):
            value: T = self.backend.call(node, {**values, source: read}, {})
            return self._dequantise(node.name, self._quantise(node.name, value))
        changes = dict(argument_changes(self.network.plan, node))
        if node.short_op in _PADDINGS:
            changes["value"] = self.network.ranges[key][1]
        integers: T = self.backend.call(node, {**values, source: self._integers[source]}, changes)
        self._integers[node.name] = integers
        return self._dequantise(node.name, integers)

    def _subsample(self, chain: Subsampling, node: Node, values: Values) -> T:
        """A chain of slices and paddings as one convolution; operators before its last pass their input on."""
        x = self._read(node.inputs[0], values)
        if node.name != chain.output:
            return x
        channels, wanted = (self.network.plan.shape(name)[1] for name in (chain.source, chain.output))
        before = argument_changes(self.network.plan, node)["pad"][4] if chain.before else 0   # less where it is pruned
        identity = torch.zeros(wanted, channels, 1, 1)
        identity[torch.arange(channels) + before, torch.arange(channels)] = 1.0
        # 64 / 64: a power of two keeps the requantisation exact, and pairs of products fit 16 bits.
        integers = (64 * identity).to(torch.int8).flatten(1)
        part = Part(identity, None, Integers(integers, torch.full((wanted,), 1 / 64), 8))
        layer = Layer(node.name, LayerKind.CONV, node.name, "", "", tuple(identity.shape), chain.stride, (0, 0), (1, 1))
        value = self.backend.layer(node.name, layer, x, self._weight(node.name, part), None, 1)
        return self._dequantise(node.name, self._quantise(node.name, value))

    def _layer(self, plan: LayerPlan, node: Node, values: Values) -> T:
        layer, parts = plan.layer, self.network.parts[node.name]
        source, integer = source_of(node), plan.activation_bits == 8
        applied = part_layers(layer, plan.factors)
        x: T = self._read(source, values) if integer else values[source]
        if layer.kind is LayerKind.EMBEDDING and parts[0].rows is not None:
            return self._look_up(node.name, layer, x, parts[0])
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            name = node.name if last else node.name + INNER[index]
            path = f"{layer.name}.{index}"
            if isinstance(part.inputs, DynamicRange):
                x = dynamic_layer(self.backend, name, path, applied[index], x, part, plan.groups)
                continue
            if part.inputs is not None:
                x = own_input(self.backend, path, applied[index], x, part.inputs)
            if plan.runs_in_blocks and isinstance(part.stored, Affine):
                x = self._block_product(name, path, x, part, part.stored)
                continue
            if not integer:
                x = self._apply_float(name, path, applied[index], x, part, plan.groups)
                continue
            flat = bool(layer.window) or len(node.shape) == 2   # ONNX Runtime adds integers there, else floats
            x = self._apply_integer(name, path, applied[index], x, part, source, plan.groups, flat)
            if not last:
                source = name
                x = self._dequantise(source, self._quantise(source, x))
        return x

    def _apply_float(self, name: str, path: str, layer: Layer, x: T, part: Part, groups: int) -> T:
        weight = self._float_weight(path, layer, part, groups)
        bias = None if part.bias is None else self.backend.constant(f"{path}.bias", part.bias)
        return self.backend.layer(name, layer, x, weight, bias, groups)

    def _float_weight(self, path: str, layer: Layer, part: Part, groups: int) -> T:
        """A weight that is computed with in floats, as small in the file as is exact; runtimes expand it once."""
        if part.rows is not None:
            whole = operator_weight(layer, part.rows[0].reshape(part.weight.shape), groups)
            integers = self.backend.constant(f"{path}.weight_integers", whole)
            scales = self.backend.constant(f"{path}.weight_scales", row_factors(layer, part, part.rows[1], groups))
            return self._expanded(f"{path}.weight", integers, scales)
        if isinstance(part.stored, Floats) and part.stored.values.dtype == torch.float16:
            values = operator_weight(layer, part.stored.values.reshape(part.weight.shape), groups)
            return self.backend.widen(f"{path}.weight", self.backend.constant(f"{path}.weight_half", values))
        if isinstance(part.stored, Affine) and part.stored.scales.shape[1] == 1:
            return self._offset_weight(path, layer, part, part.stored, groups)
        if isinstance(part.stored, Shared):
            indices = operator_weight(layer, part.stored.indices.reshape(part.weight.shape), groups)
            return self.backend.shared(
                f"{path}.weight", self.backend.constant(f"{path}.weight_codebook", part.stored.codebook),
                self.backend.constant(f"{path}.weight_indices", indices),
                self.backend.constant(f"{path}.weight_scales", row_factors(layer, part, part.stored.scales, groups)),
            )
        return self.backend.constant(f"{path}.weight", operator_weight(layer, part.weight, groups))

    def _offset_weight(self, path: str, layer: Layer, part: Part, stored: Affine, groups: int) -> T:
        """Codes less their zero points, times their scales, one of each per row or for all rows."""
        zeros = torch.full_like(stored.scales, float(stored.middle)) if stored.zeros is None else stored.zeros.float()
        rows = (tensor.expand(len(part.weight), 1).flatten() for tensor in (zeros, stored.scales))
        offsets, factors = (row_factors(layer, part, values.contiguous(), groups) for values in rows)
        codes = operator_weight(layer, stored.codes.reshape(part.weight.shape), groups)
        return self.backend.offset(
            f"{path}.weight", self.backend.constant(f"{path}.weight_codes", codes),
            self.backend.constant(f"{path}.weight_zeros", offsets),
            self.backend.constant(f"{path}.weight_scales", factors),
        )

    def _block_product(self, name: str, path: str, x: T, part: Part, stored: Affine) -> T:
        """A linear layer on 4-bit weights as they are, without ever expanding them."""
        out, columns = stored.codes.shape
        blocks = stored.scales.shape[1]
        codes = stored.codes.new_full((out, blocks * stored.group), stored.middle)
        codes[:, :columns] = stored.codes
        halves = codes.reshape(out, blocks, stored.group // 2, 2)
        zeros: T | None = None
        if stored.zeros is not None:
            padded = torch.cat([stored.zeros, stored.zeros.new_zeros(out, blocks % 2)], dim=1).reshape(out, -1, 2)
            zeros = self.backend.constant(f"{path}.weight_zeros", padded[..., 0] | (padded[..., 1] << 4))
        return self.backend.block_product(
            name, x, self.backend.constant(f"{path}.weight_blocks", halves[..., 0] | (halves[..., 1] << 4)),
            self.backend.constant(f"{path}.weight_scales", stored.scales), zeros,
            None if part.bias is None else self.backend.constant(f"{path}.bias", part.bias), columns, stored.group,
        )

    def _look_up(self, name: str, layer: Layer, x: T, part: Part) -> T:
        """Rows of integers and their scales are looked up, then multiplied: the table stays in integers."""
        assert part.rows is not None
        tables = part.rows[0], part.rows[1].unsqueeze(1)
        constants = (
            self.backend.constant(f"{layer.name}.{kind}", table)
            for kind, table in zip(("integers", "scales"), tables, strict=True)
        )
        integers, scales = (
            self.backend.layer(f"{name}_rows", layer, x, constant, None, 1) for constant in constants
        )
        return self.backend.expand(name, integers, scales)

    def _weight(self, path: str, part: Part) -> T:
        """Integer weights behind DequantizeLinear, one scale per output channel."""
        assert part.rows is not None
        whole, factors = part.rows
        integers = self.backend.constant(f"{path}.weight_integers", whole.reshape(part.weight.shape))
        scales = self.backend.constant(f"{path}.weight_scales", factors)
        zeros = self.backend.constant(f"{path}.weight_zeros", torch.zeros_like(factors, dtype=torch.int8))
        return self.backend.dequantise(f"{path}.weight", integers, scales, zeros, axis=0)

    def _expanded(self, name: str, integers: T, scales: T) -> T:
        """Integer weights of a layer that computes in floats, as a product.

        Runtimes compute products of constants once, when they load the file, and then run the layer at the speed
        of floats. `DequantizeLinear` on constants they keep, for integer kernels to find, and run on every call.
        """
        return self.backend.expand(name, integers, scales)

    def _apply_integer(
        self, name: str, path: str, layer: Layer, x: T, part: Part, source: str, groups: int, flat: bool
    ) -> T:
        """A layer of integers; its bias is stored as integers where kernels read it so, else as the same floats.

        `MatMul` has no bias: what is added behind it runtimes merge with other operators where it is a constant.
        """
        weight = self._weight(path, part)
        if part.bias is None or part.rows is None:
            return self.backend.layer(name, layer, x, weight, None, groups)
        scales = part.rows[1] * self.network.ranges[self.network.plan.arithmetic.range_of(source)][0]
        integers = (part.bias.double() / scales.double()).round().clamp(-(2**31) + 1, 2**31 - 1).to(torch.int32)
        if not flat:
            bias = self.backend.constant(f"{path}.bias", integers.float() * scales)
            return self.backend.layer(name, layer, x, weight, bias, groups)
        bias = self.backend.dequantise(
            f"{path}.bias",
            self.backend.constant(f"{path}.bias_integers", integers),
            self.backend.constant(f"{path}.bias_scales", scales),
            self.backend.constant(f"{path}.bias_zeros", torch.zeros_like(integers)),
            axis=0,
        )
        return self.backend.layer(name, layer, x, weight, bias, groups)


def row_factors(layer: Layer, part: Part, scales: Tensor, groups: int) -> Tensor:
    """Scales of rows, shaped to multiply a weight as PyTorch's function for the layer takes it."""
    factors = scales.reshape(-1, *(1,) * (part.weight.ndim - 1))
    if layer.kind is not LayerKind.TRANSPOSED:
        return factors
    factors = factors.transpose(0, 1)   # (in, out / groups, *window): rows of a group share its scales
    if groups == 1:
        return factors
    inputs, out = part.weight.shape[1], part.weight.shape[0] // groups
    return factors.reshape(groups, out, *factors.shape[2:]).repeat_interleave(inputs, dim=0)
