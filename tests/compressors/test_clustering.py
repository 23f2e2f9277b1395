"""Weight sharing: against brute force and scikit-learn, with exact bytes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from paretopress.compressors.clustering import cluster, shared_values
from paretopress.spaces.errors import DataError


def loss(values, shares, centres):
    return float((shares * np.min((values[:, None] - np.asarray(centres)[None]) ** 2, axis=1)).sum())


def by_brute_force(values, shares, count):
    """The best partition of sorted values into runs."""
    order = np.argsort(values)
    values, shares = values[order], shares[order]
    best = np.inf
    for cuts in itertools.combinations(range(1, len(values)), count - 1):
        runs = np.split(np.arange(len(values)), cuts)
        centres = [np.average(values[run], weights=shares[run] + 1e-12) for run in runs]
        best = min(best, loss(values, shares, centres))
    return best


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 12), st.integers(2, 4), st.integers(0, 1000))
def test_few_values_are_shared_as_well_as_can_be(size, count, seed):
    rng = np.random.default_rng(seed)
    values, shares = rng.normal(size=size), rng.uniform(0.1, 3.0, size)
    found = shared_values(values, shares, count)
    assert len(found) == count
    assert loss(values, shares, found) == pytest.approx(by_brute_force(values, shares, count), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_it_is_no_worse_than_the_best_of_ten_starts_of_scikit_learn(bits):
    rng = np.random.default_rng(bits)
    values, shares = rng.standard_t(4, 5000), rng.uniform(0.1, 2.0, 5000)
    reference = KMeans(1 << bits, n_init=10, random_state=0).fit(values[:, None], sample_weight=shares)
    expected = loss(values, shares, reference.cluster_centers_[:, 0])
    assert loss(values, shares, shared_values(values, shares, 1 << bits)) <= 1.005 * expected


def test_bytes_and_values_of_a_matrix():
    W = torch.randn(30, 41, generator=torch.Generator().manual_seed(0))
    found = cluster(W, 3)
    assert found.indices.shape == W.shape
    assert int(found.indices.max()) < 8
    assert found.size_bytes == (30 * 41 * 3 + 7) // 8 + 8 * 4
    nearest = (W[..., None] - found.codebook).abs().argmin(dim=-1)
    assert torch.equal(found.codebook[nearest], found.weight)


def test_more_bits_and_known_importances_help():
    W = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    variances = torch.logspace(-2, 1, 64)
    errors = [float(((W - cluster(W, bits).weight) ** 2).sum()) for bits in range(1, 9)]
    assert all(after < before for before, after in itertools.pairwise(errors))
    blind, aware = (float((variances * (W - cluster(W, 2, by).weight) ** 2).sum()) for by in (None, variances))
    assert aware < blind


@pytest.mark.parametrize("W", [torch.zeros(3, 3), torch.tensor([[1.0, 1.0, -2.0]]), torch.zeros(1, 0)])
def test_fewer_values_than_centres_are_exact(W):
    if W.numel():
        assert torch.equal(cluster(W, 4).weight, W)
    else:
        with pytest.raises(DataError, match="no weights"):
            cluster(W, 4)


@pytest.mark.parametrize(("W", "bits", "importance"), [
    (torch.ones(2, 2), 0, None), (torch.ones(2, 2), 9, None), (torch.full((2, 2), torch.inf), 2, None),
    (torch.ones(2, 2), 2, -torch.ones(2)),
])
def test_impossible_requests_are_refused(W, bits, importance):
    with pytest.raises(DataError, match="weight sharing"):
        cluster(W, bits, importance)
