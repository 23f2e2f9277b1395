"""Regularised evolution (Real et al. 2019, "Regularized Evolution for Image Classifier Architecture Search").

The population is the latest trials: the oldest leaves when a new one comes, however good it is. A parent is the best of
a random sample of it, and the child differs from it in one choice. With several objectives the best is the first front
of the sample, and of that the least crowded (Deb et al. 2002); infeasible members come after all feasible ones, in the
order of their violations.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping

import numpy as np

from paretopress.search.option_space import Genome, OptionSpace
from paretopress.search.pareto import crowding_distance, non_dominated
from paretopress.search.records import TrialRecord, TrialState

SAMPLE_SHARE = 0.25   # of the population: 25 of 100 in the paper


class RegularisedEvolution:
    """Ageing evolution on the latest trials."""

    def __init__(self, space: OptionSpace, objectives: Mapping[str, str], population: int) -> None:
        """Args are the options, the objectives with their directions, and the size of the population."""
        self._space = space
        self._signs = {name: -1.0 if direction == "max" else 1.0 for name, direction in objectives.items()}
        self._members: deque[tuple[Genome, list[float], float]] = deque(maxlen=population)
        self._sample = max(2, round(SAMPLE_SHARE * population))

    @property
    def informed(self) -> bool:
        """Whether the population is full."""
        return len(self._members) == self._members.maxlen

    def ask(self, seed: int, seen: set[Genome]) -> Genome:  # noqa: ARG002 - a known child is asked for again
        """Return a child of the best of a random sample."""
        rng = random.Random(seed)  # noqa: S311 - no secret
        members = list(self._members)
        parent = self._best(rng.sample(members, min(self._sample, len(members))))
        movable = [place for place, choices in enumerate(self._space.options) if len(choices) > 1]
        child = list(parent)
        place = rng.choice(movable)
        child[place] = (child[place] + rng.randrange(1, len(self._space.options[place]))) % len(
            self._space.options[place])
        return self._space.canonical(tuple(child))

    def learn(self, genome: Genome, record: TrialRecord, violations: Mapping[str, float]) -> None:
        """Let a finished trial join; a screened one whose violations are unknown, or a failed one, does not."""
        over = sum(value for value in violations.values() if value > 0.0)
        if record.state is TrialState.COMPLETE:
            self._members.append((genome, [sign * record.values[name] for name, sign in self._signs.items()], over))
        elif record.state is TrialState.PRUNED and over > 0.0:
            self._members.append((genome, [], over))

    def forget(self, genome: Genome) -> None:
        """Nothing is pending here."""

    def _best(self, sample: list[tuple[Genome, list[float], float]]) -> Genome:
        feasible = [one for one in sample if one[2] <= 0.0]
        if not feasible:
            return min(sample, key=lambda one: one[2])[0]
        costs = np.array([values for _, values, _ in feasible])
        front = np.flatnonzero(non_dominated(costs))
        return feasible[int(front[np.argmax(crowding_distance(costs[front]))])][0]
