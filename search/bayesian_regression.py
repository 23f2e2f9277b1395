"""Bayesian linear regression: what a few measured rows say of all others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def regress(
    features: Array, known: Sequence[int], found: Array, weight: float, deviation: float
) -> tuple[Array, Array]:
    """What is expected of every row, given what was found of a few: a level and one weight for every feature.

    Weights are normal around 0, what they do not explain is normal too (Bishop, "Pattern Recognition and Machine
    Learning", 2006, section 3.3, by the kernel trick). The level is the mean of what was found.

    Args:
        features: `(n, f)`.
        known: Rows that something is known of, at least one.
        found: Of these rows, in their order.
        weight: Prior standard deviation of a weight.
        deviation: Standard deviation of what the features do not explain.

    Returns:
        Expected values and their standard errors, `(n,)` each; known rows as they were found, with an error of 0.
    """
    rows, places = (features - features[known].mean(axis=0)) * weight, np.asarray(known)
    level = float(np.mean(found))
    gram = rows[places] @ rows[places].T + deviation**2 * np.eye(len(places))
    outer = rows @ rows[places].T
    expected = level + outer @ np.linalg.solve(gram, found - level)
    variances = np.square(rows).sum(axis=1) - np.einsum("ij,ji->i", outer, np.linalg.solve(gram, outer.T))
    errors = np.sqrt(deviation**2 * (1.0 + 1.0 / len(places)) + np.maximum(variances, 0.0))
    expected[places], errors[places] = found, 0.0
    return expected, errors
