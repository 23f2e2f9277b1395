"""Coordinators and workers of a shared toy search, as functions that tests run in processes to be killed."""

import contextlib
import gc
import os
import signal
import sys
import time
from pathlib import Path

import toy_evaluators as toys
from history import front_of

from paretopress.search.exploration import explore
from paretopress.search.ledger import Run
from paretopress.search.option_space import OptionSpace
from paretopress.search.outbox import Outbox
from paretopress.search.patience import Patience
from paretopress.search.process_executor import ProcessExecutor
from paretopress.search.process_identity import process_name
from paretopress.search.samplers import ExplorationSettings
from paretopress.search.shared_search import Mirroring, record_what_is_stored
from paretopress.search.storage_executor import Leadership, StorageExecutor
from paretopress.search.storage_worker import StorageWorker
from paretopress.search.storages.opening import open_store
from paretopress.search.storages.optuna_mirror import OptunaMirror
from paretopress.search.storages.storage_url import StorageUrl
from paretopress.search.storages.trial_store import Study
from paretopress.spaces.documents import write_atomic
from paretopress.spaces.policy import DENSE

OBJECTIVES = {"accuracy": "max", "size": "min"}
PRINTS = {"seed": "3", "model": "m", "space": "s"}
SEEDS = [DENSE]
LEASE = 2.0


def store_of(url, run):
    return open_store(StorageUrl.parse(url, Path(run)), "toy")


def study(objectives=None):
    return Study("toy", PRINTS, objectives or OBJECTIVES)


def log(run, word):
    """One line in the history, written by one call so that it is there whole or not at all."""
    descriptor = os.open(Path(run) / "history", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{word}\n".encode())
    os.close(descriptor)


def coordinate(url, run, trials, sampler="random", evaluator=None, local=True, mirrored=False, lease=LEASE,
               options=None, timeout=60.0, objectives=None):
    """Lead the search until it is complete, then write its front."""
    objectives = objectives or OBJECTIVES
    path = Path(run)
    path.mkdir(parents=True, exist_ok=True)
    options = options or toys.toy_options()
    store, name = store_of(url, run), process_name()
    patience = Patience(timeout)
    while patience.attempt(lambda: store.join(study(objectives)) or True) is None:
        time.sleep(0.05)
    leadership = Leadership(store, name, patience, lease)
    leadership.wait()
    settings = ExplorationSettings(sampler, trials, seed=3, population=8)
    mirror = None
    if mirrored:
        space = OptionSpace.of(options, model="m", space="s")
        mirror = OptunaMirror(StorageUrl.parse(url, path), "toy", objectives, space)
    mirroring = Mirroring(mirror, lambda _: None)
    with contextlib.ExitStack() as stack:
        run_ = stack.enter_context(Run.open(path, PRINTS, {"seed": 3}))
        worker = None
        if local:
            executor = ProcessExecutor(evaluator or toys.ToyEvaluator(budget=70.0), 1, tries=1, fork=True)
            stack.enter_context(executor)
            worker = StorageWorker(store, Outbox(path), executor, name, patience, lease_seconds=lease)
        with StorageExecutor(store, leadership, patience, worker, lease / 4) as shared:
            record_what_is_stored(shared, run_, objectives, ["size"])
            explore(options, objectives, SEEDS, shared, run_, settings, ["size"],
                    on_record=lambda _: mirroring.catch_up(run_.records()))
            mirroring.catch_up(run_.records(), now=True)
        if worker is not None:
            worker.wind_down(1.0)
        records = run_.records()
        write_atomic(path / "front.json", lambda stream: stream.write(front_of(records, objectives)))
        leadership.resign()
    log(run, "complete")


def work(url, run, evaluator=None, idle=1.0, lease=LEASE, timeout=60.0, outbox=None, slots=1, name=None):
    """Evaluate until nothing has been there to do for some seconds."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    store, patience = store_of(url, run), Patience(timeout)
    executor = ProcessExecutor(evaluator or toys.ToyEvaluator(budget=70.0), slots, tries=1, fork=True)
    worker = StorageWorker(store, Outbox(Path(outbox or run)), executor, name or process_name(), patience,
                           lease_seconds=lease)
    while patience.attempt(store.study) is None:   # nobody has begun the search yet, or the storage is away
        time.sleep(0.05)
    worker.recover()
    last = time.monotonic()
    try:
        while time.monotonic() - last < idle:
            if worker.step(0.1) or worker.busy:
                last = time.monotonic()
    finally:
        worker.wind_down(1.0)


def forked(action, *arguments, **options):
    """Run a function in a copy of this process; returns its number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        gc.freeze()   # what others left for the collector, such as channels of gRPC, is not for a copy to close
        code = 1
        try:
            action(*arguments, **options)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:  # noqa: BLE001 - the copy ends here whatever happens
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid):
    """The exit code of a process once it has ended, or minus the signal's number."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
