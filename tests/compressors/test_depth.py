"""Dropped residual branches: stitched, tuned, refitted, exported, realised, saved and loaded without loss."""

import copy

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.compressed_model import load
from paretopress.compressors.delta import Delta
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx, run_session, session
from paretopress.compressors.goals import layer_goals
from paretopress.compressors.network import forward
from paretopress.compressors.program import build_program
from paretopress.compressors.realise import realise
from paretopress.compressors.refit import refit, settle
from paretopress.compressors.tuning import tune
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


class ResidualBlock(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.stride, self.extra = stride, cout - cin

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        y += x   # in place: what stands in for the branch must have its shape
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(ResidualBlock(8, 8, 1), ResidualBlock(8, 8, 1), ResidualBlock(8, 12, 2))
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Inverted(nn.Module):
    """Two inverted residuals of MobileNetV2: linear bottlenecks, the sum without an activation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.blocks = nn.ModuleList(self.block() for _ in range(2))
        self.fc = nn.Linear(6, 4)

    @staticmethod
    def block():
        return nn.Sequential(
            nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(inplace=True),
            nn.Conv2d(12, 12, 3, 1, 1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6(inplace=True),
            nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6),
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x.mean((2, 3)))


class Case:
    """A model with its calibration."""

    def __init__(self, build):
        torch.manual_seed(11)
        self.build, self.model = build, build().eval()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.3, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.3, 0.3)
        self.inputs = torch.randn(96, 3, 8, 8)
        self.program = build_program(self.model, (self.inputs[:4],))
        self.entries = Entries(self.program, calibrate(self.program, [(self.inputs,)]))

    def plan(self, *groups, integers=False):
        structure = self.program.structure
        left = structure.without(groups).layers
        choices = {f"{layer.name}/weights": Weights(8) for layer in left} if integers else {}
        return plan(structure, Policy.of({**choices, **{f"{group}/channels": Keep(0.0) for group in groups}}))

    def tuned(self, planned):
        return tune(self.program, self.entries.stitch(planned), self.entries.calibration)[0]


@pytest.fixture(scope="module")
def resnet():
    return Case(ResNet)


@pytest.fixture(scope="module")
def inverted():
    return Case(Inverted)


DROPS = [
    ("resnet", ("blocks.0.conv1",)),
    ("resnet", ("blocks.2.conv1",)),
    ("resnet", ("blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1")),
    ("inverted", ("blocks.0.0",)),
    ("inverted", ("blocks.0.0", "blocks.1.0")),
]


@pytest.fixture(params=DROPS, ids=lambda drop: f"{drop[0]}-{len(drop[1])}-{drop[1][0]}")
def dropped(request):
    name, groups = request.param
    return request.getfixturevalue(name), groups


def test_without_tuning_it_is_the_dense_model_with_the_last_layers_at_zero(dropped):
    case, groups = dropped
    dense = copy.deepcopy(case.model)
    for group in groups:
        branch = case.program.structure.branches[group]
        last = dense.get_submodule(branch.norms[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    network = case.entries.stitch(case.plan(*groups))
    with torch.no_grad():
        expected = dense(case.inputs)
        found = forward(case.program, network, (case.inputs,))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, case.model(case.inputs), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("integers", [False, True], ids=["float", "int8"])
def test_plan_module_and_onnx_agree(dropped, integers, tmp_path):
    case, groups = dropped
    planned = case.plan(*groups, integers=integers)
    network = case.tuned(planned)
    compressed = realise(case.model, case.program, network)
    export_onnx(case.program, network, tmp_path / "model.onnx")
    weights = len(planned.layers)
    found = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    identities = len({id(chain) for chain in planned.subsamplings.values()})
    assert found.count("Conv") + found.count("Gemm") + found.count("MatMul") == weights + identities
    assert compressed.size_bytes == planned.stored_bytes
    with torch.no_grad():
        reference = forward(case.program, network, (case.inputs,))
        assert torch.equal(compressed(case.inputs), reference)
    (outputs,) = run_session(session(tmp_path / "model.onnx"), [case.inputs])
    if integers:
        assert (outputs.argmax(1) == reference.argmax(1)).float().mean() >= 0.97
    else:
        assert torch.allclose(outputs, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("integers", [False, True], ids=["float", "int8"])
def test_saved_and_loaded_it_is_the_same_bit_for_bit(dropped, integers, tmp_path):
    case, groups = dropped
    compressed = realise(case.model, case.program, case.tuned(case.plan(*groups, integers=integers)))
    compressed.save(tmp_path / "artefact")
    loaded = load(tmp_path / "artefact", case.build)
    with torch.no_grad():
        assert torch.equal(loaded(case.inputs), compressed(case.inputs))
    assert loaded.size_bytes == compressed.size_bytes
    assert Delta.from_plain(compressed.delta.to_plain(), "delta") == compressed.delta
    names = {name.rpartition(".")[0] for name in loaded.network.state_dict()}
    for group in groups:
        branch = case.program.structure.branches[group]
        assert not names & {*branch.layers, *branch.norms}


def error(case, network):
    dense = forward(case.program, case.entries.calibration.base, (case.inputs,))
    return (forward(case.program, network, (case.inputs,)) - dense).square().mean()


def test_the_layer_before_a_dropped_branch_stands_in_for_it(inverted):
    planned = inverted.plan("blocks.1.0")
    goals = layer_goals(inverted.program.graph, planned.structure)
    last = next(layer for layer in planned.structure.layers if layer.name == "blocks.0.6")
    branch = inverted.program.structure.branches["blocks.1.0"]
    assert (goals[last.node].value, goals[last.node].stands_in) == (branch.sum, True)
    untuned = inverted.entries.stitch(planned)
    assert error(inverted, inverted.tuned(planned)) < error(inverted, untuned)


def test_refit_brings_it_nearer_to_the_dense_model_than_tuning(dropped):
    case, groups = dropped
    planned = case.plan(*groups)
    network = refit(case.program, case.entries, planned, (case.inputs,))
    assert error(case, network) < error(case, case.tuned(planned))


def test_what_a_dropped_branch_is_judged_by_is_solved_again_and_anything_else_is_tuned(resnet):
    planned = resnet.plan("blocks.1.conv1", integers=True)
    calibration = resnet.entries.calibration
    network, values = settle(resnet.entries, planned)
    assert error(resnet, network) < error(resnet, resnet.tuned(planned))
    again = refit(resnet.program, resnet.entries, planned, calibration.inputs)
    assert torch.allclose(forward(resnet.program, network, (resnet.inputs,)),
                          forward(resnet.program, again, (resnet.inputs,)), atol=0.05)
    (output,) = values.values()
    assert torch.allclose(output, forward(resnet.program, network, calibration.inputs), atol=0.05)
    whole = resnet.plan(integers=True)
    same = forward(resnet.program, settle(resnet.entries, whole)[0], (resnet.inputs,))
    assert torch.equal(same, forward(resnet.program, resnet.tuned(whole), (resnet.inputs,)))


def test_a_value_that_others_read_keeps_its_meaning():
    class Tapped(Inverted):
        def forward(self, x):
            x = first = self.stem(x)
            x = x + self.blocks[0](x)
            x = x + self.blocks[1](x)
            return self.fc((x * first.mean()).mean((2, 3)))

    torch.manual_seed(1)
    program = build_program(Tapped().eval(), (torch.randn(4, 3, 8, 8),))
    structure = program.structure.without(["blocks.0.0"])
    stem = structure.layers[0]
    assert stem.name == "stem"
    assert stem.node not in layer_goals(program.graph, structure)


def test_the_dense_model_is_left_as_it_was(resnet):
    before = copy.deepcopy(resnet.model.state_dict())
    realise(resnet.model, resnet.program, resnet.tuned(resnet.plan("blocks.1.conv1")))
    assert all(torch.equal(before[name], tensor) for name, tensor in resnet.model.state_dict().items())
