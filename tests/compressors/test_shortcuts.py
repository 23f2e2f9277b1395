"""Subsampling shortcuts: found where they are one convolution, priced, exported and computed as one."""

from collections import Counter

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx, run_session, session
from paretopress.compressors.network import forward
from paretopress.compressors.program import build_program
from paretopress.compressors.refit import refit
from paretopress.compressors.tuning import tune
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.cost_view import cost_view, kernels_of
from paretopress.spaces.kernels import Family
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE, Policy


class Shortcut(nn.Module):
    """A residual block whose shortcut is `cut`, between two convolutions."""

    def __init__(self, cut, cout=8, stride=2):
        super().__init__()
        self.cut = cut
        self.stem, self.branch = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, cout, 3, stride, 1)
        self.fc = nn.Linear(cout, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.branch(x) + self.cut(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def option_a(x):
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3))


def program_of(cut, **sizes):
    torch.manual_seed(3)
    return build_program(Shortcut(cut, **sizes).eval(), (torch.randn(4, 3, 8, 8),))


def int8(program):
    layers = program.structure.layers
    return plan(program.structure, Policy.of({f"{layer.name}/weights": Weights(8) for layer in layers}))


def tuned(program, planned):
    generator = torch.Generator().manual_seed(5)
    calibration = calibrate(program, [(torch.randn(64, 3, 8, 8, generator=generator),)])
    return tune(program, Entries(program, calibration).stitch(planned), calibration)[0]


def operators(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_option_a_is_one_chain():
    (chain,) = program_of(option_a).structure.subsamplings
    assert (chain.stride, chain.before, chain.after) == ((2, 2), 1, 3)
    assert chain.source == "slice_1"   # takes all samples: free as it is
    assert chain.output == "pad"


def crossed(x):
    cut = x[:, :, ::2]
    return F.pad(cut[:, :, :, ::2], (0, 0, 0, 0, 2, 2)) + cut.mean()


OTHER_CUTS = {
    "odd pixels": lambda x: F.pad(x[:, :, 1::2, 1::2], (0, 0, 0, 0, 2, 2)),
    "a corner": lambda x: F.pad(x[:, :, :4, :4], (0, 0, 0, 0, 2, 2)),
    "padded by ones": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), value=1.0),
    "read in between": crossed,
}


@pytest.mark.parametrize("name", OTHER_CUTS)
def test_what_no_identity_convolution_computes_is_no_whole_chain(name):
    chains = program_of(OTHER_CUTS[name]).structure.subsamplings
    assert not [chain for chain in chains if chain.stride == (2, 2) and chain.before]


def test_a_slice_of_samples_is_no_shortcut():
    program = program_of(lambda x: x[:4, :, ::2, ::2].repeat(1, 2, 1, 1))
    (chain,) = program.structure.subsamplings
    assert all(program.graph.by_name[name].arguments["dim"] >= 2 for name in chain.nodes)


@settings(max_examples=15, deadline=None)
@given(
    steps=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
)
def test_the_convolution_that_a_chain_stands_for_is_exact(steps, pads, size):
    class Chain(nn.Module):
        def forward(self, x):
            return F.pad(x[:, :, :: steps[0], :: steps[1]], (0, 0, 0, 0, *pads))

    x = torch.randn(2, 3, *size)
    chains = build_program(Chain(), (x,)).structure.subsamplings
    assert len(chains) == (steps != (1, 1) or pads != (0, 0))
    for chain in chains:
        weight = torch.zeros(3 + chain.before + chain.after, 3, 1, 1)
        weight[torch.arange(3) + chain.before, torch.arange(3)] = 1.0
        assert torch.equal(F.conv2d(x, weight, stride=chain.stride), Chain()(x))


@pytest.mark.parametrize("stride", [2, 1])
def test_integer_export_has_a_convolution_instead_and_computes_the_same(stride, tmp_path):
    cut = option_a if stride == 2 else lambda x: F.pad(x, (0, 0, 0, 0, 2, 2))
    program = program_of(cut, stride=stride)
    network = tuned(program, int8(program))
    path = tmp_path / "model.onnx"
    export_onnx(program, network, path)
    found = operators(path)
    assert (found["Slice"], found["Pad"], found["Conv"]) == (0, 0, 3)
    x = torch.randn(200, 3, 8, 8)
    expected = forward(program, network, (x,))
    (outputs,) = run_session(session(path), [x])
    assert (outputs.argmax(1) == expected.argmax(1)).float().mean() >= 0.99
    step = max(scale for scale, _ in network.ranges.values())
    assert (outputs - expected).abs().median() < step


