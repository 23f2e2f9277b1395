"""One rule per PyTorch operator: the ONNX operators that compute the same.

A rule gets the builder, the name of the node, its arguments by schema name (tensors as `Value`) and the result
without data at two batch sizes; it writes operators and returns what stands for the result. Whatever a rule
does not cover it refuses, and the graph is exported through `torch.onnx` instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from paretopress.compressors.onnx_attention import attention
from paretopress.compressors.onnx_builder import Builder, Rule
from paretopress.compressors.onnx_data_operators import DATA_RULES, reshaped, transposed
from paretopress.compressors.onnx_known import contents_of
from paretopress.compressors.onnx_values import Metas, Value, Varying, as_tensor, require, static_sizes

Arguments = Mapping[str, Any]


def _per_dimension(value: Any, count: int) -> list[int]:  # noqa: ANN401
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * count if len(values) == 1 else values


def _elementwise(op: str, **attributes: Any) -> Rule:  # noqa: ANN401
    """An operator on every element, with fixed attributes."""

    def rule(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
        return builder.emit(op, [as_tensor(next(iter(arguments.values())))], name, metas, **attributes)

    return rule


def _binary(op: str) -> Rule:
    """An operator on two broadcast tensors of one type, or on a tensor and a number."""

    def rule(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
        require(arguments.get("alpha", 1) == 1 and arguments.get("rounding_mode") is None, f"{op} with options")
        x, y = as_tensor(arguments["self"]), arguments["other"]
        if isinstance(y, int | float) and not isinstance(y, bool):
            y = builder.constant(f"{name}:other", torch.tensor(y, dtype=x.dtype))
        require(x.dtype == as_tensor(y).dtype == metas[0].dtype, f"{op} of several types")
        return builder.emit(op, [x, y], name, metas)

    return rule


def _comparison(op: str) -> Rule:
    """A comparison of two broadcast tensors of one type, or of a tensor with a number."""

    def rule(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
        x, y = as_tensor(arguments["self"]), arguments["other"]
        if isinstance(y, int | float) and not isinstance(y, bool):
            y = builder.constant(f"{name}:other", torch.tensor(y, dtype=x.dtype))
        require(x.dtype == as_tensor(y).dtype and x.dtype != torch.bool, f"{op} of several types")
        return builder.emit(op, [x, y], name, metas)

    return rule


def _same(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:  # noqa: ARG001 - a rule
    """An operator that does nothing at inference, except that memory may be laid out anew for a view."""
    require(not arguments.get("train"), "dropout in training")
    return replace(as_tensor(next(iter(arguments.values()))), metas=metas)


def _convolution(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    x, weight, bias = as_tensor(arguments["input"]), as_tensor(arguments["weight"]), arguments["bias"]
    window = static_sizes(weight, *range(2, len(weight.shape)))
    require(len(x.shape) == len(weight.shape), "a convolution without a batch")
    static_sizes(x, *range(1, len(x.shape)))
    dilation = _per_dimension(arguments["dilation"], len(window))
    if arguments["padding"] == "same":
        total = [step * (size - 1) for step, size in zip(dilation, window, strict=True)]
        pads = [amount // 2 for amount in total] + [amount - amount // 2 for amount in total]
    else:
        padding = 0 if arguments["padding"] == "valid" else arguments["padding"]
        pads = 2 * _per_dimension(padding, len(window))
    return builder.emit(
        "Conv", [x, weight, *([] if bias is None else [as_tensor(bias)])], name, metas, group=arguments["groups"],
        pads=pads, strides=_per_dimension(arguments["stride"], len(window)), dilations=dilation, kernel_shape=window,
    )


def _transposed_convolution(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    x, weight, bias = as_tensor(arguments["input"]), as_tensor(arguments["weight"]), arguments["bias"]
    window = static_sizes(weight, *range(2, len(weight.shape)))
    require(len(x.shape) == len(weight.shape), "a convolution without a batch")
    static_sizes(x, *range(1, len(x.shape)))
    padding, more, stride, dilation = (
        _per_dimension(arguments[one], len(window)) for one in ("padding", "output_padding", "stride", "dilation")
    )
    return builder.emit(
        "ConvTranspose", [x, weight, *([] if bias is None else [as_tensor(bias)])], name, metas,
        group=arguments["groups"], pads=2 * padding, output_padding=more, strides=stride, dilations=dilation,
        kernel_shape=window,
    )


def _addmm(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    """`beta * self + alpha * mat1 @ mat2`."""
    tensors = [as_tensor(arguments[argument]) for argument in ("mat1", "mat2", "self")]
    return builder.emit("Gemm", tensors, name, metas, alpha=float(arguments["alpha"]), beta=float(arguments["beta"]))


def _linear(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    x, weight, bias = as_tensor(arguments["input"]), as_tensor(arguments["weight"]), arguments["bias"]
    biases = [] if bias is None else [as_tensor(bias)]
    require(len(weight.shape) == 2, "a linear layer whose weight is no matrix")
    if len(x.shape) == 2:
        return builder.emit("Gemm", [x, weight, *biases], name, metas, transB=1)
    columns = transposed(builder, f"{weight.name}_transposed", weight)
    if not biases:
        return builder.emit("MatMul", [x, columns], name, metas)
    product = builder.emit("MatMul", [x, columns], f"{name}_product", metas)
    return builder.emit("Add", [product, *biases], name, metas)


def _matmul(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    x, y = (as_tensor(value) for value in arguments.values())
    return builder.emit("MatMul", [x, y], name, metas)


def _batch_norm(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    mean, variance = as_tensor(arguments["running_mean"]), as_tensor(arguments["running_var"])
    require(not arguments["training"], "batch normalisation in training")
    ones = _affine(builder, arguments["weight"], torch.ones(static_sizes(mean, 0)))
    zeros = _affine(builder, arguments["bias"], torch.zeros(static_sizes(mean, 0)))
    inputs = [as_tensor(arguments["input"]), ones, zeros, mean, variance]
    return builder.emit("BatchNormalization", inputs, name, metas, epsilon=arguments["eps"])


def _affine(builder: Builder, value: Any, default: Tensor) -> Value:  # noqa: ANN401
    """A scale or shift of a normalisation, or the one that changes nothing."""
    kind = "ones" if default.flatten()[0] else "zeros"
    return builder.constant(f"{kind}:{list(default.shape)}", default) if value is None else as_tensor(value)


def _layer_norm(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    shape = arguments["normalized_shape"]
    require(all(isinstance(size, int) for size in shape), "a normalised shape that depends on the batch")
    scale = _affine(builder, arguments["weight"], torch.ones(shape))
    biases = [] if arguments["bias"] is None else [as_tensor(arguments["bias"])]
    return builder.emit(
        "LayerNormalization", [as_tensor(arguments["input"]), scale, *biases], name, metas,
        axis=-len(shape), epsilon=arguments["eps"],
    )


def _group_norm(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    """Instance normalisation of the groups as channels, then the scale and shift of every channel."""
    x, groups = as_tensor(arguments["input"]), arguments["num_groups"]
    static_sizes(x, *range(1, len(x.shape)))
    one, other = (meta.reshape(len(meta), groups, -1) for meta in x.metas)
    grouped = builder.emit("Reshape", [x, builder.numbers("shape", [0, groups, -1])], f"{name}_groups", (one, other))
    ones, zeros = (_affine(builder, None, fill(groups)) for fill in (torch.ones, torch.zeros))
    normal = builder.emit(
        "InstanceNormalization", [grouped, ones, zeros], f"{name}_normalised", grouped.metas, epsilon=arguments["eps"]
    )
    value = reshaped(builder, f"{name}_channels", normal, metas)
    for op, argument in (("Mul", "weight"), ("Add", "bias")):
        if arguments[argument] is not None:
            parameter = as_tensor(arguments[argument])
            require(parameter.tensor is not None, "a normalisation whose scale is computed")
            assert parameter.tensor is not None
            shaped = parameter.tensor.reshape(-1, *(1,) * (len(x.shape) - 2))
            per_channel = builder.constant(f"{parameter.name}:per_channel", shaped)
            value = builder.emit(op, [value, per_channel], name, metas)
    return value


def _clip(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    x = as_tensor(arguments["self"])
    bounds = [arguments.get("min_val", arguments.get("min")), arguments.get("max_val", arguments.get("max"))]
    require(not any(isinstance(bound, Value | Varying) for bound in bounds), "bounds that are computed")
    require(x.dtype == metas[0].dtype, "a clamp that changes the type")
    limits = [
        None if bound is None else builder.constant(f"bound:{bound}", torch.tensor(bound, dtype=x.dtype))
        for bound in bounds
    ]
    return builder.emit("Clip", [x, *limits], name, metas)


def _relu6(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    return _clip(builder, name, {**arguments, "min": 0.0, "max": 6.0}, metas)


def _silu(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    x = as_tensor(arguments["self"])
    gate = builder.emit("Sigmoid", [x], f"{name}_gate", metas)
    return builder.emit("Mul", [x, gate], name, metas)


def _gelu(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    return builder.emit("Gelu", [as_tensor(arguments["self"])], name, metas, approximate=arguments["approximate"])


def _leaky_relu(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    return builder.emit("LeakyRelu", [as_tensor(arguments["self"])], name, metas, alpha=arguments["negative_slope"])


def _softmax(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    x = as_tensor(arguments["self"])
    require(x.dtype == metas[0].dtype, "a softmax that changes the type")
    return builder.emit("Softmax", [x], name, metas, axis=arguments["dim"])


def _norm(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    x, dims = as_tensor(arguments["self"]), arguments["dim"]
    require(arguments["ord"] == 2 and dims is not None and arguments["dtype"] is None, "a norm with options")
    axes = builder.numbers("axes", [dim % len(x.shape) for dim in dims])
    return builder.emit("ReduceL2", [x, axes], name, metas, keepdims=int(arguments["keepdim"]))


def _both(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    """`And`; a factor that is true everywhere, whatever the batch, changes the shape at most."""
    factors = as_tensor(arguments["self"]), as_tensor(arguments["other"])
    require(all(factor.dtype == torch.bool for factor in factors), "bits of integers")
    for factor, other in (factors, factors[::-1]):
        known = contents_of(factor)
        if known is not None and all(bool(tensor.all()) for tensor in known):
            same = all(one.shape == two.shape for one, two in zip(other.metas, metas, strict=True))
            return other if same else builder.expanded(name, other, metas)
    return builder.emit("And", list(factors), name, metas)


def _reduction(op: str) -> Rule:
    """A reduction over some or all dimensions."""

    def rule(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
        x, dims = as_tensor(arguments["self"]), arguments.get("dim")
        require(arguments.get("dtype") is None and x.dtype == metas[0].dtype, f"{op} to another type")
        dims = [dims] if isinstance(dims, int) else dims
        keep = bool(arguments.get("keepdim"))
        axes = [builder.numbers("axes", list(dims))] if dims else []
        if op == "ReduceMean" and keep and len(x.shape) == 4 and dims and {dim % 4 for dim in dims} == {2, 3}:
            return builder.emit("GlobalAveragePool", [x], name, metas)
        return builder.emit(op, [x, *axes], name, metas, keepdims=int(keep))

    return rule


def _pooling(op: str) -> Rule:
    """A pooling over windows."""

    def rule(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
        x = as_tensor(arguments["self"])
        size = _per_dimension(arguments["kernel_size"], len(x.shape) - 2)
        count, average = len(size), op == "AveragePool"
        require(len(x.shape) == count + 2, "a pooling without a batch")
        whole = static_sizes(x, *range(1, len(x.shape)))[1:]
        require(not arguments["ceil_mode"], "a pooling with windows beyond the edge")
        pads = 2 * _per_dimension(arguments["padding"], count)
        steps, divisor = arguments["stride"], arguments.get("divisor_override")
        if average and size == whole and not any(pads) and divisor is None:
            return builder.emit("GlobalAveragePool", [x], name, metas)
        attributes: dict[str, Any] = {"strides": _per_dimension(steps, count) if steps else size}
        if divisor is not None:   # the mean of whole windows, times their size over the divisor
            attributes["count_include_pad"] = 1
            means = builder.emit(op, [x], f"{name}_means", metas, kernel_shape=size, pads=pads, **attributes)
            factor = builder.constant(f"{name}:factor", torch.tensor(math.prod(size) / divisor, dtype=x.dtype))
            return builder.emit("Mul", [means, factor], name, metas)
        if average:
            attributes["count_include_pad"] = int(arguments["count_include_pad"])
        else:
            attributes["dilations"] = _per_dimension(arguments["dilation"], count)
        return builder.emit(op, [x], name, metas, kernel_shape=size, pads=pads, **attributes)

    return rule


def _adaptive_average(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    x, wanted = as_tensor(arguments["self"]), arguments["output_size"]
    require(len(x.shape) == len(wanted) + 2, "a pooling without a batch")
    sizes = static_sizes(x, *range(2, len(x.shape)))
    if all(size == 1 for size in wanted):
        return builder.emit("GlobalAveragePool", [x], name, metas)
    require(all(size % count == 0 for size, count in zip(sizes, wanted, strict=True)), "windows of several sizes")
    window = [size // count for size, count in zip(sizes, wanted, strict=True)]
    return builder.emit("AveragePool", [x], name, metas, kernel_shape=window, strides=window)


COMPARISONS = {"gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal"}

RULES: dict[str, Rule] = {
    **DATA_RULES,
    **dict.fromkeys(("conv1d", "conv2d"), _convolution),
    **dict.fromkeys(("dropout", "contiguous", "clone", "detach", "alias"), _same),
    **{op: _elementwise(op.capitalize()) for op in ("relu", "sigmoid", "tanh", "exp", "sqrt", "neg", "abs", "erf")},
    **{op: _binary(op.capitalize()) for op in ("add", "sub", "mul", "div")},
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    **dict.fromkeys(("hardtanh", "clamp", "clamp_min", "clamp_max"), _clip),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), _adaptive_average),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d"), _pooling("AveragePool")),
    **dict.fromkeys(("max_pool1d", "max_pool2d"), _pooling("MaxPool")),
    "mean": _reduction("ReduceMean"),
    "sum": _reduction("ReduceSum"),
    "amax": _reduction("ReduceMax"),
    "amin": _reduction("ReduceMin"),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), _transposed_convolution),
    "addmm": _addmm,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "relu6": _relu6,
    "hardswish": _elementwise("HardSwish"),
    "hardsigmoid": _elementwise("HardSigmoid", alpha=1 / 6, beta=0.5),
    "silu": _silu,
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "softmax": _softmax,
    "scaled_dot_product_attention": attention,
    "linalg_vector_norm": _norm,
    **{name: _comparison(op) for name, op in COMPARISONS.items()},
    **dict.fromkeys(("__and__", "bitwise_and", "logical_and"), _both),
}
