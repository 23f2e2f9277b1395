"""Low-rank forms of a convolution's kernel, in the metric of its inputs.

A kernel `W` is `(out, in, height, width)`. Besides cutting the matrix `(out, in height width)`, which `low_rank` does
("channel": the window stays in the first layer), there are

- `spatial`: `(height, 1)` then `(1, width)` windows with `r` channels between (Jaderberg, Vedaldi, Zisserman: "Speeding
  up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014): `r (in height + out width)` weights;
- `tucker`: 1x1, then the window on `r1` to `r2` channels, then 1x1 (Kim et al.: "Compression of Deep Convolutional
  Neural Networks for Fast and Low Power Mobile Applications", ICLR 2016): `r1 in + r1 r2 height width + r2 out`.

Errors count by what they do to the output: `|(W - W') S|^2` with `S S^T = C + d I` the covariance of the layer's
input patches. The factors start from plain singular value decompositions, then each is brought nearer to the
least-squares one while the others stand, so that the error never rises.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paretopress.compressors.least_squares import centred, damped_cholesky
from paretopress.spaces.errors import DataError

ROUNDS = 12
GRADIENTS = 20     # conjugate gradients for a factor whose normal equations are too large
SETTLED = 1e-4   # relative fall of the error in a round


@dataclass(frozen=True)
class KernelFactors:
    """A kernel as convolutions one after the other.

    Attributes:
        kernels: Kernels in order, each `(out, in, height, width)` float32.
        errors: `|(W - W') S|^2 / |W S|^2` after each round; it never rises.
    """

    kernels: tuple[Tensor, ...]
    errors: tuple[float, ...]

    @property
    def weights(self) -> int:
        """How many weights they hold."""
        return sum(kernel.numel() for kernel in self.kernels)


@torch.no_grad()
def spatial_factors(W: Tensor, G: Tensor, rank: int, damping: float = 1e-4) -> KernelFactors:
    """Two convolutions with windows `(height, 1)` and `(1, width)`.

    Args:
        W: `(out, in, height, width)`.
        G: `(in height width + 1, ...)` augmented second moments of the input patches.
        rank: Channels between them, at least 1, at most `min(in height, out width)`.
        damping: Relative to the mean input variance.

    Raises:
        DataError: The rank is outside its range, or the moments are not finite or not positive semi-definite.
    """
    out, inner, height, width = W.shape
    _check(rank, min(inner * height, out * width), "spatial")
    metric = _metric(G, damping)
    # W[o, i, h, w] ~ sum over r of second[o, r, w] first[r, i, h]
    matrix = W.double().permute(1, 2, 0, 3).reshape(inner * height, out * width)
    U, sigma, Vh = torch.linalg.svd(matrix, full_matrices=False)
    root = sigma[:rank].sqrt()
    first, second = (U[:, :rank] * root).T.reshape(rank, inner, height), (root[:, None] * Vh[:rank])
    second = second.reshape(rank, out, width).transpose(0, 1)
    fit = _Fit(W, metric)
    for _ in range(ROUNDS):
        second = _second_window(fit, first, width)
        first = _first_window(fit, first, second)
        if fit.settled(torch.einsum("orw,rih->oihw", second, first)):
            break
    kernels = (first.unsqueeze(3).float().contiguous(), second.unsqueeze(2).float().contiguous())
    return KernelFactors(kernels, tuple(fit.errors))


@torch.no_grad()
def tucker_factors(W: Tensor, G: Tensor, ranks: tuple[int, int], damping: float = 1e-4) -> KernelFactors:
    """Three convolutions: 1x1 to `r1` channels, the window to `r2`, and 1x1 to the outputs.

    Args:
        W: `(out, in, height, width)`.
        G: `(in height width + 1, ...)` augmented second moments of the input patches.
        ranks: `(r1, r2)`, at most the channels of input and output.
        damping: Relative to the mean input variance.

    Raises:
        DataError: A rank is outside its range, or the moments are not finite or not positive semi-definite.
    """
    out, inner, _, _ = W.shape
    _check(ranks[0], inner, "Tucker input")
    _check(ranks[1], out, "Tucker output")
    fit = _Fit(W, _metric(G, damping))
    dense = W.double()
    first = torch.linalg.svd(dense.transpose(0, 1).reshape(inner, -1), full_matrices=False).U[:, : ranks[0]].T
    last = _leading_outputs(fit, dense, ranks[1])
    core = torch.einsum("oihw,ai,ob->bahw", dense, first, last)
    for _ in range(ROUNDS):
        core, last = _core_and_last(fit, first, ranks[1])
        first = _first_channels(fit, first, core, last)
        if fit.settled(torch.einsum("bahw,ai,ob->oihw", core, first, last)):
            break
    kernels = (first[:, :, None, None], core, last[:, :, None, None])
    return KernelFactors(tuple(kernel.float().contiguous() for kernel in kernels), tuple(fit.errors))


def spatial_weights(rank: int, shape: tuple[int, int, int, int]) -> int:
    """Weights of `spatial_factors`: `r (in height + out width)`."""
    out, inner, height, width = shape
    return rank * (inner * height + out * width)


def tucker_weights(ranks: tuple[int, int], shape: tuple[int, int, int, int]) -> int:
    """Weights of `tucker_factors`: `r1 in + r1 r2 height width + r2 out`."""
    out, inner, height, width = shape
    return ranks[0] * inner + ranks[0] * ranks[1] * height * width + ranks[1] * out


class _Fit:
    """A dense kernel and the metric that errors are measured in; remembers how they fall."""

    def __init__(self, W: Tensor, metric: Tensor) -> None:
        out, inner, height, width = W.shape
        self.shape, self.dense = (inner, height, width), W.double()
        self.flat, self.metric = self.dense.reshape(out, -1), metric
        self.pulled = self.flat @ metric
        self.norm = max(float((self.pulled * self.flat).sum()), 1e-300)
        self.errors: list[float] = []

    def settled(self, kernel: Tensor) -> bool:
        """Note the error of a kernel; whether it hardly fell."""
        difference = self.flat - kernel.reshape(self.flat.shape)
        self.errors.append(float(((difference @ self.metric) * difference).sum()) / self.norm)
        return len(self.errors) > 1 and self.errors[-2] - self.errors[-1] <= SETTLED * self.errors[-2]


def _second_window(fit: _Fit, first: Tensor, width: int) -> Tensor:
    """The best second kernel `(out, rank, width)`: least squares on the features that the first one makes."""
    features = along_rows(first, width)
    solution = _solve(features @ fit.metric @ features.T, fit.pulled @ features.T)
    return solution.reshape(-1, len(first), width)


def along_rows(first: Tensor, width: int) -> Tensor:
    """The map `(rank width, in height width)` of a window to a row of what a first kernel makes of it.

    Args:
        first: `(rank, in, height)`.
        width: Of the window.
    """
    rank, inner, height = first.shape
    spread = torch.zeros(rank, width, inner, height, width, dtype=first.dtype)
    for column in range(width):
        spread[:, column, :, :, column] = first
    return spread.reshape(rank * width, -1)


def _first_window(fit: _Fit, first: Tensor, second: Tensor) -> Tensor:
    """A better first kernel `(rank, in, height)` while the second stands."""
    return _descended(fit, first, "orw,rih->oihw", "orw,oihw->rih", second)


def _leading_outputs(fit: _Fit, kernel: Tensor, rank: int) -> Tensor:
    """The `rank` directions among outputs, `(out, rank)`, that hold most of a kernel in the metric."""
    flat = kernel.reshape(len(kernel), -1)
    found: Tensor = torch.linalg.eigh(flat @ fit.metric @ flat.T).eigenvectors
    return found[:, -rank:].flip(1)


def _core_and_last(fit: _Fit, first: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best core and last kernel together: reduced-rank regression on the channels that the first one makes."""
    _, height, width = fit.shape
    features = torch.einsum("ai,hk,wl->ahwikl", first, *(torch.eye(n, dtype=first.dtype) for n in (height, width)))
    features = features.reshape(len(first) * height * width, -1)
    gram = features @ fit.metric @ features.T
    full = _solve(gram, fit.pulled @ features.T)
    last = torch.linalg.eigh(full @ gram @ full.T).eigenvectors[:, -rank:].flip(1)
    return (last.T @ full).reshape(rank, len(first), height, width), last


