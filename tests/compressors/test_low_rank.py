"""Whitened SVD: exact truncation losses, optimality, and the mean."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.compressors.least_squares import centred, reconstruction_error
from paretopress.compressors.low_rank import Spectrum, budget_ranks, energy_rank, pays, whitened_svd
from paretopress.spaces.errors import DataError

ALL = torch.arange(12)


def _layer(out=7, columns=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    x = torch.randn(400, columns, generator=generator) @ mixing + 2.0
    x = torch.cat([x, torch.ones(400, 1)], 1).double()
    W, bias = torch.randn(out, columns, generator=generator), torch.randn(out, generator=generator)
    return W, bias, x.T @ x / 400


@pytest.mark.parametrize("out", [7, 20])
def test_truncation_loss_is_the_measured_output_error(out):
    W, bias, G = _layer(out)
    svd = whitened_svd(W, G, damping=0.0)
    losses = svd.losses()
    assert len(losses) == min(out, 12)
    assert (losses.diff() <= 0).all()
    for rank in range(1, len(losses) + 1):
        first, second = svd.factors(rank)
        assert first.shape == (rank, 12)
        assert second.shape == (out, rank)
        error = reconstruction_error(W, bias, G, second @ first, svd.bias(W, bias, rank), ALL) * out
        assert error == pytest.approx(float(losses[rank - 1]), rel=1e-4, abs=1e-6 * float(losses[0]))


def test_each_dropped_singular_value_costs_its_square():
    W, _, G = _layer()
    svd = whitened_svd(W, G)
    losses = torch.cat([svd.sigma.square().sum().reshape(1), svd.losses()])
    torch.testing.assert_close(-losses.diff(), svd.sigma.square(), rtol=1e-9, atol=1e-9)


def test_no_other_factors_of_the_rank_are_better():
    W, _, G = _layer()
    rank = 3
    svd = whitened_svd(W, G, damping=0.0)
    C, _ = centred(G)
    best = float(svd.losses()[rank - 1])
    U, sigma, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    plain = W.double() - (U[:, :rank] * sigma[:rank]) @ Vh[:rank]
    assert best < 0.9 * float(((plain @ C) * plain).sum())
    first, second = svd.factors(rank)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        A = second.double() + 0.01 * torch.randn(second.shape, generator=generator)
        B = first.double() + 0.01 * torch.randn(first.shape, generator=generator)
        difference = W.double() - A @ B
        assert float(((difference @ C) * difference).sum()) >= best * (1 - 1e-6)


def test_full_rank_restores_the_layer_and_low_rank_keeps_the_mean_output():
    W, bias, G = _layer()
    svd = whitened_svd(W, G)
    first, second = svd.factors(7)
    torch.testing.assert_close(second @ first, W, rtol=1e-4, atol=1e-4)
    first, second = svd.factors(2)
    mean = G[:-1, -1].float()
    torch.testing.assert_close(
        second @ (first @ mean) + svd.bias(W, bias, 2), W @ mean + bias, rtol=1e-4, atol=1e-4
    )


def test_factors_are_balanced_nested_and_repeatable():
    W, _, G = _layer()
    svd = whitened_svd(W, G)
    first, second = svd.factors(4)
    torch.testing.assert_close(svd.factors(2)[0], first[:2])
    torch.testing.assert_close(second.square().sum(dim=0).double(), svd.sigma[:4], rtol=1e-5, atol=1e-5)
    again = whitened_svd(W.clone(), G.clone())
    assert torch.equal(again.U, svd.U)
    assert torch.equal(again.V, svd.V)
    largest = svd.U.gather(0, svd.U.abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()


def test_constant_inputs_stay_finite():
    W, bias, _ = _layer()
    G = torch.full((13, 13), 1.0)
    svd = whitened_svd(W, G)
    first, second = svd.factors(2)
    corrected = svd.bias(W, bias, 2)
    assert reconstruction_error(W, bias, G, second @ first, corrected, ALL) < 1e-8


def test_pays():
    assert pays(28, 64, 64 * 1) is True
    assert pays(32, 64, 64) is False
    assert pays(31, 64, 64) is True


def brute_force(spectra, budget):
    """The least energy that any ranks lose within a budget, None where none fit."""
    combinations = itertools.product(*(spectrum.options for spectrum in spectra))
    sums = [(sum(one[0] for one in some), sum(one[1] for one in some)) for some in combinations]
    return min((lost for weights, lost in sums if weights <= budget), default=None)


@st.composite
def some_spectra(draw):
    found = []
    for _ in range(draw(st.integers(1, 3))):
        out, columns = draw(st.integers(2, 9)), draw(st.integers(2, 9))
        values = draw(st.lists(st.floats(0, 4), min_size=min(out, columns), max_size=min(out, columns)))
        found.append(Spectrum(torch.tensor(sorted(values, reverse=True)), out, columns))
    return found


@given(some_spectra(), st.integers(0, 250))
@settings(max_examples=200, deadline=None)
def test_ranks_of_a_budget_are_the_best_up_to_one_step(spectra, budget):
    best = brute_force(spectra, budget)
    if best is None:
        with pytest.raises(DataError, match="fewer than the"):
            budget_ranks(spectra, budget)
        return
    chosen = [next(option for option in spectrum.options if option[2] == rank)
              for spectrum, rank in zip(spectra, budget_ranks(spectra, budget), strict=True)]
    used, lost = sum(option[0] for option in chosen), sum(option[1] for option in chosen)
    assert used <= budget
    assert lost >= best - 1e-6
    assert lost <= best + max(spectrum.options[0][1] for spectrum in spectra) + 1e-6   # the largest step there is
    if used == sum(spectrum.out * spectrum.columns for spectrum in spectra):
        assert lost == 0.0


@given(st.integers(0, 10**6), st.floats(1e-3, 0.1))
@settings(max_examples=60, deadline=None)
def test_ranks_of_a_budget_are_optimal_where_all_steps_above_some_gain_fit(seed, price):
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randint(3, 10, (3, 2), generator=generator).tolist()
    spectra = [Spectrum(torch.rand(min(side), generator=generator).sort(descending=True).values, *side)
               for side in sides]
    budget = sum(min(spectrum.options, key=lambda one: one[1] + price * one[0])[0] for spectrum in spectra)
    ranks = budget_ranks(spectra, budget)
    lost = sum(next(lost for _, lost, one in spectrum.options if one == rank)
               for spectrum, rank in zip(spectra, ranks, strict=True))
    assert lost == pytest.approx(brute_force(spectra, budget), abs=1e-9)
    assert budget_ranks(spectra, 10**6) == [None, None, None]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.floats(0.01, 1.0))
def test_the_rank_of_an_energy_is_the_smallest_that_keeps_it(values, share):
    sigma = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    rank, energy = energy_rank(sigma, share), sigma.square()
    assert energy[:rank].sum() >= share * energy.sum() - 1e-9
    assert rank == 1 or energy[: rank - 1].sum() < share * energy.sum() + 1e-9


def test_shares_of_the_energy_by_hand():
    sigma = torch.tensor([3.0, 2.0, 1.0, 0.0])
    assert [energy_rank(sigma, share) for share in (0.5, 9 / 14, 0.65, 0.95, 1.0)] == [1, 1, 2, 3, 3]
    with pytest.raises(DataError, match="outside"):
        energy_rank(sigma, 0.0)
