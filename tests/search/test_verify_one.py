"""Verifying one exported model again: what it lost, in the metric's direction."""

import pytest
import torch
from torch import nn

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.program import build_program
from paretopress.compressors.realise import realise
from paretopress.evaluators.data import Data
from paretopress.evaluators.metrics import Metric
from paretopress.search.session import verify_artifact
from paretopress.spaces.choices import Weights
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


class Signed:
    """The mean squared error, or its negative, of which more is better."""

    def __init__(self, sign):
        self.sign = sign

    def __call__(self, outputs, targets):
        return self.sign * float(nn.functional.mse_loss(outputs, targets))


@pytest.mark.parametrize("direction", ["min", "max"])
def test_a_loss_is_a_positive_drop_in_both_directions(tmp_path, direction):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    x = torch.randn(60, 6)
    with torch.inference_mode():
        targets = model(x)   # the dense model is perfect, whatever compression changes is a loss
    program = build_program(model, (x[:2],))
    entries = Entries(program, calibrate(program, [(x[:20],)]))
    units = [unit for unit in program.structure.units if unit.endswith("/weights")]
    planned = plan(program.structure, Policy.of({unit: Weights(2, 32) for unit in units}))
    realise(model, program, entries.stitch(planned)).save(tmp_path / "model")
    sign = 1.0 if direction == "min" else -1.0
    metric = Metric(Signed(sign), direction, label="error")
    data = Data(x[:20], (x[20:40], targets[20:40]), (x[40:], targets[40:]), metric=metric)
    measured = verify_artifact(tmp_path / "model", model, data, timing_runs=2)["measured"]
    assert measured["accuracy_drop"] > 1e-3
    assert measured["accuracy_drop"] == pytest.approx(sign * (measured["accuracy"] - measured["accuracy_baseline"]))
