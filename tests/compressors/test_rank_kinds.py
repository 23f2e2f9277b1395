"""Layers as several smaller ones of every kind: what they compute, what each of them reads, and what is exported."""

import pytest
import torch
from artefact_models import FACTORED, FACTORS, choices_of, prepared
from torch import nn

from paretopress.compressors.export_onnx import export_onnx, run_session, session
from paretopress.compressors.factors import composed, factor_moments, factors
from paretopress.compressors.least_squares import centred
from paretopress.compressors.moments import Moments
from paretopress.compressors.network import forward
from paretopress.compressors.program import apply_layer
from paretopress.compressors.realise import realise
from paretopress.compressors.refit import refit
from paretopress.spaces.choices import FACTORISATIONS, Factorised, Half, Weights
from paretopress.spaces.factor_forms import part_layers, part_shapes
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

FORMS = {
    "svd": Factorised("svd", 3), "nmf": Factorised("nmf", 2), "spatial": Factorised("spatial", 4),
    "tucker": Factorised("tucker", 3, 2),
}


def layer_inputs(name="apart"):
    """A convolution of different strides, paddings and dilations, its inputs, and their moments at all positions."""
    item = prepared("windows")
    layer = item.program.structure.layer(name)
    weight, bias = item.calibration.folded[layer.node]
    torch.manual_seed(5)
    x = torch.rand(6, layer.in_channels, 9, 8)
    moments = Moments()
    moments.accumulate_conv(x, layer.window, layer.stride, layer.padding, layer.dilation)
    return layer, weight, bias, x, moments.second_moments()[0]


