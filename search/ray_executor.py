"""Evaluations in persistent Ray actors, on this machine or on a cluster.

Ray only carries policies and evaluations: proposals, records and retries stay with the driver. The evaluator, with
its calibration and its memory of compressed layers, enters the object store once; a worker fetches it when it starts.
Workers join when the cluster has room for them, so that an autoscaler may bring it; a node that is lost takes its
workers with it, and what they worked on is done again by others.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from paretopress.evaluators.evaluation import Evaluation
from paretopress.search.executors import (
    Evaluate,
    Outcome,
    add_import_paths,
    evaluate_safely,
    failed,
    from_payload,
    import_paths,
    timed_out,
    to_payload,
)
from paretopress.search.ray_connection import connect
from paretopress.search.tasks import Task
from paretopress.search.worker_resources import WorkerResources
from paretopress.spaces.errors import ConfigError, DiskError, ParetopressError, StorageError

_START_SECONDS = 120.0    # how long the first actor may take to load the evaluator
_ROOM_SECONDS = 600.0     # how long a cluster may have no room for a single worker: autoscalers take minutes
_STARTS_ALLOWED = 3       # actors in a row that may fail to start
_DEATHS_BLAMED = 2        # deaths on nodes that live on, after which a candidate is to blame
_DEATHS_ALLOWED = 4       # deaths in all


@dataclass
class _Job:
    number: int
    task: Task
    started: float = 0.0
    deaths: list[str] = field(default_factory=list)   # nodes


@dataclass
class _Slot:
    """One actor: starting, idle, or working."""

    actor: Any
    starting: Any
    node: str = ""
    reference: Any = None
    job: _Job | None = None


class _Evaluator:
    """The actor: holds the evaluator and evaluates one policy at a time."""

    def __init__(self, payload: bytes, threads: int, paths: list[str]) -> None:
        add_import_paths(paths)
        self._evaluate = from_payload(payload)   # Ray delivers our driver's bytes, as it delivered this class
        self._threads = threads

    def node(self) -> str:
        """Return the node's id, once the evaluator is loaded."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def evaluate(self, task: Task) -> tuple[Evaluation, float] | DiskError | StorageError:
        """Do one task; errors of the surroundings are returned, because Ray would wrap them."""
        import sys

        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self._threads)
        try:
            return evaluate_safely(self._evaluate, task)
        except (DiskError, StorageError) as error:
            return error


