"""An operator or a width that a profile has no figures for has no time, and the reason names it: never 0 ms."""

import math

import numpy as np
import pytest

from paretopress.evaluators.costs import CostModel
from paretopress.evaluators.pricing import price_policies
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.choices import Weights
from paretopress.spaces.documents import finite
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE, Policy

ZEN = "x86-zen4-vnni-onnxruntime"


def without(*, family="", pair=None):
    """The Zen 4 profile without the figures of a family, or without a pair of widths."""
    plain = load_profile(ZEN).plain
    predictors = [one for one in plain["latency"]["predictors"] if one["family"] != family]
    formats = [one for one in plain["formats"] if (one["weights"], one["activations"]) != pair]
    changed = {**plain, "formats": formats, "latency": {**plain["latency"], "predictors": predictors}}
    return CostModel((DeviceProfile.from_plain(changed, "test"),))


CASES = {
    "an operator": (without(family="linear"), DENSE, "no figures for float32 linear kernels"),
    "a width": (without(pair=(4, 8)), Policy.of({"last/weights": Weights(4)}), "does not know this pair"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_has_no_figures_has_no_time_and_says_so(small, name):
    costs, policy, reason = CASES[name]
    planned = plan(small.structure, policy)
    found = costs.predict(planned)
    assert found[f"latency@{ZEN}"] == math.inf
    assert finite(found[f"latency@{ZEN}"]) is None   # in JSON
    assert costs.interval(planned) == {}
    assert reason in costs.refusals(planned)[ZEN]
    assert "last" in costs.refusals(planned)[ZEN] or "linear" in costs.refusals(planned)[ZEN]
    many = price_policies(small.structure, costs, [policy, Policy.of({"last/weights": Weights(4)})])
    assert np.isinf(many[f"latency@{ZEN}"]).all()
    assert np.isfinite(many["size"]).all()


def test_what_it_knows_it_still_prices(small):
    costs = without(pair=(4, 8))
    assert math.isfinite(costs.predict(plan(small.structure, DENSE))[f"latency@{ZEN}"])
