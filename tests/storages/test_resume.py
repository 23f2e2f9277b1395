"""A search with one worker is the same wherever it was interrupted, and is never continued with something else."""

import json
import os
import random
import signal
import time
from dataclasses import replace

import pytest
import shared_driver as driver
import toy_evaluators as toys

from paretopress.search.executors import SerialExecutor
from paretopress.search.exploration import explore
from paretopress.search.ledger import Run
from paretopress.search.samplers import ExplorationSettings
from paretopress.spaces.errors import ConfigError

TRIALS = 26
SAMPLERS = ("random", "nsga2", "tpe", "evolution")


def lines(path):
    found = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
    return [json.dumps({key: value for key, value in one.items() if key != "seconds"}) for one in found]


def run_to(path, sampler, trials):
    settings = ExplorationSettings(sampler, trials, seed=3, population=4)
    with Run.open(path, driver.PRINTS, {"seed": 3}) as run:
        explore(toys.toy_options(), driver.OBJECTIVES, driver.SEEDS, SerialExecutor(toys.ToyEvaluator(70.0), None), run,
                settings, ["size"])


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_split_anywhere_the_records_are_the_same(sampler, tmp_path):
    """25 split points for each of four samplers: a hundred in all."""
    run_to(tmp_path / "whole", sampler, TRIALS)
    whole = lines(tmp_path / "whole")
    assert len(whole) == TRIALS
    for split in range(1, TRIALS):
        path = tmp_path / str(split)
        run_to(path, sampler, split)
        assert lines(path) == whole[:split]
        run_to(path, sampler, TRIALS)
        assert lines(path) == whole


def test_through_a_storage_one_worker_makes_the_same_search(storage, tmp_path):
    """Killed three times at any moment, and continued by another process each time."""
    run_to(tmp_path / "alone", "random", 12)
    run, chance = tmp_path / "run", random.Random(2)
    for count in sorted(chance.sample(range(1, 10), 3)):
        pid = driver.forked(driver.coordinate, storage, run, 12, "random")
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            trials = run / "trials.jsonl"
            if trials.exists() and trials.read_bytes().count(b"\n") >= count:
                time.sleep(chance.uniform(0.0, 0.05))
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(0.002)
    assert driver.ended(driver.forked(driver.coordinate, storage, run, 12, "random")) == 0
    assert lines(run) == lines(tmp_path / "alone")


def test_a_run_that_began_alone_is_continued_through_a_storage(tmp_path):
    run_to(tmp_path / "whole", "random", 10)
    run_to(tmp_path / "run", "random", 4)
    driver.coordinate("journal", tmp_path / "run", 10, "random")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    store = driver.store_of("journal", tmp_path / "run")
    assert [row.number for row in store.trials()] == list(range(10))


def changes():
    """What somebody may change before the same command, by the key that names it: at least forty of them."""
    settings = {
        "evaluator": [
            {"importance": name} for name in ("taylor", "fisher", "l2", "l1", "fpgm", "bn_scale", "hessian")
        ] + [{"ranges": name} for name in ("minmax", "percentile")]
        + [{"distil": "calibration"}, {"distil": "off"}]
        + [{"sampler": name} for name in ("nsga2", "nsga3", "tpe", "gp", "random", "evolution", "ddpg")]
        + [{"encoding": name} for name in ("reweighted", "full")]
        + [{"proxy": name} for name in ("divergence", "output_error", "snr", "taylor", "fisher", "hessian")]
        + [{"finalists": 3}, {"executor": "process"}, {"trials": None, "seconds": 60.0}],
        "seed": [{"seed": 1}, {"seed": 2}],
    }
    return [(key, change) for key, all_of_them in settings.items() for change in all_of_them]


@pytest.fixture(scope="session")
def tiny_problem(tiny, tiny_settings):
    from paretopress.search.problem import prepare_problem

    return prepare_problem(tiny.module.model(), tiny.module.data(), tiny_settings)


