"""Targets that refuse float kernels: unknown is infeasible, never 0 and never a crash; dense is always shown."""

import importlib
import json
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from paretopress.evaluators.budgets import parse_budget
from paretopress.evaluators.costs import CostModel, drop_what_cannot_run, integer_policy, runs_everywhere
from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.search.factor_graph import UNKNOWN_PRICE, kernel_prices
from paretopress.search.inspection import inspection
from paretopress.search.problem import prepare_problem
from paretopress.search.reachability import check_feasible, reachable
from paretopress.search.seeds import exact_seeds
from paretopress.spaces.capture import capture
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.errors import ConfigError, InfeasibleError, ProfileError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE
from paretopress.spaces.space import SpaceSettings, build_space
from paretopress.spaces.structure import analyse

BOARD, ZEN = "stm32-h7a3", "x86-zen4-vnni-onnxruntime"
TIME = f"latency@{BOARD}"

# The tiny model with a pooling that has an integer kernel; its `mean` stays in floats.
POOLED = """
import torch
from torch.nn import functional

import tiny


class Pooled(tiny.Tiny):
    def features(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.depthwise(x))
        return functional.adaptive_avg_pool2d(torch.relu(self.second(x)), 1).flatten(1)


def model():
    network = Pooled().eval()
    network.load_state_dict(tiny.model().state_dict())
    return network


data = tiny.data
"""


def refuse(text):
    raise AssertionError(text)


@pytest.fixture(scope="module")
def pooled(tiny):
    (tiny.folder / "pooled.py").write_text(POOLED)
    return importlib.import_module("pooled")


@pytest.fixture(scope="module")
def settings(tiny_settings):
    return replace(tiny_settings, targets=(BOARD,))


@pytest.fixture(scope="module")
def problem(pooled, settings):
    return prepare_problem(pooled.model(), pooled.data(), settings)


@pytest.fixture(scope="module")
def run(pooled, search_tiny, finish, tmp_path_factory):
    """A finished search of the command line on a board that executes nothing but integers."""
    path = tmp_path_factory.mktemp("runs") / "board"
    code, out, err = finish(
        *search_tiny(path, "--target", BOARD, "--trials", "8", model="pooled:model", data="pooled:data")
    )
    assert code == 0, err
    document = json.loads((path / "front.json").read_text(), parse_constant=refuse)
    return SimpleNamespace(path=path, out=out, document=document)


def test_the_front_holds_only_what_the_device_executes(run, problem):
    points = [point for point in run.document["points"] if point["why_not"] is None]
    assert points
    assert sum(point["knee"] for point in points) == 1
    layers = {layer.name for layer in problem.program.structure.layers}
    for point in points:
        eight = {unit.removesuffix("/weights") for unit, choice in point["policy"].items()
                 if unit.endswith("/weights") and choice["activations"] == 8}
        assert eight == layers
        assert point["measured"]["latency_ms"] is None
        predicted = point["predicted"]
        assert 0.0 < predicted[f"latency_lower@{BOARD}"] < predicted[TIME] < predicted[f"latency_upper@{BOARD}"]
        assert predicted[f"energy@{BOARD}"] > 0.0


def test_the_dense_baseline_is_shown_without_a_time(run):
    dense = run.document["baseline"]
    assert dense["name"] == "dense"
    assert not dense["feasible"]
    assert dense["why_not"].startswith(f"{BOARD} cannot run it: kernel ")
    assert dense["predicted"][TIME] is None
    assert dense["predicted"][f"energy@{BOARD}"] is None
    assert f"latency_upper@{BOARD}" not in dense["predicted"]
    assert dense["predicted"][f"peak_memory@{BOARD}"] > 0
    assert dense["measured"]["accuracy"] > 0.5
    assert 0.0 < run.document["hypervolume"] < 1.0
    assert "s predicted" in run.out
    assert "infeasible" in run.out
    rows = (run.path / "finalists.csv").read_text()
    assert "inf" not in rows.replace("refit", "")


def test_what_cannot_run_is_screened_before_it_is_scored(run):
    records = [json.loads(line, parse_constant=refuse) for line in (run.path / "trials.jsonl").read_text().splitlines()]
    records = [record for record in records if "state" in record]
    assert len(records) == 8
    dense = next(record for record in records if not record["policy"])
    assert dense["state"] == "PRUNED"
    assert dense["reason"].startswith(f"screened by cost: {BOARD} cannot run it: ")
    assert TIME not in dense["values"]
    assert dense["values"]["size"] > 0.0
    assert any(record["state"] == "COMPLETE" and record["values"][TIME] > 0.0 for record in records)


def test_unknown_times_are_infinite_and_the_others_stay(problem):
    both = CostModel((load_profile(BOARD), load_profile(ZEN)))
    dense = both.predict(problem.plan(DENSE))
    assert dense[TIME] == dense[f"energy@{BOARD}"] == math.inf
    assert all(math.isfinite(value) for name, value in dense.items() if name not in (TIME, f"energy@{BOARD}"))
    assert set(both.interval(problem.plan(DENSE))) == {f"latency@{ZEN}"}
    assert set(both.refusals(problem.plan(DENSE))) == {BOARD}
    integer = problem.plan(integer_policy(problem.space))
    assert runs_everywhere(both.predict(integer))
    assert both.refusals(integer) == {}


