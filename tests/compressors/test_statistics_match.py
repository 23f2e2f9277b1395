"""Statistics matching equals BatchNorm re-estimation and is safe on dead channels."""

import torch

from paretopress.compressors.statistics_match import fold_affine, match_statistics


def _statistics(y):
    return y.mean(dim=0), y.std(dim=0, correction=0)


def _outputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(500, 6, generator=generator) * torch.linspace(0.5, 3.0, 6) + torch.arange(6.0)
    compressed = 0.6 * dense + 0.2 * torch.randn(500, 6, generator=generator) - 1.0
    return dense, compressed


def test_the_dense_statistics_are_restored():
    dense, compressed = _outputs()
    scale, shift = match_statistics(*_statistics(dense), *_statistics(compressed))
    mean, std = _statistics(compressed * scale + shift)
    torch.testing.assert_close(mean, dense.mean(dim=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(std, dense.std(dim=0, correction=0), rtol=1e-4, atol=1e-4)


def test_it_equals_batch_norm_re_estimation():
    dense, compressed = _outputs()
    norm = torch.nn.BatchNorm1d(6, momentum=None, eps=1e-9)
    norm.weight.data, norm.bias.data = torch.linspace(0.5, 1.5, 6), torch.linspace(-1.0, 1.0, 6)
    norm(dense)
    dense_norm = norm.eval()(dense)
    mean, std = norm.running_mean.clone(), norm.running_var.sqrt()
    folded = (compressed - mean) / std * norm.weight + norm.bias
    scale, shift = match_statistics(*_statistics(dense_norm), *_statistics(folded))
    norm.reset_running_stats()
    norm.train()(compressed)
    torch.testing.assert_close(folded * scale + shift, norm.eval()(compressed), rtol=5e-3, atol=5e-3)


def test_equal_statistics_change_nothing():
    dense, _ = _outputs()
    scale, shift = match_statistics(*_statistics(dense), *_statistics(dense))
    assert torch.equal(scale, torch.ones(6))
    assert torch.equal(shift, torch.zeros(6))


def test_guards():
    dense_mean = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    dense_std = torch.tensor([1.0, 0.0, 0.0, 100.0, float("nan")])
    compressed_mean = torch.tensor([0.5, 1.0, 2.5, 0.0, 1.0])
    compressed_std = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0])
    scale, shift = match_statistics(dense_mean, dense_std, compressed_mean, compressed_std)
    assert scale.tolist() == [1.0, 0.0, 1.0, 4.0, 1.0]
    assert shift.tolist() == [0.5, 2.0, 0.5, 4.0, 0.0]


def test_all_channels_dead():
    zero = torch.zeros(3)
    scale, shift = match_statistics(torch.ones(3), zero, zero, zero)
    assert scale.tolist() == [1.0, 1.0, 1.0]
    assert shift.tolist() == [1.0, 1.0, 1.0]


def test_the_map_folds_into_the_layer():
    generator = torch.Generator().manual_seed(0)
    W, x = torch.randn(4, 3, generator=generator), torch.randn(9, 3, generator=generator)
    bias = torch.randn(4, generator=generator)
    scale, shift = torch.rand(4, generator=generator), torch.randn(4, generator=generator)
    W_new, bias_new = fold_affine(W, bias, scale, shift)
    expected = (x @ W.T + bias) * scale + shift
    torch.testing.assert_close(x @ W_new.T + bias_new, expected, rtol=1e-5, atol=1e-5)
