"""Several processes, several coordinators, one search."""

import json
import os
import signal
import time

import pytest
import shared_driver as driver
import toy_evaluators as toys
from history import verify_history

from paretopress.search.storages.trial_store import Status


def numbers(run):
    return [json.loads(line)["number"] for line in (run / "trials.jsonl").read_text().splitlines()]


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_workers_with_disks_of_their_own_do_one_search(storage, tmp_path):
    """As on hosts that share nothing but the storage."""
    run = tmp_path / "run"
    run.mkdir()
    url = storage if "://" in storage else f"{storage}:///{tmp_path}/shared"
    lead = driver.forked(driver.coordinate, url, run, 16, "random", local=False)
    workers = [driver.forked(driver.work, url, run, idle=1.0, outbox=tmp_path / f"host{index}") for index in range(2)]
    assert driver.ended(lead) == 0
    assert [driver.ended(pid) for pid in workers] == [0, 0]
    assert sorted(numbers(run)) == list(range(16))
    assert all(row.status is Status.DONE for row in driver.store_of(url, run).trials())
    stored = [path for index in range(2) for path in (tmp_path / f"host{index}" / "trials").iterdir()]
    assert len(stored) == 16


def test_a_standby_takes_over_from_a_coordinator_that_is_killed(storage, tmp_path):
    run = tmp_path / "run"
    evaluator = toys.ToyEvaluator(budget=70.0, delay=0.05)
    first = driver.forked(driver.coordinate, storage, run, 14, "random", evaluator=evaluator)
    wait_for(lambda: (run / "trials.jsonl").exists() and len(numbers(run)) >= 3)
    second = driver.forked(driver.coordinate, storage, run, 14, "random", evaluator=evaluator)
    time.sleep(0.2)
    assert os.waitpid(second, os.WNOHANG) == (0, 0)   # it stands by
    os.kill(first, signal.SIGKILL)
    assert driver.ended(first) == -signal.SIGKILL
    assert driver.ended(second) == 0
    assert numbers(run) == list(range(14))


def test_a_coordinator_that_lost_its_term_proposes_nothing_more(tmp_path):
    from paretopress.search.patience import Patience
    from paretopress.search.storage_executor import Leadership, proposal_of
    from paretopress.spaces.errors import StorageError
    from paretopress.spaces.policy import DENSE

    store = driver.store_of("sqlite", tmp_path)
    store.join(driver.study())
    first, second = (Leadership(store, name, Patience(), 0.05) for name in ("elsewhere-1-a", "elsewhere-2-b"))
    assert first.wait()
    time.sleep(0.1)
    assert second.wait()
    with pytest.raises(StorageError, match="another coordinator has taken over"):
        first.enqueue([proposal_of(0, DENSE)])
    time.sleep(0.02)
    with pytest.raises(StorageError, match="another coordinator has taken over"):
        first.hold()
    assert store.trials() == []
    store.close()


@pytest.mark.slow
def test_thirty_two_processes_make_exactly_sixteen_hundred_trials(postgresql, tmp_path):
    url, run, trials = postgresql.create("many"), tmp_path / "run", 1600
    run.mkdir()
    (run / "history").touch()
    lead = driver.forked(driver.coordinate, url, run, trials, "evolution", local=False, options=toys.toy_options(4),
                         evaluator=toys.ToyEvaluator(), lease=60.0)
    workers = [driver.forked(driver.work, url, run, toys.ToyEvaluator(), idle=5.0, lease=60.0) for _ in range(32)]
    assert driver.ended(lead) == 0
    assert [driver.ended(pid) for pid in workers] == [0] * 32
    store = driver.store_of(url, run)
    rows = store.trials()
    assert verify_history(run, store, driver.OBJECTIVES, trials) == []
    assert [row.number for row in rows] == list(range(trials))
    assert all(row.status is Status.DONE and row.token == 1 and row.losses == 0 for row in rows)
    assert len({row.policy_hash for row in rows}) == trials


@pytest.mark.slow
def test_the_command_line_shares_a_search_and_joins_it(tiny, finish, start, search_tiny, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    database = f"sqlite:///{tmp_path}/shared.sqlite3"
    lead = start(*search_tiny(run, "--storage", database, "--json"))
    wait_for(lambda: (tmp_path / "shared.sqlite3").exists() or lead.poll() is not None, 120.0)
    names = ("--model", "tiny:model", "--data", "tiny:data")
    code, out, err = finish("worker", "--storage", database, "--run", other, *names, "--idle", "20s", "--json")
    assert code == 0, err
    found, text = lead.communicate(timeout=240)
    assert lead.returncode == 0, text
    assert json.loads(found)["trials"]["total"] == 14
    assert sorted(numbers(run)) == list(range(14))
    assert json.loads(out)["evaluated"] == len(list((other / "trials").iterdir()))
    code, _, err = finish("worker", "--storage", database, "--run", other, "--model", "tiny:changed_model",
                          "--data", "tiny:data", "--idle", "1s")
    assert code == 2
    assert "made with a different model;" in err.splitlines()[-1]
    code, _, err = finish(*search_tiny(run, "--storage", database, "--seed", "1"))
    assert code == 2
    assert "made with a different seed" in err.splitlines()[-1]
