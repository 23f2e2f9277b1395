"""Rank correlations of predictions with truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ranks(values: Sequence[float]) -> np.ndarray:
    """Return average ranks, ties sharing the mean of their places."""
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2.0)[inverse]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, None for fewer than 3 pairs or a constant side."""
    if len(first) < 3:
        return None
    a, b = ranks(first), ranks(second)
    if a.std() == 0.0 or b.std() == 0.0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b, None for fewer than 3 pairs or a constant side (Kendall, Biometrika 1945)."""
    if len(first) < 3:
        return None
    upper = np.triu_indices(len(first), k=1)
    a = np.sign(np.subtract.outer(np.asarray(first, float), np.asarray(first, float)))[upper]
    b = np.sign(np.subtract.outer(np.asarray(second, float), np.asarray(second, float)))[upper]
    scale = np.sqrt((a != 0).sum() * (b != 0).sum())
    return None if scale == 0.0 else float((a * b).sum() / scale)
