"""Candidates are timed before they are built: what that teaches of all others, and which finalists it leads to."""

import math
import random
import time

import numpy as np
import pytest

from paretopress.evaluators.candidate import Limits
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.search import trial_times, verified
from paretopress.search.bayesian_regression import regress
from paretopress.search.executors import SerialExecutor
from paretopress.search.finalists import surest
from paretopress.search.ledger import read_run
from paretopress.search.observer import Silent
from paretopress.search.outlook import outlook
from paretopress.search.preparation import prepare_evaluator
from paretopress.search.problem import prepare_problem
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.trial_times import EACH_ROUND, MOST, TrialTimes, choices_made, time_trials
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.policy import DENSE, Policy

NAME = "latency@local"
OBJECTIVES = {"accuracy": "max", NAME: "min"}
LIMITS = Limits((("latency <=0.5ms", NAME, 0.5),), 0.9, "max")
UNITS = ("early/channels", "middle/channels", "late/channels")
SLOWER = {"early/channels": 0.5, "middle/channels": 0.1, "late/channels": 0.0}   # than predicted where it is cut


def trials(count, seed=0):
    rng = random.Random(seed)
    made = [TrialRecord(0, TrialState.COMPLETE, DENSE, {"accuracy": 0.95, "divergence": 0.0, NAME: 1.0},
                        {"latency <=0.5ms": 0.5})]
    for number in range(1, count):
        ratios = {unit: rng.randrange(4, 16) / 16 for unit in UNITS}
        cut = sum(1.0 - ratio for ratio in ratios.values()) / 3
        loss = 0.2 * cut * rng.uniform(0.9, 1.1)
        values = {"accuracy": 0.95 - loss / 4, "divergence": loss, NAME: 1.0 - cut}
        policy = Policy.of({unit: Keep(ratio) for unit, ratio in ratios.items()})
        made.append(TrialRecord(number, TrialState.COMPLETE, policy, values, LIMITS.check(values, None)))
    return made


def truth(policy):
    """Milliseconds on an idle machine."""
    cuts = {unit: 1.0 - choice.ratio for unit, choice in policy}
    return (1.0 - sum(cuts.values()) / 3) * math.exp(sum(SLOWER[unit] * cut for unit, cut in cuts.items()))


class Clock:
    """Stands where ONNX Runtime does, on a machine that is 1.7 times slower than when it was profiled."""

    def __init__(self, broken=()):
        self.broken, self.batches = broken, []

    def __call__(self, policies, runs):
        assert runs >= trial_times.FEWEST_RUNS
        self.batches.append(list(policies))
        return [None if policy.hash in self.broken else 1.7 * truth(policy) for policy in policies]


class Listener:
    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


def timed(records, clock, seconds=1000.0, listener=None, named=(DENSE,)):
    return time_trials(records, list(named), OBJECTIVES, LIMITS, [NAME], clock, time.monotonic() + seconds,
                       listener or Listener())


@pytest.mark.parametrize("seed", range(3))
def test_times_are_right_where_they_were_measured_and_nearly_so_elsewhere(seed):
    records, clock = trials(400, seed), Clock()
    listener = Listener()
    found = timed(records, clock, listener=listener)
    measured = {policy.hash for batch in clock.batches for policy in batch}
    assert EACH_ROUND < len(measured) <= MOST + 1
    before, after = [], []
    for old, new in zip(records, found, strict=True):
        assert (new.policy, new.values["accuracy"]) == (old.policy, old.values["accuracy"])
        assert new.constraints == {"latency <=0.5ms": pytest.approx(new.values[NAME] - 0.5)}
        right = truth(new.policy)
        if new.policy.hash in measured and not new.policy.is_dense:
            assert new.values[NAME] == pytest.approx(right)
        before.append(abs(math.log(old.values[NAME] / right)))
        after.append(abs(math.log(new.values[NAME] / right)))
    assert np.mean(after) < 0.5 * np.mean(before)
    assert "candidates timed before they are built: predicted speed-ups are " in listener.messages[0]


def test_what_would_be_built_first_really_meets_the_budget():
    """By predicted times alone, those that err most come first, and none of them is as fast as asked."""
    records = trials(400)

    def first(known):
        return [one.record for one in surest(outlook(known, {}, LIMITS, [DENSE]).prospects, [], OBJECTIVES, LIMITS)]

    assert sum(truth(one.policy) <= 0.5 for one in first(records)) <= 2
    assert all(truth(one.policy) <= 0.505 for one in first(timed(records, Clock())))


def test_every_round_times_others_and_what_is_verified_anyway_comes_first():
    records, clock = trials(200), Clock()
    named = [DENSE, records[7].policy, records[9].policy]
    timed(records, clock, named=named)
    assert clock.batches[0][:3] == named
    assert all(batch[0] == DENSE and len(batch) <= EACH_ROUND + 1 for batch in clock.batches)
    others = [policy.hash for batch in clock.batches for policy in batch[1:]]
    assert len(set(others)) == len(others)


