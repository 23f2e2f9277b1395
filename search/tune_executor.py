"""Evaluations as trials of Ray Tune, for those who want its callbacks, its schedulers and its result folders.

The search is the same as everywhere: the driver proposes and records, and `DriverSearch` (`tune_search.py`) is a
searcher that hands Tune what the driver submits. So nothing is lost of what Tune's own `OptunaSearch` loses (measured
on Ray 2.60): an evaluation comes back whole, with its constraints; a value that is not finite is a failed trial, not
one that runs for ever; and what a scheduler stopped early is screened, never complete. One Tune trial is one policy in
a reused actor; other tasks, hundreds of small ones, are done by plain actors (`ray_executor.py`) before.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ray import tune

from paretopress.search.executors import Evaluate, Outcome, import_paths, to_payload
from paretopress.search.ray_connection import connect
from paretopress.search.ray_executor import RayExecutor, check_room
from paretopress.search.tasks import Task
from paretopress.search.tune_search import DriverSearch, StopWhenFinished
from paretopress.search.tune_trainable import RUNG_METRIC, StagedEvaluation
from paretopress.search.worker_resources import WorkerResources
from paretopress.spaces.errors import ConfigError, ParetopressError, unknown_name
from paretopress.spaces.policy import Policy

SCHEDULERS = ("fifo", "asha")
_STAGES = 2


class TuneExecutor:
    """Evaluates policies in `workers` trials of one Tune experiment at a time."""

    def __init__(
        self,
        evaluate: Evaluate,
        workers: int,
        address: str | None = None,
        resources: WorkerResources | None = None,
        storage: Path | str | None = None,
        scheduler: str = "fifo",
        callbacks: Sequence[Any] = (),
    ) -> None:
        """Connect to Ray, or start it; Tune starts with the first policy.

        Args:
            evaluate: The evaluator; picklable. One that has `stages` reports after each, so that a scheduler may stop
                it between.
            workers: How many trials run at the same time, at least 1.
            address: As for `RayExecutor`.
            resources: What each trial takes of its node.
            storage: Where Tune writes its results, a folder or a URI that all nodes see; None for a temporary one.
            scheduler: `"fifo"`, or `"asha"`: the half of the candidates that diverges more is not scored.
            callbacks: Of type `ray.tune.Callback`.

        Raises:
            ConfigError: As for `RayExecutor`, or an unknown scheduler.
        """
        if workers < 1:
            raise ConfigError(f"workers: {workers} is below 1")
        if scheduler not in SCHEDULERS:
            raise ConfigError(unknown_name("scheduler", scheduler, SCHEDULERS))
        try:
            self._payload = to_payload(evaluate)
        except Exception as error:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
            raise ConfigError(f"the evaluator cannot be pickled: {type(error).__name__}: {error}") from None
        self._evaluate = evaluate
        self._capacity = workers
        self._resources = resources or WorkerResources()
        self._scheduler = scheduler
        self._callbacks = list(callbacks)
        self._temporary = Path(tempfile.mkdtemp(prefix="paretopress-tune-")) if storage is None else None
        self._storage = str(self._temporary or storage)
        self._tune: _Experiment | None = None
        self._actors: RayExecutor | None = None
        try:
            self._connection = connect(address, self._resources.of(workers))
        except BaseException:
            self._remove_temporary()
            raise
        try:
            check_room(workers, self._resources)
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> int:
        """How many trials run at the same time."""
        return self._capacity

    @property
    def pending(self) -> int:
        """Submitted tasks that have not been returned."""
        return (self._tune.pending if self._tune else 0) + (self._actors.pending if self._actors else 0)

    def submit(self, number: int, task: Task) -> None:
        """Make a policy the next trial; another task goes to a plain actor.

        Raises:
            ValueError: Tasks of the other kind are pending: both kinds of workers would wait for the same processors.
        """
        if isinstance(task, Policy):
            self._with_tune().submit(number, task)
        else:
            self._with_actors().submit(number, task)

    def next_result(self, timeout_seconds: float | None = None) -> Outcome | None:
        """Return the next finished evaluation. See `Executor.next_result`.

        Raises:
            ConfigError: Trials cannot load the evaluator.
            ParetopressError: Tune ended by itself; the message says why.
        """
        if not self.pending:
            raise ValueError("nothing is pending")
        if self._actors is not None and self._actors.pending:
            return self._actors.next_result(timeout_seconds)
        assert self._tune is not None
        return self._tune.next_result(timeout_seconds)

    def _with_tune(self) -> _Experiment:
        if self._actors is not None:
            if self._actors.pending:
                raise ValueError("a policy while other tasks are pending")
            self._actors.close()
            self._actors = None
        if self._tune is None:
            trainable = tune.with_parameters(StagedEvaluation, payload=self._payload, paths=import_paths())
            self._tune = _Experiment(self._tuner(trainable))
        return self._tune

    def _with_actors(self) -> RayExecutor:
        if self._tune is not None:
            if self._tune.pending:
                raise ValueError("another task while policies are pending")
            self._tune.close()
            self._tune = None
        if self._actors is None:
            self._actors = RayExecutor(self._evaluate, self._capacity, resources=self._resources)
        return self._actors

    def _tuner(self, trainable: Any) -> Callable[[DriverSearch], tune.Tuner]:  # noqa: ANN401 - Ray's class of the moment
        def make(search: DriverSearch) -> tune.Tuner:
            amounts = self._resources.amounts
            return tune.Tuner(
                tune.with_resources(trainable, amounts),
                tune_config=tune.TuneConfig(
                    search_alg=search, num_samples=-1, max_concurrent_trials=self._capacity, reuse_actors=True,
                    scheduler=_scheduler(self._scheduler),
                ),
                run_config=tune.RunConfig(
                    name=f"search-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
                    storage_path=self._storage,
                    failure_config=tune.FailureConfig(max_failures=1),
                    callbacks=self._callbacks,
                    stop=StopWhenFinished(search),
                    verbose=0,
                ),
            )

        return make

    def close(self) -> None:
        """End the trials, and Ray where this executor started it."""
        for engine in (self._tune, self._actors):
            if engine is not None:
                engine.close()
        self._tune = self._actors = None
        self._connection.close()
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _scheduler(name: str) -> Any:  # noqa: ANN401 - Tune's schedulers have no common public type here
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    if name == "fifo":
        return FIFOScheduler()
    return AsyncHyperBandScheduler(
        metric=RUNG_METRIC, mode="min", time_attr="training_iteration", max_t=_STAGES, grace_period=1,
        reduction_factor=2,
    )


class _Experiment:
    """One `Tuner.fit` in a thread of its own, fed through its searcher."""

    def __init__(self, make: Callable[[DriverSearch], tune.Tuner]) -> None:
        self._search = DriverSearch()
        self._make = make
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tune", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        return self._search.pending

    def submit(self, number: int, policy: Policy) -> None:
        self._search.submit(number, policy)

    def next_result(self, timeout_seconds: float | None) -> Outcome | None:
        deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            alive = self._thread.is_alive()
            with contextlib.suppress(queue.Empty):
                return self._search.take(max(0.0, min(1.0, deadline - time.monotonic())))
            if not alive:
                raise ParetopressError(f"Ray Tune ended: {_one_line(self._end)}")
            if time.monotonic() >= deadline:
                return None

    def close(self) -> None:
        self._search.finish()
        self._thread.join()

    def _run(self) -> None:
        # Signals are the driver's, and so is stdout; screened candidates have no divergence.
        settings = ("TUNE_DISABLE_SIGINT_HANDLER", "1"), ("RAY_AIR_NEW_OUTPUT", "0"), (
            "TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
        for name, value in settings:
            os.environ.setdefault(name, value)
        try:
            self._make(self._search).fit()
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for a result
            self._end = error


def _one_line(error: BaseException | None) -> str:
    if error is None:
        return "it ran out of trials"
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
