"""Kernels of families that a profile has no figures for: priced as the nearest kind, with a wider interval."""

from dataclasses import replace

import pytest

from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.predictor import STAND_IN_RANGE
from paretopress.spaces.kernels import CostView, Family, Kernel

UP = Kernel(
    "up", Family.TRANSPOSED, "up", cin=32, cout=16, window=(2, 2), stride=(2, 2), input_size=(8, 8),
    output_size=(16, 16), input_elements=32 * 64, output_elements=16 * 256,
)
SAME = Kernel(
    "conv", Family.CONV, "conv", cin=32, cout=32, window=(3, 3), stride=(1, 1), input_size=(16, 16),
    output_size=(16, 16), input_elements=32 * 256, output_elements=32 * 256,
)


def view(*kernels):
    return CostView(kernels, (), (), 0)


@pytest.fixture(scope="module")
def profile():
    return load_profile("x86-zen4-vnni-onnxruntime")


def test_a_transposed_convolution_costs_what_its_product_costs(profile):
    assert UP.macs == 8 * 8 * 32 * 16 * 4
    product = replace(UP, family=Family.CONV, cout=16 * 4, window=(1, 1), stride=(1, 1), output_size=(8, 8))
    product = replace(product, output_elements=UP.output_elements + 64 * 64)
    assert profile.kernel_us([UP])[0] == pytest.approx(profile.kernel_us([product])[0])
    larger = replace(UP, cout=64, output_elements=64 * 256)
    assert profile.kernel_us([larger])[0] > profile.kernel_us([UP])[0]


def test_its_interval_is_wider_and_says_why(profile):
    plain, both = profile.latency_ms(view(SAME)), profile.latency_ms(view(SAME, UP))
    only = profile.kernel_us([UP])[0] / 1e3
    assert both.mid == pytest.approx(plain.mid + only)
    assert both.high / both.mid > plain.high / plain.mid
    assert both.low / both.mid < plain.low / plain.mid
    assert (both.high - plain.high) / (plain.high / plain.mid) == pytest.approx(only * STAND_IN_RANGE[1])
    assert "1 kernel(s) (transposed) priced as products" in both.basis
    assert "priced as" not in plain.basis


def test_weight_only_formats_of_it_run_in_floats(profile):
    assert profile.executes(replace(UP, weight_bits=4)) == "float32"
