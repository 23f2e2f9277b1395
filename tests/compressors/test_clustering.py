"""Weight sharing: against brute force and scikit-learn, with exact bytes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from paretopress.compressors.clustering import cluster, shared_values, shared_weights
from paretopress.compressors.least_squares import centred
from paretopress.spaces.errors import DataError


def clustered(W, bits, importance=None):
    codebook, indices = cluster(W, bits, importance)
    return codebook[indices]


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


def test_every_weight_takes_the_nearest_value():
    W = torch.randn(30, 41, generator=torch.Generator().manual_seed(0))
    codebook, indices = cluster(W, 3)
    assert indices.shape == W.shape
    assert codebook.shape == (8,)
    nearest = (W[..., None] - codebook).abs().argmin(dim=-1)
    assert torch.equal(codebook[nearest], codebook[indices])


def test_more_bits_and_known_importances_help():
    W = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    variances = torch.logspace(-2, 1, 64)
    errors = [float(((W - clustered(W, bits)) ** 2).sum()) for bits in range(1, 9)]
    assert all(after < before for before, after in itertools.pairwise(errors))
    blind, aware = (float((variances * (W - clustered(W, 2, by)) ** 2).sum()) for by in (None, variances))
    assert aware < blind


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_with_feedback_outputs_are_nearer_and_rows_of_any_size_alike(bits, groups):
    generator = torch.Generator().manual_seed(bits)
    W = torch.randn(8, 30, generator=generator) * torch.logspace(-3, 3, 8).unsqueeze(1)
    x = torch.randn(groups, 400, 30, generator=generator) @ torch.randn(groups, 30, 30, generator=generator)
    x = torch.cat([x, torch.ones(groups, 400, 1)], dim=2).double()
    G = x.transpose(1, 2) @ x / 400
    covariance, _ = centred(G)
    found = shared_weights(W, G if groups > 1 else G[0], bits)

    def error(weight):
        difference = (W - weight).double().reshape(groups, -1, 30)
        dense = W.double().reshape(groups, -1, 30)
        lost, whole = (((part @ covariance) * part).sum(dim=2).flatten() for part in (difference, dense))
        return lost / whole

    unit = W / W.square().mean(dim=1, keepdim=True).sqrt()
    nearest = clustered(unit, bits, covariance.diagonal(dim1=1, dim2=2).repeat_interleave(8 // groups, dim=0))
    nearest = nearest * W.square().mean(dim=1, keepdim=True).sqrt()
    assert bool((error(found.weight()) <= error(nearest) * 1.0001).all())
    assert float(error(found.weight()).mean()) < 0.9 * float(error(nearest).mean())


def test_what_is_masked_stays_zero():
    generator = torch.Generator().manual_seed(0)
    W, mask = torch.randn(6, 20, generator=generator), torch.rand(6, 20, generator=generator) < 0.4
    found = shared_weights(W * mask, torch.eye(21), 4, mask)
    error = (W * mask - found.weight() * mask).square().sum() / (W * mask).square().sum()
    assert float(error) < 0.02


@pytest.mark.parametrize("W", [torch.zeros(3, 3), torch.tensor([[1.0, 1.0, -2.0]]), torch.zeros(1, 0)])
def test_fewer_values_than_centres_are_exact(W):
    if W.numel():
        assert torch.equal(clustered(W, 4), W)
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
