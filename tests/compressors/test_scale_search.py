"""The search for scales by sums of sorted weights, against every step of the grid tried on every weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.compressors import scale_search
from paretopress.compressors.scale_search import SMALLEST_SHRINK, STEPS, scales_at_levels


def matrix(seed, rows=5, columns=33):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, generator=generator) * torch.exp(torch.randn(rows, 1, generator=generator))
    W[1] = 0.0
    W[2] = W[2].sign()               # all of one size
    W[3, 5:] = 0.0
    return W, torch.rand(rows, columns, generator=generator) ** 3


def errors(W, scales, level, importance):
    """Weighted squared error of every row, float64."""
    steps = scales.double().unsqueeze(1)
    rounded = (W.double() / steps).round().clamp(-level, level) * steps
    return ((rounded - W.double()).square() * importance.double()).sum(dim=1)


def tried_one_by_one(W, level, importance):
    full = W.abs().amax(dim=1) / level
    full = torch.where(full > 0.0, full, torch.ones_like(full))
    found = [errors(W, full * shrink, level, importance)
             for shrink in torch.linspace(1.0, SMALLEST_SHRINK, STEPS).tolist()]
    return torch.stack(found).amin(dim=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 3, 7, 127]), st.sampled_from(["none", "shared", "own"]),
       st.sampled_from([33, 500]))
def test_no_step_of_the_grid_has_a_smaller_error(seed, level, kind, columns):
    W, own = matrix(seed, columns=columns)   # of 500 columns weights of up to 7 levels are not rounded one by one
    importance = {"none": None, "shared": own[0], "own": own}[kind]
    weights = torch.ones_like(W) if importance is None else importance.expand(W.shape)
    found = scales_at_levels(W, [level], importance)[0]
    best = tried_one_by_one(W, level, weights)
    assert found.dtype == torch.float32
    assert bool((found > 0.0).all())
    assert float(found[1]) == 1.0
    assert bool((errors(W, found, level, weights) <= best * (1.0 + 1e-5) + 1e-12 * W.square().sum()).all())


def test_grids_together_and_rows_in_blocks_are_each_alone(monkeypatch):
    W, importance = matrix(3)
    together = scales_at_levels(W, [1, 7, 127], importance)
    monkeypatch.setattr(scale_search, "CACHED_VALUES", 1)
    for level, found in zip([1, 7, 127], together, strict=True):
        assert torch.equal(found, scales_at_levels(W, [level], importance)[0])


@pytest.mark.parametrize("level", [1, 127])
def test_stopping_early_loses_nothing(level, monkeypatch):
    W, importance = matrix(7, rows=40)
    early = scales_at_levels(W, [level], importance)[0]
    monkeypatch.setattr(scale_search, "AT_ONCE", STEPS)
    assert torch.equal(early, scales_at_levels(W, [level], importance)[0])
