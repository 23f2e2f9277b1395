"""Evaluations in persistent Ray actors, on this machine or on a cluster.

Ray only carries policies and evaluations: proposals, records and retries stay with the driver. A local
instance listens on the loopback address alone, without dashboard and without usage statistics.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from paretopress.evaluators.evaluation import Evaluation
from paretopress.search.executors import Evaluate, Outcome, evaluate_safely, failed, from_payload, timed_out, to_payload
from paretopress.search.tasks import Task
from paretopress.spaces.errors import ConfigError, DiskError, ParetopressError, StorageError

_START_SECONDS = 120.0    # how long an actor may take to load the evaluator
_ANSWER_SECONDS = 5.0     # how long a cluster may take to answer at all
_FRAME_HEADER = 9         # bytes of HTTP/2: length (3), type, flags, stream (4)
_SETTINGS = 4


@dataclass
class _Job:
    number: int
    task: Task
    deaths: int = 0
    started: float = 0.0


@dataclass
class _Slot:
    """One actor and what it works on."""

    actor: Any
    reference: Any = None
    job: _Job | None = None


class _Evaluator:
    """The actor: holds the evaluator and evaluates one policy at a time."""

    def __init__(self, payload: bytes, threads: int) -> None:
        self._evaluate = from_payload(payload)   # Ray delivers our driver's bytes, as it delivered this class
        self._threads = threads

    def ready(self) -> bool:
        """Return True once the evaluator is loaded."""
        return True

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
    """Evaluates in `workers` Ray actors of one CPU per thread."""

    def __init__(
        self,
        evaluate: Evaluate,
        workers: int,
        address: str | None = None,
        timeout_seconds: float | None = None,
        threads: int = 1,
    ) -> None:
        """Connect to Ray, or start it, and start the actors.

        Args:
            evaluate: The evaluator; picklable. It is put into the object store once.
            workers: How many actors, at least 1.
            address: Of an existing cluster, or "auto" to find one. None uses the connection this process
                has, or else starts Ray on this machine and stops it in `close`.
            timeout_seconds: How long one evaluation may take; None sets no limit.
            threads: PyTorch threads, and Ray CPUs, of each evaluation.

        Raises:
            ConfigError: `workers` is below 1 or more than the cluster's CPUs, no cluster is at `address`,
                or the evaluator cannot be pickled or loaded.
        """
        if workers < 1:
            raise ConfigError(f"workers: {workers} is below 1")
        try:
            payload = to_payload(evaluate)
        except Exception as error:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
            raise ConfigError(f"the evaluator cannot be pickled: {type(error).__name__}: {error}") from None
        self._owned = _connect(address, workers * threads)
        self._timeout = timeout_seconds
        self._threads = threads
        self._capacity = workers
        self._queue: deque[_Job] = deque()
        self._finished: deque[Outcome] = deque()
        self._slots: list[_Slot] = []
        try:
            self._start(payload)
        except BaseException:
            self.close()
            raise

    def _start(self, payload: bytes) -> None:
        import ray

        offered = int(ray.cluster_resources().get("CPU", 0))
        if self._capacity * self._threads > offered:
            needed = self._capacity * self._threads
            raise ConfigError(f"workers: {self._capacity} need {needed} CPUs, the Ray cluster has {offered}")
        self._payload = ray.put(payload)
        self._slots = [_Slot(self._actor()) for _ in range(self._capacity)]
        waiting = [slot.actor.ready.remote() for slot in self._slots]
        try:
            ray.get(waiting, timeout=_START_SECONDS)
        except ray.exceptions.GetTimeoutError:
            raise ConfigError(f"Ray did not start {self._capacity} workers in {_START_SECONDS:g} s") from None
        except ray.exceptions.RayError as error:
            raise ConfigError(f"a worker cannot load the evaluator: {_cause(error)}") from None

    def _actor(self) -> Any:  # noqa: ANN401 - Ray makes the handle's class at run time
        import ray

        options = {"num_cpus": self._threads, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        return ray.remote(_Evaluator).options(**options).remote(self._payload, self._threads)

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
            if self._queue and slot.job is None:
                slot.job = self._queue.popleft()
                slot.job.started = time.monotonic()
                slot.reference = slot.actor.evaluate.remote(slot.job.task)

    def next_result(self, timeout_seconds: float | None = None) -> Outcome | None:
        """Return the next finished evaluation. See `Executor.next_result`."""
        import ray

        if not self.pending:
            raise ValueError("nothing is pending")
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not self._finished:
            self._dispatch()
            references = [slot.reference for slot in self._slots if slot.job is not None]
            ready, _ = ray.wait(references, num_returns=1, timeout=self._patience(deadline))
            for slot in [slot for slot in self._slots if slot.reference in ready]:
                self._receive(slot)
            self._stop_overdue()
            if not self._finished and deadline is not None and time.monotonic() >= deadline:
                return None
        return self._finished.popleft()

    def _patience(self, deadline: float | None) -> float | None:
        ends = [] if deadline is None else [deadline]
        if self._timeout is not None:
            ends += [slot.job.started + self._timeout for slot in self._slots if slot.job]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _receive(self, slot: _Slot) -> None:
        import ray

        job, slot.job = slot.job, None
        reference, slot.reference = slot.reference, None
        assert job is not None
        try:
            result = ray.get(reference)
        except ray.exceptions.RayActorError:
            self._bury(slot, job)
        except ray.exceptions.RayError as error:
            self._finish(job, failed(_cause(error)))
        else:
            if isinstance(result, ParetopressError):
                raise result
            evaluation, seconds = result
            self._finished.append(Outcome(job.number, evaluation, seconds))
        self._dispatch()

    def _bury(self, slot: _Slot, job: _Job) -> None:
        """Replace a dead actor; its job is tried once more, then failed."""
        slot.actor = self._actor()
        job.deaths += 1
        if job.deaths == 1:
            self._queue.appendleft(job)
        else:
            self._finish(job, failed("worker died (Ray actor)"))

    def _finish(self, job: _Job, evaluation: Evaluation) -> None:
        self._finished.append(Outcome(job.number, evaluation, time.monotonic() - job.started))

    def _stop_overdue(self) -> None:
        import ray

        now = time.monotonic()
        for slot in self._slots:
            if self._timeout is None or slot.job is None or now - slot.job.started < self._timeout:
                continue
            self._finish(slot.job, timed_out(self._timeout))
            ray.kill(slot.actor)
            slot.actor, slot.job, slot.reference = self._actor(), None, None

    def close(self) -> None:
        """Kill the actors, drop what is pending, and stop Ray where this executor started it."""
        import ray

        if ray.is_initialized():
            for slot in self._slots:
                ray.kill(slot.actor)
            if self._owned:
                ray.shutdown()
        self._owned = False
        self._slots.clear()
        self._queue.clear()
        self._finished.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _connect(address: str | None, cpus: int) -> bool:
    """Connect to Ray; return whether this call made the connection, so that `close` ends it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if ray.is_initialized():
        return False
    if address is not None:
        _check_reachable(address)
    try:
        if address is None:
            _start_on_loopback(cpus)
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, OSError, TimeoutError) as error:
        raise _unreachable(address or "this machine", error) from None
    return True


