"""Activation-whitened singular value decomposition: one layer as two smaller ones.

SVD-LLM (Wang, Zheng, Wan, Zhang, ICLR 2025): with the Cholesky factor `S S^T = C + d I` of the inputs'
second moments, the singular values of `W S = U Sigma V^T` measure the output error. Dropping `sigma_i`
costs exactly `sigma_i^2` in `|(W - W') S|^2`, so that truncation is optimal for the layer's output
(Eckart-Young) and not merely for its weights. `C` is the centred covariance: the bias absorbs the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paretopress.compressors.least_squares import centred, damped_cholesky


@dataclass(frozen=True)
class WhitenedSVD:
    """The decomposition of one layer, computed once and cut at any rank.

    Attributes:
        U: `(out, r_max)` left singular vectors, float64.
        sigma: `(r_max,)` singular values in decreasing order, float64.
        V: `(r_max, columns)`, `V^T S^-1`: right singular vectors brought back to the layer's inputs.
        mean: `(columns,)` mean input, float64.
    """

    U: Tensor
    sigma: Tensor
    V: Tensor
    mean: Tensor

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return the first factor `B` `(rank, columns)` and the second `A` `(out, rank)`, float32.

        `W ~ A B`; `sqrt(sigma)` goes to each side, which keeps both factors in a similar range.
        """
        assert 1 <= rank <= len(self.sigma)
        root = self.sigma[:rank].sqrt()
        first = root.unsqueeze(1) * self.V[:rank]
        return first.float().contiguous(), (self.U[:, :rank] * root).float().contiguous()

    def bias(self, W: Tensor, bias: Tensor, rank: int) -> Tensor:
        """Return `b' = b + (W - A B) E[x]` `(out,)`, float32: the mean output stays."""
        first, second = self.factors(rank)
        W, bias = W.detach(), bias.detach()
        product = second.double() @ (first.double() @ self.mean)
        return (bias.double() + W.double() @ self.mean - product).float()

    def losses(self) -> Tensor:
        """Return the truncation loss at every rank, `(r_max,)` float64, entry `r - 1` for rank `r`.

        The loss is `E|y - y'|^2` summed over outputs, in the damped metric and with the corrected bias:
        `sum of sigma_i^2 over i > r`. The last entry is 0.
        """
        squared = self.sigma.square()
        tail = squared.flip(0).cumsum(0).flip(0)
        return torch.cat([tail[1:], tail.new_zeros(1)])


@torch.no_grad()
def whitened_svd(W: Tensor, G: Tensor, damping: float = 1e-4) -> WhitenedSVD:
    """Decompose a layer in the metric of its inputs.

    Args:
        W: `(out, columns)`; a convolution's window is part of its columns (first factor = convolution with
            the window, second = 1x1).
        G: `(columns + 1, columns + 1)` augmented second moments of the inputs.
        damping: Relative to the mean input variance.

    Returns:
        The decomposition with `r_max = min(out, columns)`. Signs are fixed (the largest entry of every
        column of `U` is positive), so that equal inputs give equal factors.

    Raises:
        DataError: The moments are not finite or not positive semi-definite.
    """
    covariance, mean = centred(G)
    lower, _ = damped_cholesky(covariance, damping)
    U, sigma, Vh = torch.linalg.svd(W.double() @ lower, full_matrices=False)
    largest = U.gather(0, U.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    sign = torch.where(largest < 0.0, -1.0, 1.0).to(U.dtype)
    V = torch.linalg.solve_triangular(lower, Vh * sign.unsqueeze(1), upper=False, left=False)
    return WhitenedSVD(U * sign, sigma, V, mean)


def pays(rank: int, out: int, columns: int) -> bool:
    """Whether two factors hold fewer weights than the layer: `rank * (out + columns) < out * columns`."""
    return rank * (out + columns) < out * columns
