"""A hard limit on the time that capturing and analysing a model may take."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class OutOfTime(BaseException):
    """The limit was reached; raised in the thread that runs the limited code."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` inside the block when it takes longer than this.

    A second thread watches, so that it works in every thread and beside alarms that others have set. The
    exception arrives between two steps of Python code: a single call into compiled code is waited for.

    Args:
        seconds: The limit.

    Raises:
        OutOfTime: The block did not finish in time.
    """
    thread, lock, ended = threading.get_ident(), threading.Lock(), threading.Event()

    def watch() -> None:
        if not ended.wait(seconds):
            with lock:
                if not ended.is_set():
                    _raise_in(thread, OutOfTime)

    watcher = threading.Thread(target=watch, name="time-limit", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        with lock:
            ended.set()
            _raise_in(thread, None)   # one that was sent but has not arrived must not hit the caller
        watcher.join()


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    raised = ctypes.py_object(kind) if kind is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)
