"""Kinds of factors: their shapes and weights against the formulas, what is offered, and why the rest is not."""

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from space_zoo import ZOO, specimen
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from paretopress.spaces.arithmetic import FIRST, SECOND
from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.capture import capture
from paretopress.spaces.choices import FACTORISATIONS, Factorised, Keep, Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.errors import PolicyError
from paretopress.spaces.factor_forms import break_even, factor_weights, why_not_factorised, why_too_large
from paretopress.spaces.kernels import product
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SpaceSettings, build_space
from paretopress.spaces.structure import analyse

FREE = Capabilities("free", ((8, 8),))
FOURS = Capabilities("fours", ((8, 8),), rank_step=4)
ALL = SpaceSettings(rank_kinds=FACTORISATIONS)


def by_formula(factors, shape):
    """The weights of factors, from the formulas of the papers."""
    (out, cin), rank = shape[:2], factors.rank
    match factors.kind:
        case "svd":
            return rank * (out + product(shape[1:]))
        case "nmf":
            return 2 * rank * (out + product(shape[1:]))
        case "spatial":
            return rank * (cin * shape[2] + out * shape[3])
        case "tucker":
            return factors.inner * cin + factors.inner * rank * shape[2] * shape[3] + rank * out


@st.composite
def factorised_layers(draw):
    """A plan with one layer in factors of some kind, behind and in front of pruned channels."""
    structure = specimen(draw(st.sampled_from(sorted(ZOO)))).structure
    kind = draw(st.sampled_from(FACTORISATIONS))
    free = [layer for layer in structure.layers if not structure.units[f"{layer.name}/rank"]
            and not why_not_factorised(layer, kind) and min(layer.out_channels, layer.in_channels) > 1]
    if not free:
        return None
    layer = draw(st.sampled_from(free))
    rank = draw(st.integers(1, min(layer.out_channels, layer.columns) - 1))
    factors = Factorised(kind, rank, draw(st.integers(0, layer.in_channels)) if kind == "tucker" else 0)
    assume(not why_too_large(factors, layer))
    choices = {unit: Keep(draw(st.sampled_from([0.25, 0.5]))) for unit, reason in structure.units.items()
               if unit.endswith("/channels") and not reason and draw(st.booleans())}
    return layer, plan(structure, Policy.of({**choices, f"{layer.name}/rank": factors}))


@given(factorised_layers())
@settings(max_examples=200, deadline=None)
def test_weights_at_pruned_shapes_are_those_of_the_formulas(case):
    if case is None:
        return
    layer, planned = case
    found = next(one for one in planned.layers if one.layer.name == layer.name)
    shapes = [shape for _, shape in found.parts]
    assert sum(map(product, shapes)) == by_formula(found.factors, found.shape)
    assert factor_weights(found.factors, layer, found.shape) == by_formula(found.factors, found.shape)
    assert (shapes[0][1], shapes[-1][0]) == (found.shape[1], found.shape[0])
    assert all(one[0] == other[1] for one, other in itertools.pairwise(shapes))
    assert [name for name, _ in found.parts] == [f"{layer.name}.{index}" for index in range(len(shapes))]
    assert all(min(shape) >= 1 for shape in shapes)
    weights = 4 * (sum(map(product, shapes)) + (found.shape[0] if found.has_bias else 0))
    assert found.stored_bytes == weights
    kernels = [kernel for kernel in cost_view(planned).kernels if kernel.layer == layer.name]
    assert [kernel.weight_elements for kernel in kernels] == list(map(product, shapes))
    assert all(one.output_elements <= other.input_elements for one, other in itertools.pairwise(kernels))


