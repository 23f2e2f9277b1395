"""Expected hypervolume improvement of candidates whose costs are known and whose loss is not.

With costs c known and the loss Y uncertain, the improvement is an integral over the box of costs: at every point u that
c reaches (c <= u), the front so far has a least loss h(u), and Y improves on it by max(h(u) - Y, 0). Its expectation is
the expected improvement of Jones, Schonlau and Welch (1998) at h(u), so that

    EHVI(c, Y) = integral over u >= c of E[max(h(u) - Y, 0)] du

(compare Emmerich et al. 2006; here all objectives but one are known). The integral is a mean over fixed Sobol points,
and h is kept up to date at each of them: neither the front nor its size matters, and a proposal takes the same time
after ten trials as after ten thousand.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import qmc

Array = NDArray[np.float64]
POINTS_LOG2 = 9
SHORTLIST = 24   # candidates whose improvement is integrated exactly; the others promise less even with luck


class Attained:
    """The least loss so far at points of the box of costs."""

    def __init__(self, low: Array, high: Array, worst_loss: float) -> None:
        """Make a box.

        Args:
            low: Lowest costs, shape (m,).
            high: Of the reference, shape (m,).
            worst_loss: Of the reference.
        """
        points = qmc.Sobol(max(1, len(low)), scramble=False).random_base2(POINTS_LOG2) + 0.5 / 2**POINTS_LOG2
        self._points = (low + points[:, : len(low)] * (high - low)) if len(low) else np.zeros((1, 0))
        self._least = np.full(len(self._points), worst_loss)

    def add(self, costs: Array, loss: float) -> None:
        """Take note of a feasible point: its costs, shape (m,), and its loss."""
        reached = (costs <= self._points).all(axis=1)
        self._least[reached] = np.minimum(self._least[reached], loss)

    def copy(self) -> Attained:
        """A box that can learn what is only expected, without changing this one."""
        other = object.__new__(Attained)
        other._points, other._least = self._points, self._least.copy()
        return other

    def improvements(self, costs: Array, losses: Array, errors: Array) -> Array:
        """Expected improvements, as a share of the box of costs times a loss, shape (n,).

        Args:
            costs: Shape (n, m).
            losses: Expected losses, shape (n,).
            errors: Their standard errors, shape (n,), above 0.

        Returns:
            Minus infinity for all but the `SHORTLIST` candidates that promise most if they lose one error less.
        """
        reached = np.ones((len(costs), len(self._points)), dtype=bool)
        for cost, points in zip(costs.T, self._points.T, strict=True):
            reached &= cost[:, None] <= points
        hopes = np.maximum(self._least - (losses - errors)[:, None], 0.0)
        hopes = np.einsum("np,np->n", hopes, reached)
        order = np.argsort(-hopes, kind="stable")[:SHORTLIST]
        rows, points = np.nonzero(reached[order])
        chosen = order[rows]
        gaps = self._least[points] - losses[chosen]
        scaled = gaps / errors[chosen]
        density = np.exp(-0.5 * scaled * scaled) / math.sqrt(2.0 * math.pi)
        expected = gaps * ndtr(scaled) + errors[chosen] * density
        found = np.full(len(costs), -math.inf)
        found[order] = np.bincount(rows, weights=expected, minlength=len(order)) / len(self._points)
        return found
