"""Sparsity: which weights of a matrix are kept, and what the kept ones become.

Masks by magnitude need no data. With the covariance `C` of the layer's inputs, mask and weights are found together:
`min (w - v) C (w - v)^T` over sparse `v`, by the alternating direction method of multipliers with a mask that shrinks
step by step (Boza, "Fast and Effective Weight Update for Pruned Large Language Models", TMLR 2024). The kept weights
of every row then get the least-squares solution for the mask, by conjugate gradients on all rows at once. The result
is never worse than that solution on the masks by magnitude. `C` is centred, because the bias correction
`b' = b + (W - V) E[x]` absorbs the mean error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from paretopress.compressors.least_squares import centred, damped_cholesky
from paretopress.compressors.sparse_storage import Pattern
from paretopress.spaces.errors import DataError
from paretopress.spaces.stored_weights import kept_of

ITERATIONS = 60         # of conjugate gradients at most
SETTLED = {torch.float64: 1e-10, torch.float32: 1e-5}   # of the error: they end where an iteration lowers it by less
AHEAD = 5               # iterations as good as the last that a mask must catch up with another one in
EXACT_COLUMNS = 640     # of a matrix that is computed with in 64 bits; wider ones take half of the time in 32
ALTERNATIONS = 30       # of the mask and the weights
SHRINKING = 20          # of these, in which the mask shrinks
CHANGING = {torch.float64: 0.0, torch.float32: 5e-4}   # of a mask: they end where it changes by less
PENALTY = 0.3           # of the difference between sparse and dense solution, relative to an input's variance


def check_density(density: float) -> None:
    """Raise `DataError` where a fraction of kept weights is not in (0, 1]."""
    if not 0.0 < density <= 1.0:
        raise DataError(f"sparsity: density {density} is outside (0, 1]")


def largest(scores: Tensor, density: float) -> Tensor:
    """Mark the `round(density * count)` largest scores, at least one; of equal ones the first.

    Args:
        scores: Any shape.
        density: Fraction kept, in (0, 1].

    Returns:
        bool, shaped like the scores.
    """
    check_density(density)
    flat = scores.detach().flatten().numpy()
    count = kept_of(density, len(flat))
    least = np.partition(flat, len(flat) - count)[len(flat) - count]
    kept = flat > least
    kept[np.flatnonzero(flat == least)[: count - int(kept.sum())]] = True
    return torch.from_numpy(kept).reshape(scores.shape)


def magnitude_mask(W: Tensor, density: float) -> Tensor:
    """Keep the weights of largest magnitude: bool, shaped like the weights."""
    return largest(W.detach().abs(), density)


def global_magnitude_masks(weights: Sequence[Tensor], density: float) -> list[Tensor]:
    """Keep the weights of largest magnitude among several layers together.

    Magnitudes are taken relative to the root mean square of their layer: layers differ in scale, and the larger
    scale says nothing of the importance of its weights. A layer keeps at least its largest weight.

    Args:
        weights: One tensor per layer.
        density: Fraction kept of all.

    Returns:
        bool, shaped like the weights.
    """
    scores = [W.detach().abs() / W.detach().square().mean().sqrt().clamp_min(1e-30) for W in weights]
    joined = largest(torch.cat([score.flatten() for score in scores]), density)
    parts = torch.split(joined, [score.numel() for score in scores])
    masks = [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]
    return [mask if bool(mask.any()) else score == score.max() for mask, score in zip(masks, scores, strict=True)]


def pattern_mask(scores: Tensor, pattern: Pattern) -> Tensor:
    """Keep the `n` largest scores of every `m` neighbours in a row.

    Args:
        scores: `(rows, columns)`; the last group of a row may be shorter.
        pattern: n:m.

    Returns:
        bool `(rows, columns)`.
    """
    rows, columns = scores.shape
    groups = math.ceil(columns / pattern.of)
    padded = torch.nn.functional.pad(scores.detach(), (0, groups * pattern.of - columns), value=-torch.inf)
    places = np.ascontiguousarray(padded.numpy().reshape(-1, pattern.of).T)   # NumPy compares many times faster
    ahead = np.empty(places.shape, dtype=np.int8 if pattern.of < 128 else np.int32)
    for place in range(pattern.of):   # a score comes after all those behind it, but for those that it is not less than
        ahead[place] = pattern.of - 1 - place
    for first, second in itertools.combinations(range(pattern.of), 2):
        wins = (places[first] >= places[second]).view(np.int8)
        ahead[second] += wins
        ahead[first] -= wins
    kept = np.ascontiguousarray((ahead < pattern.kept).T).reshape(rows, -1)
    return torch.from_numpy(kept)[:, :columns].contiguous()


def block_mask(scores: Tensor, density: float, block: tuple[int, int]) -> Tensor:
    """Keep whole blocks of weights, those with the largest sum of scores.

    Args:
        scores: `(rows, columns)`, not negative; blocks at the edges may be smaller, their mean score counts.
        density: Fraction of blocks kept, in (0, 1].
        block: Rows and columns of a block.

    Returns:
        bool `(rows, columns)`.
    """
    rows, columns = scores.shape
    height, width = block
    if height < 1 or width < 1:
        raise DataError(f"sparsity: a block of {height}x{width} weights is not one")
    down, across = math.ceil(rows / height), math.ceil(columns / width)
    sums, counts = (torch.zeros(down * height, across * width, dtype=torch.float64) for _ in range(2))
    sums[:rows, :columns], counts[:rows, :columns] = scores.double(), 1.0
    sums, counts = (part.reshape(down, height, across, width).sum(dim=(1, 3)) for part in (sums, counts))
    kept = largest(sums / counts, density)
    return kept.repeat_interleave(height, dim=0).repeat_interleave(width, dim=1)[:rows, :columns].contiguous()


@torch.no_grad()
def compensated_sparse(
    W: Tensor, G: Tensor, density: float = 0.5, pattern: Pattern | None = None, damping: float = 1e-2,
    block: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Remove the weights whose removal the others can make up for, and adapt these.

    Args:
        W: `(out, columns)`.
        G: `(columns + 1, columns + 1)` augmented second moments of the inputs, or `(groups, ...)` for grouped
            layers, whose rows are split evenly over the groups.
        density: Fraction kept, where no pattern is given.
        pattern: n:m, instead of a density.
        damping: Relative to the mean input variance.
        block: Rows and columns of the blocks that are kept or removed whole, None for single weights.

    Returns:
        The sparse weights `(out, columns)` float32 and their mask. Correct the bias with `corrected_bias`.

    Raises:
        DataError: The density is outside (0, 1], or the moments are not finite or not positive semi-definite.
    """
    check_density(density)
    correlation, scale = _normalised(G, damping)
    plain = W.to(correlation.dtype).reshape(len(scale), -1, W.shape[1])
    dense = plain * scale

    def mask_of(values: Tensor, share: float) -> Tensor:
        if block is not None:
            return block_mask(values.square().reshape(W.shape), share, block).reshape(values.shape)
        if pattern is None:
            return largest(values.abs(), share)
        return pattern_mask(values.abs().reshape(W.shape), pattern).reshape(values.shape)

    start = _alternate(dense, correlation, density, mask_of, shrinking=0 if pattern else SHRINKING)
    mask = mask_of(start, density)
    found, error = _solve(dense, mask, correlation, start)
    for values in (plain, dense):
        other = mask_of(values, density)
        solved, missed = _solve(dense, other, correlation, dense, below=error)
        if missed < error:
            mask, found, error = other, solved, missed
    return (found / scale).reshape(W.shape).float(), mask.reshape(W.shape)


