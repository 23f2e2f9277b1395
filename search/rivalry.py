"""What new candidates are compared with while they are scored: the trials so far that nothing beats in everything."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from paretopress.evaluators.subset_test import Rivals
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.tasks import Challenge, Task
from paretopress.spaces.policy import Policy

FIRST = 24   # trials that are scored in full: proxies are checked on them, and surrogates begin with them


class Rivalry:
    """Keeps the rivals; a pure function of the trials learnt, whatever their order."""

    def __init__(self, objectives: Mapping[str, str]) -> None:
        """Args are the objectives with their directions; the metric is `accuracy`, all others are costs."""
        self._sign = -1.0 if objectives["accuracy"] == "max" else 1.0
        self._costs = tuple(name for name in objectives if name != "accuracy")
        self._rows = np.zeros((0, 2 + len(self._costs)))

    def learn(self, record: TrialRecord) -> None:
        """Take note of a trial that was scored on all samples."""
        if record.state is not TrialState.COMPLETE or "divergence" not in record.values:
            return
        values = record.values
        row = np.array([self._sign * values["accuracy"], values["divergence"], *(values[n] for n in self._costs)])
        if (self._rows <= row).all(axis=1).any():
            return
        self._rows = np.concatenate([self._rows[~(row <= self._rows).all(axis=1)], row[None]])

    def task(self, number: int, policy: Policy) -> Task:
        """What to do for a trial: the first ones are scored in full, the others as far as their rivals make it worth.

        Args:
            number: Of the trial.
            policy: Its policy.
        """
        if number < FIRST:
            return policy
        rows = self._rows[np.lexsort(self._rows.T)]
        rows[:, 0] *= self._sign
        return Challenge(policy, Rivals(self._costs, tuple(tuple(row) for row in rows.tolist())))
