"""Non-negative matrix factorisation, with a split by sign for weights of either sign.

`A ~ L R` with entries that are nowhere negative, by hierarchical alternating least squares (Cichocki, Phan: "Fast Local
Algorithms for Large Scale Nonnegative Matrix and Tensor Factorizations", 2009): every column of `L` and row of `R` is
in turn the best one while the others stand, so that the error never rises. Weights have both signs:
`W = max(W, 0) - max(-W, 0)`, each part with factors of its own, which makes two layers of inner width `2 r`.

What counts is the error of a layer's outputs, not of its weights: both pairs are then fitted together to
`tr((W - S F) C (W - S F)^T)`, `C` the covariance of the inputs. The columns of `S` are in turn the best ones as above;
`F`, whose entries `C` couples, moves by accelerated projected gradients (Beck, Teboulle: "A Fast Iterative
Shrinkage-Thresholding Algorithm", 2009; restarts: O'Donoghue, Candes: "Adaptive Restart", 2015).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paretopress.spaces.errors import DataError

ROUNDS = 200
SETTLED = 1e-6     # relative fall of the error in a round
SMALLEST = 1e-12
OUTPUT_ROUNDS = 60          # of the fit to outputs
OUTPUT_SETTLED = 1e-4       # relative fall of the error in a round
STEPS = 10                  # accelerated gradients of the first factor in a round
DAMPING = 1e-3              # of the covariance, relative to its mean diagonal


@dataclass(frozen=True)
class Nonnegative:
    """`A ~ left @ right`, nowhere negative.

    Attributes:
        left: `(rows, rank)` float64.
        right: `(rank, columns)` float64.
        errors: Squared error after each round, relative to the squared norm of `A`; it never rises.
    """

    left: Tensor
    right: Tensor
    errors: tuple[float, ...]


@torch.no_grad()
def nonnegative_factors(A: Tensor, rank: int) -> Nonnegative:
    """Factorise a matrix without negative entries.

    The start is the singular value decomposition, of each pair of vectors the signs that hold more of it (Boutsidis,
    Gallopoulos: "SVD based initialization", 2008): equal matrices give equal factors.

    Args:
        A: `(rows, columns)`, finite and not negative.
        rank: 1 to `min(rows, columns)`.

    Raises:
        DataError: An entry is negative or not finite, or the rank is outside its range.
    """
    A = A.double()
    if not bool(torch.isfinite(A).all()) or bool((A < 0.0).any()):
        raise DataError("non-negative factorisation: an entry is negative or not finite")
    if not 1 <= rank <= min(A.shape):
        raise DataError(f"non-negative factorisation: rank {rank} is outside 1..{min(A.shape)}")
    norm = float(A.square().sum())
    left, right = _start(A, rank)
    if norm == 0.0:
        return Nonnegative(torch.zeros_like(left), torch.zeros_like(right), (0.0,))
    errors: list[float] = []
    for _ in range(ROUNDS):
        left = _improved(left, A @ right.T, right @ right.T)
        right = _improved(right.T, A.T @ left, left.T @ left).T
        errors.append(float((A - left @ right).square().sum()) / norm)
        if len(errors) > 1 and errors[-2] - errors[-1] <= SETTLED * errors[-2]:
            break
    return Nonnegative(left, right, tuple(errors))


@torch.no_grad()
def sign_split_factors(W: Tensor, rank: int, covariance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Two layers in place of one: both parts of the weights by sign, each at half of the inner width.

    Args:
        W: `(out, columns)`.
        rank: Of each part, 1 to `min(out, columns)`.
        covariance: `(columns, columns)` of the inputs; without it the error of the weights counts.

    Returns:
        The first factor `(2 rank, columns)`, nowhere negative, and the second `(out, 2 rank)`, whose second half is
        nowhere positive, float32: `W ~ second @ first`.

    Raises:
        DataError: As `nonnegative_factors`.
    """
    positive, negative = (nonnegative_factors(part, rank) for part in (W.clamp_min(0.0), (-W).clamp_min(0.0)))
    first = torch.cat([positive.right, negative.right])
    second = torch.cat([positive.left, -negative.left], dim=1)
    if covariance is not None:
        first, second, _ = fitted_to_outputs(W, first, second, covariance)
    return first.float().contiguous(), second.float().contiguous()


