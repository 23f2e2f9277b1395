"""Weights stored as integers in layers that compute in floats: small files at the speed of floats."""

from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx, run_session, session
from paretopress.compressors.program import build_program
from paretopress.compressors.realise import realise
from paretopress.compressors.tuning import tune
from paretopress.spaces.choices import Weights
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


@pytest.fixture(scope="module")
def item():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(),
        nn.Conv2d(16, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    ).eval()
    inputs = torch.randn(32, 3, 12, 12)
    program = build_program(model, (inputs[:4],), {})
    calibration = calibrate(program, [[inputs]], tuning_samples=32, seed=0)
    return model, program, Entries(program, calibration, "obs"), calibration, inputs


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_the_file_holds_integers_and_the_runtime_none(item, bits, tmp_path):
    model, program, entries, calibration, inputs = item
    policy = Policy.of({f"{name}/weights": Weights(bits, 32) for name in ("0", "2", "4", "7")})
    network, _ = tune(program, entries.stitch(plan(program.structure, policy)), calibration)
    path = tmp_path / "model.onnx"
    export_onnx(program, network, path)
    stored = onnx.load(path)
    wide = [tensor for tensor in stored.graph.initializer if len(tensor.dims) > 1 and tensor.dims[1] > 1]
    kinds = Counter(tensor.data_type for tensor in wide)
    assert kinds[onnx.TensorProto.INT8] == 3   # the depthwise weights have one input channel
    assert not any("Linear" in node.op_type for node in stored.graph.node)

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    run = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert not run & {"Cast", "Mul", "DequantizeLinear"}, run

    with torch.inference_mode():
        wanted = realise(model, program, network)(inputs)
    found = run_session(session(path), [inputs])[0]
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
