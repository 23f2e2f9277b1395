"""What Ray Tune's own searcher loses, and the one that does not; both are driven as a Tuner drives them."""

import math
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def searchers():
    from optuna.samplers import RandomSampler
    from ray.tune.search.optuna import OptunaSearch

    from paretopress.search.tune_optuna import CompleteOptunaSearch

    def space(trial):
        trial.suggest_float("x", 0.0, 1.0)

    def make(kind, **options):
        return kind(space, metric=["accuracy", "size"], mode=["max", "min"], sampler=RandomSampler(seed=0), **options)

    return SimpleNamespace(
        theirs=lambda: make(OptunaSearch), ours=lambda iterations=1: make(CompleteOptunaSearch, iterations=iterations)
    )


def ended(search, result=None, error=False):
    """Run one trial to an end and return what the study holds of it."""
    name = f"trial{len(search._completed_trials)}-{len(search._ot_study.trials)}"
    assert "x" in search.suggest(name)
    search.on_trial_complete(name, result, error)
    search.on_trial_complete(name, result, error)   # Tune may say so twice
    return search._ot_study.trials[-1]


def test_constraints_reach_the_study(searchers):
    result = {"accuracy": 0.5, "size": 3.0, "constraints/size": 2.0, "constraints/drop": -0.1}
    trial = ended(searchers.ours(), result)
    assert trial.state.name == "COMPLETE"
    assert trial.values == [0.5, 3.0]
    assert trial.constraints == {"size": 2.0, "drop": -0.1}
    assert not ended(searchers.theirs(), result).constraints


@pytest.mark.parametrize("values", [
    {"accuracy": math.nan, "size": 1.0}, {"accuracy": 0.5, "size": math.inf}, {"accuracy": 0.5}, {},
    {"accuracy": "0.5", "size": 1.0}, {"accuracy": 0.5, "size": 1.0, "constraints/size": math.nan},
])
def test_what_is_no_number_is_a_failed_trial(searchers, values):
    assert ended(searchers.ours(), values).state.name == "FAIL"


def test_their_searcher_leaves_such_a_trial_running(searchers):
    """If this fails Ray has mended it: then `tune_optuna.py` may go."""
    assert ended(searchers.theirs(), {"accuracy": math.nan, "size": 1.0}).state.name == "RUNNING"


def test_what_a_scheduler_stopped_is_pruned(searchers):
    early = {"accuracy": 0.2, "size": 1.0, "training_iteration": 1}
    search = searchers.ours(iterations=3)
    assert ended(search, early).state.name == "PRUNED"
    assert ended(search, {**early, "training_iteration": 3}).state.name == "COMPLETE"
    assert len(search._ot_study.best_trials) == 1
    assert ended(searchers.theirs(), early).state.name == "COMPLETE"


def test_an_error_is_a_failed_trial(searchers):
    assert ended(searchers.ours(), None, error=True).state.name == "FAIL"
