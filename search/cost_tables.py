"""Costs of many genomes at once: from terms over the few units that touch a kernel, or learned from trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from paretopress.search.factors import CostTerm
from paretopress.search.option_space import Genome, OptionSpace

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
LEVEL, NOISE = 3.0, 0.03   # prior deviation of the mean and error of learned costs, both relative to the first cost


class CostTables:
    """Sums of terms, looked up for all genomes and terms in one step.

    Attributes:
        names: Names of the costs, in order.
    """

    def __init__(self, space: OptionSpace, terms: Mapping[str, Sequence[CostTerm]]) -> None:
        """Args are the options, and per cost the terms whose sum it is."""
        self.names = tuple(terms)
        self._columns = [_Terms(space, one) for one in terms.values()]

    def at(self, rows: IntArray) -> Array:
        """Costs of genomes, shape (n, units) to (n, costs)."""
        if not self._columns:
            return np.zeros((len(rows), 0))
        return np.stack([column.at(rows) for column in self._columns], axis=1)


class _Terms:
    """The terms of one cost as one flat array; a product with strides says where each genome's entries are."""

    def __init__(self, space: OptionSpace, terms: Sequence[CostTerm]) -> None:
        position = {unit: index for index, unit in enumerate(space.units)}
        self._strides = np.zeros((len(space.units), len(terms)))
        sizes = [term.table.size for term in terms]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.float64) if terms else np.zeros(0)
        self._flat = np.concatenate([np.ravel(term.table) for term in terms]) if terms else np.zeros(0)
        for number, term in enumerate(terms):
            stride = 1
            for unit, size in zip(reversed(term.units), reversed(term.table.shape), strict=True):
                self._strides[position[unit], number] = stride
                stride *= size

    def at(self, rows: IntArray) -> Array:
        places = rows.astype(np.float64) @ self._strides + self._offsets   # below 2**53: exact
        found: Array = self._flat[places.astype(np.int64)].sum(axis=1)
        return found


class LearnedCosts:
    """Costs that no terms are known for: one ridge regression on the choices, updated by every trial."""

    def __init__(self, space: OptionSpace, costs: int) -> None:
        """Args are the options and the number of costs."""
        sizes = [len(choices) for choices in space.options]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) + 1
        self._covariance = np.eye(1 + sum(sizes))
        self._covariance[0, 0] = LEVEL**2
        self._weights = np.zeros((1 + sum(sizes), costs))
        self._mean: Array | None = None

    def add(self, genome: Genome, costs: Array) -> None:
        """Learn the costs of a genome, shape (costs,)."""
        if self._mean is None:
            self._mean = np.where(costs == 0.0, 1.0, np.abs(costs))   # all are brought to one scale
        places = np.append(0, np.array(genome, dtype=np.int64) + self._offsets)
        gain = self._covariance[:, places].sum(axis=1)
        spread = NOISE**2 + float(gain[places].sum())
        error = costs / self._mean - self._weights[places].sum(axis=0)
        self._weights += np.outer(gain, error / spread)
        self._covariance -= np.outer(gain, gain / spread)

    def at(self, rows: IntArray) -> Array:
        """Costs to be expected of genomes, shape (n, units) to (n, costs)."""
        found: Array = self._weights[0] + self._weights[rows + self._offsets].sum(axis=1)
        return found if self._mean is None else found * self._mean
