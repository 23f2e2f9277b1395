"""Low-rank kernels: the convolutions one after the other are the kernel they stand for, and errors never rise."""

import itertools

import pytest
import torch
from torch.nn.functional import conv2d

from paretopress.compressors.convolution_factors import (
    spatial_factors,
    spatial_weights,
    tucker_factors,
    tucker_weights,
)
from paretopress.compressors.least_squares import centred, damped_cholesky
from paretopress.compressors.low_rank import whitened_svd
from paretopress.spaces.errors import DataError

SHAPE = (6, 5, 3, 3)


def layer(shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    columns = shape[1] * shape[2] * shape[3]
    x = torch.randn(500, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    x = torch.cat([x + 0.5, torch.ones(500, 1)], dim=1).double()
    return torch.randn(shape, generator=generator), x.T @ x / 500


def error(W, kernel, G):
    C, _ = centred(G)
    C = C + damped_cholesky(C, 1e-4)[1] * torch.eye(len(C))
    difference, dense = (W - kernel).double().flatten(1), W.double().flatten(1)
    return float(((difference @ C) * difference).sum() / ((dense @ C) * dense).sum())


def joined(kernels):
    """The kernel of convolutions one after the other, from what they do to unit impulses."""
    if len(kernels) == 2:
        return torch.einsum("orxw,rihy->oihw", kernels[1], kernels[0])
    return torch.einsum("obxy,bahw,aixy->oihw", kernels[2], kernels[1], kernels[0])


@pytest.mark.parametrize("shape", [SHAPE, (4, 7, 3, 5), (8, 3, 1, 3)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_spatial_kernels_compute_what_they_stand_for(shape, rank):
    W, G = layer(shape)
    found = spatial_factors(W, G, rank)
    x = torch.randn(2, shape[1], 9, 9, generator=torch.Generator().manual_seed(1))
    padding = (shape[2] // 2, shape[3] // 2)
    chained = conv2d(conv2d(x, found.kernels[0], padding=(padding[0], 0)), found.kernels[1], padding=(0, padding[1]))
    assert torch.allclose(chained, conv2d(x, joined(found.kernels), padding=padding), atol=1e-4)
    assert found.weights == spatial_weights(rank, shape)
    assert found.errors[-1] == pytest.approx(error(W, joined(found.kernels), G), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (4, 2), (5, 6)])
def test_tucker_kernels_compute_what_they_stand_for(ranks):
    W, G = layer()
    found = tucker_factors(W, G, ranks)
    x = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(1))
    chained = x
    for kernel, padding in zip(found.kernels, (0, 1, 0), strict=True):
        chained = conv2d(chained, kernel, padding=padding)
    assert torch.allclose(chained, conv2d(x, joined(found.kernels), padding=1), atol=1e-4)
    assert found.weights == tucker_weights(ranks, SHAPE)
    assert found.errors[-1] == pytest.approx(error(W, joined(found.kernels), G), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("factors", [lambda W, G: spatial_factors(W, G, 15), lambda W, G: tucker_factors(W, G, (5, 6))])
def test_full_rank_is_exact(factors):
    W, G = layer()
    assert factors(W, G).errors[-1] < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_errors_never_rise_with_rounds_nor_with_rank_and_data_help(seed):
    W, G = layer(seed=seed)
    identity = torch.eye(len(G), dtype=torch.float64)
    identity[-1, -1] = 1.0
    for factors, levels in ((spatial_factors, (1, 3, 6)), (tucker_factors, ((1, 2), (2, 3), (4, 4)))):
        last = []
        for level in levels:
            found = factors(W, G, level)
            assert all(after <= before * (1 + 1e-6) + 1e-12 for before, after in itertools.pairwise(found.errors))
            blind = factors(W, identity, level)
            assert found.errors[-1] <= 1.001 * error(W, joined(blind.kernels), G)
            last.append(found.errors[-1])
        assert last[0] > last[1] > last[2]


def test_tucker_with_all_inputs_is_the_whitened_decomposition():
    """With `r1 = in` only the outputs are cut: the closed form is known."""
    W, G = layer()
    found = tucker_factors(W, G, (5, 3))
    losses = whitened_svd(W.flatten(1), G).losses()
    C, _ = centred(G)
    C = C + damped_cholesky(C, 1e-4)[1] * torch.eye(len(C))
    dense = W.double().flatten(1)
    assert found.errors[-1] == pytest.approx(float(losses[2] / ((dense @ C) * dense).sum()), rel=1e-4)


@pytest.mark.parametrize("call", [
    lambda W, G: spatial_factors(W, G, 0), lambda W, G: spatial_factors(W, G, 16),
    lambda W, G: tucker_factors(W, G, (0, 1)), lambda W, G: tucker_factors(W, G, (5, 7)),
])
def test_impossible_ranks_are_refused(call):
    with pytest.raises(DataError, match=r"rank \d+ is outside"):
        call(*layer())
