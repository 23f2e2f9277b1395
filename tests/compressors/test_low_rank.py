"""Whitened SVD: exact truncation losses, optimality, and the mean."""

import pytest
import torch

from paretopress.compressors.least_squares import centred, reconstruction_error
from paretopress.compressors.low_rank import pays, whitened_svd

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
