"""Accumulated moments against direct unfolding."""

import pytest
import torch
from torch.nn import functional

from paretopress.compressors.least_squares import refit_from_moments
from paretopress.compressors.moments import Moments
from paretopress.spaces.errors import DataError


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def _direct(rows):
    rows = torch.cat([rows.double(), torch.ones(*rows.shape[:-1], 1)], dim=-1)
    return rows.transpose(-1, -2) @ rows / rows.shape[-2]


def _unfold(x, window, stride, padding, dilation, groups):
    if x.ndim == 3:
        x, window, stride = x.unsqueeze(2), (1, *window), (1, *stride)
        padding, dilation = (0, *padding), (1, *dilation)
    columns = functional.unfold(x, window, dilation, padding, stride)  # (n, c * window, positions)
    return columns.transpose(1, 2).reshape(-1, groups, columns.shape[1] // groups).transpose(0, 1)


CONVOLUTIONS = [
    ((3, 4, 9, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((3, 4, 9, 7), (3, 2), (2, 1), (0, 1), (1, 2), 1),
    ((2, 6, 8, 8), (3, 3), (2, 2), (1, 1), (1, 1), 6),
    ((2, 6, 8, 8), (3, 3), (1, 1), (2, 2), (2, 2), 3),
    ((4, 5, 8, 8), (1, 1), (2, 2), (0, 0), (1, 1), 1),
    ((4, 6, 20), (5,), (2,), (2,), (1,), 1),
    ((4, 6, 20), (3,), (1,), (2,), (2,), 2),
]


@pytest.mark.parametrize(("shape", "window", "stride", "padding", "dilation", "groups"), CONVOLUTIONS)
@pytest.mark.parametrize("chunk", [50, 4_000_000])
def test_convolution_moments_equal_direct_unfolding(
    monkeypatch, shape, window, stride, padding, dilation, groups, chunk
):
    monkeypatch.setattr("paretopress.compressors.moments._CHUNK_ELEMENTS", chunk)
    x = torch.randn(shape) + 1.0
    moments = Moments()
    for batch in x.split(2):
        moments.accumulate_conv(batch, window, stride, padding, dilation, groups)
    expected = _direct(_unfold(x, window, stride, padding, dilation, groups))
    torch.testing.assert_close(moments.second_moments(), expected, rtol=1e-5, atol=1e-5)


def test_the_moments_give_the_mean_output_of_the_convolution():
    convolution = torch.nn.Conv2d(4, 5, (3, 2), stride=2, padding=1, dilation=2)
    x = torch.randn(2, 4, 11, 9)
    moments = Moments()
    moments.accumulate_conv(x, (3, 2), (2, 2), (1, 1), (2, 2))
    W = torch.cat([convolution.weight.flatten(1), convolution.bias.unsqueeze(1)], 1).double()
    y = convolution(x).double()
    G = moments.second_moments()[0]
    torch.testing.assert_close(W @ G[:, -1], y.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    energy = ((W @ G) * W).sum(dim=1)
    torch.testing.assert_close(energy, y.square().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_asymmetric_padding_and_strided_inputs():
    x = torch.randn(2, 8, 8, 3).permute(0, 3, 1, 2)[:, :, 1:, ::2]
    moments = Moments()
    moments.accumulate_conv(x, (2, 2), (1, 1), ((0, 1), (1, 0)), (1, 1))
    padded = functional.pad(x, (1, 0, 0, 1))
    expected = _direct(_unfold(padded, (2, 2), (1, 1), (0, 0), (1, 1), 1))
    torch.testing.assert_close(moments.second_moments(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_linear_moments_equal_the_direct_product(monkeypatch, dtype):
    monkeypatch.setattr("paretopress.compressors.moments._CHUNK_ELEMENTS", 40)
    x = torch.randn(6, 5, 8).to(dtype)
    moments = Moments()
    moments.accumulate_linear(x[:2])
    moments.accumulate_linear(x[2:])
    assert moments.count == 30
    torch.testing.assert_close(moments.second_moments()[0], _direct(x.reshape(-1, 8)), rtol=1e-5, atol=1e-5)


def test_sampled_positions_are_few_distinct_and_repeatable():
    x = torch.randn(5, 3, 12, 12)

    def sampled(seed):
        moments = Moments()
        moments.accumulate_conv(x, (3, 3), (1, 1), (1, 1), (1, 1), 1, 20, torch.Generator().manual_seed(seed))
        assert moments.count == 100
        return moments.second_moments()

    assert torch.equal(sampled(0), sampled(0))
    assert not torch.equal(sampled(0), sampled(1))
    full = _direct(_unfold(x, (3, 3), (1, 1), (1, 1), (1, 1), 1))
    average = torch.stack([sampled(seed) for seed in range(200)]).mean(dim=0)
    torch.testing.assert_close(average, full, rtol=0.0, atol=0.06)


def test_every_position_is_sampled_once_when_all_but_none_are_asked_for():
    x = torch.arange(36.0).reshape(1, 1, 6, 6)
    moments = Moments()
    moments.accumulate_conv(x, (1, 1), (1, 1), (0, 0), (1, 1), 1, 35, torch.Generator().manual_seed(0))
    missing = 36 * 17.5 - 35 * float(moments.second_moments()[0, 0, 1])
    squares = float((x**2).sum()) - 35 * float(moments.second_moments()[0, 0, 0])
    assert squares == pytest.approx(missing**2, rel=1e-4, abs=1e-2)


def test_cross_moments_fit_the_teacher():
    teacher = torch.nn.Conv2d(4, 6, 3, padding=1, groups=2)
    x = torch.randn(3, 4, 9, 9) + 0.5
    moments = Moments()
    for batch in x.split(1):
        generator = torch.Generator().manual_seed(7)
        moments.accumulate_conv(
            batch, (3, 3), (1, 1), (1, 1), (1, 1), 2, 60, generator, targets=teacher(batch)
        )
    G, cross = moments.second_moments(), moments.cross()
    assert cross.shape == (2, 3, 19)
    weight, bias = teacher.weight.detach().flatten(1), teacher.bias.detach()
    for group in range(2):
        rows = slice(3 * group, 3 * group + 3)
        W, b = refit_from_moments(cross[group], G[group], 1e-9, torch.zeros(3, 18))
        torch.testing.assert_close(W, weight[rows], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(b, bias[rows], rtol=1e-3, atol=1e-4)


def test_linear_cross_moments():
    x, y = torch.randn(30, 4), torch.randn(30, 2)
    moments = Moments()
    moments.accumulate_linear(x, y)
    expected = y.double().T @ torch.cat([x, torch.ones(30, 1)], 1).double() / 30
    torch.testing.assert_close(moments.cross()[0], expected, rtol=1e-5, atol=1e-6)


def test_faults_are_named():
    with pytest.raises(DataError, match="no observations"):
        Moments().second_moments()
    moments = Moments()
    moments.accumulate_linear(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(DataError, match="not finite"):
        moments.second_moments()
    with pytest.raises(DataError, match="every batch"):
        moments.accumulate_linear(torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(DataError, match="no observations"):
        moments.cross()
    with pytest.raises(DataError, match="smaller than the window"):
        Moments().accumulate_conv(torch.ones(1, 1, 2, 2), (3, 3), (1, 1), (0, 0), (1, 1))
    with pytest.raises(DataError, match="do not fit"):
        Moments().accumulate_conv(
            torch.ones(1, 1, 4, 4), (3, 3), (1, 1), (0, 0), (1, 1), targets=torch.ones(1, 1, 4, 4)
        )
