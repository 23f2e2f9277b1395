"""Progress on stderr: bars with the time left in a terminal, plain lines every few seconds elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from paretopress.tables import plain_text

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, Task, TaskID
    from rich.table import Table

    from paretopress.search.live import ExplorationStatus

EVERY_SECONDS = 5.0


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. No `Exception`, like KeyboardInterrupt: what catches failing trials lets it pass."""


class ProgressObserver:
    """Shows what a run is doing. Also carries a user's wish to stop from the signal to the search.

    A search that asks `should_stop` between trials ends at the next chance after the first signal. Until
    something asks, and at the second signal, KeyboardInterrupt or `Terminated` is raised at once.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._asked = False

    def stage(self, name: str, total: int | None) -> None:
        """Begin a stage of `total` steps, None where the number is not known."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Finish `n` steps of the stage."""

    def message(self, text: str) -> None:
        """Show one line."""

    def warning(self, text: str) -> None:
        """Show one line that the user should read."""

    def exploration(self, status: ExplorationStatus) -> None:
        """Show how the exploration goes on: called about once a second."""

    def close(self) -> None:
        """End the display."""

    def should_stop(self) -> bool:
        """Tell whether the user asked to stop; the asker then stores its state and ends."""
        self._asked = True
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """Exit code of the signal that asked to stop: 128 plus its number; 130 where none came."""
        return 128 + (self._signal or signal.SIGINT)

    def request_stop(self, number: int) -> None:
        """Note a signal. Raises KeyboardInterrupt or `Terminated` unless the search will ask for it."""
        again, self._signal = self._signal is not None, number
        if again or not self._asked:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.message("finishing what has begun, then stopping; once more stops at once")


class PlainObserver(ProgressObserver):
    """Plain lines, at most one of progress every few seconds.

    A stage is named once it gets going, so that a command that fails at once prints its error alone.
    """

    def __init__(self, stream: TextIO | None = None, every: float = EVERY_SECONDS) -> None:
        super().__init__()
        self._stream = stream or sys.stderr
        self._every = every
        self._name, self._done = "", 0
        self._total: int | None = None
        self._announced = True
        self._start = self._shown = time.monotonic()
        self._status: ExplorationStatus | None = None

    def stage(self, name: str, total: int | None) -> None:
        """Begin a stage."""
        self._announce()
        self._name, self._total, self._done, self._status = name, total, 0, None
        self._start = self._shown = time.monotonic()
        self._announced = False

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count steps and show them now and then, with the time left."""
        self._announce()
        self._done += n
        now = time.monotonic()
        if now - self._shown < self._every:
            return
        self._shown = now
        of = f"/{self._total}" if self._total else ""
        elapsed = now - self._start
        left = ""
        if self._status is not None:
            note = self._status.line()
            left = "" if self._status.seconds_left is None else f", {duration(self._status.seconds_left)} left"
        elif self._total and self._done:
            left = f", {duration(elapsed * max(self._total - self._done, 0) / self._done)} left"
        self._line(
            f"{self._name}: {self._done}{of} in {duration(elapsed)}{left}" + (f"  {note}" if note else "")
        )

    def exploration(self, status: ExplorationStatus) -> None:
        """Keep the figures for the next line of progress."""
        self._status = status

    def message(self, text: str) -> None:
        """Show one line."""
        self._announce()
        self._line(text)

    def warning(self, text: str) -> None:
        """Show one line marked as a warning."""
        self._announce()
        self._line(f"warning: {text}")

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            self._line(self._name)

    def _line(self, text: str) -> None:
        self._stream.write(plain_text(text) + "\n")
        self._stream.flush()


class LiveObserver(ProgressObserver):
    """Progress bars with the time left, for terminals."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _time_left(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        # Twice a second, because redrawing takes time from what is being measured.
        console = Console(stderr=True, highlight=False)
        self._progress: Progress = _with_table(Progress)(*columns, console=console, refresh_per_second=2)
        self._task: TaskID | None = None
        self._progress.start()

    def stage(self, name: str, total: int | None) -> None:
        """Begin a stage with its own bar; the one before is complete."""
        self._finish()
        self._progress.table = None  # type: ignore[attr-defined]
        self._task = self._progress.add_task(plain_text(name), total=total, note="")

    def advance(self, n: int = 1, note: str = "") -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(self._task, advance=n)
            if note:
                self._progress.update(self._task, note=plain_text(note))

    def exploration(self, status: ExplorationStatus) -> None:
        """Show the figures in a table below the bars."""
        self._progress.table = _status_table(status)  # type: ignore[attr-defined]

    def message(self, text: str) -> None:
        """Show one line above the bars."""
        self._progress.console.print(plain_text(text), markup=False)

    def warning(self, text: str) -> None:
        """Show one yellow line above the bars."""
        self._progress.console.print(f"warning: {plain_text(text)}", style="yellow", markup=False)

    def close(self) -> None:
        """Leave the bars as they are."""
        self._finish()
        self._progress.stop()

    def _finish(self) -> None:
        if self._task is None:
            return
        task = next(task for task in self._progress.tasks if task.id == self._task)
        if task.total is None:
            self._progress.update(self._task, total=max(task.completed, 1), completed=max(task.completed, 1))
        self._progress.stop_task(self._task)


def _with_table(progress: type[Progress]) -> type[Progress]:
    """Bars with a table below them, where there is one; rich is imported where it is needed alone."""

    class ProgressWithTable(progress):  # type: ignore[misc, valid-type]
        table: Table | None = None

        def get_renderables(self) -> Iterator[Table]:
            yield self.make_tasks_table(self.tasks)
            if self.table is not None:
                yield self.table

    return ProgressWithTable


def _status_table(status: ExplorationStatus) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    volume = "-" if status.hypervolume is None else f"{status.hypervolume:.4f}"
    left = "-" if status.seconds_left is None else duration(status.seconds_left)
    cells = {"trials": f"{status.trials:,}", "front": str(status.front), "hypervolume": volume,
             "trials/s": f"{status.per_second:.1f}", "feasible": f"{status.feasible:.0%}", "left": left}
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*cells.values())
    return table


def _time_left() -> ProgressColumn:
    """Return a column that reads `1m35s left` while that is known."""
    from rich.progress import ProgressColumn
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            known = task.time_remaining is not None and not task.finished
            return Text(f"{duration(task.time_remaining or 0.0)} left" if known else "")

    return TimeLeft()


def duration(seconds: float) -> str:
    """Return `12s`, `3m05s` or `1h02m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


@contextmanager
def observing(*, plain: bool = False) -> Iterator[ProgressObserver]:
    """Give an observer for stderr and turn SIGINT and SIGTERM into its wish to stop.

    Args:
        plain: Lines even in a terminal; without a terminal, and under NO_COLOR or TERM=dumb, it is always
            lines.
    """
    dull = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    observer: ProgressObserver = (
        PlainObserver() if plain or dull or not sys.stderr.isatty() else LiveObserver()
    )
    with _signals(observer):
        try:
            yield observer
        finally:
            observer.close()


@contextmanager
def _signals(observer: ProgressObserver) -> Iterator[None]:
    """Route signals to the observer while a run lasts; only a main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        observer.request_stop(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