@torch.no_grad()
def refit_kept(W: Tensor, mask: Tensor, G: Tensor, damping: float = 1e-2) -> Tensor:
    """The weights on a mask whose outputs are nearest to those of the dense ones, `(out, columns)` float32.

    Args:
        W: `(out, columns)`.
        mask: `(out, columns)` bool.
        G: As `compensated_sparse`.
        damping: Relative to the mean input variance.
    """
    correlation, scale = _normalised(G, damping)
    dense = W.to(correlation.dtype).reshape(len(scale), -1, W.shape[1]) * scale
    found, _ = _solve(dense, mask.reshape(dense.shape), correlation, dense)
    return (found / scale).reshape(W.shape).float()


def _normalised(G: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """The correlations of `C + d I`, `(groups, columns, columns)`, and the deviations `(groups, 1, columns)`.

    Weights times deviations have errors in units of the output, and conjugate gradients in these units are those that
    the diagonal preconditions.
    """
    covariance, _ = centred(G if G.ndim == 3 else G.unsqueeze(0))
    _, amount = damped_cholesky(covariance, damping)
    covariance.diagonal(dim1=-2, dim2=-1).add_(amount.unsqueeze(-1))
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    correlation = covariance / (scale.unsqueeze(1) * scale.unsqueeze(2))
    kind = torch.float64 if len(scale[0]) <= EXACT_COLUMNS else torch.float32
    return correlation.to(kind), scale.unsqueeze(1).to(kind)


def _alternate(
    dense: Tensor, correlation: Tensor, density: float, mask_of: Callable[[Tensor, float], Tensor], shrinking: int
) -> Tensor:
    """Weights whose largest ones are a good mask, `(groups, rows, columns)`, in units of the layer's output."""
    identity = torch.eye(correlation.shape[-1], dtype=correlation.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(correlation + PENALTY * identity))
    pulled, penalised = dense @ correlation @ inverse, PENALTY * inverse
    dual, moved = torch.zeros_like(dense), dense
    before: Tensor | None = None
    for step in range(1, ALTERNATIONS + 1):
        share = 1.0 - (1.0 - density) * min(1.0, step / max(1, shrinking)) ** (1.0 / 3.0)
        wanted = moved + dual
        mask = mask_of(wanted, share)
        if before is not None and step > shrinking and _changed(before, mask) < CHANGING[dense.dtype]:
            return wanted
        sparse, before = wanted * mask, mask
        dual = wanted - sparse
        moved = torch.matmul(sparse - dual, penalised).add_(pulled)
    return moved + dual


def _changed(before: Tensor, after: Tensor) -> float:
    """The fraction of what one mask keeps that another one keeps elsewhere."""
    return float((before & ~after).sum()) / max(1, int(before.sum()))


def _solve(
    dense: Tensor, mask: Tensor, correlation: Tensor, start: Tensor, below: float = math.inf
) -> tuple[Tensor, float]:
    """The least-squares weights on a mask, `(groups, rows, columns)`, and their error: conjugate gradients.

    Args:
        dense: Weights in units of the output.
        mask: Of those that are kept.
        correlation: `(groups, columns, columns)`.
        start: Weights to start from.
        below: Give up where the error is not going to get below this: it falls ever less.
    """
    kept = mask.to(dense.dtype)
    solution = start * kept
    missing = dense - solution
    residual = missing @ correlation
    error = float((missing * residual).sum())
    residual *= kept
    step, product = residual, residual.square().sum(dim=2, keepdim=True)
    for _ in range(ITERATIONS):
        image = (step @ correlation) * kept
        curvature = (step * image).sum(dim=2, keepdim=True)
        length = torch.where(curvature > 0.0, product / curvature, torch.zeros_like(product))
        solution = solution.addcmul(length, step)
        residual = residual.addcmul(length, image, value=-1.0)
        fallen = float((length * product).sum())
        error -= fallen
        if fallen <= SETTLED[dense.dtype] * error or error - AHEAD * fallen > below:
            break
        following = residual.square().sum(dim=2, keepdim=True)
        step = residual + torch.where(product > 0.0, following / product, torch.zeros_like(product)) * step
        product = following
    return solution, error