def test_a_pruned_padding_is_a_narrower_convolution(tmp_path):
    program = program_of(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
    groups = [group for group in program.structure.coupling.groups if not group.frozen]
    assert {group.name: group.size for group in groups} == {"stem": 4, "branch:0": 2, "branch:6": 2}
    keep = {"stem/channels": Keep(0.75), "branch:0/channels": Keep(0.5)}
    formats = {f"{layer.name}/weights": Weights(8) for layer in program.structure.layers}
    network = tuned(program, plan(program.structure, Policy.of({**formats, **keep})))
    assert network.plan.shape("pad") == (1, 6, 4, 4)
    path = tmp_path / "model.onnx"
    export_onnx(program, network, path)
    assert operators(path)["Conv"] == 3
    x = torch.randn(200, 3, 8, 8)
    expected = forward(program, network, (x,))
    (outputs,) = run_session(session(path), [x])
    step = max(scale for scale, _ in network.ranges.values())
    assert (outputs - expected).abs().median() < step


def test_layers_in_front_of_a_pruned_padding_are_solved_again():
    """The shortcut is moved after the layer that is solved for it: its padding must be the pruned one there too."""
    torch.manual_seed(0)
    model, x = Shortcut(option_a).eval(), torch.randn(64, 3, 8, 8)
    program = build_program(model, (x[:2],))
    entries = Entries(program, calibrate(program, [(x,)]))
    planned = plan(program.structure, Policy.of({
        unit: Keep(0.5) for unit, reason in program.structure.units.items() if unit.endswith("/channels") and not reason
    }))
    solved = refit(program, entries, planned, [x])
    tuned_only = tune(program, entries.stitch(planned), entries.calibration)[0]
    with torch.no_grad():
        errors = [(forward(program, network, [x]) - model(x)).square().mean() for network in (solved, tuned_only)]
    assert errors[0] < errors[1]


def test_float_export_keeps_slices(tmp_path):
    program = program_of(option_a)
    network = tuned(program, plan(program.structure, Policy.of({"stem/weights": Weights(4, 32)})))
    export_onnx(program, network, tmp_path / "model.onnx")
    found = operators(tmp_path / "model.onnx")
    assert found["Slice"] >= 1
    assert (found["Pad"], found["Conv"]) == (1, 2)


def test_integers_are_priced_as_the_convolution_and_floats_as_moved_data():
    program = program_of(option_a)
    layers = program.structure.layers
    dense, integer = plan(program.structure, DENSE), int8(program)
    assert [k.family for k in cost_view(dense).kernels].count(Family.DATA) == 3
    view = cost_view(integer)
    (kernel,) = (kernel for kernel in view.kernels if not kernel.layer and kernel.family is Family.CONV)
    assert (kernel.name, kernel.cin, kernel.cout) == ("pad", 4, 8)
    assert (kernel.window, kernel.stride) == ((1, 1), (2, 2))
    assert (kernel.weight_bits, kernel.activation_bits) == (8, 8)
    assert (kernel.input_size, kernel.output_size) == ((8, 8), (4, 4))
    assert not [k for k in view.kernels if k.family is Family.DATA]
    own = 8 * 4 + 4 * 8   # its identity weight and scales
    assert view.weight_bytes == sum(x.shape[0] * x.columns + 8 * x.shape[0] for x in layers) + own
    one_by_one = [k for fused in program.structure.fusion.kernels for k in kernels_of(integer, fused, None)]
    assert tuple(one_by_one) == view.kernels


def test_the_source_lives_until_the_convolution_reads_it():
    view = cost_view(int8(program_of(option_a)))
    index = next(i for i, kernel in enumerate(view.kernels) if kernel.name == "pad")
    source = next(life for life in view.lifetimes if life.tensor == "relu")
    assert source.last == index
