"""What is priced is what runs: the cost view against the graph that ONNX Runtime makes of the exported file."""

from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx
from paretopress.compressors.network import forward
from paretopress.compressors.program import build_program
from paretopress.compressors.tuning import tune
from paretopress.spaces.choices import Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.kernels import Family
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

SIZE, SAMPLES = 10, 16
LAYERS = ("conv", "conv_relu", "depthwise", "padded")
STEPS = (*LAYERS, "max_pool", "add", "concat", "slice", "permute", "pad", "relu")
HEADS = {
    "mean": lambda y: y.mean((2, 3)),
    "kept mean": lambda y: y.mean((2, 3), keepdim=True).flatten(1),
    "adaptive": lambda y: F.adaptive_avg_pool2d(y, 1).flatten(1),
    "flatten": lambda y: y.flatten(1),
}
MOVES = {
    "max_pool": lambda y: F.max_pool2d(y, 2, stride=1),
    "slice": lambda y: y[:, :, 1:],
    "permute": lambda y: y.permute(0, 1, 3, 2),
    "pad": lambda y: F.pad(y, (0, 1, 2, 0)),
    "relu": F.relu,
}


class Network(nn.Module):
    """Steps one after the other; a sum or concatenation joins the last two values where their shapes allow it."""

    def __init__(self, steps, head):
        super().__init__()
        self.steps, self.head, self.layers = steps, head, nn.ModuleDict()
        with torch.no_grad():
            self.fc = nn.Linear(self.features(torch.zeros(1, 4, SIZE, SIZE)).shape[1], 5)

    def layer(self, name, step, y):
        if name not in self.layers:
            depthwise = step == "depthwise"
            channels = y.shape[1] if depthwise else 8
            padding, groups = 0 if step == "padded" else 1, y.shape[1] if depthwise else 1
            self.layers[name] = nn.Conv2d(y.shape[1], channels, 3, padding=padding, groups=groups)
        y = self.layers[name](F.pad(y, (0, 1, 1, 0)) if step == "padded" else y)
        return y if step == "conv" else F.relu(y)

    def features(self, y):
        before = None
        for index, step in enumerate(self.steps):
            new = y
            if step in LAYERS:
                new = self.layer(str(index), step, y)
            elif step in MOVES:
                new = MOVES[step](y)
            elif before is not None and step == "add" and before.shape == y.shape:
                new = F.relu(y + before)
            elif before is not None and step == "concat" and before.shape[2:] == y.shape[2:]:
                new = torch.cat([y, before], 1)
            if new is not y:
                before, y = y, new
        return HEADS[self.head](y)

    def forward(self, x):
        return self.fc(self.features(x))


def priced(planned):
    """Kernels by kind and width, and conversions, as the cost view has them."""
    view, found, arithmetic = cost_view(planned), Counter(), planned.arithmetic
    absorbed = {name: kernel.main for kernel in planned.structure.fusion.kernels for name in kernel.absorbed}

    def for_integers_only(name):
        graph = planned.structure.graph
        users = list(graph.users[name])
        if name not in arithmetic.sources:   # of two ReLUs in a row, the first
            return len(users) == 1 and graph.by_name[users[0]].short_op == "relu" and for_integers_only(users[0])
        return {absorbed.get(user, user) for user in users} <= arithmetic.integer_kernels

    for kernel in view.kernels:
        convolves = kernel.family in (Family.CONV, Family.GROUPED, Family.DEPTHWISE)
        found["conv" if convolves else kernel.family.value, kernel.activation_bits] += 1
        if "add" in kernel.fused or (kernel.family is Family.ADD and kernel.activation_bits == 32):
            found["add", 32] += "add" in kernel.fused
            # Merged at a higher level of optimisation only; what is quantised is cut at zero anyway.
            found["elementwise", 32] += kernel.fused[-1] == "relu" and not for_integers_only(kernel.name)
    return found + Counter(boundary.kind for boundary in view.boundaries)


