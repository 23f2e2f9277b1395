"""Non-negative matrix factorisation, with a split by sign for weights of either sign.

`A ~ L R` with entries that are nowhere negative, by hierarchical alternating least squares (Cichocki, Phan: "Fast Local
Algorithms for Large Scale Nonnegative Matrix and Tensor Factorizations", 2009): every column of `L` and row of `R` is
in turn the best one while the others stand, so that the error never rises. Weights have both signs:
`W = max(W, 0) - max(-W, 0)`, each part with factors of its own, which makes two layers of inner width `2 r`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paretopress.spaces.errors import DataError

ROUNDS = 200
SETTLED = 1e-6     # relative fall of the error in a round
SMALLEST = 1e-12


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
def sign_split_factors(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Two layers in place of one: both parts of the weights by sign, each at half of the inner width.

    Args:
        W: `(out, columns)`.
        rank: Of each part, 1 to `min(out, columns)`.

    Returns:
        The first factor `(2 rank, columns)`, nowhere negative, and the second `(out, 2 rank)`, whose second half is
        nowhere positive, float32: `W ~ second @ first`.

    Raises:
        DataError: As `nonnegative_factors`.
    """
    positive, negative = (nonnegative_factors(part, rank) for part in (W.clamp_min(0.0), (-W).clamp_min(0.0)))
    first = torch.cat([positive.right, negative.right])
    second = torch.cat([positive.left, -negative.left], dim=1)
    return first.float().contiguous(), second.float().contiguous()


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
