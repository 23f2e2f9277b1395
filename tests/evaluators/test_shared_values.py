"""Values that all samples share, such as embedded positions, in what is measured per sample."""

import math

import pytest
import torch
from torch import nn

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.program import build_program
from paretopress.evaluators.perturbations import output_gradients, per_sample
from paretopress.evaluators.proxies import LOCAL, local_tables
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.spaces.space import SpaceSettings, build_space


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places, self.lift = nn.Embedding(20, 8), nn.Embedding(6, 8), nn.Linear(8, 8)
        self.hidden, self.out = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, ids):
        x = self.words(ids) + self.lift(self.places(torch.arange(6)))
        return self.out((x + torch.relu(self.hidden(x))).mean(1))


@pytest.fixture(scope="module")
def entries():
    ids = torch.randint(0, 20, (40, 6), generator=torch.Generator().manual_seed(1))
    program = build_program(Positions().eval(), (ids[:4],))
    return Entries(program, calibrate(program, [[ids]]))


def node_of(entries, name):
    return next(layer.node for layer in entries.program.structure.layers if layer.name == name)


def test_what_all_samples_share_is_divided_among_them():
    shared = torch.arange(12.0).reshape(6, 2)
    assert per_sample(shared, 4).tolist() == [66.0 / 4] * 4
    assert per_sample(shared, 3).tolist() == [6.0, 22.0, 38.0]   # parts in the first dimension are a sample's


def test_proxies_of_embedded_positions_are_finite(entries):
    assert output_gradients(entries)[node_of(entries, "places")].shape[0] == 6   # of 40 samples
    device = load_profile("x86-zen4-vnni-onnxruntime").capabilities()
    space = build_space(entries.program.structure, [device], SpaceSettings())
    assert "places/weights" in space.options
    for table in local_tables(entries, space, LOCAL).values():
        losses = table.table.losses["places/weights"]
        assert all(math.isfinite(loss) for loss in losses)
        assert losses[-1] > 0.0   # the fewest bits


def test_channels_that_positions_are_added_to_have_gradients(entries):
    structure = entries.program.structure
    group = next(one for one in structure.coupling.groups if "lift" in one.producers)
    found = entries.calibration.gradient_activations(entries.program, group)
    positions, hidden = (found[node_of(entries, name)] for name in ("lift", "hidden"))
    assert positions.shape == hidden.shape == (40, group.size)
    assert bool((positions == positions[0]).all())
    assert float(positions.abs().sum()) > 0.0
    assert not bool((hidden == hidden[0]).all())
