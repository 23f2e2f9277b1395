"""A linear layer is the same whatever way its tensor lies: factors, integers and compensation do not differ."""

import pytest
import torch
from layout_models import Columns
from torch import nn

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.program import build_program
from paretopress.compressors.tuning import tune
from paretopress.spaces.choices import Factorised, Keep, Weights
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


class Conv1D(nn.Module):
    """As in GPT-2."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


POLICIES = {
    "rank": {"2/rank": Factorised("svd", 3)},
    "bits": {"2/weights": Weights(3, 32)},
    "prune": {"0/channels": Keep(0.5), "2/channels": Keep(0.5)},
    "all": {"0/channels": Keep(0.5), "2/rank": Factorised("svd", 3), "2/weights": Weights(4, 8)},
}


@pytest.mark.parametrize("policy", POLICIES)
def test_both_layouts_give_the_same_layer(policy):
    torch.manual_seed(0)
    rows = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)).eval()
    flipped = nn.Sequential(rows[0], nn.ReLU(), Conv1D(10, 12), nn.ReLU(), rows[4]).eval()
    flipped[2].weight.data, flipped[2].bias.data = rows[2].weight.data.t().contiguous(), rows[2].bias.data.clone()
    x, parts = torch.randn(64, 6), []
    for model in (rows, flipped):
        program = build_program(model, (x[:2],))
        calibration = calibrate(program, [[x]])
        planned = plan(program.structure, Policy.of(POLICIES[policy]))
        network, _ = tune(program, Entries(program, calibration).stitch(planned), calibration)
        parts.append(network.parts[program.structure.layer("2").node])
    for one, other in zip(*parts, strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-4, atol=1e-5)
        assert (one.bias is None) == (other.bias is None)
        if one.rows is not None:
            assert (one.rows[0] != other.rows[0]).float().mean() < 0.02   # ties of rounding


def test_a_layer_without_a_bias_is_fitted_without_one():
    """Then the best weights are those of least squares through the origin."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), Columns(12, 5)).eval()
    x = torch.randn(256, 6)
    program = build_program(model, (x[:2],))
    calibration = calibrate(program, [[x]])
    entries = Entries(program, calibration)
    network = entries.stitch(plan(program.structure, Policy.of({"0/channels": Keep(0.5)})))
    part = network.parts[program.structure.layer("2").node][0]
    assert part.bias is None
    with torch.no_grad():
        hidden = torch.relu(model[0](x))
        kept = hidden[:, network.selection["0"]]
        expected = torch.linalg.lstsq(kept.double(), model(x).double()).solution.T.float()
    torch.testing.assert_close(part.weight, expected, rtol=0.05, atol=0.02)


def test_low_rank_of_a_flipped_layer_is_the_truncated_decomposition():
    torch.manual_seed(0)
    model = nn.Sequential(Columns(8, 10), nn.ReLU(), nn.Linear(10, 3)).eval()
    basis, _ = torch.linalg.qr(torch.randn(64, 8))
    x = basis * 8.0    # second moments are the identity
    program = build_program(model, (x[:2],))
    calibration = calibrate(program, [[x]])
    network = Entries(program, calibration).stitch(plan(program.structure, Policy.of({"0/rank": Factorised("svd", 3)})))
    first, second = network.parts[program.structure.layer("0").node]
    U, sigma, Vh = torch.linalg.svd(model[0].weight.detach().double(), full_matrices=False)
    expected = ((U[:, :3] * sigma[:3]) @ Vh[:3]).T.float()
    torch.testing.assert_close(second.weight @ first.weight, expected, rtol=1e-3, atol=1e-4)
