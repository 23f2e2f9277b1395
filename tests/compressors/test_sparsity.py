"""Sparsity: masks against brute force, kept weights against least squares row by row."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.compressors.least_squares import centred, damped_cholesky
from paretopress.compressors.sparse_storage import Pattern
from paretopress.compressors.sparsity import (
    block_mask,
    compensated_sparse,
    global_magnitude_masks,
    largest,
    magnitude_mask,
    pattern_mask,
    refit_kept,
)
from paretopress.spaces.errors import DataError


def layer(out=6, columns=24, groups=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(groups or 1, columns, columns, generator=generator)
    x = torch.randn(groups or 1, 400, columns, generator=generator) @ mixing
    x = torch.cat([x + 1.0, torch.ones(*x.shape[:2], 1)], dim=2).double()
    G = x.transpose(1, 2) @ x / 400
    return torch.randn(out, columns, generator=generator), G if groups else G[0]


def damped_covariance(G, damping=1e-2):
    C, _ = centred(G)
    _, amount = damped_cholesky(C, damping)
    return C + amount * torch.eye(len(C), dtype=C.dtype)


def error(W, V, G):
    C, difference = damped_covariance(G), (W - V).double()
    return ((difference @ C) * difference).sum(dim=1)


@pytest.mark.parametrize("groups", [None, 3])
def test_kept_weights_are_the_least_squares_solution_of_every_row(groups):
    W, G = layer(groups=groups)
    mask = magnitude_mask(W, 0.4)
    found = refit_kept(W, mask, G)
    assert torch.equal(found != 0, mask & (found != 0))
    for row in range(len(W)):
        C = damped_covariance(G if groups is None else G[row // (len(W) // groups)])
        kept = mask[row].nonzero().flatten()
        expected = torch.linalg.solve(C[kept][:, kept], C[kept] @ W[row].double())
        assert torch.allclose(found[row, kept].double(), expected, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.3, 0.5, 0.8]))
def test_the_data_aware_mask_beats_magnitude_with_and_without_the_refit(seed, density):
    W, G = layer(seed=seed)
    plain = magnitude_mask(W, density)
    found, mask = compensated_sparse(W, G, density)
    assert int(mask.sum()) == round(density * W.numel())
    refitted = error(W, refit_kept(W, plain, G), G).sum()
    assert refitted <= error(W, W * plain, G).sum()
    assert error(W, found, G).sum() <= 1.0001 * refitted


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([Pattern(2, 4), Pattern(1, 4), Pattern(4, 8)]), st.integers(17, 40))
def test_a_pattern_holds_in_every_group(seed, pattern, columns):
    W, G = layer(columns=columns, seed=seed)
    found, mask = compensated_sparse(W, G, pattern=pattern)
    assert not bool(found[~mask].any())
    for start in range(0, columns, pattern.of):
        group = mask[:, start:start + pattern.of]
        assert bool((group.sum(dim=1) == min(pattern.kept, group.shape[1])).all())
    plain = pattern_mask(W.abs(), pattern)
    assert error(W, found, G).sum() <= 1.1 * error(W, W * plain, G).sum()


@pytest.mark.parametrize("kept", [7, 6, 4])
def test_of_one_row_the_kept_weights_are_nearly_the_best_ones(kept):
    """Against every subset, each with its least-squares solution."""
    worse = []
    for seed in range(8):
        W, G = layer(out=1, columns=8, seed=seed)
        found, mask = compensated_sparse(W, G, density=kept / 8)
        assert int(mask.sum()) == kept
        best = min(float(error(W, refit_kept(W, subset_mask(subset), G), G))
                   for subset in itertools.combinations(range(8), kept))
        worse.append(float(error(W, found, G)) / best)
        assert error(W, found, G) <= 1.0001 * error(W, refit_kept(W, magnitude_mask(W, kept / 8), G), G)
    assert sorted(worse)[4] <= 1.02   # half of them are the best ones


def subset_mask(subset):
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[0, list(subset)] = True
    return mask


def test_on_correlated_inputs_data_help_much():
    """Half of the weights of a layer whose inputs are strongly correlated: a fraction of the error by magnitude."""
    ratios = []
    for seed in range(5):
        W, G = layer(out=32, columns=64, seed=seed)
        found, _ = compensated_sparse(W, G, 0.5)
        ratios.append(float(error(W, found, G).sum() / error(W, W * magnitude_mask(W, 0.5), G).sum()))
    assert max(ratios) < 0.35


def test_pattern_and_block_masks_are_the_best_by_brute_force():
    scores = torch.rand(2, 8, generator=torch.Generator().manual_seed(0))
    found = pattern_mask(scores, Pattern(2, 4))
    for row, start in itertools.product(range(2), (0, 4)):
        group = scores[row, start:start + 4]
        best = max(itertools.combinations(range(4), 2), key=lambda pair: float(group[list(pair)].sum()))
        assert found[row, start:start + 4].nonzero().flatten().tolist() == sorted(best)
    blocks = block_mask(scores, 0.5, (1, 4))
    assert int(blocks.sum()) == 8
    sums = scores.reshape(2, 2, 4).sum(dim=2).flatten()
    assert torch.equal(blocks.reshape(4, 4).all(dim=1), sums >= sums.sort(descending=True).values[1])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.01, 0.3, 0.5, 1.0]), st.integers(1, 6))
def test_of_equal_scores_the_first_are_kept(seed, density, values):
    scores = torch.randint(values, (5, 12), generator=torch.Generator().manual_seed(seed)).float()
    order = sorted(range(60), key=lambda place: (-float(scores.flatten()[place]), place))
    expected = sorted(order[: max(1, round(60 * density))])
    assert largest(scores, density).flatten().nonzero().flatten().tolist() == expected
    mask = pattern_mask(scores, Pattern(2, 5))
    for row, start in itertools.product(range(5), (0, 5, 10)):
        group = scores[row, start:start + 5].tolist()
        wanted = sorted(sorted(range(len(group)), key=lambda place: (-group[place], place))[:2])
        assert mask[row, start:start + 5].nonzero().flatten().tolist() == wanted


@pytest.mark.parametrize("choice", [{"pattern": Pattern(2, 4)}, {"density": 0.3}, {"density": 0.5, "block": (4, 1)}])
def test_wide_layers_in_32_bits_have_the_errors_of_64(choice, monkeypatch):
    W, G = layer(out=40, columns=300)   # 400 observations: the moments are nearly singular
    exact = error(W, compensated_sparse(W, G, **choice)[0], G).sum()
    monkeypatch.setattr("paretopress.compressors.sparsity.EXACT_COLUMNS", 0)
    found, mask = compensated_sparse(W, G, **choice)
    assert not bool(found[~mask].any())
    assert error(W, found, G).sum() < 1.02 * exact


def test_a_mask_that_cannot_win_is_given_up_early_and_the_best_one_is_returned():
    """The winner is the best of the three masks when each of them is solved to the end."""
    for seed in range(10):
        W, G = layer(out=16, columns=48, seed=seed)
        found, _ = compensated_sparse(W, G, 0.5)
        scale = damped_covariance(G).diagonal().sqrt().float()
        plain = (refit_kept(W, magnitude_mask(values, 0.5), G) for values in (W, W * scale))
        assert error(W, found, G).sum() <= 1.0001 * min(error(W, one, G).sum() for one in plain)


def test_a_global_budget_keeps_more_of_the_layer_with_the_heavier_tail_whatever_its_scale():
    generator = torch.Generator().manual_seed(0)
    even = torch.ones(10, 10) + 0.01 * torch.rand(10, 10, generator=generator)
    heavy = torch.randn(10, 10, generator=generator) ** 3
    for scale in (1.0, 1000.0):
        masks = global_magnitude_masks([even * scale, heavy], 0.5)
        assert sum(int(mask.sum()) for mask in masks) == 100
        assert bool(masks[0].any())
        assert int(masks[1].sum()) == int(global_magnitude_masks([even, heavy], 0.5)[1].sum())


@pytest.mark.parametrize("density", [0.0, -1.0, 1.5])
def test_an_impossible_density_is_refused(density):
    W, G = layer()
    with pytest.raises(DataError, match="density"):
        compensated_sparse(W, G, density)
    with pytest.raises(DataError, match="density"):
        magnitude_mask(W, density)
