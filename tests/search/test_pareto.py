"""Pareto geometry against brute force, golden volumes and properties on grids full of ties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.search.pareto import crowding_distance, hypervolume, knee, non_dominated, spread_subset
from paretopress.spaces.errors import DataError

objectives_and_rows = st.integers(1, 5).flatmap(
    lambda m: st.lists(st.lists(st.integers(0, 4), min_size=m, max_size=m), min_size=1, max_size=14)
)
planar_rows = st.lists(st.lists(st.integers(0, 30), min_size=2, max_size=2), min_size=1, max_size=25)


def brute_front(rows):
    front = []
    for i, row in enumerate(rows):
        dominated = any(
            all(a <= b for a, b in zip(other, row, strict=True)) and (other != row or j < i)
            for j, other in enumerate(rows)
            if j != i
        )
        front.append(not dominated)
    return front


def brute_volume(rows, reference):
    """Count the unit cells of an integer grid that some row dominates."""
    cells = itertools.product(*(range(r) for r in reference))
    return sum(any(all(a <= c for a, c in zip(row, cell, strict=True)) for row in rows) for cell in cells)


@given(objectives_and_rows)
def test_non_dominated_is_the_definition(rows):
    assert non_dominated(np.array(rows, dtype=float)).tolist() == brute_front(rows)


@given(planar_rows)
def test_non_dominated_in_the_plane_is_the_definition(rows):
    assert non_dominated(np.array(rows, dtype=float)).tolist() == brute_front(rows)


def test_non_finite_rows_are_never_on_the_front():
    costs = np.array([[np.nan, 0.0], [-np.inf, 0.0], [1.0, np.inf], [2.0, 2.0]])
    assert non_dominated(costs).tolist() == [False, False, False, True]
    assert non_dominated(np.full((2, 3), np.nan)).tolist() == [False, False]
    assert non_dominated(np.empty((0, 2))).tolist() == []


@settings(deadline=None)
@given(objectives_and_rows)
def test_hypervolume_counts_cells(rows):
    reference = [3] * len(rows[0])
    assert hypervolume(np.array(rows, dtype=float), reference) == pytest.approx(brute_volume(rows, reference))


@pytest.mark.parametrize(
    ("rows", "reference", "volume"),
    [
        ([[1, 3], [2, 2], [3, 1]], [4, 4], 6.0),
        ([[0, 0, 0]], [2, 3, 4], 24.0),
        # inclusion-exclusion: 6 + 6 + 6 - 2 - 4 - 2 + 2
        ([[1, 2, 3], [3, 2, 1], [2, 1, 3]], [4, 4, 4], 12.0),
        ([[0, 0, 0, 1], [1, 1, 1, 0]], [2, 2, 2, 2], 9.0),
        ([[5, 5]], [4, 4], 0.0),
        ([[np.nan, 0], [1, 1]], [2, 2], 1.0),
    ],
)
def test_golden_hypervolumes(rows, reference, volume):
    assert hypervolume(rows, reference) == pytest.approx(volume)


@pytest.mark.parametrize("objectives", [2, 3, 4, 5])
def test_hypervolume_agrees_with_monte_carlo(objectives):
    generator = np.random.default_rng(objectives)
    costs = generator.random((25, objectives))
    samples = generator.random((100_000, objectives))
    share = np.mean([(samples >= row).all(axis=1) for row in costs], axis=0).astype(bool).mean()
    assert hypervolume(costs, np.ones(objectives)) == pytest.approx(share, abs=0.006)


def test_hypervolume_refuses_a_wrong_reference():
    with pytest.raises(DataError, match="2 finite numbers"):
        hypervolume([[1, 2]], [1, 2, 3])


def test_knee_of_a_bent_front_is_its_corner():
    assert knee([[0, 10], [1, 2], [4, 1], [10, 0]]) == 1
    # Scaling an objective changes nothing, dominated and broken rows neither.
    assert knee([[np.nan, 0], [0, 1e6], [5, 9e5], [1, 2e5], [10, 0]]) == 3


def test_knee_of_short_fronts():
    assert knee([[3.0, 4.0]]) == 0
    assert knee([[1.0, 10.0], [2.0, 1.0]]) == 1
    assert knee([[5.0, 1.0], [5.0, 1.0]]) == 0
    with pytest.raises(DataError):
        knee([[np.nan, 1.0]])


def test_knee_in_three_objectives_is_below_the_plane():
    extremes = [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert knee([*extremes, [0.6, 0.6, 0.6], [0.3, 0.35, 0.3]]) == 4


@given(objectives_and_rows)
def test_knee_is_on_the_front(rows):
    assert non_dominated(np.array(rows, dtype=float))[knee(rows)]


@settings(deadline=None)
@given(planar_rows, st.integers(1, 6), st.sampled_from([0.0, 0.05, 0.3]), st.data())
def test_spread_subset_properties(rows, count, gap, data):
    costs = np.array(rows, dtype=float)
    keep = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=2, unique=True))
    chosen = spread_subset(costs, count, gap, keep)
    front = non_dominated(costs)
    assert set(keep) <= set(chosen)
    assert len(chosen) == len(set(chosen)) <= max(count, len(keep))
    assert all(front[row] or row in keep for row in chosen)
    for a, b in itertools.pairwise(chosen):
        size = np.maximum(np.abs(costs[a]), np.abs(costs[b]))
        assert (np.abs(costs[a] - costs[b]) >= gap * size).any() or {a, b} <= set(keep)
    if len(chosen) < count:
        # Nothing was left out without the gap as the reason.
        for row in set(np.flatnonzero(front)) - set(chosen):
            size = np.maximum(np.abs(costs[row]), np.abs(costs[chosen]))
            near = (np.abs(costs[row] - costs[chosen]) < gap * size) | (costs[row] == costs[chosen])
            assert near.all(axis=1).any()


@settings(deadline=None)
@given(planar_rows, st.integers(1, 4))
def test_spread_subset_is_the_plain_greedy(rows, count):
    costs = np.array(rows, dtype=float)
    front = costs[non_dominated(costs)]
    span = np.ptp(front, axis=0)
    scaled = (costs - front.min(axis=0)) / np.where(span > 0, span, 1)
    picked = []
    volumes = [0.0]
    for _ in range(min(count, len(front))):
        gains = [hypervolume(scaled[[*picked, i]], [1.1, 1.1]) for i in np.flatnonzero(non_dominated(costs))]
        volumes.append(max(gains))
        picked.append(int(np.flatnonzero(non_dominated(costs))[int(np.argmax(gains))]))
    lazy = spread_subset(costs, count, 0.0)
    assert hypervolume(scaled[lazy], [1.1, 1.1]) >= 0.632 * volumes[-1] - 1e-9
    if count == 1:
        assert hypervolume(scaled[lazy], [1.1, 1.1]) == pytest.approx(volumes[-1])


def test_spread_subset_refuses_an_unknown_row():
    with pytest.raises(DataError, match="row 7"):
        spread_subset([[1, 2]], 1, keep=[7])


def test_crowding_distance_by_hand():
    distance = crowding_distance([[0, 4], [1, 2], [2, 1], [4, 0]])
    assert distance[[0, 3]].tolist() == [np.inf, np.inf]
    assert distance[1:3] == pytest.approx([2 / 4 + 3 / 4, 3 / 4 + 2 / 4])
    assert crowding_distance([[1, 1]]).tolist() == [np.inf]
    assert crowding_distance(np.empty((0, 2))).tolist() == []
