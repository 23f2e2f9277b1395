"""Run a function in a fresh interpreter: what is verified there owes nothing to this process's memory."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from paretopress.spaces.errors import ArtifactError, ParetopressError

_START = "from paretopress.search.clean_process import serve; serve({descriptor}, {parent})"

Report = Callable[[str], None]


def call_in_clean_process(
    function: Callable[..., Any], arguments: tuple[Any, ...], on_report: Report | None = None, threads: int = 1
) -> Any:  # noqa: ANN401 - whatever the function returns
    """Call `function(report, *arguments)` in a fresh interpreter and return its result.

    Args:
        function: Carried by value where it is not importable; `report(text)` sends a line back.
        arguments: Picklable values.
        on_report: Called with every line.
        threads: OpenMP threads of the fresh interpreter.

    Raises:
        ParetopressError: Raised there; passed on as it is.
        ArtifactError: Any other failure there, or the process died; one line.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray import cloudpickle

    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", _START.format(descriptor=theirs.fileno(), parent=os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )
    connection = Connection(ours.detach())
    try:
        connection.send_bytes(pickle.dumps(list(sys.path)))
        connection.send_bytes(cloudpickle.dumps((function, arguments, threads)))
        return _receive(connection, on_report)
    except (EOFError, ConnectionError):
        process.wait()
        raise ArtifactError(f"the verifying process died (exit code {process.returncode})") from None
    finally:
        connection.close()
        if process.poll() is None:
            process.kill()
        process.wait()


def _receive(connection: Connection, on_report: Report | None) -> Any:  # noqa: ANN401
    while True:
        kind, value = pickle.loads(connection.recv_bytes())  # noqa: S301 - our own child, over a socket pair
        if kind == "report":
            if on_report is not None:
                on_report(value)
        elif kind == "result":
            return value
        elif isinstance(value, ParetopressError):
            raise value
        else:
            raise ArtifactError(str(value))


def serve(descriptor: int, parent: int) -> None:
    """The fresh interpreter's side: receive one call, answer it, end; also where process `parent` is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)   # Ctrl-C reaches the whole group: the parent decides
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, ConnectionError):   # the parent has given up
        _answer(connection)


def _follow(parent: int) -> None:
    """End this process soon after its parent: a resumed run writes to the same folders."""
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)


def _answer(connection: Connection) -> None:
    sys.path[:] = pickle.loads(connection.recv_bytes())  # noqa: S301 - our own parent, over a socket pair
    try:
        function, arguments, threads = pickle.loads(connection.recv_bytes())  # noqa: S301
        import torch

        torch.set_num_threads(threads)

        def report(text: str) -> None:
            connection.send_bytes(pickle.dumps(("report", text)))

        answer = ("result", function(report, *arguments))
    except (EOFError, ConnectionError):
        raise
    except ParetopressError as error:
        answer = ("error", error)
    except Exception as error:  # noqa: BLE001 - reported to the parent in one line
        answer = ("error", f"verification failed: {type(error).__name__}: {' '.join(str(error).split())}")
    connection.send_bytes(pickle.dumps(answer))
    connection.close()
