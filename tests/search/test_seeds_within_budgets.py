"""Seeds and local moves just inside budgets on costs: what a budget asks for is not left to chance."""

import numpy as np
import pytest
import torch
from torch import nn

from paretopress.evaluators.costs import CostModel
from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.search.exact import FrontPoint
from paretopress.search.incumbents import Incumbents
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.seeds import EDGE, exact_fronts, exact_seeds, policy_of, spread_inside, within
from paretopress.spaces.capture import capture
from paretopress.spaces.choices import Keep
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE, Policy
from paretopress.spaces.space import SpaceSettings, build_space
from paretopress.spaces.structure import analyse

TIME = "latency@x86-zen4-vnni-onnxruntime"


@pytest.fixture(scope="module")
def parts():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()
    structure = analyse(capture(model, (torch.randn(2, 3, 16, 16),)), model)
    profile = load_profile("x86-zen4-vnni-onnxruntime")
    settings = SpaceSettings(keep=(0.25, 0.5, 0.75), rank=(), bits=(8, 4))
    space = build_space(structure, [profile.capabilities()], settings)
    generator = np.random.default_rng(0)
    table = SensitivityTable({unit: (0.0, *np.sort(10.0 ** generator.uniform(-4, -1, len(options) - 1)))
                              for unit, options in space.options.items()})
    return structure, space, table, CostModel((profile,))


@pytest.mark.parametrize("budgets", [{TIME: 0.8}, {"size": 0.3}, {TIME: 0.85, "size": 0.4}], ids=str)
def test_seeds_reach_the_least_loss_that_the_budgets_allow(parts, budgets):
    structure, space, table, costs = parts
    dense = costs.predict(plan(structure, DENSE))
    limits = [(name, name, share * dense[name]) for name, share in budgets.items()]

    def meets(policy):
        found = costs.predict(plan(structure, policy))
        return all(found[name] <= limit for _, name, limit in limits)

    points = [point for front in exact_fronts(structure, space, table, costs).values() for point in front.points]
    allowed = [point.loss for point in points if meets(policy_of(space, point.assignment, structure.fingerprint))]
    seeds = exact_seeds(structure, space, table, costs, 40, limits)
    losses = sorted(loss for policy, loss in zip(seeds.policies[1:], seeds.losses[1:], strict=True) if meets(policy))
    blind = exact_seeds(structure, space, table, costs, 40)
    spread = sorted(loss for policy, loss in zip(blind.policies[1:], blind.losses[1:], strict=True) if meets(policy))
    assert losses[0] <= min(*spread, 1.05 * min(allowed))
    near = EDGE * losses[0]
    assert sum(loss <= near for loss in losses) > sum(loss <= near for loss in spread)


def points_of(losses):
    return [FrontPoint(cost=1.0 / (1 + index), loss=loss, assignment={}) for index, loss in enumerate(losses)]


def test_what_is_within_starts_where_the_first_point_is_affordable():
    points = points_of([0.0, 0.01, 0.02, 0.04, 0.08])
    assert within(points[::-1], lambda point: point.cost <= 0.34) == points[2:]
    assert within(points, lambda point: point.cost < 0.0) == []
    assert within(points, lambda point: point.cost > 0.0) == points


def test_half_of_the_points_are_spread_up_to_twice_the_least_loss():
    points = points_of(np.geomspace(0.01, 1.0, 200))
    picked = [point.loss for point in spread_inside(points, 8)]
    assert picked[0] == points[0].loss
    assert picked == sorted(set(picked))
    assert sum(loss <= EDGE * picked[0] for loss in picked) == 4
    assert picked[-1] == pytest.approx(1.0)
    assert spread_inside(points[:1], 8) == points[:1]


def trial(number, policy, divergence, *, fits):
    values = {"accuracy": 0.9 - divergence, "size": 10.0 + number, "divergence": divergence}
    return TrialRecord(number, TrialState.COMPLETE, policy, values, {"size": -1.0 if fits else 1.0})


def test_the_closest_incumbents_are_the_least_divergent_ones_that_meet_the_budgets():
    known = Incumbents({"accuracy": "max", "size": "min"}, [(0,)])
    for number, divergence in enumerate((0.5, 0.1, 0.3, 0.05)):
        record = trial(number, Policy.of({f"layer{number}/channels": Keep(0.5)}), divergence, fits=number != 3)
        known.add((number,), record, dict(record.constraints))
    assert known.closest == [(1,), (2,), (0,)]   # the last one is closer, and misses its budget
    record = trial(9, DENSE, 0.0, fits=True)
    known.add((9,), record, dict(record.constraints))
    assert known.closest == []   # what is close to a dense model that fits is hardly compressed