def _unreachable(address: str, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return ConfigError(f"cannot connect to Ray at {address}: {reason}")


def _check_reachable(address: str) -> None:
    """Refuse at once an address where no Ray listens; Ray itself would try, and print, for minutes."""
    place = address
    try:
        place = _resolve(address)
        host, _, port = place.removeprefix("ray://").rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS) as connection:
            answers = _speaks_grpc(connection)
    except (OSError, OverflowError) as error:
        raise _unreachable(place if address == "auto" else address, error) from None
    if not answers:
        raise ConfigError(f"cannot connect to Ray at {address}: something else listens at {place}")


def _resolve(address: str) -> str:
    """Return what Ray connects to: `auto` found, this machine's names replaced by its address in the network."""
    from ray._private.services import canonicalize_bootstrap_address

    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"Ray address {address!r}: expected HOST:PORT or 'auto'")
    return address if address.startswith("ray://") else str(canonicalize_bootstrap_address(address))


def _speaks_grpc(connection: socket.socket) -> bool:
    """Whether the other side opens HTTP/2 with a SETTINGS frame (RFC 9113, section 3.4), as every gRPC server does."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("0", "false", ""):
        return True   # encrypted: only Ray itself can tell
    preface, no_settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\4\0\0\0\0\0"
    connection.sendall(preface + no_settings)
    answer = b""
    while len(answer) < _FRAME_HEADER:
        received = connection.recv(_FRAME_HEADER - len(answer))
        if not received:
            return False
        answer += received
    return answer[3] == _SETTINGS


def _start_on_loopback(cpus: int) -> None:
    """Start Ray on 127.0.0.1 alone.

    Ray 2.60 replaces a loopback `_node_ip_address` by the machine's address and then listens on every
    interface, unless this constant (off by default on macOS and Windows) says that no cluster is wanted.
    """
    import ray
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _cause(error: BaseException) -> str:
    """Return one line that names the error under Ray's wrapping."""
    cause = getattr(error, "cause", None) or error.__cause__ or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip() if lines else ''}"
