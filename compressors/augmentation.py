"""Label-free augmentation: new inputs made of calibration samples, for a teacher that labels anything.

Nothing here knows the domain. What is made need not be realistic, it must only lie where the student will be
asked: the teacher is evaluated on the very inputs the student sees (Beyer et al., "Knowledge distillation: A
good teacher is patient and consistent", CVPR 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paretopress.spaces.errors import ConfigError


@dataclass(frozen=True)
class Augmentation:
    """How inputs are varied.

    Attributes:
        mixup: Fraction of the samples that are mixed with another one (Zhang et al., "mixup", ICLR 2018), the
            share of the other one uniform in 0 to 1/2.
        noise: Largest standard deviation of added Gaussian noise, in standard deviations of each feature; every
            sample draws its own between 0 and this.
        difference: Standard deviation of a random factor times the difference of two other samples that is added:
            noise with the covariance of the data; every sample draws its own between 0 and this.
        shift: Largest fraction of each spatial dimension that a sample is rolled by; only inputs with at least
            three dimensions, `(n, channels, ...)`, are.
        mirror: Fraction of the samples that are mirrored along the last dimension; only inputs with four dimensions,
            `(n, channels, height, width)`, are.
    """

    mixup: float = 0.5
    noise: float = 0.5
    difference: float = 0.5
    shift: float = 0.0
    mirror: float = 0.0

    def __post_init__(self) -> None:
        """Raise `ConfigError` for what is not a fraction, or negative."""
        for name in ("mixup", "shift", "mirror"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"augmentation: {name}: got {getattr(self, name)!r} (allowed: from 0 to 1)")
        for name in ("noise", "difference"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"augmentation: {name}: got {getattr(self, name)!r} (allowed: from 0)")


class Augmenter:
    """Draws varied mini-batches from a set of samples.

    Samples of all inputs stay together: the same rows are mixed in the same shares. Inputs that are not floating
    point, such as token indices and masks, are never changed.
    """

    def __init__(self, inputs: Sequence[Tensor], settings: Augmentation, generator: torch.Generator) -> None:
        self.inputs, self.settings, self.generator = tuple(inputs), settings, generator
        self.count = len(inputs[0])
        self.spread = [tensor.std(dim=0, correction=0) if tensor.is_floating_point() else None for tensor in inputs]

    def batch(self, size: int) -> tuple[Tensor, ...]:
        """Return `size` varied samples, one tensor per input; without replacement where there are enough."""
        order = torch.randperm(self.count, generator=self.generator)
        rows = order.repeat(-(-size // self.count))[:size]
        others = rows[torch.randperm(size, generator=self.generator)]
        mixed = self._uniform(size) < self.settings.mixup
        share = torch.where(mixed, 0.5 * self._uniform(size), 0.0)
        amount = self.settings.noise * self._uniform(size)
        pair = torch.randint(self.count, (2, size), generator=self.generator)
        factor = self.settings.difference * self._uniform(size) * torch.randn(size, generator=self.generator)
        mirrored = self._uniform(size) < self.settings.mirror if self.settings.mirror > 0.0 else None
        varied = []
        for tensor, spread in zip(self.inputs, self.spread, strict=True):
            x = self._vary(tensor, spread, rows, others, share, amount)
            if spread is not None and self.settings.difference > 0.0:
                column = factor.reshape(-1, *(1,) * (x.ndim - 1)).to(x.dtype)
                x = x + column * (tensor[pair[0]] - tensor[pair[1]])
            if mirrored is not None and spread is not None and x.ndim == 4:
                x = torch.where(mirrored.reshape(-1, 1, 1, 1), x.flip(3), x)
            varied.append(x)
        return tuple(varied)

    def _vary(
        self, tensor: Tensor, spread: Tensor | None, rows: Tensor, others: Tensor, share: Tensor, amount: Tensor
    ) -> Tensor:
        x = tensor[rows]
        if spread is None:
            return x
        column = (-1, *(1,) * (x.ndim - 1))
        if self.settings.shift > 0.0 and x.ndim >= 3:
            x = self._rolled(x)
        if self.settings.mixup > 0.0:
            x = torch.lerp(x, tensor[others], share.reshape(column).to(x.dtype))
        if self.settings.noise > 0.0:
            noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
            x = x + noise * spread * amount.reshape(column).to(x.dtype)
        return x

    def _rolled(self, x: Tensor) -> Tensor:
        """Roll each sample along its spatial dimensions."""
        for dimension in range(2, x.ndim):
            size = x.shape[dimension]
            largest = int(self.settings.shift * size)
            if largest:
                steps = torch.randint(-largest, largest + 1, (len(x), 1), generator=self.generator)
                index = (torch.arange(size) - steps) % size
                shape = [len(x), *(1,) * (x.ndim - 1)]
                shape[dimension] = size
                x = x.gather(dimension, index.reshape(shape).expand_as(x))
        return x

    def _uniform(self, size: int) -> Tensor:
        return torch.rand(size, generator=self.generator)
