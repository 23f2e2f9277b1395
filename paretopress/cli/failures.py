"""Turns every failure into one line on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

import click

from paretopress.cli.interruption import second_signal_ends
from paretopress.progress import Terminated
from paretopress.spaces.errors import DiskError, ParetopressError
from paretopress.tables import plain_text

STOPPED = "interrupted; the same command continues where it stopped"
UNEXPECTED = 1
USAGE = 2
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_guarded(action: Callable[[], object], *, debug: bool = False) -> int:
    """Run a command line and return its exit code; nothing but one line of an error reaches the user.

    Args:
        action: The command; an integer that it returns is the exit code.
        debug: Show the traceback as well, and other libraries' warnings.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    _quiet_warnings(debug)
    with second_signal_ends(STOPPED):
        code = _guarded(action, debug=debug)
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            _leave_without_waiting(code)
    return code


def _guarded(action: Callable[[], object], *, debug: bool) -> int:
    try:
        code = action()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); what Python flushes at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except BaseException as error:  # noqa: BLE001 - the last place that can turn it into one line
        if debug and not isinstance(error, click.exceptions.Exit):
            traceback.print_exc()
        return _report(error)
    return code if isinstance(code, int) else 0


def _leave_without_waiting(code: int) -> None:
    """End an interrupted process whose other threads would keep the interpreter from ending."""
    others = [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    if others and threading.current_thread() is threading.main_thread():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _report(error: BaseException) -> int:
    """Print one line about an error and return its exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else UNEXPECTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return USAGE
    text, code = describe(error)
    sys.stderr.write(f"error: {plain_text(' '.join(text.split()))}\n")
    _silence_broken_output()
    return code


def describe(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code of an error."""
    if isinstance(error, ParetopressError) and not _disk_is_full(error):
        return str(error) or type(error).__name__, error.exit_code
    if isinstance(error, Terminated):
        return STOPPED.replace("interrupted", "terminated"), 128 + signal.SIGTERM
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return STOPPED, 128 + signal.SIGINT
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "paretopress"
        return f"{error.format_message()} (see '{path} --help')", USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if _disk_is_full(error):
        return (str(error) if isinstance(error, DiskError) else "the disk is full"), DiskError.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", DiskError.exit_code
    if isinstance(error, MemoryError):
        return "out of memory", UNEXPECTED
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"unexpected {text} (a defect: please report it with the output of --debug)", UNEXPECTED


def _disk_is_full(error: BaseException) -> bool:
    """Tell whether a full disk is behind an error; libraries in other languages only leave its text."""
    return any(
        (isinstance(one, OSError) and one.errno in _FULL)
        or (not isinstance(one, ParetopressError) and os.strerror(errno.ENOSPC) in str(one))
        for one in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _silence_broken_output() -> None:
    """Where stdout itself is full, what is still buffered would fail once more at exit, with a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def _quiet_warnings(debug: bool) -> None:
    """Show our own warnings as one line each, and those of libraries only when debugging."""

    def show(message: Warning | str, *_: object) -> None:
        sys.stderr.write(f"warning: {plain_text(' '.join(str(message).split()))}\n")

    warnings.showwarning = show  # type: ignore[assignment]
    if not debug:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module=r"paretopress(\.|$)")
