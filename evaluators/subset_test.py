"""A sequential test on the first samples of a set: is a candidate's metric on all of them below a bar?

A candidate that a cheaper one clearly beats, or that clearly misses the budget on the metric, need not be scored on
every sample. What is compared is its difference from the dense model, sample by sample: where both are right or both
are wrong, a sample says nothing, so that a few disagreements decide. The samples are in a random order, without
repetition, and the test is a betting one: the capital of a gambler who bets against "the mean of all samples reaches
the bar" exceeds 1 / ERROR with a probability of at most ERROR if that is true, at whatever sample one looks (Ville's
inequality; the bets are those of Waudby-Smith and Ramdas, "Confidence sequences for sampling without replacement",
2020, and "Estimating means of bounded random variables by betting", 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paretopress.evaluators.batches import Batches

Array = NDArray[np.float64]
ERROR = 0.01             # probability of stopping a candidate that reaches the bar
RUNG = 64                # samples between two looks
BOLDNESS = 0.75          # of the largest bet that no single sample can ruin
STARTING_VARIANCE = 0.05 # of a sample's difference, halved and moved to 0..1, before any is seen


@dataclass(frozen=True, slots=True)
class Rivals:
    """What other candidates have reached: rows of the metric, the divergence and the costs.

    Attributes:
        costs: Names of the costs, in the order of the rows.
        rows: `(metric, divergence, *costs)` of each.
    """

    costs: tuple[str, ...] = ()
    rows: tuple[tuple[float, ...], ...] = ()

    def no_dearer(self, costs: Sequence[float]) -> tuple[tuple[float, float], ...]:
        """Return `(metric, divergence)` of those that cost no more in any respect."""
        return tuple((row[0], row[1]) for row in self.rows
                     if all(own <= other for own, other in zip(row[2:], costs, strict=True)))


NO_RIVALS = Rivals()


@dataclass(frozen=True, slots=True)
class Bar:
    """A value of the metric that a candidate has to reach.

    Attributes:
        value: The metric's value.
        divergence: The bar counts for candidates that diverge at least as much, in nats.
        reason: Whose value it is, for the record.
    """

    value: float
    divergence: float
    reason: str


def log_capital(differences: Array, total: int, bar: float) -> Array:
    """Return the logarithm of the gambler's capital after every sample, infinite once the bar is out of reach.

    Args:
        differences: Candidate minus dense model, larger is better, each in -1..1, in the order drawn; `(n,)`.
        total: How many samples there are in all.
        bar: What their mean over all samples should reach.
    """
    worse = 0.5 * (1.0 - np.asarray(differences, dtype=np.float64))   # 0..1: the null says its mean is at most `most`
    count, most = len(worse), 0.5 * (1.0 - bar)
    before = np.concatenate([[0.0], np.cumsum(worse)[:-1]])
    drawn = np.arange(count)
    left = (total * most - before) / (total - drawn)                  # the mean of what is left, under the null
    means = (0.5 + before) / (drawn + 1.0)
    spread = np.concatenate([[0.0], np.cumsum(np.square(worse - means))[:-1]])
    variance = (STARTING_VARIANCE + spread) / (drawn + 1.0)
    edge = means - left
    with np.errstate(divide="ignore", invalid="ignore"):
        bet = np.clip(edge / (variance + np.square(edge)), 0.0, BOLDNESS / np.maximum(left, 1e-12))
        grown = np.cumsum(np.log1p(bet * (worse - left)))
    impossible = np.maximum.accumulate(left < -1e-12)
    return np.where(impossible, math.inf, grown)


def below(differences: Array, total: int, bar: float, error: float = ERROR) -> bool:
    """Return whether the mean over all samples is below a bar, wrongly with a probability of at most `error`.

    Args:
        differences: See `log_capital`.
        total: How many samples there are in all.
        bar: The bar.
        error: Probability of a wrong yes.
    """
    return bool(len(differences)) and bool(log_capital(differences, total, bar).max() >= -math.log(error))


def in_random_order(samples: Batches, seed: int) -> Batches:
    """Return the samples in a random order, in batches of one look each."""
    order = np.random.default_rng(seed).permutation(samples.count)
    return replace(samples.take(order.tolist()), batch_size=RUNG)


def halted_at(
    scores: Array, dense: Array, sign: float, bars: Sequence[Bar], divergence: float
) -> tuple[Bar, float] | None:
    """Return the highest bar that counts, and the metric to be expected, where a candidate is below it; None to go on.

    Args:
        scores: The candidate's sample values so far, each in 0..1, `(n,)`.
        dense: The dense model's on all samples, in the same order, `(total,)`.
        sign: 1 where more is better, else -1.
        bars: What it should reach.
        divergence: Its divergence on the samples so far.
    """
    counting = [bar for bar in bars if divergence >= bar.divergence]
    if not counting:
        return None
    bar = max(counting, key=lambda one: sign * one.value)
    differences, middle = sign * (scores - dense[: len(scores)]), float(dense.mean())
    if not below(differences, len(dense), sign * (bar.value - middle)):
        return None
    return bar, min(1.0, max(0.0, middle + sign * float(differences.mean())))
