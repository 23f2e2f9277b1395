"""8-bit weights that integer kernels compute with stay within what every x86 processor adds up rightly."""

import pytest
import torch
from torch import nn

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.distillation_latents import projected, settled
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx, run_session, session
from paretopress.compressors.network import forward
from paretopress.compressors.program import build_program
from paretopress.compressors.quantisation import TOP, dequantise, largest_level
from paretopress.compressors.stored import Integers, SparseWeight
from paretopress.compressors.tuning import tune
from paretopress.spaces.choices import BYTE_LEVEL, INTEGER_LEVEL, Sparse, Weights
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


class Adder(nn.Module):
    """Sums of many large products of one sign: 127 and 127 times 255 saturate 16 bits."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16, 12)
        with torch.no_grad():
            for layer in (self.conv, self.fc):
                layer.weight.copy_(1.0 - 0.1 * torch.rand_like(layer.weight))

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def adder():
    torch.manual_seed(3)
    inputs = 0.5 + 0.5 * torch.rand(24, 8, 6, 6)
    program = build_program(Adder().eval(), (inputs[:2],))
    return program, calibrate(program, [(inputs,)]), inputs


def network_of(adder, form, rounding="feedback", sparse=None):
    program, calibration, _ = adder
    choices = {f"{layer.name}/weights": form for layer in program.structure.layers}
    if sparse is not None:
        choices |= {f"{layer.name}/sparsity": sparse for layer in program.structure.layers}
    entries = Entries(program, calibration, "l1", rounding=rounding)
    return tune(program, entries.stitch(plan(program.structure, Policy.of(choices))), calibration)[0]


def highest(network):
    found = []
    for parts in network.parts.values():
        for part in parts:
            stored = part.stored.values if isinstance(part.stored, SparseWeight) else part.stored
            assert isinstance(stored, Integers)
            found.append(int(stored.integers.abs().max()))
    return max(found)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_two_products_of_integer_kernels_fit_16_bits(bits):
    level = largest_level(bits, Weights(bits).highest)
    assert 2 * TOP * level <= torch.iinfo(torch.int16).max
    assert largest_level(bits, Weights(bits, 32).highest) == (1 << (bits - 1)) - 1


@pytest.mark.parametrize("rounding", ["feedback", "nearest", "learned"])
@pytest.mark.parametrize("form", [Weights(8), Weights(8, ranges="dynamic")], ids=["static", "dynamic"])
def test_eight_bits_end_at_64_in_integer_kernels_alone(adder, form, rounding):
    assert highest(network_of(adder, form, rounding)) == INTEGER_LEVEL
    assert highest(network_of(adder, Weights(8, 32), rounding)) == BYTE_LEVEL


def test_sparse_ones_do_too(adder):
    assert highest(network_of(adder, Weights(8), sparse=Sparse(0.5))) == INTEGER_LEVEL


def test_training_does_not_leave_them():
    stored = Integers(torch.zeros(2, 3, dtype=torch.int8), torch.tensor([0.5, 2.0]), 8, Weights(8).highest)
    latent = torch.tensor([[100.0, -100.0, 1.0], [3.0, -1e3, 127.9]])
    expected = torch.tensor([[64, -64, 2], [2, -64, 64]], dtype=torch.int8)
    assert torch.equal(settled(stored, latent).integers, expected)
    assert torch.equal(projected(stored, latent), dequantise(expected, stored.scales))


@pytest.mark.parametrize("form", [Weights(8), Weights(8, ranges="dynamic")], ids=["static", "dynamic"])
def test_onnx_runtime_computes_the_same_on_every_processor(adder, form, tmp_path):
    program, _, inputs = adder
    network = network_of(adder, form)
    export_onnx(program, network, tmp_path / "model.onnx")
    found = run_session(session(tmp_path / "model.onnx"), [inputs[:1]])[0]
    expected = forward(program, network, (inputs[:1],))
    assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_copies_and_scaled_rows_keep_the_bound():
    stored = Integers(torch.zeros(2, 3, dtype=torch.int8), torch.ones(2), 8, Weights(8).highest)
    assert stored.each(torch.clone).highest == stored.scaled(-torch.ones(2)).highest == INTEGER_LEVEL


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_sweep_of_one_width_gives_what_one_of_all_gives(adder, bits):
    program, calibration, _ = adder
    choices = {f"{layer.name}/weights": Weights(bits) for layer in program.structure.layers}
    planned = plan(program.structure, Policy.of(choices))
    every, one, other = (Entries(program, calibration, "l1", widths=widths).stitch(planned)
                         for widths in ((8, 4, 3, 2), (bits,), ()))
    for node, parts in every.parts.items():
        for expected, *found in zip(parts, one.parts[node], other.parts[node], strict=True):
            assert all(torch.equal(expected.stored.integers, part.stored.integers) for part in found)
            assert all(torch.equal(expected.stored.scales, part.stored.scales) for part in found)
