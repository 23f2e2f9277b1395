"""Boosted regression trees on the relative residual of the roofline, in numpy and stored as plain numbers.

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
        leaves: Relative residuals, shape (trees, 2**depth), shrinkage included.
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

    def with_more(self, other: Trees) -> Trees:
        """Return the trees of two ensembles of one depth that saw the same inputs."""
        return Trees(
            self.depth,
            np.concatenate([self.features, other.features]),
            np.concatenate([self.thresholds, other.thresholds]),
            np.concatenate([self.leaves, other.leaves]),
            np.minimum(self.lower, other.lower),
            np.maximum(self.upper, other.upper),
        )

    def predict(self, inputs: Array) -> Array:
        """Return the relative residuals, shape (n,), of inputs of shape (n, inputs)."""
        clamped = np.clip(inputs, self.lower, self.upper)
        total = np.zeros(len(inputs))
        rows = np.arange(len(inputs))
        for features, thresholds, leaves in zip(self.features, self.thresholds, self.leaves, strict=True):
            node = np.zeros(len(inputs), dtype=np.int64)
            for _ in range(self.depth):
                node = 2 * node + 1 + (clamped[rows, features[node]] > thresholds[node])
            total += leaves[node - (2**self.depth - 1)]
        return total


INPUTS = 12


def shape_inputs(c: Columns, a: Alignment) -> Array:
    """What the trees split on, shape (n, 12): logarithms of sizes, how channels fill their blocks."""
    fill_in = c.cin / (np.ceil(np.maximum(c.cin, 1) / a.input_channels) * a.input_channels)
    blocks = np.ceil(np.maximum(c.cout, 1) / a.output_channels) * a.output_channels
    return np.stack(
        [
            np.log2(np.maximum(c.cin, 1)),
            np.log2(np.maximum(c.cout, 1)),
            np.log2(np.maximum(c.pixels, 1)),
            np.log2(np.maximum(c.area, 1)),
            c.strided,
            fill_in,
            c.cout / blocks,
            (c.cin % a.odd != 0).astype(np.float64),
            (c.cout % a.odd != 0).astype(np.float64),
            np.log2(np.maximum(c.lines, 1)),
            c.cout % 8,
            c.fused,
        ],
        axis=1,
    )


def fit_trees(
    inputs: Array,
    target: Array,
    weights: Array,
    *,
    trees: int = 80,
    depth: int = 4,
    rate: float = 0.1,
    leaf: float = 6.0,
) -> Trees:
    """Fit an ensemble by gradient boosting.

    Args:
        inputs: Shape (n, inputs).
        target: Relative residuals, shape (n,).
        weights: How much each row counts, shape (n,), at most 1.
        trees: Number of trees.
        depth: Depth of every tree.
        rate: Shrinkage.
        leaf: Smallest total weight of a leaf.
    """
    splits = 2**depth - 1
    features = np.zeros((trees, splits), dtype=np.int64)
    thresholds = np.full((trees, splits), _NEVER)
    leaves = np.zeros((trees, splits + 1))
    residual = target.astype(np.float64).copy()
    order = np.argsort(inputs, axis=0, kind="stable")
    bounds = inputs.min(axis=0), inputs.max(axis=0)
    for index in range(trees):
        grower = _Grower(inputs, residual, weights, order, leaf)
        grower.grow(features[index], thresholds[index], leaves[index], depth)
        leaves[index] *= rate
        one = slice(index, index + 1)
        residual -= Trees(depth, features[one], thresholds[one], leaves[one], *bounds).predict(inputs)
    return Trees(depth, features, thresholds, leaves, *bounds)


_NEVER = 1e9  # a threshold that sends every row to the left
# Rows of zero residual that every leaf holds besides its own: they pull small leaves towards the roofline.
_PULL = 2.0


@dataclass(frozen=True, slots=True)
class _Grower:
    """Grows one tree on the current residuals."""

    inputs: Array
    residual: Array
    weights: Array
    order: Indices
    leaf: float

    def grow(self, features: Indices, thresholds: Array, leaves: Array, depth: int) -> None:
        """Fill one tree level by level, choosing splits that reduce the squared error most."""
        member = np.zeros(len(self.inputs), dtype=np.int64)
        first_leaf = 2**depth - 1
        for node in range(first_leaf):
            inside = member == node
            split = self._best_split(inside)
            if split is not None:
                features[node], thresholds[node] = split
            right = self.inputs[:, features[node]] > thresholds[node]
            member = np.where(inside, 2 * node + 1 + right, member)
        weighted = self.weights * self.residual
        for index in range(first_leaf + 1):
            inside = member == first_leaf + index
            leaves[index] = weighted[inside].sum() / (self.weights[inside].sum() + _PULL)

    def _best_split(self, inside: NDArray[np.bool_]) -> tuple[int, float] | None:
        if self.weights[inside].sum() < 2 * self.leaf:
            return None
        best, found = 1e-9, None
        for feature in range(self.inputs.shape[1]):
            rows = self.order[:, feature][inside[self.order[:, feature]]]
            values, weights = self.inputs[rows, feature], self.weights[rows]
            sums, sizes = np.cumsum(weights * self.residual[rows]), np.cumsum(weights)
            left, count = sums[:-1], sizes[:-1]
            total, whole = sums[-1], sizes[-1]
            rest = np.maximum(whole - count, 1e-12)
            gain = left**2 / np.maximum(count, 1e-12) + (total - left) ** 2 / rest - total**2 / whole
            gain[(values[1:] <= values[:-1]) | (count < self.leaf) | (rest < self.leaf)] = -np.inf
            position = int(np.argmax(gain)) if len(gain) else -1
            if position >= 0 and gain[position] > best:
                best = float(gain[position])
                found = feature, float((values[position] + values[position + 1]) / 2)
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