def test_what_cannot_be_exported_teaches_nothing():
    records = trials(60)
    clock = Clock(broken={one.policy.hash for one in records[1:]})
    assert timed(records, clock) == records
    assert len({policy.hash for batch in clock.batches for policy in batch}) > EACH_ROUND
    clock = Clock(broken={DENSE.hash})
    assert timed(records, clock) == records
    assert len(clock.batches) == 1


@pytest.mark.parametrize("seconds", [0.0, -5.0, 5.0])
def test_without_time_nothing_is_timed(seconds):
    records, clock = trials(60), Clock()
    assert timed(records, clock, seconds=seconds) == records
    assert clock.batches == []


def test_trials_without_a_time_stay_as_they_are():
    records = trials(40)
    lost = TrialRecord(40, TrialState.FAIL, Policy.of({UNITS[0]: Keep(0.25)}), reason="it broke")
    assert timed([*records, lost], Clock())[-1] == lost
    assert time_trials(records, [DENSE], OBJECTIVES, LIMITS, [], Clock(), time.monotonic() + 1e3, Listener()) == records


def test_choices_as_numbers():
    policies = [DENSE, Policy.of({"a/channels": Keep(0.25), "b/weights": Weights(8)}),
                Policy.of({"a/channels": Keep(1.0), "b/weights": Weights(4, 32)})]
    assert choices_made(policies).tolist() == [[0.0, 0.0, 0.0], [0.75, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_a_regression_equals_the_one_by_weights():
    """The kernel trick against the posterior mean of the weights (Bishop, 2006, equation 3.53), and its variance."""
    generator = np.random.default_rng(0)
    features, known = generator.normal(size=(30, 5)), [1, 4, 9, 11, 20, 21]
    found = generator.normal(size=len(known))
    expected, errors = regress(features, known, found, 0.7, 0.3)
    rows = features - features[known].mean(axis=0)
    precision = rows[known].T @ rows[known] / 0.3**2 + np.eye(5) / 0.7**2
    weights = np.linalg.solve(precision, rows[known].T @ (found - found.mean()) / 0.3**2)
    others = np.setdiff1d(np.arange(30), known)
    np.testing.assert_allclose(expected[others], found.mean() + rows[others] @ weights, atol=1e-10)
    variance = np.einsum("ij,jk,ik->i", rows[others], np.linalg.inv(precision), rows[others])
    np.testing.assert_allclose(errors[others] ** 2, 0.3**2 * (1.0 + 1.0 / len(known)) + variance, atol=1e-10)
    np.testing.assert_allclose(expected[known], found)
    assert (errors[known] == 0.0).all()


def test_corrections_go_with_the_choices():
    """A unit that was only ever timed slow makes others with it slow too, and not those without."""
    records = trials(60)
    known = TrialTimes({one.policy.hash: math.exp(0.5 * (1.0 - dict(one.policy)["early/channels"].ratio))
                        for one in records[1:25]})
    found = known.corrected(records, [NAME], LIMITS)
    factors = [new.values[NAME] / old.values[NAME] for old, new in zip(records[25:], found[25:], strict=True)]
    cuts = [1.0 - dict(one.policy)["early/channels"].ratio for one in records[25:]]
    assert np.corrcoef(cuts, np.log(factors))[0, 1] > 0.95


@pytest.mark.parametrize(("seconds", "here", "timed"), [(60.0, True, True), (None, True, False), (60.0, False, False)])
def test_a_search_in_a_time_chooses_by_times_in_the_runtime(
    tiny, tiny_settings, tiny_run, tmp_path, monkeypatch, seconds, here, timed
):
    """With no limit on the time nothing is timed, so that a seed gives the same candidates; nor for other machines."""
    monkeypatch.setattr(DeviceProfile, "runs_here", lambda _: True)
    monkeypatch.setattr(DeviceProfile, "cpu_matches", lambda _: here)
    problem = prepare_problem(tiny.module.model(), tiny.module.data(), tiny_settings)
    (name,) = problem.costs.latency_names
    seen, records = [], read_run(tiny_run.path)[1]

    def build(_shop, _named, promised, _settings):
        seen.extend(promised)
        raise KeyboardInterrupt   # that is all this test asks for

    monkeypatch.setattr(verified, "build_finalists", build)
    with pytest.raises(KeyboardInterrupt):
        verified.verify_finalists(
            problem, prepare_evaluator(problem, Silent()), SerialExecutor(None), tmp_path, records, {}, Silent(),
            None if seconds is None else time.monotonic() + seconds,
        )
    changed = [new.values[name] / old.values[name] for new, old in zip(seen, records, strict=True)
               if not old.policy.is_dense]
    assert (changed == [1.0] * len(changed)) is not timed
    assert all(0.1 < ratio < 10.0 for ratio in changed)
    assert [new.policy for new in seen] == [old.policy for old in records]
