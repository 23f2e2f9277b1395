"""Nested removal orders against brute force and properties."""

import pytest
import torch

from paretopress.compressors.channel_selection import (
    expand_channels,
    kept_from_order,
    order_by_l1,
    order_by_l2,
    order_by_obs,
    order_by_taylor,
)
from paretopress.compressors.least_squares import centred, reconstruction_error, refit_consumer

DAMPING = 1e-3


def _consumer(channels, window, out, seed):
    generator = torch.Generator().manual_seed(seed)
    columns = channels * window
    mixing = torch.randn(columns, columns, generator=generator)
    x = torch.randn(300, columns, generator=generator) @ mixing + 1.0
    x = torch.cat([x, torch.ones(300, 1)], 1).double()
    return torch.randn(out, columns, generator=generator), x.T @ x / 300, window


def _damped_loss(W, G, kept_columns):
    """Exact damped loss of keeping some columns with the best compensation, over the dense variance."""
    C, _ = centred(G)
    W = W.double()
    energy = ((W @ C) * W).sum()
    H = C + DAMPING * C.diagonal().mean() * torch.eye(len(C), dtype=torch.float64)
    difference = W.clone()
    if len(kept_columns):
        fitted = torch.linalg.solve(H[kept_columns][:, kept_columns], H[kept_columns] @ W.T).T
        difference[:, kept_columns] -= fitted
    return float(((difference @ H) * difference).sum() / energy)


def _brute_force(consumers, block, blocks):
    alive, order = list(range(blocks)), []
    while alive:
        def loss(candidate):
            kept = torch.tensor([b for b in alive if b != candidate], dtype=torch.long)
            channels = expand_channels(kept, block)
            return sum(_damped_loss(W, G, expand_channels(channels, window)) for W, G, window in consumers)

        best = min(alive, key=loss)
        order.append(best)
        alive.remove(best)
    return order


@pytest.mark.parametrize(
    ("shapes", "block", "blocks"),
    [
        ([(7, 1, 4)], 1, 7),
        ([(6, 3, 5)], 1, 6),
        ([(6, 1, 40)], 1, 6),
        ([(6, 1, 4), (6, 4, 3)], 1, 6),
        ([(8, 1, 4), (8, 2, 3)], 2, 4),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_obs_order_equals_brute_force(shapes, block, blocks, seed):
    consumers = [_consumer(*shape, seed + 10 * index) for index, shape in enumerate(shapes)]
    order = order_by_obs(consumers, block, blocks, damping=DAMPING)
    assert order.tolist() == _brute_force(consumers, block, blocks)


def test_obs_order_is_exact_across_compactions(monkeypatch):
    consumers = [_consumer(24, 2, 5, 3), _consumer(24, 1, 9, 4)]
    expected = _brute_force(consumers, 1, 24)
    for pending in (1, 7, 1000):
        monkeypatch.setattr("paretopress.compressors.channel_selection._PENDING_ROWS", pending)
        assert order_by_obs(consumers, damping=DAMPING).tolist() == expected


def test_obs_removes_redundant_and_unused_channels_first():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator)
    x[:, 4] = 2.0 * x[:, 1] + 3.0
    x = torch.cat([x, torch.ones(500, 1)], 1)
    W = torch.randn(4, 6, generator=generator)
    W[:, 2] = 0.0
    order = order_by_obs([(W, x.T @ x / 500, 1)], damping=1e-6).tolist()
    assert 2 in order[:2]
    assert order[0] in (1, 2, 4)
    assert order[1] in (1, 2, 4)


def test_obs_beats_magnitude_on_correlated_inputs():
    W, G, window = _consumer(16, 1, 8, 5)
    bias = torch.zeros(8)

    def error(order):
        kept = expand_channels(kept_from_order(order, 8), window)
        return reconstruction_error(W, bias, G, *refit_consumer(W, bias, G, kept), kept)

    assert error(order_by_obs([(W, G, window)])) < error(order_by_l2([W.T]))


def test_obs_ignores_the_scale_of_a_consumer_and_consumers_of_constants():
    first, second = _consumer(8, 1, 4, 0), _consumer(8, 1, 4, 1)
    constant = torch.full((9, 9), 1.0)
    order = order_by_obs([first, second])
    assert torch.equal(order, order_by_obs([(first[0] * 100.0, first[1], 1), second]))
    assert torch.equal(order, order_by_obs([first, second, (torch.ones(4, 8), constant, 1)]))


def test_obs_is_a_deterministic_permutation():
    consumers = [_consumer(40, 1, 4, 0)]
    order = order_by_obs(consumers)
    assert torch.equal(order, order_by_obs(consumers))
    assert order.sort().values.tolist() == list(range(40))


def test_kept_sets_are_nested_sorted_suffixes():
    order = torch.tensor([3, 0, 2, 1])
    assert kept_from_order(order, 4).tolist() == [0, 1, 2, 3]
    assert kept_from_order(order, 2).tolist() == [1, 2]
    assert kept_from_order(order, 0).tolist() == []
    assert kept_from_order(order, 2, block=2).tolist() == [2, 3, 4, 5]


def test_expand_channels_is_channel_major():
    assert expand_channels(torch.tensor([0, 2]), 3).tolist() == [0, 1, 2, 6, 7, 8]


def test_magnitude_orders_on_a_worked_example():
    W = torch.tensor([[3.0, 0.0], [2.0, 2.0], [0.0, -1.0]])
    assert order_by_l1([W]).tolist() == [2, 0, 1]
    assert order_by_l2([W]).tolist() == [2, 1, 0]
    assert order_by_l1([W, torch.tensor([[0.0], [0.0], [9.0]])]).tolist() == [0, 1, 2]
    assert order_by_l1([torch.tensor([[1.0], [1.0], [5.0], [-5.0]])], block=2).tolist() == [0, 1]


def test_taylor_squares_each_samples_sum():
    scores = torch.tensor([[3.0, -1.0, 2.0], [-3.0, -1.0, 2.1]])
    assert order_by_taylor(scores).tolist() == [1, 2, 0]
    assert order_by_taylor(torch.tensor([[5.0, -5.0, 1.0, 1.0]]), block=2).tolist() == [0, 1]
