"""Learned rounding: whether each weight goes down or up is found by gradient, for the output of its whole row.

AdaRound (Nagel, Amjad, van Baalen, Louizos, Blankevoort: "Up or Down? Adaptive Rounding for Post-Training
Quantization", ICML 2020): every weight is `step * (down + h(V))` with the rectified sigmoid
`h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)`. The layer's squared output error plus a regulariser `1 - |2 h - 1|^beta` is
lowered by Adam, while `beta` falls from 20 to 2 and so drives every `h` to 0 or 1. With the covariance `C` of the
inputs that error is `(w - q) C (w - q)^T`, exactly and for all samples at once: there are no mini-batches, and the
result does not depend on chance.

`C` is centred, because the bias correction `b' = b + (W - Wq) E[x]` absorbs the mean error. The choice is between the
integer that error feedback found and its neighbour towards the weight, which for most weights are the two nearest ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paretopress.compressors.least_squares import centred
from paretopress.compressors.quantisation import best_rows, gptq, largest_level
from paretopress.spaces.choices import BYTE_LEVEL

GAMMA, ZETA = -0.1, 1.1      # of the rectified sigmoid
STEPS = 500                  # three times as many gain less than a hundredth
RATE = 0.1
REGULARISER = 0.5            # relative to the squared error of one step in one average input
BETAS = (20.0, 2.0)
WARM_UP = 0.2                # of the steps, without a regulariser
DECAYS = (0.9, 0.999)        # of Adam's moments
EPSILON = 1e-12
INNERMOST = 0.01             # distance from 0 and 1 that h starts at, so that its gradient is not 0


@torch.no_grad()
def learned_integers(
    W: Tensor, G: Tensor, widths: Sequence[int], mask: Tensor | None = None, highest: int = BYTE_LEVEL
) -> dict[int, tuple[Tensor, Tensor]]:
    """Quantise a layer to several widths by learned rounding, on the grids that `gptq` finds and from its integers.

    Args:
        W: `(out, columns)`.
        G: `(columns + 1, columns + 1)` augmented second moments of the inputs, or `(groups, ...)` for grouped and
            depthwise layers, whose rows are split evenly over the groups.
        widths: Bits, each 2 to 8.
        mask: `(out, columns)` bool: all other weights are zero, and stay so.
        highest: No integer is larger, whatever the width.

    Returns:
        Per width the integers `(out, columns)` int8 and the scales `(out,)` float32. No row has a larger error
        `(w - s q) C (w - s q)^T` than by `gptq`.

    Raises:
        DataError: The moments are not finite or not positive semi-definite.
    """
    covariance, _ = centred(G if G.ndim == 3 else G.unsqueeze(0))
    shape = (len(covariance), -1, W.shape[1])
    dense, kept = W.double().reshape(shape), None if mask is None else mask.reshape(shape)
    quantised = {}
    for bits, (integers, scales) in gptq(W, G, widths, mask=mask, highest=highest).items():
        level = W.new_tensor(float(largest_level(bits, highest)), dtype=torch.float64)
        steps, start = scales.double().reshape(*dense.shape[:2], 1), integers.double().reshape(shape)
        found = learned_codes(dense, steps, start, -level, level, covariance, kept)
        candidates = [(integers, scales), (found.reshape(W.shape).to(torch.int8), scales)]
        quantised[bits] = best_rows(dense, candidates, covariance)
    return quantised


@torch.no_grad()
def learned_codes(
    W: Tensor, steps: Tensor, start: Tensor, low: Tensor, high: Tensor, covariance: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Round every weight down or up, so that the output errors of the rows get small.

    Args:
        W: `(groups, rows, columns)` float64.
        steps: Distance of neighbouring values of the grid, of a shape that broadcasts to `W`.
        start: Integers that are known to be good; which two a weight may become follows from them.
        low: Smallest integer, of a shape that broadcasts to `W`.
        high: Largest integer.
        covariance: `(groups, columns, columns)` of the inputs, float64.
        mask: Bool: where it is false the integer is 0.

    Returns:
        Integers like `start`, float64; a row keeps those of `start` unless others have a smaller error.
    """
    wanted, kept = W / steps, torch.ones_like(W) if mask is None else mask.to(W.dtype)
    down = torch.where(wanted < start, start - 1.0, start)
    down = torch.minimum(torch.maximum(down, low), high - 1.0)
    steps = steps.expand_as(W)
    best, lowest = start, _errors(start, steps, W, covariance)
    for codes in ((down + _annealed(down - wanted, steps, covariance, kept)) * kept, start):
        found = _descended(codes, down, steps, W, covariance, kept)
        error = _errors(found, steps, W, covariance)
        best = torch.where((error < lowest).unsqueeze(2), found, best)
        lowest = torch.minimum(error, lowest)
    return best


