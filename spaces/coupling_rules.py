"""The coupling rule of every operator family. Unknown operators freeze what they touch and say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from paretopress.spaces.coupling import Axis, CouplingBuilder
from paretopress.spaces.graph import Node
from paretopress.spaces.kernels import product

UNARY = frozenset((
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "elu",
    "leaky_relu", "selu", "mish", "softplus", "dropout", "contiguous", "clone", "alias", "detach", "to",
    "_to_copy", "abs", "neg", "exp", "log", "sqrt", "rsqrt", "square", "clamp", "clamp_min", "reciprocal",
    "erf", "softsign",
))
BINARY = frozenset(("add", "sub", "mul", "div", "maximum", "minimum", "pow"))
SPATIAL_POOLS = frozenset((
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
))


def apply_rule(builder: CouplingBuilder, node: Node) -> None:
    """Give `node` its axes and join or freeze groups by its operator's rule."""
    if node.op in ("input", "constant"):
        builder.values[node.name] = (None,) * len(node.shape)
    elif node.op == "parameter":
        builder.values[node.name] = (None,) * len(node.shape)
        builder.parameters.setdefault(node.target, (None,) * len(node.shape))
    elif node.op == "output":
        for name in node.inputs:
            builder.freeze_all(builder.axes(builder.graph.by_name[name]), "it reaches the model's output")
    else:
        rule = _rule_for(node)
        axes = rule(builder, node)
        builder.values[node.name] = axes if len(axes) == len(node.shape) else (None,) * len(node.shape)


Rule = Callable[[CouplingBuilder, Node], tuple[Axis, ...]]


def _rule_for(node: Node) -> Rule:
    name = node.short_op
    if name in UNARY:
        return _first_axes
    if name in BINARY:
        return _element_wise
    if name in SPATIAL_POOLS:
        return _spatial_pool
    return _RULES.get(name, _unknown)


def _source(builder: CouplingBuilder, node: Node, argument: str) -> Node:
    ref = node.arguments[argument]
    return builder.graph.by_name[ref.node]


