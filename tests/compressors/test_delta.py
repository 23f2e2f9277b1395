"""Edits are plain data, derived from the plan alone, and refused where they fit no module."""

import copy
import json

import pytest
import torch
from artefact_models import FACTORS, MODELS, POLICIES, build, choices_of, prepared
from torch import nn

from paretopress.compressors.apply_edits import apply_edits
from paretopress.compressors.compressed_model import delta_of
from paretopress.compressors.delta import (
    Delta,
    FoldEdit,
    LayerEdit,
    ResizeEdit,
    edit_from_plain,
    edit_to_plain,
    module_edits,
)
from paretopress.spaces.choices import Factorised, Keep, Weights
from paretopress.spaces.errors import ArtifactError, UnsupportedModelError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


def edits_of(name, choices):
    edits = module_edits(plan(prepared(name).program.structure, Policy.of(choices)))
    return {edit.path: edit for edit in edits}


def test_edits_say_what_changes_and_nothing_else():
    edits = edits_of("depthwise", {"expand/channels": Keep(0.25), "head/rank": Factorised("svd", 3)})
    assert edits == {
        "expand": LayerEdit("expand", (4, 8, 1, 1), 1, None, None, None, bias=True),
        "depthwise": LayerEdit("depthwise", (4, 1, 3, 3), 4, None, None, None, bias=True),
        "reduce": LayerEdit("reduce", (8, 4, 1, 1), 1, None, None, None, bias=True),
        "head": LayerEdit("head", (5, 128), 1, Factorised("svd", 3), None, None, bias=True),
        "stem.1": FoldEdit("stem.1", 8),
        "bn1": FoldEdit("bn1", 4),
        "bn2": FoldEdit("bn2", 4),
    }


def test_normalisations_that_stay_are_resized():
    edits = edits_of("group_norm", {"conv1/channels": Keep(0.5)})
    assert edits["norm1"] == ResizeEdit(
        "norm1", {"num_channels": 6, "num_groups": 2}, {"norm1.weight": (6,), "norm1.bias": (6,)}
    )
    statistics = ("weight", "bias", "running_mean", "running_var")
    assert edits["bn"] == ResizeEdit("bn", {"num_features": 6}, {f"bn.{name}": (6,) for name in statistics})
    plain = edits_of("mlp", {"embed/channels": Keep(0.25)})["plain"]
    assert plain == ResizeEdit("plain", {"normalized_shape": 4}, {})


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", MODELS)
def test_a_delta_survives_json(name, policy):
    item = prepared(name)
    network = item.network(choices_of(item, **POLICIES[policy]))
    delta = delta_of(item.program, network)
    assert Delta.from_plain(json.loads(json.dumps(delta.to_plain())), "delta.json") == delta
    for edit in delta.edits:
        assert edit_from_plain(json.loads(json.dumps(edit_to_plain(edit))), "delta.json") == edit


@pytest.mark.parametrize("policy", FACTORS)
def test_factors_of_every_kind_survive_json(policy):
    item = prepared("windows")
    delta = delta_of(item.program, item.network(choices_of(item, **FACTORS[policy])))
    assert Delta.from_plain(json.loads(json.dumps(delta.to_plain())), "delta.json") == delta


def test_singular_values_are_written_as_in_earlier_artefacts():
    assert edit_to_plain(LayerEdit("head", (5, 128), 1, Factorised("svd", 3), None, None, bias=True))["rank"] == 3
    tucker = edit_to_plain(LayerEdit("conv", (8, 6, 3, 3), 1, Factorised("tucker", 3, 2), None, None, bias=True))
    assert tucker["rank"] == {"factorised": "tucker", "rank": 3, "inner": 2}


LAYER = {"layer": "head", "shape": [5, 128], "groups": 1, "rank": None, "format": None, "sparsity": None,
         "bias": True}


