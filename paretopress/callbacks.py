"""Callbacks: objects that hear how a search goes on, and can never lose it."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from paretopress.spaces.errors import ConfigError

if TYPE_CHECKING:
    from paretopress.result import Point, Result
    from paretopress.search.events import SearchedFront, SearchStarted
    from paretopress.search.records import TrialRecord

__all__ = ["EVENTS", "Callback", "CallbackObserver", "checked_callbacks", "heard", "tell_end"]

EVENTS = ("on_start", "on_trial", "on_front", "on_finalist", "on_end")


class Callback:
    """What a search calls; override what you need. Any object with some of these methods will do.

    All are called in the process and thread that searches, so a slow one slows the search down. An exception in one is
    shown as one line, and that method of that object is not called again in this run; the search goes on.
    """

    def on_start(self, start: SearchStarted) -> None:
        """Called once per start, when the model is captured and the run directory is open.

        Args:
            start: The run directory, settings, objectives with directions, predicted costs of the dense model (ms,
                bytes, multiply-accumulates, microjoules), and the number of earlier trials.
        """

    def on_trial(self, trial: TrialRecord) -> None:
        """Called for every trial that finishes in this start, whether it is complete, screened out or failed.

        Args:
            trial: Its number, state, policy, values by objective, constraints (at most 0 is met) and seconds.
        """

    def on_front(self, front: SearchedFront) -> None:
        """Called where the front of the exploration has changed, at most about once a second.

        Args:
            front: Its trials, on searched and predicted values, and the exploration in figures.
        """

    def on_finalist(self, point: Point) -> None:
        """Called once for every verified model, the dense one first, when all are verified and timed.

        Args:
            point: The model with measured values, and why it is not on the front where it is not.
        """

    def on_end(self, result: Result | None) -> None:
        """Called last, whatever happened.

        Args:
            result: The finished run; None where it was interrupted or failed.
        """


def checked_callbacks(callbacks: Iterable[Any]) -> tuple[Any, ...]:
    """Return callbacks as a tuple.

    Raises:
        ConfigError: One is a class, or has none of the methods.
    """
    found = tuple(callbacks)
    for one in found:
        if isinstance(one, type):
            raise ConfigError(f"callback {one.__name__}: got the class (allowed: an instance, {one.__name__}(...))")
        if not any(callable(getattr(one, event, None)) for event in EVENTS):
            raise ConfigError(f"callback {type(one).__name__}: has none of the methods {', '.join(EVENTS)}")
    return found


class CallbackObserver:
    """An observer that passes everything on to another one, and events to callbacks."""

    def __init__(self, inner: Any, callbacks: Sequence[Any]) -> None:  # noqa: ANN401 - any observer
        """Listen.

        Args:
            inner: The observer that shows progress.
            callbacks: Who hears of events, in this order.
        """
        self._inner = inner
        self._callbacks = tuple(callbacks)
        self._failed: set[tuple[int, str]] = set()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the other observer has
        return getattr(self._inner, name)

    def started(self, start: SearchStarted) -> None:
        """Pass `on_start` on."""
        self._call("on_start", start)

    def trial(self, record: TrialRecord) -> None:
        """Pass `on_trial` on."""
        self._call("on_trial", record)

    def searched_front(self, front: SearchedFront) -> None:
        """Pass `on_front` on."""
        self._call("on_front", front)

    def finished(self, result: Result | None) -> None:
        """Pass `on_finalist` on for every verified model, then `on_end`."""
        if result is not None:
            for point in result.front.verified:
                self._call("on_finalist", point)
        self._call("on_end", result)

    def _call(self, event: str, argument: object) -> None:
        for place, callback in enumerate(self._callbacks):
            method = getattr(callback, event, None)
            if method is None or (place, event) in self._failed:
                continue
            try:
                method(argument)
            except Exception as error:  # noqa: BLE001 - whatever it is, the search is worth more
                self._failed.add((place, event))
                self._inner.warning(f"callback {type(callback).__name__}.{event} raised {_described(error)}; "
                                    "it is not called again, the search goes on")


@contextmanager
def heard(observer: Any, callbacks: Sequence[Any]) -> Iterator[Any]:  # noqa: ANN401 - any observer
    """Give an observer that also calls callbacks; where the search fails or is interrupted they hear its end.

    Args:
        observer: Shows progress.
        callbacks: Who hears of events; where there are none, the observer is given as it is.
    """
    if not callbacks:
        yield observer
        return
    hearing = CallbackObserver(observer, callbacks)
    try:
        yield hearing
    except BaseException:
        hearing.finished(None)
        raise


def tell_end(observer: Any, result: Result) -> None:  # noqa: ANN401 - any observer
    """Tell callbacks, where there are any, of the finished run."""
    if isinstance(observer, CallbackObserver):
        observer.finished(result)


def _described(error: Exception) -> str:
    """`TypeName: message at file:line` on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
