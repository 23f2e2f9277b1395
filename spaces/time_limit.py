"""A hard limit on the time that capturing and analysing a model may take."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

AGAIN_SECONDS = 5.0    # after which an exception that ended nothing is sent again
LATEST_ARRIVAL = 1.0   # seconds: it arrives at the next step of Python code, or was taken for that of an outer limit


class OutOfTime(BaseException):
    """The limit was reached; raised in the thread that runs the limited code."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` inside the block when it takes longer than this.

    A second thread watches, so that it works in every thread and beside alarms that others have set. The
    exception arrives between two steps of Python code: a single call into compiled code is waited for. Where it is
    lost, in a destructor or a callback of a library, whose exceptions Python drops, it is sent again.

    Args:
        seconds: The limit.

    Raises:
        OutOfTime: The block did not finish in time.
    """
    thread, lock, ended, sent = threading.get_ident(), threading.Lock(), threading.Event(), threading.Event()

    def watch() -> None:
        pause = seconds
        while not ended.wait(pause):
            with lock:
                if ended.is_set():
                    return
                sent.set()
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(OutOfTime))
            pause = AGAIN_SECONDS

    watcher = threading.Thread(target=watch, name="time-limit", daemon=True)
    arrived = False
    try:
        try:
            watcher.start()   # in here: what arrives before it returns has to end the watcher too
            yield
        finally:
            try:
                with lock:
                    ended.set()
            except OutOfTime:   # sent again in this very moment
                ended.set()
                raise
            if watcher.is_alive():
                watcher.join()
    except OutOfTime:
        arrived = True
        raise
    finally:
        if sent.is_set() and not arrived:
            _await_what_was_sent()


def _await_what_was_sent() -> None:
    """Take an exception that was sent but has not arrived, so that it does not hit the caller.

    It must not be called back: that leaves Python 3.11 believing that one is pending, in which state it hangs at the
    first call that a profiler or a debugger traces.
    """
    deadline = time.monotonic() + LATEST_ARRIVAL
    try:
        while time.monotonic() < deadline:
            time.sleep(0.0)
    except OutOfTime:
        pass
