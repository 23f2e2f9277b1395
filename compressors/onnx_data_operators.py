"""Rules for operators that move data: other shapes, orders, parts and types of what is there."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from paretopress.compressors.onnx_builder import Builder, Rule
from paretopress.compressors.onnx_known import contents_of, renames_dimensions
from paretopress.compressors.onnx_values import Metas, Value, Varying, as_tensor, element_type, require, static_sizes

Arguments = Mapping[str, Any]


def _reshape(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    """Any operator that only renames dimensions; the one that depends on the batch is inferred."""
    x = as_tensor(next(iter(arguments.values())))
    if all(one.shape == other.shape for one, other in zip(x.metas, metas, strict=True)):
        return x
    return reshaped(builder, name, x, metas)


def reshaped(builder: Builder, name: str, x: Value, metas: Metas) -> Value:
    """Write a `Reshape` to the shape of `metas`. Raises `UntranslatableError` where the batch hides it."""
    sizes = Value("", metas).shape
    require(sizes.count(None) <= 1 and 0 not in sizes, "a reshape with several sizes that depend on the batch")
    target = builder.numbers("shape", [-1 if size is None else size for size in sizes])
    return builder.emit("Reshape", [x, target], name, metas)


def _transpose(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    x = as_tensor(arguments["self"])
    order = list(range(len(x.shape)))
    if "dims" in arguments:
        order = [dim % len(order) for dim in arguments["dims"]]
    elif order:
        one, other = arguments.get("dim0", 0), arguments.get("dim1", -1)
        order[one], order[other] = order[other], order[one]
    return builder.emit("Transpose", [x], name, metas, perm=order)


def transposed(builder: Builder, name: str, x: Value) -> Value:
    """The last two dimensions exchanged; a constant is stored that way."""
    if x.tensor is not None:
        return builder.constant(f"{x.name}:transposed", x.tensor.transpose(-1, -2))
    order = [*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2]
    one, other = (meta.transpose(-1, -2) for meta in x.metas)
    return builder.emit("Transpose", [x], name, (one, other), perm=order)


def _pad(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    """PyTorch lists (before, after) from the last dimension on, ONNX all befores and then all afters."""
    x, amounts = as_tensor(arguments["self"]), arguments["pad"]
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    mode = modes.get(arguments.get("mode", "constant"), "")
    require(bool(mode) and all(isinstance(amount, int) for amount in amounts), "a padding with options")
    dims = len(x.shape) - len(amounts) // 2
    before, after = [0] * dims + amounts[-2::-2], [0] * dims + amounts[::-2]
    inputs = [x, builder.numbers("pads", before + after)]
    if mode == "constant":
        value = arguments.get("value") or 0
        inputs.append(builder.constant(f"{name}:value", torch.tensor(value, dtype=x.dtype)))
    return builder.emit("Pad", inputs, name, metas, mode=mode)


def _slice(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    x, dim = as_tensor(arguments["self"]), arguments["dim"]
    start, end, step = arguments["start"] or 0, arguments["end"], arguments["step"]
    end = sys.maxsize if end is None else end
    require(not any(isinstance(bound, Varying) for bound in (start, end, step)), "a slice up to the batch")
    if start == 0 and end == sys.maxsize and step == 1:
        return x
    static_sizes(x, dim)
    bounds = [builder.numbers("bounds", [number]) for number in (start, end, dim, step)]
    return builder.emit("Slice", [x, *bounds], name, metas)


def _gather(builder: Builder, name: str, x: Value, dim: int, index: int, metas: Metas) -> Value:
    return builder.emit("Gather", [x, builder.numbers("index", index)], name, metas, axis=dim)


def _select(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    require(isinstance(arguments["index"], int), "an index that depends on the batch")
    return _gather(builder, name, as_tensor(arguments["self"]), arguments["dim"], arguments["index"], metas)


def _unbind(builder: Builder, name: str, arguments: Arguments, metas: Sequence[Metas]) -> list[Value]:
    x, dim = as_tensor(arguments["self"]), arguments["dim"]
    static_sizes(x, dim)
    return [_gather(builder, f"{name}_{index}", x, dim, index, pair) for index, pair in enumerate(metas)]


def _split(builder: Builder, name: str, arguments: Arguments, metas: Sequence[Metas]) -> list[Value]:
    x, dim = as_tensor(next(iter(arguments.values()))), arguments["dim"]
    static_sizes(x, dim)
    sizes = builder.numbers("sizes", [one.shape[dim] for one, _ in metas])
    return builder.emit_many("Split", [x, sizes], [f"{name}_{i}" for i in range(len(metas))], metas, axis=dim)


def _concatenate(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    tensors = [as_tensor(value) for value in arguments["tensors"]]
    same = all(value.dtype == metas[0].dtype and len(value.shape) == metas[0].ndim for value in tensors)
    require(same, "a concatenation of several types")
    return builder.emit("Concat", tensors, name, metas, axis=arguments["dim"])


def _stack(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    dim = arguments["dim"] % metas[0].ndim
    tensors = []
    for index, value in enumerate(arguments["tensors"]):
        one, other = (meta.unsqueeze(dim) for meta in as_tensor(value).metas)
        axes = builder.numbers("axes", [dim])
        tensors.append(builder.emit("Unsqueeze", [value, axes], f"{name}_{index}", (one, other)))
    return _concatenate(builder, name, {"tensors": tensors, "dim": dim}, metas)


def _embedding(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    table, indices = as_tensor(arguments["weight"]), as_tensor(arguments["indices"])
    return builder.emit("Gather", [table, indices], name, metas, axis=0)


def _cast(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    x = as_tensor(arguments["self"])
    return x if x.dtype == metas[0].dtype else builder.emit("Cast", [x], name, metas, to=element_type(metas[0].dtype))


def _expand(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    x = as_tensor(arguments["self"])
    if all(one.shape == other.shape for one, other in zip(x.metas, metas, strict=True)):
        return x
    return builder.expanded(name, x, metas)


def _index(builder: Builder, name: str, arguments: Arguments, metas: Metas) -> Value:
    """Places that follow from sizes alone: another shape, or entries along one dimension."""
    x = as_tensor(arguments["self"])
    places = [None if index is None else contents_of(index) for index in arguments["indices"]]
    given = [index for index in arguments["indices"] if index is not None]
    require(len(given) == sum(place is not None for place in places), "places that are computed")
    require(not any(place[0].is_floating_point() or place[0].dtype == torch.bool for place in places if place), "masks")
    if renames_dimensions(x, places):
        return reshaped(builder, name, x, metas)
    require(len(given) == 1, "places along several dimensions")
    dim = next(number for number, place in enumerate(places) if place is not None)
    return builder.emit("Gather", [x, given[0]], name, metas, axis=dim)


DATA_RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("permute", "transpose", "t"), _transpose),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    **dict.fromkeys(("cat", "concat"), _concatenate),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    "slice": _slice,
    "select": _select,
    "unbind": _unbind,
    "stack": _stack,
    "embedding": _embedding,
    "to": _cast,
    "index": _index,
    **dict.fromkeys(("expand", "expand_as"), _expand),
}
