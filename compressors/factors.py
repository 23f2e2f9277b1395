"""One layer as two or three smaller ones, in the metric of its inputs.

Factors are matrices `(out, columns)` here, as all weights are: the columns of a convolution are its inputs times its
window. Only the last one has a bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paretopress.compressors.convolution_factors import along_rows, spatial_factors, tucker_factors
from paretopress.compressors.least_squares import centred, refit_from_moments
from paretopress.compressors.low_rank import whitened_svd
from paretopress.compressors.nonnegative import sign_split_factors
from paretopress.spaces.choices import Factorised
from paretopress.spaces.kernels import product
from paretopress.spaces.layers import Layer, LayerKind

DAMPING = 1e-3   # of the least squares that settles a transposed convolution's second factor


Matrices = tuple[Tensor, ...]


def factors(layer: Layer, form: Factorised, weight: Tensor, bias: Tensor, moments: Tensor) -> tuple[Matrices, Tensor]:
    """Split a layer's matrix into those of smaller layers.

    Args:
        layer: The layer.
        form: Kind and ranks, which fit the matrix.
        weight: `(out, columns)`, its pruned inputs left out.
        bias: `(out,)`.
        moments: `(columns + 1, columns + 1)` augmented second moments of its inputs.

    Returns:
        The matrices in the order in which they are applied, and the bias of the last one, which keeps every mean
        output.
    """
    if layer.kind is LayerKind.TRANSPOSED:
        first, second, intercept = _transposed_factors(weight, bias, moments, form.rank, product(layer.window))
        return (first, second), intercept
    match form.kind:
        case "svd":
            decomposition = whitened_svd(weight, moments)
            return decomposition.factors(form.rank), decomposition.bias(weight, bias, form.rank)
        case "nmf":
            found: Matrices = sign_split_factors(weight, form.rank, centred(moments)[0])
        case "spatial":
            found = _flat(spatial_factors(_kernel(weight, layer), moments, form.rank).kernels)
        case "tucker":
            found = _flat(tucker_factors(_kernel(weight, layer), moments, (form.inner, form.rank)).kernels)
    _, mean = centred(moments)
    difference = weight.double() - composed(layer, form, found)
    return found, (bias.double() + difference @ mean).float()


def composed(layer: Layer, form: Factorised, matrices: Matrices) -> Tensor:
    """The matrix `(out, columns)` float64 that smaller layers compute together; of no transposed convolution."""
    first, second, *third = (matrix.double() for matrix in matrices)
    if form.kind == "spatial":
        return second @ _along_rows(first, layer)
    if third:
        first = torch.kron(first, torch.eye(product(layer.window), dtype=torch.float64))
        second = third[0] @ second
    return second @ first


def _kernel(weight: Tensor, layer: Layer) -> Tensor:
    return weight.reshape(len(weight), -1, *layer.window)


def _flat(kernels: Matrices) -> Matrices:
    return tuple(kernel.flatten(1) for kernel in kernels)


def _along_rows(first: Tensor, layer: Layer) -> Tensor:
    """The map of a whole window to what the second of two spatial factors reads."""
    height, width = layer.window
    return along_rows(first.double().reshape(len(first), -1, height), width)


def _transposed_factors(
    weight: Tensor, bias: Tensor, moments: Tensor, rank: int, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A 1x1 convolution and a transposed one behind it.

    The decomposition takes the contributions of input positions as independent, which they are where windows do
    not overlap. The second factor is then fitted to the outputs by least squares, which knows of the overlaps.
    """
    out = len(weight)
    first, split = whitened_svd(position_matrix(weight, window), position_moments(moments, window)).factors(rank)
    prior = split.reshape(out, window, rank).transpose(1, 2).reshape(out, rank * window)
    spread = _spread(first, moments)
    joined = torch.cat([weight.double(), bias.double().unsqueeze(1)], dim=1)
    second, intercept = refit_from_moments(
        joined @ moments.double() @ spread.T, spread @ moments.double() @ spread.T, DAMPING, prior)
    return first, second, intercept


def position_matrix(weight: Tensor, window: int) -> Tensor:
    """What a transposed convolution makes of one input position: `(out, in * window)` as `(out * window, in)`."""
    out, inputs = len(weight), weight.shape[1] // window
    return weight.reshape(out, inputs, window).transpose(1, 2).reshape(out * window, inputs)


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


def factor_moments(layer: Layer, form: Factorised, matrices: Matrices, moments: Tensor) -> Matrices:
    """Augmented second moments of what each of the smaller layers reads, as its columns read it."""
    if layer.kind is LayerKind.TRANSPOSED:
        return position_moments(moments, product(layer.window)), inner_moments(matrices[0], moments)
    match form.kind:
        case "spatial":
            spread = _augmented(_along_rows(matrices[0], layer))
            return _mean_moments(moments, layer.window[1]), spread @ moments.double() @ spread.T
        case "tucker":
            core = inner_moments(matrices[0], moments)
            return _mean_moments(moments, product(layer.window)), core, inner_moments(matrices[1], core)
    return moments, inner_moments(matrices[0], moments)


def _mean_moments(moments: Tensor, places: int) -> Tensor:
    """Augmented second moments of one of the `places` that a window has along its end, averaged over them."""
    columns = (len(moments) - 1) // places
    augmented = moments.new_ones(columns + 1, columns + 1)
    whole = moments[:-1, :-1].reshape(columns, places, columns, places)
    augmented[:-1, :-1] = whole.diagonal(dim1=1, dim2=3).mean(dim=-1)
    augmented[:-1, -1] = augmented[-1, :-1] = moments[:-1, -1].reshape(columns, places).mean(dim=1)
    return augmented


def inner_moments(first: Tensor, moments: Tensor) -> Tensor:
    """Augmented second moments of a first factor's output, as the second factor's columns read it."""
    spread = _spread(first, moments)
    return spread @ moments.to(spread.dtype) @ spread.T


def _spread(first: Tensor, moments: Tensor) -> Tensor:
    """The map of augmented inputs to augmented inner values; a 1x1 factor acts on each element of the window."""
    columns = len(moments) - 1
    window = columns // first.shape[1]
    matrix = torch.kron(first.double(), torch.eye(window, dtype=torch.float64)) if window > 1 else first.double()
    return _augmented(matrix)


def _augmented(matrix: Tensor) -> Tensor:
    """A map that also keeps the constant 1."""
    extended = torch.zeros(len(matrix) + 1, matrix.shape[1] + 1, dtype=torch.float64)
    extended[:-1, :-1], extended[-1, -1] = matrix, 1.0
    return extended
