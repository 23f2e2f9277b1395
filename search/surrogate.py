"""A surrogate of the divergence, and what it proposes: policies that should lose less for no more than a given cost.

The logarithm of a candidate's divergence is nearly a sum over its choices: on DS-CNN, 600 trials predict the next 500
with a correlation of 0.91, 2,000 with 0.97. The losses of single choices added up, which the sensitivity table holds,
are one more feature, so that a few trials suffice where that sum is nearly right. Costs are predicted alike, to know
which of many changes are worth pricing exactly. All are fitted by ridge regression.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretopress.search.factors import CostTerm
from paretopress.search.option_space import Genome, OptionSpace
from paretopress.spaces.policy import Policy

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
FEWEST = 24              # trials that a first fit needs
MOST = 3000              # trials, the latest, that a fit uses
RIDGE = 1.0              # squared error of a logarithm that speaks against one unit of a coefficient
RIDGE_OF_THE_TABLE = 0.01
SMALLEST = 1e-6          # nats, bytes, ms: what is below counts as this
ROUNDS = 12              # of a descent: each takes the best of many changes
CHANGES = 384            # drawn in a round
LARGEST_CHANGE = 3       # units
PRICED = 12              # of the most promising changes of a round
INEXACT = 0.02           # by which the logarithm of a predicted cost may be off


@dataclass(frozen=True)
class Guide:
    """What proposals may know of the problem beside the trials.

    Attributes:
        costs: Predicted costs of a policy by name.
        limits: Budgets on costs, the limit by the name of the cost.
        losses: Loss of every option of a unit alone, from the sensitivity table.
        terms: Per cost the terms whose sum it is, up to what several kernels do to each other.
        stages: The stage of the network that each unit belongs to.
        worst_value: The metric's value from which on a policy is worth nothing, because a budget says so; None: a
            fifth of a share, or of the dense model's value, worse than that.
        hopeless: What a policy may lose by the table before it is hopeless, in the table's unit.
    """

    costs: Callable[[Policy], Mapping[str, float]]
    limits: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, Sequence[float]] = field(default_factory=dict)
    terms: Mapping[str, Sequence[CostTerm]] = field(default_factory=dict)
    stages: Mapping[str, int] = field(default_factory=dict)
    worst_value: float | None = None
    hopeless: float = 1.0

    @classmethod
    def empty(cls) -> Guide:
        """A guide that knows nothing."""
        return cls(no_costs)


def no_costs(_policy: Policy) -> dict[str, float]:
    """Costs of a policy where none are known."""
    return {}


class Surrogate:
    """Predicts logarithms of a genome's divergence and costs from the trials so far."""

    def __init__(self, space: OptionSpace, losses: Mapping[str, Sequence[float]], names: Sequence[str]) -> None:
        """Args are the options, the table's losses, and the names of the costs."""
        sizes = [len(choices) for choices in space.options]
        self.names = tuple(names)
        self._offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self._features = sum(sizes) + 1
        rows = [losses.get(unit) or [0.0] * size for unit, size in zip(space.units, sizes, strict=True)]
        self._losses = np.array([loss for row in rows for loss in row], dtype=np.float64)
        self._genomes: list[Genome] = []
        self._values: list[list[float]] = []   # of the divergence, NaN where it is unknown, and of the costs
        self._known = 0
        self._fits: tuple[_Fit, _Fit] | None = None

    @property
    def informed(self) -> bool:
        """Whether there are enough trials for a fit."""
        return self._known >= FEWEST

    def add(self, genome: Genome, values: Mapping[str, float]) -> None:
        """Take note of a trial: its costs, and its `divergence` where that is known."""
        found = [values.get(name, math.nan) for name in ("divergence", *self.names)]
        if all(math.isfinite(cost) for cost in found[1:]):
            self._genomes.append(genome)
            self._values.append([math.log(max(one, SMALLEST)) if math.isfinite(one) else math.nan for one in found])
            self._known += math.isfinite(found[0])
            self._fits = None

    def divergences(self, genomes: ArrayLike) -> Array:
        """Logarithms of the divergences to be expected of genomes, shape `(n, units)` to `(n,)`."""
        return self._at(0, genomes)[:, 0]

    def costs(self, genomes: ArrayLike) -> Array:
        """Logarithms of the costs to be expected of genomes, shape `(n, units)` to `(n, costs)`."""
        return self._at(1, genomes)

    def _at(self, fit: int, genomes: ArrayLike) -> Array:
        places = np.asarray(genomes, dtype=np.int64) + self._offsets
        return self._fitted()[fit].at(places, np.log(self._losses[places].sum(axis=1) + SMALLEST))

    def _fitted(self) -> tuple[_Fit, _Fit]:
        if self._fits is None:
            rows, values = self._rows(self._genomes[-MOST:]), np.array(self._values[-MOST:])
            known = np.isfinite(values[:, 0])
            self._fits = _Fit.of(rows[known], values[known, :1]), _Fit.of(rows, values[:, 1:])
        return self._fits

    def _rows(self, genomes: Sequence[Genome]) -> Array:
        """One column per option, 1 where it is chosen, and the logarithm of the sum of the table's losses."""
        places = np.asarray(genomes, dtype=np.int64).reshape(len(genomes), len(self._offsets)) + self._offsets
        rows = np.zeros((len(genomes), self._features))
        np.put_along_axis(rows, places, 1.0, axis=1)
        rows[:, -1] = np.log(self._losses[places].sum(axis=1) + SMALLEST)
        return rows