def applied(layer, form, matrices, bias, x):
    """What every smaller layer makes of an input."""
    shapes = part_shapes(form, (*layer.shape[:2], *layer.window), transposed=False)
    outputs = []
    for index, (part, matrix, shape) in enumerate(zip(part_layers(layer, form), matrices, shapes, strict=True)):
        x = apply_layer(part, x, matrix.reshape(shape), bias if index == len(shapes) - 1 else None, 1)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_smaller_layers_compute_their_product_and_keep_the_mean(form):
    layer, weight, bias, x, moments = layer_inputs()
    matrices, intercept = factors(layer, form, weight.flatten(1), bias, moments)
    whole = composed(layer, form, matrices).float().reshape(weight.shape)
    y = applied(layer, form, matrices, intercept, x)[-1]
    torch.testing.assert_close(y, apply_layer(layer, x, whole, intercept, 1), rtol=1e-4, atol=1e-4)
    wanted = apply_layer(layer, x, weight, bias, 1)
    torch.testing.assert_close(y.mean((0, 2, 3)), wanted.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_moments_of_what_a_smaller_layer_reads_are_those_of_its_inputs(form):
    """Exactly those measured, for all layers but a first one that reads more positions than there are outputs."""
    layer, weight, bias, x, moments = layer_inputs()
    matrices, intercept = factors(layer, form, weight.flatten(1), bias, moments)
    found = factor_moments(layer, form, matrices, moments)
    inputs = [x, *applied(layer, form, matrices, intercept, x)[:-1]]
    assert len(found) == len(matrices)
    for index, (part, read) in enumerate(zip(part_layers(layer, form), inputs, strict=True)):
        measured = Moments()
        measured.accumulate_conv(read, part.window, part.stride, part.padding, part.dilation)
        if index > 0 or form.kind in ("svd", "nmf"):
            torch.testing.assert_close(found[index], measured.second_moments()[0], rtol=1e-4, atol=1e-4)
    assert all(len(one) == matrix.shape[1] + 1 for one, matrix in zip(found, matrices, strict=True))


def test_moments_of_single_places_are_those_of_all_that_outputs_look_at():
    layer, weight, bias, x, moments = layer_inputs()
    columns = nn.functional.unfold(x, layer.window, layer.dilation, layer.padding, layer.stride)
    rows = columns.transpose(1, 2).reshape(-1, layer.in_channels, *layer.window).double()
    places = {"spatial": rows.permute(0, 3, 1, 2).flatten(0, 1).flatten(1),
              "tucker": rows.flatten(2).transpose(1, 2).flatten(0, 1)}
    for kind, seen in places.items():
        augmented = torch.cat([seen, torch.ones(len(seen), 1)], dim=1)
        matrices, _ = factors(layer, FORMS[kind], weight.flatten(1), bias, moments)
        first = factor_moments(layer, FORMS[kind], matrices, moments)[0]
        torch.testing.assert_close(first, augmented.T @ augmented / len(seen), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["svd", "spatial", "tucker"])
def test_full_ranks_lose_nothing_and_lower_ones_ever_more(kind):
    layer, weight, bias, _, moments = layer_inputs("same")
    covariance, _ = centred(moments)
    full = {"svd": (8,), "spatial": (24,), "tucker": (8, 8)}[kind]
    losses = []
    for share in (1.0, 0.5, 0.25, 0.125):
        form = Factorised(kind, *(max(1, round(share * rank)) for rank in full))
        matrices, _ = factors(layer, form, weight.flatten(1), bias, moments)
        difference = weight.flatten(1) - composed(layer, form, matrices)
        losses.append(float(((difference @ covariance) * difference).sum()))
    assert losses == sorted(losses)
    assert losses[0] < 1e-4 * losses[-1]


@pytest.mark.parametrize("policy", ["nmf w4", "spatial", "tucker", "spatial w8a8", "tucker w4a8"])
@pytest.mark.parametrize("name", ["resnet", "windows"])
def test_onnx_runtime_computes_what_the_artefact_does(name, policy, tmp_path):
    item = prepared(name)
    network = item.network(choices_of(item, **FACTORS[policy]))
    export_onnx(item.program.under(network.plan.structure), network, tmp_path / "model.onnx")
    (found,) = run_session(session(tmp_path / "model.onnx"), item.inputs)
    with torch.no_grad():
        expected = forward(item.program, network, item.inputs)
    if network.plan.arithmetic.ranges:
        assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.95
        assert (found - expected).abs().mean() < 0.02 * expected.abs().max()
    else:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", ["nmf w4", "spatial w8a8", "tucker"])
def test_factors_are_made_again_on_the_compressed_prefix(policy):
    """Solving every layer again brings the outputs nearer to those of the dense model, and keeps all shapes."""
    item = prepared("windows")
    planned = plan(item.program.structure, Policy.of(choices_of(item, **{**FACTORS[policy], "keep": False})))
    refitted = refit(item.program, item.entries, planned, item.inputs)
    tuned = item.network(planned.policy.choices)
    for layer in planned.layers:
        shapes = [tuple(part.weight.shape) for part in refitted.parts[layer.layer.node]]
        assert shapes == [shape for _, shape in layer.parts]
    with torch.no_grad():
        wanted = item.model(*item.args)
        errors = [(forward(item.program, network, item.inputs) - wanted).square().mean()
                  for network in (refitted, tuned)]
    assert errors[0] < 1.2 * errors[1]


def test_modules_are_real_and_differ_only_in_their_window():
    item = prepared("windows")
    choices = {"wide/rank": Factorised("spatial", 3), "apart/rank": Factorised("tucker", 4, 2),
               "mirrored/rank": Factorised("spatial", 2), "same/rank": Factorised("spatial", 5),
               "same/weights": Half(), "head/rank": Factorised("nmf", 1)}
    network = realise(item.model, item.program, item.network(choices)).network
    first, second = network.wide
    assert (first.kernel_size, first.stride, first.padding, first.bias) == ((3, 1), (1, 1), (1, 0), None)
    assert (second.kernel_size, second.stride, second.padding) == ((1, 5), (1, 2), (0, 2))
    assert second.bias is not None
    first, core, last = network.apart
    assert (first.kernel_size, last.kernel_size, first.bias, core.bias) == ((1, 1), (1, 1), None, None)
    assert (core.kernel_size, core.stride, core.padding, core.dilation) == ((3, 2), (2, 1), (2, 0), (2, 1))
    assert (first.out_channels, core.out_channels, last.out_channels) == (2, 4, 8)
    assert [part.padding_mode for part in network.mirrored] == ["reflect", "zeros"]
    assert [part.padding for part in network.same] == ["same", "same"]
    assert [tuple(part.weight_values.shape) for part in network.same] == [(5, 24), (8, 15)]
    assert [tuple(part.weight.shape) for part in network.head] == [(2, 6), (5, 2)]


@pytest.mark.parametrize("form", [FORMS["spatial"], FORMS["tucker"]], ids=["spatial", "tucker"])
@pytest.mark.parametrize("name", ["apart", "same"])
def test_every_part_is_quantised_for_its_own_inputs(name, form):
    """Error feedback loses less than rounding to the nearest, on what each part reads."""
    item = prepared("windows")
    layer = item.program.structure.layer(name)
    exact, quantised = (
        item.entries.stitch(plan(item.program.structure, Policy.of(choices))).parts[layer.node]
        for choices in ({f"{name}/rank": form}, {f"{name}/rank": form, f"{name}/weights": Weights(3, 32)})
    )
    matrices = [part.weight.flatten(1) for part in exact]
    reads = factor_moments(layer, form, tuple(matrices), item.calibration.layers[layer.node].moments)
    ratios = []
    for part, matrix, moments in zip(quantised, matrices, reads, strict=True):
        scales, (covariance, _) = part.stored.scales.unsqueeze(1), centred(moments)
        nearest = (matrix / scales).round().clamp(-3, 3) * scales
        errors = [((one - matrix).double() @ covariance * (one - matrix)).sum() for one in (
            part.weight.flatten(1), nearest)]
        ratios.append(float(errors[0] / errors[1]))
    assert all(ratio < 1.02 for ratio in ratios)
    assert min(ratios) < 0.95


def test_all_kinds_are_covered():
    assert {policy["rank"] for policy in FACTORS.values()} | {"svd"} == set(FACTORISATIONS)
    assert "windows" in FACTORED
