"""Binary weights: closed forms against brute force, integer products against floats, storage bit for bit."""

import itertools

import pytest
import torch
from artefact_models import POLICIES, choices_of, prepared
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d, linear

from paretopress.compressors.binary import binarise, binary_conv2d, binary_linear
from paretopress.compressors.least_squares import centred, damped_cholesky
from paretopress.compressors.network import as_read
from paretopress.compressors.program import apply_layer
from paretopress.compressors.stored import Signs
from paretopress.spaces.errors import DataError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def moments(columns, seed=0):
    x = torch.randn(300, columns, generator=generator(seed)) @ torch.randn(columns, columns, generator=generator(seed))
    x = torch.cat([x, torch.ones(300, 1)], dim=1).double()
    return x.T @ x / 300


def signs_of(x):
    return torch.where(x >= 0, 1.0, -1.0)


def test_one_base_is_the_best_of_all_signs_and_scales():
    W = torch.randn(1, 6, generator=generator())
    found = binarise(W)
    errors = []
    for signs in itertools.product((-1.0, 1.0), repeat=6):
        row = torch.tensor([signs])
        scale = float((row @ W.T) / 6)
        errors.append(float((W - scale * row).square().sum()))
    assert float((W - found.weight()).square().sum()) == pytest.approx(min(errors), rel=1e-5)
    assert float(found.scales) == pytest.approx(float(W.abs().mean()), rel=1e-6)


@pytest.mark.parametrize("with_moments", [False, True])
def test_every_base_lowers_the_error_and_scales_are_least_squares(with_moments):
    W, G = torch.randn(5, 40, generator=generator(1)), moments(40)
    C = torch.eye(40).double()
    if with_moments:
        C, _ = centred(G)
        C = C + damped_cholesky(C, 1e-2)[1] * torch.eye(40)

    def error(weight):
        difference = (W - weight).double()
        return ((difference @ C) * difference).sum(dim=1)

    found = [binarise(W, bases, G if with_moments else None) for bases in (1, 2, 3)]
    errors = [error(one.weight()) for one in found]
    for nearer, farther in itertools.pairwise(reversed(errors)):
        assert bool((nearer <= farther * 1.0001).all())
    best = found[2]
    for base, change in itertools.product(range(3), (-1e-3, 1e-3)):
        scales = best.scales.clone()
        scales[:, base] += change
        assert bool((error(Signs(best.signs, scales).weight()) >= errors[2] - 1e-6).all())


def test_zero_is_positive_and_rows_of_zeros_stay_zero():
    W = torch.zeros(2, 5)
    W[1, :2] = torch.tensor([0.0, -1.0])
    found = binarise(W, 2)
    assert found.signs[:, 0].tolist() == [[1] * 5, [1, -1, 1, 1, 1]]
    assert torch.equal(found.weight()[0], torch.zeros(5))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 200), st.integers(1, 3), st.integers(0, 1000))
def test_products_of_signs_are_those_of_floats_exactly(out, columns, bases, seed):
    x = torch.randn(7, columns, generator=generator(seed))
    x[0, 0] = 0.0
    matrix = binarise(torch.randn(out, columns, generator=generator(seed + 1)), bases)
    # Sums below 2^24 are exact in floats.
    integers = [linear(signs_of(x), signs.float()) for signs in matrix.signs.unbind(dim=1)]
    expected = sum((one * (matrix.scales[:, base] * 0.5) for base, one in enumerate(integers)), torch.zeros(7, out))
    assert torch.equal(binary_linear(x, matrix, None, 0.5), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.tuples(st.integers(1, 2), st.integers(1, 3)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)), st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.integers(0, 1000),
)
def test_convolutions_of_signs_are_those_of_floats_exactly(channels, window, stride, padding, dilation, seed):
    x = torch.randn(2, channels, 6, 7, generator=generator(seed))
    W = torch.randn(4, channels, *window, generator=generator(seed + 1))
    matrix, bias = binarise(W.flatten(1)), torch.randn(4, generator=generator(seed + 2))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    integers = conv2d(signs_of(x), matrix.signs[:, 0].reshape(W.shape).float(), **geometry)
    expected = integers * (matrix.scales[:, 0] * 2.0)[None, :, None, None] + bias[None, :, None, None]
    assert torch.equal(binary_conv2d(x, matrix, window, bias, 2.0, **geometry), expected)


def test_grouped_layers_use_the_moments_of_their_own_group():
    W, G = torch.randn(4, 10, generator=generator(2)), torch.stack([moments(10, 1), moments(10, 2)])
    together = binarise(W, 2, G)
    apart = [binarise(W[rows], 2, one) for rows, one in zip((slice(0, 2), slice(2, 4)), G, strict=True)]
    assert torch.allclose(together.scales, torch.cat([one.scales for one in apart]))


@pytest.mark.parametrize(
    ("W", "bases"), [(torch.ones(1, 2), 0), (torch.ones(1, 2), 4), (torch.tensor([[torch.nan]]), 1)]
)
def test_impossible_bases_and_weights_are_refused(W, bases):
    with pytest.raises(DataError, match="binarisation"):
        binarise(W, bases)


@pytest.mark.parametrize("name", ["resnet", "mlp"])
def test_layers_of_signs_are_products_of_bits(name):
    """A layer whose weights and inputs are signs computes what exclusive-or and counting bits compute."""
    item = prepared(name)
    network = item.network(choices_of(item, **POLICIES["signs a1"]))
    checked = 0
    for layer in network.plan.layers:
        part = network.parts[layer.layer.node][0]
        if part.inputs is None or layer.groups > 1:
            continue
        channels, scale = layer.shape[1], float(part.inputs.scale)
        sizes = (3, channels, *(9,) * len(layer.layer.window)) if layer.layer.window else (7, channels)
        x = torch.randn(sizes, generator=generator(checked))
        axis = 1 if layer.layer.window else x.ndim - 1
        expected = apply_layer(layer.layer, as_read(layer.layer, part, x), part.weight, part.bias, 1)
        above = x - part.inputs.thresholds.reshape([-1 if at == axis else 1 for at in range(x.ndim)])
        if layer.layer.window:
            geometry = {name: getattr(layer.layer, name) for name in ("stride", "padding", "dilation")}
            found = binary_conv2d(above, part.stored, layer.layer.window, part.bias, scale, **geometry)
        else:
            found = binary_linear(above, part.stored, part.bias, scale)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        checked += 1
    assert checked >= 3
