"""Low-rank forms of a layer: the real layers that stand in its place, before any weight is touched.

With m outputs, c inputs, a window of h x w and rank r:

| kind | real layers | weights |
|---|---|---|
| `svd` | the window to r channels, 1x1 (of a transposed convolution: 1x1, the window) | `r (m + n)`, `n = c h w` |
| `nmf` | as `svd`, r channels for the positive and r for the negative weights | `2 r (m + n)` |
| `spatial` | `(h, 1)` to r channels, `(1, w)` | `r (c h + m w)` |
| `tucker` | 1x1 to r1 channels, the window to r2, 1x1 | `r1 c + r1 r2 h w + r2 m` |

Only the last one has a bias, so that what is padded between them is zero as it was before the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from paretopress.spaces.choices import Factorised
from paretopress.spaces.kernels import product
from paretopress.spaces.layers import Holder, Layer, LayerKind

Shape = tuple[int, ...]


def why_not_factorised(layer: Layer, kind: str) -> str:
    """Why a layer has no factors of a kind, `""` where it has."""
    if layer.why_no_rank or kind == "svd":
        return layer.why_no_rank
    if layer.kind is LayerKind.TRANSPOSED:
        return f"a transposed convolution has no {kind} factors (allowed: svd)"
    if kind == "nmf":
        return ""
    shown = "a linear layer" if not layer.window else f"a window of {'x'.join(map(str, layer.window))}"
    if len(layer.window) != 2 or min(layer.window) < 2:
        return f"{kind} factors are of 2-d convolutions with a window above 1 on both sides, this is {shown}"
    if layer.holder is not Holder.MODULE:
        return f"{kind} factors need a convolution module to stand in place of: the user's own code applies this weight"
    return ""


def why_too_large(factors: Factorised, layer: Layer) -> str:
    """Why a rank is none below the layer's own, `""` where it is below."""
    if factors.kind == "tucker":
        own = (layer.shape[1], layer.shape[0])
        ranks = (with_inner(factors, layer).inner, factors.rank)
        for side, rank, most in zip(("input", "output"), ranks, own, strict=True):
            if rank > most:
                return f"rank {rank} is above the {most} {side} channels"
        return "both ranks are those of the layer itself: one of them must be lower" if ranks == own else ""
    limit = min(_sides(factors.kind, layer, layer.shape)) - 1
    return f"rank {factors.rank} is not below full rank (allowed: 1 to {limit})" if factors.rank > limit else ""


def fitted(factors: Factorised, layer: Layer, shape: Shape) -> Factorised:
    """The factors of a layer at a pruned shape: no rank above what is left, the input rank of `tucker` worked out."""
    if factors.kind == "tucker":
        inner = with_inner(factors, layer).inner
        return replace(factors, rank=min(factors.rank, shape[0]), inner=min(inner, shape[1]))
    return replace(factors, rank=min(factors.rank, *_sides(factors.kind, layer, shape)))


def with_inner(factors: Factorised, layer: Layer) -> Factorised:
    """The factors with their input rank, where they have one, worked out at the dense layer's shape."""
    if factors.kind != "tucker" or factors.inner:
        return factors
    return replace(factors, inner=own_inner(factors.rank, layer.shape))


def own_inner(rank: int, shape: Shape) -> int:
    """The input rank of Tucker factors that do not say one: the output rank times inputs / outputs, at least 1."""
    return max(1, min(shape[1], round(rank * shape[1] / shape[0])))


def _sides(kind: str, layer: Layer, shape: Shape) -> tuple[int, int]:
    """Rows and columns of the matrix that is cut."""
    return (shape[0] * shape[3], shape[1] * shape[2]) if kind == "spatial" else layer.sides(shape)


