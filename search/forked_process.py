"""A child process by fork, with the few methods of `subprocess.Popen` that executors use."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import time
from collections.abc import Callable


class ForkedProcess:
    """Runs a function in a copy of this process and ends the copy when it returns."""

    def __init__(self, action: Callable[[], object], keep: int) -> None:
        """Fork; of the parent's open files the child keeps the standard ones and the descriptor `keep`."""
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        try:
            gc.freeze()              # objects of native libraries are for the process that made them to destroy
            os.closerange(3, keep)   # locks and connections are the parent's
            os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            action()
        finally:
            os._exit(0)

    def poll(self) -> int | None:
        """The exit code, or minus the signal's number; None while it runs."""
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self._code = 0
            else:
                self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raises `subprocess.TimeoutExpired`."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(0.002)
        return code

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