def _first_axes(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    return builder.axes(builder.graph.by_name[node.inputs[0]])


def _where(node: Node) -> str:
    return f"{node.short_op} in {node.module_path or 'the root module'}"


def _unknown(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    reason = f"operator {_where(node)} has no channel rule"
    for name in node.inputs:
        builder.freeze_all(builder.axes(builder.graph.by_name[name]), reason)
    return (None,) * len(node.shape)


def _integer_result(_builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    return (None,) * len(node.shape)


def _spatial_pool(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    axes = _first_axes(builder, node)
    spatial = 1 if "1d" in node.short_op else 2
    builder.freeze_all(axes[-spatial:], f"{_where(node)} mixes this dimension")
    return (*axes[:-spatial], *(None,) * spatial)


def _layer_name(builder: CouplingBuilder, node: Node) -> str:
    weight = builder.graph.parameter(node, "weight")
    return (weight.target.rpartition(".")[0] or weight.target) if weight else ""


def _set_parameter(builder: CouplingBuilder, node: Node, argument: str, axes: tuple[Axis, ...]) -> None:
    parameter = builder.graph.parameter(node, argument)
    if parameter is None:
        return
    if len(builder.graph.users[parameter.name]) > 1:
        builder.freeze_all(axes, f"parameter {parameter.target} is used more than once")
    builder.parameters[parameter.target] = axes


def _convolution(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    axes = _first_axes(builder, node)
    channel = axes[1] if len(axes) > 2 else None
    builder.freeze_all((axes[0], *axes[2:]), f"{_where(node)} mixes this dimension")
    name = _layer_name(builder, node)
    if not name or len(axes) != len(node.shape):
        builder.freeze(channel, f"the weight of {_where(node)} is computed, not a parameter")
        return (None,) * len(node.shape)
    weight = builder.graph.by_name[node.arguments["weight"].node]
    groups = int(node.arguments["groups"])
    rest: tuple[Axis, ...] = (None,) * (len(node.shape) - 2)
    if groups == 1:
        out: Axis = (builder.new_group(name, node.shape[1]),)
        builder.consumed_by(channel, name)
        inner: Axis = channel
    elif groups == weight.shape[0] == weight.shape[1] * groups:
        out, inner = channel, None   # depthwise: input and output channels are one
    else:
        reason = f"{name} is a grouped convolution ({groups} groups)"
        builder.freeze(channel, reason)
        out, inner = (builder.new_group(name, node.shape[1], reason),), None
        builder.consumed_by(channel, name)
    builder.produced_by(out, name)
    _set_parameter(builder, node, "weight", (out, inner, *rest))
    _set_parameter(builder, node, "bias", (out,))
    return (None, out, *rest)


def _linear(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    axes = _first_axes(builder, node)
    name = _layer_name(builder, node)
    if not name:
        builder.freeze(axes[-1], f"the weight of {_where(node)} is computed, not a parameter")
        return (*axes[:-1], None)
    out: Axis = (builder.new_group(name, node.shape[-1]),)
    builder.consumed_by(axes[-1], name)
    builder.produced_by(out, name)
    _set_parameter(builder, node, "weight", (out, axes[-1]))
    _set_parameter(builder, node, "bias", (out,))
    return (*axes[:-1], out)


def _batch_norm(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    axes = _first_axes(builder, node)
    if node.arguments.get("training"):
        builder.freeze_all(axes, f"{_where(node)} runs in training mode")
    for argument in ("weight", "bias", "running_mean", "running_var"):
        _set_parameter(builder, node, argument, (axes[1],))
    return axes


def _layer_norm(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    axes = _first_axes(builder, node)
    count = len(node.arguments["normalized_shape"])
    if count != 1:
        builder.freeze_all(axes[-count:], f"{_where(node)} normalises over several dimensions")
    for argument in ("weight", "bias"):
        _set_parameter(builder, node, argument, axes[-count:])
    return axes


def _group_norm(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    axes = _first_axes(builder, node)
    channel = axes[1]
    if channel is not None and (len(channel) > 1 or channel[0].inner > 1):
        builder.freeze(channel, f"{_where(node)} normalises over concatenated channels")
    elif channel is not None:
        builder.require_step(channel, channel[0].size // int(node.arguments["num_groups"]))
    for argument in ("weight", "bias"):
        _set_parameter(builder, node, argument, (channel,))
    return axes


def _element_wise(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    operands = [builder.graph.by_name[name] for name in node.inputs if builder.graph.by_name[name].dtype]
    if len(operands) == 1:   # a scalar, or x + x
        return builder.axes(operands[0])
    result: list[Axis] = [None] * len(node.shape)
    reason = f"{_where(node)} combines it with a tensor whose size is fixed"
    sizes = [1] * len(node.shape)
    for operand in operands:
        axes = builder.axes(operand)
        offset = len(node.shape) - len(axes)
        for index, axis in enumerate(axes):
            place, size = offset + index, operand.shape[index]
            if size == 1 and node.shape[place] != 1:
                continue
            if sizes[place] == 1:
                sizes[place], result[place] = size, axis
            else:
                result[place] = builder.unify(result[place], axis, reason)
    return tuple(result)


def _flatten(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    source = _source(builder, node, "self")
    axes = builder.axes(source)
    count = len(axes)
    start = int(node.arguments["start_dim"]) % count
    end = int(node.arguments["end_dim"]) % count
    return (*axes[:start], _merge(builder, node, source, start, end), *axes[end + 1 :])


def _merge(builder: CouplingBuilder, node: Node, source: Node, start: int, end: int) -> Axis:
    """The axis of dimensions `start..end` merged into one."""
    axes = builder.axes(source)[start : end + 1]
    sizes = source.shape[start : end + 1]
    tracked = [index for index, axis in enumerate(axes) if axis is not None]
    if not tracked:
        return None
    first = tracked[0]
    if len(tracked) > 1 or any(size != 1 for size in sizes[:first]):
        builder.freeze_all(axes, f"{_where(node)} merges it behind another dimension")
        return None
    behind = product(tuple(sizes[first + 1 :]))
    return tuple(replace(segment, inner=segment.inner * behind) for segment in axes[first] or ())


def _view(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    source = _source(builder, node, "self")
    axes = builder.axes(source)
    wanted = node.arguments.get("size", node.arguments.get("shape")) or []
    kept = len(node.shape) - 1
    same_start = node.shape[:kept] == source.shape[:kept] and not any(axes[:kept])
    if kept >= 1 and len(axes) > kept and wanted[-1:] == [-1] and same_start:
        return (*axes[:kept], _merge(builder, node, source, kept, len(axes) - 1))
    builder.freeze_all(axes, f"{_where(node)} has a hard-coded size")
    return (None,) * len(node.shape)


def _concat(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    sources = [builder.graph.by_name[ref.node] for ref in node.arguments["tensors"]]
    dim = int(node.arguments["dim"]) % len(node.shape)
    result = list(builder.axes(sources[0]))
    reason = f"{_where(node)} joins tensors along another dimension"
    for source in sources[1:]:
        for index, axis in enumerate(builder.axes(source)):
            if index != dim:
                result[index] = builder.unify(result[index], axis, reason)
    parts = [builder.axes(source)[dim] for source in sources]
    if any(part is not None for part in parts):
        segments: list[Any] = []
        for source, part in zip(sources, parts, strict=True):
            fixed = f"{source.name} has a fixed size"
            segments += part or (builder.new_group(source.name, source.shape[dim], fixed),)
        result[dim] = tuple(segments)
    return tuple(result)


def _pad(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    axes = list(_first_axes(builder, node))
    amounts = list(node.arguments["pad"])
    for index in range(len(amounts) // 2):
        place = len(axes) - 1 - index
        if amounts[2 * index] or amounts[2 * index + 1]:
            builder.freeze(axes[place], f"{_where(node)} pads this dimension by constants")
            axes[place] = None
    return tuple(axes)


def _slice(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    source = _source(builder, node, "self")
    axes = list(builder.axes(source))
    dim = int(node.arguments["dim"]) % len(axes)
    if source.shape != node.shape:
        builder.freeze(axes[dim], f"{_where(node)} takes a constant part of this dimension")
        axes[dim] = None
    return tuple(axes)


def _select(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    axes = list(_first_axes(builder, node))
    taken = axes.pop(int(node.arguments["dim"]))
    builder.freeze(taken, f"{_where(node)} takes a constant part of this dimension")
    return tuple(axes)


def _permute(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    axes = _first_axes(builder, node)
    return tuple(axes[int(dim) % len(axes)] for dim in node.arguments["dims"])


def _transpose(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    axes = list(_first_axes(builder, node))
    first, second = int(node.arguments["dim0"]) % len(axes), int(node.arguments["dim1"]) % len(axes)
    axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


def _reduce(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    axes = _first_axes(builder, node)
    dims = node.arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    reduced = {int(dim) % len(axes) for dim in dims or range(len(axes))}
    for index in sorted(reduced):
        builder.freeze(axes[index], f"{_where(node)} reduces over this dimension")
    if node.arguments.get("keepdim"):
        return tuple(None if index in reduced else axis for index, axis in enumerate(axes))
    return tuple(axis for index, axis in enumerate(axes) if index not in reduced)


def _softmax(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    axes = _first_axes(builder, node)
    builder.freeze(axes[int(node.arguments["dim"])], f"{_where(node)} normalises over this dimension")
    return axes


def _squeeze(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    source = _source(builder, node, "self")
    dims = node.arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    count = len(source.shape)
    places = {int(dim) % count for dim in dims} if dims is not None else set(range(count))
    dropped = {place for place in places if source.shape[place] == 1}
    return tuple(axis for index, axis in enumerate(builder.axes(source)) if index not in dropped)


def _unsqueeze(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    axes = list(_first_axes(builder, node))
    axes.insert(int(node.arguments["dim"]) % (len(axes) + 1), None)
    return tuple(axes)


_RULES: dict[str, Rule] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "flatten": _flatten,
    "view": _view,
    "reshape": _view,
    "cat": _concat,
    "concat": _concat,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "slice": _slice,
    "select": _select,
    "permute": _permute,
    "transpose": _transpose,
    "mean": _reduce,
    "sum": _reduce,
    "amax": _reduce,
    "softmax": _softmax,
    "log_softmax": _softmax,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "sym_size": _integer_result,
}
