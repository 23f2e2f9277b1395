"""Heads, shared, grouped, transposed and recurrent weights go the whole way: ranked, compensated, stored, exported."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from test_coupling_parity import MODELS
from zoo.registry import randomise

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.compressed_model import load, network_of
from paretopress.compressors.entries import IMPORTANCES, Entries
from paretopress.compressors.export_onnx import export_onnx, run_session, session
from paretopress.compressors.network import forward
from paretopress.compressors.probe import thinned
from paretopress.compressors.program import build_program
from paretopress.compressors.realise import realise
from paretopress.compressors.refit import refit

NAMES = ("uneven", "grouped", "many_groups", "transposed", "twice", "heads", "grouped_queries", "heads_by_hand",
         "five_dimensions", "lstm", "pad", "widened", "cropped", "every_second", "shuffle", "shuffled_units", "matmul",
         "weight_norm", "weight_norm_of_windows")
NAMES = tuple(name for name in NAMES if name in MODELS)


def prepared(name):
    torch.manual_seed(1)
    factory, shape, _ = MODELS[name]
    model = factory()
    randomise(model)
    inputs = torch.randn(96, *shape[1:])
    program = build_program(model.eval().requires_grad_(False), (inputs[:2],))
    return model, program, inputs


def every_group(program):
    return thinned(program, [g for g in program.structure.coupling.groups if not g.frozen and g.size > 1])


@pytest.mark.parametrize("name", NAMES)
def test_every_importance_ranks_whole_channels_of_the_group(name):
    _, program, inputs = prepared(name)
    calibration = calibrate(program, [(inputs,)], tuning_samples=16)
    for importance in IMPORTANCES:
        entries = Entries(program, calibration, importance=importance)
        for group in program.structure.coupling.groups:
            if not group.frozen:
                assert sorted(entries.order(group).tolist()) == list(range(group.size)), (importance, group)


@pytest.mark.parametrize("name", NAMES)
def test_compensation_does_not_make_it_worse_and_the_artefact_is_the_same(name, tmp_path):
    model, program, inputs = prepared(name)
    calibration = calibrate(program, [(inputs,)], tuning_samples=96)
    planned = every_group(program)
    with torch.inference_mode():
        wanted, errors = model(inputs), []
        for compensate in (True, False):
            entries = Entries(program, calibration, importance="l2", compensate=compensate)
            network = refit(program, entries, planned, (inputs,)) if compensate else entries.stitch(planned)
            errors.append(float((forward(program, network, [inputs]) - wanted).square().mean()))
            if compensate:
                compressed = realise(model, program, network)
    assert errors[0] < errors[1]
    assert compressed.size_bytes == planned.stored_bytes < sum(t.nbytes for t in model.state_dict().values())
    with torch.inference_mode():
        expected = compressed(inputs[:2])
        compressed.save(tmp_path / "model")
        assert torch.equal(load(tmp_path / "model", MODELS[name][0])(inputs[:2]), expected)
    export_onnx(program, network_of(compressed), tmp_path / "model.onnx")
    (found,) = run_session(session(tmp_path / "model.onnx"), [inputs[:2]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