@pytest.mark.parametrize("device", [FREE, FOURS], ids=["free", "steps"])
@pytest.mark.parametrize("name", ZOO)
def test_offered_ranks_pay_by_the_formula_of_their_kind(name, device):
    structure = specimen(name).structure
    built = build_space(structure, (device,), ALL)
    for unit, options in built.options.items():
        if not unit.endswith("/rank"):
            continue
        layer = structure.layer(unit.removesuffix("/rank"))
        for choice in options[1:]:
            found = next(one for one in plan(structure, Policy.of({unit: choice})).layers if one.layer is layer)
            assert by_formula(found.factors, layer.shape) < product(layer.shape)
            assert all(shape[0] % device.rank_step == 0 for _, shape in found.parts[:-1])
        kinds = {choice.kind for choice in options[1:]}
        dropped = {what.split()[0] for one, what, _ in built.dropped if one == unit}
        assert kinds | dropped >= set(FACTORISATIONS)   # nothing disappears silently


@pytest.mark.parametrize("kind", FACTORISATIONS)
def test_break_even_ranks_are_where_the_weights_are_those_of_the_layer(kind):
    layer = specimen("projection").structure.layer("conv2")
    even = break_even(kind, layer)
    (out, cin), total = layer.shape[:2], product(layer.shape)
    if kind == "tucker":
        assert even * cin / out * cin + even**2 * cin / out * 9 + even * out == pytest.approx(total)
    else:
        assert even * by_formula(Factorised(kind, 1), layer.shape) == pytest.approx(total)


def test_only_singular_values_are_offered_unless_asked_for():
    structure = specimen("vgg").structure
    kinds = {choice.kind for unit, options in build_space(structure, (FREE,)).options.items()
             for choice in options[1:] if unit.endswith("/rank")}
    assert kinds == {"svd"}
    built = build_space(structure, (FREE,), SpaceSettings(rank_kinds=("tucker", "nmf")))
    assert {choice.kind for choice in built.options["features.3/rank"][1:]} == {"tucker", "nmf"}
    assert build_space(structure, (FREE,), SpaceSettings(rank_kinds=())).dropped.count(
        ("features.3/rank", "*", "space.rank_kinds is empty")) == 1


REFUSALS = {
    "spatial of a linear layer": ("vgg", "classifier.0", Factorised("spatial", 2), "this is a linear layer"),
    "tucker of a linear layer": ("vgg", "classifier.0", Factorised("tucker", 2), "this is a linear layer"),
    "spatial of 1x1": ("inverted_residual", "expand.0", Factorised("spatial", 2), "this is a window of 1x1"),
    "tucker of 1-d": ("conv1d", "conv1", Factorised("tucker", 2), "of 2-d convolutions with a window above 1"),
    "depthwise": ("inverted_residual", "depthwise", Factorised("nmf", 1), "a depthwise convolution has no low rank"),
    "spatial rank": ("vgg", "features.3", Factorised("spatial", 10**4), "rank 10000 is not below full rank"),
    "nmf rank": ("vgg", "features.3", Factorised("nmf", 10**4), "rank 10000 is not below full rank (allowed: 1 to"),
    "tucker output": ("vgg", "features.3", Factorised("tucker", 10**4, 1), "rank 10000 is above the"),
    "tucker input": ("vgg", "features.3", Factorised("tucker", 1, 10**4), "is above the 8 input channels"),
}


