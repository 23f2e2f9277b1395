"""Arm Vela in the loop: golden figures of the reference networks, and what is refused."""

import json
from pathlib import Path

import pytest

from paretopress.cli import main
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.kernels_onnx import ModelBuilder
from paretopress.hardware_profiles.onnx_view import onnx_kernels
from paretopress.hardware_profiles.reference_networks import known_network
from paretopress.hardware_profiles.vela import vela_estimate
from paretopress.spaces.errors import ProfileError


def resnet8():
    builder = ModelBuilder(0)
    value = builder.conv(builder.start(3, (32, 32)), 16, (3, 3), int8=True)
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        inner = builder.conv(value, channels, (3, 3), stride, int8=True)
        inner = builder.conv(inner, channels, (3, 3), relu=False, int8=True)
        if stride > 1:
            value = builder.conv(value, channels, (1, 1), stride, relu=False, int8=True)
        value = builder.add(value, inner, int8=True)
    return builder.build(builder.linear(builder.global_pool(value, int8=True), 10, int8=True, last=True))[0]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("vela") / "resnet8.onnx"
    path.write_bytes(resnet8())
    return path


def test_resnet8_needs_what_vela_reports_for_the_reference_model(reference, capsys):
    """50.6 KiB of SRAM and 77.4 KiB of flash; random weights compress less than trained ones."""
    with pytest.raises(SystemExit) as ended:
        main(["device", "vela", str(reference), "--json"])
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["sram_bytes"] / 1024 == pytest.approx(50.6, rel=0.02)
    assert found["flash_bytes"] / 1024 == pytest.approx(77.4, rel=0.1)
    assert 100_000 < found["cycles"] < 500_000
    assert found["milliseconds"] == pytest.approx(found["cycles"] / 500e6 * 1e3)


def test_the_least_memory_of_a_chain_is_that_of_liveness(tmp_path):
    """DS-CNN: the largest input and output of one kernel."""
    builder = ModelBuilder(0)
    value = builder.conv(builder.start(1, (49, 10)), 64, (10, 4), 2, int8=True)
    for _ in range(4):
        value = builder.conv(value, 64, (3, 3), groups=64, int8=True)
        value = builder.conv(value, 64, (1, 1), int8=True)
    model, _ = builder.build(builder.linear(builder.global_pool(value, int8=True), 12, int8=True, last=True))
    path = tmp_path / "ds_cnn.onnx"
    path.write_bytes(model)
    predicted = load_profile("stm32-h747").memory(known_network("ds-cnn", 8)).peak_activation_bytes
    assert vela_estimate(path, "ethos-u55-128", "size").sram_bytes == predicted == 2 * 64 * 25 * 5
    with pytest.raises(ProfileError, match="did you mean 'size'"):
        vela_estimate(path, "ethos-u55-128", "sizes")


def test_edges_are_those_of_the_file(reference):
    network = onnx_kernels(Path(reference))
    assert network.sources[0] == (-1,)
    adds = [index for index, name in enumerate(network.operators) if name == "Add"]
    shortcuts = [0, adds[1] - 1, adds[2] - 1]   # the input of the first block, then 1x1 convolutions
    assert [set(network.sources[index]) for index in adds] == [
        {shortcut, index - 1 if shortcut == 0 else index - 2} for shortcut, index in zip(shortcuts, adds, strict=True)
    ]


@pytest.mark.parametrize(("build", "message"), [
    (lambda b: b.conv(b.start(3, (8, 8)), 4, (1, 1)), "computes in floats; Ethos-U runs int8 only"),
    (lambda b: b.conv(b.start(8, (16,)), 8, (3,), int8=True), "conv, 1 dimensions) is not written as TFLite"),
    (lambda b: b.conv(b.start(8, (8, 8)), 8, (3, 3), groups=2, int8=True), "grouped, 2 dimensions"),
])
def test_what_is_not_written_is_refused(build, message, tmp_path):
    builder = ModelBuilder(0)
    path = tmp_path / "network.onnx"
    path.write_bytes(builder.build(build(builder))[0])
    with pytest.raises(ProfileError) as caught:
        vela_estimate(path, "ethos-u55-128")
    assert message in str(caught.value)


def test_unknown_accelerators(reference):
    with pytest.raises(ProfileError, match="did you mean 'ethos-u55-128'"):
        vela_estimate(reference, "ethos-u55-129")
