"""The incumbents: the feasible front so far, or the least violating policies while nothing is feasible."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from paretopress.search.option_space import Genome
from paretopress.search.records import TrialRecord, TrialState

_KEPT_INFEASIBLE = 10
_KEPT_CLOSEST = 8


class ViolationScale:
    """Brings violations of different units (ms, bytes) to one scale, so that they can be added.

    A constraint's scale is its first value that is not zero: with dense evaluated first, the distance of
    the dense model from the budget.
    """

    def __init__(self) -> None:
        self._scales: dict[str, float] = {}

    def scaled(self, constraints: Mapping[str, float]) -> dict[str, float]:
        """Return the violations divided by their scales; signs stay as they are."""
        for name, value in constraints.items():
            if value:
                self._scales.setdefault(name, abs(value))
        return {name: value / self._scales.get(name, 1.0) for name, value in constraints.items()}


class Incumbents:
    """Keeps the genomes that proposals start from."""

    def __init__(self, objectives: Mapping[str, str], start: Sequence[Genome]) -> None:
        """Args are the objectives with their directions (`"min"`, `"max"`) and what to start from."""
        self._signs = {name: -1.0 if direction == "max" else 1.0 for name, direction in objectives.items()}
        self._start = list(start)
        self._front: list[Genome] = []
        self._costs = np.zeros((0, len(self._signs)))
        self._nearest: list[tuple[float, Genome]] = []
        self._closest: list[tuple[float, Genome]] = []
        self._dense_fits = False

    def add(self, genome: Genome, record: TrialRecord, violations: Mapping[str, float]) -> None:
        """Take note of a finished trial; `violations` are the record's, brought to one scale."""
        if record.state is not TrialState.COMPLETE:
            return
        if record.feasible:
            self._dense_fits = self._dense_fits or record.policy.is_dense
            loss = record.values.get("divergence", math.inf)
            self._closest = sorted([*self._closest, (loss, genome)], key=lambda item: item[0])[:_KEPT_CLOSEST]
            self._join(genome, np.array([sign * record.values[name] for name, sign in self._signs.items()]))
        else:
            self._nearest.append((sum(value for value in violations.values() if value > 0), genome))
            self._nearest = sorted(self._nearest, key=lambda item: item[0])[:_KEPT_INFEASIBLE]

    def _join(self, genome: Genome, costs: NDArray[np.float64]) -> None:
        """Enter a feasible point where nothing on the front is at least as good, and drop what it dominates."""
        if (self._costs <= costs).all(axis=1).any():
            return
        kept = np.flatnonzero(~(costs <= self._costs).all(axis=1))
        self._costs = np.concatenate([self._costs[kept], costs[None]])
        if len(kept) < len(self._front):
            self._front = [self._front[place] for place in kept.tolist()]
        self._front.append(genome)

    @property
    def genomes(self) -> list[Genome]:
        """The feasible front; else the least violating genomes; else those to start from."""
        if self._front:
            return self._front
        return [genome for _, genome in self._nearest] or self._start

    @property
    def closest(self) -> list[Genome]:
        """The feasible genomes that diverge least from the dense model; empty where that model is feasible itself.

        What a budget on costs leaves possible is found around them; without one they are hardly compressed.
        """
        return [] if self._dense_fits else [genome for loss, genome in self._closest if math.isfinite(loss)]
