"""Integers with zero points, with scales of groups of inputs, or with one scale of the whole matrix.

`w ~ scale * (code - zero)`, codes `0 .. 2^b - 1`. Symmetric ones have the zero in the middle, `2^(b-1)`, as the kernels
for 4-bit weights have it. Grids are those with the least squared error weighted by the variances of the inputs; each
weight then takes its place on its grid with error feedback (`compressors/error_feedback.py`), where that is better for
the output of its row than the nearest one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paretopress.compressors.error_feedback import swept
from paretopress.compressors.learned_rounding import learned_codes
from paretopress.compressors.least_squares import centred
from paretopress.compressors.quantisation import EXACT_COLUMNS, RoundingMethod
from paretopress.compressors.sparse_storage import pack_unsigned
from paretopress.spaces.choices import Weights

SHRINKS = 40             # ranges that are tried of every group, from its whole range down
SMALLEST_SHRINK = 0.4
SMALLEST_SCALE = 1e-30
CACHED_VALUES = 1 << 16  # weights whose ranges are tried together


@dataclass(frozen=True)
class Affine:
    """Codes with scales and zero points.

    Attributes:
        codes: `(out, columns)` uint8.
        scales: `(out, groups)` float32, or `(1, 1)` for the whole matrix.
        zeros: Zero points, uint8, shaped like the scales; None in the middle of the codes.
        bits: Stored width.
        group: Columns that share a scale.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    group: int

    @property
    def middle(self) -> int:
        """The code of zero where there are no zero points."""
        return 1 << (self.bits - 1)

    def weight(self) -> Tensor:
        """The matrix that it stands for, float32, `(out, columns)`."""
        columns = self.codes.shape[1]
        zeros = torch.tensor(float(self.middle)) if self.zeros is None else spread(self.zeros, self.group, columns)
        return (self.codes.float() - zeros) * spread(self.scales, self.group, columns)

    def scaled(self, factors: Tensor) -> Affine:
        """The form whose rows are multiplied by `factors`, `(out,)`; rounded again where all share one scale."""
        if len(self.scales) == len(self.codes):
            return replace(self, scales=self.scales * factors.unsqueeze(1))
        values = self.weight() * factors.unsqueeze(1)
        scale = (values.abs().max() / (self.middle - 1)).clamp_min(SMALLEST_SCALE).reshape(1, 1)
        codes = ((values / scale).round().clamp(1 - self.middle, self.middle - 1) + self.middle).to(torch.uint8)
        return replace(self, codes=codes, scales=scale)

    def each(self, change: Callable[[Tensor], Tensor]) -> Affine:
        """The form with every tensor of rows changed."""
        shared = len(self.scales) != len(self.codes)
        return replace(
            self, codes=change(self.codes), scales=self.scales.clone() if shared else change(self.scales),
            zeros=None if self.zeros is None else change(self.zeros),
        )

    def rows(self) -> None:
        """No kernel for 8-bit integers computes with it."""

    def tensors(self, kept: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """What is stored, by suffix; `kept` picks the values that are."""
        zeros = {} if self.zeros is None else {"zero": pack_unsigned(self.zeros, self.bits)}
        return {"packed": pack_unsigned(kept(self.codes), self.bits), "scale": self.scales, **zeros}


def spread(values: Tensor, group: int, columns: int) -> Tensor:
    """`(out, groups)` to float32 `(out, columns)`."""
    return values.float().repeat_interleave(group, dim=1)[:, :columns] if values.shape[1] > 1 else values.float()


@torch.no_grad()
def affine(
    W: Tensor, form: Weights, G: Tensor | None = None, mask: Tensor | None = None, damping: float = 1e-2, *,
    rounding: RoundingMethod = "feedback",
) -> Affine:
    """Quantise a matrix with the grids of a format.

    Args:
        W: `(out, columns)`.
        form: Bits, scheme and group.
        G: `(columns + 1, columns + 1)` augmented second moments of the inputs, or `(groups, ...)` for grouped layers,
            whose rows are split evenly over the groups; None to round each weight to the nearest.
        mask: `(out, columns)` bool: all other weights are zero.
        damping: Relative to the mean input variance.
        rounding: `"nearest"` does not look at the moments; `"learned"` starts from what error feedback finds.

    Raises:
        DataError: The moments are not finite or not positive semi-definite.
    """
    out, columns = W.shape
    G = None if rounding == "nearest" else G
    group, most = form.group or columns, (1 << form.bits) - 1
    covariance = torch.eye(columns, dtype=torch.float64).unsqueeze(0) if G is None else centred(
        G if G.ndim == 3 else G.unsqueeze(0))[0]
    variances = covariance.diagonal(dim1=-2, dim2=-1).repeat_interleave(out // len(covariance), dim=0)
    scales, zeros = _grids(W.double(), form, variances, group)
    shape = (len(covariance), -1, columns)
    kind = torch.float64 if columns <= EXACT_COLUMNS or rounding == "learned" else torch.float32
    steps, offsets = (
        spread(part, group, columns).to(kind).expand(out, columns).reshape(shape) for part in (scales, zeros))
    least = 0.0 if form.scheme == "asymmetric" else 1.0   # codes are symmetric around the middle
    grid = _Grid(steps, offsets, least, float(most))
    dense, kept = W.to(kind).reshape(shape), None if mask is None else mask.reshape(shape)
    codes = grid.rounded(dense, steps, offsets)[0] if G is None else _fed_back(dense, grid, covariance, damping, kept)
    codes = codes if kept is None else torch.where(kept, codes, offsets)
    if rounding == "learned" and G is not None:
        lowest, highest = least - offsets, most - offsets
        codes = learned_codes(dense, steps, codes - offsets, lowest, highest, covariance, kept) + offsets
    stored = zeros.to(torch.uint8) if form.scheme == "asymmetric" else None
    return Affine(codes.to(torch.uint8).reshape(out, columns).contiguous(), scales.float(), stored, form.bits, group)


@dataclass(frozen=True)
class _Grid:
    """The grid of every weight: steps and zero points `(groups, rows, columns)`, least and largest code."""

    steps: Tensor
    offsets: Tensor
    least: float
    most: float

    def rounded(self, values: Tensor, steps: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest codes, and what they stand for."""
        codes = torch.clamp((values / steps).round() + offsets, self.least, self.most)
        return codes, (codes - offsets) * steps

    def column(self, values: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """The same of one column of each group."""
        index = column.reshape(-1, 1, 1).expand(-1, values.shape[1], 1)
        return self.rounded(values, *(part.gather(2, index).squeeze(2) for part in (self.steps, self.offsets)))


def _fed_back(dense: Tensor, grid: _Grid, covariance: Tensor, damping: float, mask: Tensor | None) -> Tensor:
    """Codes by error feedback, or the nearest ones of rows whose output they serve better."""
    nearest, plain = grid.rounded(dense, grid.steps, grid.offsets)
    found = swept(dense, covariance, grid.column, damping, mask=mask)
    fed_back = (found - grid.offsets) * grid.steps
    better = _errors(dense, fed_back, mask, covariance) < _errors(dense, plain, mask, covariance)
    return torch.where(better.unsqueeze(2), found, nearest)


def _errors(dense: Tensor, values: Tensor, mask: Tensor | None, covariance: Tensor) -> Tensor:
    difference = dense - (values if mask is None else values * mask)
    return ((difference @ covariance.to(dense.dtype)) * difference).sum(dim=2)


def _grids(W: Tensor, form: Weights, importance: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points `(out, groups)`, or `(1, 1)`, with the least weighted squared error."""
    if form.scheme == "tensor":
        W, importance, group = W.reshape(1, -1), importance.expand(W.shape).reshape(1, -1), W.numel()
    size = max(1, CACHED_VALUES // max(1, W.shape[1]))
    parts = [_row_grids(W[start : start + size], form, importance[start : start + size], group)
             for start in range(0, len(W), size)]
    return torch.cat([scales for scales, _ in parts]), torch.cat([zeros for _, zeros in parts])


def _row_grids(W: Tensor, form: Weights, importance: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Grids of a few rows, few enough for the search to stay in the cache."""
    out, columns = W.shape
    count = math.ceil(columns / group)
    blocks, weights = W.new_zeros(out, count * group), W.new_zeros(out, count * group)
    blocks[:, :columns], weights[:, :columns] = W, importance
    blocks, weights = blocks.reshape(out, count, group), weights.reshape(out, count, group)
    most, middle = float((1 << form.bits) - 1), float(1 << (form.bits - 1))
    low, high = blocks.amin(dim=2).clamp_max(0.0), blocks.amax(dim=2).clamp_min(0.0)
    if form.scheme != "asymmetric":
        low, high = -torch.maximum(-low, high), torch.maximum(-low, high)
    best = torch.full_like(low, torch.inf)
    scales, zeros = torch.ones_like(low), torch.full_like(low, middle)
    for shrink in torch.linspace(1.0, SMALLEST_SHRINK, SHRINKS).tolist():
        if form.scheme == "asymmetric":
            step = ((high - low) * shrink / most).clamp_min(SMALLEST_SCALE)
            zero = torch.round(-low * shrink / step).clamp(0.0, most)
            codes = (blocks / step.unsqueeze(2)).round_().add_(zero.unsqueeze(2)).clamp_(0.0, most)
        else:
            step = (high * shrink / (middle - 1.0)).clamp_min(SMALLEST_SCALE)
            zero = torch.full_like(step, middle)
            codes = (blocks / step.unsqueeze(2)).round_().add_(middle).clamp_(1.0, most)
        errors = codes.sub_(zero.unsqueeze(2)).mul_(step.unsqueeze(2)).sub_(blocks).square_().mul_(weights).sum(dim=2)
        better = errors < best
        best = torch.where(better, errors, best)
        scales, zeros = torch.where(better, step, scales), torch.where(better, zero, zeros)
    return scales.float().double(), zeros
