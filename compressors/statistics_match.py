"""Matching channel statistics: BatchNorm re-estimation for networks whose BatchNorm is already folded.

Compression shifts the mean and shrinks the spread of activations. Adaptive BatchNorm re-estimates both
from data (Li et al., "EagleEye", ECCV 2020); on a folded network the same correction is an affine map per
channel that gives the compressed output the dense mean and standard deviation (as in ModHiFi's variance
matching), and it folds into the layer's weights and bias at no cost.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def match_statistics(
    dense_mean: Tensor,
    dense_std: Tensor,
    compressed_mean: Tensor,
    compressed_std: Tensor,
    largest_scale: float = 4.0,
    dead: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Return the affine map per channel that restores the dense statistics: `y' = scale * y + shift`.

    `scale = dense_std / compressed_std`, `shift = dense_mean - scale * compressed_mean`. Guards:

    - a compressed channel that hardly varies has no signal to amplify: scale 1, only the mean is matched;
    - `scale` is at most `largest_scale`, because the missing spread of a badly approximated channel would
      be replaced by amplified error;
    - a channel that is constant in the dense model becomes that constant (scale 0);
    - statistics that are not finite leave the channel alone (scale 1, shift 0).

    Args:
        dense_mean: `(channels,)`.
        dense_std: `(channels,)`, >= 0.
        compressed_mean: `(channels,)`.
        compressed_std: `(channels,)`, >= 0.
        largest_scale: Upper bound of the scale, >= 1.
        dead: A standard deviation below `dead` times the mean one over the live dense channels counts as 0.

    Returns:
        Scale and shift, `(channels,)` float32.
    """
    statistics = [values.double() for values in (dense_mean, dense_std, compressed_mean, compressed_std)]
    finite = torch.stack(statistics).isfinite().all(dim=0)
    dense_mean, dense_std, compressed_mean, compressed_std = (
        torch.where(finite, values, torch.zeros_like(values)) for values in statistics
    )
    live = dense_std[dense_std > 0.0]
    floor = dead * float(live.mean()) if len(live) else 0.0
    silent = compressed_std <= floor
    scale = (dense_std / compressed_std.masked_fill(silent, 1.0)).clamp(max=largest_scale)
    scale = torch.where(dense_std <= floor, torch.zeros_like(scale), scale)
    scale = torch.where(silent | ~finite, torch.ones_like(scale), scale)
    shift = dense_mean - scale * compressed_mean
    return scale.float(), shift.float()


def fold_affine(W: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights `(out, columns)` and bias of `scale * (W x + b) + shift`."""
    return W * scale.unsqueeze(1), bias * scale + shift