@dataclass(frozen=True)
class _Fit:
    """A ridge regression: means of the features and of the values, and coefficients `(features, values)`."""

    centre: Array
    mean: Array
    weights: Array

    @classmethod
    def of(cls, rows: Array, values: Array) -> _Fit:
        centre, mean = rows.mean(axis=0), values.mean(axis=0)
        rows, values = rows - centre, values - mean
        penalties = np.full(rows.shape[1], RIDGE)
        penalties[-1] = RIDGE_OF_THE_TABLE
        if len(rows) >= rows.shape[1]:
            weights = np.asarray(np.linalg.solve(rows.T @ rows + np.diag(penalties), rows.T @ values), np.float64)
        else:   # the same solution from the smaller one of the two systems
            scaled = rows / penalties
            weights = np.asarray(scaled.T @ np.linalg.solve(rows @ scaled.T + np.eye(len(rows)), values), np.float64)
        return cls(centre, mean, weights)

    def at(self, places: IntArray, last: Array) -> Array:
        """Values of rows that are 1 at some places, shape `(n, units)`, and end in `last`, shape `(n,)`."""
        found: Array = self.mean - self.centre @ self.weights + np.multiply.outer(last, self.weights[-1])
        found += self.weights[places].sum(axis=1)
        return found


def descend(
    surrogate: Surrogate,
    space: OptionSpace,
    start: Genome,
    price: Callable[[Genome], Sequence[float]],
    limits: Sequence[float],
    seen: Collection[Genome],
    rng: random.Random,
) -> Genome | None:
    """Change a few units at a time as long as the predicted divergence falls and the costs stay within limits.

    Args:
        surrogate: Predicts divergences and costs.
        space: The options.
        start: Where to start.
        price: Costs of a genome, in the order of the surrogate's names.
        limits: What each cost may be at most; infinite for no limit.
        seen: What was evaluated already.
        rng: Where the changes come from.

    Returns:
        The unseen genome within the limits of the lowest predicted divergence that was met; None if there was none.
    """
    generator = np.random.default_rng(rng.getrandbits(64))
    current = np.array(start, dtype=np.int64)
    value, costs = float(surrogate.divergences(current[None])[0]), price(start)
    best: tuple[float, Genome] | None = None
    for _ in range(ROUNDS):
        rows, values = _promising(surrogate, space, current, costs, limits, generator)
        for row, predicted in zip(rows, values, strict=True):
            genome = tuple(row.tolist())
            found = price(genome)
            if not all(cost <= limit and math.isfinite(cost) for cost, limit in zip(found, limits, strict=True)):
                continue   # a device that cannot execute it has no finite time for it
            if genome not in seen and (best is None or predicted < best[0]):
                best = (predicted, genome)
            break
        else:
            break
        if predicted >= value:
            break
        current, value, costs = row, predicted, found
    return None if best is None else best[1]


def _promising(
    surrogate: Surrogate, space: OptionSpace, current: IntArray, costs: Sequence[float], limits: Sequence[float],
    generator: np.random.Generator,
) -> tuple[IntArray, list[float]]:
    """Changes of a genome that should stay within limits, and their predicted divergences, the lowest first."""
    sizes = np.array([len(choices) for choices in space.options])
    rows = np.tile(current, (CHANGES, 1))
    for change in range(LARGEST_CHANGE):
        changed = np.flatnonzero(generator.integers(LARGEST_CHANGE, size=CHANGES) >= change)
        units = generator.integers(len(sizes), size=len(changed))
        rows[changed, units] = generator.integers(sizes[units])
    rows = _distinct(space.canonical_rows(rows))
    rows = rows[(rows != current).any(axis=1)]
    # How costs change is predicted better than what they are: those of the genome itself are known.
    expected = np.log(np.maximum(costs, SMALLEST)) + surrogate.costs(rows) - surrogate.costs(current[None])
    rows = rows[(expected <= np.log(np.maximum(limits, SMALLEST)) + INEXACT).all(axis=1)]
    values = surrogate.divergences(rows)
    order = np.argsort(values, kind="stable")[:PRICED]
    return rows[order], values[order].tolist()


def _distinct(rows: IntArray) -> IntArray:
    """Return the first of all equal rows, in their order."""
    narrow = np.ascontiguousarray(rows, dtype=np.int32)
    _, first = np.unique(narrow.view(np.dtype((np.void, narrow.itemsize * rows.shape[1]))), return_index=True)
    return rows[np.sort(first)]
