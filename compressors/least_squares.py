"""Closed-form least squares: refit a layer to the inputs that are left after pruning.

A layer computes `y = W x + b`. With `G = E[x~ x~^T]`, `x~ = [x, 1]`, the best weights on a subset `K` of
the inputs have the closed form of ordinary least squares with an intercept (He, Zhang, Sun: "Channel
Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3.1):

    [W' b'] = [W b] G[:, K+1] (G[K+1, K+1])^-1

The intercept is eliminated first, which leaves the centred covariance `C = E[x x^T] - m m^T`. Damping `d`
is added to the whole of `C`, so it stands on both sides of the formula: keeping every column returns the
layer unchanged, the solution shrinks towards the old weights rather than towards zero, and the result is
the one that Optimal Brain Surgeon reaches on the Hessian `C + d I` with the same `d`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paretopress.spaces.errors import DataError

_ATTEMPTS = 9


def centred(G: Tensor) -> tuple[Tensor, Tensor]:
    """Split augmented second moments into covariance and mean.

    Args:
        G: `(..., k + 1, k + 1)` second moments of `[x, 1]`.

    Returns:
        The covariance `(..., k, k)` and the mean `(..., k)`, float64.

    Raises:
        DataError: The moments hold NaN or infinities.
    """
    if not bool(torch.isfinite(G).all()):
        raise DataError("calibration: second moments are not finite; look for NaN in the calibration inputs")
    G = G.double()
    mean = G[..., :-1, -1]
    covariance = G[..., :-1, :-1] - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    covariance.diagonal(dim1=-2, dim2=-1).clamp_(min=0.0)
    return covariance, mean


def damped_cholesky(covariance: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Factorise `C + d I = L L^T` with `d = damping * mean(diag C)`.

    Where rounding leaves the matrix indefinite, `d` is raised tenfold until the factorisation succeeds.
    A matrix of zeros (inputs that never vary) gets `d = 1`.

    Args:
        covariance: `(..., k, k)` symmetric, positive semi-definite up to rounding, float64.
        damping: Relative damping, >= 0.

    Returns:
        `L` `(..., k, k)`, lower triangular, and `d` of shape `(...)`.

    Raises:
        DataError: No reasonable damping makes the matrix positive definite.
    """
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    level = diagonal.mean(dim=-1) if diagonal.shape[-1] else diagonal.new_ones(diagonal.shape[:-1])
    dead = level <= 0.0
    amount = torch.where(dead, torch.ones_like(level), level * damping)
    for _ in range(_ATTEMPTS):
        damped = covariance.clone()
        damped.diagonal(dim1=-2, dim2=-1).add_(amount.unsqueeze(-1))
        lower, failure = torch.linalg.cholesky_ex(damped)
        failed = failure > 0
        if not bool(failed.any()):
            return lower, amount
        amount = torch.where(failed, torch.maximum(amount * 10.0, level * 1e-9), amount)
    raise DataError("calibration: second moments are not positive semi-definite")


@torch.no_grad()
def refit_from_moments(
    target_cross: Tensor, G_compressed: Tensor, damping: float, prior: Tensor
) -> tuple[Tensor, Tensor]:
    """Fit a layer to targets given only moments: `min E|y - W x - b|^2 + d |W - prior|^2`.

    The residual-aware refit passes the inputs of the compressed prefix and the outputs of the dense model,
    so that a layer also repairs the errors made before it (He et al. 2017, section 3.2).

    Args:
        target_cross: `(out, k + 1)`, `E[y x~^T]`; its last column is `E[y]`.
        G_compressed: `(k + 1, k + 1)` augmented second moments of the inputs the layer will see.
        damping: `d` relative to the mean variance of the inputs; the intercept is not penalised.
        prior: `(out, k)` weights that the solution shrinks towards.

    Returns:
        Weights `(out, k)` and bias `(out,)`, float32.

    Raises:
        DataError: The moments are not finite or not positive semi-definite.
    """
    if not bool(torch.isfinite(target_cross).all()):
        raise DataError("calibration: cross moments are not finite")
    covariance, mean = centred(G_compressed)
    lower, amount = damped_cholesky(covariance, damping)
    target_mean = target_cross[:, -1].double()
    right = target_cross[:, :-1].double() - torch.outer(target_mean, mean) + amount * prior.double()
    W = torch.cholesky_solve(right.T, lower).T
    return W.float().contiguous(), (target_mean - W @ mean).float()


@torch.no_grad()
def refit_consumer(
    W: Tensor, bias: Tensor, G: Tensor, kept_columns: Tensor, damping: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Refit a layer to a subset of its input columns (He et al. 2017; formula in the module's docstring).

    Args:
        W: `(out, columns)` dense weights.
        bias: `(out,)`.
        G: `(columns + 1, columns + 1)` augmented second moments of the dense inputs.
        kept_columns: `(k,)` sorted indices of the columns that stay; none makes it its mean.
        damping: Relative to the mean variance of the kept inputs; the intercept is not penalised.

    Returns:
        Weights `(out, k)` and bias `(out,)`, float32.

    Raises:
        DataError: The moments are not finite or not positive semi-definite.
    """
    G = G.double()
    augmented = torch.cat([kept_columns, kept_columns.new_tensor([W.shape[1]])])
    right = G[:, augmented]
    target_cross = W.double() @ right[:-1] + torch.outer(bias.double(), right[-1])
    return refit_from_moments(target_cross, right[augmented], damping, W[:, kept_columns])


@torch.no_grad()
def reconstruction_error(
    W: Tensor, bias: Tensor, G: Tensor, W_new: Tensor, bias_new: Tensor, kept: Tensor
) -> float:
    """Return the mean squared output error `E|[W b] x~ - [W' b'] x~[K]|^2 / out`.

    Args:
        W: `(out, columns)` dense weights.
        bias: `(out,)`.
        G: `(columns + 1, columns + 1)` augmented second moments of the dense inputs.
        W_new: `(out, k)` weights on the kept columns.
        bias_new: `(out,)`.
        kept: `(k,)` indices of the kept columns.
    """
    difference = torch.cat([W.double(), bias.double().unsqueeze(1)], dim=1)
    difference.index_add_(1, kept, -W_new.double())
    difference[:, -1] -= bias_new.double()
    return max(0.0, float(((difference @ G.double()) * difference).sum()) / W.shape[0])
