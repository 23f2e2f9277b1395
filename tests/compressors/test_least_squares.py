"""Least squares with an intercept against explicit data."""

import pytest
import torch

from paretopress.compressors.least_squares import (
    centred,
    damped_cholesky,
    reconstruction_error,
    refit_consumer,
    refit_from_moments,
)
from paretopress.spaces.errors import DataError


def _data(samples=400, columns=12, out=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    x = torch.randn(samples, columns, generator=generator) @ mixing + 3.0
    augmented = torch.cat([x, torch.ones(samples, 1)], dim=1).double()
    G = augmented.T @ augmented / samples
    W, bias = torch.randn(out, columns, generator=generator), torch.randn(out, generator=generator)
    return x, G, W, bias


def assert_layer_equals(W, bias, expected):
    torch.testing.assert_close(torch.cat([W, bias[:, None]], 1).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_refit_equals_lstsq_on_explicit_data():
    x, G, W, bias = _data()
    kept = torch.tensor([0, 2, 3, 7, 11])
    W_new, bias_new = refit_consumer(W, bias, G, kept, damping=0.0)
    design = torch.cat([x[:, kept], torch.ones(len(x), 1)], dim=1).double()
    expected = torch.linalg.lstsq(design, x.double() @ W.double().T + bias.double()).solution.T
    assert_layer_equals(W_new, bias_new, expected)


def test_damped_refit_equals_ridge_towards_the_old_weights_with_a_free_intercept():
    x, G, W, bias = _data()
    kept = torch.tensor([1, 4, 5, 6])
    damping = 0.3
    W_new, bias_new = refit_consumer(W, bias, G, kept, damping)
    strength = damping * float(x[:, kept].double().var(dim=0, correction=0).mean()) * len(x)
    design = torch.cat([x[:, kept], torch.ones(len(x), 1)], dim=1).double()
    target = x.double() @ W.double().T + bias.double()
    penalty = torch.cat([torch.eye(4), torch.zeros(4, 1)], dim=1).double() * strength**0.5
    design = torch.cat([design, penalty])
    target = torch.cat([target, W[:, kept].double().T * strength**0.5])
    expected = torch.linalg.lstsq(design, target).solution.T
    assert_layer_equals(W_new, bias_new, expected)


@pytest.mark.parametrize("damping", [0.0, 1e-3, 10.0])
def test_keeping_everything_returns_the_layer(damping):
    _, G, W, bias = _data()
    W_new, bias_new = refit_consumer(W, bias, G, torch.arange(12), damping)
    torch.testing.assert_close(W_new, W, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias_new, bias, rtol=1e-3, atol=1e-3)


def test_keeping_nothing_leaves_the_mean_output():
    x, G, W, bias = _data()
    W_new, bias_new = refit_consumer(W, bias, G, torch.empty(0, dtype=torch.long))
    assert W_new.shape == (5, 0)
    torch.testing.assert_close(bias_new, x.mean(0) @ W.T + bias, rtol=1e-4, atol=1e-4)


def test_reconstruction_error_is_the_mean_squared_output_error():
    x, G, W, bias = _data()
    kept = torch.tensor([0, 1, 5])
    W_new, bias_new = torch.randn(5, 3), torch.randn(5)
    measured = ((x @ W.T + bias - x[:, kept] @ W_new.T - bias_new).double() ** 2).mean()
    assert reconstruction_error(W, bias, G, W_new, bias_new, kept) == pytest.approx(float(measured), rel=1e-4)


def test_refit_reduces_the_error_of_dropping_columns():
    _, G, W, bias = _data()
    kept = torch.arange(0, 12, 2)
    dropped = reconstruction_error(W, bias, G, W[:, kept], bias, kept)
    refitted = reconstruction_error(W, bias, G, *refit_consumer(W, bias, G, kept), kept)
    assert refitted < 0.5 * dropped


def test_refit_from_moments_recovers_the_teacher_through_changed_inputs():
    x, _, W, bias = _data(columns=6)
    changed = x[:, :4] * 0.5 + 0.1 * x[:, 4:5] + 1.0
    augmented = torch.cat([changed, torch.ones(len(x), 1)], 1).double()
    y = (x @ W.T + bias).double()
    cross, G = y.T @ augmented / len(x), augmented.T @ augmented / len(x)
    W_new, bias_new = refit_from_moments(cross, G, 0.0, prior=W[:, :4])
    expected = torch.linalg.lstsq(augmented, y).solution.T
    assert_layer_equals(W_new, bias_new, expected)


def test_strong_damping_returns_the_prior():
    _, G, W, _ = _data()
    prior = torch.randn(5, 12)
    W_new, _ = refit_from_moments(torch.zeros(5, 13), G, 1e12, prior)
    torch.testing.assert_close(W_new, prior)
    assert not torch.allclose(W_new, W)


def test_constant_and_duplicate_inputs_stay_finite():
    x = torch.cat([torch.full((50, 2), 7.0), torch.randn(50, 1).repeat(1, 3)], 1)
    augmented = torch.cat([x, torch.ones(50, 1)], 1)
    G = augmented.T @ augmented / 50
    W, bias = torch.randn(3, 5), torch.randn(3)
    kept = torch.tensor([0, 2])
    W_new, bias_new = refit_consumer(W, bias, G, kept, damping=1e-6)
    assert reconstruction_error(W, bias, G, W_new, bias_new, kept) < 1e-4
    W_new, _ = refit_consumer(W, bias, G, torch.tensor([0, 1]))
    assert torch.isfinite(W_new).all()


def test_bad_moments_are_refused():
    with pytest.raises(DataError, match="not finite"):
        centred(torch.full((3, 3), float("nan")))
    with pytest.raises(DataError, match="positive semi-definite"):
        damped_cholesky(torch.tensor([[1.0, 1e6], [1e6, 1.0]], dtype=torch.float64), 1e-3)


def test_parameters_that_require_gradients_are_only_read():
    _, G, W, bias = _data()
    W.requires_grad_()
    W_new, bias_new = refit_consumer(W, bias.requires_grad_(), G, torch.arange(6))
    assert not W_new.requires_grad
    assert not bias_new.requires_grad