@pytest.fixture
def continued(tiny_problem, tmp_path):
    """Continue a run of the tiny project with another problem; returns what it says."""
    def config(problem):
        return {"seed": problem.settings.seed, "settings": problem.settings.to_plain()}

    Run.open(tmp_path, tiny_problem.fingerprints(), config(tiny_problem)).close()
    Run.open(tmp_path, tiny_problem.fingerprints(), config(tiny_problem)).close()   # the same is continued

    def again(problem):
        with pytest.raises(ConfigError) as refused:
            Run.open(tmp_path, problem.fingerprints(), config(problem))
        return str(refused.value)

    return again


@pytest.mark.parametrize(("key", "change"), changes())
def test_a_changed_setting_is_refused_by_its_name(continued, tiny_problem, key, change):
    message = continued(replace(tiny_problem, settings=replace(tiny_problem.settings, **change)))
    assert f"made with a different {key}" in message
    for name in change:
        if name != "seed":
            assert name in message


@pytest.mark.parametrize("budget", ["size=-50%", "macs=-10%"])
def test_a_changed_budget_is_refused(continued, tiny_problem, budget):
    from paretopress.evaluators.budgets import parse_budget

    name, _, text = budget.partition("=")
    settings = replace(tiny_problem.settings, budgets=(*tiny_problem.settings.budgets, parse_budget(text, name)))
    message = continued(replace(tiny_problem, settings=settings))
    assert "made with a different evaluator" in message
    assert "budgets" in message


@pytest.mark.parametrize("change", [
    {"bits": (8,)}, {"keep": (0.5,)}, {"bits": (8, 4)}, {"exclude": ("last*",)}, {"halves": ("fp16",)},
])
def test_a_changed_space_is_refused(continued, tiny_problem, change):
    from paretopress.spaces.space import SpaceSettings, build_space

    capabilities = [device.capabilities() for device in tiny_problem.costs.devices]
    space = build_space(tiny_problem.program.structure, capabilities, SpaceSettings(**change))
    assert "made with a different space" in continued(replace(tiny_problem, space=space))


@pytest.mark.parametrize("device", ["cortex-a76-tflite", "stm32-h7a3"])
def test_a_changed_profile_is_refused(continued, tiny_problem, device):
    from paretopress.evaluators.costs import CostModel
    from paretopress.hardware_profiles.catalogue import load_profile

    message = continued(replace(tiny_problem, costs=CostModel((load_profile(device),))))
    assert "made with a different profile" in message


@pytest.mark.parametrize("which", ["calibration", "search", "holdout", "metric"])
def test_changed_data_are_refused(continued, tiny_problem, tiny, which):
    import paretopress
    from paretopress.evaluators.data import prepare

    whole = tiny.module.data()
    parts = {name: getattr(whole, name) for name in ("calibration", "search", "holdout")}
    if which == "calibration":
        parts[which] = parts[which] + 0.001
    elif which != "metric":
        parts[which] = (parts[which][0] + 0.001, parts[which][1])
    metric = {"metric": lambda *_: 0.5} if which == "metric" else {}
    message = continued(replace(tiny_problem, data=prepare(paretopress.Data(**parts, **metric))))
    assert "made with a different data" in message


def test_a_changed_model_is_refused(continued, tiny_problem, tiny):
    from paretopress.search.problem import prepare_problem

    problem = prepare_problem(tiny.module.changed_model(), tiny.module.data(), tiny_problem.settings)
    assert "made with a different model" in continued(problem)


def test_forty_changes_are_refused():
    assert len(changes()) + 2 + 5 + 2 + 4 + 1 >= 40


def test_a_changed_version_is_refused_with_what_was_installed(tmp_path, monkeypatch):
    from paretopress.search import ledger

    Run.open(tmp_path, {"versions": "1"}, {"seed": 0}).close()
    monkeypatch.setattr(ledger, "package_versions", lambda: {"torch": "9.9"})
    with pytest.raises(ConfigError, match=r"different versions \(torch .* -> 9\.9\)"):
        Run.open(tmp_path, {"versions": "2"}, {"seed": 0})
