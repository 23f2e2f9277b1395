"""Every awkward model of the zoo goes the whole way: captured, compressed, realised, exported."""

import random

import pytest
import torch
from space_zoo import ZOO, specimen
from torch.utils import _pytree as pytree

from paretopress.compressors.calibration import base_network, calibrate
from paretopress.compressors.compressed_model import network_of
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx, run_session, session
from paretopress.compressors.network import forward
from paretopress.compressors.program import build_program
from paretopress.compressors.realise import realise
from paretopress.compressors.refit import refit
from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.choices import compatible
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SpaceSettings, build_space

ANY_DEVICE = Capabilities("any", formats=((4, 32), (8, 32)), channel_step=1, rank_step=1)


def tensors(outputs):
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", ZOO)
def test_folding_changes_nothing(name):
    example = specimen(name)
    program = build_program(example.model, example.args, example.kwargs)
    flat = program.flatten_inputs(example.args, example.kwargs)
    with torch.inference_mode():
        found = tensors(forward(program, base_network(program), flat))
    for wanted, got in zip(example.outputs(), found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


EVERY = SpaceSettings(
    rank_kinds=("svd", "nmf", "spatial", "tucker"), schemes=("symmetric", "asymmetric", "tensor"), groups=(0, 16),
    halves=("fp16", "bf16"), clusters=(4, 2), binary=(1, 2), sparsity=(0.5, 0.1, "2:4", "0.5 in 2x2"), end_bits=2,
)
SETTINGS = [pytest.param(SpaceSettings(), id="default"), pytest.param(EVERY, id="every")]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", ZOO)
def test_a_random_policy_is_realised_and_exported(name, settings, tmp_path):
    example = specimen(name)
    program = build_program(example.model, example.args, example.kwargs)
    flat = program.flatten_inputs(example.args, example.kwargs)
    entries = Entries(program, calibrate(program, [flat]))
    space = build_space(program.structure, [ANY_DEVICE], settings)
    draw = random.Random(1)
    drawn = {unit: draw.choice(options) for unit, options in space.options.items()}
    chosen = compatible({unit: choice for unit, choice in drawn.items() if choice is not None})
    planned = plan(program.structure, Policy.of(chosen))
    compressed = realise(example.model, program, refit(program, entries, planned, tuple(flat)))
    assert compressed.size_bytes == planned.stored_bytes
    export_onnx(program, network_of(compressed), tmp_path / "model.onnx")
    with torch.inference_mode():
        wanted = tensors(compressed(*example.args, **example.kwargs))
    found = run_session(session(tmp_path / "model.onnx"), flat)
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
