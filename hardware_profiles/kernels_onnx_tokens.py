"""Kernels of transformers, squeeze-and-excitation and dense blocks, in the forms that exported models have.

A sequence of `t` tokens with `n` features is a value of `t` channels and size `(n,)`; heads are channels too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paretopress.hardware_profiles.kernels_onnx import ModelBuilder
from paretopress.hardware_profiles.onnx_graph import SCALE, Value
from paretopress.spaces.kernels import Family, product


class NetworkBuilder(ModelBuilder):
    """All kernels that measured networks are made of."""

    def project(self, value: Value, cout: int, *, int8: bool = False) -> Value:
        """A linear layer on every token; an int8 one writes floats, as those in front of GELU and sums do."""
        value = self._as(value, int8)
        cin, prefix = value.size[-1], self._prefix()
        product_name = f"{prefix}_product"
        if int8:
            self.weight_bytes += cin * cout + 8 * cout
            integers = self._constant(
                f"{prefix}_integers", self._random.integers(-90, 90, (cout, cin)).astype(np.int8)
            )
            scales = self._constant(f"{prefix}_weight_scale", np.full(cout, 0.01, np.float32))
            zeros = self._constant(f"{prefix}_weight_zero", np.zeros(cout, np.int8))
            rows = f"{prefix}_weight_rows"
            self._node("DequantizeLinear", [integers, scales, zeros], prefix, "weight_dequantize", rows, axis=0)
            self._node("Transpose", [rows], prefix, "weight_transpose", f"{prefix}_weight", perm=[1, 0])
            bias_integers = self._constant(f"{prefix}_bias_integers", np.zeros(cout, np.int32))
            bias_scales = self._constant(f"{prefix}_bias_scale", np.full(cout, 0.01 * SCALE, np.float32))
            bias = f"{prefix}_bias"
            self._node("DequantizeLinear", [bias_integers, bias_scales], prefix, "bias_dequantize", bias, axis=0)
        else:
            self.weight_bytes += 4 * (cin * cout + cout)
            spread = float(np.sqrt(1.0 / cin))
            weight = (self._random.standard_normal((cin, cout)) * spread).astype(np.float32)
            self._constant(f"{prefix}_weight", weight)
            bias = self._constant(f"{prefix}_bias", np.zeros(cout, np.float32))
        self._node("MatMul", [value.name, f"{prefix}_weight"], prefix, "main", product_name)
        self._node("Add", [product_name, bias], prefix, "bias_add")
        return self._finish(
            prefix, [value], cout, (), int8, False, Family.LINEAR, cin=cin, weight_bits=8 if int8 else 32,
            requantise=False, rows=value.channels * product(value.size[:-1]), shape=(value.channels, cout),
        )

    def permute(self, value: Value, order: tuple[int, ...], shape: tuple[int, ...] | None = None) -> Value:
        """A copy with the dimensions behind the batch in another order, of the value viewed as `shape` first."""
        value = self._as(value, False)
        prefix, name = self._prefix(), value.name
        before = shape or (value.channels, *value.size)
        if shape is not None:
            numbers = self._constant(f"{prefix}_shape", np.array([1, *shape], np.int64))
            name = f"{prefix}_viewed"
            self._node("Reshape", [value.name, numbers], prefix, "view", name)
        self._node("Transpose", [name], prefix, perm=[0, *(axis + 1 for axis in order)])
        after = tuple(before[axis] for axis in order)
        return self._finish(
            prefix, [value], after[0], after[1:], False, False, Family.DATA, cin=before[0], keep_zero=True
        )

    def view(self, value: Value, shape: tuple[int, ...]) -> Value:
        """The same elements in another shape: free."""
        name = f"{value.name}_viewed"
        numbers = self._constant(f"{name}_shape", np.array([1, *shape], np.int64))
        self._node("Reshape", [value.name, numbers], f"k{value.kernel}", "view_back", name)
        return Value(name, shape[0], shape[1:], False, value.kernel)

    def matmul(self, left: Value, right: Value) -> Value:
        """The product of the last two dimensions of two activations, in float."""
        left, right = self._as(left, False), self._as(right, False)
        prefix = self._prefix()
        self._node("MatMul", [left.name, right.name], prefix)
        size = (*left.size[:-1], right.size[-1])
        return self._finish(
            prefix, [left, right], left.channels, size, False, False, Family.MATMUL, cin=left.size[-1],
            rows=left.channels * product(size[:-1]), features=right.size[-1],
        )

    def softmax(self, value: Value) -> Value:
        """Softmax over the last dimension, in float."""
        return self._normalisation(value, "Softmax", [], axis=-1)

    def layer_norm(self, value: Value) -> Value:
        """Layer normalisation of every token, in float; a residual sum in front stays its own kernel, as in files."""
        for node in self.nodes:
            if node.op_type == "Add" and value.name in node.output and self.kernels[value.kernel].family is Family.ADD:
                node.op_type = "Sum"
        scale = self._constant(f"{self._prefix()}_scale", np.ones(value.size[-1], np.float32))
        return self._normalisation(value, "LayerNormalization", [scale], axis=-1)

    def batch_norm(self, value: Value) -> Value:
        """Batch normalisation that no layer absorbs, in float."""
        prefix = self._prefix()
        names = [
            self._constant(f"{prefix}_{name}", np.full(value.channels, fill, np.float32))
            for name, fill in (("scale", 1.1), ("shift", 0.1), ("mean", 0.0), ("variance", 1.0))
        ]
        return self._normalisation(value, "BatchNormalization", names)

    def _normalisation(self, value: Value, operator: str, constants: list[str], axis: int | None = None) -> Value:
        value = self._as(value, False)
        prefix = self._prefix()
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        self._node(operator, [value.name, *constants], prefix, **attributes)
        return self._finish(
            prefix, [value], value.channels, value.size, False, False, Family.NORM, cin=value.channels
        )

    def scale_channels(self, value: Value, gate: Value) -> Value:
        """The product with one number per channel, as squeeze-and-excitation ends, in float."""
        value, gate = self._as(value, False), self._as(gate, False)
        prefix = self._prefix()
        self._node("Mul", [value.name, gate.name], prefix)
        return self._finish(
            prefix, [value, gate], value.channels, value.size, False, False, Family.ELEMENTWISE, cin=value.channels,
            operator="mul",
        )

    def pooled(self, value: Value) -> Value:
        """The mean over space, kept as 1x1, in float."""
        value = self._as(value, False)
        prefix = self._prefix()
        self._node("GlobalAveragePool", [value.name], prefix)
        return self._finish(
            prefix, [value], value.channels, (1,) * len(value.size), False, False, Family.GLOBAL_POOL,
            cin=value.channels,
        )

    def shuffle_pixels(self, value: Value, factor: int = 2) -> Value:
        """Channels become space, in float: what upsampling by a convolution ends in."""
        value = self._as(value, False)
        prefix, channels = self._prefix(), value.channels // factor ** len(value.size)
        self._node("DepthToSpace", [value.name], prefix, blocksize=factor, mode="CRD")
        size = tuple(side * factor for side in value.size)
        return self._finish(prefix, [value], channels, size, False, False, Family.OTHER, cin=value.channels)