def part_shapes(factors: Factorised, shape: Shape, *, transposed: bool) -> tuple[Shape, ...]:
    """Weight shapes by outputs of the real layers.

    Args:
        factors: As `fitted` returns them.
        shape: Of the layer's weight after pruning.
        transposed: Whether it is a transposed convolution.
    """
    (out, inputs), window, rank = shape[:2], shape[2:], factors.rank
    tail = (1,) * len(window)
    match factors.kind:
        case "spatial":
            return (rank, inputs, window[0], 1), (out, rank, 1, window[1])
        case "tucker":
            return (factors.inner, inputs, *tail), (rank, factors.inner, *window), (out, rank, *tail)
        case "nmf":
            rank *= 2
    if transposed:
        return (rank, inputs, *tail), (out, rank, *window)
    return (rank, *shape[1:]), (out, rank, *tail)


def ranks_fit(factors: Factorised, shape: Shape) -> bool:
    """Whether a weight of a shape, of no transposed convolution, has factors of these ranks."""
    match factors.kind:
        case "spatial":
            return len(shape) == 4 and factors.rank <= min(shape[0] * shape[3], shape[1] * shape[2])
        case "tucker":
            return len(shape) == 4 and factors.rank <= shape[0] and 1 <= factors.inner <= shape[1]
    return factors.rank <= min(shape[0], product(shape[1:]))


def factor_weights(factors: Factorised, layer: Layer, shape: Shape) -> int:
    """How many weights the factors of a layer at a pruned shape hold."""
    found = part_shapes(fitted(factors, layer, shape), shape, transposed=layer.kind is LayerKind.TRANSPOSED)
    return sum(map(product, found))


def break_even(kind: str, layer: Layer) -> float:
    """The rank at which factors hold as many weights as the layer itself; of `tucker` with its own input rank."""
    rows, columns = _sides(kind, layer, layer.shape)
    if kind == "tucker":
        (out, inputs), total = layer.shape[:2], product(layer.shape)
        square, linear = inputs / out * product(layer.window), inputs * inputs / out + out
        return (math.sqrt(linear * linear + 4.0 * square * total) - linear) / (2.0 * square)
    return product(layer.shape) / ((rows + columns) * (2 if kind == "nmf" else 1))


def part_layers(layer: Layer, factors: Factorised | None) -> tuple[Layer, ...]:
    """The operation of each real layer: window, stride, padding and dilation, not its channels.

    One of two has the window and the other is pointwise (window 1, stride 1, no padding): the second, but the first
    of a transposed convolution, because its inputs are fewer than its outputs. Of three the middle one has it; of
    spatial ones each has one side of it.
    """
    if factors is None:
        return (layer,)
    if factors.kind == "spatial":
        return _one_side(layer, 0), _one_side(layer, 1)
    ones, zeros = (1,) * len(layer.window), (0,) * len(layer.window)
    kind = LayerKind.CONV if layer.window else layer.kind
    pointwise = replace(
        layer, kind=kind, shape=(*layer.shape[:2], *ones), stride=ones, padding=zeros, dilation=ones, groups=1,
        output_padding=(),
    )
    if factors.kind == "tucker":
        return pointwise, layer, pointwise
    return (pointwise, layer) if layer.kind is LayerKind.TRANSPOSED else (layer, pointwise)


def _one_side(layer: Layer, side: int) -> Layer:
    """A convolution that only looks along one spatial dimension."""

    def only(sizes: Sequence[int], other: int) -> Shape:
        return tuple(size if place == side else other for place, size in enumerate(sizes))

    return replace(
        layer, shape=(*layer.shape[:2], *only(layer.window, 1)), stride=only(layer.stride, 1),
        padding=only(layer.padding, 0), dilation=only(layer.dilation, 1),
    )


def convolved(layer: Layer, size: Shape) -> Shape:
    """Spatial size of what a convolution that is not transposed makes of an input of a size."""
    sides = zip(size, layer.window, layer.stride, layer.padding, layer.dilation, strict=True)
    return tuple((length + 2 * pad - hop * (window - 1) - 1) // step + 1 for length, window, step, pad, hop in sides)