def _first_channels(fit: _Fit, first: Tensor, core: Tensor, last: Tensor) -> Tensor:
    """A better first kernel `(r1, in)` while core and last stand."""
    joined = torch.einsum("ob,bahw->oahw", last, core)
    return _descended(fit, first, "oahw,ai->oihw", "oahw,oihw->ai", joined)


def _descended(fit: _Fit, factor: Tensor, forward: str, backward: str, fixed: Tensor) -> Tensor:
    """Some conjugate gradients towards the least-squares factor while the other factors stand.

    Its normal equations are never formed: they have as many rows as the factor has weights.

    Args:
        fit: The dense kernel and the metric.
        factor: Where to start.
        forward: Einsum from `fixed` and a factor to the kernel.
        backward: Einsum from `fixed` and a kernel back to the factor, its transpose.
        fixed: The other factors.
    """
    def pulled(value: Tensor) -> Tensor:
        kernel = torch.einsum(forward, fixed, value)
        image = (kernel.reshape(fit.flat.shape) @ fit.metric).reshape(kernel.shape)
        return torch.einsum(backward, fixed, image)

    residual = torch.einsum(backward, fixed, fit.pulled.reshape(fit.dense.shape)) - pulled(factor)
    step, size = residual, float(residual.square().sum())
    start = size
    for _ in range(GRADIENTS):
        if size <= 1e-14 * start or size == 0.0:
            break
        image = pulled(step)
        curvature = float((step * image).sum())
        if curvature <= 0.0:
            break
        factor = factor + size / curvature * step
        residual = residual - size / curvature * image
        following = float(residual.square().sum())
        step, size = residual + following / size * step, following
    return factor


def _solve(gram: Tensor, target: Tensor) -> Tensor:
    """`target @ gram^-1` for a symmetric, positive semi-definite matrix, damped as much as rounding asks for."""
    lower, _ = damped_cholesky(gram, 1e-12)
    return torch.cholesky_solve(target.T, lower).T


def _metric(G: Tensor, damping: float) -> Tensor:
    covariance, _ = centred(G)
    _, amount = damped_cholesky(covariance, damping)
    return covariance + amount * torch.eye(len(covariance), dtype=covariance.dtype)


def _check(rank: int, most: int, name: str) -> None:
    if not 1 <= rank <= most:
        raise DataError(f"{name} rank {rank} is outside 1..{most}")
