"""Non-negative least squares: coefficients of a cost model are times, so none may be negative."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def non_negative_least_squares(matrix: Array, target: Array, max_iterations: int | None = None) -> Array:
    """Minimise `||matrix @ x - target||` subject to `x >= 0`.

    The active-set method of Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23. Columns
    are scaled to unit length first, so that features in bytes and in counts have comparable gradients.

    Args:
        matrix: Shape (rows, features), finite.
        target: Shape (rows,), finite.
        max_iterations: Bound on the outer steps, default 10 per feature.

    Returns:
        Shape (features,), every entry >= 0. All-zero columns get 0.
    """
    norms = np.linalg.norm(matrix, axis=0)
    usable = norms > 0
    scaled = np.divide(matrix, norms, out=np.zeros_like(matrix, dtype=np.float64), where=usable)
    count = scaled.shape[1]
    solution = np.zeros(count)
    passive = np.zeros(count, dtype=bool)
    tolerance = 1e-10 * max(1.0, float(np.linalg.norm(target)))
    for _ in range(max_iterations or 10 * count):
        gradient = scaled.T @ (target - scaled @ solution)
        gradient[passive | ~usable] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= tolerance:
            break
        passive[best] = True
        solution = _feasible_step(scaled, target, solution, passive)
    result: Array = np.divide(solution, norms, out=np.zeros(count), where=usable)
    return result


def _feasible_step(matrix: Array, target: Array, solution: Array, passive: NDArray[np.bool_]) -> Array:
    """Move towards the unconstrained optimum of the passive set, dropping what would become negative."""
    while True:
        proposal = np.zeros_like(solution)
        proposal[passive] = np.linalg.lstsq(matrix[:, passive], target, rcond=None)[0]
        blocking = passive & (proposal <= 0)
        if not blocking.any():
            return proposal
        ratios = solution[blocking] / np.maximum(solution[blocking] - proposal[blocking], 1e-300)
        solution = solution + float(ratios.min()) * (proposal - solution)
        leaving = passive & (solution <= 1e-14)
        if not leaving.any():
            leaving = blocking
        passive &= ~leaving
        solution = np.where(passive, solution, 0.0)
        if not passive.any():
            return solution