@torch.no_grad()
def fitted_to_outputs(
    W: Tensor, first: Tensor, second: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Move two factors to where the outputs are nearest to those of the weights; no sign changes.

    Args:
        W: `(out, columns)`.
        first: `(inner, columns)`, nowhere negative.
        second: `(out, inner)`; the first half of the columns is nowhere negative, the second nowhere positive.
        covariance: `(columns, columns)` of the inputs.

    Returns:
        Both factors, float64, and the error of the outputs after each round, relative to their variance: it never
        rises. Inputs that never vary leave the factors as they are.
    """
    W, covariance = W.double(), covariance.double()
    diagonal = covariance.diagonal()
    if not bool((diagonal > 0.0).any()):
        return first.double(), second.double(), ()
    # Inputs of unit variance: a positive scale keeps every sign, and gradients of all columns are of one size.
    size = (diagonal + DAMPING * diagonal.mean()).sqrt()
    correlation = covariance / size / size.unsqueeze(1)
    correlation.diagonal().fill_(1.0)
    signs = torch.ones(second.shape[1], dtype=torch.float64)
    signs[second.shape[1] // 2:] = -1.0
    first, second = first.double() * size, second.double()
    target, steepest = (W * size) @ correlation, float(torch.linalg.eigvalsh(correlation)[-1])
    variance = float((target * (W * size)).sum())
    errors = [_output_error(first, second, target, correlation, variance)]
    for _ in range(OUTPUT_ROUNDS):
        outer = signs * _improved(signs * second, signs * (target @ first.T),
                                  signs.outer(signs) * (first @ correlation @ first.T))
        inner = _accelerated(first, outer.T @ outer, outer.T @ target, correlation, steepest)
        error = _output_error(inner, outer, target, correlation, variance)
        if error > errors[-1]:
            break
        first, second = inner, outer
        errors.append(error)
        if errors[-2] - error <= OUTPUT_SETTLED * errors[-2]:
            break
    return first / size, second, tuple(errors)


def _output_error(first: Tensor, second: Tensor, target: Tensor, correlation: Tensor, variance: float) -> float:
    """`tr((W - S F) C (W - S F)^T)` over that of `W`; `target = W C`."""
    explained = 2.0 * (second * (target @ first.T)).sum()
    own = ((second.T @ second) * (first @ correlation @ first.T)).sum()
    return (variance - float(explained - own)) / variance


def _accelerated(first: Tensor, gram: Tensor, target: Tensor, correlation: Tensor, steepest: float) -> Tensor:
    """`STEPS` accelerated projected gradients of `tr(F C F^T gram) / 2 - tr(F^T target)`."""
    step = 1.0 / max(SMALLEST, float(torch.linalg.eigvalsh(gram)[-1]) * steepest)

    def slope(point: Tensor) -> Tensor:
        return gram @ point @ correlation - target

    ahead, pace = first, 1.0
    for _ in range(STEPS):
        moved = (ahead - step * slope(ahead)).clamp_min(0.0)
        if float(((ahead - moved) * (moved - first)).sum()) > 0.0:   # gone past the valley: from here without momentum
            moved, pace = (first - step * slope(first)).clamp_min(0.0), 1.0
        following = (1.0 + math.sqrt(1.0 + 4.0 * pace * pace)) / 2.0
        ahead, first, pace = moved + (pace - 1.0) / following * (moved - first), moved, following
    return first


def sign_split_pays(rank: int, out: int, columns: int) -> bool:
    """Whether the two layers hold fewer weights: `2 rank (out + columns) < out columns`."""
    return 2 * rank * (out + columns) < out * columns


def _start(A: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    U, sigma, Vh = torch.linalg.svd(A, full_matrices=False)
    columns, rows = [], []
    for index in range(rank):
        u, v = U[:, index], Vh[index]
        pairs = [(u.clamp_min(0.0), v.clamp_min(0.0)), ((-u).clamp_min(0.0), (-v).clamp_min(0.0))]
        u, v = max(pairs, key=lambda pair: float(pair[0].norm() * pair[1].norm()))
        size = u.norm() * v.norm()
        root = torch.sqrt(sigma[index] * size).clamp_min(SMALLEST)
        columns.append(root * u / u.norm().clamp_min(SMALLEST))
        rows.append(root * v / v.norm().clamp_min(SMALLEST))
    # Zeros would stay zeros where a factor's partner vanishes: a little of the mean lets every entry move.
    little = 1e-4 * float(A.mean().sqrt())
    return torch.stack(columns, dim=1) + little, torch.stack(rows) + little


def _improved(left: Tensor, target: Tensor, gram: Tensor) -> Tensor:
    """One sweep over the columns of a factor: `target = A R^T`, `gram = R R^T`."""
    left = left.clone()
    for index in range(left.shape[1]):
        if gram[index, index] <= SMALLEST:
            continue
        change = (target[:, index] - left @ gram[:, index]) / gram[index, index]
        left[:, index] = (left[:, index] + change).clamp_min(0.0)
    return left
