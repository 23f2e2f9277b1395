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
from paretopress.hardware_profiles.reference_networks import known_network

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("PARETOPRESS_SHARED", ROOT.parent / "shared"))
LATENCY = SHARED / "data" / "latency"


def benchmark(name):
    """Import a script of benchmarks/hardware/."""
    folder = ROOT / "benchmarks" / "hardware"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


def needs(name):
    path = LATENCY / name
    if not path.exists():
        pytest.skip(f"{path} is missing (set PARETOPRESS_SHARED)")
    return path


# STMicroelectronics, MLPerf Tiny v1.1, NUCLEO_H7A3ZI_Q: milliseconds and microjoules per inference.
H7A3 = {"ic": (51.95, 6310.7), "vww": (29.63, 3699.4), "kws": (15.35, 1869.4), "ad": (1.818, 221.2)}


@pytest.mark.parametrize("name", sorted(H7A3))
def test_h7a3_latency_and_energy(name):
    profile, view = load_profile("stm32-h7a3"), known_network(f"mlperf-tiny-{name}", 8)
    milliseconds, microjoules = H7A3[name]
    latency = profile.latency_ms(view)
    assert latency.mid == pytest.approx(milliseconds, rel=0.25)
    assert latency.low <= milliseconds <= latency.high
    assert profile.energy_mj(view).mid * 1e3 == pytest.approx(microjoules, rel=0.25)
    # Energy given the measured time, as the profile's power claims.
    assert profile.document.active_power_mw.value * milliseconds == pytest.approx(microjoules, rel=0.10)


def test_resnet8_memory():
    """Vela reports 50.6 KiB SRAM and 77.4 KiB flash, ST 76.9 KiB of weights, for ResNet-8."""
    memory = load_profile("stm32-h7a3").memory(known_network("resnet-8", 8))
    assert memory.weight_bytes == pytest.approx(76.9 * 1024, rel=0.03)
    # Three 16 x 32 x 32 buffers of the first residual block: input of the block, its inner map, its output.
    assert memory.peak_activation_bytes == 3 * 16 * 32 * 32
    assert memory.peak_activation_bytes == pytest.approx(50.6 * 1024, rel=0.15)


def same(content):
    """The shipped profile is what its script writes, but for the last digits of a least-squares solver."""
    stored, again = load_profile(content["id"]).plain, DeviceProfile.from_plain(content, "again").plain
    assert flat(again).keys() == flat(stored).keys()
    for path, value in flat(stored).items():
        if isinstance(value, float):
            assert flat(again)[path] == pytest.approx(value, rel=1e-4, abs=1e-9), path
        else:
            assert flat(again)[path] == value, path


def flat(node, path=""):
    """The leaves of a document by path."""
    if isinstance(node, dict):
        return {key: leaf for name, value in node.items() for key, leaf in flat(value, f"{path}.{name}").items()}
    if isinstance(node, list):
        return {key: leaf for i, value in enumerate(node) for key, leaf in flat(value, f"{path}.{i}").items()}
    return {path: node}


def test_scripts_reproduce_the_microcontrollers():
    contents = benchmark("microcontroller_profiles").documents(needs("mlperf_tiny.csv"))
    assert {content["id"] for content in contents} >= {"stm32-h7a3", "stm32-h747", "esp32-s3", "syntiant-ndp120"}
    for content in contents:
        same(content)


def test_scripts_reproduce_the_published_profiles():
    module = benchmark("published_profiles")
    contents = [content for name in module.TARGETS if (content := module.document(name)) is not None]
    assert [content["id"] for content in contents] == [name for name in module.TARGETS if name != "intel-npu3720"]
    for content in contents:
        same(content)


def test_scripts_reproduce_the_datasheets():
    module = benchmark("datasheet_profiles")
    for name in module.DEVICES:
        same(module.document(name))


@pytest.mark.parametrize(("device", "within10"), [
    ("cortex-a76-tflite", 0.99), pytest.param("adreno640-tflite", 0.99, marks=pytest.mark.slow),
])
def test_fifty_networks_calibrate_nasbench201(device, within10):
    module = benchmark("nasbench201")
    path = needs("nasbench201_measured.csv")
    model, result = module.calibrate(path, device)
    same(module.document(device, model, result))
    assert result.n == len(module.read_rows(path, device)[0]) - 50
    assert result.within10 >= within10
    assert result.spearman > 0.985
    architectures, times = module.read_rows(path, device)
    views = module.views_of(architectures[:50], device)
    predicted = np.array([load_profile(device).latency_ms(view).mid for view in views])
    np.testing.assert_allclose(predicted, module.predict_ms(model, views), rtol=1e-4)
    assert np.median(np.abs(predicted / times[:50] - 1)) < 0.03


def test_mlperf_tiny_within_a_fifth():
    report = benchmark("mlperf_tiny").benchmark(needs("mlperf_tiny.csv"), {})
    latency = report["latency"]["all Cortex-M, ratios of all other boards of the kind"]
    assert latency["rows"] == 111
    assert latency["within20"] >= 0.8
    assert report["latency"]["vendor libraries, the reference's ratios"]["within20"] >= 0.8
    assert report["energy"]["given the measured time"]["within20"] >= 0.9
    assert report["energy"]["with the predicted time"]["within20"] >= 0.8
    assert report["stm32_model_zoo"]["within20"] >= 0.8
    errors = {(row["what"], row["vendor"]): row["error"] for row in report["memory"]}
    assert abs(errors["activations", "Vela, SRAM"]) <= 0.15
    assert abs(errors["weights", "Vela, flash"]) <= 0.15
    assert abs(errors["weights", "ST, weights"]) <= 0.15


# OpenVINO 2024.1, ResNet-50: int8 over float32.
RATIOS = {
    "x86-avx2-i7-8700t": 2.0, "x86-avx-vnni-i7-1360p": 3.4, "x86-avx512-vnni-i7-1185g7": 3.7, "x86-icx-vnni-8380": 4.3,
}


@pytest.mark.parametrize("name", sorted(RATIOS))
def test_integers_are_as_much_faster_as_published(name):
    profile = load_profile(name)
    floats, integers = (profile.latency_ms(known_network("resnet-50", bits)).mid for bits in (32, 8))
    assert floats / integers == pytest.approx(RATIOS[name], rel=0.25)


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
