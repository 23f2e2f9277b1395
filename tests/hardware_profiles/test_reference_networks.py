import pytest

from paretopress.hardware_profiles.nasbench201 import cost_view, live_operations, operations
from paretopress.hardware_profiles.reference_networks import (
    MLPERF_TINY,
    PUBLISHED_MACS,
    known_network,
    known_networks,
)
from paretopress.spaces.errors import ProfileError
from paretopress.spaces.kernels import Family


@pytest.mark.parametrize("name", sorted(PUBLISHED_MACS))
def test_mlperf_tiny_networks_have_the_published_work(name):
    assert MLPERF_TINY[name](8).macs == pytest.approx(PUBLISHED_MACS[name], rel=0.005)


# Millions of multiply-accumulates and of weights: the papers' tables; torchvision 0.28's documentation for ResNets
# and VGG; MLPerf Mobile for the detector.
PUBLISHED = {
    "resnet-18": (1814, 11.69), "resnet-34": (3664, 21.80), "resnet-50": (4089, 25.56), "resnet-101": (7801, 44.55),
    "mobilenet-v1": (569, 4.23), "mobilenet-v2": (301, 3.50), "vgg-16": (15470, 138.36), "inception-v1": (1582, 7.0),
    "ssd-mobilenet-v1": (1237, 6.8), "yolo-v3-tiny": (2780, 8.85),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_networks_have_the_published_size(name):
    view, (macs, weights) = known_network(name), PUBLISHED[name]
    assert view.macs / 1e6 == pytest.approx(macs, rel=0.01)
    assert sum(kernel.weight_elements for kernel in view.kernels) / 1e6 == pytest.approx(weights, rel=0.03)


@pytest.mark.parametrize("name", known_networks())
def test_buffers_outlive_their_readers(name):
    view = known_network(name, 8)
    assert all(0 <= item.last <= len(view.kernels) and item.size > 0 for item in view.lifetimes)
    assert {item.tensor for item in view.lifetimes} == {"input", *(kernel.name for kernel in view.kernels)}
    additions = [index for index, kernel in enumerate(view.kernels) if kernel.family is Family.ADD]
    for index in additions:   # both operands are still there
        assert sum(item.first < index <= item.last for item in view.lifetimes) >= 2


def test_widths_of_mobilenets():
    assert known_network("mobilenet-v2-0.35-128", 8).macs == pytest.approx(20.2e6, rel=0.01)
    with pytest.raises(ProfileError, match="did you mean 'resnet-50'"):
        known_network("resnet50")


DEAD = "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
FULL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"


def test_nasbench201_dead_branches():
    assert live_operations(DEAD) == [("skip_connect", 0, 3)]
    assert len(live_operations(FULL)) == 6
    assert len(operations(DEAD)) == 3
    alive, everything = cost_view(DEAD), cost_view(DEAD, dead_branches=True)
    assert everything.macs > alive.macs
    assert cost_view(FULL).macs == cost_view(FULL, dead_branches=True).macs


@pytest.mark.parametrize(
    "text", ["", "conv", DEAD.replace("none~1|+", "none~2|+"), DEAD[:-1], DEAD.replace("nor_", "x_")]
)
def test_nasbench201_strings_that_are_none(text):
    with pytest.raises(ProfileError, match="NAS-Bench-201 architecture"):
        cost_view(text)
