"""One layer as two smaller ones, in the metric of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from paretopress.compressors.least_squares import refit_from_moments
from paretopress.compressors.low_rank import whitened_svd
from paretopress.spaces.kernels import product
from paretopress.spaces.layers import Layer, LayerKind

DAMPING = 1e-3   # of the least squares that settles a transposed convolution's second factor


def factors(layer: Layer, weight: Tensor, bias: Tensor, moments: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split a layer's matrix in two by whitened singular value decomposition.

    Args:
        layer: The layer.
        weight: `(out, columns)`, its pruned inputs left out.
        bias: `(out,)`.
        moments: `(columns + 1, columns + 1)` augmented second moments of its inputs.
        rank: Inner width.

    Returns:
        The first factor, the second, and the second's bias: `(rank, columns)` and `(out, rank)`, or `(rank, in)` and
        `(out, rank * window)` of a transposed convolution.
    """
    if layer.kind is not LayerKind.TRANSPOSED:
        decomposition = whitened_svd(weight, moments)
        first, second = decomposition.factors(rank)
        return first, second, decomposition.bias(weight, bias, rank)
    return _transposed_factors(weight, bias, moments, rank, product(layer.window))


def _transposed_factors(
    weight: Tensor, bias: Tensor, moments: Tensor, rank: int, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A 1x1 convolution and a transposed one behind it.

    The decomposition takes the contributions of input positions as independent, which they are where windows do
    not overlap. The second factor is then fitted to the outputs by least squares, which knows of the overlaps.
    """
    out, inputs = len(weight), weight.shape[1] // window
    outputs = weight.reshape(out, inputs, window).transpose(1, 2).reshape(out * window, inputs)
    first, split = whitened_svd(outputs, position_moments(moments, window)).factors(rank)
    prior = split.reshape(out, window, rank).transpose(1, 2).reshape(out, rank * window)
    spread = _spread(first, moments)
    joined = torch.cat([weight.double(), bias.double().unsqueeze(1)], dim=1)
    second, intercept = refit_from_moments(
        joined @ moments.double() @ spread.T, spread @ moments.double() @ spread.T, DAMPING, prior)
    return first, second, intercept


def position_moments(moments: Tensor, window: int) -> Tensor:
    """Augmented second moments `(in + 1, in + 1)` of single positions, from those of whole windows.

    The mean counts as variation: an output sees a position through one element of the window only, so that no bias
    absorbs it. The scale is arbitrary.
    """
    inputs = (len(moments) - 1) // window
    single = moments[:-1, :-1].reshape(inputs, window, inputs, window).diagonal(dim1=1, dim2=3).sum(dim=-1)
    augmented = moments.new_zeros(inputs + 1, inputs + 1)
    augmented[:-1, :-1], augmented[-1, -1] = single, 1.0
    return augmented


def first_moments(layer: Layer, moments: Tensor) -> Tensor:
    """Augmented second moments of what a layer's first factor reads."""
    return position_moments(moments, product(layer.window)) if layer.kind is LayerKind.TRANSPOSED else moments


def inner_moments(first: Tensor, moments: Tensor) -> Tensor:
    """Augmented second moments of a first factor's output, as the second factor's columns read it."""
    spread = _spread(first, moments)
    return spread @ moments.to(spread.dtype) @ spread.T


def _spread(first: Tensor, moments: Tensor) -> Tensor:
    """The map of augmented inputs to augmented inner values; a 1x1 factor acts on each element of the window."""
    columns = len(moments) - 1
    window = columns // first.shape[1]
    matrix = torch.kron(first.double(), torch.eye(window, dtype=torch.float64)) if window > 1 else first.double()
    extended = torch.zeros(len(matrix) + 1, columns + 1, dtype=torch.float64)
    extended[:-1, :-1], extended[-1, -1] = matrix, 1.0
    return extended
