"""Rehearsals: many candidates are trained for a few steps, to tell which of them training makes most of.

What a candidate loses before it is trained says how much it loses afterwards only up to a factor: two networks that
diverge alike at first may be apart by half after training, as narrow layers at the one place are made up for and at the
other are not. A short training tells more: on DS-CNN, 60 steps explain the logarithm of the divergence after 400 up to
0.1 on the samples that were trained on, the divergence before any step up to 0.24. How it is for unseen samples after
400 steps is told less well by any of them: 22 random patterns of widths had rank correlations of 0.53 before training,
0.53 after 60 and 0.60 after 160 steps on scored samples that were trained on, and of 0.59 after 60 steps on others (one
network of each, one seed; the standard error of such a correlation is 0.15). So a share of the time for building goes
into short trainings of many candidates, in rounds, and only those that come out best are trained to the end (in the
spirit of successive halving: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", 2016).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from paretopress.evaluators.evaluation import State
from paretopress.search.bayesian_regression import regress
from paretopress.search.executors import Executor
from paretopress.search.records import TrialRecord
from paretopress.search.tasks import Rehearsal
from paretopress.spaces.choices import Keep
from paretopress.spaces.policy import Policy

Array = NDArray[np.float64]
SHARE = 0.25             # of the time for building
STEPS = 160              # of each rehearsal
FEWEST = 12              # rehearsals that the share of the time should allow: each is cut short where it does not
PER_FINALIST = 2         # as many candidates are rehearsed for each finalist where no time is set
MOST_PER_FINALIST = 4    # and where it is
SMALLEST_DIVERGENCE = 1e-9
# Of logarithms of divergences, as measured on DS-CNN:
ERROR = 0.12             # of what a rehearsal says of the whole training, besides a common factor
DEVIATION = 0.25         # of the divergence after a rehearsal from what follows from the one before it and from widths
SLOPE = 0.75             # of the one after over the one before, before any is known,
SLOPE_ERROR = 0.25       # and its prior deviation
NARROWNESS = 1.5         # what networks add that are narrower by a factor of e throughout, and diverge alike before
WEIGHT = 0.45            # prior deviation of a group's share in that, over the root of the number of groups
LEAST_KEPT = 1.0 / 16.0  # of a group's channels: what is left of it is as good as gone


@dataclass
class Rehearsals:
    """What short trainings left of the divergences.

    Attributes:
        losses: Divergence after a rehearsal by policy hash; infinite where it failed.
        begun: Whether there are rehearsals in this run: without them, nothing is expected of training.
    """

    losses: dict[str, float] = field(default_factory=dict)
    begun: bool = False

    def expected(self, records: Sequence[TrialRecord]) -> tuple[Array, Array]:
        """Divergences of trials as rehearsals would leave them, and the standard errors of their logarithms.

        The logarithm of the divergence after is a constant, plus a slope times the one before, plus one weight for
        every group of channels times the logarithm of how much narrower it is (a Bayesian linear regression). Narrow
        layers are made up for less than their divergence before training says: of 17 random patterns of widths of
        DS-CNN at one predicted time, the sum of these logarithms ranked the divergence after 330 steps with a
        correlation of 0.61, the divergence before with 0.29 (one seed). So a weight above 0 is expected at first.

        Returns:
            Shape (n,) each, never above those before; the errors are 0 for those that were rehearsed.
        """
        before = np.log(np.maximum([record.values["divergence"] for record in records], SMALLEST_DIVERGENCE))
        known = [row for row, record in enumerate(records)
                 if math.isfinite(self.losses.get(record.policy.hash, math.inf))]
        if not self.begun:
            return np.exp(before), np.zeros(len(records))
        narrow = -np.log(np.maximum(1.0 - cut_away([record.policy for record in records]), LEAST_KEPT))
        groups = max(1, narrow.shape[1])
        usual = SLOPE * before + NARROWNESS * narrow.sum(axis=1) / groups
        if not known:
            return np.exp(np.minimum(before, usual + np.median(before - usual))), np.zeros(len(records))
        after = np.log(np.maximum([self.losses[records[row].policy.hash] for row in known], SMALLEST_DIVERGENCE))
        weight = WEIGHT / math.sqrt(groups)
        features = np.column_stack([narrow, before * (SLOPE_ERROR / weight)])
        changes, errors = regress(features, known, after - usual[known], weight, DEVIATION)
        expected = usual + changes
        unknown = errors > 0.0
        return np.exp(np.where(unknown, np.minimum(before, expected), expected)), errors


def cut_away(policies: Sequence[Policy]) -> Array:
    """The share of the channels of every group that a policy cuts away, shape (policies, groups)."""
    units = sorted({unit for policy in policies for unit, choice in policy if isinstance(choice, Keep)})
    columns = {unit: column for column, unit in enumerate(units)}
    found = np.zeros((len(policies), len(units)))
    for row, policy in enumerate(policies):
        for unit, choice in policy:
            if isinstance(choice, Keep):
                found[row, columns[unit]] = 1.0 - choice.ratio
    return found


@dataclass(frozen=True)
class Allowance:
    """How much is rehearsed.

    Attributes:
        most: Candidates at most.
        seconds: Time for each, None for no limit.
        deadline: Of `time.monotonic()`: none begins later; None for no limit.
    """

    most: int
    seconds: float | None = None
    deadline: float | None = None

    @classmethod
    def of(cls, finalists: int, deadline: float | None, workers: int) -> Allowance:
        """What the time until the deadline for all building allows."""
        if deadline is None:
            return cls(PER_FINALIST * finalists)
        share = SHARE * max(0.0, deadline - time.monotonic())
        return cls(MOST_PER_FINALIST * finalists, share * workers / FEWEST, time.monotonic() + share)

    def in_time(self) -> bool:
        """Whether another one may begin."""
        return self.deadline is None or time.monotonic() < self.deadline

    def hurried(self, begin: float, share: float) -> bool:
        """Whether more than a share of the time has passed since it began, of `time.monotonic()`."""
        if self.deadline is None:
            return False
        now = time.monotonic()
        return now - begin > share * (self.deadline - begin)


def rehearse(executor: Executor, policies: Sequence[Policy], allowance: Allowance, found: Rehearsals) -> int:
    """Train policies for a few steps each, as many as there is time for.

    Args:
        executor: Does it.
        policies: The most promising first.
        allowance: For how long.
        found: What comes of it is added here.

    Returns:
        How many were rehearsed.
    """
    waiting, done = list(enumerate(policies)), 0
    while True:
        while waiting and executor.pending < executor.capacity and allowance.in_time():
            number, policy = waiting.pop(0)
            executor.submit(number, Rehearsal(policy, STEPS, allowance.seconds))
        if not executor.pending:
            return done
        outcome = executor.next_result()
        if outcome is not None:
            complete = outcome.evaluation.state is State.COMPLETE
            found.losses[policies[outcome.number].hash] = (
                outcome.evaluation.values["divergence"] if complete else math.inf)
            done += 1