@pytest.mark.parametrize(("name", "layer", "choice", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_factors_that_a_layer_cannot_have_are_refused_by_name(name, layer, choice, reason):
    structure = specimen(name).structure
    names = {one.name for one in structure.layers}
    unit = f"{layer if layer in names else min(names)}/rank"
    with pytest.raises(PolicyError) as error:
        plan(structure, Policy.of({unit: choice}))
    assert reason in str(error.value)
    assert str(error.value).startswith(f"unit {unit!r}")


def test_full_tucker_ranks_are_refused():
    structure = specimen("vgg").structure
    out, cin = structure.layer("features.3").shape[:2]
    with pytest.raises(PolicyError, match="both ranks are those of the layer itself"):
        plan(structure, Policy.of({"features.3/rank": Factorised("tucker", out, cin)}))
    assert plan(structure, Policy.of({"features.3/rank": Factorised("tucker", out, cin - 1)})).layers


class Other(nn.Module):
    """A transposed convolution, and a window that the model's own code applies."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3)
        self.kernel = nn.Parameter(torch.randn(6, 6, 3, 3))

    def forward(self, x):
        return torch.nn.functional.conv2d(self.up(x), self.kernel).mean((2, 3))


@pytest.mark.parametrize(
    ("unit", "kind", "reason"),
    [
        ("up/rank", "tucker", "a transposed convolution has no tucker factors (allowed: svd)"),
        ("up/rank", "nmf", "a transposed convolution has no nmf factors (allowed: svd)"),
        ("kernel/rank", "spatial", "the user's own code applies this weight"),
    ],
)
def test_layers_of_other_kinds_are_refused_by_name(unit, kind, reason):
    model = Other().eval()
    structure = analyse(capture(model, (torch.randn(2, 4, 5, 5),)), model)
    with pytest.raises(PolicyError) as error:
        plan(structure, Policy.of({unit: Factorised(kind, 2)}))
    assert reason in str(error.value)
    dropped = build_space(structure, (FREE,), SpaceSettings(rank_kinds=(kind,))).dropped
    assert any(one == unit and what == "*" and reason in why for one, what, why in dropped)


class Window(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 10, (3, 5), (2, 1), (1, 2), (1, 2))

    def forward(self, x):
        return torch.relu(self.conv(nn.functional.pad(x, (1, 1, 0, 2))))


SPATIAL = nn.Sequential(nn.Conv2d(6, 4, (3, 1), (2, 1), (1, 0)), nn.Conv2d(4, 10, (1, 5), 1, (0, 2), (1, 2)))
TUCKER = nn.Sequential(nn.Conv2d(6, 3, 1), nn.Conv2d(3, 4, (3, 5), (2, 1), (1, 2), (1, 2)), nn.Conv2d(4, 10, 1))


@pytest.mark.parametrize(
    ("choice", "modules"), [(Factorised("spatial", 4), SPATIAL), (Factorised("tucker", 4, 3), TUCKER)],
    ids=["spatial", "tucker"],
)
def test_kernels_are_those_of_the_modules(choice, modules):
    """Windows, sizes and operations of every kernel, of a convolution that a padding goes into."""
    model = Window().eval()
    structure = analyse(capture(model, (torch.randn(2, 6, 9, 11),)), model)
    policy = {"conv/rank": choice, "conv/weights": Weights(8, 8)}
    planned = plan(structure, Policy.of(policy))
    kernels = [kernel for kernel in cost_view(planned).kernels if kernel.layer == "conv"]
    x, sizes, suffixes = torch.randn(1, 6, 11, 13), [(9, 11)], (FIRST, SECOND)
    for index, (module, kernel) in enumerate(zip(modules, kernels, strict=True)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            x = module(x)
        assert kernel.macs == counter.get_total_flops() // 2
        assert (kernel.window, kernel.stride) == (module.kernel_size, module.stride)
        assert (kernel.cin, kernel.cout) == (module.in_channels, module.out_channels)
        assert (kernel.input_size, kernel.output_size) == (sizes[-1], tuple(x.shape[2:]))
        assert kernel.output_elements == x.numel()
        assert kernel.fused == (("relu",) if index == len(modules) - 1 else ())
        assert (kernel.weight_bits, kernel.activation_bits) == (8, 8)
        sizes.append(tuple(x.shape[2:]))
    node = planned.layers[0].layer.node
    inner = [node + suffix for suffix in suffixes[: len(modules) - 1]]
    assert [name for name in planned.arithmetic.ranges if name in inner] == inner
    assert planned.arithmetic.ranges.index(inner[-1]) < len(planned.arithmetic.ranges) - 1
    lives = {life.tensor: life for life in cost_view(planned).lifetimes}
    for place, kernel in enumerate(kernels[:-1]):   # bytes, as integers are, until the next one has read them
        assert (lives[kernel.name].size, lives[kernel.name].last) == (kernel.output_elements, place + 1)
    assert [kernel.name for kernel in kernels[:-1]] == ["conv" + suffix for suffix in suffixes[: len(modules) - 1]]