class RayExecutor:
    """Evaluates in `workers` Ray actors."""

    def __init__(
        self,
        evaluate: Evaluate,
        workers: int,
        address: str | None = None,
        timeout_seconds: float | None = None,
        threads: int = 1,
        resources: WorkerResources | None = None,
    ) -> None:
        """Connect to Ray, or start it, and start the actors; returns when the first one is ready.

        Args:
            evaluate: The evaluator; picklable. It is put into the object store once.
            workers: How many actors, at least 1.
            address: Of an existing cluster, or "auto" to find one. None uses the connection this process
                has, or else starts Ray on this machine and stops it in `close`.
            timeout_seconds: How long one evaluation may take; None sets no limit.
            threads: PyTorch threads of each evaluation.
            resources: What each actor takes of its node; by default one CPU per thread.

        Raises:
            ConfigError: `workers` is below 1 or more than the cluster can ever have room for, no cluster is at
                `address`, or the evaluator cannot be pickled or loaded.
        """
        if workers < 1:
            raise ConfigError(f"workers: {workers} is below 1")
        try:
            payload = to_payload(evaluate)
        except Exception as error:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
            raise ConfigError(f"the evaluator cannot be pickled: {type(error).__name__}: {error}") from None
        self._resources = resources or WorkerResources(threads)
        self._timeout = timeout_seconds
        self._threads = threads
        self._capacity = workers
        self._failed_starts = 0
        self._room_since = time.monotonic()
        self._queue: deque[_Job] = deque()
        self._finished: deque[Outcome] = deque()
        self._slots: list[_Slot] = []
        self._connection = connect(address, self._resources.of(workers))
        try:
            check_room(workers, self._resources)
            self._start(payload)
        except BaseException:
            self.close()
            raise

    def _start(self, payload: bytes) -> None:
        import ray

        self._payload = ray.put(payload)
        self._slots = [self._new_slot() for _ in range(self._capacity)]
        deadline = time.monotonic() + _START_SECONDS
        while not any(slot.starting is None for slot in self._slots):
            waiting = [slot.starting for slot in self._slots]
            ready, _ = ray.wait(waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise ConfigError(f"Ray did not start a worker in {_START_SECONDS:g} s")
            for slot in [slot for slot in self._slots if slot.starting in ready]:
                self._welcome(slot)

    def _new_slot(self) -> _Slot:
        import ray

        amounts = self._resources.amounts
        options = {
            "num_cpus": amounts.pop("CPU"), "num_gpus": amounts.pop("GPU", 0), "resources": amounts,
            "max_restarts": 0, "scheduling_strategy": "SPREAD",
        }
        actor = ray.remote(_Evaluator).options(**options).remote(self._payload, self._threads, import_paths())
        return _Slot(actor, actor.node.remote())

    def _welcome(self, slot: _Slot) -> None:
        """Take an actor in that has started, or another one in place of one that could not."""
        import ray

        try:
            slot.node = ray.get(slot.starting)
        except ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS_ALLOWED or isinstance(error, ray.exceptions.RayTaskError):
                raise ConfigError(f"a worker cannot load the evaluator: {_cause(error)}") from None
            if getattr(error, "actor_init_failed", False):
                raise ConfigError(f"a worker cannot load the evaluator: {_cause(error)}") from None
            self._replace(slot)
            return
        slot.starting = None
        self._failed_starts = 0

    def _replace(self, slot: _Slot) -> None:
        import ray

        if slot.starting is None:
            self._room_since = time.monotonic()
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(slot.actor)
        fresh = self._new_slot()
        slot.actor, slot.starting, slot.node, slot.job, slot.reference = fresh.actor, fresh.starting, "", None, None

    @property
    def capacity(self) -> int:
        """The number of actors."""
        return self._capacity

    @property
    def pending(self) -> int:
        """Submitted tasks that have not been returned."""
        busy = sum(slot.job is not None for slot in self._slots)
        return len(self._queue) + len(self._finished) + busy

    def submit(self, number: int, task: Task) -> None:
        """Hand a task to an idle actor, or queue it."""
        self._queue.append(_Job(number, task))
        self._dispatch()

    def _dispatch(self) -> None:
        for slot in self._slots:
            if self._queue and slot.starting is None and slot.job is None:
                slot.job = self._queue.popleft()
                slot.job.started = time.monotonic()
                slot.reference = slot.actor.evaluate.remote(slot.job.task)

    def next_result(self, timeout_seconds: float | None = None) -> Outcome | None:
        """Return the next finished evaluation. See `Executor.next_result`.

        Raises:
            ConfigError: Actors cannot load the evaluator.
            StorageError: The cluster has had no room for a single worker for ten minutes.
        """
        import ray

        if not self.pending:
            raise ValueError("nothing is pending")
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not self._finished:
            self._dispatch()
            watched = [slot.starting or slot.reference for slot in self._slots if slot.starting or slot.job]
            ready, _ = ray.wait(watched, num_returns=1, timeout=self._patience(deadline))
            for slot in [slot for slot in self._slots if slot.starting in ready]:
                self._welcome(slot)
            for slot in [slot for slot in self._slots if slot.job is not None and slot.reference in ready]:
                self._receive(slot)
            self._stop_overdue()
            self._check_room()
            if not self._finished and deadline is not None and time.monotonic() >= deadline:
                return None
        return self._finished.popleft()

    def _patience(self, deadline: float | None) -> float:
        ends = [self._room_since + _ROOM_SECONDS, time.monotonic() + _ROOM_SECONDS]
        ends += [] if deadline is None else [deadline]
        if self._timeout is not None:
            ends += [slot.job.started + self._timeout for slot in self._slots if slot.job]
        return max(0.0, min(ends) - time.monotonic())

    def _check_room(self) -> None:
        now = time.monotonic()
        if any(slot.starting is None for slot in self._slots):
            self._room_since = now
        elif now - self._room_since >= _ROOM_SECONDS:
            raise StorageError(f"the Ray cluster has had no room for a worker for {_ROOM_SECONDS:g} s")

    def _receive(self, slot: _Slot) -> None:
        import ray

        job, slot.job = slot.job, None
        reference, slot.reference = slot.reference, None
        assert job is not None
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._finish(job, failed(_cause(error)))
        except ray.exceptions.RayError:   # the actor, its node, or what it returned is gone
            self._bury(slot, job)
        else:
            if isinstance(result, ParetopressError):
                raise result
            evaluation, seconds = result
            self._finished.append(Outcome(job.number, evaluation, seconds))
        self._dispatch()

    def _bury(self, slot: _Slot, job: _Job) -> None:
        """Replace a dead actor; its job is tried once more, then failed. Deaths of whole nodes are not its fault."""
        job.deaths.append(slot.node)
        self._replace(slot)
        alive = living_nodes()
        blamed = sum(node in alive for node in job.deaths)
        if blamed < _DEATHS_BLAMED and len(job.deaths) < _DEATHS_ALLOWED:
            self._queue.appendleft(job)
        else:
            self._finish(job, failed("worker died (Ray actor)"))

    def _finish(self, job: _Job, evaluation: Evaluation) -> None:
        self._finished.append(Outcome(job.number, evaluation, time.monotonic() - job.started))

    def _stop_overdue(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if self._timeout is None or slot.job is None or now - slot.job.started < self._timeout:
                continue
            self._finish(slot.job, timed_out(self._timeout))
            self._replace(slot)

    def close(self) -> None:
        """Kill the actors, drop what is pending, and stop Ray where this executor started it."""
        import ray

        if ray.is_initialized():
            for slot in self._slots:
                with contextlib.suppress(ray.exceptions.RayError, ValueError):
                    ray.kill(slot.actor)
        self._connection.close()
        self._slots.clear()
        self._queue.clear()
        self._finished.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def living_nodes() -> set[str]:
    """Return the ids of the nodes that the cluster believes alive."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def check_room(workers: int, resources: WorkerResources) -> None:
    """Refuse more workers than the cluster has room for, or can get from its autoscaler. Raises `ConfigError`."""
    import ray
    from ray._private.state import state

    offered, promised = ray.cluster_resources(), state.get_max_resources_from_cluster_config() or {}
    for name, amount in resources.amounts.items():
        most = max(offered.get(name, 0.0), float(promised.get(name, 0)))
        if amount * workers > most + 1e-9:
            unit = f"{name}s" if name in ("CPU", "GPU") else name
            raise ConfigError(
                f"workers: {workers} need {amount * workers:g} {unit}, the Ray cluster has {most:g}"
            )


def _cause(error: BaseException) -> str:
    """Return one line that names the error under Ray's wrapping."""
    cause = getattr(error, "cause", None) or error.__cause__ or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip() if lines else ''}"
