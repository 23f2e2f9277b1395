"""Evaluations in persistent worker processes on this machine.

Workers are fresh interpreters connected by a socket pair: nothing is forked, nothing listens, nothing
goes through files, and the user's main script is not run again in them. The evaluator is sent once per
worker. A worker that dies is replaced and its policy tried once more; one that hangs is killed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Self

from paretopress.search.executors import Evaluate, Outcome, failed, timed_out, to_payload
from paretopress.search.forked_process import ForkedProcess
from paretopress.search.tasks import Task
from paretopress.search.worker import main
from paretopress.spaces.errors import ConfigError, ParetopressError
from paretopress.spaces.policy import Policy

_START = "from paretopress.search.worker import main; main({descriptor}, {parent}, {threads}, {memory})"
SECRETS = ("PARETOPRESS_STORAGE", "PGPASSWORD", "PGPASSFILE")   # no business of what evaluates
_STARTS_ALLOWED = 3     # workers that may die in a row before one of them is ready
_KILLED = "signal 9"    # what a system short of memory does


@dataclass
class _Job:
    number: int
    task: Task
    deaths: int = 0


@dataclass(frozen=True)
class _Start:
    """How workers are started: with the evaluator as bytes, or by fork with the evaluator itself."""

    payload: bytes
    threads: int
    memory: int | None
    forked: Evaluate | None = None

    def process(self, descriptor: int) -> subprocess.Popen[bytes] | ForkedProcess:
        """Start one that serves the connection `descriptor`."""
        parent = os.getpid()
        if self.forked is not None:
            return ForkedProcess(lambda: main(descriptor, parent, self.threads, self.memory, self.forked), descriptor)
        code = _START.format(descriptor=descriptor, parent=parent, threads=self.threads, memory=self.memory)
        environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
        count = str(self.threads)
        return subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            env={**environment, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count},
        )


class _Worker:
    """One worker process, its connection, and the task it works on."""

    def __init__(self, start: _Start) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = start.process(theirs.fileno())
        self.connection = Connection(ours.detach())
        self.ready = False
        self.job: _Job | None = None
        self.started = 0.0
        self._payload = start.payload

    def load(self) -> None:
        """Send the evaluator; called once the worker listens, so that workers start side by side."""
        self._send(pickle.dumps(list(sys.path)))
        self._send(self._payload)

    def _send(self, message: bytes) -> None:
        # Where the worker is dead, the driver sees the end of its connection and deals with it there.
        with contextlib.suppress(OSError):
            self.connection.send_bytes(message)

    def start(self, job: _Job) -> None:
        """Give the worker a job."""
        self.job = job
        self.started = time.monotonic()
        self._send(pickle.dumps((job.number, job.task)))

    def stop(self) -> None:
        """End the process, at once."""
        self.connection.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def last_words(self) -> str:
        """Return how the process ended, once its connection has closed."""
        try:
            code = self.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "closed its connection"
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _is_limited(worker: _Worker) -> bool:
    """Whether a worker does what has a time limit: finalists take their own time."""
    return worker.job is not None and isinstance(worker.job.task, Policy)


class ProcessExecutor:
    """Evaluates in `workers` processes on this machine."""

    def __init__(
        self,
        evaluate: Evaluate,
        workers: int,
        timeout_seconds: float | None = None,
        threads: int = 1,
        *,
        memory_bytes: int | None = None,
        tries: int = 2,
        fork: bool = False,
    ) -> None:
        """Start the workers; they get ready while the first policies queue.

        Args:
            evaluate: The evaluator; picklable.
            workers: How many processes, at least 1.
            timeout_seconds: How long the evaluation of a policy may take; None sets no limit.
            threads: PyTorch threads of each evaluation.
            memory_bytes: Address space that a worker may take; None sets no limit.
            tries: How often a policy whose worker dies is tried; other tasks are tried twice.
            fork: Start workers as copies of this process, which takes milliseconds; only where no library has
                started threads yet.

        Raises:
            ConfigError: `workers` is below 1, or the evaluator cannot be pickled.
        """
        if workers < 1:
            raise ConfigError(f"workers: {workers} is below 1")
        try:
            payload = b"" if fork else to_payload(evaluate)
        except Exception as error:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
            raise ConfigError(f"the evaluator cannot be pickled: {type(error).__name__}: {error}") from None
        self._start = _Start(payload, threads, memory_bytes, evaluate if fork else None)
        self._tries = tries
        self._timeout = timeout_seconds
        self._queue: deque[_Job] = deque()
        self._finished: deque[Outcome] = deque()
        self._failed_starts = 0
        self._workers = [_Worker(self._start) for _ in range(workers)]
        self._capacity = workers

    @property
    def capacity(self) -> int:
        """The number of workers."""
        return self._capacity

    @property
    def pending(self) -> int:
        """Submitted tasks that have not been returned."""
        busy = sum(worker.job is not None for worker in self._workers)
        return len(self._queue) + len(self._finished) + busy

    def submit(self, number: int, task: Task) -> None:
        """Hand a task to an idle worker, or queue it."""
        self._queue.append(_Job(number, task))
        self._dispatch()

    def next_result(self, timeout_seconds: float | None = None) -> Outcome | None:
        """Return the next finished evaluation. See `Executor.next_result`.

        Raises:
            ConfigError: The workers cannot load the evaluator.
            ParetopressError: Workers die again and again before they are ready.
        """
        if not self.pending:
            raise ValueError("nothing is pending")
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not self._finished:
            self._dispatch()
            remaining = self._patience(deadline)
            ready = wait([worker.connection for worker in self._workers], remaining)
            for worker in [worker for worker in self._workers if worker.connection in ready]:
                self._receive(worker)
            self._stop_overdue()
            if not self._finished and deadline is not None and time.monotonic() >= deadline:
                return None
        return self._finished.popleft()

    def _dispatch(self) -> None:
        for worker in self._workers:
            if self._queue and worker.ready and worker.job is None:
                worker.start(self._queue.popleft())

    def _patience(self, deadline: float | None) -> float | None:
        ends = [] if deadline is None else [deadline]
        if self._timeout is not None:
            ends += [worker.started + self._timeout for worker in self._workers if _is_limited(worker)]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _receive(self, worker: _Worker) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        match message:
            case ("hello",):
                worker.load()
            case ("ready",):
                worker.ready = True
                self._failed_starts = 0
            case ("done", number, evaluation, seconds):
                worker.job = None
                self._finished.append(Outcome(number, evaluation, seconds))
            case ("raise", error):
                worker.job = None
                raise error
            case ("unloadable", text):
                raise ConfigError(f"a worker cannot load the evaluator: {text}")
        self._dispatch()

    def _bury(self, worker: _Worker) -> None:
        """Replace a dead worker; its task is tried again, once by default, then failed."""
        words, job = worker.last_words(), worker.job
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS_ALLOWED:
                hint = " for lack of memory, most likely: give fewer workers" if words == _KILLED else ""
                raise ParetopressError(f"worker processes die before they are ready ({words}){hint}")
        self._replace(worker)
        if job is None:
            return
        job.deaths += 1
        if job.deaths < (self._tries if isinstance(job.task, Policy) else 2):
            self._queue.appendleft(job)
        else:
            seconds = time.monotonic() - worker.started
            self._finished.append(Outcome(job.number, failed(f"worker died ({words})"), seconds))

    def _stop_overdue(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            if self._timeout is None or not _is_limited(worker) or now - worker.started < self._timeout:
                continue
            assert worker.job is not None
            self._finished.append(Outcome(worker.job.number, timed_out(self._timeout), now - worker.started))
            self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        worker.stop()
        self._workers[self._workers.index(worker)] = _Worker(self._start)

    def close(self) -> None:
        """Kill the workers and drop what is pending."""
        for worker in self._workers:
            worker.stop()
        self._workers.clear()
        self._queue.clear()
        self._finished.clear()

    def worker_processes(self) -> list[int]:
        """Return the process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
