"""How far predictions are from measurements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Errors of predictions on rows that the fit has not seen.

    Attributes:
        n: Rows.
        mape: Mean of |predicted / measured - 1|.
        within10: Share of rows within 10%.
        spearman: Rank correlation.
        low: 5% quantile of measured / predicted.
        high: 95% quantile.
        within5: Share of rows within 5%.
        bias: Mean of predicted / measured - 1.
    """

    n: int
    mape: float
    within10: float
    spearman: float
    low: float
    high: float
    within5: float
    bias: float


def accuracy(predicted: Array, measured: Array) -> Accuracy:
    """Compare predictions with measurements, both of shape (n,) with n >= 1."""
    errors = np.abs(predicted / measured - 1)
    ratio = measured / predicted
    return Accuracy(
        len(measured),
        float(errors.mean()),
        float((errors <= 0.10).mean()),
        spearman(predicted, measured),
        float(np.quantile(ratio, 0.05)),
        float(np.quantile(ratio, 0.95)),
        float((errors <= 0.05).mean()),
        float((predicted / measured - 1).mean()),
    )


def spearman(left: Array, right: Array) -> float:
    """Spearman's rank correlation with average ranks for ties; 0 where either side is constant."""
    a, b = _ranks(left), _ranks(right)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]
