"""Weight and activation quantisation against brute force, rounding to nearest and ONNX Runtime."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.compressors.least_squares import centred
from paretopress.compressors.quantisation import (
    activation_range,
    corrected_bias,
    dequantise,
    gptq,
    histogram,
    mse_range,
    mse_range_of_histogram,
    quantise_tensor,
    range_by,
    round_to_nearest,
    row_scales,
)
from paretopress.spaces.errors import DataError

GRIDS = [(0.1, 0), (0.0123, 128), (0.25, 17), (3.1e-4, 255), (7.7, 200)]


def _layer(columns=40, out=12, groups=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (groups or 1, 500, columns)
    mixing = torch.randn(groups or 1, columns, columns, generator=generator)
    x = torch.randn(shape, generator=generator) @ mixing
    x = torch.cat([x + 2.0, torch.ones(*shape[:2], 1)], dim=2).double()
    G = x.transpose(1, 2) @ x / 500
    return torch.randn(out, columns, generator=generator), G if groups else G[0]


def _row_errors(W, G, W_quantised):
    C, _ = centred(G)
    difference = W.double() - W_quantised.double()
    return ((difference @ C) * difference).sum(dim=1)


def test_two_bits_are_ternary_and_the_scale_is_the_best_of_a_dense_scan():
    W = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    scales = row_scales(W, 2)
    integers = round_to_nearest(W, scales, 2)
    assert set(integers.unique().tolist()) == {-1, 0, 1}
    error = (dequantise(integers, scales) - W).square().sum(dim=1)
    scan = [s * W.abs().amax(dim=1) for s in torch.linspace(0.05, 1.2, 2000)]
    scanned = [(dequantise(round_to_nearest(W, s, 2), s) - W).square().sum(dim=1) for s in scan]
    assert (error <= torch.stack(scanned).amin(dim=0) * 1.01).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_are_symmetric(bits):
    W = torch.linspace(-1.0, 1.0, 4001).unsqueeze(0)
    integers = round_to_nearest(W, torch.tensor([1e-4]), bits)
    assert integers.min() == -(2 ** (bits - 1) - 1)
    assert integers.max() == 2 ** (bits - 1) - 1


def test_rounding_is_half_to_even_and_zero_rows_have_a_scale():
    W = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5]])
    assert round_to_nearest(W, torch.ones(1), 8).tolist() == [[0, 2, 2, 0, -2]]
    assert row_scales(torch.zeros(2, 3), 4).tolist() == [1.0, 1.0]


def test_weighted_scales_serve_the_heavy_columns():
    W = torch.tensor([[1.0, 0.11, 0.12, 0.13]])
    plain, weighted = row_scales(W, 4), row_scales(W, 4, torch.tensor([1e-9, 1.0, 1.0, 1.0]))
    assert weighted < plain


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("actorder", [True, False])
def test_gptq_rows_are_never_worse_than_rounding_to_nearest(seed, actorder):
    W, G = _layer(seed=seed)
    quantised = gptq(W, G, [2, 3, 4, 8], actorder=actorder)
    for bits, (integers, scales) in quantised.items():
        assert integers.dtype == torch.int8
        assert int(integers.abs().max()) <= 2 ** (bits - 1) - 1
        errors = _row_errors(W, G, dequantise(integers, scales))
        for weights in (None, centred(G)[0].diagonal()):
            plain = row_scales(W, bits, weights)
            nearest = dequantise(round_to_nearest(W, plain, bits), plain)
            assert (errors <= _row_errors(W, G, nearest) * (1 + 1e-6)).all()
        plain = row_scales(W, bits)
        nearest = _row_errors(W, G, dequantise(round_to_nearest(W, plain, bits), plain))
        assert errors.sum() < 0.8 * nearest.sum()


def test_gptq_is_near_the_best_integers_of_an_exhaustive_search():
    W, G = _layer(columns=6, out=3, seed=5)
    C, _ = centred(G)
    integers, scales = gptq(W, G, [2], damping=1e-6)[2]
    found = _row_errors(W, G, dequantise(integers, scales))
    options = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=6)), dtype=torch.float64)
    options = options[options.abs().sum(dim=1) > 0]
    numerator, denominator = options @ C @ W.double().T, ((options @ C) * options).sum(dim=1, keepdim=True)
    energy = ((W.double() @ C) * W.double()).sum(dim=1)
    best = energy - (numerator.clamp_min(0.0) ** 2 / denominator).amax(dim=0)
    assert (found >= best * (1 - 1e-6)).all()
    assert found.sum() <= 1.5 * best.sum()


def test_block_updates_and_stacking_do_not_change_the_result(monkeypatch):
    W, G = _layer(columns=37, out=5)
    together = gptq(W, G, [3, 4])
    monkeypatch.setattr("paretopress.compressors.error_feedback.LEAF", 2)
    for bits in (3, 4):
        integers, scales = gptq(W, G, [bits])[bits]
        assert torch.equal(integers, together[bits][0])
        torch.testing.assert_close(scales, together[bits][1])


def test_wide_layers_swept_in_32_bits_have_the_errors_of_64(monkeypatch):
    W, G = _layer(columns=300, out=40)
    exact = gptq(W, G, [2, 4, 8])
    monkeypatch.setattr("paretopress.compressors.quantisation.EXACT_COLUMNS", 0)
    for bits, found in gptq(W, G, [2, 4, 8]).items():
        wanted, errors = (_row_errors(W, G, dequantise(*one)).sum() for one in (exact[bits], found))
        assert abs(errors / wanted - 1.0) < 0.01
        assert float((found[0] == exact[bits][0]).double().mean()) > 0.9


def test_grouped_layers_equal_their_groups_one_by_one():
    W, G = _layer(columns=9, out=8, groups=4)
    integers, scales = gptq(W, G, [3])[3]
    for group in range(4):
        rows = slice(2 * group, 2 * group + 2)
        expected, expected_scales = gptq(W[rows], G[group], [3])[3]
        assert torch.equal(integers[rows], expected)
        torch.testing.assert_close(scales[rows], expected_scales)
    bias = corrected_bias(W, torch.zeros(8), G, dequantise(integers, scales))
    one = corrected_bias(W[2:4], torch.zeros(2), G[1], dequantise(integers, scales)[2:4])
    torch.testing.assert_close(bias[2:4], one)


def test_uncorrelated_inputs_make_gptq_plain_rounding():
    W = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    integers, _ = gptq(W, torch.eye(11), [8])[8]
    assert torch.equal(integers, round_to_nearest(W, row_scales(W, 8), 8))


def test_constant_inputs_and_zero_weights_stay_finite():
    W, G = _layer(columns=6, out=3)
    W[1] = 0.0
    G[:, 2] = G[-1, :] * 2.0
    G[2, :] = G[:, 2]
    G[2, 2] = 4.0
    integers, scales = gptq(W, G, [2, 8])[8]
    assert torch.isfinite(scales).all()
    assert (scales > 0).all()
    assert not integers[1].any()
    assert torch.isfinite(gptq(W, torch.zeros(7, 7), [4])[4][1]).all()


def test_corrected_bias_keeps_the_mean_output():
    W, G = _layer()
    integers, scales = gptq(W, G, [2])[2]
    Wq, bias = dequantise(integers, scales), torch.randn(12, generator=torch.Generator().manual_seed(0))
    corrected = corrected_bias(W, bias, G, Wq)
    mean = G[:-1, -1]
    torch.testing.assert_close(W.double() @ mean + bias, Wq.double() @ mean + corrected, rtol=1e-5, atol=1e-4)


def _onnx_quantise(x, scale, zero_point):
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    onnxruntime.disable_telemetry_events()
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
             helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    graph = helper.make_graph(
        nodes, "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [helper.make_tensor("s", TensorProto.FLOAT, [], [scale]),
         helper.make_tensor("z", TensorProto.UINT8, [], [zero_point])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})[0]


@pytest.mark.parametrize(("scale", "zero_point"), GRIDS)
def test_fake_quantisation_equals_onnx_runtime_bit_for_bit(scale, zero_point):
    scale = float(np.float32(scale))
    generator = torch.Generator().manual_seed(zero_point)
    ties = (torch.arange(-600, 600) + 0.5) * torch.tensor(scale)
    spread = torch.randn(20000, generator=generator) * scale * 150
    x = torch.cat([ties, spread, torch.tensor([0.0, -0.0, 1e30, -1e30])])
    ours = quantise_tensor(x, scale, zero_point).numpy()
    assert np.array_equal(ours, _onnx_quantise(x, scale, zero_point))


@settings(max_examples=60, deadline=None)
@given(low=st.floats(-1e4, 1e4), width=st.floats(0, 1e4))
def test_ranges_hold_zero_exactly_and_cover_the_values(low, width):
    scale, zero_point = activation_range(low, low + width)
    assert 0 <= zero_point <= 255
    assert scale == float(np.float32(scale))
    assert quantise_tensor(torch.zeros(1), scale, zero_point).item() == 0.0
    if scale != 1.0:
        ends = torch.tensor([min(low, 0.0), max(low + width, 0.0)])
        error = (quantise_tensor(ends, scale, zero_point) - ends).abs()
        assert (error <= scale * 1.001).all()


def test_range_golden_cases_and_bad_bounds():
    assert activation_range(0.0, 255.0) == (1.0, 0)
    assert activation_range(-128.0, 127.0) == (1.0, 128)
    assert activation_range(5.0, 510.0) == (2.0, 0)
    assert activation_range(0.0, 0.0) == (1.0, 0)
    for bounds in ((float("nan"), 1.0), (0.0, float("inf")), (2.0, 1.0)):
        with pytest.raises(DataError):
            activation_range(*bounds)


@pytest.mark.parametrize("unsigned", [True, False])
def test_mse_range_clips_outliers_and_beats_the_full_range(unsigned):
    values = torch.randn(200000, generator=torch.Generator().manual_seed(0))
    values[0] = 12.0
    values = values.relu() if unsigned else torch.cat([values, torch.tensor([-9.0])])
    scale, zero_point = mse_range(values, unsigned=unsigned)
    full = activation_range(float(values.min()), float(values.max()))
    assert scale < 0.9 * full[0]
    assert (zero_point == 0) is unsigned

    def error(chosen):
        return float((quantise_tensor(values, *chosen) - values).square().mean())

    best = min(error(activation_range(0.0 if unsigned else -a, b))
               for b in np.linspace(2, 12, 21) for a in ([0] if unsigned else np.linspace(2, 9, 15)))
    assert error((scale, zero_point)) < error(full)
    assert error((scale, zero_point)) <= 1.05 * best


def test_mse_range_of_uniform_values_is_the_full_range():
    values = torch.linspace(-2.0, 6.0, 10001)
    scale, zero_point = mse_range(values, unsigned=False)
    assert scale == pytest.approx(8.0 / 255, rel=0.02)
    assert zero_point == pytest.approx(64, abs=2)


def test_histogram_leaves_zeros_out_and_degenerate_tensors_have_a_range():
    counts = histogram(torch.tensor([0.0, 0.0, 0.5, 1.0]), 0.0, 1.0, bins=2)
    assert counts.tolist() == [0.0, 2.0]
    assert mse_range_of_histogram(torch.zeros(8), 0.0, 1.0, unsigned=True)[0] > 0.0
    assert mse_range(torch.zeros(5), unsigned=True) == (1.0, 0)
    assert mse_range(torch.full((5,), -3.0), unsigned=False)[1] == 255
    with pytest.raises(DataError):
        mse_range(torch.empty(0), unsigned=True)
    with pytest.raises(DataError):
        mse_range(torch.tensor([float("inf")]), unsigned=True)


def test_parameters_that_require_gradients_are_only_read():
    W, G = _layer()
    before = W.clone()
    integers, scales = gptq(W.requires_grad_(), G, [4])[4]
    assert not scales.requires_grad
    assert torch.equal(W, before)
    assert not corrected_bias(W, torch.zeros(12), G, dequantise(integers, scales)).requires_grad


def test_ranges_by_extremes_and_by_percentiles():
    values = torch.cat([torch.linspace(-1.0, 3.0, 9998), torch.tensor([-100.0, 400.0])])
    assert range_by(values, "minmax", unsigned=False) == activation_range(-100.0, 400.0)
    scale, zero_point = range_by(values, "percentile", unsigned=False)
    assert scale == pytest.approx(4.0 / 255, rel=0.01)
    assert zero_point == pytest.approx(64, abs=1)
    assert range_by(values, "mse", unsigned=False) == mse_range(values, unsigned=False)
    for bad in (torch.empty(0), torch.tensor([1.0, torch.nan])):
        with pytest.raises(DataError, match="not finite"):
            range_by(bad, "minmax", unsigned=False)
