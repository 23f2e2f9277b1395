"""Features of units: counted by hand on small networks, and independent of names."""

import json

import pytest
import torch
from family import member

from paretopress.spaces.errors import PolicyError
from paretopress.spaces.unit_features import COLUMNS, UnitFeatures, pattern_of, subject_of, unit_features


def test_what_a_layer_is_follows_from_the_graph():
    found = member("shallow").features
    stem, first, strided = (found[f"{name}/layer"] for name in ("conv1", "layer1.0.conv1", "layer2.0.conv1"))
    assert (stem.operator, stem.role, stem.place, stem.stage) == ("conv", "stem", 0.0, 0)
    assert (stem.inputs, stem.outputs, stem.window, stem.stride, stem.full_rank) == (3, 8, 9, 1, 8)
    assert stem.activation == 8 * 8 * 8
    assert (first.role, first.pattern) == ("inside", "layer1.*.conv1")
    assert (strided.stride, strided.stage, strided.activation) == (2, 1, 16 * 4 * 4)
    head = found["fc/layer"]
    assert (head.operator, head.role, head.place, head.window) == ("linear", "head", 1.0, 1)
    macs = {"conv1": 64 * 8 * 27, "fc": 80, **{f"layer1.{b}.conv{c}": 64 * 8 * 72 for b in (0, 1) for c in (1, 2)},
            "layer2.0.conv1": 16 * 16 * 72, **{f"layer2.{n}": 16 * 16 * 144 for n in ("0.conv2", "1.conv1", "1.conv2")}}
    for name, count in macs.items():
        assert found[f"{name}/layer"].macs_share == pytest.approx(count / sum(macs.values()))
    assert sum(one.bytes_share for name, one in found.items() if name.endswith("/layer")) == pytest.approx(1.0)


def test_channel_groups_know_their_members_and_whether_they_can_go():
    found = member("shallow").features
    inside = found["layer1.0.conv1/channels"]
    assert (inside.members, inside.droppable, inside.outputs) == (1, True, 8)
    stream = next(one for name, one in found.items() if name.endswith("/channels") and one.members > 1)
    assert not stream.droppable
    layers = {name for name in found if name.endswith("/layer")}
    assert all(subject_of(f"{name.removesuffix('/layer')}/weights") in layers for name in layers)


def test_attention_and_perceptron_have_roles():
    found = member("attention").features
    roles = {name.removesuffix("/layer"): one.role for name, one in found.items() if name.endswith("/layer")}
    assert {roles[name] for name in ("query", "key", "value")} == {"attention in"}
    assert roles["out"] == "attention out"
    assert (roles["grow"], roles["shrink"], roles["head"]) == ("mlp", "mlp", "head")


def test_depthwise_layers_are_told_apart():
    found = member("separable").features
    assert found["features.0/layer"].operator == "depthwise"
    assert found["features.2/layer"].operator == "conv"
    assert found["features.0/layer"].macs_share < found["features.2/layer"].macs_share


def test_spectrum_and_tails_of_known_weights():
    example = member("shallow")
    state = dict(example.model.state_dict())
    weight = torch.zeros(16, 144)
    weight[:, :16] = torch.eye(16)
    state["layer2.1.conv1.weight"] = weight.reshape(16, 16, 3, 3)
    state["layer2.1.conv2.weight"] = torch.outer(torch.randn(16), torch.randn(144)).reshape(16, 16, 3, 3)
    del state["conv1.weight"]
    found = unit_features(example.structure, state)
    assert found["layer2.1.conv1/layer"].rank_share == pytest.approx(1.0, abs=1e-6)
    assert found["layer2.1.conv1/layer"].kurtosis > 50.0          # few ones among zeros
    assert found["layer2.1.conv2/layer"].rank_share == pytest.approx(1 / 16, rel=1e-4)   # rank 1
    assert found["conv1/layer"].rank_share == 1.0                 # nothing is known of it


def test_features_survive_writing():
    for one in member("deep").features.values():
        row = json.loads(json.dumps(one.to_plain()))
        again = UnitFeatures.from_plain(COLUMNS, row, "here")
        assert again.to_plain() == one.to_plain()
        assert (again.operator, again.inputs, again.droppable) == (one.operator, one.inputs, one.droppable)


@pytest.mark.parametrize(("place", "value"), [("outputs", "8"), ("place", True), ("operator", 3), ("droppable", 0)])
def test_wrong_features_are_refused_by_name(place, value):
    row = next(iter(member("shallow").features.values())).to_plain()
    row[COLUMNS.index(place)] = value
    with pytest.raises(PolicyError, match=f"file: {place}: expected"):
        UnitFeatures.from_plain(COLUMNS, row, "file")
    with pytest.raises(PolicyError, match="one value for each"):
        UnitFeatures.from_plain(COLUMNS[1:], row[1:], "file")


def test_patterns_hide_positions_in_lists_alone():
    assert pattern_of("encoder.layer.11.attention.q") == "encoder.layer.*.attention.q"
    assert pattern_of("layer1.0.conv2") == "layer1.*.conv2"
