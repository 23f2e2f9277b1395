"""Finalists distilled within a search: on what, how long, and what becomes of them."""

import json
from dataclasses import replace

import pytest
import torch

from paretopress.compressors.distillation import DistillationSettings
from paretopress.evaluators.candidate import HOPELESS_FOR_DISTILLATION
from paretopress.search.building import BuildSettings
from paretopress.search.observer import Silent
from paretopress.search.preparation import prepare_evaluator
from paretopress.search.problem import prepare_problem
from paretopress.search.session import run_search
from paretopress.search.tasks import Construction
from paretopress.search.workload import Built, Workload
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.errors import ConfigError


def with_train(tiny):
    return replace(tiny.module.data(), train=tiny.module.samples(96, 7)[0])


@pytest.mark.parametrize(
    ("distil", "train", "count"),
    [("auto", False, 0), ("auto", True, 96), ("off", True, 0), ("train", True, 96), ("calibration", True, None)],
)
def test_what_finalists_are_distilled_on(tiny, tiny_settings, distil, train, count):
    data = with_train(tiny) if train else tiny.module.data()
    problem = prepare_problem(tiny.module.model(), data, replace(tiny_settings, distil=distil))
    samples = problem.distillation_samples()
    expected = problem.data.calibration.count if count is None else count
    assert (0 if samples is None else samples.count) == expected


def test_a_train_set_that_is_not_there_is_refused(tiny, tiny_settings):
    with pytest.raises(ConfigError, match=r"^distil: train: the data has no train set \(allowed: auto, calibration, "):
        prepare_problem(tiny.module.model(), tiny.module.data(), replace(tiny_settings, distil="train"))


def test_an_unknown_mode_is_refused_with_the_nearest(tiny, tiny_settings, tmp_path):
    settings = replace(tiny_settings, distil="calibratoin")
    with pytest.raises(ConfigError, match="did you mean 'calibration'"):
        run_search(tiny.module.model(), tiny.module.data(), settings, tmp_path / "run")


@pytest.fixture(scope="module")
def workload(tiny, tiny_settings):
    settings = replace(tiny_settings, distil="calibration")
    problem = prepare_problem(tiny.module.model(), tiny.module.data(), settings)
    torch.set_num_threads(1)
    made = Workload.of(problem, prepare_evaluator(problem, Silent()))
    return problem, replace(made, distillation=DistillationSettings(steps=60, batch_size=16))


def thin(problem, ratio=0.3):
    keeps = {unit: [choice for choice in options if isinstance(choice, Keep) and choice.ratio <= ratio]
             for unit, options in problem.space.options.items() if unit.endswith("/channels")}
    return problem.policy({unit: choices[0] for unit, choices in keeps.items()})


def test_a_distilled_finalist_is_nearer_to_the_dense_model_and_stored_as_it_is(workload, tiny, tmp_path):
    from paretopress.compressors.compressed_model import load

    problem, work = workload
    built = work.construct(Construction(thin(problem), str(tmp_path / "one")))
    plain = replace(work, training=()).construct(Construction(thin(problem), str(tmp_path / "two")))
    assert built.tier == "distilled"
    assert plain.tier in ("refit", "entries")
    assert built.divergence < plain.divergence
    assert Built.load(tmp_path / "one") == built
    first, second = (load(tmp_path / name, tiny.module.model()) for name in ("one", "two"))
    assert first.size_bytes == second.size_bytes == built.size_bytes
    inputs = problem.data.holdout.whole.args[0]
    with torch.inference_mode():
        assert not torch.equal(first(inputs), second(inputs))


def test_the_same_distillation_twice_is_the_same(workload, tmp_path):
    problem, work = workload
    one, two = (work.construct(Construction(thin(problem), str(tmp_path / name))) for name in ("one", "two"))
    assert one == two


def test_no_time_leaves_the_refit(workload, tmp_path):
    problem, work = workload
    plain = replace(work, training=()).construct(Construction(thin(problem), str(tmp_path / "one")))
    assert work.construct(Construction(thin(problem), str(tmp_path / "two"), seconds=0.0)) == plain


def test_what_a_trial_scored_is_not_scored_again(workload, tmp_path, monkeypatch):
    problem, work = workload
    work = replace(work, training=())
    policy = thin(problem, 0.5)
    whole = work.construct(Construction(policy, str(tmp_path / "one")))
    assert whole.tier == "refit"
    trial = work.evaluator(policy)
    known = (trial.values["accuracy"], trial.values["divergence"])
    monkeypatch.setattr(type(work.evaluator), "build", lambda *_: pytest.fail("stitched again"))
    assert work.construct(Construction(policy, str(tmp_path / "two"), evaluated=known)) == whole


@pytest.mark.parametrize(
    ("left", "seconds"),
    [(1000.0, 0.8 * 1000.0 * 2 / 25), (238.0, 20.0), (100.0, 0.8 * 100.0 * 2 / 17), (0.0, 0.0)],
)
def test_time_is_shared_among_the_builds(left, seconds):
    """Each gets its 20 s at least, unless fewer than two thirds of the 22 candidates would be built."""
    import time

    settings = BuildSettings({}, None, 0, 22, 8, time.monotonic() + left, distilled=True, enough=20.0)
    assert settings.seconds_each(3, 2) == pytest.approx(seconds, rel=0.01, abs=0.01)


def test_without_a_limit_or_distillation_no_build_has_a_time_of_its_own():
    settings = BuildSettings({}, None, 0, 22, 8, None, distilled=True)
    assert settings.seconds_each(3, 2) is None
    assert replace(settings, deadline=0.0, distilled=False).seconds_each(3, 2) is None


def test_candidates_may_lose_more_before_distillation_than_finalists_after(workload):
    problem, work = workload
    evaluator, limits = work.evaluator, work.evaluator.limits
    dense = evaluator(problem.policy({})).values["accuracy"]
    assert evaluator.constraints == ("max_drop before distillation",)
    assert limits.names == ("max_drop",)
    found = evaluator(thin(problem, 0.25))
    assert found.constraints["max_drop before distillation"] == pytest.approx(
        limits.accuracy - 0.3 * dense - found.values["accuracy"]
    )
    assert evaluator.hopeless == HOPELESS_FOR_DISTILLATION
    plain = evaluator.ready(problem.limits)
    assert plain.constraints == ("max_drop",)
    assert plain.hopeless < HOPELESS_FOR_DISTILLATION


def test_even_widths_are_among_the_seeds(workload):
    problem, _ = workload
    policies = problem.even_widths()
    widths = [{choice.ratio for _, choice in policy if isinstance(choice, Keep)} for policy in policies]
    assert {0.5} in widths
    groups = {unit for unit in problem.space.options if unit.endswith("/channels")}
    assert all(groups <= policy.choices.keys() for policy in policies)
    assert {choice.activations for _, choice in policies[0] if isinstance(choice, Weights)} == {32}
    assert len(set(policies)) == len(policies)


def test_a_search_stores_and_verifies_distilled_finalists(tiny, tiny_settings, tmp_path):
    settings = replace(tiny_settings, seconds=20.0, trials=12, distil="auto")
    path = run_search(tiny.module.model(), with_train(tiny), settings, tmp_path / "run")
    points = json.loads((path / "front.json").read_text())["points"]
    tiers = {point["tier"] for point in points}
    assert points[0]["tier"] == "dense"
    assert "distilled" in tiers
    assert all(point["measured"]["parity"]["reloaded_equal"] for point in points)
