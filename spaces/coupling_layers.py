"""Coupling rules of operators that multiply by weights: they end one channel dimension and start another."""

from __future__ import annotations

from collections.abc import Sequence

from paretopress.spaces import coupling_axes
from paretopress.spaces.coupling import Axis, CouplingBuilder, where
from paretopress.spaces.coupling_groups import Segment
from paretopress.spaces.graph import Node, Ref
from paretopress.spaces.layers import layer_name
from paretopress.spaces.weights_applied import applied_weight

Axes = tuple[Axis, ...]


def _owner(builder: CouplingBuilder, node: Node, argument: str) -> tuple[str, bool]:
    """Name of what holds an operator's weight, and whether it is a layer that has units of its own."""
    applied = applied_weight(builder.graph, node)
    if applied is not None:
        return layer_name(applied.weight.target), True
    weight = builder.operand(node, argument)
    if weight is None or weight.op != "parameter":
        return node.module_path or node.name, False
    return weight.target.rpartition(".")[0] or weight.target, False


def _connect(builder: CouplingBuilder, node: Node, weight: str, read: Axis, made: Axis) -> None:
    """Record that an operator with a weight reads one axis and makes another."""
    name, is_layer = _owner(builder, node, weight)
    if is_layer:
        builder.consumed_by(read, name)
    builder.produced_by(made, name, is_layer=is_layer)


def _bias(builder: CouplingBuilder, node: Node, made: Axis, argument: str = "bias") -> None:
    bias = builder.operand_axes(node, argument)
    if bias:
        builder.unify(made, bias[-1], f"{where(node)} adds a bias of fixed size")


def convolution(builder: CouplingBuilder, node: Node) -> Axes:
    """Plain, grouped, depthwise and transposed convolutions.

    Whole groups of a grouped convolution can be pruned, or equally many channels of each: the groups are a
    product, which the rest of the graph decides.
    """
    axes, weight = builder.first_axes(node), builder.operand_axes(node, "weight")
    channel = axes[1] if len(axes) > 2 else None
    builder.freeze_all((axes[0], *axes[2:]), f"{where(node)} mixes this dimension")
    if weight is None or len(axes) != len(node.shape):
        builder.freeze(channel, f"{where(node)} has no batch dimension")
        return (None,) * len(node.shape)
    builder.freeze_all(weight[2:], "the window of a convolution")
    transposed = node.short_op.startswith("conv_transpose") or bool(node.arguments.get("transposed"))
    groups, shape = int(node.arguments["groups"]), _shape(builder, node, "weight")
    reason = f"{where(node)} reads a dimension of fixed size"
    made: Axis
    if groups == 1:
        read, made = (weight[0], weight[1]) if transposed else (weight[1], weight[0])
        builder.unify(channel, read, reason)
        _connect(builder, node, "weight", channel, made)
    elif groups == _shape(builder, node, node_input(node))[1] and (not transposed or shape[1] == 1):
        builder.freeze(weight[1], reason)
        made = _depthwise(builder, node, channel, weight[0])
    else:
        made = _grouped(builder, node, channel, weight, groups, transposed)
    _bias(builder, node, made)
    rest: Axes = (None,) * (len(node.shape) - 2)
    return (None, made, *rest)


def node_input(node: Node) -> str:
    """Name of the argument that a convolution reads."""
    return "input" if "input" in node.arguments else "self"


def _shape(builder: CouplingBuilder, node: Node, argument: str) -> tuple[int, ...]:
    operand = builder.operand(node, argument)
    return operand.shape if operand is not None else ()


def _depthwise(builder: CouplingBuilder, node: Node, channel: Axis, rows: Axis) -> Axis:
    """A convolution of single channels: inputs and outputs are one, some outputs for every input."""
    multiple = node.shape[1] // int(node.arguments["groups"])
    widened = None if channel is None else tuple(Segment(s.group, s.size, s.inner * multiple) for s in channel)
    made = builder.unify(widened, rows, f"{where(node)} reads a dimension of fixed size")
    name, is_layer = _owner(builder, node, "weight")
    builder.produced_by(made, name, is_layer=is_layer)
    return made


