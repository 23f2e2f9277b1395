"""Importance of the channels of a group, and nested removal orders: every keep set is a suffix of one order.

`order_by_obs` is the structured Optimal Brain Surgeon on channel groups (Kurtic, Frantar, Alistarh: "ZipLM",
NeurIPS 2023; Frantar, Alistarh: "Optimal Brain Compression", NeurIPS 2022): removing the columns `g` of a
consumer `W` with Hessian `H = C + d I` and compensating with the rest costs exactly

    score(g) = tr(W_g ((H^-1)_gg)^-1 W_g^T)
    W <- W - W_g ((H^-1)_gg)^-1 (H^-1)_g,:      H^-1 <- H^-1 - (H^-1)_:,g ((H^-1)_gg)^-1 (H^-1)_g,:

`C` is the centred covariance, because the refit that follows has an intercept.

The other importances score every channel once; their order is by score (`order_of`). With several producers all of
them sum over producers: magnitudes (Li et al., ICLR 2017), distances to the other filters (FPGM: He et al., CVPR 2019),
scales of batch normalisations (Liu et al., "Network Slimming", ICCV 2017), gradient times activation (Taylor: Molchanov
et al., CVPR 2019; Fisher: Theis et al., 2018) and the curvature of the loss (LeCun et al., "Optimal Brain Damage",
1990, estimated by `curvature.relative_curvature`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paretopress.compressors.least_squares import centred, damped_cholesky

_PENDING_ROWS = 144


def expand_channels(kept: Tensor, window: int) -> Tensor:
    """Return the columns of channels: `channel * window + position`, channel-major, as a LongTensor."""
    return (kept.unsqueeze(1) * window + torch.arange(window, device=kept.device)).flatten()


def kept_from_order(order: Tensor, count: int, block: int = 1) -> Tensor:
    """Return the channels that stay when only the `count` most important blocks are kept.

    Args:
        order: `(blocks,)` from least to most important.
        count: Number of blocks kept, 0 to `len(order)`.
        block: Channels per block; channel `c` belongs to block `c // block`.

    Returns:
        Sorted channel indices `(count * block,)`.
    """
    assert 0 <= count <= len(order)
    return expand_channels(order[len(order) - count :].sort().values, block)


def order_of(scores: Tensor) -> Tensor:
    """Blocks from least to most important, `(blocks,)`; ties go to the lower index first."""
    return scores.sort(stable=True).indices


@torch.no_grad()
def l1_scores(producers: Sequence[Tensor], block: int = 1) -> Tensor:
    """The sum of absolute weights that produce a channel, over all producers (Li et al. 2017).

    Args:
        producers: Weights `(channels, columns)` of the layers that write the group.
        block: Channels per block; a block's importance is the sum over its channels.

    Returns:
        `(blocks,)` float64, one importance per block.
    """
    return _over_blocks(torch.stack([W.double().abs().sum(dim=1) for W in producers]).sum(dim=0), block)


@torch.no_grad()
def l2_scores(producers: Sequence[Tensor], block: int = 1) -> Tensor:
    """The squared Euclidean norm of the weights that produce a channel; arguments as `l1_scores`."""
    return _over_blocks(torch.stack([W.double().square().sum(dim=1) for W in producers]).sum(dim=0), block)


@torch.no_grad()
def geometric_median_scores(producers: Sequence[Tensor], block: int = 1) -> Tensor:
    """The sum of Euclidean distances from a filter to all others of its group; arguments as `l1_scores`.

    The filter for which it is least stands nearest to their geometric median, so that the others represent it best
    (He et al., "Filter Pruning via Geometric Median", CVPR 2019).
    """
    distances = []
    for W in producers:
        centred_rows = W.double() - W.double().mean(dim=0)   # distances stay, large common parts do not cancel
        distances.append(torch.cdist(centred_rows, centred_rows).fill_diagonal_(0.0).sum(dim=1))
    return _over_blocks(torch.stack(distances).sum(dim=0), block)


@torch.no_grad()
def scale_scores(scales: Sequence[Tensor], block: int = 1) -> Tensor:
    """The absolute scale of the batch normalisation behind a channel (Liu et al. 2017, "Network Slimming").

    Args:
        scales: `(channels, columns)`, the learned scales of every normalisation that is folded into a producer.
        block: As for `l1_scores`.
    """
    return l1_scores(scales, block)


@torch.no_grad()
def taylor_scores(gradient_activation: Tensor, block: int = 1) -> Tensor:
    """First-order Taylor importance `E[(sum_positions gradient * activation)^2]` (Molchanov 2019).

    Args:
        gradient_activation: `(samples, channels)`, gradient times activation summed over positions.
        block: Channels per block. The products of a block are summed before squaring, because its
            channels are removed together.
    """
    samples = gradient_activation.shape[0]
    together = gradient_activation.double().reshape(samples, -1, block).sum(dim=2)
    return together.square().mean(dim=0)


@torch.no_grad()
def fisher_scores(gradient_activations: Sequence[Tensor], block: int = 1) -> Tensor:
    """The empirical Fisher information of a gate on every channel of every producer, summed over producers.

    `E[(sum_positions gradient * activation)^2]` of each producer's own feature maps (Theis et al., "Faster gaze
    prediction with dense networks and Fisher pruning", 2018). Producers and the channels of a block are
    taken as independent, which is the diagonal of the information; `taylor_scores` adds their products up before
    squaring, as one gate for all of them has it (Liu et al., "Group Fisher Pruning", ICML 2021). For a
    group with one producer and blocks of one channel both are the same.

    Args:
        gradient_activations: `(samples, channels)` per producer, gradient times activation summed over positions.
        block: As for `l1_scores`.
    """
    return _over_blocks(torch.stack([x.double().square().mean(dim=0) for x in gradient_activations]).sum(dim=0), block)


@torch.no_grad()
def curvature_scores(producers: Sequence[Tensor], block: int = 1) -> Tensor:
    """Twice the loss that curvature adds without a channel's weights, each on its own: `sum w^2 H_ww` (LeCun 1990).

    The Hessian need not be positive: a negative score says that the loss would fall.

    Args:
        producers: `w^2 H_ww` of the weights `(channels, columns)` of the layers that write the group.
        block: As for `l1_scores`.
    """
    return _over_blocks(torch.stack([curved.double().sum(dim=1) for curved in producers]).sum(dim=0), block)


def order_by_l1(producers: Sequence[Tensor], block: int = 1) -> Tensor:
    """Order by `l1_scores`: block indices from least to most important."""
    return order_of(l1_scores(producers, block))


def order_by_l2(producers: Sequence[Tensor], block: int = 1) -> Tensor:
    """Order by `l2_scores`."""
    return order_of(l2_scores(producers, block))


def order_by_taylor(gradient_activation: Tensor, block: int = 1) -> Tensor:
    """Order by `taylor_scores`."""
    return order_of(taylor_scores(gradient_activation, block))


def order_by_obs(
    consumers: Sequence[tuple[Tensor, Tensor, int]],
    block: int = 1,
    blocks: int | None = None,
    damping: float = 1e-3,
) -> Tensor:
    """Order by `eliminate`."""
    return eliminate(consumers, block, blocks, damping)[0]


@torch.no_grad()
def eliminate(
    consumers: Sequence[tuple[Tensor, Tensor, int]],
    block: int = 1,
    blocks: int | None = None,
    damping: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Order by structured Optimal Brain Surgeon: remove, compensate, score again, until nothing is left.

    Scores are summed over consumers after division by each consumer's dense output variance, so that the
    unit is the fraction of variance lost and no consumer dominates. Removal is exact, one block at a time;
    the updates of `H^-1` are gathered and applied as one product.

    Args:
        consumers: `(W, G, window)` per layer that reads the group: weights `(out, channels * window)`,
            augmented second moments, and columns per channel.
        block: Channels that are removed together; channel `c` belongs to block `c // block`.
        blocks: Number of blocks; taken from the first consumer where not given.
        damping: Relative to each consumer's mean input variance.

    Returns:
        `(blocks,)` block indices from least to most important, and `(blocks,)` what each block's removal cost when
        its turn came. Deterministic; ties go to the lower index.

    Raises:
        DataError: The moments are not finite or not positive semi-definite.
    """
    eliminations = [_Elimination(W, G, block * window, damping) for W, G, window in consumers]
    total = blocks if blocks is not None else eliminations[0].blocks
    assert all(elimination.blocks == total for elimination in eliminations)
    order: list[int] = []
    costs = torch.zeros(total, dtype=torch.float64)
    for _ in range(total):
        score = torch.stack([elimination.scores() for elimination in eliminations]).sum(dim=0)
        order.append(int((score == score.min()).nonzero()[0]))
        costs[order[-1]] = score[order[-1]]
        for elimination in eliminations:
            elimination.remove(order[-1])
    return torch.tensor(order, dtype=torch.long), costs


