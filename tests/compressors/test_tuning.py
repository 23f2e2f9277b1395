"""Tuning compares a compressed network with the dense one on the same samples: chance changes nothing."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from paretopress.compressors.calibration import all_values, base_network, calibrate, tuning_count
from paretopress.compressors.entries import Entries
from paretopress.compressors.network import forward
from paretopress.compressors.program import Program, build_program
from paretopress.compressors.refit import refit, settle
from paretopress.spaces.choices import Half, Weights
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


class Deep(nn.Module):
    """Eight convolutions with batch normalisation, and a linear layer with another."""

    def __init__(self):
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(8 if i else 1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
                  for i in range(8)]
        self.blocks, self.hidden = nn.Sequential(*blocks), nn.Linear(8, 16)
        self.normalise, self.out = nn.BatchNorm1d(16), nn.Linear(16, 5)

    def forward(self, x):
        return self.out(torch.relu(self.normalise(self.hidden(self.blocks(x).mean(dim=(2, 3))))))


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    model = Deep()
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(64, 1, 8, 8))
    inputs = torch.randn(256, 1, 8, 8)
    program = build_program(model.eval(), (inputs[:4],))
    # Far fewer samples to tune on than to calibrate with, so that their statistics differ by chance.
    calibration = calibrate(program, [[inputs]], tuning_samples=16)
    return program, Entries(program, calibration), inputs


@pytest.mark.parametrize("form", [Half(), Weights(8, 32)], ids=["fp16", "W8"])
@pytest.mark.parametrize("layer", ["blocks.0.0", "blocks.4.0"])
def test_what_hardly_changes_a_layer_hardly_changes_the_layers_behind_it(parts, form, layer):
    program, entries, _ = parts
    network, _ = settle(entries, plan(program.structure, Policy.of({f"{layer}/weights": form})))
    base = entries.calibration.base
    behind = program.structure.layers[[one.name for one in program.structure.layers].index(layer) + 1 :]
    assert len(behind) >= 5
    for one in behind:
        tuned, dense = network.parts[one.node][-1], base.parts[one.node][0]
        assert (tuned.weight - dense.weight).norm() <= 5e-3 * dense.weight.norm()


@pytest.mark.parametrize("again", [False, True], ids=["tuned", "solved again"])
def test_all_layers_in_16_bits_compute_what_the_dense_model_does(parts, again):
    program, entries, inputs = parts
    planned = plan(program.structure, Policy.of(program.structure.takers(Half())))
    # Solved on other samples than candidates are tuned on, it is compared on those.
    network = refit(program, entries, planned, [inputs[:128]]) if again else settle(entries, planned)[0]
    with torch.inference_mode():
        dense, found = (forward(program, one, [inputs]) for one in (entries.calibration.base, network))
    assert (found - dense).square().mean() <= 1e-5 * dense.var()


def test_batch_normalisation_behind_a_linear_layer_is_folded(parts):
    program, _, _ = parts
    assert "hidden" in program.structure.folded_layers
    assert "normalise.running_var" in program.structure.folded_state


class Tokens(nn.Module):
    """Batch normalisation behind a linear layer on tokens normalises positions: it is not the layer's."""

    def __init__(self):
        super().__init__()
        self.embed, self.normalise, self.out = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(torch.relu(self.normalise(self.embed(x))))


def test_batch_normalisation_of_tokens_is_not_folded():
    program = build_program(Tokens().eval(), (torch.randn(4, 5, 6),))   # as many tokens as features
    assert program.structure.folded_layers == frozenset()
    assert program.structure.folded_state == frozenset()


def test_fewer_samples_are_tuned_on_where_their_values_take_more_memory_than_a_worker_should_hold(parts, monkeypatch):
    program, _, inputs = parts
    assert tuning_count(program, 256) == 256
    values = all_values(program, base_network(program), [inputs[:4]])
    each = sum(4 * value[0].numel() for value in values.values())
    monkeypatch.setattr("paretopress.compressors.calibration.VALUE_BYTES", 40 * each + 1)
    assert tuning_count(program, 256) == 40
    assert tuning_count(program, 30) == 30
    assert len(calibrate(program, [[inputs]], tuning_samples=256).inputs[0]) == 40
    monkeypatch.setattr("paretopress.compressors.calibration.VALUE_BYTES", 0)
    assert tuning_count(program, 256) == 16   # what statistics still can be taken of


def test_a_fixed_batch_is_tuned_on_whole_batches(parts, monkeypatch):
    program, _, _ = parts
    fixed = Program(replace(program.capture, graph=replace(program.graph, dynamic_batch=False)),
                    replace(program.structure, graph=replace(program.graph, dynamic_batch=False)), program.state)
    monkeypatch.setattr("paretopress.compressors.calibration.VALUE_BYTES", 0)
    assert fixed.graph.batch == 4
    assert tuning_count(fixed, 256) == 16
    monkeypatch.setattr("paretopress.compressors.calibration.FEWEST_TUNED", 6)
    assert tuning_count(fixed, 256) == 4
    assert tuning_count(program, 256) == 6