KINDS = {
    "QLinearConv": "conv",
    "Conv": "conv",
    "FusedConv": "conv",
    "QGemm": "linear",
    "Gemm": "linear",
    "QLinearAdd": "add",
    "Add": "add",
    "QLinearConcat": "concat",
    "Concat": "concat",
    "QLinearGlobalAveragePool": "global_pool",
    "GlobalAveragePool": "global_pool",
    "MaxPool": "pool",
    "Pad": "data",
    "Slice": "data",
    "Transpose": "data",
    "Relu": "elementwise",
}


def ran(path):
    """The same of the optimised graph; tensors that are only renamed cost nothing."""
    graph = onnx.load(path).graph
    integers = {node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    found, dequantised = Counter(), set()
    for node in graph.node:
        width = 8 if node.op_type.startswith("Q") or node.input[0] in integers else 32
        if node.op_type == "DequantizeLinear":
            dequantised.add(node.input[0])   # once per reader in the file
        elif node.op_type == "QuantizeLinear":
            found["quantize"] += 1
        elif node.op_type != "Reshape":
            found[KINDS[node.op_type], width] += 1
        if width == 8 and node.op_type not in ("DequantizeLinear", "QuantizeLinear"):
            integers.update(node.output)
    return found + Counter({"dequantize": len(dequantised)})


def optimised_session(path, optimised):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # The next level changes the layout of tensors, which adds operators of its own.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(optimised)
    off = ["WeightBiasQuantization"]
    return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"], disabled_optimizers=off)


def check(model, integer, folder):
    """Everything that must hold; `integer` says of a unit whether its layer computes in integers."""
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 4, SIZE, SIZE)
    program = build_program(model.eval(), (x[:2],))
    entries = Entries(program, calibrate(program, [(x,)]))
    units = [unit for unit, frozen in program.structure.units.items() if unit.endswith("/weights") and not frozen]
    planned = plan(program.structure, Policy.of({unit: Weights(8, 8) for unit in units if integer(unit)}))
    network, _ = tune(program, entries.stitch(planned), entries.calibration)
    export_onnx(program, network, folder / "model.onnx")
    session = optimised_session(folder / "model.onnx", folder / "optimised.onnx")
    view = cost_view(planned)
    assert priced(planned) == ran(folder / "optimised.onnx")
    with torch.inference_mode():
        expected = forward(program, network, (x,))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0.0, atol=0.02 * float(expected.abs().max()))
    return view


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=6), head=st.sampled_from([*HEADS]))
def test_any_network_under_any_placement_runs_as_it_is_priced(data, steps, head, tmp_path_factory):
    if steps.count("permute") > 1:   # two exchanges of the same dimensions are none
        steps = [step for step in steps if step != "permute"]
    if steps.count("pad") + steps.count("padded") > 1:   # two paddings in a row are one
        steps = [step for step in steps if step != "pad"]
    torch.manual_seed(1)
    check(Network(steps, head), lambda unit: data.draw(st.booleans(), unit), tmp_path_factory.mktemp("drift"))


@pytest.mark.parametrize("before", [["relu", "relu"], ["conv_relu", "relu"], ["conv", "conv", "add", "relu", "relu"]])
def test_relus_before_the_integers_are_dropped_however_many(before, tmp_path):
    check(Network([*before, "conv"], "mean"), lambda unit: unit == f"layers.{len(before)}/weights", tmp_path)


@pytest.mark.parametrize("head", HEADS)
def test_networks_of_integer_layers_hold_no_float_kernel(head, tmp_path):
    steps = ["relu", "padded", "conv", "add", "max_pool", "padded", "conv_relu", "concat", "slice"]
    view = check(Network(steps, head), lambda _: True, tmp_path)
    assert {kernel.activation_bits for kernel in view.kernels} == {8}
    assert [boundary.kind for boundary in view.boundaries] == ["quantize"]
