from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.features import FEATURES, Alignment, columns, matrix
from paretopress.hardware_profiles.host import HostInfo, matches, parse_cpuinfo
from paretopress.hardware_profiles.networks import random_network
from paretopress.spaces.errors import ProfileError
from paretopress.spaces.kernels import Boundary, CostView, Family, Kernel, Lifetime

ZEN4 = "x86-zen4-vnni-onnxruntime"


def conv(cin=64, cout=64, window=3, size=16, bits=32, stride=1, groups=1):
    out = size // stride
    family = Family.CONV if groups == 1 else Family.DEPTHWISE if groups == cin else Family.GROUPED
    return Kernel(
        "conv",
        family,
        layer="conv",
        weight_bits=bits,
        activation_bits=8 if bits < 32 else 32,
        cin=cin,
        cout=cout,
        window=(window, window),
        stride=(stride, stride),
        groups=groups,
        input_size=(size, size),
        output_size=(out, out),
        fused=("relu",),
        input_elements=cin * size * size,
        output_elements=cout * out * out,
    )


def one(kernel, profile):
    return float(profile.kernel_us([kernel])[0])


@pytest.fixture(scope="module")
def zen4():
    return load_profile(ZEN4)


@pytest.mark.parametrize("bits", [32, 8])
@settings(max_examples=40, deadline=None)
@given(
    cin=st.integers(1, 16),
    cout=st.integers(1, 16),
    size=st.sampled_from([8, 16, 32]),
    window=st.sampled_from([1, 3, 5]),
)
def test_four_times_the_channels_cost_more(zen4, bits, cin, cout, size, window):
    """Aligned channel counts: odd ones may cost more than the next multiple, as they do on the device."""
    small = conv(cin * 16, cout * 16, window, size, bits)
    assert one(replace(small, cout=4 * small.cout, output_elements=4 * small.output_elements), zen4) > one(
        small, zen4
    )
    assert one(replace(small, cin=4 * small.cin, input_elements=4 * small.input_elements), zen4) > one(
        small, zen4
    )


@pytest.mark.parametrize("name", [ZEN4, "cortex-a76-tflite", "stm32-h7a3"])
def test_roofline_grows_with_every_feature(name):
    model = load_profile(name)._model
    for family in model.families.values():
        assert (family.coefficients >= 0).all()


@pytest.mark.parametrize("mode", ["float32", "int8", "mixed"])
def test_predictions_of_random_networks_are_positive_and_finite(zen4, mode):
    for seed in range(20):
        view = random_network(seed, mode).view
        times = zen4.kernel_us(view.kernels)
        assert times.dtype == np.float64
        assert times.shape == (len(view.kernels),)
        assert (times > 0).all()
        assert np.isfinite(times).all()


def test_latency_is_the_sum_of_its_parts(zen4):
    view = random_network(3, "mixed").view
    total = zen4.session_us + zen4.kernel_us(view.kernels).sum() + zen4.boundary_us(view.boundaries).sum()
    estimate = zen4.latency_ms(view)
    assert estimate.mid == pytest.approx(total / 1e3)
    assert estimate.low < estimate.mid < estimate.high
    assert estimate.unit == "ms"
    assert zen4.relative_cost(view) == pytest.approx(total)


def test_kernels_are_priced_alone_as_together(zen4):
    kernels = [k for seed in range(5) for k in random_network(seed, "mixed").view.kernels]
    together = zen4.kernel_us(kernels)
    np.testing.assert_allclose(together, [one(kernel, zen4) for kernel in kernels], rtol=1e-12)


def test_no_kernels_cost_nothing(zen4):
    assert zen4.kernel_us([]).shape == (0,)
    assert zen4.boundary_us([]).shape == (0,)


def test_low_bits_run_at_the_speed_of_int8(zen4):
    speeds = {bits: one(replace(conv(bits=8), weight_bits=bits), zen4) for bits in (8, 4, 3, 2)}
    assert len(set(speeds.values())) == 1
    assert zen4.executes(replace(conv(bits=8), weight_bits=3)) == "int8"


def test_weight_only_runs_in_float(zen4):
    kernel = replace(conv(), weight_bits=4)
    assert zen4.executes(kernel) == "float32"
    assert one(kernel, zen4) == one(conv(), zen4)
    capabilities = zen4.capabilities()
    assert (4, 32) in capabilities.size_only
    assert set(capabilities.formats) >= {(8, 8), (4, 8), (3, 8), (2, 8), (4, 32)}
    assert not {(8, 8), (4, 8)} & set(capabilities.size_only)
    assert (capabilities.channel_step, capabilities.rank_step) == (4, 4)


def test_int8_pays_where_the_device_says_so(zen4):
    assert one(conv(128, 128, bits=8), zen4) < 0.6 * one(conv(128, 128), zen4)


def test_kernels_without_weights_follow_their_tensors(zen4):
    add = Kernel("add", Family.ADD, activation_bits=8, cin=8, cout=8, input_elements=128, output_elements=64)
    norm = replace(add, family=Family.NORM)
    assert zen4.executes(add) == "int8"
    assert zen4.executes(norm) == "float32"


