"""What is expected of candidates before they are built: their accuracy and divergence once they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretopress.evaluators.candidate import DROP, Limits
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.rehearsal import ERROR as TRAINING_ERROR
from paretopress.search.rehearsal import Rehearsals
from paretopress.search.workload import Built
from paretopress.spaces.policy import Policy

Array = NDArray[np.float64]
SMALLEST_DIVERGENCE = 1e-9
PAIRS_FOR_A_SLOPE = 6          # fewer builds say how much the refit gains, but not how that changes
SLOPES = (0.3, 2.0)            # of log(divergence after the refit) over log(before it)
TILTS = (-1.0, 0.0)            # of log(divergence after the refit) over log(stored bytes)
SHRINKAGE = 0.5                # squared logarithms of sizes that speak against any tilt
SWEEPS = 20
WORST_LOSS = 0.1               # of the best accuracy: what may be lost where no budget limits it
# Of logarithms of divergences after the refit, as measured on distilled networks:
NOISE = 0.25                   # between candidates of one divergence before it
DEVIATION = 0.4                # from the line
REACH = 0.7                    # over which deviations are alike


@dataclass(frozen=True)
class Prospect:
    """A candidate as far as it is known.

    Attributes:
        record: Its trial.
        accuracy: Accuracy on the search set to be expected of it once it is built.
        divergence: Divergence on the search set, measured where it is built, else expected.
        error: Standard error of the logarithm of the divergence, 0 where it is built.
        built: Whether it is built.
        allowed: Whether it is expected to meet every budget.
        excess: By what fractions of them the budgets on costs are exceeded, in all.
        promise: Divergence after a few steps of training, measured or expected; before any build where none is trained.
        doubt: Standard error of its logarithm, 0 where it was measured.
    """

    record: TrialRecord
    accuracy: float
    divergence: float
    error: float
    built: bool
    allowed: bool
    excess: float
    promise: float
    doubt: float = 0.0


@dataclass(frozen=True)
class AccuracyCurve:
    """The accuracy that candidates of a divergence have: it never rises with divergence.

    The best accuracy among many candidates on few samples is mostly luck. The divergence from the dense
    model ranks them with far less noise. Isotonic regression by pooling adjacent violators (Barlow et al.,
    "Statistical Inference under Order Restrictions", 1972).

    Attributes:
        divergences: Rising, shape (n,).
        accuracies: Of these divergences, shape (n,).
    """

    divergences: Array
    accuracies: Array

    @classmethod
    def fit(cls, divergences: Sequence[float], accuracies: Sequence[float], direction: str) -> AccuracyCurve:
        """Fit a curve to at least one candidate."""
        sign = 1.0 if direction == "max" else -1.0
        order = np.argsort(np.asarray(divergences), kind="stable")
        blocks: list[list[float]] = []   # [mean, count], means never rising
        for index in order:
            blocks.append([sign * accuracies[index], 1.0])
            while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
                (first, before), (second, behind) = blocks[-2:]
                blocks[-2:] = [[(first * before + second * behind) / (before + behind), before + behind]]
        fitted = np.array([sign * mean for mean, count in blocks for _ in range(int(count))])
        return cls(np.asarray(divergences, dtype=np.float64)[order], fitted)

    def at(self, divergences: Sequence[float]) -> Array:
        """Expected accuracies, shape (n,)."""
        found: Array = np.interp(divergences, self.divergences, self.accuracies)
        return found

    def reach(self, accuracy: float, direction: str) -> float:
        """The largest finite divergence that is expected to leave at least this accuracy; the smallest if none is."""
        sign = 1.0 if direction == "max" else -1.0
        finite = np.isfinite(self.divergences)
        divergences, falling, wanted = self.divergences[finite], sign * self.accuracies[finite], sign * accuracy
        if not len(divergences) or falling[-1] >= wanted:
            return float(divergences[-1]) if len(divergences) else 0.0
        behind = int(np.argmax(falling < wanted))
        if behind == 0:
            return float(divergences[0])
        ends = slice(behind - 1, behind + 1)
        return float(np.interp(-wanted, -falling[ends], divergences[ends]))


@dataclass(frozen=True)
class Outlook:
    """What is known of all candidates.

    Attributes:
        prospects: One per complete trial, in their order, without those that are verified anyway.
        worst_divergence: The largest that is expected to meet the budget on accuracy, or, where there is none, to
            leave nine tenths of the best accuracy.
        least_divergence: What diverges less the samples cannot tell from the dense model by its accuracy.
    """

    prospects: tuple[Prospect, ...] = ()
    worst_divergence: float = math.inf
    least_divergence: float = 0.0


def outlook(
    records: Sequence[TrialRecord],
    built: Mapping[str, Built],
    limits: Limits,
    without: Sequence[Policy] = (),
    samples: int = 0,
    probes: Mapping[str, Built] | None = None,
    rehearsals: Rehearsals | None = None,
) -> Outlook:
    """What is known of every candidate.

    What the builds so far gained by the refit is expected of the others too. A candidate that misses the
    allowed accuracy by less than the samples can tell may meet it: verification decides.

    Args:
        records: All trials.
        built: What was built, by policy hash.
        limits: Budgets.
        without: Policies that are verified anyway. What they gain says little of others: they are uniform.
        samples: Samples that accuracies were measured on, 0 to take them as exact.
        probes: What was built on trial, and dropped since.
        rehearsals: What was trained for a few steps.
    """
    complete = [r for r in records if r.state is TrialState.COMPLETE and "divergence" in r.values]
    if not complete:
        return Outlook()
    left_out = {policy.hash for policy in without}
    rehearsals = rehearsals or Rehearsals()
    before, doubts = rehearsals.expected(complete)
    halted = [r for r in records if r.state is TrialState.PRUNED and {"accuracy", "divergence"} <= r.values.keys()]
    curve = _accuracy_curve([*complete, *halted], built, limits)   # without the latter, the bad ones would be missing
    tried = {**(probes or {}), **built}
    known = [(r, float(loss)) for r, loss in zip(complete, before, strict=True)
             if r.policy.hash in tried and r.policy.hash not in left_out
             and math.isfinite(tried[r.policy.hash].divergence)]
    after, errors = expected_after_refit(
        [(loss, tried[r.policy.hash].divergence) for r, loss in known], before,
        [r.values.get("size", 1.0) for r, _ in known], [r.values.get("size", 1.0) for r in complete],
        noise=TRAINING_ERROR if rehearsals.losses else NOISE,
    )
    errors = np.hypot(errors, doubts)
    divergences = [built[r.policy.hash].divergence if r.policy.hash in built else float(loss)
                   for r, loss in zip(complete, after, strict=True)]
    slack = tolerance([record.values["accuracy"] for record in complete], limits, samples)
    found = []
    for record, accuracy, loss, error, promise, doubt in zip(
        complete, curve.at(divergences), divergences, errors, before, doubts, strict=True
    ):
        done = record.policy.hash in built
        allowed = _allowed(record, float(accuracy) + slack, limits)
        if record.policy.hash not in left_out:
            found.append(Prospect(record, float(accuracy), loss, 0.0 if done else float(error), done, allowed,
                                  _excess(record, limits), float(promise), float(doubt)))
    worst = curve.reach(_worst_accuracy(complete, limits) - slack, limits.direction)
    least = curve.reach(float(curve.accuracies[0]) - slack, limits.direction) if slack else 0.0
    return Outlook(tuple(found), worst, least)


def _accuracy_curve(complete: Sequence[TrialRecord], built: Mapping[str, Built], limits: Limits) -> AccuracyCurve:
    judged = [one for one in built.values() if one.tier != "distilled"]   # others may have been trained on the samples
    return AccuracyCurve.fit(
        [*(record.values["divergence"] for record in complete), *(one.divergence for one in judged)],
        [*(record.values["accuracy"] for record in complete), *(one.refitted for one in judged)],
        limits.direction,
    )


def _worst_accuracy(complete: Sequence[TrialRecord], limits: Limits) -> float:
    if limits.accuracy is not None:
        return limits.accuracy
    found = [record.values["accuracy"] for record in complete]
    best = max(found) if limits.direction == "max" else min(found)
    return best - WORST_LOSS * abs(best) if limits.direction == "max" else best + WORST_LOSS * abs(best)


def expected_after_refit(
    pairs: Sequence[tuple[float, float]],
    before: Sequence[float] | Array,
    pair_sizes: Sequence[float] | None = None,
    sizes: Sequence[float] | None = None,
    noise: float = NOISE,
) -> tuple[Array, Array]:
    """Divergences to be expected after the refit, never above those before it, and how far off they may be.

    The logarithm of the one is a plane in those of the other and of the stored bytes, and a Gaussian process of what
    the builds deviate from it: what was learned far out is remembered there. Of two candidates that diverge alike the
    smaller one has fewer weights or coarser ones, which training can do less with.

    Args:
        pairs: (before, after) of what was built.
        before: Of the candidates in question.
        pair_sizes: Stored bytes of what was built; all alike where not given.
        sizes: Of the candidates.
        noise: Standard deviation of the logarithm after the refit between candidates of one divergence before it.

    Returns:
        Divergences and the standard errors of their logarithms, each of shape (n,).
    """
    x = _logarithms(before)
    if not pairs:
        return np.exp(x), np.full(len(x), math.hypot(noise, DEVIATION))
    known, found = _logarithms(pairs).T
    known_bytes, bytes_ = _logarithms(pair_sizes or [1.0] * len(pairs)), _logarithms(sizes or [1.0] * len(x))
    middle = float(known_bytes.mean())
    slope, tilt = _plane(known, known_bytes - middle, found)
    line, at = slope * known + tilt * (known_bytes - middle), slope * x + tilt * (bytes_ - middle)
    shift = float(np.median(found - line))
    places, others = np.column_stack([known, known_bytes]), np.column_stack([x, bytes_])
    inner = np.linalg.inv(_alike(places, places) + noise**2 * np.eye(len(known)))
    outer = _alike(others, places)
    expected = at + shift + outer @ inner @ (found - line - shift)
    variance = DEVIATION**2 - np.einsum("ij,jk,ik->i", outer, inner, outer)
    return np.exp(np.minimum(expected, x)), np.sqrt(noise**2 + np.maximum(variance, 0.0))


def _plane(x: Array, size: Array, found: Array) -> tuple[float, float]:
    """Slopes of a plane by the divergence before and the size; of few points, or of points alike, what is usual."""
    if len(x) < PAIRS_FOR_A_SLOPE:
        return 1.0, 0.0
    slope, tilt = 1.0, 0.0
    centred = found - found.mean()
    for _ in range(SWEEPS):   # coordinate descent: the tilt is drawn towards 0, as the two are correlated
        if float(x.std()) > 0.1:
            slope = float(np.clip((x - x.mean()) @ (centred - tilt * size) / np.square(x - x.mean()).sum(), *SLOPES))
        tilt = float(np.clip(size @ (centred - slope * (x - x.mean())) / (np.square(size).sum() + SHRINKAGE), *TILTS))
    return slope, tilt


def _logarithms(values: Sequence[object] | Array) -> Array:
    found: Array = np.log(np.maximum(np.asarray(values, dtype=np.float64), SMALLEST_DIVERGENCE))
    return found


def _alike(first: Array, second: Array) -> Array:
    """Covariance of deviations at two sets of places `(n, 2)`: logarithms of divergences and of sizes."""
    distances = np.square(first[:, None, :] - second[None, :, :]).sum(axis=2)
    found: Array = DEVIATION**2 * np.exp(-0.5 * distances / REACH**2)
    return found


def accuracy_step(accuracy: float, samples: int, direction: str) -> float:
    """Half a standard error of an accuracy on so many samples; 0 for errors, and for what is not between 0 and 1."""
    if direction != "max" or not samples or not 0.0 < accuracy < 1.0:
        return 0.0
    return 0.5 * math.sqrt(accuracy * (1.0 - accuracy) / samples)


def tolerance(accuracies: Sequence[float], limits: Limits, samples: int) -> float:
    """What does not count as a difference: half a standard error, and never more than half of the allowed drop."""
    best = float(max(accuracies) if limits.direction == "max" else min(accuracies))
    step = accuracy_step(best, samples, limits.direction)
    return step if limits.accuracy is None else min(step, 0.5 * max(0.0, best - limits.accuracy))


def _allowed(record: TrialRecord, accuracy: float, limits: Limits) -> bool:
    costs_met = all(value <= 0.0 for name, value in record.constraints.items() if not name.startswith(DROP))
    return costs_met and limits.check({}, accuracy).get(limits.drop_label, 0.0) <= 0.0


def _excess(record: TrialRecord, limits: Limits) -> float:
    """By what fractions of them the budgets on costs are exceeded, in all."""
    return sum(max(0.0, record.constraints.get(label, 0.0)) / abs(limit) if limit else 0.0
               for label, _, limit in limits.costs)
