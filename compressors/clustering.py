"""Weight sharing: every weight of a layer is one of a few shared values, and only which one is stored.

The shared values are those of a weighted k-means (Han, Mao, Dally: "Deep Compression", ICLR 2016; weights by the
diagonal of the Hessian: Choi, El-Khamy, Lee: "Towards the Limit of Network Quantization", ICLR 2017). On a line k-means
has an exact solution by dynamic programming (Wang, Song: "Ckmeans.1d.dp", 2011); it is used on a histogram of the
weights, and Lloyd's steps on the weights themselves, from sums that are made once, do the rest.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretopress.compressors.error_feedback import swept
from paretopress.compressors.least_squares import centred
from paretopress.compressors.stored import Shared
from paretopress.spaces.errors import DataError

Array = NDArray[np.float64]
BITS = (1, 2, 3, 4, 5, 6, 7, 8)
BINS = 384        # of each kind, of the histogram that the exact solution starts from
STEPS = 100       # of Lloyd's at most


@torch.no_grad()
def cluster(W: Tensor, bits: int, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Share values among the weights of a matrix, at the least weighted squared error.

    Args:
        W: Any shape.
        bits: 1 to 8: 2 to 256 shared values.
        importance: Weights of the squared errors, broadcast to the matrix, usually the variances of the inputs;
            equal where not given.

    Returns:
        The shared values `(2^bits,)` float32, rising, and the index of each weight's, int64, shaped like the matrix.

    Raises:
        DataError: The width is not offered, or weights or importances are not finite or negative.
    """
    if bits not in BITS:
        raise DataError(f"weight sharing with {bits} bits is not offered (allowed: {BITS[0]} to {BITS[-1]})")
    if not W.numel():
        raise DataError("weight sharing: there are no weights")
    values = W.detach().double().flatten().numpy()
    shares = np.ones_like(values)
    if importance is not None:
        shares = importance.detach().double().expand(W.shape).flatten().numpy()
    if not (np.isfinite(values).all() and np.isfinite(shares).all()) or (shares < 0.0).any():
        raise DataError("weight sharing: weights are not finite, or importances are not finite or negative")
    shares = shares if shares.any() else np.ones_like(shares)
    codebook = torch.from_numpy(shared_values(values, shares, 1 << bits)).float()
    return codebook, torch.bucketize(W.detach().float().contiguous(), _edges(codebook))


def _edges(codebook: Tensor) -> Tensor:
    return (codebook[1:] + codebook[:-1]) / 2


