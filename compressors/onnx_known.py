"""What a graph computes from sizes alone: positions, masks of positions, expansions to the batch.

Such values are computed while the file is written, at both of its batch sizes, so that no operator of theirs needs a
rule. They become constants where the batch does not matter, or one row that is expanded where all rows are alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paretopress.compressors.program import Program, Values, call
from paretopress.spaces.graph import Node

if TYPE_CHECKING:
    from paretopress.compressors.onnx_values import Value

LARGEST = 1 << 20  # elements of a value that is computed while the file is written
Contents = tuple[Tensor, Tensor]


def contents_of(value: Any) -> Contents | None:  # noqa: ANN401 - anything that stands for a node's value
    """Return what a value holds at each of the two batch sizes, None where that is not known from sizes alone."""
    contents: Contents | None = getattr(value, "contents", None)
    tensor = getattr(value, "tensor", None)
    if contents is None and tensor is not None and not tensor.is_floating_point():
        return tensor, tensor
    return contents


def computed(program: Program, node: Node, values: Values, changes: Mapping[str, Any]) -> Contents | None:
    """Return what an operator gives at each of the two batch sizes where all that it reads follows from sizes alone."""
    sides: list[Values] = [{}, {}]
    for name in node.inputs:
        known: Sequence[Any] | None = contents_of(values[name]) or getattr(values[name], "numbers", None)
        if known is None and isinstance(values[name], int):
            known = values[name], values[name]
        if known is None:
            return None
        for side in range(2):
            sides[side][name] = known[side]
    in_place = node.short_op.endswith("_") and not node.short_op.startswith("__")
    if in_place or not _is_small(node):   # what is written into may be the user's own tensor
        return None
    one, other = (call(program, node, side, changes) for side in sides)
    return (one, other) if isinstance(one, Tensor) else None


def _is_small(node: Node) -> bool:
    count = 1
    for size in node.shape:
        count *= size
    return bool(node.dtype) and count <= LARGEST


def single_row(contents: Contents) -> Tensor | None:
    """Return the one row `(1, ...)` that a value repeats for every sample, None where it does not."""
    one, other = contents
    if not one.ndim or one.shape[1:] != other.shape[1:] or 0 in one.shape:
        return None
    row = one[:1]
    same = torch.equal(one, row.expand_as(one)) and torch.equal(other, row.expand_as(other))
    return row.contiguous() if same else None


def renames_dimensions(x: Value, indices: Sequence[Contents | None]) -> bool:
    """Whether indexing takes every element of `x` in order, so that it only gives it another shape."""
    for side, meta in enumerate(x.metas):
        places = torch.arange(meta.numel()).reshape(meta.shape)
        taken = places[tuple(slice(None) if index is None else index[side] for index in indices)]
        if not torch.equal(taken.flatten(), places.flatten()):
            return False
    return True
