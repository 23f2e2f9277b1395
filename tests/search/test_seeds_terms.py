"""The seeds' cost terms add up to what the whole plan costs, with dropped branches and subsampling shortcuts."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from paretopress.evaluators.costs import CostModel
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.search.factor_graph import FactorGraph, kernel_terms
from paretopress.spaces.capture import capture
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SpaceSettings, build_space
from paretopress.spaces.structure import analyse

sys.path.insert(0, str(Path(__file__).parents[1] / "spaces"))
from space_zoo import ZOO, specimen


class Block(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(cin, cout, 3, cout // cin, 1), nn.Conv2d(cout, cout, 3, 1, 1)
        self.extra = cout - cin

    def forward(self, x):
        y = self.conv2(F.relu(self.conv1(x)))
        if self.extra:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return F.relu(y + x)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 16), Block(16, 16))
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.blocks(F.relu(self.stem(x))), 1).flatten(1))


@pytest.fixture(scope="module")
def parts():
    model, example = ResNet().eval(), (torch.randn(2, 3, 16, 16),)
    structure = analyse(capture(model, example), model)
    profile = load_profile("x86-zen4-vnni-onnxruntime")
    space = build_space(structure, [profile.capabilities()], SpaceSettings(keep=(0.5,), rank=(), bits=(8,)))
    return structure, space, profile, FactorGraph(structure, space, CostModel((profile,))).terms()


BLOCKS = ("blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1")


@pytest.mark.parametrize("integers", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("ratios", [(), (0.0,), (None, 0.0), (0.5, 0.0), (0.0, 0.0, 0.0), (0.5, None, 0.0)], ids=str)
def test_terms_add_up_to_the_kernels_of_the_plan(parts, integers, ratios):
    structure, space, profile, (time, size) = parts
    keeps = {f"{g}/channels": Keep(r) for g, r in zip(BLOCKS, ratios, strict=False) if r is not None}
    integer = {f"{layer.name}/weights": Weights(8) for layer in structure.layers} if integers else {}
    choices = {**keeps, **integer}
    planned, dense = plan(structure, Policy.of(choices)), plan(structure, Policy())

    def total(terms):
        return sum(values[tuple(space.options[u].index(choices.get(u)) for u in units)] for units, values in terms)

    whole = float(profile.kernel_cost(list(cost_view(dense).kernels)).sum())
    left = float(profile.kernel_cost(list(cost_view(planned).kernels)).sum())
    offset = CostModel((profile,)).predict(dense)["latency@x86-zen4-vnni-onnxruntime"] * 1000 - whole
    assert total(time) * (whole + offset) == pytest.approx(left, rel=1e-9)
    stored = sum(layer.stored_bytes for layer in planned.layers)
    assert total(size) * dense.stored_bytes == pytest.approx(stored, rel=1e-9)


def test_terms_are_kept_for_the_same_model_space_and_devices(parts):
    structure, space, profile, fresh = parts
    first = kernel_terms(structure, space, CostModel((profile,)))
    again = kernel_terms(structure, space, CostModel((profile,)))
    for terms, repeated, own in zip(first, again, fresh, strict=True):
        for (units, values), (_, same), (expected, made) in zip(terms, repeated, own, strict=True):
            assert units == expected
            assert values is same
            assert (values == made).all()
            with pytest.raises(ValueError, match="read-only"):
                values[...] = 0.0
    other = kernel_terms(structure, space, CostModel((load_profile("cortex-a76-tflite"),)))
    assert any((own != theirs).any() for (_, own), (_, theirs) in zip(first[0], other[0], strict=True))


def test_alike_kernels_are_made_once():
    """Three more blocks like the others add no kernel that was not made for them."""
    made = []
    for count in (3, 6):
        model = ResNet().eval()
        model.blocks = nn.Sequential(*(Block(8, 8) for _ in range(count)))
        model.fc = nn.Linear(8, 4)
        structure = analyse(capture(model, (torch.randn(2, 3, 16, 16),)), model)
        profile = load_profile("x86-zen4-vnni-onnxruntime")
        space = build_space(structure, [profile.capabilities()], SpaceSettings(keep=(0.5,), rank=(), bits=(8,)))
        graph = FactorGraph(structure, space, CostModel((profile,)))
        graph.terms()
        made.append(len(graph._made))
    assert made[0] == made[1]


EVERYTHING = SpaceSettings(
    rank_kinds=("svd", "nmf", "spatial", "tucker"), sparsity=(0.5, "2:4"), halves=("fp16",),
    schemes=("symmetric", "asymmetric"), groups=(0, 32), clusters=(4,), binary=(1,), end_bits=2,
)


@pytest.mark.parametrize("name", ZOO)
def test_kernels_that_are_made_once_are_those_of_every_combination(name):
    """For any wiring: what stands for a combination has the kernels and bytes that making it alone gives."""
    structure, profile, rng = specimen(name).structure, load_profile("x86-zen4-vnni-onnxruntime"), random.Random(name)
    space = build_space(structure, [profile.capabilities()], EVERYTHING)
    graph = FactorGraph(structure, space, CostModel((profile,)))
    owners = graph._owners()
    for fused in structure.fusion.kernels:
        units = graph._units(fused, owners.get(fused.main))
        if not units:
            continue
        made, places = graph._enumerate(fused, units)
        shape = tuple(len(space.options[unit]) for unit in units)
        for row in rng.sample(range(len(places)), min(8, len(places))):
            numbers = np.unravel_index(row, shape)
            picked = {unit: space.options[unit][number] for unit, number in zip(units, numbers, strict=True)}
            kernels, stored = graph._kernels(fused, {unit: choice for unit, choice in picked.items() if choice})
            found, bytes_ = made[places[row]]
            assert bytes_ == stored
            assert [nameless(one) for one in found] == [nameless(one) for one in kernels]


def nameless(kernel):
    return replace(kernel, name="", layer="")
