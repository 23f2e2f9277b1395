"""What exceeds a device's SRAM or flash is infeasible there, with the reason."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from paretopress.evaluators.candidate import CandidateEvaluator, Limits
from paretopress.evaluators.costs import CostModel
from paretopress.evaluators.evaluation import State
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.capture import capture
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE
from paretopress.spaces.structure import analyse

PHONE = "cortex-a76-tflite"


@pytest.fixture(scope="module")
def structure():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()
    return analyse(capture(model, (torch.zeros(2, 3, 8, 8),)), model)


def phone(**memory):
    numbers = {
        key: {"value": float(value), "basis": "datasheet", "source": "a phone made for this test"}
        for key, value in memory.items()
    }
    return DeviceProfile.from_plain({**load_profile(PHONE).plain, "memory": numbers}, "phone")


PEAK = 2 * 16 * 64 * 4   # bytes of two maps of 16 x 8 x 8 floats


def test_limits_stand_only_where_the_dense_model_breaks_them(structure):
    for sram, expected in ((PEAK - 4, 1), (PEAK, 0), (None, 0)):
        model = CostModel((phone(**({} if sram is None else {"sram_bytes": sram})),))
        baseline = model.predict(plan(structure, DENSE))
        assert baseline[f"peak_memory@{PHONE}"] == PEAK
        limits = model.capacities(baseline)
        assert len(limits) == expected
        assert all(name == f"peak_memory@{PHONE}" and limit == sram for _, name, limit in limits)


@pytest.mark.parametrize(("memory", "reason"), [
    ({"sram_bytes": PEAK - 4}, "8192 bytes of activations exceed its 8188 bytes of SRAM"),
    ({"flash_bytes": 5000}, "bytes of weights exceed its 5000 bytes of flash"),
])
def test_candidates_without_room_are_screened_with_the_reason(structure, memory, reason):
    costs = CostModel((phone(**memory),))
    evaluator = CandidateEvaluator(
        SimpleNamespace(program=SimpleNamespace(structure=structure)), costs, None, (), Limits(), ("size",)
    )
    found = evaluator(DENSE)
    assert found.state is State.SCREENED
    assert f"{PHONE} has no room for it" in found.reason
    assert reason in found.reason
    roomy = CostModel((phone(sram_bytes=PEAK, flash_bytes=1e6),))
    assert roomy.over_capacity(plan(structure, DENSE)) == {}