def test_budgets_are_absolute_where_the_dense_model_has_no_time(pooled, settings, problem):
    for objective in ("latency", TIME, f"energy@{BOARD}"):
        relative = replace(settings, budgets=(parse_budget("-50%", objective),))
        with pytest.raises(ConfigError, match="cannot run the dense model") as raised:
            prepare_problem(pooled.model(), pooled.data(), relative)
        assert "\n" not in str(raised.value)
        offered = str(raised.value).partition("'")[2].partition("'")[0]
        assert parse_budget(offered, objective).limit > 0.0
    lowest = reachable(problem)
    assert runs_everywhere(lowest)
    rng = random.Random(0)
    for _ in range(100):
        chosen = {unit: rng.choice([c for c in options if c is not None])
                  for unit, options in problem.space.options.items()}
        costs = problem.costs.predict(problem.plan(integer_policy(problem.space).replace(chosen)))
        assert lowest[TIME] <= costs[TIME] * 1.0001
    for limit, feasible in ((lowest[TIME] * 1.01, True), (lowest[TIME] * 0.5, False)):
        budgets = (parse_budget(f"<={limit:.9f}ms", "latency"), parse_budget("-50%", "size"))
        changed = replace(problem, settings=replace(settings, budgets=budgets))
        if feasible:
            check_feasible(changed, reachable(changed))
        else:
            with pytest.raises(InfeasibleError, match=r"best reachable .*dense nothing that runs"):
                check_feasible(changed, reachable(changed))


def test_a_model_that_no_choice_makes_executable_stops_before_the_search(tiny, settings):
    class Cosine(torch.nn.Module):
        def forward(self, x):
            return torch.cos(x)

    stuck = prepare_problem(torch.nn.Sequential(Cosine(), tiny.module.model()), tiny.module.data(), settings)
    lowest = reachable(stuck)
    assert lowest[TIME] == math.inf
    with pytest.raises(InfeasibleError, match=r"wherever they are offered, stm32-h7a3 cannot run it: kernel 'cos'"):
        check_feasible(stuck, lowest)
    shown = json.loads(json.dumps(inspection(stuck), allow_nan=False))
    assert shown["objectives"][TIME]["baseline"] is None
    assert shown["objectives"][TIME]["minimum"] is None
    assert [note.partition(": kernel ")[0] for note in shown["notes"][-2:]] == [
        f"dense: {BOARD} cannot run it", f"8 bits wherever they are offered: {BOARD} cannot run it"]


def test_inspection_shows_the_shares_of_the_model_that_runs(problem):
    shown = json.loads(json.dumps(inspection(problem), allow_nan=False))
    assert shown["objectives"][TIME]["baseline"] is None
    assert shown["objectives"][TIME]["minimum"] > 0.0
    shares = [layer["share"][TIME] for layer in shown["layers"]]
    assert all(share > 0.0 for share in shares)
    assert sum(shares) <= 1.0


def test_unknown_kernels_cost_more_than_any_other_and_known_ones_what_they_cost(problem):
    device = load_profile(BOARD)
    known = cost_view(problem.plan(integer_policy(problem.space))).kernels
    unknown = cost_view(problem.plan(DENSE)).kernels
    with pytest.raises(ProfileError):
        device.kernel_cost(unknown)
    prices = kernel_prices(device, [*unknown, *known])
    assert prices[len(unknown):] == pytest.approx(device.kernel_cost(known))
    assert prices[: len(unknown)] == pytest.approx(UNKNOWN_PRICE * device.kernel_cost(known).max())


def test_every_seed_but_the_dense_one_can_be_executed(problem):
    generator = np.random.default_rng(0)
    losses = {unit: (0.0, *np.sort(10.0 ** generator.uniform(-5, -1, len(options) - 1)))
              for unit, options in problem.space.options.items()}
    seeds = exact_seeds(problem.program.structure, problem.space, SensitivityTable(losses), problem.costs, 40)
    assert seeds.policies[0].is_dense
    assert len(seeds.policies) > 5
    for policy, loss in zip(seeds.policies[1:], seeds.losses[1:], strict=True):
        assert problem.costs.refusals(problem.plan(policy)) == {}
        chosen = dict(policy)
        total = sum(losses[unit][options.index(chosen.get(unit))] for unit, options in problem.space.options.items())
        assert loss == pytest.approx(total)   # assignments number the options of the whole space


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.outer, self.fc = nn.Conv2d(16, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 2)
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_a_dropped_branch_that_leaves_a_float_activation_is_not_offered():
    model = Residual().eval()
    structure = analyse(capture(model, (torch.randn(2, 3, 8, 8),)), model)
    for target, offered in ((ZEN, True), (BOARD, False)):
        costs = CostModel((load_profile(target),))
        space = build_space(structure, [device.capabilities() for device in costs.devices], SpaceSettings())
        assert Keep(0.0) in space.options["inner/channels"]
        kept = drop_what_cannot_run(structure, space, costs)
        assert (Keep(0.0) in kept.options["inner/channels"]) == offered
        reasons = [reason for unit, choice, reason in kept.dropped
                   if (unit, choice) == ("inner/channels", "drop the branch")]
        assert bool(reasons) != offered
        assert all(reason.startswith(f"{BOARD} cannot run it: kernel ") for reason in reasons)
        assert Weights(8) in kept.options["inner/weights"]
        left = integer_policy(kept).replace({"inner/channels": Keep(0.0)})
        assert bool(costs.refusals(plan(structure, left))) != offered
