"""The robust cost: the worst target's time relative to the dense model there, in budgets, verdicts and fronts."""

import json
import math
import random
from dataclasses import replace

import pytest

import paretopress
from paretopress.evaluators.budgets import parse_budget
from paretopress.evaluators.costs import CostModel
from paretopress.evaluators.timing import Timing
from paretopress.evaluators.verification import Parity, Verified
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.search.finalists import Finalist
from paretopress.search.judgement import Candidate, judge
from paretopress.search.problem import prepare_problem
from paretopress.search.reachability import check_feasible, reachable
from paretopress.spaces.choices import Keep
from paretopress.spaces.errors import ConfigError, InfeasibleError
from paretopress.spaces.policy import DENSE, Policy

HERE, GPU, BOARD, PHONE = "x86-zen4-vnni-onnxruntime", "h200-sxm", "stm32-h7a3", "cortex-a76-tflite"


def problem_of(tiny, settings, *targets, budget=None):
    budgets = () if budget is None else (parse_budget(budget, "robust"),)
    changed = replace(settings, targets=targets, budgets=budgets)
    return prepare_problem(tiny.module.model(), tiny.module.data(), changed)


@pytest.fixture(scope="module")
def several(tiny, tiny_settings):
    """A target that gains by integers, one that does not, and one that only ranks, with a budget that all must meet."""
    return problem_of(tiny, tiny_settings, HERE, PHONE, GPU, budget="-4%")


def test_it_is_the_worst_ratio_and_an_objective_where_it_has_a_budget(several):
    assert several.baseline["robust"] == 1.0
    assert several.cost_objectives == (
        f"latency@{HERE}", f"latency@{PHONE}", f"relative@{GPU}", "size", "robust")
    rng, space = random.Random(0), several.option_space
    for _ in range(20):
        policy = space.policy(space.canonical(space.scattered(space.dense, rng)))
        costs = several.costs.predict(several.plan(policy))
        ratios = [costs[name] / several.baseline[name] for name in several.costs.latency_names]
        assert costs["robust"] == pytest.approx(max(ratios), rel=1e-12)


def test_its_budget_is_checked_before_anything_is_spent(several):
    lowest = reachable(several)
    assert lowest["robust"] < 0.96
    check_feasible(several, lowest)
    label, name, limit = several.limits_without_accuracy().costs[0]
    assert (label, name, limit) == ("robust -4%", "robust", pytest.approx(0.96))
    never = replace(several, settings=replace(several.settings, budgets=(parse_budget("<=0.001", "robust"),)))
    with pytest.raises(InfeasibleError, match=r"robust <=0.001 cannot be met: .*% of the dense model's time on"):
        check_feasible(never, reachable(never))


def test_one_target_is_its_own_worst(tiny, tiny_settings):
    problem = problem_of(tiny, tiny_settings, HERE, budget="-20%")
    groups = {unit: choices for unit, choices in problem.space.options.items() if unit.endswith("channels")}
    narrow = Policy.of({unit: choices[-1] for unit, choices in groups.items()})
    costs = problem.costs.predict(problem.plan(narrow))
    assert costs["robust"] == pytest.approx(costs[f"latency@{HERE}"] / problem.baseline[f"latency@{HERE}"])
    assert "robust" not in problem_of(tiny, tiny_settings, HERE).baseline   # nobody asked for it


def test_a_target_that_cannot_run_the_dense_model_has_nothing_to_be_relative_to(tiny, tiny_settings):
    with pytest.raises(ConfigError, match=rf"{BOARD} cannot run the dense model.*allowed: .*latency@{BOARD}=5ms"):
        problem_of(tiny, tiny_settings, HERE, BOARD, budget="-20%")
    assert "robust" not in problem_of(tiny, tiny_settings, HERE, BOARD).baseline


def test_what_a_target_cannot_run_is_infinitely_bad():
    costs = CostModel((load_profile(HERE), load_profile(PHONE)), dense=(2.0, 4.0))
    assert costs.robust({f"latency@{HERE}": 1.0, f"latency@{PHONE}": 3.0}) == 0.75
    assert costs.robust({f"latency@{HERE}": 1.0, f"latency@{PHONE}": math.inf}) == math.inf
    assert costs.resolve("robust") == ("robust",)
    with pytest.raises(ConfigError, match="unknown objective 'robust@x'"):
        costs.resolve("robust@x")


