"""Which units stand for which."""

import math

import numpy as np
import pytest
from family import MAKERS, member

from paretopress.spaces.unit_mapping import FARTHEST, distances, map_units


@pytest.mark.parametrize("name", MAKERS)
def test_a_model_stands_for_itself(name):
    features = member(name).features
    found = map_units(features, features)
    assert found.coverage == found.macs_coverage == 1.0
    assert not found.missing
    assert not found.unused
    for subject, one in found.found.items():
        assert one.sources == ((subject, 1.0),)
        assert (one.how, one.distance) == ("same", 0.0)


def test_a_deeper_sibling_is_mapped_by_position_within_the_pattern():
    found = map_units(member("shallow").features, member("deep").features, structure_only=True)
    assert found.coverage == 1.0
    assert found.found["layer1.1.conv1/layer"].sources == (
        ("layer1.0.conv1/layer", 0.5), ("layer1.1.conv1/layer", 0.5))
    assert found.found["layer1.2.conv2/layer"].sources == (("layer1.1.conv2/layer", 1.0),)
    assert found.found["layer2.0.conv1/layer"].how == "same"
    assert found.found["layer2.0.conv1/layer"].sources == (("layer2.0.conv1/layer", 1.0),)   # the strided one
    assert found.found["layer1.1.conv1/channels"].sources[0][0].endswith("/channels")


def test_the_same_names_at_another_width_are_not_the_same():
    found = map_units(member("shallow").features, member("wide").features)
    one = found.found["layer1.0.conv1/layer"]
    assert (one.how, one.sources) == ("structure", (("layer1.0.conv1/layer", 1.0),))
    assert one.distance > 0.0


@pytest.mark.parametrize(
    ("source", "target"), [("separable", "deep"), ("attention", "separable"), ("deep", "attention")]
)
def test_other_families_are_mapped_by_features_or_said_to_be_missing(source, target):
    theirs, ours = member(source).features, member(target).features
    found = map_units(theirs, ours)
    assert set(found.found) | set(found.missing) == set(ours)
    assert not set(found.found) & set(found.missing)
    assert found.coverage == len(found.found) / len(ours)
    for subject, one in found.found.items():
        assert one.how == "features"
        assert 0.0 < one.distance <= FARTHEST
        assert sum(weight for _, weight in one.sources) == pytest.approx(1.0)
        assert all(name in theirs and name.rpartition("/")[2] == subject.rpartition("/")[2] for name, _ in one.sources)
    assert all("nearer than" in reason for reason in found.missing.values())
    strict = map_units(theirs, ours, structure_only=True)
    assert strict.coverage == 0.0
    assert all("named like" in reason for reason in strict.missing.values())


def test_distances_are_symmetric_and_zero_on_oneself():
    one, other = member("deep").features, member("separable").features
    names = [name for name in one if name.endswith("/layer")]
    columns = [name for name in other if name.endswith("/layer")]
    own = distances(one, names, one, names)
    assert np.allclose(np.diag(own), 0.0, atol=1e-6)
    assert np.allclose(distances(one, names, other, columns), distances(other, columns, one, names).T)
    assert (own[~np.eye(len(names), dtype=bool)] > 0.0).all()


def test_nothing_is_mapped_from_nothing():
    found = map_units({}, member("shallow").features)
    assert found.coverage == found.macs_coverage == 0.0
    assert math.isfinite(len(found.missing))
    assert found.to_plain()["subjects"] == {}
