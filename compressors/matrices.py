"""Compressing one matrix: its weights brought into the format that is stored, its bias corrected for what that changes.

The order is fixed: prune, factorise, sparsify, quantise or share or binarise. What comes later works on what came
before, and every step is fitted to the second moments of the layer's inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paretopress.compressors.affine import Affine, affine
from paretopress.compressors.binary import binarise
from paretopress.compressors.clustering import cluster, shared_weights
from paretopress.compressors.factors import factor_moments, factors
from paretopress.compressors.inputs import DynamicRange, InputSigns
from paretopress.compressors.learned_rounding import learned_integers
from paretopress.compressors.least_squares import centred
from paretopress.compressors.network import Part
from paretopress.compressors.quantisation import (
    RoundingMethod,
    corrected_bias,
    gptq,
    round_to_nearest,
    row_scales,
)
from paretopress.compressors.sparse_storage import Pattern
from paretopress.compressors.sparsity import block_mask, compensated_sparse, largest, pattern_mask
from paretopress.compressors.stored import Floats, Integers, Shared, SparseWeight, StoredWeight
from paretopress.spaces.choices import (
    BYTE_LEVEL,
    UNSTRUCTURED,
    Binary,
    Clustered,
    Factorised,
    Half,
    Sparse,
    WeightFormat,
    Weights,
)
from paretopress.spaces.errors import PolicyError
from paretopress.spaces.kernels import product
from paretopress.spaces.layers import Layer
from paretopress.spaces.plan import LayerPlan
from paretopress.spaces.stored_weights import pattern_sizes

HALF_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
SIGN_SPREAD = 0.8   # mean distance from the mean of a normal distribution, in standard deviations


@dataclass(frozen=True)
class Matrix:
    """A compressed weight matrix.

    Attributes:
        weight: `(out, columns)` float32, what is computed with.
        bias: `(out,)` or None.
        stored: What stands for the weight, None for itself.
    """

    weight: Tensor
    bias: Tensor | None
    stored: StoredWeight | None = None

    def rows(self, index: Tensor | None) -> Matrix:
        """The matrix with some of its rows."""
        if index is None:
            return self
        stored = None if self.stored is None else self.stored.each(lambda tensor: tensor[index])
        return Matrix(self.weight[index], None if self.bias is None else self.bias[index], stored)

    def part(self, shape: tuple[int, ...]) -> Part:
        """The matrix as the weight of a real layer."""
        return Part(self.weight.reshape(shape), self.bias, self.stored)


def quantise_matrix(
    dense: Matrix, moments: Tensor, widths: tuple[int, ...], rounding: RoundingMethod = "feedback",
    highest: int = BYTE_LEVEL,
) -> dict[int, Matrix]:
    """Quantise a matrix to several widths; by error feedback all of them take one sweep.

    Args:
        dense: Float matrix `(out, columns)`.
        moments: Augmented second moments of its inputs, `(columns + 1, columns + 1)` or per group.
        widths: Bits.
        rounding: How each weight finds its integer.
        highest: No integer is larger (`Weights.highest`).
    """
    found = rounded(dense.weight, moments, widths, rounding, highest=highest)
    return {bits: _with(dense, moments, Integers(*one, bits, highest)) for bits, one in found.items()}


def rounded(
    weight: Tensor, moments: Tensor, widths: Sequence[int], rounding: RoundingMethod, mask: Tensor | None = None,
    highest: int = BYTE_LEVEL,
) -> dict[int, tuple[Tensor, Tensor]]:
    """Integers `(out, columns)` and scales `(out,)` of a matrix at every width.

    Args:
        weight: `(out, columns)`, zero where `mask` is false.
        moments: Augmented second moments of its inputs, `(columns + 1, columns + 1)` or per group.
        widths: Bits.
        rounding: `"feedback"`: each error is made up for by the columns still to come; `"nearest"`: every weight on
            its own, on the grid that is best for the weights; `"learned"`: up or down as is best for the row.
        mask: Bool `(out, columns)` of the weights that are kept, None for all.
        highest: No integer is larger (`Weights.highest`).
    """
    match rounding:
        case "feedback":
            return gptq(weight, moments, widths, mask=mask, highest=highest)
        case "learned":
            return learned_integers(weight, moments, widths, mask, highest)
        case "nearest":
            grids = {bits: row_scales(weight, bits, highest=highest) for bits in widths}
            return {bits: (round_to_nearest(weight, scales, bits, highest), scales) for bits, scales in grids.items()}


def in_format(
    dense: Matrix, moments: Tensor, form: WeightFormat | None, sparse: Sparse | None = None,
    rounding: RoundingMethod = "feedback",
) -> Matrix:
    """Bring a matrix into a format.

    Args:
        dense: Float matrix `(out, columns)`.
        moments: Augmented second moments of its inputs, `(columns + 1, columns + 1)` or per group.
        form: Format of the values, None for 32-bit floats.
        sparse: Which of them are kept, None for all.
        rounding: How weights find their integers, where they become integers.
    """
    if sparse is not None:
        return _with(dense, moments, _sparse(dense.weight, moments, form, sparse, rounding))
    match form:
        case None:
            return dense
        case Weights(bits) if form.is_plain:
            return quantise_matrix(dense, moments, (bits,), rounding, form.highest)[bits]
        case Binary(bases):
            return _with(dense, moments, binarise(dense.weight, bases, moments))
        case _:
            return _with(dense, moments, _values(dense.weight, moments, form, None, rounding))


def table_in_format(weight: Tensor, form: WeightFormat | None, sparse: Sparse | None) -> Matrix:
    """Bring an embedding into a format: each row is read on its own, so that its own error is all there is to lower."""
    if form is None and sparse is None:
        return Matrix(weight, None)
    mask = None if sparse is None else plain_mask(weight, sparse)
    kept = weight if mask is None else weight * mask
    values: Integers | Affine | Floats | Shared
    match form:
        case None:
            values = Floats(kept)
        case Half(kind):
            values = Floats(kept.to(HALF_TYPES[kind]))
        case Weights() if not form.is_plain:
            values = affine(kept, form, mask=mask)
        case Weights(bits):
            scales = row_scales(kept, bits)
            values = Integers(round_to_nearest(kept, scales, bits), scales, bits)
        case Clustered(bits):
            size = kept.square().mean(dim=1).sqrt()
            size = torch.where(size > 0.0, size, torch.ones_like(size))
            codebook, indices = cluster(kept / size.unsqueeze(1), bits)
            values = Shared(codebook, indices.to(torch.uint8), size, bits)
        case Binary():
            raise PolicyError("the rows of an embedding are no signs")
    stored: StoredWeight = values
    if mask is not None and sparse is not None:
        stored = SparseWeight(values, mask, sparse, form)
    return Matrix(stored.weight(), None, stored)


def plain_mask(weight: Tensor, sparse: Sparse) -> Tensor:
    """Keep the largest weights, or the blocks with the most: bool `(out, columns)`."""
    if sparse.pattern == UNSTRUCTURED:
        return largest(weight.abs(), sparse.density)
    sizes = pattern_sizes(sparse.pattern)
    if ":" in sparse.pattern:
        return pattern_mask(weight.abs(), Pattern(*sizes))
    return block_mask(weight.square(), sparse.density, sizes)


def _sparse(
    weight: Tensor, moments: Tensor, form: WeightFormat | None, sparse: Sparse, rounding: RoundingMethod
) -> SparseWeight:
    sizes = None if sparse.pattern == UNSTRUCTURED else pattern_sizes(sparse.pattern)
    pattern = Pattern(*sizes) if sizes and ":" in sparse.pattern else None
    block = sizes if sizes and pattern is None else None
    kept, mask = compensated_sparse(weight, moments, sparse.density, pattern, block=block)
    return SparseWeight(_values(kept, moments, form, mask, rounding), mask, sparse, form)


def _values(
    weight: Tensor, moments: Tensor, form: WeightFormat | None, mask: Tensor | None, rounding: RoundingMethod
) -> Integers | Affine | Floats | Shared:
    match form:
        case None:
            return Floats(weight)
        case Half(kind):
            return Floats(weight.to(HALF_TYPES[kind]))
        case Weights() if not form.is_plain:
            return affine(weight, form, moments, mask, rounding=rounding)
        case Weights(bits):
            return Integers(*rounded(weight, moments, (bits,), rounding, mask, form.highest)[bits], bits, form.highest)
        case Clustered(bits):
            return shared_weights(weight, moments, bits, mask)
        case Binary():
            raise PolicyError("a sign is never zero: signs cannot be sparse")


def _with(dense: Matrix, moments: Tensor, stored: StoredWeight) -> Matrix:
    """The matrix that is stored, with a bias that keeps every mean output."""
    weight = stored.weight()
    if dense.bias is None:
        return Matrix(weight, None, stored)
    return Matrix(weight, corrected_bias(dense.weight, dense.bias, moments, weight), stored)


def factorise(
    layer: Layer, dense: Matrix, moments: Tensor, form: Factorised
) -> tuple[tuple[Matrix, ...], tuple[Tensor, ...]]:
    """Split a layer's matrix into those of smaller layers, each with the augmented moments of what it reads."""
    assert dense.bias is not None
    found, bias = factors(layer, form, dense.weight, dense.bias, moments)
    *others, last = found
    matrices = (*(Matrix(weight, None) for weight in others), Matrix(last, bias))
    return matrices, factor_moments(layer, form, found, moments)


