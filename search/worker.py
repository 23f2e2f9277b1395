"""The worker's side of `process_executor`: receive the evaluator once, then do task after task."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection

from paretopress.search.executors import Evaluate, evaluate_safely, from_payload
from paretopress.spaces.errors import DiskError, StorageError


def main(
    descriptor: int, parent: int, threads: int, memory_bytes: int | None = None, evaluate: Evaluate | None = None
) -> None:
    """Serve the connection `descriptor` until the other side closes it or process `parent` is gone.

    Args:
        descriptor: The connection.
        parent: Process number of the driver.
        threads: PyTorch threads of each evaluation.
        memory_bytes: Address space that this process may take.
        evaluate: The evaluator of a forked worker; else it comes over the connection.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGINT, signal.SIG_IGN)   # Ctrl-C reaches the whole group: the driver decides
    os.dup2(2, 1)                                  # what evaluators print must not enter the driver's JSON
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, ConnectionError):   # the driver is done with us
        if evaluate is None:
            _load_and_serve(connection, threads)
        else:
            _serve(connection, threads, evaluate)


def _follow(parent: int) -> None:
    """End this process soon after its parent, also in the middle of an endless evaluation."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _load_and_serve(connection: Connection, threads: int) -> None:
    # Unpickling is safe here: our own parent sends, over a socket pair that nobody else can reach.
    connection.send(("hello",))
    sys.path[:] = pickle.loads(connection.recv_bytes())  # noqa: S301
    try:
        evaluate = from_payload(connection.recv_bytes())
    except (EOFError, ConnectionError):
        raise
    except Exception as error:  # noqa: BLE001 - reported by the driver in one line
        connection.send(("unloadable", f"{type(error).__name__}: {error}"))
        return
    _serve(connection, threads, evaluate)


def _serve(connection: Connection, threads: int, evaluate: Evaluate) -> None:
    connection.send(("ready",))
    while True:
        number, task = pickle.loads(connection.recv_bytes())  # noqa: S301
        if "torch" in sys.modules:  # an evaluator that imports it later finds OMP_NUM_THREADS instead
            sys.modules["torch"].set_num_threads(threads)
        try:
            evaluation, seconds = evaluate_safely(evaluate, task)
        except (DiskError, StorageError) as error:
            connection.send(("raise", error))
            continue
        connection.send(("done", number, evaluation, seconds))
