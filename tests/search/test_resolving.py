"""Solving a finished run again: other budgets, another device, and what the run has not measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from paretopress.evaluators.budgets import parse_budget
from paretopress.search import resolving
from paretopress.search.ledger import read_run
from paretopress.search.observer import Silent
from paretopress.search.resolving import resolve, settings_of
from paretopress.spaces.errors import ArtifactError, ConfigError, InfeasibleError

TARGET = "x86-zen4-vnni-onnxruntime"


def solved(tiny, run, *, budgets=(), targets=(), model="model"):
    return resolve(run, getattr(tiny.module, model)(), tiny.module.data(), targets=targets,
                   budgets=tuple(parse_budget(text, name) for name, text in budgets), observer=Silent())


def test_a_new_budget_needs_no_measurement_and_is_met(tiny, tiny_run, monkeypatch):
    monkeypatch.setattr(resolving, "substitution_loss", lambda *_: pytest.fail("measured"))
    found = solved(tiny, tiny_run.path, budgets=[("size", "-60%"), ("latency", "-5%")])
    assert found.computed == 0
    assert found.covered == sum(len(options) - 1 for options in found.problem.space.options.values())
    best, dense = found.best, found.problem.baseline
    assert best.predicted["size"] <= 0.4 * dense["size"]
    assert best.predicted[f"latency@{TARGET}"] <= 0.95 * dense[f"latency@{TARGET}"]
    assert best.loss == min(point.loss for point in found.points if point.within)
    document = found.to_plain()
    assert document["label"] == "predicted, not verified"
    assert sum(point["best"] for point in document["points"]) == 1
    for point in found.points:   # priced with the whole plan
        assert found.problem.costs.predict(found.problem.plan(point.policy)) == point.predicted
    losses = json.loads((tiny_run.path / "sensitivity.json").read_text())["losses"]
    assert {unit: list(row) for unit, row in found.table.losses.items()} == losses


@pytest.mark.slow
def test_a_tighter_budget_loses_more(tiny, tiny_run):
    losses = [solved(tiny, tiny_run.path, budgets=[("size", text)]).best.loss for text in ("-20%", "-60%", "-85%")]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


@pytest.mark.slow
def test_another_device_is_priced_and_what_is_missing_is_measured_and_counted(tiny, tiny_run):
    found = solved(tiny, tiny_run.path, targets=["cortex-a76-tflite"])
    assert f"latency@{'cortex-a76-tflite'}" in found.best.predicted
    again = solved(tiny, tiny_run.path)
    own = {(unit, choice) for unit, options in again.problem.space.options.items() for choice in options[1:]}
    other = {(unit, choice) for unit, options in found.problem.space.options.items() for choice in options[1:]}
    assert found.computed == len(other - own)
    assert found.covered == len(other & own)


@pytest.mark.slow
def test_choices_that_are_gone_from_the_table_are_measured_as_the_run_did(tiny, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run.path, run)
    plain = json.loads((run / "sensitivity.json").read_text())
    unit = next(unit for unit, row in plain["options"].items() if len(row) > 2)
    expected, plain["options"][unit] = plain["losses"][unit], plain["options"][unit][:1]
    (run / "sensitivity.json").write_text(json.dumps(plain))
    found = solved(tiny, run)
    assert found.computed == len(expected) - 1
    assert found.table.losses[unit][0] == 0.0
    assert all(loss >= 0.0 for loss in found.table.losses[unit])


@pytest.mark.slow
def test_rates_of_the_best_point_cover_all_units(tiny, tiny_run):
    found = solved(tiny, tiny_run.path, budgets=[("size", "-50%")])
    rates = found.exchange(found.best)
    assert {one["unit"] for one in rates} <= set(found.problem.space.options)
    assert any(one["costs"]["size"] < 0 for one in rates)
    assert any(one["costs"]["size"] > 0 and one["loss"] < 0 for one in rates)


def test_the_settings_of_a_run_survive(tiny_run, tiny_settings):
    found = settings_of(read_run(tiny_run.path)[0], "run.yaml")
    assert found.space == tiny_settings.space
    assert replace(found, trials=tiny_settings.trials).targets == tiny_settings.targets


def test_wrong_runs_and_budgets_are_refused_in_one_line(tiny, tiny_run, tmp_path):
    with pytest.raises(ConfigError, match="another model"):
        solved(tiny, tiny_run.path, model="changed_model")
    with pytest.raises(InfeasibleError, match="best reachable"):
        solved(tiny, tiny_run.path, budgets=[("size", "<=1B")])
    with pytest.raises(ConfigError):
        solved(tiny, tmp_path)
    run = tmp_path / "run"
    shutil.copytree(tiny_run.path, run)
    (run / "sensitivity.json").unlink()
    with pytest.raises(ArtifactError, match="no run directory, or its table is not measured"):
        solved(tiny, run)
    (run / "sensitivity.json").write_text('{"key": {}, "options": [1]}')
    with pytest.raises(ArtifactError, match="damaged"):
        solved(tiny, run)
