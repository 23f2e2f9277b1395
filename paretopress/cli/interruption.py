"""The second Ctrl-C ends the process, whatever it is doing."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GRACE_SECONDS = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h\r\n"   # progress bars hide it


@contextmanager
def second_signal_ends(last_words: str) -> Iterator[None]:
    """End the process with 128 plus the signal's number at the second SIGINT or SIGTERM inside the block.

    Signal handlers of Python run between two instructions of the main thread: not during a long call into a
    library, and what they raise is lost in a destructor or a callback. A thread that the operating system's
    handler wakes needs neither. After the second signal the main thread has `GRACE_SECONDS` to leave in order;
    the third is not waited for.

    Args:
        last_words: Told on stderr where the process is ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watched, woken = socket.socketpair()
    woken.setblocking(False)
    thread = threading.Thread(target=_watch, args=(watched, last_words), daemon=True, name="second signal")
    thread.start()
    before = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        woken.close()
        thread.join()
        watched.close()


def _watch(watched: socket.socket, last_words: str) -> None:
    """Read the numbers of arriving signals until the other end is closed."""
    count = number = 0
    while True:
        try:
            arrived = watched.recv(1)
        except TimeoutError:
            _end(number, last_words)
        if not arrived:
            return
        if arrived[0] not in _SIGNALS:
            continue
        number, count = arrived[0], count + 1
        if count == 2:
            watched.settimeout(GRACE_SECONDS)
        elif count > 2:
            _end(number, last_words)


def _end(number: int, last_words: str) -> None:
    """Leave now. Nothing is flushed: the main thread may hold the streams, and results are printed whole."""
    cursor = _SHOW_CURSOR if os.isatty(2) else b""
    try:
        os.write(2, cursor + f"error: {last_words}\n".encode())
    finally:
        os._exit(128 + number)
