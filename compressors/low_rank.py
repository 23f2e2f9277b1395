"""Activation-whitened singular value decomposition: one layer as two smaller ones.

SVD-LLM (Wang, Zheng, Wan, Zhang, ICLR 2025): with the Cholesky factor `S S^T = C + d I` of the inputs'
second moments, the singular values of `W S = U Sigma V^T` measure the output error. Dropping `sigma_i`
costs exactly `sigma_i^2` in `|(W - W') S|^2`, so that truncation is optimal for the layer's output
(Eckart-Young) and not merely for its weights. `C` is the centred covariance: the bias absorbs the mean.

Ranks follow from the singular values alone: the smallest that keeps a share of one layer's energy (`energy_rank`), or
those of all layers that keep the most of it within a number of weights (`budget_ranks`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paretopress.compressors.least_squares import centred, damped_cholesky
from paretopress.spaces.errors import DataError

_Option = tuple[int, float, int | None]   # weights, lost energy, rank


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


def energy_rank(sigma: Tensor, share: float) -> int:
    """The smallest rank that keeps a share of the energy, `sum of sigma_i^2`.

    Args:
        sigma: Whitened singular values in decreasing order.
        share: In (0, 1], such as 0.95.

    Raises:
        DataError: The share is outside its range.
    """
    if not 0.0 < share <= 1.0:
        raise DataError(f"a share of the energy of {share} is outside (0, 1]")
    kept = sigma.double().square().cumsum(0)
    return 1 + min(int((kept < share * kept[-1]).sum()), len(sigma) - 1)


@dataclass(frozen=True)
class Spectrum:
    """A layer that may be factorised.

    Attributes:
        sigma: `(r_max,)` its whitened singular values in decreasing order; scaled by how much the layer's error counts
            beside that of the others.
        out: Rows of its matrix.
        columns: Columns of its matrix.
    """

    sigma: Tensor
    out: int
    columns: int

    @property
    def options(self) -> list[_Option]:
        """`(weights, lost energy, rank)` of every rank that pays and, with rank None, of the whole layer."""
        energy = self.sigma.double().square()
        lost = (energy.sum() - energy.cumsum(0)).clamp_min(0.0).tolist()
        ranks = (rank for rank in range(1, len(lost) + 1) if pays(rank, self.out, self.columns))
        found = [(rank * (self.out + self.columns), lost[rank - 1], rank) for rank in ranks]
        return [*found, (self.out * self.columns, 0.0, None)]


def budget_ranks(spectra: Sequence[Spectrum], budget: int) -> list[int | None]:
    """Ranks of all layers that lose the least energy together within a number of weights.

    Steps are taken from the cheapest choice of every layer along the lower convex hull of its choices, those first
    that win the most energy per weight. Wherever all steps up to some gain fit, that is the optimum (Everett:
    "Generalized Lagrange Multiplier Method", 1963); what is left of the budget goes to the best single choices, so
    that at most the gain of one step is missing.

    Args:
        spectra: The layers.
        budget: Weights of all of them together, biases not counted.

    Returns:
        For every layer its rank, None where it stays whole.

    Raises:
        DataError: The budget is below what rank 1 everywhere takes.
    """
    options = [spectrum.options for spectrum in spectra]
    chosen = [choices[0] for choices in options]
    left = budget - sum(weights for weights, _, _ in chosen)
    if left < 0:
        raise DataError(f"{budget} weights are fewer than the {budget - left} that the lowest ranks take")
    steps = [(_gain(before, after), layer, step, after) for layer, choices in enumerate(options)
             for step, (before, after) in enumerate(_steps(choices))]
    refused: set[int] = set()
    for _, layer, _, after in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        more = after[0] - chosen[layer][0]
        if layer in refused or more > left:
            refused.add(layer)   # its next steps begin where this one ends
            continue
        chosen[layer], left = after, left - more
    while True:
        better = [(_gain(chosen[layer], choice), -layer, choice) for layer, choices in enumerate(options)
                  for choice in choices if 0 < choice[0] - chosen[layer][0] <= left and choice[1] < chosen[layer][1]]
        if not better:
            return [rank for _, _, rank in chosen]
        _, layer, after = max(better, key=lambda found: found[:2])
        left -= after[0] - chosen[-layer][0]
        chosen[-layer] = after


def _gain(before: _Option, after: _Option) -> float:
    """Energy won per weight."""
    return (before[1] - after[1]) / (after[0] - before[0])


def _steps(options: Sequence[_Option]) -> list[tuple[_Option, _Option]]:
    """Neighbours on the lower convex hull of weights and lost energy."""
    hull: list[_Option] = []
    for option in options:
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], option):
            hull.pop()
        hull.append(option)
    return list(itertools.pairwise(hull))
