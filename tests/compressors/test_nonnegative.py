"""Non-negative factors: no entry is negative, errors never rise, exact ones are found, scikit-learn is no better."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import NMF

from paretopress.compressors.nonnegative import (
    fitted_to_outputs,
    nonnegative_factors,
    sign_split_factors,
    sign_split_pays,
)
from paretopress.spaces.errors import DataError


def random(rows, columns, seed):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000), st.data())
def test_nothing_is_negative_and_errors_never_rise(rows, columns, seed, data):
    rank = data.draw(st.integers(1, min(rows, columns)))
    A = random(rows, columns, seed) * (random(rows, columns, seed + 1) > 0.3)
    found = nonnegative_factors(A, rank)
    assert bool((found.left >= 0.0).all())
    assert bool((found.right >= 0.0).all())
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(found.errors))


@pytest.mark.parametrize("rank", [2, 5, 10])
def test_it_is_as_near_as_scikit_learn(rank):
    A = random(40, 60, 0)
    reference = NMF(rank, init="nndsvda", solver="cd", max_iter=400, tol=1e-6).fit(A.numpy())
    expected = reference.reconstruction_err_**2 / float(A.square().sum())
    assert nonnegative_factors(A, rank).errors[-1] <= 1.02 * expected


def test_rank_one_is_found_exactly():
    A = random(8, 1, 1) @ random(1, 9, 2)
    assert nonnegative_factors(A, 1).errors[-1] < 1e-10


def test_signs_are_split_and_full_rank_leaves_little():
    W = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    first, second = sign_split_factors(W, 6)
    assert first.shape == (12, 8)
    assert second.shape == (6, 12)
    assert bool((first >= 0).all())
    assert bool((second[:, :6] >= 0).all())
    assert bool((second[:, 6:] <= 0).all())
    assert float((W - second @ first).square().sum() / W.square().sum()) < 1e-2
    errors = [float((W - b @ a).square().sum()) for a, b in (sign_split_factors(W, rank) for rank in range(1, 7))]
    assert errors[-1] < errors[2] < errors[0]


def inputs_covariance(columns, seed):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(4 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return torch.cov(mixed.relu().double().T)


def output_error(W, first, second, covariance):
    missing = W.double() - second.double() @ first.double()
    return float((missing @ covariance * missing).sum() / (W.double() @ covariance * W.double()).sum())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000), st.data())
def test_the_error_of_the_outputs_never_rises_and_signs_stay(rows, columns, seed, data):
    rank = data.draw(st.integers(1, min(rows, columns)))
    W, covariance = random(rows, columns, seed) - 0.5, inputs_covariance(columns + 1, seed)[:columns, :columns]
    before = sign_split_factors(W, rank)
    first, second, errors = fitted_to_outputs(W, *before, covariance)
    assert all(after <= earlier for earlier, after in itertools.pairwise(errors))
    assert errors[-1] == pytest.approx(output_error(W, first, second, covariance), rel=2e-2, abs=1e-6)
    assert bool((first >= 0.0).all())
    assert bool((second[:, :rank] >= 0.0).all())
    assert bool((second[:, rank:] <= 0.0).all())


@pytest.mark.parametrize(("shape", "rank"), [((16, 144), 6), ((64, 96), 12)])
def test_a_fit_to_the_outputs_leaves_less_than_half_of_their_error(shape, rank):
    W, covariance = random(*shape, 5) - 0.5, inputs_covariance(shape[1], 6)
    plain, fitted = (output_error(W, *sign_split_factors(W, rank, metric), covariance) for metric in (None, covariance))
    lowest = float(torch.linalg.svdvals(W @ torch.linalg.cholesky(covariance))[2 * rank:].square().sum()
                   / (W @ covariance * W).sum())
    assert lowest <= fitted < 0.5 * plain


def test_gradients_find_what_non_negative_least_squares_finds():
    from scipy.optimize import nnls

    W, covariance = random(1, 20, 7) - 0.3, inputs_covariance(20, 8)
    first, second, _ = fitted_to_outputs(W, *sign_split_factors(W, 1), covariance)
    root = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(20))
    signed = torch.cat([torch.eye(20), -torch.eye(20)]).double()
    expected = nnls((signed @ root).T.numpy(), (W @ root).squeeze(0).numpy())[1] ** 2
    variance = float((W @ covariance * W).sum())
    assert output_error(W, first, second, covariance) <= expected / variance + 2e-2


def test_inputs_that_never_vary_leave_the_factors():
    W = random(4, 6, 9) - 0.5
    plain = sign_split_factors(W, 2)
    assert all(torch.equal(a, b) for a, b in zip(plain, sign_split_factors(W, 2, torch.zeros(6, 6)), strict=True))


def test_ranks_pay_by_both_parts():
    assert sign_split_pays(3, 16, 16)
    assert not sign_split_pays(4, 16, 16)


def test_a_matrix_of_zeros_has_factors_of_zeros():
    found = nonnegative_factors(torch.zeros(3, 4), 2)
    assert not bool((found.left @ found.right).any())


@pytest.mark.parametrize(("A", "rank"), [
    (-torch.ones(2, 2), 1), (torch.full((2, 2), torch.nan), 1), (torch.ones(2, 2), 0), (torch.ones(2, 2), 3),
])
def test_what_cannot_be_factorised_is_refused(A, rank):
    with pytest.raises(DataError, match="non-negative factorisation"):
        nonnegative_factors(A, rank)
