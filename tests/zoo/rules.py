"""What every operator makes of removed elements: the rules of the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from zoo.partial import ConflictError, Partial, call, is_partial, pair, partial, presence_of, value_of

from paretopress.spaces.graph import Node

# fmt: off
MOVES = frozenset((
    "view", "reshape", "_unsafe_view", "permute", "transpose", "t", "expand", "expand_as", "slice", "select",
    "narrow", "cat", "concat", "stack", "hstack", "vstack", "split", "split_with_sizes", "chunk", "unbind",
    "tensor_split", "unflatten", "flatten", "squeeze", "unsqueeze", "contiguous", "clone", "alias", "detach",
    "detach_", "lift_fresh_copy", "roll", "flip", "index", "index_select", "repeat", "repeat_interleave",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "unfold", "im2col", "movedim", "swapaxes", "swapdims",
    "adjoint", "mT", "numpy_T", "view_as", "reshape_as", "broadcast_to", "dropout", "alpha_dropout",
    "feature_dropout", "to", "_to_copy", "type_as", "float", "double", "embedding", "atleast_2d", "as_strided",
    "diagonal", "gather", "take_along_dim", "upsample_nearest1d", "upsample_nearest2d", "python.operator.getitem",
    "getitem", "native_channel_shuffle", "ravel",
))
POOLS = frozenset((
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_bilinear2d", "upsample_bicubic2d",
))
ELEMENTWISE = frozenset((
    "add", "sub", "rsub", "mul", "div", "maximum", "minimum", "pow", "where", "lerp", "addcmul", "relu", "relu6",
    "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "elu", "leaky_relu", "selu", "mish",
    "softplus", "abs", "neg", "exp", "log", "sqrt", "rsqrt", "square", "clamp", "clamp_min", "clamp_max",
    "reciprocal", "erf", "softsign", "sin", "cos", "prelu", "masked_fill", "logical_and", "logical_not", "ne", "eq",
    "lt", "gt", "le", "ge", "bitwise_and", "log1p", "expm1", "zeros_like", "ones_like", "full_like",
))
PRODUCTS = frozenset((
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "matmul", "bmm", "mm", "einsum",
    "addmm", "baddbmm",
))
SHAPE_ONLY = frozenset(("sym_size", "new_zeros", "new_ones", "new_full", "size", "_assert_tensor_metadata"))
# fmt: on
BIASES = ("bias", "self")  # of linear and convolutions, and of addmm

Arguments = dict[str, Any]
Function = Callable[..., Any]


def _move(function: Function, node: Node, arguments: Arguments) -> Any:
    values = call(function, node, {name: value_of(item) for name, item in arguments.items()})
    presents = call(function, node, {name: presence_of(item) for name, item in arguments.items()})
    return pair(values, presents)


def _pad(function: Function, node: Node, arguments: Arguments) -> Any:
    """What padding adds along a dimension exists where anything along that dimension does."""
    source = arguments["self"]
    value = call(function, node, {**arguments, "self": source.value})
    present, amounts = source.present, list(arguments["pad"])
    for index in range(len(amounts) // 2):
        dim = present.ndim - 1 - index
        before, after = amounts[2 * index : 2 * index + 2]
        any_along = present.amax(dim, keepdim=True)
        sides = [torch.repeat_interleave(any_along, max(0, amount), dim) for amount in (before, after)]
        start, length = max(0, -before), present.shape[dim] - max(0, -before) - max(0, -after)
        present = torch.cat([sides[0], present.narrow(dim, start, length), sides[1]], dim)
    return partial(value, present)


def _pool(function: Function, _: Node, arguments: Arguments) -> Any:
    name = next(iter(arguments))
    source = arguments[name]
    return partial(function(**{**arguments, name: source.zeroed}), function(**{**arguments, name: source.present}))


def _element_wise(function: Function, node: Node, arguments: Arguments) -> Any:
    value = call(function, node, {name: value_of(item) for name, item in arguments.items()})
    present = torch.ones((), dtype=torch.float64)
    for item in arguments.values():
        if isinstance(item, Partial):
            shape = (-1, *(1,) * (value.ndim - 2)) if node.short_op == "prelu" and item.present.ndim == 1 else None
            present = present * (item.present if shape is None else item.present.reshape(shape))
    return partial(value, present.expand(value.shape))


def _product(function: Function, node: Node, arguments: Arguments) -> Any:
    """Removed entries of either side contribute nothing, and where a result exists both sides agree on them."""
    names = [name for name, item in arguments.items() if isinstance(item, Partial | Tensor) and name not in BIASES]
    if node.short_op in ("matmul", "bmm", "mm", "linear") or "conv" in node.short_op:
        names = [name for name, item in arguments.items() if isinstance(item, Partial | Tensor) and name != "bias"]
    items = {name: arguments[name] for name in names}
    lists = {name: item for name, item in arguments.items() if isinstance(item, list) and is_partial(item)}
    zeroed = {
        **arguments,
        **{name: item.zeroed if isinstance(item, Partial) else item for name, item in items.items()},
        **{name: [one.zeroed if isinstance(one, Partial) else one for one in item] for name, item in lists.items()},
    }
    biases = [name for name in BIASES if name in arguments and name not in names]
    zeroed.update({name: value_of(arguments[name]) for name in biases})
    counting = {**arguments, **dict.fromkeys(name for name in biases if isinstance(arguments[name], Partial | Tensor))}
    if node.short_op in ("addmm", "baddbmm"):
        counting["self"] = torch.zeros((), dtype=torch.float64)
    count = _counts(function, counting, {**items, **lists})
    value = function(**zeroed)
    present = (count > 0.5).to(torch.float64)
    for name in biases:
        if isinstance(arguments[name], Partial):
            bias = arguments[name].present
            shaped = bias.reshape(-1, *(1,) * (value.ndim - 2)) if "conv" in node.short_op else bias
            if not torch.equal(present * shaped, present):
                raise ConflictError(f"{node.name}: the bias loses channels that the weight keeps")
    return partial(value, present)


def _counts(function: Function, arguments: Arguments, sides: Mapping[str, Any]) -> Tensor:
    """How many pairs of existing entries each result sums; raises where one side keeps what the other removes."""
    both = function(**{**arguments, **{name: presence_of(item) for name, item in sides.items()}})
    names = [(name, None) for name, item in sides.items() if not isinstance(item, list)]
    names += [(name, place) for name, item in sides.items() if isinstance(item, list) for place in range(len(item))]
    for kept in names:
        alone = {}
        for name, item in sides.items():
            if isinstance(item, list):
                alone[name] = [
                    presence_of(one) if (name, place) == kept else torch.ones_like(value_of(one))
                    for place, one in enumerate(item)
                ]
            else:
                alone[name] = presence_of(item) if (name, None) == kept else torch.ones_like(value_of(item))
        one_sided = function(**{**arguments, **alone})
        if bool(((both > 0.5) & ((one_sided - both).abs() > 0.5)).any()):
            raise ConflictError(f"{kept[0]} keeps entries that the other side of the product removes")
    return both


def _mean_over(x: Tensor, present: Tensor, dims: Sequence[int]) -> Tensor:
    zeroed = torch.where(present > 0, x, torch.zeros_like(x))
    return zeroed.sum(dims, keepdim=True) / present.sum(dims, keepdim=True).clamp(min=1)


def _normalised(x: Partial, dims: Sequence[int], eps: float, centre: bool = True) -> Tensor:
    mean = _mean_over(x.value, x.present, dims) if centre else torch.zeros((), dtype=torch.float64)
    variance = _mean_over((x.value - mean) ** 2, x.present, dims)
    return (x.value - mean) / torch.sqrt(variance + eps)


def _as_partial(item: Any, like: Tensor) -> Partial:
    return item if isinstance(item, Partial) else Partial(item, torch.ones_like(like))


def _affine(y: Tensor, present: Tensor, weight: Any, bias: Any, shape: tuple[int, ...] | None = None) -> Any:
    for item, apply in ((weight, torch.mul), (bias, torch.add)):
        if item is not None:
            value, mask = value_of(item), presence_of(item)
            y = apply(y, value if shape is None else value.reshape(shape))
            present = present * (mask if shape is None else mask.reshape(shape))
    return partial(y, present)


def _weight_norm(function: Function, node: Node, arguments: Arguments) -> Any:
    """The norm is that of the dense weight: what is left of it has the values it had."""
    value = call(function, node, {name: value_of(item) for name, item in arguments.items()})
    return partial(value, presence_of(arguments["v"]) * presence_of(arguments["g"]))


def _layer_norm(_: Function, node: Node, arguments: Arguments) -> Any:
    x = _as_partial(
        arguments.get("input", arguments.get("self")), value_of(arguments.get("input", arguments.get("self")))
    )
    dims = list(range(-len(arguments["normalized_shape"]), 0))
    eps = arguments["eps"] if arguments["eps"] is not None else torch.finfo(x.value.dtype).eps
    y = _normalised(x, dims, eps, centre=node.short_op == "layer_norm")
    return _affine(y, x.present, arguments["weight"], arguments.get("bias"))


def _group_norm(_: Function, node: Node, arguments: Arguments) -> Any:
    x = _as_partial(arguments["input"], value_of(arguments["input"]))
    batch, channels = x.value.shape[:2]
    groups = arguments["num_groups"] if node.short_op == "group_norm" else channels
    grouped = Partial(x.value.reshape(batch, groups, -1), x.present.reshape(batch, groups, -1))
    y = _normalised(grouped, [-1], arguments["eps"]).reshape(x.value.shape)
    shape = (-1, *(1,) * (x.value.ndim - 2))
    return _affine(y, x.present, arguments["weight"], arguments["bias"], shape)


def _batch_norm(_: Function, __: Node, arguments: Arguments) -> Any:
    x = _as_partial(arguments["input"], value_of(arguments["input"]))
    shape = (-1, *(1,) * (x.value.ndim - 2))
    mean, variance = (value_of(arguments[name]).reshape(shape) for name in ("running_mean", "running_var"))
    y = (x.value - mean) * torch.rsqrt(variance + arguments["eps"])
    return _affine(y, x.present, arguments["weight"], arguments["bias"], shape)


def _softmax(function: Function, _: Node, arguments: Arguments) -> Any:
    x = arguments["self"]
    masked = torch.where(x.present > 0, x.value, torch.full_like(x.value, -torch.inf))
    value = function(**{**arguments, "self": masked})
    return partial(torch.where(x.present > 0, value, torch.zeros_like(value)), x.present)


def _reduce(function: Function, node: Node, arguments: Arguments) -> Any:
    x, dims = arguments["self"], arguments.get("dim")
    dims = list(range(x.value.ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    count = x.present.sum(dims, keepdim=True)
    if node.short_op in ("amax", "amin"):
        edge = -torch.inf if node.short_op == "amax" else torch.inf
        result = function(**{**arguments, "self": torch.where(x.present > 0, x.value, torch.full_like(x.value, edge))})
        return partial(result, _shaped(count, dims, arguments))
    if node.short_op == "sum":
        result = x.zeroed.sum(dims, keepdim=True)
    elif node.short_op == "linalg_vector_norm":
        result = torch.linalg.vector_norm(x.zeroed, arguments["ord"], dims, True)
    else:
        result = _mean_over(x.value, x.present, dims)
        if node.short_op in ("var", "std"):
            result = _mean_over((x.value - result) ** 2, x.present, dims)
            correction = arguments.get("correction", 1 if arguments.get("unbiased", True) else 0)
            result = result * count / (count - (1 if correction is None else correction))
            result = result.sqrt() if node.short_op == "std" else result
    return partial(_shaped(result, dims, arguments), _shaped(count, dims, arguments))


def _shaped(result: Tensor, dims: Sequence[int], arguments: Arguments) -> Tensor:
    """A reduction's result, made with kept dimensions, in the shape that was asked for."""
    if arguments.get("keepdim"):
        return result
    gone = {dim % result.ndim for dim in dims}
    return result.reshape([size for dim, size in enumerate(result.shape) if dim not in gone])


