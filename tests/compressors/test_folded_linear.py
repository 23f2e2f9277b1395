"""Batch normalisation behind a linear layer is folded: one kernel in the cost view, one in the exported graph."""

from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx
from paretopress.compressors.program import build_program
from paretopress.compressors.realise import realise
from paretopress.compressors.refit import settle
from paretopress.spaces.choices import Factorised, Keep, Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.kernels import Family
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

CHOICES = {
    "dense": {},
    "pruned": {"0/channels": Keep(0.5), "3/channels": Keep(0.5)},
    "low rank": {"3/rank": Factorised("svd", 3)},
    "8-bit": {"0/weights": Weights(8), "3/weights": Weights(8), "6/weights": Weights(8)},
    "stored in 4 bits": {"0/weights": Weights(4, 32), "3/weights": Weights(4, 32)},
}


def network(bias):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 16, bias=bias), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Linear(16, 16, bias=bias), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4),
    )
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CHOICES)
def test_cost_view_and_runtime_agree_on_kernels_and_conversions(name, bias, tmp_path):
    model, inputs = network(bias), torch.randn(64, 20)
    program = build_program(model, (inputs[:4],), {})
    entries = Entries(program, calibrate(program, [[inputs]], seed=0), "l1")
    planned = plan(program.structure, Policy.of(CHOICES[name]))
    built, _ = settle(entries, planned)
    if name == "dense":
        torch.testing.assert_close(realise(model, program, built)(inputs), model(inputs), rtol=1e-4, atol=1e-4)
    view = cost_view(planned)
    assert {kernel.family for kernel in view.kernels} == {Family.LINEAR}
    assert [kernel.fused for kernel in view.kernels if not kernel.name.endswith(":first")] == [("relu",), ("relu",), ()]
    path, optimised = tmp_path / "model.onnx", tmp_path / "optimised.onnx"
    export_onnx(program, built, path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(optimised), 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    expected = realise(model, program, built)(inputs)
    assert float((torch.from_numpy(found) - expected).abs().max()) < (0.2 if name == "8-bit" else 1e-3)
    operators = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    assert "BatchNormalization" not in operators
    products = sum(count for kind, count in operators.items() if "Gemm" in kind or "MatMul" in kind)
    assert products == len(view.kernels)


def test_a_normalisation_of_tokens_is_not_folded():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(5), nn.ReLU()).eval()   # five tokens are its channels
    structure = build_program(model, (torch.randn(4, 5, 8),), {}).structure
    assert not structure.fusion.folds
