import pytest

from paretopress.search.live import ExplorationWatch
from paretopress.search.records import TrialRecord, TrialState
from paretopress.spaces.choices import Weights
from paretopress.spaces.policy import DENSE, Policy

OBJECTIVES = {"accuracy": "max", "latency": "min", "size": "min"}


def record(number, policy, accuracy, latency, size, state=TrialState.COMPLETE, over=0.0):
    values = {"accuracy": accuracy, "latency": latency, "size": size}
    return TrialRecord(number, state, policy, values, {"size": over})


def test_figures_follow_from_the_records():
    watch = ExplorationWatch(OBJECTIVES, trials=10, seconds=None)
    assert watch.status().hypervolume is None
    policies = [Policy.of({f"layer{index}/weights": Weights(8)}) for index in range(5)]
    watch.add(record(0, DENSE, 0.9, 4.0, 100.0))
    watch.add(record(1, policies[0], 0.85, 2.0, 50.0))                        # half of every extent of the box
    watch.add(record(2, policies[1], 0.84, 2.0, 60.0))                        # dominated
    watch.add(record(3, policies[2], 0.9, 1.0, 10.0, over=3.0))               # infeasible
    watch.add(record(4, policies[3], 0.1, 1.0, 10.0, state=TrialState.PRUNED))
    status = watch.status()
    assert (status.trials, status.front, status.feasible) == (5, 2, 0.6)
    assert status.hypervolume == pytest.approx(0.5**3)
    assert status.seconds_left == pytest.approx(5 / status.per_second, rel=0.2)
    assert status.line() == f"front 2, hypervolume 0.125, {status.per_second:.1f} trials/s, 60% feasible"
