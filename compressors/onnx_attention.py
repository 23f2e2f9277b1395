"""The rule of attention: products, a mask that is added once for all layers, softmax."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from paretopress.compressors.onnx_builder import Builder
from paretopress.compressors.onnx_data_operators import transposed
from paretopress.compressors.onnx_known import contents_of
from paretopress.compressors.onnx_values import Metas, Value, as_tensor, element_type, require, static_sizes

LOWEST = torch.finfo(torch.float32).min


def attention(builder: Builder, name: str, arguments: Mapping[str, Any], metas: Metas) -> Value:
    """Write `softmax(scale * query @ key^T + mask) @ value`.

    Both factors are scaled by the square root, as PyTorch does. Where a mask is computed, a query that may look at
    nothing gets zeros, as in PyTorch.
    """
    query, key, value = (as_tensor(arguments[argument]) for argument in ("query", "key", "value"))
    require(not arguments["dropout_p"] and query.dtype == torch.float32, "attention with options")
    require(query.shape[:-2] == key.shape[:-2] == value.shape[:-2], "attention of grouped queries")
    added, seen = _mask(builder, arguments, query, key)
    (width,) = static_sizes(query, -1)
    given = arguments.get("scale")
    factor = math.sqrt(1 / math.sqrt(width) if given is None else given)
    scale = builder.constant(f"scale:{factor}", torch.tensor(factor, dtype=query.dtype))
    queries = builder.emit("Mul", [query, scale], f"{name}_queries", query.metas)
    turned = transposed(builder, f"{name}_turned", key)
    keys = builder.emit("Mul", [turned, scale], f"{name}_keys", turned.metas)
    one, other = (torch.matmul(queries.metas[side], keys.metas[side]) for side in range(2))
    scores = builder.emit("MatMul", [queries, keys], f"{name}_scores", (one, other))
    if added is not None:
        scores = builder.emit("Add", [scores, added], f"{name}_masked", scores.metas)
    weights = builder.emit("Softmax", [scores], f"{name}_weights", scores.metas, axis=-1)
    if seen is None:
        return builder.emit("MatMul", [weights, value], name, metas)
    sums = builder.emit("MatMul", [weights, value], f"{name}_sums", metas)
    return builder.emit("Mul", [sums, seen], name, metas)


def _mask(
    builder: Builder, arguments: Mapping[str, Any], query: Value, key: Value
) -> tuple[Value | None, Value | None]:
    """What is added to the scores, and 1 for the queries that may look at anything, 0 for the others; None for all."""
    mask = arguments["attn_mask"]
    if arguments["is_causal"]:
        require(mask is None, "causal attention with a mask")
        rows, columns = static_sizes(query, -2)[0], static_sizes(key, -2)[0]
        return _constant(builder, torch.ones(rows, columns, dtype=torch.bool).tril()), None
    if mask is None:
        return None, None
    known, mask = contents_of(mask), as_tensor(mask)
    require(mask.dtype == torch.bool, "attention with a mask of numbers")
    if known is not None and torch.equal(*known) and bool(known[0].any(-1).all()):
        return _constant(builder, known[0]), None
    return _computed(builder, mask)


def _constant(builder: Builder, allowed: Tensor) -> Value:
    added = torch.zeros(allowed.shape).masked_fill(~allowed, LOWEST)
    return builder.constant(
        f"mask:{list(allowed.shape)}:{hashlib.sha256(allowed.numpy().tobytes()).hexdigest()[:8]}", added
    )


def _computed(builder: Builder, mask: Value) -> tuple[Value, Value]:
    """Both of a mask that depends on the inputs, written once however many layers read it.

    The lowest number instead of minus infinity: a row without a single place would otherwise be 0 / 0.
    """
    known = builder.masks.get(mask.name)
    if known is None:
        numbers = [builder.constant(f"number:{value}", torch.tensor(value)) for value in (0.0, LOWEST)]
        floats = (mask.metas[0].float(), mask.metas[1].float())
        added = builder.emit("Where", [mask, *numbers], f"{mask.name}_added", floats)
        cast = builder.emit("Cast", [mask], f"{mask.name}_floats", floats, to=element_type(torch.float32))
        rows = tuple(meta.amax(-1, keepdim=True) for meta in floats)
        axes = builder.numbers("axes", [-1])
        seen = builder.emit("ReduceMax", [cast, axes], f"{mask.name}_seen", (rows[0], rows[1]), keepdims=1)
        known = builder.masks[mask.name] = added, seen
    return known
