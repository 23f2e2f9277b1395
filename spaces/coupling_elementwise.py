"""Coupling rules of operators that keep the channels in their places: element-wise ones, norms, pools, reductions.

What reduces over a pruned dimension (a norm, a softmax, a mean) runs over the kept entries only.
"""

from __future__ import annotations

from paretopress.spaces import coupling_axes
from paretopress.spaces.coupling import Axis, CouplingBuilder, where
from paretopress.spaces.graph import Node, Ref

Axes = tuple[Axis, ...]

UNARY = frozenset((
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "elu", "celu",
    "leaky_relu", "selu", "mish", "softplus", "dropout", "contiguous", "clone", "alias", "detach", "to", "cos", "sin",
    "_to_copy", "abs", "neg", "exp", "log", "sqrt", "rsqrt", "square", "clamp_min", "clamp_max", "reciprocal", "erf",
    "softsign", "lift_fresh_copy", "float", "type_as", "logical_not", "bitwise_not", "zeros_like", "ones_like",
    "full_like", "feature_dropout", "alpha_dropout", "log_sigmoid", "threshold", "round", "floor", "sign", "log1p",
    "expm1", "nan_to_num", "isnan", "isinf", "hardshrink", "softshrink",
))
ELEMENTWISE = frozenset((
    "add", "sub", "rsub", "mul", "div", "maximum", "minimum", "pow", "where", "masked_fill", "clamp", "lerp", "addcmul",
    "addcdiv", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "bitwise_and", "bitwise_or", "atan2",
    "fmod", "remainder", "floor_divide", "_prelu_kernel", "true_divide", "__and__", "__or__",
))
REDUCTIONS = frozenset((
    "mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "norm", "logsumexp", "all", "any",
))
ORDERED = frozenset(("cumsum", "cumprod", "roll", "flip", "sort", "argsort", "topk", "argmax", "argmin", "max", "min"))


def same(builder: CouplingBuilder, node: Node) -> Axes:
    """Every element of the result depends on one of the first input."""
    return builder.first_axes(node)


def elementwise(builder: CouplingBuilder, node: Node) -> Axes:
    """Elements in the same place, with broadcasting."""
    operands = [builder.graph.by_name[name] for name in node.inputs if builder.graph.by_name[name].dtype]
    result: list[Axis] = [None] * len(node.shape)
    reason = f"{where(node)} combines it with a tensor whose size is fixed"
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


def prelu(builder: CouplingBuilder, node: Node) -> Axes:
    """A slope for all channels or one per channel."""
    axes, weight = builder.first_axes(node), builder.operand_axes(node, "weight")
    if weight and weight[0] is not None and len(axes) > 1:
        builder.unify(axes[1], weight[0], f"{where(node)} has slopes of fixed size")
    return axes


def weight_norm(builder: CouplingBuilder, node: Node) -> Axes:
    """A weight as a direction times a gain, the direction over its dense norm."""
    direction = builder.operand_axes(node, "v") or (None,) * len(node.shape)
    for axis, gain in zip(direction, builder.operand_axes(node, "g") or (), strict=False):
        if gain is not None:
            builder.unify(axis, gain, f"{where(node)} has gains of fixed size")
    return direction


def spatial(builder: CouplingBuilder, node: Node) -> Axes:
    """Pooling and resizing work on the dimensions behind the channels."""
    axes = builder.first_axes(node)
    count = next((n for n in (1, 2, 3) if f"{n}d" in node.short_op), len(axes) - 2)
    builder.freeze_all(axes[-count:], f"{where(node)} mixes this dimension")
    rest: Axes = (None,) * count
    result = (*axes[:-count], *rest)
    if not node.dtype:   # values and indices
        builder.lists[node.name] = (result, result)
        return ()
    return result


def batch_norm(builder: CouplingBuilder, node: Node) -> Axes:
    """Statistics per channel: batch and instance normalisation."""
    axes = builder.first_axes(node)
    if node.arguments.get("training") or (node.short_op == "batch_norm" and node.arguments.get("running_mean") is None):
        builder.freeze_all(axes, f"{where(node)} runs in training mode")
    for argument in ("weight", "bias", "running_mean", "running_var"):
        parameter = builder.operand_axes(node, argument)
        if parameter is not None:
            builder.unify(axes[1], parameter[0], f"{where(node)} has parameters of fixed size")
    return axes