@pytest.mark.parametrize(("text", "limit"), [("-40%", 0.6), ("<=0.6", 0.6), ("0.6", 0.6)])
def test_budgets_are_shares_of_the_dense_time(text, limit):
    assert parse_budget(text, "robust").resolve(1.0) == pytest.approx(limit)


@pytest.mark.parametrize("text", ["5ms", "40%", "-0.5", "-100%"])
def test_other_budgets_are_refused(text):
    with pytest.raises(ConfigError, match=r"budget robust: .*allowed: '-40%' or '<=0.6'"):
        parse_budget(text, "robust")


def candidate(number, here, there):
    """Measured here, beside a dense model of 10 ms; predicted elsewhere, where the dense model takes 100 ms."""
    predicted = {"size": 1000.0, "macs": 1000.0, f"latency@{HERE}": here, f"latency@{PHONE}": there,
                 "robust": max(here / 10.0, there / 100.0)}
    interval = {f"latency@{PHONE}": (0.8 * there, 1.2 * there), f"latency@{HERE}": (0.8 * here, 1.2 * here)}
    timing = Timing(here, (here, here), 10.0, (10.0, 10.0), 5)
    verified = Verified({"accuracy": 0.9}, 1000 - number, 2000, 3000, Parity(True, 0.0, 1.0, False), timing, ())
    policy = Policy.of({"unit/channels": Keep(1.0 / (number + 1))}) if number else DENSE
    return Candidate(Finalist(number, policy, "dense" if not number else None, 0.9, 0.9, "refit"), predicted, interval,
                     verified)


def test_finalists_are_judged_by_measured_times_here_and_predicted_ones_elsewhere(tiny, tiny_settings, monkeypatch):
    base = prepare_problem(tiny.module.model(), tiny.module.data(), tiny_settings)
    monkeypatch.setattr(DeviceProfile, "runs_here", lambda device: device.id == HERE)
    costs = CostModel((load_profile(HERE), load_profile(PHONE)), dense=(10.0, 100.0))
    settings = replace(base.settings, targets=(HERE, PHONE), budgets=(parse_budget("-40%", "robust"),))
    problem = replace(base, costs=costs, settings=settings)
    verdict = judge(problem, [
        candidate(0, 10.0, 100.0), candidate(1, 5.0, 55.0), candidate(2, 5.0, 65.0), candidate(3, 6.5, 20.0),
    ])
    reasons = [point.why_not for point in verdict.points]
    assert reasons[1] is None
    assert reasons[2] == "robust 65% exceeds -40%"   # the interval's ends cancel out
    assert reasons[3] == "robust 65% exceeds -40%"
    assert [point.measured["robust"] for point in verdict.points] == pytest.approx([1.0, 0.55, 0.65, 0.65])


@pytest.mark.slow
def test_a_search_on_two_targets_writes_it_and_picks_by_it(tiny, tmp_path):
    result = paretopress.compress(
        tiny.module.model(), data=tiny.module.data(), target=[HERE, GPU], max_robust="<=9", trials=10,
        run=tmp_path / "run", settings={"search": {"finalists": 2}, "timing": {"runs": 5}}, progress=False,
    )
    document = json.loads((tmp_path / "run" / "front.json").read_text())
    assert document["budgets"] == [{"objective": "robust", "limit": "<=9"}]   # no clock decides this test
    assert document["baseline"]["predicted"]["robust"] == 1.0
    found = [point for point in document["points"] if point["feasible"]]
    timed = load_profile(HERE).runs_here()
    assert len(found) == len(document["points"]) > 1
    assert any(0.0 < point["predicted"]["robust"] < 1.0 for point in found)
    for point in found:
        assert ("robust" in point["measured"]) == timed
    best = result.front.select(minimize="robust")
    assert best.value("robust") == min(point.value("robust") for point in result.front.feasible)