def _attention(_: Function, __: Node, arguments: Arguments) -> Any:
    """Softmax of scaled products, the scale that of the dense head size."""
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    size = value_of(query).shape[-1]
    scale = arguments.get("scale") or size**-0.5
    if arguments.get("enable_gqa"):
        times = value_of(query).shape[-3] // value_of(key).shape[-3]
        key, value = (_move(torch.repeat_interleave, _PLAIN, {"self": x, "r": times, "dim": -3}) for x in (key, value))
    key = _move(torch.transpose, _PLAIN, {"self": key, "dim0": -1, "dim1": -2})
    scores = _product(_matmul, _MATMUL, {"self": query, "other": key})
    present, scores = presence_of(scores), value_of(scores) * scale
    mask = value_of(arguments.get("attn_mask"))
    if arguments.get("is_causal"):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, -1)
    return _product(_matmul, _MATMUL, {"self": partial(weights, present), "other": value})


def _matmul(self: Tensor, other: Tensor) -> Tensor:
    return torch.matmul(self, other)


_PLAIN = Node("plain", "python.operator.plain")
_MATMUL = Node("attention", "aten.matmul.default")


def _recurrent(function: Function, node: Node, arguments: Arguments) -> Any:
    """Zero rows keep a removed state at zero in LSTM and GRU; which states exist is read off the hidden weights."""
    parameters = list(arguments["params"])
    layers, directions = arguments["num_layers"], 1 + bool(arguments["bidirectional"])
    each = len(parameters) // (layers * directions)
    gates = value_of(parameters[1]).shape[0] // value_of(parameters[1]).shape[1]
    zeroed = [item.zeroed if isinstance(item, Partial) else item for item in parameters]
    source = arguments["input"]
    _check_recurrent(source, parameters, each, gates, layers, directions)
    plain = {key: value_of(item) for key, item in arguments.items()}
    plain["input"] = source.zeroed if isinstance(source, Partial) else source
    plain["params"] = zeroed
    results = list(function(**plain))
    last = [
        _states(parameters[each * (layers * directions - directions + index) + 1], gates) for index in range(directions)
    ]
    results[0] = partial(results[0], torch.cat(last).expand(results[0].shape))
    every = torch.stack([_states(parameters[each * index + 1], gates) for index in range(layers * directions)])
    results[1:] = [partial(state, every.unsqueeze(1).expand(state.shape)) for state in results[1:]]
    return results


