"""Builds ONNX models kernel by kernel, in float32 or int8 QDQ, together with the cost view they should have.

One builder serves the single-kernel models and the small random networks of `measure`. Every node and
value of kernel `i` has a name that begins with `k<i>_`, so that a runtime profile of the fused graph can
be mapped back to kernels.

Int8 follows the form that ONNX Runtime fuses on x86: activations uint8 per tensor, weights int8 per
output channel as integer initialisers, bias int32, and the ReLU before the QuantizeLinear.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from paretopress.hardware_profiles.onnx_graph import OPSET, ZERO_POINT, OnnxGraph, Value
from paretopress.spaces.kernels import Boundary, CostView, Family, Kernel, Lifetime, product


@dataclass
class ModelBuilder(OnnxGraph):
    """Collects nodes and kernels. `build()` gives the serialised model and its `CostView`."""

    kernels: list[Kernel] = field(default_factory=list)
    boundaries: list[Boundary] = field(default_factory=list)
    reads: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    input: Value | None = None
    _float_of: dict[str, Value] = field(default_factory=dict)

    def start(self, channels: int, size: tuple[int, ...]) -> Value:
        """Declare the float model input of shape (1, channels, *size)."""
        self.input = Value("input", channels, size, int8=False, kernel=-1)
        self.reads[-1] = (self.input.elements * 4, -1, -1)
        return self.input

    def conv(
        self,
        value: Value,
        cout: int,
        window: tuple[int, ...],
        stride: int = 1,
        *,
        groups: int = 1,
        relu: bool = True,
        int8: bool = False,
    ) -> Value:
        """A convolution with "same" padding, bias, and an optional ReLU that the kernel absorbs."""
        value = self._as(value, int8)
        cin = value.channels
        pads = [(k - 1) // 2 for k in window] + [k // 2 for k in window]
        shape = (cout, cin // groups, *window)
        prefix = self._prefix()
        inputs = [value.name, *self._weights(prefix, shape, int8)]
        self._node(
            "Conv",
            inputs,
            prefix,
            strides=[stride] * len(window),
            pads=pads,
            group=groups,
            kernel_shape=list(window),
        )
        size = tuple((s + k - 1 - k) // stride + 1 for s, k in zip(value.size, window, strict=True))
        family = Family.CONV if groups == 1 else Family.DEPTHWISE if groups == cin else Family.GROUPED
        return self._finish(
            prefix,
            [value],
            cout,
            size,
            int8,
            relu,
            family,
            window=window,
            stride=(stride,) * len(window),
            groups=groups,
            cin=cin,
            weight_bits=8 if int8 else 32,
        )

    def linear(
        self, value: Value, cout: int, *, relu: bool = False, int8: bool = False, last: bool = False
    ) -> Value:
        """A fully connected layer on (1, features); the `last` one writes floats also where it is int8."""
        value = self._as(value, int8)
        prefix = self._prefix()
        inputs = [value.name, *self._weights(prefix, (cout, value.channels), int8)]
        self._node("Gemm", inputs, prefix, transB=1)
        return self._finish(
            prefix,
            [value],
            cout,
            (),
            int8,
            relu,
            Family.LINEAR,
            cin=value.channels,
            weight_bits=8 if int8 else 32,
            requantise=int8 and not last,
        )

    def add(self, left: Value, right: Value, *, relu: bool = True, int8: bool = False) -> Value:
        """A residual sum; a float convolution that feeds it absorbs it, as the blocked kernels do."""
        left, right = self._as(left, int8), self._as(right, int8)
        first, last = sorted((left, right), key=lambda value: value.kernel)
        if not int8 and self._absorbs(last):
            return self._absorb_add(first, last, relu)
        prefix = self._prefix()
        self._node("Add", [left.name, right.name], prefix)
        return self._finish(
            prefix, [left, right], left.channels, left.size, int8, relu, Family.ADD, cin=left.channels
        )

    def _absorbs(self, value: Value) -> bool:
        if value.kernel < 0 or value.name != f"k{value.kernel}_value":
            return False
        kernel = self.kernels[value.kernel]
        unread = self.reads[value.kernel][2] == value.kernel
        return kernel.family in _CONVOLUTIONS and kernel.activation_bits == 32 and unread and not kernel.fused

    def _absorb_add(self, first: Value, last: Value, relu: bool) -> Value:
        prefix = f"k{last.kernel}"
        name = f"{prefix}_sum"
        self._node("Add", [first.name, last.name], prefix, "add", name)
        if relu:
            self._node("Relu", [name], prefix, "relu", f"{prefix}_relu_value")
            name = f"{prefix}_relu_value"
        self._read(first, last.kernel)
        kernel = self.kernels[last.kernel]
        self.kernels[last.kernel] = replace(
            kernel,
            fused=("add", "relu") if relu else ("add",),
            input_elements=kernel.input_elements + first.elements,
        )
        return replace(last, name=name)

    def pool(
        self, value: Value, window: int, stride: int, *, average: bool = False, int8: bool = False
    ) -> Value:
        """A windowed pooling without padding."""
        value = self._as(value, int8)
        prefix, rank = self._prefix(), len(value.size)
        self._node(
            "AveragePool" if average else "MaxPool",
            [value.name],
            prefix,
            kernel_shape=[window] * rank,
            strides=[stride] * rank,
        )
        size = tuple((s - window) // stride + 1 for s in value.size)
        return self._finish(
            prefix,
            [value],
            value.channels,
            size,
            int8,
            False,
            Family.POOL,
            cin=value.channels,
            window=(window,) * rank,
            stride=(stride,) * rank,
            keep_zero=not average,
        )

    def global_pool(self, value: Value, *, int8: bool = False) -> Value:
        """The mean over space, flattened to features."""
        value = self._as(value, int8)
        prefix = self._prefix()
        self._node("GlobalAveragePool", [value.name], prefix, output=f"{prefix}_mean")
        mean = f"{prefix}_mean"
        if int8:
            mean = self._requantise(mean, f"{prefix}_mean", value.zero_point)
        self._node("Flatten", [mean], prefix, suffix="flatten", axis=1)
        return self._finish(
            prefix,
            [value],
            value.channels,
            (),
            int8,
            False,
            Family.GLOBAL_POOL,
            cin=value.channels,
            keep_zero=True,
        )

    def elementwise(self, value: Value, operator: str) -> Value:
        """An activation that no kernel absorbs, in float."""
        value = self._as(value, False)
        prefix = self._prefix()
        self._node(operator, [value.name], prefix)
        return self._finish(
            prefix, [value], value.channels, value.size, False, False, Family.ELEMENTWISE, cin=value.channels,
            operator=operator.lower(),
        )

    def normalise(self, value: Value) -> Value:
        """Layer normalisation over everything but the batch, in float."""
        value = self._as(value, False)
        prefix = self._prefix()
        scale = self._constant(f"{prefix}_scale", np.ones((value.channels, *value.size), np.float32))
        self._node("LayerNormalization", [value.name, scale], prefix, axis=1)
        return self._finish(
            prefix, [value], value.channels, value.size, False, False, Family.NORM, cin=value.channels
        )

    def concat(self, left: Value, right: Value, *, int8: bool = False) -> Value:
        """Concatenation of channels."""
        left, right = self._as(left, int8), self._as(right, int8)
        prefix = self._prefix()
        self._node("Concat", [left.name, right.name], prefix, axis=1)
        return self._finish(
            prefix,
            [left, right],
            left.channels + right.channels,
            left.size,
            int8,
            False,
            Family.CONCAT,
            cin=left.channels + right.channels,
        )

    def pad(self, value: Value, *, int8: bool = False) -> Value:
        """Zero padding of one element on each side of each spatial dimension."""
        value = self._as(value, int8)
        prefix, rank = self._prefix(), len(value.size)
        pads = self._constant(f"{prefix}_pads", np.array([0, 0] + [1] * rank + [0, 0] + [1] * rank, np.int64))
        self._node("Pad", [value.name, pads], prefix)
        size = tuple(s + 2 for s in value.size)
        return self._finish(
            prefix,
            [value],
            value.channels,
            size,
            int8,
            False,
            Family.DATA,
            cin=value.channels,
            keep_zero=True,
        )

    def build(self, output: Value) -> tuple[bytes, CostView]:
        """Return the serialised model, its batch dimension dynamic as exported models have it, and its cost view."""
        import onnx
        from onnx import TensorProto, helper

        assert self.input is not None
        output = self._as(output, False)
        self._read(output, len(self.kernels))
        graph = helper.make_graph(
            self.nodes,
            "kernels",
            [
                helper.make_tensor_value_info(
                    "input", TensorProto.FLOAT, ["batch", self.input.channels, *self.input.size]
                )
            ],
            [
                helper.make_tensor_value_info(
                    output.name, TensorProto.FLOAT, ["batch", output.channels, *output.size]
                )
            ],
            self.initialisers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        onnx.checker.check_model(model)
        lifetimes = tuple(
            Lifetime("input" if index < 0 else self.kernels[index].name, *interval)
            for index, interval in sorted(self.reads.items())
        )
        view = CostView(tuple(self.kernels), tuple(self.boundaries), lifetimes, self.weight_bytes)
        return model.SerializeToString(), view

    def _prefix(self) -> str:
        return f"k{len(self.kernels)}"

    def _as(self, value: Value, int8: bool) -> Value:
        """The same tensor in the wanted arithmetic; a change is a boundary that is paid once per tensor."""
        if value.int8 == int8:
            return value
        known = self._float_of.get(value.name)
        if known is not None:
            return known
        kind = "quantize" if int8 else "dequantize"
        name = (
            value.name if not int8 else self._requantise(value.name, f"b{len(self.boundaries)}_{value.name}")
        )
        changed = Value(name, value.channels, value.size, int8, value.kernel)
        self.boundaries.append(Boundary(value.name, kind, value.elements, 2 + len(value.size)))
        self._float_of[value.name] = changed
        return changed

    def _read(self, value: Value, reader: int) -> None:
        size, first, last = self.reads[value.kernel]
        self.reads[value.kernel] = (size, first, max(last, reader))

    def _finish(
        self,
        prefix: str,
        inputs: list[Value],
        cout: int,
        size: tuple[int, ...],
        int8: bool,
        relu: bool,
        family: Family,
        *,
        cin: int,
        weight_bits: int = 32,
        window: tuple[int, ...] = (),
        stride: tuple[int, ...] = (),
        groups: int = 1,
        keep_zero: bool = False,
        requantise: bool | None = None,
        rows: int = 1,
        shape: tuple[int, ...] = (),
        features: int = 0,
        operator: str = "",
    ) -> Value:
        """Add the kernel's tail and record it.

        `keep_zero`: the operator leaves integers as they are. `shape`: of the value, behind the batch, where that is
        not `(cout, *size)`. `features`: output features of the kernel where those are not the value's channels.
        `operator`: function of an element-wise kernel.
        """
        name = f"{prefix}_value"
        zero_point = inputs[0].zero_point if keep_zero else 0 if relu else ZERO_POINT
        if relu:
            self._node("Relu", [name], prefix, "relu", f"{prefix}_relu_value")
            name = f"{prefix}_relu_value"
        quantised = int8 if requantise is None else requantise
        if quantised:
            name = self._requantise(name, prefix, zero_point)
        index = len(self.kernels)
        for value in inputs:
            self._read(value, index)
        elements = product(shape) if shape else cout * product(size)
        self.reads[index] = (elements * (1 if quantised else 4), index, index)
        self.kernels.append(
            Kernel(
                prefix,
                family,
                layer=prefix if weight_bits != 32 or family in _WEIGHTED else "",
                weight_bits=weight_bits,
                activation_bits=8 if int8 else 32,
                cin=cin,
                cout=features or cout,
                window=window,
                stride=stride,
                groups=groups,
                input_size=() if shape else inputs[0].size,
                output_size=size,
                rows=rows,
                fused=("relu",) if relu else (),
                input_elements=sum(value.elements for value in inputs),
                output_elements=elements,
                operator=operator,
            )
        )
        made, kept = (shape[0], shape[1:]) if shape else (cout, size)
        return Value(name, made, kept, quantised, index, zero_point)


_CONVOLUTIONS = (Family.CONV, Family.GROUPED, Family.DEPTHWISE)
_WEIGHTED = (*_CONVOLUTIONS, Family.LINEAR)