@pytest.mark.parametrize(
    "change",
    [
        {"format": {"weights": 5}}, {"format": 8}, {"format": {"sparse": 0.5}}, {"sparsity": {"sparse": 0.0}},
        {"format": {"binary": 1}, "sparsity": {"sparse": 0.5}}, {"rank": 0}, {"rank": 2.0}, {"shape": [5, -1]},
        {"shape": "5"}, {"bias": 1}, {"groups": True}, {"layer": 3},
        {"rank": {"factorised": "svd", "rank": 2}}, {"rank": {"factorised": "spatial", "rank": 2}},
        {"rank": {"keep": 1}},
        {"shape": [5, 8, 3, 3], "rank": {"factorised": "tucker", "rank": 2}}, {"shape": [1 << 40, 2]}, {"more": 1},
    ],
)
def test_malformed_edits_are_refused(change):
    assert edit_from_plain(LAYER, "delta.json") == LayerEdit("head", (5, 128), 1, None, None, None, bias=True)
    with pytest.raises(ArtifactError, match=r"^delta\.json") as error:
        edit_from_plain({**LAYER, **change}, "delta.json")
    assert len(str(error.value).splitlines()) == 1


def test_only_sizes_can_be_set_as_attributes():
    plain = {"resize": "norm1", "attributes": {"forward": 3}, "tensors": {}}
    with pytest.raises(ArtifactError, match="attribute 'forward'"):
        edit_from_plain(plain, "delta.json")


KEYS = ("schema", "edits", "policy", "inputs", "structure", "state", "ranges", "kept")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, 3, [3], {"a": "b"}])
def test_malformed_deltas_are_refused(key, value):
    item = prepared("mlp")
    plain = delta_of(item.program, item.network(choices_of(item, keep=True))).to_plain()
    with pytest.raises(ArtifactError, match=r"^delta\.json") as error:
        Delta.from_plain({**plain, key: value}, "delta.json")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (LayerEdit("tail", (5, 128), 1, None, None, None, bias=True), "no module 'tail'"),
        (LayerEdit("head", (6, 128), 1, None, None, None, bias=True), "cannot become"),
        (LayerEdit("head", (5, 128, 1, 1), 1, None, None, None, bias=True), "cannot become"),
        (LayerEdit("head", (5, 128), 1, Factorised("svd", 6), None, None, bias=True), "cannot become"),
        (LayerEdit("stem.0", (8, 3, 3, 3), 1, Factorised("spatial", 10), None, None, bias=True), "cannot become"),
        (LayerEdit("stem.0", (8, 3, 3, 3), 1, Factorised("tucker", 2, 4), None, None, bias=True), "cannot become"),
        (ResizeEdit("bn1", {}, {"bn1.gamma": (4,)}), "tensor 'bn1.gamma'"),
        (ResizeEdit("bn1", {}, {"bn1.weight": (17,)}), "tensor 'bn1.weight'"),
    ],
)
def test_edits_that_fit_no_module_are_refused(edit, message):
    with pytest.raises(ArtifactError) as error:
        apply_edits(build("depthwise"), [edit])
    assert message in str(error.value)


def test_modules_that_are_no_layers_are_refused():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3))

    model = nn.Sequential(Dense())
    with pytest.raises(UnsupportedModelError, match="layer '0' is a Dense"):
        apply_edits(model, [LayerEdit("0", (2, 2), 1, None, None, None, bias=False)])
    with pytest.raises(UnsupportedModelError, match="'0' is a Dense"):
        apply_edits(model, [FoldEdit("0", 2)])


def test_subclasses_gradients_and_padding_modes_stay():
    class Named(nn.Conv2d):
        pass

    model = nn.Sequential(Named(4, 6, 3, 2, 1, padding_mode="reflect", bias=False), nn.Conv2d(6, 8, 1))
    model[0].requires_grad_(False)
    changed = copy.deepcopy(model)
    smaller = LayerEdit("1", (8, 5, 1, 1), 1, None, None, None, bias=True)
    apply_edits(changed, [LayerEdit("0", (5, 4, 3, 3), 1, Factorised("svd", 2), None, None, bias=True), smaller])
    first, second = changed[0]
    assert type(first) is Named
    assert (first.stride, first.padding, first.padding_mode, first.bias) == ((2, 2), (1, 1), "reflect", None)
    assert (first.in_channels, first.out_channels, second.in_channels, second.out_channels) == (4, 2, 2, 5)
    assert not any(parameter.requires_grad for parameter in changed[0].parameters())
    assert all(parameter.requires_grad for parameter in changed[1].parameters())
    assert changed(torch.zeros(1, 4, 8, 8)).shape == (1, 8, 4, 4)
    packed = copy.deepcopy(model)
    apply_edits(packed, [LayerEdit("1", (8, 6, 1, 1), 1, None, Weights(4, 32), None, bias=True)])
    assert not packed[1].bias.requires_grad
    assert [name for name, _ in packed[1].named_parameters()] == ["bias"]
