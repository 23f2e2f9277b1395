import json
from pathlib import Path

import numpy as np
import pytest

from paretopress.hardware_profiles.kernels_onnx import ModelBuilder
from paretopress.hardware_profiles.networks import MODES, random_network
from paretopress.hardware_profiles.runtime_onnxruntime import open_session
from paretopress.spaces.kernels import Family, product


def executed_operators(model, shape, tmp_path):
    session = open_session(model, str(tmp_path / "profile"))
    session.run(None, {"input": np.ones(shape, np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    return [
        e["args"]["op_name"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
    ]


def test_int8_residual_block_runs_on_integer_kernels(tmp_path):
    builder = ModelBuilder()
    value = builder.start(16, (8, 8))
    value = builder.conv(value, 16, (3, 3), int8=True)
    inner = builder.conv(value, 16, (3, 3), groups=16, int8=True)
    inner = builder.conv(inner, 16, (1, 1), relu=False, int8=True)
    value = builder.add(value, inner, int8=True)
    value = builder.linear(builder.global_pool(value, int8=True), 10, int8=True, last=True)
    model, view = builder.build(value)
    operators = executed_operators(model, (1, 16, 8, 8), tmp_path)
    assert operators.count("QLinearConv") == 3
    assert (
        operators.count("QLinearAdd")
        == operators.count("QLinearGlobalAveragePool")
        == operators.count("QGemm")
        == 1
    )
    assert not {"Conv", "FusedConv", "Add", "Relu", "Gemm"} & set(operators)
    assert [boundary.kind for boundary in view.boundaries] == ["quantize"]


def test_float_layer_between_int8_layers_stays_float(tmp_path):
    builder = ModelBuilder()
    value = builder.start(16, (8, 8))
    for int8 in (True, False, True):
        value = builder.conv(value, 16, (3, 3), int8=int8)
    model, view = builder.build(value)
    operators = executed_operators(model, (1, 16, 8, 8), tmp_path)
    assert operators.count("QLinearConv") == 2
    assert sum(name in ("Conv", "FusedConv") for name in operators) == 1
    assert [b.kind for b in view.boundaries] == ["quantize", "dequantize", "quantize", "dequantize"]


def test_float_convolution_absorbs_the_sum(tmp_path):
    builder = ModelBuilder()
    value = builder.start(16, (8, 8))
    value = builder.conv(value, 16, (3, 3))
    value = builder.add(value, builder.conv(value, 16, (3, 3), relu=False))
    model, view = builder.build(value)
    assert [kernel.fused for kernel in view.kernels] == [("relu",), ("add", "relu")]
    assert view.kernels[1].input_elements == 2 * 16 * 64
    assert "Add" not in executed_operators(model, (1, 16, 8, 8), tmp_path)


@pytest.mark.parametrize("mode", MODES)
def test_random_networks_run_and_agree_with_their_views(mode):
    for seed in range(12):
        network = random_network(seed, mode)
        session = open_session(network.model)
        output = session.run(None, {"input": np.zeros(network.input_shape, np.float32)})[0]
        view = network.view
        assert output.size == view.kernels[-1].output_elements
        assert np.isfinite(output).all()
        for kernel in view.kernels:
            if kernel.family in (Family.CONV, Family.DEPTHWISE, Family.GROUPED):
                assert kernel.output_elements == kernel.cout * product(kernel.output_size)
                for before, after, step in zip(
                    kernel.input_size, kernel.output_size, kernel.stride, strict=True
                ):
                    assert after == -(-before // step)
        assert {kernel.activation_bits for kernel in view.kernels} <= ({32} if mode == "float32" else {8, 32})
        assert len({lifetime.tensor for lifetime in view.lifetimes}) == len(view.kernels) + 1


def test_the_same_seed_gives_the_same_network():
    first, second = random_network(7, "mixed"), random_network(7, "mixed")
    assert first == second
    assert first.model != random_network(8, "mixed").model
