"""What a worker does with evaluations that crash, hang, fail or come late, and with storages that go away."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import shared_driver as driver

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.outbox import Outbox
from paretopress.search.patience import Patience
from paretopress.search.process_executor import ProcessExecutor
from paretopress.search.process_identity import process_name
from paretopress.search.storage_executor import proposal_of
from paretopress.search.storage_worker import StorageWorker
from paretopress.search.storages.result_text import read_result, result_text
from paretopress.search.storages.trial_store import Proposal, Result, Status, StorageUnavailable, Verdict
from paretopress.spaces.choices import Weights
from paretopress.spaces.errors import StorageError
from paretopress.spaces.policy import DENSE, Policy


class Faulty:
    """Does what is asked for, and says that it was asked."""

    def __init__(self, log, fault):
        self.log, self.fault = log, fault

    def tries(self):
        return Path(self.log).read_text().count("\n") if Path(self.log).exists() else 0

    def __call__(self, _policy):
        with Path(self.log).open("a") as stream:
            stream.write("try\n")
        match self.fault:
            case "kill" | "kill once":
                if self.fault == "kill" or self.tries() == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "raise" | "raise once":
                if self.fault == "raise" or self.tries() == 1:
                    raise KeyError("no such layer")
            case "slow":
                time.sleep(0.3)
            case "hang":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(600)
            case "memory":
                return Evaluation(State.COMPLETE, {"accuracy": float(len(bytearray(1 << 40)))})
            case "nan":
                return Evaluation(State.COMPLETE, {"accuracy": float("nan")})
        return Evaluation(State.COMPLETE, {"accuracy": 1.0})


@pytest.fixture
def begin(tmp_path):
    """See `beginning`."""
    with beginning(tmp_path) as start:
        yield start


@contextlib.contextmanager
def beginning(tmp_path):
    """A worker of a search with one trial; returns `(store, worker, evaluator)`."""
    made = []

    def start(fault="", kind="sqlite", lease=60.0, **options):
        store = driver.store_of(kind, tmp_path)
        store.join(driver.study({"accuracy": "max"}))
        store.enqueue(store.lead("coordinator", 600.0), [proposal_of(0, DENSE)])
        evaluator = Faulty(str(tmp_path / "log"), fault)
        executor = ProcessExecutor(evaluator, 1, tries=1, fork=True, **options)
        worker = StorageWorker(store, Outbox(tmp_path), executor, process_name(), Patience(5.0), lease_seconds=lease)
        made.append((store, executor))
        return store, worker, evaluator

    yield start
    for store, executor in made:
        executor.close()
        store.close()


def until_done(store, worker, number=0):
    for _ in range(200):
        worker.step(0.05)
        row, = store.trials([number])
        if row.status is Status.DONE and not worker.busy:
            return row, read_result(row.result, "row")[0]
    raise AssertionError(row)


@pytest.mark.parametrize("fault", ["kill once", "raise once"])
def test_what_fails_once_is_tried_again(begin, fault):
    store, worker, evaluator = begin(fault)
    row, evaluation = until_done(store, worker)
    assert (evaluation.state, row.failures, evaluator.tries()) == (State.COMPLETE, 1, 2)


@pytest.mark.parametrize(("fault", "words"), [
    ("kill", "worker died (signal 9)"), ("exit", "worker died (exit code 3)"), ("segfault", "worker died (signal 11)"),
    ("raise", "KeyError: 'no such layer'"),
])
def test_what_fails_twice_is_quarantined(begin, fault, words):
    store, worker, evaluator = begin(fault)
    row, evaluation = until_done(store, worker)
    assert (evaluation.state, row.failures, evaluator.tries()) == (State.FAILED, 2, 2)
    assert evaluation.reason == f"quarantined after 2 failures: {words}"
    assert ("no such layer" in evaluation.trace and "Traceback" in evaluation.trace) is (fault == "raise")


@pytest.mark.parametrize(("fault", "words", "options"), [
    ("hang", "timeout after 0.3 s", {"timeout_seconds": 0.3}),
    ("memory", "out of memory", {"memory_bytes": 1 << 36}),
    ("nan", "bad value: accuracy=nan", {}),
])
def test_what_another_try_would_not_mend_is_tried_once(begin, fault, words, options):
    store, worker, evaluator = begin(fault, **options)
    _, evaluation = until_done(store, worker)
    assert (evaluation.state, evaluator.tries()) == (State.FAILED, 1)
    assert words in evaluation.reason


def test_the_traceback_is_in_the_trial_s_record(tmp_path):
    evaluator = Faulty(str(tmp_path / "log"), "raise")
    driver.coordinate("sqlite", tmp_path / "run", 1, evaluator=evaluator, objectives={"accuracy": "max"})
    record = json.loads((tmp_path / "run" / "trials.jsonl").read_text())
    assert record["state"] == "FAIL"
    assert 'raise KeyError("no such layer")' in record["traceback"]
    from paretopress.search.ledger import read_run

    assert read_run(tmp_path / "run")[1][0].traceback == record["traceback"]


def test_a_policy_that_is_none_fails_without_being_evaluated(begin):
    store, worker, evaluator = begin()
    store.enqueue(1, [Proposal(1, '{"units":{"a/weights":{"weights":1e9}}}', "x"), Proposal(2, "{}", "wrong hash")])
    for number, words in ((1, "unreadable policy"), (2, "does not match its hash")):
        _, evaluation = until_done(store, worker, number)
        assert evaluation.state is State.FAILED
        assert words in evaluation.reason
    assert evaluator.tries() == 1   # trial 0


def test_a_result_that_was_committed_and_not_told_is_used(begin, tmp_path):
    """The first worker died between the commit and the tell; the second one does not evaluate again."""
    store, worker, evaluator = begin()
    claim = store.claim("elsewhere-1-dead", 0.0)
    text = result_text(Evaluation(State.COMPLETE, {"accuracy": 0.75}), 9.0)
    Outbox(tmp_path).commit(claim, text, failed=False)
    time.sleep(0.01)
    assert store.sweep() == 1
    row, evaluation = until_done(store, worker)
    assert (evaluation.values, evaluator.tries()) == ({"accuracy": 0.75}, 0)
    assert (tmp_path / "trials" / f"0-{claim.token}" / "result.json").exists()
    assert row.token == claim.token


def test_a_worker_that_was_stopped_for_too_long_goes_on_with_the_next_trial(begin, tmp_path):
    """Its lease lapsed, another worker has the trial: its late result is refused, and nothing else happens."""
    store, worker, evaluator = begin("slow")
    while not evaluator.tries():
        worker.step(0.01)
    store._database.run(lambda run: run.count("UPDATE paretopress_trials SET lease_until = 0", {}))
    assert store.sweep() == 1
    other = store.claim("other", 60.0)
    store.enqueue(1, [proposal_of(1, Policy.of({"a/weights": Weights(8)}))])
    until_done(store, worker, 1)
    assert store.trials([0])[0].owner == "other"
    assert [one.result.number for one in Outbox(tmp_path).waiting()] == [0]
    text = result_text(Evaluation(State.COMPLETE, {"accuracy": 1.0}), 2.0)
    assert store.tell(Result(0, other.token, text)) is Verdict.ACCEPTED
    worker.recover()
    worker.step(0.0)
    assert list((tmp_path / "outbox").iterdir()) == []
    assert store.trials([0])[0].result == text


class Flaky:
    """A storage that is away when it is told to be."""

    def __init__(self, store):
        self.store, self.away = store, False

    def __getattr__(self, name):
        found = getattr(self.store, name)

        def call(*arguments, **options):
            if self.away:
                raise StorageUnavailable("storage: away")
            return found(*arguments, **options)

        return call


def test_while_the_storage_is_away_results_wait_in_the_outbox(begin, tmp_path):
    store, worker, evaluator = begin("slow")
    flaky = worker._store = Flaky(store)
    warnings = []
    worker._patience = Patience(60.0, warnings.append)
    while not evaluator.tries():
        worker.step(0.01)
    flaky.away = True
    for _ in range(20):
        worker.step(0.05)
    assert [one.result.number for one in Outbox(tmp_path).waiting()] == [0]
    assert store.trials([0])[0].status is Status.RUNNING
    assert warnings == ["storage: away; going on without it, results are kept on disk"]
    store._database.run(lambda run: run.count("UPDATE paretopress_trials SET lease_until = 0", {}))
    assert store.sweep() == 1          # whoever sees the storage first on its return
    flaky.away = False
    _, evaluation = until_done(store, worker)
    assert (evaluation.values, evaluator.tries()) == ({"accuracy": 1.0}, 1)
    assert warnings[1:] == ["the storage answers again"]
    assert list((tmp_path / "outbox").iterdir()) == []


def test_patience_ends(monkeypatch):
    now = [0.0]
    patience = Patience(10.0, clock=lambda: now[0])

    def away():
        raise StorageUnavailable("storage: away")

    tried = []

    def wait():
        while now[0] < 100.0:
            patience.attempt(lambda: (tried.append(now[0]), away()))
            now[0] += 0.05

    with pytest.raises(StorageError, match=r"for 1[0-9] s; results are kept in the outbox"):
        wait()
    assert 10.0 <= now[0] <= 15.0
    assert 5 < len(tried) < 20   # ever less often


def test_a_signal_gives_back_what_takes_long(tmp_path):
    store = driver.store_of("sqlite", tmp_path)
    store.join(driver.study({"accuracy": "max"}))
    store.enqueue(store.lead("coordinator", 600.0), [proposal_of(0, DENSE)])
    evaluator = Faulty(str(tmp_path / "log"), "hang")
    process = worker_of_its_own(tmp_path, evaluator)
    try:
        while not evaluator.tries():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60.0) == 143     # with an evaluation that ends only when it is killed
    finally:
        process.kill()
    row, = store.trials([0])
    assert (row.status, row.owner, row.losses) == (Status.WAITING, None, 0)
    assert store.workers() == []
    store.close()


def worker_of_its_own(run, evaluator):
    """A worker in a new process: a copy of this one may hold what other tests' native libraries left behind."""
    code = ("import sys; sys.path[:0] = sys.argv[1:3]; import shared_driver as d, test_storage_worker as t;"
            "d.work('sqlite', sys.argv[3], t.Faulty(sys.argv[4], sys.argv[5]), idle=60.0, lease=60.0)")
    here = Path(__file__).parent
    return subprocess.Popen([sys.executable, "-c", code, str(here), str(here.parent / "search"), str(run),
                             str(evaluator.log), evaluator.fault])


def test_names_of_processes():
    from paretopress.search.process_identity import is_known_dead

    name = process_name()
    assert name != process_name()
    assert not is_known_dead(name)
    pid = driver.forked(lambda: sys.exit(0))
    child = name.replace(f"-{os.getpid()}-", f"-{pid}-")
    driver.ended(pid)
    assert is_known_dead(child)
    assert not is_known_dead("elsewhere" + child)
    assert not is_known_dead("no name")