@torch.no_grad()
def shared_weights(W: Tensor, G: Tensor, bits: int, mask: Tensor | None = None, damping: float = 1e-2) -> Shared:
    """Share values among the weights of a layer, which are rows of a common scale times a row's own.

    The values are those of a k-means weighted by the variances of the inputs; each weight then takes one of them with
    error feedback (`compressors/error_feedback.py`), or the nearest in rows where that is better for the output.
    Rows get the scale that is best for their output at last.

    Args:
        W: `(out, columns)`.
        G: `(columns + 1, columns + 1)` augmented second moments of the inputs, or `(groups, ...)` for grouped layers,
            whose rows are split evenly over the groups.
        bits: 1 to 8.
        mask: `(out, columns)` bool: all other weights are zero, and stay so.
        damping: Relative to the mean input variance.

    Raises:
        DataError: As `cluster`, or the moments are not finite or not positive semi-definite.
    """
    covariance, _ = centred(G if G.ndim == 3 else G.unsqueeze(0))
    kept = torch.ones_like(W, dtype=torch.bool) if mask is None else mask
    scales = (W.double().square().sum(dim=1) / kept.sum(dim=1).clamp_min(1)).sqrt()
    scales = torch.where(scales > 0.0, scales, torch.ones_like(scales))
    unit = W.double() / scales.unsqueeze(1)
    variances = covariance.diagonal(dim1=-2, dim2=-1).repeat_interleave(len(W) // len(covariance), dim=0)
    codebook, _ = cluster(unit[kept], bits, variances.expand(W.shape)[kept])
    edges, values = _edges(codebook).double(), codebook.double()

    def nearest(column: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.bucketize(column.contiguous(), edges)
        return index.double(), values[index]

    grouped = (len(covariance), -1, W.shape[1])
    marked = None if mask is None else mask.reshape(grouped)
    feedback = swept(unit.reshape(grouped), covariance, nearest, damping, mask=marked).reshape(W.shape)
    candidates = [feedback.long(), torch.bucketize(unit.contiguous(), edges)]
    fits = [_row_fit(unit, values[one] * kept, covariance) for one in candidates]
    better = fits[0][1] <= fits[1][1]
    indices = torch.where(better.unsqueeze(1), candidates[0], candidates[1])
    refitted = torch.where(better, fits[0][0], fits[1][0])
    return Shared(codebook, indices.to(torch.uint8), (scales * refitted).float(), bits)


def _row_fit(W: Tensor, values: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row the factor that brings `values` nearest to it, and what error is left, both `(out,)`."""
    grouped = (len(covariance), -1, W.shape[1])
    dense, found = W.reshape(grouped), values.reshape(grouped)
    projected = ((found @ covariance) * found).sum(dim=2).flatten()
    agreement = ((dense @ covariance) * found).sum(dim=2).flatten()
    factors = torch.where((projected > 0.0) & (agreement > 0.0), agreement / projected, torch.ones_like(projected))
    return factors, factors * (factors * projected - 2.0 * agreement)


def shared_values(values: Array, shares: Array, count: int) -> Array:
    """The centres of a weighted k-means on a line, `(count,)`, rising; where values are fewer, some occur twice.

    Args:
        values: `(n,)`.
        shares: `(n,)` weights of the squared errors, not negative, not all zero.
        count: How many centres.
    """
    order = np.argsort(values, kind="stable")
    values, shares = values[order], shares[order]
    distinct = np.unique(values[shares > 0.0])
    if len(distinct) <= count:
        return np.concatenate([distinct, np.full(count - len(distinct), distinct[-1])])
    mass, moment = (np.concatenate([[0.0], np.cumsum(part)]) for part in (shares, shares * values))
    centres = _exact_on_bins(values, shares, count)
    for _ in range(STEPS):
        ends = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2, side="right")
        ends = np.concatenate([[0], ends, [len(values)]])
        weights, sums = np.diff(mass[ends]), np.diff(moment[ends])
        moved = np.where(weights > 0.0, sums / np.where(weights > 0.0, weights, 1.0), centres)
        moved.sort()
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def _exact_on_bins(values: Array, shares: Array, count: int) -> Array:
    """The exact centres of the values gathered into bins: as many of equal numbers of values as of equal widths.

    The former tell apart what is dense, the latter what is far out.
    """
    bins = min(BINS, len(values))
    even = np.searchsorted(values, np.linspace(values[0], values[-1], bins + 1)[1:-1])
    edges = np.unique(np.concatenate([np.linspace(0, len(values), bins + 1).astype(np.int64), even]))
    mass = np.add.reduceat(shares, edges[:-1])
    moment, square = (np.add.reduceat(shares * values**power, edges[:-1]) for power in (1, 2))
    mass, moment, square = (np.concatenate([[0.0], np.cumsum(part)]) for part in (mass, moment, square))
    size = len(mass) - 1
    count = min(count, size)
    # cost[i, j]: squared error of bins i..j-1 around their mean; infinite where i >= j.
    weight = mass[None, :] - mass[:, None]
    first, second = moment[None, :] - moment[:, None], square[None, :] - square[:, None]
    cost = second - first**2 / np.where(weight > 0.0, weight, 1.0)
    cost = np.where(np.triu(np.ones_like(cost), 1) > 0.0, np.maximum(cost, 0.0), np.inf)
    best, cuts = cost[0], []
    for _ in range(count - 1):
        totals = best[:, None] + cost
        cuts.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    ends = [size]
    for cut in reversed(cuts):
        ends.append(int(cut[ends[-1]]))
    ends = [0, *reversed(ends)] if ends[-1] else list(reversed(ends))
    centres = [(moment[b] - moment[a]) / (mass[b] - mass[a]) if mass[b] > mass[a] else values[edges[a]]
               for a, b in itertools.pairwise(ends) if b > a]
    return np.sort(np.asarray(centres, dtype=np.float64))
