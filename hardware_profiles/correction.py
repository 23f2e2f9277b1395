"""Boosted regression trees on the log residual of the roofline, in numpy and stored as plain numbers.

Friedman, "Greedy function approximation: a gradient boosting machine" (2001), squared loss, with complete
trees so that evaluation is a fixed number of gathers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretopress.hardware_profiles.features import Alignment, Columns

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Trees:
    """An ensemble of complete trees of one depth.

    Attributes:
        depth: Levels of splits.
        features: Split features, shape (trees, 2**depth - 1), heap order.
        thresholds: A value <= threshold goes left, same shape.
        leaves: Log residuals, shape (trees, 2**depth), shrinkage included.
        lower: Smallest training value of each input, shape (inputs,): inputs are clamped into
            [lower, upper], so that outside the measured range the roofline alone extrapolates.
        upper: Largest training value of each input.
    """

    depth: int
    features: Indices
    thresholds: Array
    leaves: Array
    lower: Array
    upper: Array

    def predict(self, inputs: Array) -> Array:
        """Return the log residuals, shape (n,), of inputs of shape (n, inputs)."""
        clamped = np.clip(inputs, self.lower, self.upper)
        total = np.zeros(len(inputs))
        rows = np.arange(len(inputs))
        for features, thresholds, leaves in zip(self.features, self.thresholds, self.leaves, strict=True):
            node = np.zeros(len(inputs), dtype=np.int64)
            for _ in range(self.depth):
                node = 2 * node + 1 + (clamped[rows, features[node]] > thresholds[node])
            total += leaves[node - (2**self.depth - 1)]
        return total


INPUTS = 10


def shape_inputs(c: Columns, a: Alignment) -> Array:
    """What the trees split on, shape (n, 10): sizes on a logarithmic scale and how channels fill their blocks."""
    fill_in = c.cin / (np.ceil(np.maximum(c.cin, 1) / a.input_channels) * a.input_channels)
    blocks = np.ceil(np.maximum(c.cout, 1) / a.output_channels) * a.output_channels
    return np.stack([
        np.log2(np.maximum(c.cin, 1)), np.log2(np.maximum(c.cout, 1)), np.log2(np.maximum(c.pixels, 1)),
        np.log2(np.maximum(c.area, 1)), c.strided, fill_in, c.cout / blocks,
        (c.cin % a.odd != 0).astype(np.float64), (c.cout % a.odd != 0).astype(np.float64),
        np.log2(np.maximum(c.lines, 1)),
    ], axis=1)


def fit_trees(inputs: Array, target: Array, *, trees: int = 60, depth: int = 3, rate: float = 0.1,
              leaf: int = 4) -> Trees:
    """Fit an ensemble by gradient boosting.

    Args:
        inputs: Shape (n, inputs).
        target: Log residuals, shape (n,).
        trees: Number of trees.
        depth: Depth of every tree.
        rate: Shrinkage.
        leaf: Fewest rows in a leaf.
    """
    splits = 2**depth - 1
    features = np.zeros((trees, splits), dtype=np.int64)
    thresholds = np.full((trees, splits), np.inf)
    leaves = np.zeros((trees, splits + 1))
    residual = target.astype(np.float64).copy()
    order = np.argsort(inputs, axis=0, kind="stable")
    for index in range(trees):
        _grow(inputs, residual, order, features[index], thresholds[index], leaves[index], depth, leaf)
        leaves[index] *= rate
        grown = Trees(depth, features[index:index + 1], thresholds[index:index + 1], leaves[index:index + 1],
                      inputs.min(axis=0), inputs.max(axis=0))
        residual -= grown.predict(inputs)
    return Trees(depth, features, np.minimum(thresholds, 1e9), leaves, inputs.min(axis=0), inputs.max(axis=0))


def _grow(inputs: Array, residual: Array, order: Indices, features: Indices, thresholds: Array, leaves: Array,
          depth: int, leaf: int) -> None:
    """Fill one tree level by level, choosing splits that reduce the squared error most."""
    member = np.zeros(len(inputs), dtype=np.int64)
    first_leaf = 2**depth - 1
    for node in range(first_leaf):
        inside = member == node
        split = _best_split(inputs, residual, order, inside, leaf)
        if split is not None:
            features[node], thresholds[node] = split
        right = inputs[:, features[node]] > thresholds[node]
        member = np.where(inside, 2 * node + 1 + right, member)
    for index in range(first_leaf + 1):
        inside = member == first_leaf + index
        # Two pseudo-rows of zero residual pull small leaves towards the roofline.
        leaves[index] = residual[inside].sum() / (inside.sum() + 2)


def _best_split(inputs: Array, residual: Array, order: Indices, inside: NDArray[np.bool_],
                leaf: int) -> tuple[int, float] | None:
    count = int(inside.sum())
    if count < 2 * leaf:
        return None
    best, found = 1e-9, None
    sizes = np.arange(1, count)
    for feature in range(inputs.shape[1]):
        rows = order[:, feature][inside[order[:, feature]]]
        values = inputs[rows, feature]
        left = np.cumsum(residual[rows])
        total = left[-1]
        gain = left[:-1]**2 / sizes + (total - left[:-1])**2 / (count - sizes) - total**2 / count
        gain[(values[1:] <= values[:-1]) | (sizes < leaf) | (count - sizes < leaf)] = -np.inf
        position = int(np.argmax(gain))
        if gain[position] > best:
            best, found = float(gain[position]), (feature, float((values[position] + values[position + 1]) / 2))
    return found


def to_text(array: NDArray[np.float64] | Indices) -> str:
    """Numbers separated by spaces, five significant digits."""
    return " ".join(f"{value:.5g}" for value in array.ravel())


def from_text(text: str) -> Array:
    """The inverse of `to_text`, flat. Raises ValueError for anything but finite numbers."""
    result = np.array([float(part) for part in text.split()], dtype=np.float64)
    if not np.isfinite(result).all():
        raise ValueError("numbers must be finite")
    return result