def layer_norm(builder: CouplingBuilder, node: Node) -> Axes:
    """Layer and RMS normalisation: over the kept entries only."""
    axes = builder.first_axes(node)
    count = len(node.arguments["normalized_shape"])
    if count != 1:
        builder.freeze_all(axes[-count:], f"{where(node)} normalises over several dimensions")
    for argument in ("weight", "bias"):
        parameter = builder.operand_axes(node, argument)
        for axis, mine in zip(axes[-count:], parameter or (), strict=False):
            builder.unify(axis, mine, f"{where(node)} has parameters of fixed size")
    return axes


def group_norm(builder: CouplingBuilder, node: Node) -> Axes:
    """Whole groups of channels are pruned, so that the others' statistics stay as they are."""
    axes, source = builder.first_axes(node), builder.graph.by_name[node.inputs[0]]
    for argument in ("weight", "bias"):
        parameter = builder.operand_axes(node, argument)
        if parameter is not None:
            builder.unify(axes[1], parameter[0], f"{where(node)} has parameters of fixed size")
    groups = int(node.arguments["num_groups"])
    if groups > 1:
        sizes = (groups, source.shape[1] // groups)
        _, trail = coupling_axes.divide(builder.table, axes[1], sizes, where(node))
        builder.freeze(trail, f"{where(node)} normalises over this dimension")
    return axes


def reduction(builder: CouplingBuilder, node: Node) -> Axes:
    """Sums, means, maxima, norms and variances over dimensions; only the kept entries take part."""
    axes = builder.first_axes(node)
    dims = node.arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    reduced = {int(dim) % len(axes) for dim in dims or range(len(axes))} if axes else set()
    if node.arguments.get("keepdim"):
        return tuple(None if index in reduced else axis for index, axis in enumerate(axes))
    return tuple(axis for index, axis in enumerate(axes) if index not in reduced)


def ordered(builder: CouplingBuilder, node: Node) -> Axes:
    """The order of the entries along a dimension matters: it stays, the other dimensions are free."""
    axes = builder.first_axes(node)
    dims = node.arguments.get("dims", node.arguments.get("dim"))
    dims = [dims] if isinstance(dims, int) else dims
    if dims is None or not dims:
        dims = range(len(axes)) if node.short_op not in ("sort", "argsort", "topk") else [-1]
    touched = {int(dim) % len(axes) for dim in dims} if axes else set()
    for index in touched:
        builder.freeze(axes[index], f"{where(node)} depends on the order of this dimension")
    kept = tuple(None if index in touched else axis for index, axis in enumerate(axes))
    if node.short_op in ("max", "min", "argmax", "argmin") and not node.arguments.get("keepdim"):
        kept = tuple(axis for index, axis in enumerate(axes) if index not in touched)
    if not node.dtype:
        builder.lists[node.name] = (kept, kept)
        return ()
    return kept


def fill(builder: CouplingBuilder, node: Node) -> Axes:
    """A constant fill: whatever its dimensions are joined with may shrink, but not the symbolic ones."""
    sizes = node.arguments.get("size", node.arguments.get("shape")) or []
    if len(sizes) != len(node.shape):
        return (None,) * len(node.shape)
    axes = builder.fresh(node.shape)
    return tuple(None if isinstance(size, Ref) else axis for size, axis in zip(sizes, axes, strict=True))


RULES = {
    **dict.fromkeys(UNARY, same),
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(ORDERED, ordered),
    "prelu": prelu,
    "_weight_norm": weight_norm,
    "batch_norm": batch_norm, "instance_norm": batch_norm,
    "layer_norm": layer_norm, "rms_norm": layer_norm,
    "group_norm": group_norm,
    "softmax": same, "_softmax": same, "log_softmax": same, "_safe_softmax": same, "normalize": same,
    **dict.fromkeys(("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"), fill),
}
