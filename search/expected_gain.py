"""Which candidates to build next: those that are expected to add most to the front of what is built.

Before it is built, a candidate's costs are known and its divergence is a guess. The expected hypervolume improvement
(Emmerich, Giannakoglou and Naujoks, "Single- and Multiobjective Evolutionary Optimization Assisted by Gaussian
Random Field Metamodels", 2006) weighs how much it would add by how likely it is to: one at the very limit of the
budget adds most and meets it least often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import qmc

Array = NDArray[np.float64]
POINTS_LOG2 = 12
LEAST_CHANCE = 0.3   # of staying within the worst divergence: guesses far out are worse than their errors say
WIDER = 0.05         # of the box, by the logarithm of each cost: the dearest candidate reaches something too
SMALLEST = 1e-12


@dataclass(frozen=True)
class Guess:
    """Divergences of candidates, known or guessed.

    Attributes:
        divergences: Medians, shape (n,).
        errors: Standard errors of their logarithms, shape (n,); 0 for what is built.
    """

    divergences: Array
    errors: Array

    def below(self, divergences: Array) -> Array:
        """Probability that each candidate diverges at most so much, shape (n, points)."""
        distance = np.log(np.maximum(divergences, SMALLEST)) - np.log(np.maximum(self.divergences, SMALLEST))[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            chance = ndtr(distance / self.errors[:, None])
        return np.where(self.errors[:, None] > 0.0, chance, distance >= 0.0).astype(np.float64)


def expected_gains(
    costs: Array, guess: Guess, worst_divergence: float, count: int, least_divergence: float = 0.0
) -> list[int]:
    """Candidates that are worth building, the most promising first.

    The box between the lowest and the highest costs is filled with points: evenly by the logarithm of each cost, which
    people compare by ratios, and by the root of the divergence, so that small losses are told apart as well as large
    ones. What a candidate adds is the share of points that it reaches in every objective and that nothing before it
    does.

    Args:
        costs: Shape (n, m), positive, to be minimised.
        guess: Their divergences. What is built counts as there from the start, and is not returned.
        worst_divergence: What diverges more adds nothing.
        count: How many at most.
        least_divergence: What diverges less adds no more than this does.

    Returns:
        Rows, fewer than `count` where nothing else can add anything.
    """
    points = qmc.Sobol(costs.shape[1] + 1, scramble=False).random_base2(POINTS_LOG2) + 0.5 / 2**POINTS_LOG2
    low, high = np.log(costs.min(axis=0)), np.log(costs.max(axis=0))
    thresholds = np.exp(low + points[:, 1:] * (high - low + WIDER))
    roots = math.sqrt(least_divergence), math.sqrt(worst_divergence)
    reached = guess.below((roots[0] + points[:, 0] * (roots[1] - roots[0])) ** 2)
    for column, threshold in zip(costs.T, thresholds.T, strict=True):
        reached *= column[:, None] <= threshold
    left = np.prod(1.0 - reached[guess.errors == 0.0], axis=0)
    waiting = (guess.errors > 0.0) & (guess.below(np.array([worst_divergence]))[:, 0] >= LEAST_CHANCE)
    chosen: list[int] = []
    while len(chosen) < min(count, int(waiting.sum())):
        gains = np.where(waiting, reached @ left, 0.0)
        best = int(np.argmax(gains))
        if gains[best] <= 0.0:
            break
        chosen.append(best)
        waiting[best] = False
        left = left * (1.0 - reached[best])
    return chosen
