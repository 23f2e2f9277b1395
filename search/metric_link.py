"""From the logarithm of a divergence to the loss of the metric: a monotone curve through the trials so far."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

Array = NDArray[np.float64]
MOST = 512        # pairs, the latest, that the curve goes through
GROWTH = 1.1      # the curve is drawn anew when there are so many times as many pairs
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
SMALLEST_ERROR = 1e-9


class MetricLink:
    """Isotonic regression of the loss of the metric on the logarithm of the divergence."""

    def __init__(self, worst: float) -> None:
        """`worst` is the loss of the metric that a divergence of 1 nat stands for until there are trials."""
        self._pairs: list[tuple[float, float]] = []
        self._drawn_at = 0
        self._logs = np.log([1e-4, 1e-2, 1e-1, 1.0])
        self._losses = worst * np.array([0.0, 0.05, 0.3, 1.0])
        self._noise = 0.02 * worst

    def add(self, log_divergence: float, loss: float) -> None:
        """Learn a pair."""
        self._pairs.append((log_divergence, loss))
        if len(self._pairs) >= max(8, GROWTH * self._drawn_at):
            self._drawn_at = len(self._pairs)
            self._draw()
        if len(self._pairs) > 2 * MOST:
            del self._pairs[:-MOST]
            self._drawn_at = min(self._drawn_at, MOST)

    def at(self, means: Array, errors: Array) -> tuple[Array, Array]:
        """Mean losses of the metric and their standard errors, for normal logarithms of the divergence."""
        nodes = np.interp(means[:, None] + errors[:, None] * NODES, self._logs, self._losses)
        weights = WEIGHTS / WEIGHTS.sum()
        found = nodes @ weights
        variance = np.maximum((nodes * nodes) @ weights - found * found, 0.0) + self._noise**2
        return found, np.maximum(np.sqrt(variance), SMALLEST_ERROR)

    def _draw(self) -> None:
        pairs = np.array(sorted(self._pairs[-MOST:]))
        fitted = isotonic_regression(pairs[:, 1]).x
        # The mean of a block of equal values stands in its middle: steps would hide that less divergence is better.
        logs, losses = [], []
        for level in np.unique(fitted):
            block = fitted == level
            logs.append(float(pairs[block, 0].mean()))
            losses.append(float(level))
        self._logs, self._losses = np.array(logs), np.array(losses)
        self._noise = float(np.std(pairs[:, 1] - np.interp(pairs[:, 0], self._logs, self._losses)))
