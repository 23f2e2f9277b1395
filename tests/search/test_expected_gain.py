"""Which candidate is expected to add most to the front: against exact hypervolumes and known chances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.search.expected_gain import WIDER, Guess, expected_gains
from paretopress.search.finalists import foremost
from paretopress.search.pareto import hypervolume, non_dominated

CERTAIN = 1e-6


def greedy_by_exact_volumes(costs, divergences, built, worst, count):
    """The gains of the same box by exact hypervolumes, for outcomes that are certain."""
    low, high = np.log(costs.min(axis=0)), np.log(costs.max(axis=0))
    unit = np.column_stack([np.sqrt(divergences / worst), (np.log(costs) - low) / (high - low + WIDER)])
    chosen, volumes = list(np.flatnonzero(built)), []
    for _ in range(count):
        have = hypervolume(unit[chosen], np.ones(unit.shape[1])) if chosen else 0.0
        gains = [0.0 if row in chosen else hypervolume(unit[[*chosen, row]], np.ones(unit.shape[1])) - have
                 for row in range(len(unit))]
        chosen.append(int(np.argmax(gains)))
        volumes.append(max(gains))
    return chosen[int(built.sum()):], volumes


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(0, 4))
def test_where_outcomes_are_certain_gains_are_hypervolumes(seed, objectives, ready):
    rng = np.random.default_rng(seed)
    costs, divergences = np.exp(rng.uniform(0, 4, (20, objectives))), rng.uniform(0.01, 0.3, 20)
    built = np.arange(20) < ready
    guess = Guess(divergences, np.where(built, 0.0, CERTAIN))
    found = expected_gains(costs, guess, 0.2, 3)
    _, volumes = greedy_by_exact_volumes(costs, divergences, built, 0.2, 3)
    low, high = np.log(costs.min(axis=0)), np.log(costs.max(axis=0))
    unit = np.column_stack([np.sqrt(divergences / 0.2), (np.log(costs) - low) / (high - low + WIDER)])
    rows, corner = list(np.flatnonzero(built)), np.ones(objectives + 1)
    for row, volume in zip(found, volumes, strict=False):   # ties by the points' resolution are as good
        before = hypervolume(unit[rows], corner) if rows else 0.0
        rows.append(row)
        assert hypervolume(unit[rows], corner) - before == pytest.approx(volume, abs=0.02)


def test_what_is_built_and_what_cannot_add_anything_is_not_picked():
    costs = np.array([[10.0], [20.0], [5.0], [8.0]])
    divergences, errors = np.array([0.1, 0.2, 3.0, 0.05]), np.array([0.0, CERTAIN, CERTAIN, CERTAIN])
    assert expected_gains(costs, Guess(divergences, errors), 1.0, 4) == [3]


def test_a_cheap_gamble_loses_against_a_likely_gain():
    """Both are expected to meet the budget; the one at its limit misses it half the time."""
    costs, errors = np.array([[10.0], [9.0], [100.0]]), np.array([0.3, 0.3, 0.0])
    worst = 0.1
    assert expected_gains(costs, Guess(np.array([0.05, 0.099, 0.0]), errors), worst, 1) == [0]
    certain = np.array([CERTAIN, CERTAIN, 0.0])
    hopeless = np.array([[10.0], [0.1], [100.0]])
    assert expected_gains(hopeless, Guess(np.array([0.05, 0.13, 0.0]), errors), worst, 2) == [0]
    much_cheaper = np.array([[10.0], [0.5], [100.0]])
    assert expected_gains(much_cheaper, Guess(np.array([0.09, 0.08, 0.0]), certain), worst, 1) == [1]


def test_losses_that_cannot_be_told_apart_count_alike():
    """One loses even less than can be told, the other is cheaper: which is better depends on what can be told."""
    costs, errors = np.array([[10.0], [8.0], [100.0]]), np.array([CERTAIN, CERTAIN, 0.0])
    guess = Guess(np.array([0.001, 0.02, 0.0]), errors)
    assert expected_gains(costs, guess, 0.1, 1) == [0]
    assert expected_gains(costs, guess, 0.1, 2, 0.03) == [1]


def test_a_second_pick_is_not_a_copy_of_the_first():
    costs = np.array([[10.0, 10.0], [10.1, 10.1], [30.0, 2.0], [100.0, 100.0]])
    guess = Guess(np.array([0.1, 0.1, 0.1, 0.0]), np.array([0.3, 0.3, 0.3, 0.0]))
    assert expected_gains(costs, guess, 0.5, 2) in ([0, 2], [2, 0])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 40))
def test_the_foremost_rows_hold_the_front_and_what_is_kept(seed, count):
    rng = np.random.default_rng(seed)
    costs, keep = rng.uniform(size=(30, 3)), rng.uniform(size=30) < 0.1
    costs[rng.integers(0, 30)] = np.inf
    rows = set(foremost(costs, count, keep).tolist())
    assert set(np.flatnonzero(keep).tolist()) <= rows
    if count:
        assert set(np.flatnonzero(non_dominated(costs)).tolist()) <= rows
    assert len(rows) >= min(count, 29)
