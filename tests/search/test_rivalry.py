"""Scoring hopeless candidates on a part of the samples: the same front for fewer images, and the same run twice."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from paretopress.search.pareto import non_dominated
from paretopress.search.rivalry import FIRST, Rivalry
from paretopress.search.tasks import Challenge
from paretopress.spaces.policy import DENSE, Policy

TRIALS = 90
OBJECTIVES = {"accuracy": "max", "time": "min", "size": "min"}


@pytest.fixture(scope="module")
def settled(tiny, tiny_settings):
    """The tiny problem with 512 samples to score on, its evaluator and its seeds."""
    import paretopress
    from paretopress.search.measured_problem import measured_problem

    samples = tiny.module.samples
    data = paretopress.Data(samples(48, 2)[0], samples(512, 3), samples(64, 4))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield measured_problem(tiny.module.model(), data, replace(tiny_settings, budgets=(), trials=TRIALS))
    torch.set_num_threads(threads)


def explored(settled, path, trials, rivalry):
    from paretopress.search.executors import SerialExecutor
    from paretopress.search.exploration import ExplorationSettings, explore
    from paretopress.search.ledger import Run
    from paretopress.search.workload import Workload

    problem = settled.problem
    workload = Workload.of(problem, settled.evaluator)
    with Run.open(path, problem.fingerprints(), {}) as run, SerialExecutor(workload, None) as executor:
        return explore(
            problem.space.options, problem.objectives, settled.seeds, executor, run,
            ExplorationSettings("nsga2", trials, population=10), settled.evaluator.constraints, guide=settled.guide,
            rivalry=rivalry,
        )


@pytest.fixture(scope="module")
def whole(settled, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    records = explored(settled, path, TRIALS, Rivalry(settled.objectives))
    return SimpleNamespace(path=path, records=records)


def lines(path):
    found = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
    return [{key: value for key, value in one.items() if key != "seconds"} for one in found]


def front(evaluations, names):
    rows = np.array([[-one.values["accuracy"], *(one.values[name] for name in names)] for one in evaluations])
    return {tuple(row) for row in rows[non_dominated(rows)]}


def test_the_front_is_that_of_full_evaluations_for_fewer_images(settled, whole):
    """The same policies, each scored in full: at a test's error of 1 in 100, none of some 60 should be missed."""
    full = [settled.evaluator(record.policy) for record in whole.records]
    tested = [record for record in whole.records if (record.reason or "").startswith("screened by subset")]
    complete = [record for record in whole.records if record.state.value == "COMPLETE"]
    assert len(tested) >= 10
    names = settled.problem.cost_objectives
    assert front(complete, names) == front([one for one in full if one.state.value == "complete"], names)
    assert sum(record.images for record in whole.records) < 0.98 * sum(one.images for one in full)
    truth = {record.policy: one for record, one in zip(whole.records, full, strict=True)}
    errors = [record.values["accuracy"] - truth[record.policy].values["accuracy"] for record in tested]
    assert abs(float(np.mean(errors))) < 0.03          # estimates are not biased
    for record in complete:                            # and what is scored in full is worth the same
        assert record.values == pytest.approx(truth[record.policy].values)


def test_the_first_trials_are_scored_in_full_and_every_trial_counts_its_images(settled, whole):
    tuned, scored = len(settled.evaluator.entries.calibration.inputs[0]), settled.evaluator.samples.count
    assert not any("subset" in (record.reason or "") for record in whole.records[:FIRST])
    for record in whole.records:
        if record.policy.is_dense:
            assert record.images == scored
        elif record.state.value == "COMPLETE":
            assert record.images == tuned + scored
        elif "subset" in record.reason:
            assert tuned < record.images < tuned + scored
            assert set(settled.objectives) | {"divergence"} <= record.values.keys()
        else:
            assert record.images in (0, tuned)


def test_stopped_and_resumed_anywhere_the_lines_are_the_same(settled, whole, tmp_path):
    for trials in (7, 31, 32, 60, TRIALS):
        explored(settled, tmp_path, trials, Rivalry(settled.objectives))
    assert lines(tmp_path) == lines(whole.path)


def test_switched_off_every_sample_is_scored(tiny, tiny_settings):
    from paretopress.search.observer import Silent
    from paretopress.search.preparation import prepare_evaluator
    from paretopress.search.problem import prepare_problem

    problem = prepare_problem(tiny.module.model(), tiny.module.data(), replace(tiny_settings, subsets=False))
    evaluator = prepare_evaluator(problem, Silent())
    assert evaluator.dense_scores is None
    assert torch.equal(evaluator.samples.targets, problem.data.scored.targets)
    other = prepare_problem(tiny.module.model(), tiny.module.data(), tiny_settings)
    assert other.fingerprints()["evaluator"] != problem.fingerprints()["evaluator"]


def record(values, state="COMPLETE"):
    from paretopress.search.records import TrialRecord, TrialState

    reason = None if state == "COMPLETE" else "because"
    return TrialRecord(0, TrialState(state), Policy(), values, reason=reason)


def test_rivals_are_the_trials_that_nothing_beats_whatever_their_order():
    trials = [
        {"accuracy": 0.9, "divergence": 0.1, "time": 2.0, "size": 5.0},
        {"accuracy": 0.8, "divergence": 0.2, "time": 2.0, "size": 5.0},   # beaten in everything
        {"accuracy": 0.8, "divergence": 0.05, "time": 2.0, "size": 6.0},  # diverges less
        {"accuracy": 0.7, "divergence": 0.3, "time": 1.0, "size": 5.0},   # takes less time
    ]
    found = []
    for order in (trials, trials[::-1]):
        rivalry = Rivalry(OBJECTIVES)
        for values in order:
            rivalry.learn(record(values))
            rivalry.learn(record({"accuracy": 1.0, "divergence": 0.0, "time": 0.0, "size": 0.0}, "PRUNED"))
        assert rivalry.task(FIRST - 1, DENSE) == DENSE
        task = rivalry.task(FIRST, DENSE)
        assert isinstance(task, Challenge)
        assert task.rivals.costs == ("time", "size")
        found.append(task.rivals.rows)
    assert found[0] == found[1]
    assert sorted(row[0] for row in found[0]) == [0.7, 0.8, 0.9]