class _Elimination:
    """One consumer during the sweep: the blocks still alive, their weights and inverse Hessian.

    The inverse is kept as `inverse - pending^T pending`: a removal only appends rows to `pending`, and
    its diagonal blocks, which the scores need, are updated at once.
    """

    def __init__(self, W: Tensor, G: Tensor, width: int, damping: float) -> None:
        covariance, _ = centred(G)
        W = W.double()
        if W.shape[0] > W.shape[1]:
            W = torch.linalg.qr(W, mode="r").R  # scores depend on W^T W alone
        energy = float(((W @ covariance) * W).sum())
        floor = 1e-9 * float(W.square().sum() * G.double().diagonal()[:-1].mean())
        # Below the floor the variance is rounding noise: a consumer of constants has no say.
        self.W = W / energy**0.5 if energy > floor else torch.zeros_like(W)
        self.width = width
        self.blocks = W.shape[1] // width
        self.alive = torch.arange(self.blocks)
        self.removed: list[int] = []
        self.inverse = torch.cholesky_inverse(damped_cholesky(covariance, damping)[0])
        self.pending = self.inverse.new_empty(_PENDING_ROWS + width, W.shape[1])
        self.rows = 0
        self.diagonal = _diagonal_blocks(self.inverse, width)

    def scores(self) -> Tensor:
        """Return the cost of removing each block, `(blocks,)`; infinite for those that are gone."""
        weights = self.W.T.reshape(len(self.alive), self.width, -1)
        if self.width == 1:
            costs = weights.square().sum(dim=(1, 2)) / self.diagonal.flatten()
        else:
            lower = torch.linalg.cholesky(self.diagonal)
            costs = torch.linalg.solve_triangular(lower, weights, upper=False).square().sum(dim=(1, 2))
        costs[self.removed] = torch.inf
        scores = costs.new_full((self.blocks,), torch.inf)
        scores[self.alive] = costs
        return scores

    def remove(self, block: int) -> None:
        """Eliminate a block and compensate with the others."""
        position = int(torch.searchsorted(self.alive, block))
        columns = slice(position * self.width, (position + 1) * self.width)
        past = self.pending[: self.rows]
        rows = self.inverse[columns] - past[:, columns].T @ past
        lower = torch.linalg.cholesky(self.diagonal[position])
        factor = torch.linalg.solve_triangular(lower, rows, upper=False)
        weights = torch.linalg.solve_triangular(lower, self.W[:, columns].T, upper=False)
        self.W.addmm_(weights.T, factor, alpha=-1.0)
        split = factor.reshape(self.width, -1, self.width).transpose(0, 1)
        self.diagonal -= split.transpose(1, 2) @ split
        self.diagonal[position] = torch.eye(self.width, dtype=torch.float64)
        self.pending[self.rows : self.rows + self.width] = factor
        self.rows += self.width
        self.removed.append(position)
        if self.rows >= _PENDING_ROWS:
            self._compact()

    def _compact(self) -> None:
        """Apply the pending rows and drop the removed blocks."""
        mask = torch.ones(len(self.alive), dtype=torch.bool)
        mask[self.removed] = False
        columns = expand_channels(mask.nonzero().flatten(), self.width)
        past = self.pending[: self.rows, columns]
        self.inverse = self.inverse[columns][:, columns].addmm_(past.T, past, alpha=-1.0)
        self.W = self.W[:, columns].contiguous()
        self.diagonal = self.diagonal[mask].contiguous()
        self.alive = self.alive[mask]
        self.pending = self.pending[:, : len(columns)].contiguous()
        self.rows = 0
        self.removed = []


def _diagonal_blocks(matrix: Tensor, width: int) -> Tensor:
    """Return the `(blocks, width, width)` blocks on the diagonal, as a copy."""
    blocks = matrix.shape[0] // width
    index = torch.arange(blocks)
    return matrix.reshape(blocks, width, blocks, width)[index, :, index, :].clone()


def _over_blocks(importance: Tensor, block: int) -> Tensor:
    return importance.reshape(-1, block).sum(dim=1)
