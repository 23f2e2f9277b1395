"""A worker that joins a shared search from anywhere: it prepares the same problem and evaluates what it claims."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from paretopress.evaluators.data import Data
from paretopress.search.executors import torch_threads
from paretopress.search.observer import Observer, Silent
from paretopress.search.outbox import Outbox
from paretopress.search.patience import Patience
from paretopress.search.preparation import prepare_evaluator
from paretopress.search.problem import prepare_problem
from paretopress.search.process_identity import process_name
from paretopress.search.session import THREADS, version_fingerprint
from paretopress.search.shared_search import WIND_DOWN_SECONDS, Sharing
from paretopress.search.storage_worker import StorageWorker
from paretopress.search.storages.opening import open_store
from paretopress.search.storages.storage_url import StorageUrl
from paretopress.search.storages.trial_store import Study, TrialStore
from paretopress.search.stored_settings import settings_from_plain
from paretopress.search.workload import Workload
from paretopress.spaces.errors import ConfigError, InterruptedSearch, unknown_name

_STEP_SECONDS = 0.25    # how often `should_stop` is looked at


def join_search(
    model: nn.Module,
    data: Data,
    sharing: Sharing,
    run: Path,
    *,
    study: str | None = None,
    workers: int = 1,
    idle_seconds: float = 300.0,
    observer: Observer | None = None,
) -> int:
    """Evaluate trials of a shared search until there is nothing to do for a while.

    Args:
        model: The dense model, the coordinator's.
        data: The coordinator's data.
        sharing: The storage.
        run: A directory for the outbox: the run directory where its file system is shared, any other else.
        study: Which search of the storage, the name of the coordinator's run directory; None: the only one.
        workers: How many trials at a time, each in a process of its own.
        idle_seconds: How long to wait without anything to do.
        observer: Hears about progress; `should_stop()` of it ends the work: what is under way is finished within
            seconds or given back.

    Returns:
        How many trials were evaluated.

    Raises:
        ConfigError: The storage has no such search, or it was made with another model, data, space, profile, seed or
            version; the message names which.
        StorageError: The storage has been away for too long.
        InterruptedSearch: The observer wanted to stop.
    """
    watcher: Observer = observer or Silent()
    patience = Patience(sharing.storage_timeout, watcher.warning)
    url = StorageUrl.parse(sharing.storage, run)
    joined = _find(url, study)
    store = open_store(url, joined.name)
    try:
        watcher.stage("capture", None)
        settings = settings_from_plain(joined.settings, str(url))
        problem = prepare_problem(model, data, settings)
        fingerprints = {**problem.fingerprints(), "versions": version_fingerprint()}
        if "library" in joined.fingerprints:   # where the coordinator starts from: no business of an evaluation
            fingerprints["library"] = joined.fingerprints["library"]
        store.join(Study(joined.name, fingerprints, problem.objectives, joined.settings))
        with torch_threads(THREADS), torch.random.fork_rng(devices=[]):
            evaluator = prepare_evaluator(problem, watcher)
            with sharing.processes(Workload.of(problem, evaluator), workers) as processes:
                worker = StorageWorker(
                    store, Outbox(run), processes, process_name(), patience,
                    lease_seconds=sharing.lease_seconds, message=watcher.message,
                )
                watcher.stage("evaluate", None)
                work(worker, watcher, idle_seconds)
    finally:
        store.close()
    stop: Callable[[], bool] = getattr(watcher, "should_stop", lambda: False)
    if stop():
        code = getattr(watcher, "exit_code", 130)
        raise InterruptedSearch(f"stopped after {worker.evaluated} trials; the others go on", code)
    return worker.evaluated


def work(worker: StorageWorker, observer: Observer, idle_seconds: float) -> None:
    """Let a worker work until it is idle for long, or the observer wants to stop; it leaves in order either way."""
    stop: Callable[[], bool] = getattr(observer, "should_stop", lambda: False)
    last = time.monotonic()
    worker.recover()
    try:
        while not stop() and time.monotonic() - last < idle_seconds:
            told = worker.step(_STEP_SECONDS)
            observer.advance(len(told))
            if told or worker.busy:
                last = time.monotonic()
    finally:
        worker.wind_down(WIND_DOWN_SECONDS)


def _find(url: StorageUrl, name: str | None) -> Study:
    """The study to join. Raises `ConfigError`."""
    if url.path is not None and not url.path.exists():
        raise ConfigError(f"{url}: there is no such file; start the search first: paretopress search ... --storage URL")
    store: TrialStore = open_store(url, name or "")
    try:
        names = store.studies()
    finally:
        store.close()
    if name is None:
        if len(names) != 1:
            found = f"has {len(names)} searches: {', '.join(names[:8])}; choose with --study" if names else \
                "has no search yet; start it first: paretopress search ... --storage URL"
            raise ConfigError(f"{url} {found}")
        name = names[0]
    if name not in names:
        raise ConfigError(f"{url}: {unknown_name('study', name, names)}")
    store = open_store(url, name)
    try:
        found_study = store.study()
    finally:
        store.close()
    assert found_study is not None
    return found_study