def _states(hidden_weight: Any, gates: int) -> Tensor:
    present = presence_of(hidden_weight)
    rows = (present.sum(1) > 0).to(torch.float64).reshape(gates, -1)
    if not torch.equal(rows, rows[:1].expand_as(rows)):
        raise ConflictError("the gates of a recurrent layer lose different states")
    return rows[0]


def _check_recurrent(
    source: Any, parameters: Sequence[Any], each: int, gates: int, layers: int, directions: int
) -> None:
    """Inputs of every layer are what the layer before it keeps, and rows agree between weights and biases."""
    known = presence_of(source).reshape(-1, value_of(source).shape[-1])[0]
    for layer in range(layers):
        states = []
        for direction in range(directions):
            own = parameters[each * (layer * directions + direction) :][:each]
            state = _states(own[1], gates)
            rows = state.repeat(gates)
            wanted = (rows[:, None] * known, rows[:, None] * state, rows, rows)
            if any(not torch.equal(presence_of(item), mask) for item, mask in zip(own, wanted, strict=False)):
                raise ConflictError("the weights of a recurrent layer lose different channels")
            states.append(state)
        known = torch.cat(states)


RULES: dict[str, Function] = {
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(ELEMENTWISE, _element_wise),
    **dict.fromkeys(PRODUCTS, _product),
    "pad": _pad,
    "constant_pad_nd": _pad,
    "_weight_norm": _weight_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "group_norm": _group_norm,
    "instance_norm": _group_norm,
    "batch_norm": _batch_norm,
    "softmax": _softmax,
    "_softmax": _softmax,
    "log_softmax": _softmax,
    **dict.fromkeys(("mean", "sum", "var", "std", "amax", "amin", "linalg_vector_norm"), _reduce),
    "scaled_dot_product_attention": _attention,
    "lstm": _recurrent,
    "gru": _recurrent,
}
