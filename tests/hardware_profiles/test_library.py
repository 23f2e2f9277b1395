"""Golden figures of the shipped profiles, each against its published source."""

import csv
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from paretopress.hardware_profiles.accuracy import accuracy
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.kernels_onnx import ModelBuilder
from paretopress.hardware_profiles.profile import DeviceProfile

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("PARETOPRESS_SHARED", ROOT.parent / "shared"))
LATENCY = SHARED / "data" / "latency"


def benchmark(name):
    """Import a script of benchmarks/."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


def needs(name):
    path = LATENCY / name
    if not path.exists():
        pytest.skip(f"{path} is missing (set PARETOPRESS_SHARED)")
    return path


@pytest.mark.parametrize("name", ["ic", "vww", "kws", "ad"])
def test_mlperf_tiny_networks_have_the_published_work(name):
    module = benchmark("mlperf_tiny")
    assert module.NETWORKS[name]().macs == pytest.approx(module.PUBLISHED_MACS[name], rel=0.005)


# STMicroelectronics, MLPerf Tiny v1.1, NUCLEO_H7A3ZI_Q: milliseconds and microjoules per inference.
H7A3 = {"ic": (51.95, 6310.7), "vww": (29.63, 3699.4), "kws": (15.35, 1869.4), "ad": (1.818, 221.2)}


@pytest.mark.parametrize("name", sorted(H7A3))
def test_h7a3_latency_and_energy(name):
    profile, view = load_profile("stm32-h7a3"), benchmark("mlperf_tiny").NETWORKS[name]()
    milliseconds, microjoules = H7A3[name]
    latency = profile.latency_ms(view)
    assert latency.mid == pytest.approx(milliseconds, rel=0.25)
    assert latency.low <= milliseconds <= latency.high
    assert profile.energy_mj(view).mid * 1e3 == pytest.approx(microjoules, rel=0.25)
    # Energy given the measured time, as the profile's power claims.
    assert profile.document.active_power_mw.value * milliseconds == pytest.approx(microjoules, rel=0.10)


def test_resnet8_memory():
    """Vela reports 50.6 KiB SRAM and 77.4 KiB flash, ST 76.9 KiB of weights, for ResNet-8."""
    memory = load_profile("stm32-h7a3").memory(benchmark("mlperf_tiny").resnet8())
    assert memory.weight_bytes == pytest.approx(76.9 * 1024, rel=0.03)
    # Three 16 x 32 x 32 buffers of the first residual block: input of the block, its inner map, its output.
    assert memory.peak_activation_bytes == 3 * 16 * 32 * 32
    assert memory.peak_activation_bytes == pytest.approx(50.6 * 1024, rel=0.15)


def test_h7a3_script_reproduces_the_profile():
    module = benchmark("fit_stm32_h7a3")
    model, result, power = module.calibrate(needs("mlperf_tiny.csv"))
    stored = load_profile("stm32-h7a3")
    again = DeviceProfile.from_plain(module.document(model, result, power), "again")
    assert again.document.active_power_mw == stored.document.active_power_mw
    assert again.document.validation == stored.document.validation
    assert again.fingerprint == stored.fingerprint
    kernels = module.NETWORKS["ic"]().kernels
    np.testing.assert_allclose(
        stored.kernel_us(kernels), model.kernel_us(kernels, ["int8"] * len(kernels)), rtol=1e-5
    )
    assert result.mape < 0.20


def test_cortex_a76_script_reproduces_the_profile():
    module = benchmark("fit_cortex_a76")
    path = needs("nasbench201_measured.csv")
    model, result = module.calibrate(path)
    stored = load_profile("cortex-a76-tflite")
    entry = stored.document.validation[0]
    assert (entry.n, entry.mape) == (result.n, pytest.approx(result.mape, abs=1e-4))
    assert result.n >= 0.8 * 2000
    assert result.mape < 0.03
    assert result.within10 >= 0.99
    assert result.spearman > 0.985
    views, times = module.read_rows(path)
    again = DeviceProfile.from_plain(module.document(model, result), "again")
    assert again.fingerprint == stored.fingerprint
    predicted = np.array([stored.latency_ms(view).mid for view in views[:100]])
    np.testing.assert_allclose(predicted, module.predict_ms(model, views[:100]), rtol=1e-4)
    assert np.median(np.abs(predicted / times[:100] - 1)) < 0.03


def test_nasbench201_dead_branches_are_removed():
    live = benchmark("nasbench201").live_operations
    dead = "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
    assert live(dead) == [("skip_connect", 0, 3)]
    full = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
    assert len(live(full)) == 6


@pytest.mark.parametrize("executed", ["float32", "int8"])
def test_zen4_predicts_isolated_convolutions_within_the_stated_error(executed):
    profile = load_profile("x86-zen4-vnni-onnxruntime")
    entry = next(e for e in profile.document.validation if "Zen 4" in e.set and executed in e.set)
    predicted, measured = [], []
    with needs("zen4_ort1311_conv_1thread_us.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 420
    for row in rows[1::2]:  # the even rows fitted the scale
        cin, cout, window, stride, size = (int(row[key]) for key in ("cin", "cout", "k", "stride", "hw_in"))
        builder = ModelBuilder(0)
        value = builder.conv(
            builder.start(cin, (size, size)), cout, (window, window), stride, int8=executed == "int8"
        )
        _, view = builder.build(value)
        predicted.append(profile.latency_ms(view).mid * 1e3)
        measured.append(float(row["f32_us" if executed == "float32" else "int8_us"]))
    result = accuracy(np.array(predicted), np.array(measured))
    assert result.n == entry.n
    assert result.mape == pytest.approx(entry.mape, abs=0.002)
    assert result.mape < {"float32": 0.20, "int8": 0.12}[executed]
    assert result.spearman > 0.95
