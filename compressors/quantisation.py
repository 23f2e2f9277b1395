"""Quantisation: row scales, GPTQ sweeps for weights, affine 8-bit ranges for activations.

Weights are symmetric per row: `w ~ scale * q`, `q` in `-(2^(b-1) - 1) .. 2^(b-1) - 1`, so two bits are
ternary; 8 bits end at 64 where kernels of integers compute with them (`Weights.highest`). Activations are
uint8 with a zero point, exactly as ONNX QuantizeLinear and DequantizeLinear.

GPTQ rounds columns one after the other and makes up for each error in those still to come
(`compressors/error_feedback.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from paretopress.compressors.error_feedback import swept
from paretopress.compressors.least_squares import centred
from paretopress.compressors.scale_search import scales_at_levels
from paretopress.spaces.choices import BYTE_LEVEL
from paretopress.spaces.errors import DataError

_RANGE_GRID = 64
_BINS = 2048
EXACT_COLUMNS = 640   # of a matrix that is swept in 64 bits; wider ones take half of the time in 32
TOP = 255   # the highest code of 8 bits
RANGE_VALUES = 1 << 16   # values that a range is searched on: more changed no range by more than a step
OUTLIERS = 1e-3   # of the values at either end, which a range by percentiles leaves out

RangeMethod = Literal["mse", "minmax", "percentile"]
RANGE_METHODS: tuple[RangeMethod, ...] = ("mse", "minmax", "percentile")
RoundingMethod = Literal["feedback", "nearest", "learned"]
ROUNDING_METHODS: tuple[RoundingMethod, ...] = ("feedback", "nearest", "learned")


def largest_level(bits: int, highest: int = BYTE_LEVEL) -> int:
    """Return the largest integer of a symmetric width: `2^(bits - 1) - 1`, or `highest` where that is smaller."""
    assert 2 <= bits <= 8
    return min((1 << (bits - 1)) - 1, highest)


@torch.no_grad()
def row_scales(W: Tensor, bits: int, G_diagonal: Tensor | None = None, highest: int = BYTE_LEVEL) -> Tensor:
    """Find each row's scale by a grid search on the (weighted) squared rounding error (`scale_search.py`).

    The largest representable value is searched between 0.2 and 1 times the row's largest weight.

    Args:
        W: `(out, columns)`.
        bits: 2 to 8.
        G_diagonal: `(columns,)` or `(out, columns)` weights of the squared errors, usually the variances of
            the inputs; equal weights where not given.
        highest: No integer is larger.

    Returns:
        `(out,)` positive scales, float32. Rows of zeros get 1.
    """
    return scales_at_levels(W, (largest_level(bits, highest),), G_diagonal)[0]


@torch.no_grad()
def round_to_nearest(W: Tensor, scales: Tensor, bits: int, highest: int = BYTE_LEVEL) -> Tensor:
    """Round rows to their grids, ties to even: int8 `(out, columns)`, none larger than `highest`."""
    level = largest_level(bits, highest)
    return (W.float() / scales.unsqueeze(1)).round().clamp(-level, level).to(torch.int8)


def dequantise(integers: Tensor, scales: Tensor) -> Tensor:
    """Return `integers * scales` per row, float32."""
    return integers.float() * scales.float().unsqueeze(1)


@torch.no_grad()
def corrected_bias(W: Tensor, bias: Tensor, G: Tensor, W_quantised: Tensor) -> Tensor:
    """Return `b' = b + (W - Wq) E[x]`, which keeps every mean output (Nagel et al., ICCV 2019).

    Args:
        W: `(out, columns)` weights before.
        bias: `(out,)`.
        G: `(columns + 1, columns + 1)` augmented second moments, or `(groups, ...)` for grouped layers whose
            rows are split evenly over the groups.
        W_quantised: `(out, columns)` dequantised weights.
    """
    mean = G[..., :-1, -1].double().reshape(-1, W.shape[1])
    difference = (W.double() - W_quantised.double()).reshape(len(mean), -1, W.shape[1])
    return (bias.double() + (difference @ mean.unsqueeze(2)).flatten()).float()


@torch.no_grad()
def gptq(
    W: Tensor, G: Tensor, bits_list: Sequence[int], damping: float = 1e-2, actorder: bool = True,
    mask: Tensor | None = None, highest: int = BYTE_LEVEL,
) -> dict[int, tuple[Tensor, Tensor]]:
    """Quantise a layer to several widths in one GPTQ sweep, all widths stacked as rows.

    The grid of each row is found with the input variances as weights. The swept integers then get their
    least-squares scale `(w C q) / (q C q)`. Of the swept row and those rounded to nearest (on grids found
    with and without the variances) the best in `(w - s q) C (w - s q)^T` is taken, so that no row is worse
    than rounding to nearest.

    Args:
        W: `(out, columns)`.
        G: `(columns + 1, columns + 1)` augmented second moments of the inputs, or `(groups, ...)` for
            grouped and depthwise layers, whose rows are split evenly over the groups.
        bits_list: Widths, each 2 to 8.
        damping: Relative to the mean input variance.
        actorder: Quantise columns in order of decreasing input variance.
        mask: `(out, columns)` bool: all other weights are zero, and stay so.
        highest: No integer is larger, whatever the width.

    Returns:
        Per width the integers `(out, columns)` int8 and the scales `(out,)` float32. Correct the bias with
        `corrected_bias`.

    Raises:
        DataError: The moments are not finite or not positive semi-definite.
    """
    out, columns = W.shape
    covariance, _ = centred(G if G.ndim == 3 else G.unsqueeze(0))
    groups = len(covariance)
    rows = out // groups
    variances = covariance.diagonal(dim1=-2, dim2=-1).repeat_interleave(rows, dim=0)
    levels = [largest_level(bits, highest) for bits in bits_list]
    weighted, plain = scales_at_levels(W, levels, variances), scales_at_levels(W, levels)
    dense = W.to(torch.float64 if columns <= EXACT_COLUMNS else torch.float32).reshape(groups, rows, columns)
    grids = torch.cat([scale.to(dense.dtype).reshape(groups, rows) for scale in weighted], dim=1)
    bounds = torch.tensor(levels, dtype=dense.dtype).repeat_interleave(rows)

    def nearest(values: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        rounded = torch.clamp((values / grids).round_(), -bounds, bounds)
        return rounded, rounded * grids

    kept = None if mask is None else mask.reshape(groups, rows, columns).repeat(1, len(bits_list), 1)
    found = swept(dense.repeat(1, len(bits_list), 1), covariance, nearest, damping, actorder, kept)
    quantised = {}
    for index, bits in enumerate(bits_list):
        rounded = found[:, index * rows : (index + 1) * rows].reshape(out, columns).to(torch.int8)
        to_nearest = [(round_to_nearest(W, scale, bits, highest), scale) for scale in (weighted[index], plain[index])]
        quantised[bits] = best_rows(dense, [(rounded, weighted[index]), *to_nearest], covariance)
    return quantised


def best_rows(
    dense: Tensor, candidates: Sequence[tuple[Tensor, Tensor]], covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """Give every candidate row its least-squares scale `(w C q) / (q C q)` and choose each row's best candidate.

    All is reckoned from the error `w - s q`: the difference of two errors stays exact where both are tiny.

    Args:
        dense: `(groups, rows, columns)`; its type is computed in.
        candidates: Integers `(out, columns)` and scales `(out,)`; of equal rows the first is chosen.
        covariance: `(groups, columns, columns)` of the inputs.
    """
    covariance = covariance.to(dense.dtype)
    projected = dense @ covariance
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for integers, scales in candidates:
        values = integers.to(dense.dtype).reshape(dense.shape)
        missing = dense - values * scales.to(dense.dtype).reshape(*dense.shape[:2], 1)
        image = missing @ covariance
        agreement, left = ((image * one).sum(dim=2).flatten().double() for one in (values, missing))
        size = ((projected * values).sum(dim=2).flatten().double() - agreement) / scales.double()
        refitted = (scales.double() + agreement / size).float()
        chosen = torch.where(torch.isfinite(refitted) & (refitted > 0.0), refitted, scales)
        change = chosen.double() - scales.double()
        kept.append((integers, chosen, left + change * (change * size - 2.0 * agreement)))
    best = torch.stack([errors for _, _, errors in kept]).argmin(dim=0)
    rows = torch.arange(len(best))
    return (
        torch.stack([integers for integers, _, _ in kept])[best, rows],
        torch.stack([scales for _, scales, _ in kept])[best, rows],
    )


def activation_range(minimum: float, maximum: float, top: int = TOP) -> tuple[float, int]:
    """Return scale and zero point of the grid of unsigned codes that covers a range and holds zero exactly.

    Args:
        minimum: Smallest value; ranges are widened to include zero.
        maximum: Largest value.
        top: The highest code.

    Returns:
        The scale, exactly representable in float32, and the zero point in 0..top. A range without width
        gets (1.0, 0).

    Raises:
        DataError: A bound is NaN or infinite, or the bounds are reversed.
    """
    if not (math.isfinite(minimum) and math.isfinite(maximum) and minimum <= maximum):
        raise DataError(f"calibration: activation range [{minimum}, {maximum}] is not a finite interval")
    low, high = min(0.0, minimum), max(0.0, maximum)
    scale = float(torch.tensor((high - low) / top, dtype=torch.float32))
    if scale < torch.finfo(torch.float32).tiny:
        return 1.0, 0
    return scale, min(top, max(0, round(-low / scale)))


def histogram(values: Tensor, low: float, high: float, bins: int = _BINS) -> Tensor:
    """Count values in equal bins over `[low, high]`, `(bins,)` float64.

    Zeros are left out: they are exact in every grid, and the many zeros behind a ReLU would otherwise be
    charged with the error of the centre of their bin. Values outside the range are not counted.
    """
    values = values.detach().float().flatten()
    return torch.histc(values[values != 0.0], bins=bins, min=low, max=high).double()


@torch.no_grad()
def mse_range(values: Tensor, *, unsigned: bool, top: int = TOP) -> tuple[float, int]:
    """Clip a tensor's range to the least squared quantisation error; see `mse_range_of_histogram`.

    Raises:
        DataError: The tensor is empty or holds NaN or infinities.
    """
    if values.numel() == 0 or not bool(torch.isfinite(values).all()):
        raise DataError("calibration: activation values are empty or not finite")
    low, high = float(values.min()), float(values.max())
    if low == high:
        return activation_range(low, high, top)
    if top < _BINS:
        return mse_range_of_histogram(histogram(values, low, high), low, high, unsigned=unsigned, top=top)
    flat = values[values != 0.0].detach().double()   # bins wider than a step would not show the error of rounding
    return _least_error_range(flat, torch.ones_like(flat), low, high, unsigned=unsigned, highest=top)


def tensor_range(values: Tensor, method: RangeMethod = "mse", top: int = TOP) -> tuple[float, int]:
    """Choose a tensor's range as `range_by` does, by an even sample of its values that holds the outermost ones."""
    flat = values.detach().reshape(-1)
    if len(flat) > RANGE_VALUES:
        low, high = flat.aminmax()
        flat = torch.cat([flat[:: len(flat) // RANGE_VALUES + 1], low.reshape(1), high.reshape(1)])
    return range_by(flat, method, unsigned=bool((flat >= 0).all()), top=top)


def range_by(values: Tensor, method: RangeMethod, *, unsigned: bool, top: int = TOP) -> tuple[float, int]:
    """Choose a tensor's range: by the least squared error, from its least to its largest value, or without outliers.

    Args:
        values: Any shape.
        method: `"mse"`; `"minmax"`; or `"percentile"`, which leaves out the outermost thousandth at either end.
        unsigned: The tensor is never negative.
        top: The highest code of the grid.

    Raises:
        DataError: The tensor is empty or holds NaN or infinities.
    """
    if method == "mse":
        return mse_range(values, unsigned=unsigned, top=top)
    if values.numel() == 0 or not bool(torch.isfinite(values).all()):
        raise DataError("calibration: activation values are empty or not finite")
    flat = values.detach().float().flatten().sort().values
    cut = 0 if method == "minmax" else int(OUTLIERS * len(flat))
    return activation_range(float(flat[cut]), float(flat[len(flat) - 1 - cut]), top)


def mse_range_of_histogram(
    counts: Tensor, low: float, high: float, *, unsigned: bool, top: int = TOP
) -> tuple[float, int]:
    """Choose the clipping range with the least squared error of rounding and clipping.

    Coordinate descent over the two bounds, each over a grid of fractions of the observed bound (the
    percentile search of Nagel et al., "A White Paper on Neural Network Quantization", 2021, by error).

    Args:
        counts: `(bins,)` counts of equal bins over `[low, high]`.
        low: Left edge of the first bin.
        high: Right edge of the last bin.
        unsigned: The tensor is never negative: the lower bound is 0 and so is the zero point.
        top: The highest code of the grid.

    Returns:
        Scale and zero point as `activation_range`.
    """
    bins = len(counts)
    width = (high - low) / bins
    centres = low + width * (torch.arange(bins, dtype=torch.float64) + 0.5)
    weights, centres = counts.double()[counts > 0], centres[counts > 0]
    return _least_error_range(centres, weights, low, high, unsigned=unsigned, highest=top)


def _least_error_range(
    centres: Tensor, weights: Tensor, low: float, high: float, *, unsigned: bool, highest: int
) -> tuple[float, int]:
    """The range with the least squared error of values that occur as often as their weights say."""
    fractions = torch.linspace(1.0 / _RANGE_GRID, 1.0, _RANGE_GRID, dtype=torch.float64).flip(0)
    bottom = centres.new_tensor([0.0 if unsigned else min(low, 0.0)])
    top = centres.new_tensor([max(high, 0.0)])
    for side in ("top",) if unsigned else ("top", "bottom", "top"):
        lows = bottom if side == "top" else fractions * min(low, 0.0)
        highs = fractions * max(high, 0.0) if side == "top" else top
        best = int(_range_errors(centres, weights, lows, highs, highest).argmin())
        bottom, top = lows[best % len(lows)].reshape(1), highs[best % len(highs)].reshape(1)
    return activation_range(float(bottom), float(top), highest)


def _range_errors(centres: Tensor, weights: Tensor, lows: Tensor, highs: Tensor, highest: int) -> Tensor:
    """Return the squared error of every range, `(candidates,)`; an empty range clips everything to 0."""
    scale = ((highs - lows) / highest).clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
    zero_point = torch.round(-lows.unsqueeze(1) / scale)
    rounded = (torch.round(centres / scale) + zero_point).clamp_(0.0, highest).sub_(zero_point).mul_(scale)
    return rounded.sub_(centres).square_() @ weights


def quantise_tensor(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Round a tensor to its uint8 grid and back, bit for bit as QuantizeLinear and DequantizeLinear.

    Args:
        x: Any shape, float32.
        scale: Step, representable in float32.
        zero_point: 0..255.

    Returns:
        `(clamp(round(x / scale) + zero_point, 0, 255) - zero_point) * scale`, ties to even.
    """
    step = torch.tensor(scale, dtype=torch.float32, device=x.device)
    # Clamping before adding the zero point keeps the sum exact in float32 for every finite x. In place: the
    # search spends much of its time here, and most of that on memory.
    return (x / step).round_().clamp_(-zero_point, 255 - zero_point).mul_(step)