def layer_parts(
    layer_plan: LayerPlan, dense: Matrix, moments: Tensor, rounding: RoundingMethod = "feedback"
) -> tuple[Part, ...]:
    """Bring one pruned layer into the form of its plan."""
    layer, form, sparse = layer_plan.layer, layer_plan.form, layer_plan.sparse
    matrices, read = ((dense,), (moments,)) if layer_plan.factors is None else factorise(
        layer, dense, moments, layer_plan.factors)
    formed = [in_format(matrix, inputs, form, sparse, rounding)
              for matrix, inputs in zip(matrices, read, strict=True)]
    return real_parts(layer_plan, formed, moments)


def real_parts(layer_plan: LayerPlan, matrices: Sequence[Matrix], moments: Tensor) -> tuple[Part, ...]:
    """Matrices as the weights of a layer's real layers; without a bias where the user's code adds none.

    Args:
        layer_plan: What the layer becomes.
        matrices: One per real layer.
        moments: Augmented second moments of the layer's inputs, which signs of the input are set by. Grids are chosen
            when the values are seen (`tuning.py`).
    """
    parts = [matrix.part(shape) for matrix, (_, shape) in zip(matrices, layer_plan.parts, strict=True)]
    match layer_plan.form:
        case Binary(_, 1):
            parts[0] = replace(parts[0], inputs=input_signs(layer_plan, moments))
        case Weights(ranges="dynamic"):
            parts = [replace(part, inputs=DynamicRange()) for part in parts]
    return tuple(part if layer_plan.has_bias else replace(part, bias=None) for part in parts)


def input_signs(layer_plan: LayerPlan, moments: Tensor) -> InputSigns:
    """Signs around the mean of every input channel, at the mean distance from it of a normal distribution."""
    covariance, mean = centred(moments if moments.ndim == 3 else moments.unsqueeze(0))
    window = product(layer_plan.shape[2:])
    thresholds = mean.reshape(-1, window).mean(dim=1)
    spread = covariance.diagonal(dim1=1, dim2=2).mean().clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    return InputSigns((SIGN_SPREAD * spread).reshape(1).float(), thresholds.float())
