"""Transposed convolutions as linear maps of windows: layout, moments, least squares, two factors."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from paretopress.compressors.calibration import accumulate, as_convolution_input, calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.factors import factors
from paretopress.compressors.moments import Moments
from paretopress.compressors.network import forward
from paretopress.compressors.program import apply_layer, build_program
from paretopress.compressors.realise import realise
from paretopress.compressors.tuning import tune
from paretopress.spaces.choices import Factorised, Keep, Weights
from paretopress.spaces.layers import Layer, LayerKind
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.weight_layout import as_stored, by_outputs, stored_shape


@st.composite
def transposed(draw):
    """A transposed convolution of one or two dimensions with legal arguments."""
    dimensions, groups = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    inputs, outputs = (groups * draw(st.integers(1, 3)) for _ in range(2))
    window, stride, dilation = (
        tuple(draw(st.integers(1, high)) for _ in range(dimensions)) for high in (3, 3, 2)
    )
    padding = tuple(draw(st.integers(0, d * (k - 1))) for d, k in zip(dilation, window, strict=True))
    more = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    kind = nn.ConvTranspose1d if dimensions == 1 else nn.ConvTranspose2d
    seed = draw(st.integers(0, 1000))
    torch.manual_seed(seed)
    layer = kind(inputs, outputs, window, stride, padding, more, groups, draw(st.booleans()), dilation)
    x = torch.randn(24, inputs, *(draw(st.integers(3, 5)) for _ in range(dimensions)))
    return layer, x


def described(module):
    """The module as a layer of the space."""
    shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    return Layer(
        "up", LayerKind.TRANSPOSED, "up", "up.weight", "up.bias" if module.bias is not None else "", shape,
        module.stride, module.padding, module.dilation, module.groups, output_padding=module.output_padding,
    )


@settings(max_examples=80, deadline=None)
@given(transposed())
def test_layout_and_windows_describe_the_operator(case):
    module, x = case
    layer, groups = described(module), module.groups
    rows = by_outputs(layer, module.weight.detach(), groups)
    assert tuple(rows.shape) == layer.shape
    assert stored_shape(layer, layer.shape, groups) == tuple(module.weight.shape)
    assert torch.equal(as_stored(layer, rows, groups), module.weight)
    with torch.no_grad():
        expected = module(x)
        assert torch.equal(apply_layer(layer, x, rows, module.bias, groups), expected)
        # The same from a plain convolution with the window backwards: what the moments are taken of.
        spread, padding = as_convolution_input(layer, x)
        padded = nn.functional.pad(spread, [amount for side in reversed(padding) for amount in side])
        backwards = rows.flip(tuple(range(2, rows.ndim)))
        convolve = nn.functional.conv1d if rows.ndim == 3 else nn.functional.conv2d
        found = convolve(padded, backwards, module.bias, 1, 0, layer.dilation, groups)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(transposed())
def test_moments_give_the_outputs_of_the_layer(case):
    """`E[y x~] = [W b] G` for the layer's own weights: the columns of G are those of the weight's rows."""
    module, x = case
    layer, groups = described(module), module.groups
    moments = Moments()
    with torch.no_grad():
        accumulate(moments, layer, x, torch.Generator().manual_seed(0), groups=groups, targets=module(x))
    rows = by_outputs(layer, module.weight.detach(), groups).reshape(groups, -1, layer.columns).double()
    bias = torch.zeros(module.out_channels) if module.bias is None else module.bias.detach()
    joined = torch.cat([rows, bias.reshape(groups, -1, 1).double()], dim=2)
    torch.testing.assert_close(moments.cross(), joined @ moments.second_moments(), rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(transposed(), st.sampled_from([8, 4, 2]))
def test_any_of_them_is_pruned_packed_and_realised_exactly(case, bits):
    module, x = case
    assume(module.in_channels > module.groups or module.groups > 1)
    convolution = nn.Conv1d if x.ndim == 3 else nn.Conv2d
    stem, head = convolution(x.shape[1], x.shape[1], 1), convolution(module.out_channels, 3, 1)
    model = nn.Sequential(stem, nn.ReLU(), module, nn.ReLU(), head).eval()
    program = build_program(model, (x[:2],))
    calibration = calibrate(program, [[x]])
    free = {name: why for name, why in program.structure.units.items() if not why}
    choices = {name: Keep(0.5) for name in free if name.endswith("/channels")}
    choices |= {"2/weights": Weights(bits, 32)}
    planned = plan(program.structure, Policy.of(choices))
    network, _ = tune(program, Entries(program, calibration).stitch(planned), calibration)
    compressed = realise(model, program, network)
    assert compressed.delta.graph == ""
    assert compressed.size_bytes == planned.stored_bytes
    with torch.no_grad():
        assert torch.equal(compressed(x), forward(program, network, [x]))


def test_least_squares_is_better_than_removing_inputs_and_as_good_as_a_direct_solution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ConvTranspose2d(12, 4, 3, 2, 1, 1)).eval()
    x = torch.randn(64, 3, 4, 4)
    program = build_program(model, (x[:2],))
    calibration = calibrate(program, [[x]])
    planned = plan(program.structure, Policy.of({"0/channels": Keep(0.5)}))
    errors, networks = {}, {}
    with torch.no_grad():
        for compensate in (True, False):
            entries = Entries(program, calibration, compensate=compensate)
            networks[compensate] = entries.stitch(planned)
            found = forward(program, networks[compensate], [x])
            errors[compensate] = float((found - model(x)).square().mean())
        assert errors[True] < 0.7 * errors[False]
        # Directly: gradient of the squared error in the stored weight and bias, which must nearly vanish.
        kept = networks[True].selection["0"]
        hidden = model[0](x)[:, kept]
        part = networks[True].parts[program.structure.layer("1").node][0]
    weight = as_stored(program.structure.layer("1"), part.weight, 1).requires_grad_(True)
    bias = part.bias.clone().requires_grad_(True)
    loss = (nn.functional.conv_transpose2d(hidden, weight, bias, 2, 1, 1) - model(x).detach()).square().mean()
    loss.backward()
    step = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        step.zero_grad()
        value = (nn.functional.conv_transpose2d(hidden, weight, bias, 2, 1, 1) - model(x).detach()).square().mean()
        value.backward()
        return value

    best = float(step.step(closure).detach())
    assert best <= errors[True] * 1.0001
    assert errors[True] < 1.05 * float(closure().detach())


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_two_factors_are_the_truncated_decomposition(window, stride, rank):
    """White inputs of mean zero: the best factors in the metric of the outputs are those of the plain matrix."""
    torch.manual_seed(1)
    module = nn.ConvTranspose2d(6, 5, window, stride)
    layer = described(module)
    rows = by_outputs(layer, module.weight.detach(), 1)
    moments = torch.eye(layer.columns + 1, dtype=torch.float64)
    (first, second), bias = factors(layer, Factorised("svd", rank), rows.flatten(1), module.bias.detach(), moments)
    assert first.shape == (rank, 6)
    assert second.shape == (5, rank * window**2)
    # Independently, on PyTorch's own layout: (in, out * window).
    matrix = module.weight.detach().double().reshape(6, -1)
    U, sigma, Vh = torch.linalg.svd(matrix, full_matrices=False)
    expected = (U[:, :rank] * sigma[:rank]) @ Vh[:rank]
    joined = torch.einsum("ri,ork->iok", first.double(), second.double().reshape(5, rank, -1)).reshape(6, -1)
    torch.testing.assert_close(joined, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(bias, module.bias.detach(), rtol=1e-4, atol=1e-5)


def test_the_second_factor_knows_of_overlapping_windows():
    """With inputs that are alike side by side, least squares behind the decomposition lowers the output error."""
    torch.manual_seed(2)
    module = nn.ConvTranspose2d(8, 6, 3, 1, 1)
    layer = described(module)
    x = nn.functional.avg_pool2d(torch.randn(128, 8, 8, 8), 3, 1, 1) + 1.0
    moments = Moments()
    accumulate(moments, layer, x, torch.Generator().manual_seed(0), groups=1)
    rows, bias = by_outputs(layer, module.weight.detach(), 1), module.bias.detach()
    second_moments = moments.second_moments()[0]
    (first, second), shift = factors(layer, Factorised("svd", 3), rows.flatten(1), bias, second_moments)
    matrix = module.weight.detach().double().reshape(8, -1)
    U, sigma, Vh = torch.linalg.svd(matrix, full_matrices=False)
    plain = ((U[:, :3] * sigma[:3]) @ Vh[:3]).reshape(8, 6, 3, 3).float()
    with torch.no_grad():
        inner = nn.functional.conv2d(x, first[:, :, None, None])
        outer = as_stored(layer, second.reshape(6, 3, 3, 3), 1)
        ours = nn.functional.conv_transpose2d(inner, outer, shift, 1, 1) - module(x)
        other = nn.functional.conv_transpose2d(x, plain, bias, 1, 1) - module(x)
    assert ours.square().mean() < 0.5 * other.square().mean()
