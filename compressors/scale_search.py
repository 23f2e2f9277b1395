"""The scale of each row of a matrix: a grid search over the largest value that is represented.

The error of a row at step `s` with levels `-L..L` is that of its sizes `a = |w|`. With sums over all weights beyond a
border, `M(b) = sum h` and `N(b) = sum h a` over `a > b`, it is

    E(s) = sum h a^2 - 2 s sum_k N((k - 1/2) s) + s^2 sum_k (2 k - 1) M((k - 1/2) s),   k = 1..L

because a weight that becomes level `q` lies beyond the first `q` borders, and `q^2` is the sum of the first `q` odd
numbers. Sizes sorted once give every sum by bisection: few levels cost next to nothing, whatever the columns; with
many levels and few columns rounding every weight is quicker. What is beyond the largest value alone,
`sum h (a - L s)^2`, only grows as the step gets smaller, which ends the search early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 80
SMALLEST_SHRINK = 0.2
AT_ONCE = 8                # steps between looks at what is beyond the largest value
LOOKED_UP = 64             # weights that are rounded in the time that one border is looked up in
CACHED_VALUES = 1 << 17    # weights of a block of rows, or borders that are looked up in it together


@torch.no_grad()
def scales_at_levels(W: Tensor, levels: Sequence[int], importance: Tensor | None = None) -> list[Tensor]:
    """Find each row's step with the least (weighted) squared rounding error, for several grids at once.

    The largest representable value is searched between 0.2 and 1 times the row's largest weight.

    Args:
        W: `(out, columns)`.
        levels: Of each grid its largest integer.
        importance: `(columns,)` or `(out, columns)` weights of the squared errors, not negative; equal ones if None.

    Returns:
        Of each grid `(out,)` positive steps, float32. Rows of zeros get 1.
    """
    size = max(1, CACHED_VALUES // max(W.shape[1], AT_ONCE * max(levels)))
    heavy = None if importance is None else importance.reshape(-1, W.shape[1])
    found: list[list[Tensor]] = [[W.new_zeros(0, dtype=torch.float32)] for _ in levels]
    for start in range(0, len(W), size):
        part = heavy if heavy is None or len(heavy) == 1 else heavy[start : start + size]
        sizes = _Sizes.of(W[start : start + size], part)
        for scales, level in zip(found, levels, strict=True):
            scales.append(sizes.best(level))
    return [torch.cat(scales) for scales in found]


@dataclass(frozen=True)
class _Sizes:
    """The sizes of a few rows of weights in rising order.

    Attributes:
        rising: `(rows, columns)` float32.
        importance: The same, of the squared errors.
        mass: `(rows, columns + 1)` float64, the importance of all weights from a place on.
        moment: The same, times their sizes.
        square: The same, times the squares of their sizes.
    """

    rising: Tensor
    importance: Tensor
    mass: Tensor
    moment: Tensor
    square: Tensor

    @classmethod
    def of(cls, W: Tensor, importance: Tensor | None) -> _Sizes:
        rising, order = W.detach().float().abs().sort(dim=1)
        sizes = rising.double()
        heavy = torch.ones_like(sizes) if importance is None else importance.double().expand(W.shape).gather(1, order)
        return cls(rising, heavy.float(), _tails(heavy), _tails(heavy * sizes), _tails(heavy * sizes.square()))

    def best(self, level: int) -> Tensor:
        """The steps with the least error, the largest of equal ones."""
        full = self.rising[:, -1] / level
        full = torch.where(full > 0.0, full, torch.ones_like(full))
        steps = full.unsqueeze(1) * torch.linspace(1.0, SMALLEST_SHRINK, STEPS)
        beyond = self._beyond(level * steps)
        best, lowest = full, self._errors(steps[:, :1], level).flatten()
        for start in range(1, STEPS, AT_ONCE):
            if bool((beyond[:, start] >= lowest).all()):
                break
            errors, index = self._errors(steps[:, start : start + AT_ONCE], level).min(dim=1)
            better = errors < lowest
            best = torch.where(better, steps.gather(1, start + index.unsqueeze(1)).flatten(), best)
            lowest = torch.where(better, errors, lowest)
        return best

    def _errors(self, steps: Tensor, level: int) -> Tensor:
        """Squared errors of steps `(rows, count)`."""
        if level * LOOKED_UP > self.rising.shape[1]:
            return torch.stack([self._rounded(step, level) for step in torch.split(steps, 1, dim=1)], dim=1).double()
        borders = (steps.unsqueeze(2) * (torch.arange(level) + 0.5)).flatten(1)
        places = torch.searchsorted(self.rising, borders, right=True)
        shape = (*steps.shape, level)
        mass, moment = (part.gather(1, places).reshape(shape) for part in (self.mass, self.moment))
        wide, odd = steps.double(), 2.0 * torch.arange(level, dtype=torch.float64) + 1.0
        return self.square[:, :1] - 2.0 * wide * moment.sum(dim=2) + wide.square() * (mass @ odd)

    def _rounded(self, step: Tensor, level: int) -> Tensor:
        """Squared errors `(rows,)` of a step `(rows, 1)`, by rounding every weight."""
        error = (self.rising / step).round_().clamp_(max=level).mul_(step).sub_(self.rising)
        return error.square_().mul_(self.importance).sum(dim=1)

    def _beyond(self, largest: Tensor) -> Tensor:
        """Squared errors of the weights that are larger than the largest values, `(rows, count)`."""
        places = torch.searchsorted(self.rising, largest, right=True)
        mass, moment, square = (part.gather(1, places) for part in (self.mass, self.moment, self.square))
        wide = largest.double()
        return square - 2.0 * wide * moment + wide.square() * mass


def _tails(values: Tensor) -> Tensor:
    """Sums of all values from each place to the last, and of none: `(rows, columns + 1)`."""
    return torch.nn.functional.pad(values.flip(1).cumsum(dim=1).flip(1), (0, 1))
