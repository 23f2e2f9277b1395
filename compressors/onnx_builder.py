"""Writes an ONNX graph operator by operator.

Shapes come from PyTorch itself: every operator is also applied to tensors without data ("meta"), once at each
of two batch sizes. A dimension that comes out different depends on the batch; all others are fixed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from paretopress.compressors.onnx_known import computed, single_row
from paretopress.compressors.onnx_values import (
    Metas,
    UntranslatableError,
    Value,
    Varying,
    convolution_attributes,
    element_type,
    require,
)
from paretopress.compressors.program import Program, Values, apply_operator, call
from paretopress.spaces.graph import Node, Ref
from paretopress.spaces.layers import Layer, LayerKind

IR_VERSION = 10      # the one that goes with opset 20
CONTRIBUTED = "com.microsoft"   # operators of ONNX Runtime that are not in the standard
SHARED_ELEMENTS = 1024   # equal constants up to this size are stored once
BATCH = "batch"


Rule = Callable[["Builder", str, Mapping[str, Any], Any], Any]


class Builder:
    """The backend that writes ONNX operators. Names of values are names of the captured graph's nodes."""

    def __init__(self, program: Program, opset: int, rules: Mapping[str, Rule]) -> None:
        self.program, self.opset, self.rules = program, opset, rules
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.values: dict[str, Value] = {}
        self._constants: dict[str, Value] = {}
        self._shared: dict[tuple[Any, ...], str] = {}
        self._converted: dict[tuple[str, ...], Value] = {}
        self._dynamic: dict[str, tuple[Value, Value, Value]] = {}
        self.masks: dict[str, tuple[Value, Value]] = {}   # of attention, by name
        self._inputs: list[Value] = []
        self._known: dict[str, Value] = {}

    def model(self, inputs: Sequence[Value], outputs: Sequence[Value]) -> Any:  # noqa: ANN401
        """Return all that was written as a `ModelProto`."""
        from onnx import helper

        returned: list[Value] = []
        for value in outputs:
            constant = value.tensor is not None or value.contents is not None
            elsewhere = constant or value in inputs or value in returned
            returned.append(self.emit("Identity", [value], value.name, value.metas) if elsewhere else value)
        ends = {value.name for value in (*inputs, *returned)}
        inner = [_info(value) for name, value in self.values.items() if name not in ends and value.tensor is None]
        graph = helper.make_graph(
            self.nodes, "main_graph", [_info(value) for value in inputs], [_info(value) for value in returned],
            self.initializers, value_info=inner,
        )
        uses = any(node.domain == CONTRIBUTED for node in self.nodes)
        contributed = [helper.make_opsetid(CONTRIBUTED, 1)] if uses else []
        return helper.make_model(
            graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", self.opset), *contributed],
            producer_name="paretopress", producer_version=metadata.version("paretopress"),
        )

    def input(self, name: str, metas: Metas) -> Value:
        """An input of the graph."""
        self._inputs.append(self._register(name, metas))
        return self._inputs[-1]

    def emit(
        self, op: str, inputs: Sequence[Value | None], name: str, metas: Metas, **attributes: Any  # noqa: ANN401
    ) -> Value:
        """Write an operator with one output, which gets the name, made unique."""
        (value,) = self.emit_many(op, inputs, [name], [metas], **attributes)
        return value

    def emit_many(
        self,
        op: str,
        inputs: Sequence[Value | None],
        names: Sequence[str],
        metas: Sequence[Metas],
        **attributes: Any,  # noqa: ANN401
    ) -> list[Value]:
        """Write an operator with several outputs."""
        from onnx import helper

        read = ["" if value is None else self._written(value).name for value in inputs]
        values = [self._register(name, meta) for name, meta in zip(names, metas, strict=True)]
        written = [value.name for value in values]
        self.nodes.append(helper.make_node(op, read, written, name=written[0], **attributes))
        return values

    def constant(self, name: str, tensor: Tensor) -> Value:
        """An initialiser, the same one whenever the name is the same; small equal ones share their content."""
        known = self._constants.get(name)
        if known is None:
            known = self._constants[name] = self._store(name, tensor.detach().cpu().contiguous())
        return known

    def _store(self, name: str, tensor: Tensor) -> Value:
        from onnx import numpy_helper

        array = tensor.numpy()
        meta = tensor.to("meta")
        content = hashlib.sha256(array.tobytes()).digest() if tensor.numel() <= SHARED_ELEMENTS else name
        key = (tensor.dtype, tuple(tensor.shape), content)
        stored = self._shared.get(key)
        if stored is None:
            value = self._register(name, (meta, meta), tensor)
            self._shared[key] = value.name
            self.initializers.append(numpy_helper.from_array(array, value.name))
            return value
        return self.values[stored]

    def _written(self, value: Value) -> Value:
        """A value that operators can read: what follows from sizes alone becomes a constant, or a row expanded."""
        if value.contents is None:
            return value
        if value.name not in self._known:
            one, other = value.contents
            row = single_row(value.contents)
            if one.shape == other.shape and torch.equal(one, other):
                self._known[value.name] = self.constant(f"{value.name}:known", one)
            elif row is not None:
                constant = self.constant(f"{value.name}:row", row)
                self._known[value.name] = self.expanded(value.name, constant, value.metas)
            else:
                raise UntranslatableError("numbers that depend on the batch")
        return self._known[value.name]

    def expanded(self, name: str, x: Value, metas: Metas) -> Value:
        """`Expand` to the shape of `metas`, whose first dimension alone may depend on the batch."""
        sizes = Value("", metas).shape
        require(None not in sizes[1:], "an expansion that depends on the batch")
        target = self.numbers("sizes", [1 if size is None else size for size in sizes])
        if sizes and sizes[0] is None and x.shape[:1] != (None,):
            require(bool(self._inputs) and self._inputs[0].shape[0] is None, "a batch that no input has")
            number, rest = torch.empty(1, dtype=torch.int64, device="meta"), list(sizes[1:])
            target = self.emit("Shape", [self._inputs[0]], "batch_size", (number, number), start=0, end=1)
            if rest:
                whole = torch.empty(len(sizes), dtype=torch.int64, device="meta")
                parts = [target, self.numbers("sizes", [int(size or 1) for size in rest])]
                target = self.emit("Concat", parts, f"{name}_sizes", (whole, whole), axis=0)
        return self.emit("Expand", [x, target], name, metas)

    def numbers(self, name: str, numbers: Sequence[int] | int) -> Value:
        """An int64 constant: a list, or a scalar for a single number."""
        return self.constant(f"{name}:{numbers}", torch.tensor(numbers, dtype=torch.int64))

    def quantise(self, name: str, value: Value, scale: Value, zero_point: Value) -> Value:
        """`QuantizeLinear` to uint8."""
        return self._convert("QuantizeLinear", name, [value, scale, zero_point], torch.uint8)

    def dequantise(self, name: str, integers: Value, scale: Value, zero_point: Value, axis: int | None = None) -> Value:
        """`DequantizeLinear`, per tensor or along an axis."""
        attributes = {} if axis is None else {"axis": axis}
        return self._convert("DequantizeLinear", name, [integers, scale, zero_point], torch.float32, **attributes)

    def expand(self, name: str, integers: Value, scale: Value) -> Value:
        """`Cast` and `Mul`: integers times their scale, which broadcasts."""
        floats = self._convert("Cast", f"{name}_cast", [integers], torch.float32, to=1)   # TensorProto.FLOAT
        key = ("Mul", floats.name, scale.name)
        if key not in self._converted:
            one, other = (meta.to(torch.float32) for meta in integers.metas)
            self._converted[key] = self.emit("Mul", [floats, scale], name, (one, other))
        return self._converted[key]

    def widen(self, name: str, halves: Value) -> Value:
        """`Cast` of 16-bit floats to 32 bits."""
        return self._convert("Cast", name, [halves], torch.float32, to=1)   # TensorProto.FLOAT

    def shared(self, name: str, codebook: Value, indices: Value, scale: Value) -> Value:
        """`Cast`, `Gather` and `Mul`: shared values by their indices, times a scale, which broadcasts."""
        places = self._convert("Cast", f"{name}_places", [indices], torch.int32, to=6)   # TensorProto.INT32
        one, other = (meta.to(torch.float32) for meta in indices.metas)
        values = self.emit("Gather", [codebook, places], f"{name}_values", (one, other), axis=0)
        return self.emit("Mul", [values, scale], name, (one, other))

    def offset(self, name: str, codes: Value, zeros: Value, scale: Value) -> Value:
        """`Cast`, `Sub` and `Mul`: codes less what stands for zero, times a scale; both broadcast."""
        one, other = (meta.to(torch.float32) for meta in codes.metas)
        floats = self._convert("Cast", f"{name}_cast", [codes], torch.float32, to=1)   # TensorProto.FLOAT
        centred = self.emit("Sub", [floats, zeros], f"{name}_less", (one, other))
        return self.emit("Mul", [centred, scale], name, (one, other))

    def block_product(
        self, name: str, x: Value, blocks: Value, scales: Value, zeros: Value | None, bias: Value | None,
        columns: int, group: int,
    ) -> Value:
        """`MatMulNBits`: a linear layer on 4-bit weights with scales of groups of inputs."""
        rows = len(blocks.metas[0])
        one, other = (meta.new_empty((*meta.shape[:-1], rows), device="meta") for meta in x.metas)
        read = [x, blocks, scales] if zeros is None else [x, blocks, scales, zeros]
        label = name if bias is None else f"{name}_product"
        product = self.emit(
            "MatMulNBits", read, label, (one, other), domain=CONTRIBUTED, K=columns, N=rows, bits=4, block_size=group)
        return product if bias is None else self.emit("Add", [product, bias], name, (one, other))

    def signs(self, name: str, x: Value, thresholds: Value, positive: Value, negative: Value) -> Value:
        """`GreaterOrEqual` and `Where`."""
        one, other = (meta.to(torch.bool) for meta in x.metas)
        above = self.emit("GreaterOrEqual", [x, thresholds], f"{name}_above", (one, other))
        return self.emit("Where", [above, positive, negative], name, x.metas)

    def rounded(self, name: str, x: Value, step: Value, lowest: Value, highest: Value) -> Value:
        """`Div`, `Round`, `Clip` and `Mul`: the nearest multiples of a step, from the lowest to the highest."""
        steps = self.emit("Div", [x, step], f"{name}_steps", x.metas)
        levels = self.emit("Round", [steps], f"{name}_levels", x.metas)   # ties to even, as PyTorch does
        clipped = self.emit("Clip", [levels, lowest, highest], f"{name}_clipped", x.metas)
        return self.emit("Mul", [clipped, step], f"{name}_rounded", x.metas)

    def quantise_dynamically(self, x: Value) -> tuple[Value, Value, Value]:
        """`DynamicQuantizeLinear`: codes, scale and zero point; written once, however many layers read the tensor."""
        if x.name not in self._dynamic:
            names = [f"{x.name}_{kind}" for kind in ("codes", "scale", "zero_point")]
            one, other = (meta.to(torch.uint8) for meta in x.metas)
            scale, zero_point = (torch.empty((), dtype=dtype, device="meta") for dtype in (torch.float32, torch.uint8))
            metas = [(one, other), (scale, scale), (zero_point, zero_point)]
            codes, scales, zeros = self.emit_many("DynamicQuantizeLinear", [x], names, metas)
            self._dynamic[x.name] = codes, scales, zeros
        return self._dynamic[x.name]

    def integer_layer(
        self, name: str, layer: Layer, x: Value, zero_point: Value, weight: Value, weight_zero: Value, groups: int
    ) -> Value:
        """`MatMulInteger`, the weight as `(in, out)`, or `ConvInteger`: sums of products of integers."""
        read = [x, weight, zero_point, weight_zero]
        if not layer.window:
            one, other = (meta.new_empty((*meta.shape[:-1], weight.metas[0].shape[1]), dtype=torch.int32)
                          for meta in x.metas)
            return self.emit("MatMulInteger", read, name, (one, other))
        one, other = (
            apply_operator(layer, x.metas[side].float(), weight.metas[side].float(), None, groups).to(torch.int32)
            for side in range(2)
        )
        return self.emit("ConvInteger", read, name, (one, other), **convolution_attributes(layer, groups))

    def scaled_sums(self, name: str, sums: Value, scale: Value, factors: Value, bias: Value | None) -> Value:
        """`Cast`, `Mul` and `Add`, in the order that ONNX Runtime fuses with the product."""
        floats = self._convert("Cast", f"{name}_cast", [sums], torch.float32, to=1)   # TensorProto.FLOAT
        steps = self.emit("Mul", [scale, factors], f"{name}_steps", factors.metas)
        label = name if bias is None else f"{name}_product"
        product = self.emit("Mul", [floats, steps], label, floats.metas)
        return product if bias is None else self.emit("Add", [product, bias], name, product.metas)

    def _convert(self, op: str, name: str, inputs: list[Value], dtype: torch.dtype, **attributes: int) -> Value:
        """Write a conversion once, however many operators read it."""
        key = (op, *(value.name for value in inputs), *map(str, attributes.values()))
        if key not in self._converted:
            one, other = (meta.to(dtype) for meta in inputs[0].metas)
            self._converted[key] = self.emit(op, inputs, name, (one, other), **attributes)
        return self._converted[key]

    def layer(self, name: str, layer: Layer, x: Value, weight: Value, bias: Value | None, groups: int) -> Value:
        """A convolution or linear layer."""
        metas = tuple(
            apply_operator(layer, x.metas[i], weight.metas[i], None if bias is None else bias.metas[i], groups)
            for i in range(2)
        )
        arguments = {
            "input": x, "indices": x, "weight": weight, "bias": bias, "stride": layer.stride, "padding": layer.padding,
            "dilation": layer.dilation, "groups": groups, "output_padding": layer.output_padding,
        }
        convolution = "conv_transpose2d" if layer.kind is LayerKind.TRANSPOSED else "conv2d"
        kind = convolution if layer.window else "embedding" if layer.kind is LayerKind.EMBEDDING else "linear"
        value: Value = self.rules[kind](self, name, arguments, metas)
        return value

    def call(self, node: Node, values: Values, changes: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Any other operator: its rule writes it."""
        arguments = {name: _fill(value, values) for name, value in {**node.arguments, **changes}.items()}
        if node.op == "python.operator.getitem":
            sequence, index = arguments.values()
            if not isinstance(sequence, list) or not isinstance(index, int):
                raise UntranslatableError(node.op)
            return sequence[index]
        if node.op.partition(".")[0] != "aten":
            raise UntranslatableError(node.op)
        contents = computed(self.program, node, values, changes)
        if contents is not None:
            one, other = (tensor.to("meta") for tensor in contents)
            return Value(node.name, (one, other), contents=contents)
        metas = self._metas(node, values, changes)
        if isinstance(metas[0], int):
            return metas[0] if metas[0] == metas[1] else Varying(metas)
        rule = self.rules.get(node.short_op)
        if rule is None:
            raise UntranslatableError(node.op)
        return rule(self, node.name, arguments, metas)

    def _metas(self, node: Node, values: Values, changes: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """What the operator returns at the two batch sizes: pairs of tensors, a list of pairs, or two numbers."""
        if node.arguments.get("device") is not None:   # a cast that names the device as well
            changes = {**changes, "device": torch.device("meta")}
        results = [
            call(self.program, node, {name: _side(values[name], side) for name in node.inputs}, changes)
            for side in range(2)
        ]
        if isinstance(results[0], list | tuple):
            return list(zip(*results, strict=True))
        return tuple(results)

    def _register(self, name: str, metas: Metas, tensor: Tensor | None = None) -> Value:
        plain = wanted = name.replace(".", "_").replace(":", "_").replace(" ", "")
        count = 1
        while plain in self.values:
            plain, count = f"{wanted}_{count}", count + 1
        value = self.values[plain] = Value(plain, metas, tensor)
        return value


def _fill(value: Any, values: Values) -> Any:  # noqa: ANN401
    if isinstance(value, Ref):
        return values[value.node]
    return [_fill(item, values) for item in value] if isinstance(value, list) else value


def _side(value: Any, side: int) -> Any:  # noqa: ANN401
    """A value at one of the two batch sizes."""
    if isinstance(value, Value):
        return value.metas[side]
    if isinstance(value, Varying):
        return value.numbers[side]
    return [_side(item, side) for item in value] if isinstance(value, list) else value


def _info(value: Value) -> Any:  # noqa: ANN401
    from onnx import helper

    shape = [BATCH if index == 0 and size is None else size for index, size in enumerate(value.shape)]
    return helper.make_tensor_value_info(value.name, element_type(value.dtype), shape)
