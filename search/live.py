"""How an exploration goes on, in figures: for progress displays."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretopress.search.pareto import hypervolume, non_dominated
from paretopress.search.records import TrialRecord, TrialState

EVERY_SECONDS = 1.0   # the hypervolume takes longer than a trial may
WORST_DROP = 0.1      # of a share, or of the dense model's value: the box of the hypervolume, as in the result
RECENT = 60.0         # seconds that the rate is taken over
SMALLEST = 1e-12


@dataclass(frozen=True)
class ExplorationStatus:
    """An exploration at one moment.

    Attributes:
        trials: Finished trials, earlier starts included.
        front: Feasible policies that nothing dominates, on searched and predicted values.
        hypervolume: Of them, relative to the box between nothing and the dense model with a drop of 0.1 (of the dense
            model's value where the metric is no share); None until the dense model is scored.
        per_second: Trials per second of the last minute.
        feasible: Share of the trials that meet every budget.
        seconds_left: Until the exploration ends; None where nothing says when.
    """

    trials: int
    front: int
    hypervolume: float | None
    per_second: float
    feasible: float
    seconds_left: float | None

    def line(self) -> str:
        """The figures in one line, without the time left."""
        volume = "" if self.hypervolume is None else f", hypervolume {self.hypervolume:.3f}"
        return f"front {self.front}{volume}, {self.per_second:.1f} trials/s, {self.feasible:.0%} feasible"


class ExplorationWatch:
    """Counts trials and keeps the front."""

    def __init__(self, objectives: Mapping[str, str], trials: int | None, seconds: float | None) -> None:
        """Args are the objectives with their directions, and when the exploration ends."""
        self._signs = {name: -1.0 if direction == "max" else 1.0 for name, direction in objectives.items()}
        self._trials, self._seconds = trials, seconds
        self._start = self._last = time.monotonic()
        self._front = np.zeros((0, len(self._signs)))
        self._on_front: list[TrialRecord] = []
        self._told: list[TrialRecord] = []
        self._dense: NDArray[np.float64] | None = None
        self._finished = self._feasible = 0
        self._times: list[float] = []

    def add(self, record: TrialRecord, *, earlier: bool = False) -> None:
        """Take note of a finished trial; `earlier` ones say nothing about the rate."""
        self._finished += 1
        if not earlier:
            self._times.append(time.monotonic())
        if record.state is not TrialState.COMPLETE:
            return
        row = np.array([sign * record.values[name] for name, sign in self._signs.items()])
        if record.policy.is_dense:
            self._dense = row
        if record.feasible:
            self._feasible += 1
            if self._is_new(row):
                rows = np.concatenate([self._front, row[None]])
                kept = np.asarray(non_dominated(rows), dtype=bool)
                self._front = rows[kept]
                self._on_front = [one for one, stays in zip([*self._on_front, record], kept, strict=True) if stays]

    def changed_front(self) -> tuple[TrialRecord, ...] | None:
        """The trials of the front by number, where they have changed since this was asked last, else None."""
        if self._on_front == self._told:
            return None
        self._told = list(self._on_front)
        return tuple(sorted(self._on_front, key=lambda one: one.number))

    @property
    def front(self) -> NDArray[np.float64]:
        """Objectives of the front, to be minimised, shape (n, objectives); another array once it has changed."""
        return self._front

    def due(self) -> bool:
        """Whether the status is worth showing again."""
        now = time.monotonic()
        if now - self._last < EVERY_SECONDS:
            return False
        self._last = now
        return True

    def status(self) -> ExplorationStatus:
        """The figures now."""
        now = time.monotonic()
        self._times = [moment for moment in self._times if now - moment <= RECENT]
        span = min(RECENT, now - self._start)
        rate = len(self._times) / span if span > 0.0 else 0.0
        left = []
        if self._seconds is not None:
            left.append(self._seconds - (now - self._start))
        if self._trials is not None and rate > 0.0:
            left.append((self._trials - self._finished) / rate)
        return ExplorationStatus(
            self._finished, len(self._front), self.volume(), rate, self._feasible / max(1, self._finished),
            max(0.0, min(left)) if left else None,
        )

    def _is_new(self, row: NDArray[np.float64]) -> bool:
        return not bool((self._front <= row).all(axis=1).any())

    def volume(self) -> float | None:
        """The hypervolume of the front, None until the dense model is scored: see `ExplorationStatus`."""
        return None if self._dense is None else relative_hypervolume(self._front, self._dense)


def relative_hypervolume(rows: NDArray[np.float64], dense: NDArray[np.float64]) -> float | None:
    """The hypervolume of policies relative to the box between nothing and the dense model with a drop of `WORST_DROP`.

    Args:
        rows: Objectives to be minimised, shape (n, m), the metric first.
        dense: Those of the dense model, shape (m,); a cost that it does not have does not count.

    Returns:
        At most 1; None where it is not finite.
    """
    metric = abs(float(dense[0]))
    worst = WORST_DROP * (1.0 if metric <= 1.0 else metric)
    scaled = rows.copy()
    scaled[:, 0] = np.maximum(0.0, (scaled[:, 0] - dense[0]) / worst)
    scaled[:, 1:] /= np.maximum(dense[1:], SMALLEST)
    known = [0, *(1 + np.flatnonzero(np.isfinite(dense[1:]))).tolist()]
    found = hypervolume(scaled[:, known], np.ones(len(known)))
    return found if math.isfinite(found) else None
