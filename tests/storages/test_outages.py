"""Storages that go away while a search runs: workers live, results wait, and are told on the return."""

import time
from pathlib import Path

import pytest
import shared_driver as driver
import toy_evaluators as toys
from history import verify_history
from test_fault_points import Logged

TRIALS = 16


@pytest.fixture
def search(tmp_path):
    """Start a search of two workers and a coordinator; returns what runs and a function that ends it."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "history").touch()
    started = []

    def start(url):
        evaluator = Logged(run, 0.1)
        started.append(driver.forked(driver.coordinate, url, run, TRIALS, "random", local=False, lease=1.0))
        started.extend(driver.forked(driver.work, url, run, evaluator, idle=9.0, lease=1.0) for _ in range(2))
        return run

    def finish(url):
        assert [driver.ended(pid) for pid in started] == [0, 0, 0]   # nobody died of the outage
        store = driver.store_of(url, run)
        assert verify_history(run, store, driver.OBJECTIVES, TRIALS) == []
        store.close()

    return start, finish


def finished(run):
    return (run / "history").read_bytes().count(b"finished")


def wait_for(run, count):
    while finished(run) < count:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 4.0])
def test_postgresql_is_down_for_a_while(postgresql, search, seconds):
    start, finish = search
    url = postgresql.create(f"outage{seconds}".replace(".", ""))
    run = start(url)
    for count in (2, 7):
        wait_for(run, count)
        postgresql.crash()
        try:
            time.sleep(seconds)
        finally:
            postgresql.start()
    finish(url)


@pytest.mark.slow
def test_the_folder_of_a_journal_is_gone_for_a_while(search, tmp_path):
    start, finish = search
    folder = tmp_path / "shared"
    folder.mkdir()
    url = f"journal:///{folder}/ledger"
    run = start(url)
    for count in (2, 7):
        wait_for(run, count)
        folder.rename(tmp_path / "away")
        time.sleep(1.0)
        (tmp_path / "away").rename(folder)
    finish(url)


@pytest.mark.slow
def test_the_proxy_is_restarted(tmp_path):
    """Optuna's own client loses the trial here: its worker dies and the trial stays RUNNING."""
    import socket
    import subprocess
    import sys

    run = tmp_path / "run"
    run.mkdir()
    (run / "history").touch()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = ("import optuna, warnings; warnings.simplefilter('ignore');"
            f"optuna.storages.run_grpc_proxy_server(optuna.storages.RDBStorage('sqlite:///{tmp_path}/db'),"
            f" host='127.0.0.1', port={port})")

    def serve():
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def search_here():   # gRPC and forks do not go together: one process of its own
        script = ("import sys; sys.path[:0] = sys.argv[1:3]; import shared_driver as d, test_fault_points as t;"
                  "d.coordinate(sys.argv[3], sys.argv[4], 6, 'random', evaluator=t.Logged(sys.argv[4], 0.1), "
                  "lease=4.0)")
        here = Path(__file__).parent
        return subprocess.Popen([sys.executable, "-c", script, str(here), str(here.parent / "search"),
                                 f"grpc://127.0.0.1:{port}", str(run)])

    server = serve()
    process = search_here()
    try:
        wait_for(run, 2)
        server.kill()
        server.wait()
        time.sleep(1.0)
        server = serve()
        assert process.wait(timeout=120) == 0
        store = driver.store_of(f"grpc://127.0.0.1:{port}", run)
        assert verify_history(run, store, driver.OBJECTIVES, 6) == []
        store.close()
    finally:
        process.kill()
        server.kill()
        server.wait()


def test_the_toy_evaluator_is_what_these_searches_evaluate(tmp_path):
    (tmp_path / "history").touch()
    from paretopress.spaces.policy import DENSE

    assert Logged(tmp_path)(DENSE).values == toys.ToyEvaluator()(DENSE).values
