"""The incumbents: the feasible front so far, or the least violating policies while nothing is feasible."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from paretopress.search.option_space import Genome
from paretopress.search.pareto import non_dominated
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
        self._front: list[tuple[Genome, list[float]]] = []
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
            costs = [sign * record.values[name] for name, sign in self._signs.items()]
            candidates = [*self._front, (genome, costs)]
            mask = non_dominated(np.array([row for _, row in candidates]))
            self._front = [candidate for candidate, kept in zip(candidates, mask, strict=True) if kept]
        else:
            self._nearest.append((sum(value for value in violations.values() if value > 0), genome))
            self._nearest = sorted(self._nearest, key=lambda item: item[0])[:_KEPT_INFEASIBLE]

    @property
    def genomes(self) -> list[Genome]:
        """The feasible front; else the least violating genomes; else those to start from."""
        if self._front:
            return [genome for genome, _ in self._front]
        return [genome for _, genome in self._nearest] or self._start

    @property
    def closest(self) -> list[Genome]:
        """The feasible genomes that diverge least from the dense model; empty where that model is feasible itself.

        What a budget on costs leaves possible is found around them; without one they are hardly compressed.
        """
        return [] if self._dense_fits else [genome for loss, genome in self._closest if math.isfinite(loss)]
