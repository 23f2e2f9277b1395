"""Second moments of layer inputs, accumulated over batches: all that compensation needs from the data.

For every layer `G = E[x~ x~^T]` with `x~ = [x, 1]`, averaged over samples and output positions. A
convolution's `x` is one window of its input, channel-major (`channel * window + position`), so that the
convolution is the matrix product `y = W x + b`. Products are float32, sums over chunks float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from paretopress.spaces.errors import DataError

_CHUNK_ELEMENTS = 4_000_000


class Moments:
    """Accumulator of augmented second moments, and of cross moments with targets where those are given.

    Memory is the result plus chunks of at most four million gathered values. Inputs are only read.
    """

    def __init__(self) -> None:
        self.count = 0
        self._products: Tensor | None = None
        self._sums: Tensor | None = None
        self._target_products: Tensor | None = None
        self._target_sums: Tensor | None = None

    def accumulate_linear(self, x: Tensor, targets: Tensor | None = None) -> None:
        """Add the inputs of a linear layer.

        Args:
            x: `(..., features)`; every leading index is one observation.
            targets: `(..., out)` wanted outputs for the same observations, for `cross`.
        """
        rows = x.detach().reshape(-1, x.shape[-1])
        wanted = None if targets is None else targets.detach().reshape(-1, targets.shape[-1])
        step = max(1, _CHUNK_ELEMENTS // max(1, rows.shape[1]))
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step].float().unsqueeze(0)
            self._add(chunk, None if wanted is None else wanted[start : start + step].float().unsqueeze(0))

    def accumulate_conv(
        self,
        x: Tensor,
        window: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int | tuple[int, int]],
        dilation: Sequence[int],
        groups: int = 1,
        positions_per_sample: int | None = None,
        generator: torch.Generator | None = None,
        targets: Tensor | None = None,
        *,
        backwards: bool = False,
    ) -> None:
        """Add the inputs of a 1-d or 2-d convolution, by windows.

        Args:
            x: `(n, channels, *spatial)`.
            window: Kernel size per spatial dimension.
            stride: Per spatial dimension.
            padding: Zeros per spatial dimension, one number for both sides or `(before, after)`.
            dilation: Per spatial dimension.
            groups: Convolution groups; channels are split evenly.
            positions_per_sample: Random output positions used of every sample, without repetition; all
                where not given or not fewer than there are.
            generator: Source of the random positions; the same seed gives the same moments.
            targets: `(n, out, *output_spatial)` wanted outputs, for `cross`.
            backwards: Whether windows are read from their ends, as a transposed convolution does.
        """
        windows = _windows(x.detach(), window, stride, padding, dilation)
        spatial = tuple(windows.shape[2 : 2 + len(window)])
        chosen = _positions(len(x), spatial, positions_per_sample, generator)
        if targets is not None and tuple(targets.shape[2:]) != spatial:
            raise DataError(f"targets of size {tuple(targets.shape[2:])} do not fit outputs of {spatial}")
        channels_last = windows.movedim(1, 1 + len(window))
        wanted = None if targets is None else targets.detach().movedim(1, -1)
        columns = windows[0].numel() // max(1, _product(spatial)) if len(x) else 1
        step = max(1, _CHUNK_ELEMENTS // max(1, columns))
        for start in range(0, len(chosen[0]), step):
            index = tuple(axis[start : start + step] for axis in chosen)
            gathered = channels_last[index].float()
            if backwards:
                gathered = gathered.flip(tuple(range(2, gathered.ndim)))
            chunk = gathered.reshape(len(index[0]), groups, -1).transpose(0, 1)
            observed = None
            if wanted is not None:
                observed = wanted[index].float().reshape(len(index[0]), groups, -1).transpose(0, 1)
            self._add(chunk, observed)

    def second_moments(self) -> Tensor:
        """Return `(groups, columns + 1, columns + 1)` float64, `E[x~ x~^T]` (one group for linear layers).

        Raises:
            DataError: Nothing was accumulated, or the inputs hold NaN or infinities.
        """
        products, sums = self._require(self._products, self._sums)
        augmented = torch.cat([products, sums.unsqueeze(1)], dim=1)
        last = torch.cat([sums, sums.new_full((len(sums), 1), float(self.count))], dim=1)
        return self._checked(torch.cat([augmented, last.unsqueeze(2)], dim=2))

    def cross(self) -> Tensor:
        """Return `(groups, out per group, columns + 1)` float64, `E[y x~^T]` with the targets.

        Raises:
            DataError: No targets were accumulated, or values are not finite.
        """
        products, sums = self._require(self._target_products, self._target_sums)
        return self._checked(torch.cat([products, sums.unsqueeze(2)], dim=2))

    def _add(self, x: Tensor, targets: Tensor | None) -> None:
        """Add `(groups, observations, columns)`; targets `(groups, observations, out per group)`."""
        if self.count and (targets is None) != (self._target_products is None):
            raise DataError("calibration: targets must be given for every batch or for none")
        self.count += x.shape[1]
        self._products = _plus(self._products, (x.transpose(1, 2) @ x).double())
        self._sums = _plus(self._sums, x.sum(dim=1, dtype=torch.float64))
        if targets is not None:
            self._target_products = _plus(self._target_products, (targets.transpose(1, 2) @ x).double())
            self._target_sums = _plus(self._target_sums, targets.sum(dim=1, dtype=torch.float64))

    def _require(self, products: Tensor | None, sums: Tensor | None) -> tuple[Tensor, Tensor]:
        if products is None or sums is None or not self.count:
            raise DataError("calibration: no observations were accumulated for a layer")
        return products, sums

    def _checked(self, total: Tensor) -> Tensor:
        if not bool(torch.isfinite(total).all()):
            raise DataError("calibration: activations are not finite; look for NaN in the calibration inputs")
        return total / self.count


def _windows(
    x: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int | tuple[int, int]],
    dilation: Sequence[int],
) -> Tensor:
    """Return a view `(n, channels, *output_spatial, *window)` of the padded input."""
    sides = [side if isinstance(side, tuple) else (side, side) for side in padding]
    if any(side != (0, 0) for side in sides):
        x = functional.pad(x, [amount for side in reversed(sides) for amount in side])
    strides = x.stride()[2:]
    reach = [dilation[axis] * (window[axis] - 1) + 1 for axis in range(len(window))]
    output = [(x.shape[2 + axis] - reach[axis]) // stride[axis] + 1 for axis in range(len(window))]
    if min(output) < 1:
        size = tuple(x.shape[2:])
        raise DataError(f"calibration: inputs of size {size} are smaller than the window {tuple(window)}")
    return x.as_strided(
        (*x.shape[:2], *output, *window),
        (
            *x.stride()[:2],
            *(step * hop for step, hop in zip(strides, stride, strict=True)),
            *(step * hop for step, hop in zip(strides, dilation, strict=True)),
        ),
        x.storage_offset(),
    )


def _positions(
    samples: int,
    spatial: tuple[int, ...],
    positions_per_sample: int | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, ...]:
    """Return the sample index and the spatial indices of every window used, sorted."""
    total = _product(spatial)
    if positions_per_sample is None or positions_per_sample >= total:
        flat = torch.arange(samples * total)
    else:
        draws = torch.rand(samples, total, generator=generator)
        chosen = draws.argsort(dim=1, stable=True)[:, :positions_per_sample].sort(dim=1).values
        flat = (chosen + total * torch.arange(samples).unsqueeze(1)).flatten()
    return torch.unravel_index(flat, (samples, *spatial))


def _plus(total: Tensor | None, addend: Tensor) -> Tensor:
    return addend if total is None else total.add_(addend)


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
