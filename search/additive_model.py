"""An online model of the loss of a policy: the additive table, and what the trials so far say it gets wrong.

The divergence of a policy is nearly the sum S of the divergences L of its single choices. Its logarithm is modelled as

    a + b log S + sum_k w_k L_k / S + sum_ij v_ij sqrt(L_i L_j) / S,

with one weight for each unit and for each stage and method, which reweight the table to first order, and one for
each pair of stages and of methods: errors that add up coherently grow with the product of their magnitudes, and a
magnitude is the root of a divergence. The weights have a normal-inverse-gamma prior around the plain table (b = 1, all
else 0), so that every trial updates their posterior in closed form (Bishop 2006, "Pattern Recognition and Machine
Learning", section 3.3; one rank-one update each) and every prediction has an interval.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from paretopress.search.option_space import Genome, OptionSpace

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
SMALLEST = 1e-4         # nats: what loses less is as good as dense
NOISE = 0.3             # of a logarithm: what is expected of the error before there are trials
CONFIDENCE = 4.0        # trials that this expectation counts for
LEVEL, SLOPE = 1.0, 0.2       # prior standard deviations of a and b
CELL, UNIT, PAIR = 1.0, 0.5, 0.7   # and of the weights of stages and methods, of units, of pairs
LEAST_WEIGHT, MOST_WEIGHT = 0.1, 10.0   # of a unit's losses in a reweighted table


def method_of(unit: str) -> str:
    """What a unit decides: `channels`, `rank`, `weights` or `sparsity`."""
    return unit.rpartition("/")[2]


class AdditiveModel:
    """Predicts the logarithm of a genome's loss, with an error, from the table and the trials so far.

    Attributes:
        trials: How many were learnt.
        smallest: A loss that is as good as none; set before the first trial.
    """

    def __init__(
        self, space: OptionSpace, losses: Mapping[str, Sequence[float]], stages: Mapping[str, int] | None = None
    ) -> None:
        """Start from the table.

        Args:
            space: The options.
            losses: Loss of every option of a unit alone. Units without any, and all where it is empty, are taken to
                lose the more the stronger their options are.
            stages: The stage of each unit, 0 where it is left out.
        """
        sizes = [len(choices) for choices in space.options]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        rows = [losses.get(unit) or _by_strength(size) for unit, size in zip(space.units, sizes, strict=True)]
        self._losses = np.array([max(loss, 0.0) for row in rows for loss in row], dtype=np.float64)
        stage = [(stages or {}).get(unit, 0) for unit in space.units]
        method = [method_of(unit) for unit in space.units]
        self._cells = _members(list(zip(stage, method, strict=True)))
        self._stages, self._methods = _members(stage), _members(method)
        self._pairs = [
            (part, *pair) for part, members in enumerate((self._stages, self._methods))
            for pair in itertools.combinations(range(members.shape[1]), 2)
        ]
        deviations = [LEVEL, SLOPE, *[CELL] * self._cells.shape[1], *[UNIT] * len(sizes), *[PAIR] * len(self._pairs)]
        self._weights = np.zeros(len(deviations))
        self._weights[1] = 1.0
        self._covariance = np.diag((np.array(deviations) / NOISE) ** 2)   # times the variance of the error
        self._shape, self._rate = CONFIDENCE / 2.0, CONFIDENCE / 2.0 * NOISE**2
        self.trials = 0
        self.smallest = SMALLEST

    @property
    def error(self) -> float:
        """Standard deviation of what no weight explains, of the logarithm of the loss."""
        return math.sqrt(self._rate / self._shape)

    def sums(self, rows: IntArray) -> Array:
        """The table's losses added up, shape (n,)."""
        total: Array = self._losses[rows + self._offsets].sum(axis=1)
        return total

    def add(self, genome: Genome, loss: float) -> None:
        """Learn the true loss of a genome, in the table's unit."""
        row = self._features(np.array([genome], dtype=np.int64))[0]
        error = math.log(max(loss, self.smallest)) - float(row @ self._weights)
        gain = self._covariance @ row
        spread = 1.0 + float(row @ gain)
        self._weights += gain * (error / spread)
        self._covariance -= np.outer(gain, gain / spread)
        self._shape += 0.5
        self._rate += 0.5 * error * error / spread
        self.trials += 1

    def predict(self, rows: IntArray) -> tuple[Array, Array]:
        """Logarithms of the expected losses of genomes, shape (n, units), and their standard errors: (n,) each."""
        features = self._features(rows)
        spread = np.einsum("np,np->n", features @ self._covariance, features)
        return features @ self._weights, self.error * np.sqrt(1.0 + np.maximum(spread, 0.0))

    def interval(self, rows: IntArray, level: float = 0.9) -> tuple[Array, Array]:
        """Losses between which each genome's true loss lies with probability `level`, shape (n,) each."""
        means, errors = self.predict(rows)
        reach = float(stdtrit(2.0 * self._shape, 0.5 + level / 2.0)) * errors
        return np.exp(means - reach), np.exp(means + reach)

    def multipliers(self, generator: np.random.Generator | None = None) -> Array:
        """By what each unit's losses have to be multiplied to add up as the trials say, shape (units,).

        Args:
            generator: Draws weights from their posterior (Thompson 1933); None takes their means.
        """
        cells, units = self._cells.shape[1], self._cells.shape[0]
        weights = self._weights[1 : 2 + cells + units].copy()
        if generator is not None:
            block = self._covariance[1 : 2 + cells + units, 1 : 2 + cells + units]
            values, vectors = np.linalg.eigh(block)
            scale = self.error * np.sqrt(np.maximum(values, 0.0))
            weights += vectors @ (scale * generator.standard_normal(len(scale)))
        found: Array = weights[0] + self._cells @ weights[1 : 1 + cells] + weights[1 + cells :]
        return np.clip(found, LEAST_WEIGHT, MOST_WEIGHT)

    def _features(self, rows: IntArray) -> Array:
        losses = self._losses[rows + self._offsets]
        total = losses.sum(axis=1, keepdims=True) + self.smallest
        shares = losses / total
        magnitudes = [np.sqrt(shares @ members) for members in (self._stages, self._methods)]
        pairs = [magnitudes[part][:, one] * magnitudes[part][:, other] for part, one, other in self._pairs]
        columns = [np.ones((len(rows), 1)), np.log(total), shares @ self._cells, shares]
        if pairs:
            columns.append(np.stack(pairs, axis=1))
        return np.concatenate(columns, axis=1)


def _by_strength(size: int) -> list[float]:
    """Losses of options in order of strength where nothing else is known."""
    return [0.1 * (option / (size - 1)) ** 2 if size > 1 else 0.0 for option in range(size)]


def _members(labels: Sequence[object]) -> Array:
    """One row per unit, one column per distinct label, 1 where the unit has it."""
    distinct = list(dict.fromkeys(labels))
    found = np.zeros((len(labels), len(distinct)))
    for unit, label in enumerate(labels):
        found[unit, distinct.index(label)] = 1.0
    return found
