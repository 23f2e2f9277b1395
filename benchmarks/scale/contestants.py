"""What `throughput.py` compares: bare copies of an evaluation, and the executors of a search.

All of them evaluate the same policies in the same order with workers that stay, so that each has compressed and kept
what the others have. Time counts per worker, up to the end of its own last evaluation: what one worker waits for
another at the end of a span is no loss of a search that goes on.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from paretopress.search.executors import Executor, from_payload, to_payload
from paretopress.search.process_executor import ProcessExecutor
from paretopress.spaces.policy import Policy


class Contestant(Protocol):
    """Evaluates spans of a list of policies."""

    def seconds(self, first: int, end: int) -> float:
        """Evaluate a span; returns the seconds that it took, those of all workers added."""

    def close(self) -> None:
        """End the workers."""


class BareCopies:
    """The ceiling: independent processes that evaluate with nothing around them."""

    def __init__(self, evaluate: Any, policies: Sequence[Policy], copies: int) -> None:  # noqa: ANN401
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "payload"
        path.write_bytes(pickle.dumps((to_payload(evaluate), list(policies))))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._children = [
            subprocess.Popen([sys.executable, __file__, str(path), str(share), str(copies)], text=True,
                             env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for share in range(copies)
        ]
        for child in self._children:
            self._answer(child)

    def seconds(self, first: int, end: int) -> float:
        """See `Contestant`: every copy takes its share of the span."""
        for child in self._children:
            assert child.stdin is not None
            child.stdin.write(f"{first} {end}\n")
            child.stdin.flush()
        return sum(float(self._answer(child)) for child in self._children)

    def _answer(self, child: subprocess.Popen[str]) -> str:
        assert child.stdout is not None
        return child.stdout.readline()

    def close(self) -> None:
        """End the copies."""
        for child in self._children:
            child.kill()
            child.wait()
        self._folder.cleanup()


def serve(path: Path, share: int, of: int) -> None:
    """A child of `BareCopies`: evaluate every `of`-th policy of the spans that are asked for."""
    import torch

    torch.set_num_threads(1)
    payload, policies = pickle.loads(path.read_bytes())  # our own parent's
    evaluate = from_payload(payload)
    evaluate(Policy())
    print("ready", flush=True)
    for line in sys.stdin:
        first, end = map(int, line.split())
        start = time.perf_counter()
        for policy in policies[first:end][share::of]:
            evaluate(policy)
        print(time.perf_counter() - start, flush=True)


class Searching:
    """An executor, fed as a search does it."""

    def __init__(self, executor: Executor, policies: Sequence[Policy]) -> None:
        self._executor, self._policies = executor, policies
        warm_up(executor)

    def seconds(self, first: int, end: int) -> float:
        """See `Contestant`: the last results are one of each worker."""
        executor, waiting, stamps = self._executor, list(range(first, end))[::-1], list[float]()
        start = time.perf_counter()
        while waiting or executor.pending:
            while waiting and executor.pending < executor.capacity:
                number = waiting.pop()
                executor.submit(number, self._policies[number])
            executor.next_result()
            stamps.append(time.perf_counter() - start)
        return sum(stamps[-executor.capacity :])

    def close(self) -> None:
        """End the workers."""
        self._executor.close()


def warm_up(executor: Executor) -> None:
    """Wait until all workers are there, and let each of them evaluate the dense model."""
    while True:
        ready = are_ready(executor)
        for number in range(executor.capacity):
            executor.submit(number, Policy())
        while executor.pending:
            executor.next_result()
        if ready:
            return


def are_ready(executor: Executor) -> bool:
    """Whether all workers have loaded the evaluator, so that none of them does it while the clock runs."""
    if isinstance(executor, ProcessExecutor):
        return all(worker.ready for worker in executor._workers)
    return all(slot.starting is None for slot in getattr(executor, "_slots", ()))


def seconds_of_ray() -> float:
    """Processor time that Ray's own processes have used so far; its actors name themselves `ray::`."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if b"/site-packages/ray/" in command and not command.startswith(b"ray::"):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