def _errors(codes: Tensor, steps: Tensor, W: Tensor, covariance: Tensor) -> Tensor:
    """`(w - q) C (w - q)^T` of every row."""
    difference = codes * steps - W
    return ((difference @ covariance) * difference).sum(dim=2)


def _annealed(offset: Tensor, steps: Tensor, covariance: Tensor, kept: Tensor) -> Tensor:
    """Minimise over `h` and return where it ends above one half, float64 zeros and ones.

    Args:
        offset: From the wanted value of each weight to its lower integer, in steps, `(groups, rows, columns)`.
        steps: Of the same shape.
        covariance: Of the inputs; its size does not matter, as that of the steps, because both are divided out.
        kept: Zeros and ones; weights at zeros stay.
    """
    variance = covariance.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    metric = (covariance / variance.reshape(-1, 1, 1)).float()
    unit = (kept * steps / steps.square().mean(dim=2, keepdim=True).sqrt()).float()
    distance = offset.float()
    fraction = (-distance).clamp(INNERMOST, 1.0 - INNERMOST)
    latent = torch.logit((fraction - GAMMA) / (ZETA - GAMMA))
    first, second = torch.zeros_like(latent), torch.zeros_like(latent)
    for step in range(STEPS):
        sigmoid = torch.sigmoid(latent)
        stretched = sigmoid * (ZETA - GAMMA) + GAMMA
        h = stretched.clamp(0.0, 1.0)
        slope = 2.0 * unit * (((h + distance) * unit) @ metric) + REGULARISER * _regulariser_slope(h, step / STEPS)
        slope *= (ZETA - GAMMA) * sigmoid * (1.0 - sigmoid) * (stretched == h)
        first.lerp_(slope, 1.0 - DECAYS[0])
        second.lerp_(slope.square(), 1.0 - DECAYS[1])
        mean = first / (1.0 - DECAYS[0] ** (step + 1))
        spread = (second / (1.0 - DECAYS[1] ** (step + 1))).sqrt()
        latent -= RATE * mean / (spread + EPSILON)
    return (latent > 0.0).to(offset.dtype)   # h is above one half where V is above 0


def _regulariser_slope(h: Tensor, done: float) -> Tensor:
    """Derivative of `1 - |2 h - 1|^beta` after a fraction of the steps."""
    if done < WARM_UP:
        return torch.zeros_like(h)
    beta = BETAS[0] + (BETAS[1] - BETAS[0]) * (done - WARM_UP) / (1.0 - WARM_UP)
    centre = 2.0 * h - 1.0
    return -2.0 * beta * centre.abs().pow(beta - 1.0) * centre.sign()


def _descended(
    codes: Tensor, down: Tensor, steps: Tensor, W: Tensor, covariance: Tensor, kept: Tensor
) -> Tensor:
    """Flip the one weight of each row that lowers its error most, until none does: what is left is a local minimum.

    A flip by `d` changes the error by `2 d (e C)_j + d^2 C_jj`, with `e = q - w`.
    """
    codes = codes.clone()
    pull = (codes * steps - W) @ covariance
    variance = covariance.diagonal(dim1=1, dim2=2).unsqueeze(1)
    fixed = kept == 0.0
    for _ in range(codes.shape[2]):
        flips = (2.0 * down + 1.0 - 2.0 * codes) * steps   # from the lower to the upper integer or back
        gains = (flips * (2.0 * pull + flips * variance)).masked_fill_(fixed, 0.0)
        gain, place = gains.min(dim=2, keepdim=True)
        change = torch.where(gain < 0.0, flips.gather(2, place), torch.zeros_like(gain))
        if not bool(change.any()):
            break
        codes.scatter_add_(2, place, (change / steps.gather(2, place)).round())
        index = place.expand(-1, -1, covariance.shape[2])
        pull += change * covariance.gather(1, index)
    return codes
