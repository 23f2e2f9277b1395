"""Layers that stay in floats beside integer ones do so in sessions with default options too."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx
from paretopress.compressors.network import forward
from paretopress.compressors.program import build_program
from paretopress.compressors.tuning import tune
from paretopress.spaces.choices import Weights
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


class Sandwich(nn.Module):
    """Weights of very different sizes: with one scale for all, most of them would be rounded to zero."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 6, 3)
        self.up = nn.ConvTranspose2d(6, 4, 2)
        self.hidden, self.fc = nn.Linear(4, 8), nn.Linear(8, 5)
        with torch.no_grad():
            for weights in self.parameters():
                weights.abs_()
            self.middle.weight[0] *= -300.0   # what that row gives does not matter behind the ReLU

    def forward(self, x):
        x = self.last(self.middle(self.first(x).relu()).relu()).relu()
        return self.fc(self.hidden(self.up(x).relu().mean((2, 3))).relu())


@pytest.fixture(scope="module")
def mixed():
    torch.manual_seed(0)
    inputs = torch.rand(16, 3, 10, 10)
    program = build_program(Sandwich().eval(), (inputs[:2],))
    calibration = calibrate(program, [(inputs,)])
    choices = {f"{name}/weights": Weights(8) for name in ("first", "last", "fc")}
    planned = plan(program.structure, Policy.of(choices))
    network = tune(program, Entries(program, calibration, "l1").stitch(planned), calibration)[0]
    return program, network, inputs


def run_by_default(path, inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])


def test_the_runtime_does_not_round_their_weights(mixed, tmp_path):
    program, network, inputs = mixed
    export_onnx(program, network, tmp_path / "model.onnx")
    found, expected = run_by_default(tmp_path / "model.onnx", inputs), forward(program, network, (inputs,))
    differences = (expected - expected.mean(dim=0)).abs().max()
    assert float((found - expected).abs().max()) < 0.05 * float(differences)


def test_they_read_integers_along_an_axis_and_integer_layers_do_not(mixed, tmp_path):
    program, network, _ = mixed
    export_onnx(program, network, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    sizes = {one.name: onnx.numpy_helper.to_array(one).size for one in graph.initializer}
    read = {True: set(), False: set()}
    for node in graph.node:
        source = makers.get(node.input[0]) if node.op_type in ("Conv", "ConvTranspose", "Gemm") else None
        if source is not None and source.op_type == "DequantizeLinear":
            weight = makers.get(node.input[1])
            read[weight is not None and weight.op_type == "DequantizeLinear"].add(sizes[source.input[1]])
    assert read[True] == {1}
    assert len(read[False]) > 0
    assert min(read[False]) > 1
