"""SIGKILL between any two steps of the protocol: the search goes on as if nothing had been."""

import os
import re
import signal
from pathlib import Path

import pytest
import shared_driver as driver
from history import verify_history

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search import fault_points
from paretopress.search.fault_points import COORDINATOR_POINTS, FAULT_POINTS, SWEEPER_POINTS, WORKER_POINTS
from paretopress.search.storages.optuna_mirror import optuna_storage
from paretopress.search.storages.storage_url import StorageUrl

TRIALS = 3


class Logged:
    """A toy evaluator that says what it finished."""

    def __init__(self, run, delay=0.0):
        import toy_evaluators as toys

        self.toy, self.history = toys.ToyEvaluator(budget=70.0, delay=delay), Path(run) / "history"

    def __call__(self, policy):
        found = self.toy(policy)
        descriptor = os.open(self.history, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"finished {policy.hash} {found.values['accuracy']!r} {found.values['size']!r}\n".encode())
        os.close(descriptor)
        return Evaluation(State.COMPLETE, dict(found.values), {"size": -1.0, "drop": -1.0})


def test_every_named_point_is_in_the_code_and_every_one_in_the_code_is_named():
    folder = Path(fault_points.__file__).parent
    used = set()
    for path in [*folder.glob("*.py"), *folder.glob("storages/*.py")]:
        for line in path.read_text().splitlines():
            if "fault_point(" in line and "def fault_point" not in line:
                used.update(re.findall(r'"((?:before|inside|after) \w+)"', line))
    assert used == set(FAULT_POINTS)
    assert len(FAULT_POINTS) >= 25


def run_until_killed(action, point, count, *arguments, **options):
    """Run something in a process that kills itself at a point; returns whether it did."""
    os.environ[fault_points.VARIABLE] = f"{point}:{count}"
    try:
        code = driver.ended(driver.forked(action, *arguments, **options))
    finally:
        del os.environ[fault_points.VARIABLE]
    assert code in (0, -signal.SIGKILL), code
    return code == -signal.SIGKILL


def kill_at(point, storage, run):
    """A coordinator that works, killed where it can be; everything else is done by an undisturbed one."""
    evaluator = Logged(run, 0.7 if point.endswith("renew") else 0.0)   # long enough for a lease to be renewed
    # The coordinator has a worker inside: it passes the points of coordinators, workers and sweepers alike.
    options = {"evaluator": evaluator, "mirrored": point.endswith("mirror"), "lease": 1.0}
    count = 1 if point.endswith(("lead", "announce", "renew", "sweep", "drain")) else 2
    killed = run_until_killed(driver.coordinate, point, count, storage, run, TRIALS, **options)
    assert driver.ended(driver.forked(driver.coordinate, storage, run, TRIALS, **options)) == 0
    return killed


@pytest.mark.slow
@pytest.mark.parametrize("point", FAULT_POINTS)
def test_killed_at_any_point_the_search_is_whole(point, storage, tmp_path):
    import optuna

    run = tmp_path / "run"
    run.mkdir()
    (run / "history").touch()
    assert kill_at(point, storage, run), f"{point} was never reached"
    mirror = None
    if point.endswith("mirror"):
        study = optuna.load_study(study_name="toy", storage=optuna_storage(StorageUrl.parse(storage, run)))
        mirror = study.get_trials(deepcopy=False)
    store = driver.store_of(storage, run)
    assert verify_history(run, store, driver.OBJECTIVES, TRIALS, mirror) == []
    store.close()


def test_the_three_roles_have_their_points():
    assert set(FAULT_POINTS) == {*WORKER_POINTS, *COORDINATOR_POINTS, *SWEEPER_POINTS}
