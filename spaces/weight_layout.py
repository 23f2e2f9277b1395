"""Where the rows of a layer's weight are in the user's tensor.

Everything computes with weights by outputs, `(out, in / groups, *window)`. The user's tensor is `(in, out)` for a
flipped linear layer and `(in, out / groups, *window)` for a transposed convolution.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from paretopress.spaces.layers import Layer, LayerKind

if TYPE_CHECKING:
    from torch import Tensor

    from paretopress.spaces.coupling import Axis, Coupling, Segment


def by_outputs(layer: Layer, tensor: Tensor, groups: int) -> Tensor:
    """A tensor in the user's layout with its outputs as rows; the memory may be shared."""
    if layer.kind is LayerKind.TRANSPOSED:
        inputs, per_group, *window = tensor.shape
        parts = tensor.reshape(groups, inputs // groups, per_group, *window).transpose(1, 2)
        return parts.reshape(groups * per_group, inputs // groups, *window)
    return tensor.t() if layer.flipped else tensor


def as_stored(layer: Layer, tensor: Tensor, groups: int) -> Tensor:
    """A tensor with outputs as rows in the user's layout, contiguous: the inverse of `by_outputs`."""
    if layer.kind is LayerKind.TRANSPOSED:
        outputs, per_group, *window = tensor.shape
        parts = tensor.reshape(groups, outputs // groups, per_group, *window).transpose(1, 2)
        return parts.reshape(groups * per_group, outputs // groups, *window).contiguous()
    return tensor.t().contiguous() if layer.flipped else tensor.contiguous()


def stored_shape(layer: Layer, shape: tuple[int, ...], groups: int) -> tuple[int, ...]:
    """The shape in the user's layout of a weight of `shape` by outputs."""
    if layer.kind is LayerKind.TRANSPOSED:
        return (shape[1] * groups, shape[0] // groups, *shape[2:])
    return shape[::-1] if layer.flipped else shape


def weight_axes(coupling: Coupling, layer: Layer) -> tuple[Axis, ...]:
    """The axes of a layer's weight by outputs."""
    stored = coupling.parameters.get(layer.weight) or (None,) * len(layer.shape)
    if layer.kind is LayerKind.TRANSPOSED:
        if layer.groups == 1:
            return (stored[1], stored[0], *stored[2:])
        made = coupling.values.get(layer.node)
        return (made[1] if made else None, _of_one_group(stored[0], layer), *stored[2:])
    return stored[::-1] if layer.flipped else stored


def _of_one_group(axis: Axis, layer: Layer) -> Axis:
    """The part of an axis of all inputs that the first group reads; None where whole groups are kept or removed."""
    if axis and len(axis) == 1 and axis[0].outer == layer.groups and axis[0].length == layer.in_channels:
        return (replace(axis[0], outer=1),)
    once: list[Segment] = []
    taken, wanted = 0, layer.shape[1]
    for segment in axis or ():
        if taken == wanted or segment.outer != 1:
            break
        once.append(segment)
        taken += segment.length
    if taken != wanted or axis is None or tuple(once) * layer.groups != axis:
        return None
    return tuple(once)
