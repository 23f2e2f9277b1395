"""Executors: where evaluations run. They propose nothing, record nothing and never touch the ledger.

Whatever happens to a candidate comes back as an `Evaluation`: an exception, a dead worker and a hang are
failures with a one-line reason. Only errors of the surroundings (a full disk, a locked store) are raised.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.tasks import Task
from paretopress.spaces.errors import DiskError, StorageError


class Evaluate(Protocol):
    """What does one task, mostly to evaluate a policy; executors that leave this process need it to be picklable."""

    def __call__(self, task: Task, /) -> Evaluation:
        """Return what came of `task`: of a policy its objectives and constraints."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished evaluation.

    Attributes:
        number: The trial number given to `submit`.
        evaluation: What came of it.
        seconds: Wall-clock time of the evaluation in seconds.
    """

    number: int
    evaluation: Evaluation
    seconds: float


class Executor(Protocol):
    """Runs evaluations, at most `capacity` at a time."""

    @property
    def capacity(self) -> int:
        """How many evaluations run at the same time."""

    @property
    def pending(self) -> int:
        """How many submitted evaluations have not been returned by `next_result`."""

    def submit(self, number: int, task: Task) -> None:
        """Start a task, or queue it where every worker is busy."""

    def next_result(self, timeout_seconds: float | None = None) -> Outcome | None:
        """Return the next finished evaluation, in the order of finishing.

        Args:
            timeout_seconds: How long to wait; None waits for as long as it takes. A serial executor
                evaluates inside this call and does not look at it.

        Returns:
            The outcome, or None where none finished in time.

        Raises:
            DiskError: The evaluation could not write (a property of the machine, not of the policy).
            StorageError: The evaluation's store is locked or gone.
            ValueError: Nothing is pending.
        """

    def close(self) -> None:
        """Stop the workers and drop what is pending; harmless when called again."""

    def __enter__(self) -> Self:
        """Return the executor."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the executor."""


_OUT_OF_MEMORY = "DefaultCPUAllocator"   # how PyTorch says that it got no memory
_TRACE_LENGTH = 8000    # characters of a traceback that are kept, its end


def failed(reason: str, trace: str = "") -> Evaluation:
    """Return a failed evaluation with a one-line reason, and the traceback where there is one."""
    return Evaluation(State.FAILED, reason=" ".join(reason.split())[:500], trace=trace[-_TRACE_LENGTH:])


def timed_out(seconds: float) -> Evaluation:
    """Return the evaluation of a policy that took longer than allowed."""
    return failed(f"timeout after {seconds:g} s")


def evaluate_safely(evaluate: Evaluate, task: Task) -> tuple[Evaluation, float]:
    """Do one task; an exception or a value that is not finite becomes a failure with a reason.

    Returns:
        The evaluation and its wall-clock time in seconds.

    Raises:
        DiskError: Passed on: the candidate is not to blame.
        StorageError: Passed on for the same reason.
    """
    start = time.perf_counter()
    try:
        found = evaluate(task)
        result = found.checked() if isinstance(found, Evaluation) else failed(
            f"TypeError: the evaluator returned {type(found).__name__}, not an Evaluation"
        )
    except (DiskError, StorageError):
        raise
    except Exception as error:  # noqa: BLE001 - a candidate that fails is a failed trial, never a crash
        if isinstance(error, MemoryError) or _OUT_OF_MEMORY in str(error):
            return failed(f"out of memory: {error}"), time.perf_counter() - start
        result = failed(f"{type(error).__name__}: {error}", traceback.format_exc())
    return result, time.perf_counter() - start


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Compute with `threads` threads inside the block, and as before after it; None leaves PyTorch alone.

    The number of threads changes the order of sums and so the last bits of results.
    """
    if threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def import_paths() -> list[str]:
    """Return where this process finds modules; the working folder by its name, because workers may have another."""
    import sys
    from pathlib import Path

    return list(dict.fromkeys(path or str(Path.cwd()) for path in sys.path))


def add_import_paths(paths: Sequence[str]) -> None:
    """Find modules also where the driver does, behind what is found here: `paths` that do not exist do no harm."""
    import sys

    sys.path += [path for path in paths if path not in sys.path]


def to_payload(evaluate: Evaluate) -> bytes:
    """Return an evaluator as bytes for workers; `from_payload` reads them back.

    Functions and classes of the main script are carried by value, so a script needs no
    `if __name__ == "__main__"` guard.
    """
    import os

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray import cloudpickle

    payload: bytes = cloudpickle.dumps(evaluate)
    return payload


def from_payload(payload: bytes) -> Evaluate:
    """Return the evaluator of `to_payload`; only for bytes that our own driver sent."""
    import pickle
    import warnings

    with warnings.catch_warnings():   # PyTorch's own classes warn of each other when they are unpickled
        warnings.simplefilter("ignore", FutureWarning)
        evaluate: Evaluate = pickle.loads(payload)  # noqa: S301 - see above
    return evaluate


class SerialExecutor:
    """Evaluates in this process, one policy at a time, inside `next_result`."""

    def __init__(self, evaluate: Evaluate, threads: int | None = 1) -> None:
        """Args are the evaluator and the threads of each evaluation (None: PyTorch's setting as it is)."""
        self._evaluate = evaluate
        self._threads = threads
        self._queue: deque[tuple[int, Task]] = deque()

    @property
    def capacity(self) -> int:
        """One."""
        return 1

    @property
    def pending(self) -> int:
        """Submitted policies that have not been returned."""
        return len(self._queue)

    def submit(self, number: int, task: Task) -> None:
        """Queue one task."""
        self._queue.append((number, task))

    def next_result(self, timeout_seconds: float | None = None) -> Outcome | None:  # noqa: ARG002
        """Evaluate the policy that has waited longest. See `Executor.next_result`."""
        if not self._queue:
            raise ValueError("nothing is pending")
        number, task = self._queue.popleft()
        with torch_threads(self._threads):
            evaluation, seconds = evaluate_safely(self._evaluate, task)
        return Outcome(number, evaluation, seconds)

    def close(self) -> None:
        """Drop what is queued."""
        self._queue.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