def _grouped(
    builder: CouplingBuilder, node: Node, channel: Axis, weight: Axes, groups: int, transposed: bool
) -> Axis:
    reason = where(node)
    inputs = _shape(builder, node, node_input(node))[1]
    outer, inner = coupling_axes.divide(builder.table, channel, (groups, inputs // groups), reason)
    if transposed:   # weight (in, out / groups, *window)
        builder.unify(channel, weight[0], reason)
        if weight[1] is not None and outer is not None:
            made: Axis = coupling_axes.merge(
                builder.table, (outer, weight[1]), (groups, node.shape[1] // groups), reason)
        else:
            builder.freeze_all((outer, weight[1]), reason)
            made = (builder.table.new(node.shape[1], f"{reason} has groups of fixed size"),)
    else:            # weight (out, in / groups, *window)
        rows = coupling_axes.divide(builder.table, weight[0], (groups, node.shape[1] // groups), reason)
        builder.unify(outer, rows[0], f"{reason} has groups of fixed size")
        if inputs > groups:
            builder.unify(inner, weight[1], f"{reason} has groups of fixed size")
        made = weight[0]
    _connect(builder, node, "weight", channel, made)
    return made


def linear(builder: CouplingBuilder, node: Node) -> Axes:
    """`x W^T + b` with a weight of any origin."""
    axes, weight = builder.first_axes(node), builder.operand_axes(node, "weight")
    assert weight is not None
    builder.unify(axes[-1], weight[-1], f"{where(node)} reads a dimension of fixed size")
    made = weight[0] if len(weight) == 2 else None
    _connect(builder, node, "weight", axes[-1], made)
    _bias(builder, node, made)
    return (*axes[:-1], made) if len(weight) == 2 else axes[:-1]


def addmm(builder: CouplingBuilder, node: Node) -> Axes:
    """`b + x W`, which the Conv1D layers of GPT-2 are."""
    result = _product(builder, node, "mat1", "mat2")
    _bias(builder, node, result[-1], "self")
    return result


def matmul(builder: CouplingBuilder, node: Node) -> Axes:
    """Products of two activations, or of one with a weight."""
    second = next(name for name in ("other", "mat2", "vec2", "tensor2") if name in node.arguments)
    first = next(name for name in ("self", "input") if name in node.arguments)
    return _product(builder, node, first, second)


def baddbmm(builder: CouplingBuilder, node: Node) -> Axes:
    """`b + x y` per sample."""
    result = _product(builder, node, "batch1", "batch2")
    added, operand = builder.operand_axes(node, "self"), builder.operand(node, "self")
    if added is not None and operand is not None:
        return _broadcast(builder, (result, added), (node.shape, operand.shape), where(node))
    return result


def _product(builder: CouplingBuilder, node: Node, first: str, second: str) -> Axes:
    left, right = builder.operand(node, first), builder.operand(node, second)
    assert left is not None
    assert right is not None
    one, other = builder.axes(left), builder.axes(right)
    place = -2 if len(other) > 1 else -1
    reason = f"{where(node)} multiplies it with a dimension of fixed size"
    shared = one[-1]
    builder.unify(shared, other[place], reason)
    rows: Axes = one[-2:-1] if len(one) > 1 else ()
    columns: Axes = other[-1:] if len(other) > 1 else ()
    if builder.is_weight(right):
        _connect(builder, node, second, shared, columns[0] if columns else None)
    elif builder.is_weight(left):
        _connect(builder, node, first, shared, rows[0] if rows else None)
    else:   # of an attention, heads are pruned and not the head size
        for axis in (shared, *rows, *columns):
            builder.table.weaken(axis)
    batch = _broadcast(builder, (one[:-2], other[:-2]), (left.shape[:-2], right.shape[:-2]), where(node))
    return (*batch, *rows, *columns)


def _broadcast(
    builder: CouplingBuilder, axes: tuple[Axes, ...], shapes: tuple[tuple[int, ...], ...], name: str
) -> Axes:
    count = max(len(shape) for shape in shapes)
    result: list[Axis] = [None] * count
    sizes = [1] * count
    reason = f"{name} combines it with a tensor whose size is fixed"
    for some, shape in zip(axes, shapes, strict=True):
        for index, (axis, size) in enumerate(zip(some, shape, strict=True), start=count - len(shape)):
            if size == 1:
                continue
            if sizes[index] == 1:
                sizes[index], result[index] = size, axis
            else:
                result[index] = builder.unify(result[index], axis, reason)
    return tuple(result)


def einsum(builder: CouplingBuilder, node: Node) -> Axes:
    """Any `torch.einsum` without an ellipsis: dimensions of one letter are one."""
    operands = [builder.graph.by_name[ref.node] for ref in node.arguments["tensors"] if isinstance(ref, Ref)]
    inputs, arrow, output = str(node.arguments["equation"]).replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow or "." in inputs or [len(term) for term in terms] != [len(builder.axes(o)) for o in operands]:
        for operand in operands:
            builder.freeze_all(builder.axes(operand), f"{where(node)} has an equation without a channel rule")
        return (None,) * len(node.shape)
    letters: dict[str, Axis] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, axis in zip(term, builder.axes(operand), strict=True):
            reason = f"{where(node)} combines it with a tensor whose size is fixed"
            letters[letter] = builder.unify(letters[letter], axis, reason) if letter in letters else axis
    weights = [term for term, operand in zip(terms, operands, strict=True) if builder.is_weight(operand)]
    is_layer = applied_weight(builder.graph, node) is not None
    if is_layer:
        _connect(builder, node, "", letters[terms[0][-1]], letters[output[-1]])
    for letter, axis in letters.items():
        if letter not in output and not weights:
            builder.table.weaken(axis)
        elif letter in output and any(letter in term for term in weights) and not is_layer:
            builder.produced_by(axis, node.module_path or node.name, is_layer=False)
    return tuple(letters[letter] for letter in output)


def attention(builder: CouplingBuilder, node: Node) -> Axes:
    """`scaled_dot_product_attention`: heads are units, a key/value head goes with its query heads."""
    names = [name for name in ("query", "key", "value") if name in node.arguments]
    nodes = [builder.operand(node, name) for name in names]
    query, key, value = (one for one in nodes if one is not None)
    q, k, v = builder.axes(query), builder.axes(key), builder.axes(value)
    reason = f"{where(node)} combines it with a tensor whose size is fixed"
    builder.unify(q[-1], k[-1], reason)
    if node.arguments.get("scale") is None:
        builder.freeze_all((q[-1], k[-1]), f"{where(node)} takes its scale from this size")
    for axis in (q[-1], k[-1], v[-1], q[-2], k[-2]):
        builder.table.weaken(axis)
    builder.unify(k[-2], v[-2], reason)
    axes, shapes = [q[:-2]], [query.shape[:-2]]
    for operand, its in ((key, k), (value, v)):
        lead = list(its[:-2])
        repeats = query.shape[-3] // operand.shape[-3] if len(operand.shape) > 3 and len(lead) > 1 else 1
        if repeats > 1 and node.arguments.get("enable_gqa"):
            lead[-1] = tuple(Segment(s.group, s.size, s.inner * repeats) for s in lead[-1]) if lead[-1] else None
            shapes.append((*operand.shape[:-3], operand.shape[-3] * repeats))
        else:
            shapes.append(operand.shape[:-2])
        axes.append(tuple(lead))
    mask, masked = builder.operand(node, "attn_mask"), builder.operand_axes(node, "attn_mask")
    if mask is not None and masked is not None:
        axes.append(masked[:-2])
        shapes.append(mask.shape[:-2])
    batch = _broadcast(builder, tuple(axes), tuple(shapes), where(node))
    return (*batch, q[-2], v[-1])


def embedding(builder: CouplingBuilder, node: Node) -> Axes:
    """A table whose rows are looked up: its features are channels, its rows stay."""
    weight, indices = builder.operand_axes(node, "weight"), builder.operand(node, "indices")
    assert weight is not None
    assert indices is not None
    builder.freeze(weight[0], f"{where(node)} looks its rows up")
    name, _ = _owner(builder, node, "weight")
    builder.produced_by(weight[1], name, is_layer=False)
    rest: Axes = (None,) * len(indices.shape)
    return (*rest, weight[1])


def _gates(builder: CouplingBuilder, node: Node, weights: Sequence[Node], read: Axis, hidden: Axis) -> None:
    """Join one direction of one recurrent layer: its weights for the input and the state, then their biases."""
    reason = where(node)
    builder.unify(read, builder.axes(weights[0])[1], f"{reason} reads a dimension of fixed size")
    builder.unify(hidden, builder.axes(weights[1])[1], f"{reason} has a fixed size")
    size = weights[1].shape[1]
    for weight in weights:
        sizes = (weight.shape[0] // size, size)
        gates, rows = coupling_axes.divide(builder.table, builder.axes(weight)[0], sizes, reason)
        builder.freeze(gates, f"{reason} has this many gates")
        builder.unify(hidden, rows, f"{reason} has a fixed size")


def recurrent(builder: CouplingBuilder, node: Node) -> Axes:
    """`lstm` and `gru`: one hidden size in all layers and directions, the gates are blocks of rows."""
    read = builder.first_axes(node)[-1]
    names = [ref.node for ref in node.arguments["params"] if isinstance(ref, Ref)]
    weights = [builder.graph.by_name[name] for name in names]
    biased, both = bool(node.arguments["has_biases"]), bool(node.arguments["bidirectional"])
    each = 4 if biased else 2
    reason = where(node)
    if len(weights) != each * int(node.arguments["num_layers"]) * (2 if both else 1):
        builder.freeze_all([axis for one in weights for axis in builder.axes(one)], f"{reason} projects its outputs")
        builder.freeze(read, f"{reason} projects its outputs")
        return ()
    hidden = builder.axes(weights[1])[1]   # (gates * hidden, hidden), as in every layer and direction
    span = each * (2 if both else 1)
    for begin in range(0, len(weights), span):
        for first in range(begin, begin + span, each):
            _gates(builder, node, weights[first : first + each], read, hidden)
        read = None if hidden is None else hidden * 2 if both else hidden
    states = node.arguments["hx"]
    for ref in states if isinstance(states, list) else [states]:
        if isinstance(ref, Ref):
            start = builder.axes(builder.graph.by_name[ref.node])[-1]
            builder.unify(hidden, start, f"{reason} starts from a fixed state")
    owner = weights[0].target.rpartition(".")[0] or node.name
    builder.produced_by(hidden, owner, is_layer=False)
    output: Axes = (None, None, read)
    state: Axes = (None, None, hidden)
    count = 3 if node.short_op == "lstm" else 2
    builder.lists[node.name] = (output, *(state,) * (count - 1))
    return ()


RULES = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
                     "conv_transpose3d"), convolution),
    "linear": linear,
    "addmm": addmm,
    "matmul": matmul, "mm": matmul, "bmm": matmul,
    "baddbmm": baddbmm,
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
    "embedding": embedding,
    "lstm": recurrent, "gru": recurrent, "rnn_tanh": recurrent, "rnn_relu": recurrent,
}