def test_unknown_format_names_kernel_bits_and_device(zen4):
    with pytest.raises(
        ProfileError, match=rf"{ZEN4} cannot run kernel 'conv' \(conv\) with 5-bit weights and 8-bit"
    ):
        zen4.kernel_us([replace(conv(bits=8), weight_bits=5)])


def test_int8_is_refused_on_the_cortex():
    profile = load_profile("cortex-a76-tflite")
    with pytest.raises(
        ProfileError, match=r"'conv' .*8-bit weights and 8-bit activations: TFLite int8 .* unknown"
    ):
        profile.kernel_us([conv(bits=8)])
    assert (8, 8) in profile.capabilities().refused
    assert profile.kernel_us([conv()])[0] > 0


def test_float_is_refused_on_the_microcontroller():
    with pytest.raises(ProfileError, match="float32 networks on this device are unknown"):
        load_profile("stm32-h7a3").kernel_us([conv()])


def test_missing_family_is_named():
    with pytest.raises(ProfileError, match="no figures for int8 matmul kernels"):
        load_profile("stm32-h7a3").kernel_us(
            [Kernel("mm", Family.MATMUL, activation_bits=8, cin=4, cout=4, rows=4)]
        )


def test_t0_ranks_but_never_gives_milliseconds():
    profile = load_profile("h200-sxm")
    view = CostView((conv(),), (), (), 0)
    for ask in (
        lambda: profile.latency_ms(view),
        lambda: profile.kernel_us(view.kernels),
        lambda: profile.boundary_us(()),
        lambda: profile.session_us,
    ):
        with pytest.raises(ProfileError, match="ranks candidates only, never milliseconds"):
            ask()
    larger = CostView((conv(cout=256),), (Boundary("x", "quantize", 10, 4),), (), 0)
    assert 0 < profile.relative_cost(view) < profile.relative_cost(larger)
    assert profile.relative_cost(CostView((conv(bits=8),), (), (), 0)) < profile.relative_cost(view)
    assert profile.energy_mj(view) is None


def test_energy_is_power_times_time_or_unknown(zen4):
    view = CostView((conv(bits=8),), (), (Lifetime("x", 7, -1, 0),), 11)
    profile = load_profile("stm32-h7a3")
    power_mw = profile.document.active_power_mw.value
    energy = profile.energy_mj(view)
    assert energy is not None
    assert energy.mid == pytest.approx(profile.latency_ms(view).mid * power_mw / 1e3)
    assert zen4.energy_mj(view) is None
    assert profile.memory(view).weight_bytes == 11
    assert profile.memory(view).peak_activation_bytes == 7
    assert profile.memory(view).runtime_bytes is None
    assert profile.limits.sram_bytes == 1_180_000
    assert profile.limits.flash_bytes == 2 * 1024 * 1024


def test_alignment_rounds_work_up():
    kernels = [conv(cin=17, cout=17, window=1, size=1), conv(cin=20, cout=32, window=1, size=1)]
    work = matrix(columns(kernels), ["work"], Alignment(4, 16, 4))
    assert work[0, 0] == work[1, 0] == 20 * 32 / 1e3


@pytest.mark.parametrize("feature", sorted(FEATURES))
def test_features_are_finite_and_not_negative(feature):
    kernels = [
        k
        for mode in ("float32", "int8")
        for seed in range(15)
        for k in random_network(seed, mode).view.kernels
    ]
    for alignment in (Alignment(), Alignment(4, 16, 4), Alignment(16, 16, 4)):
        values = matrix(columns(kernels), [feature], alignment)
        assert np.isfinite(values).all()
        assert (values >= 0).all()


CPUINFO = (
    "processor : 0\nvendor_id : AuthenticAMD\ncpu family : 25\nmodel name : AMD EPYC 9654 96-Core Processor\n"
    "flags : fpu avx512_vnni avx512_bf16\nprocessor : 1\ncpu family : 26\n"
)


def test_cpu_matching(zen4):
    host = parse_cpuinfo(CPUINFO, "x86_64")
    assert host == HostInfo(
        "AMD EPYC 9654 96-Core Processor", 25, frozenset({"fpu", "avx512_vnni", "avx512_bf16"}), "x86_64"
    )
    wanted = zen4.document.host
    assert matches(wanted, host)
    assert not matches(wanted, replace(host, family=26))
    assert not matches(wanted, replace(host, flags=frozenset()))
    assert not matches(wanted, replace(host, model="Intel Xeon"))
    assert not matches(wanted, replace(host, machine="aarch64"))


def test_host_warning_names_both_cpus(zen4, monkeypatch):
    from paretopress.hardware_profiles import profile as module

    other = HostInfo("Intel Xeon 8380", 6, frozenset({"avx512_vnni", "avx512_bf16"}), "x86_64")
    monkeypatch.setattr(module, "host_info", lambda: other)
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    assert zen4.runs_here()
    assert "Intel Xeon 8380" in zen4.host_warning()
    assert "local" in zen4.host_warning()
    monkeypatch.setattr(module, "host_info", lambda: replace(other, model="AMD EPYC 9654", family=25))
    assert zen4.host_warning() is None
    monkeypatch.setattr(module, "host_info", lambda: replace(other, flags=frozenset()))
    assert not zen4.runs_here()
    assert not load_profile("cortex-a76-tflite").runs_here()
