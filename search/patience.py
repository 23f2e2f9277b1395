"""How long a process waits for a storage that does not answer, and how often it asks meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from paretopress.search.storages.trial_store import StorageUnavailable
from paretopress.spaces.errors import StorageError

T = TypeVar("T")
STORAGE_TIMEOUT = 600.0    # seconds
_FIRST_PAUSE = 0.1         # seconds; doubles with every try
_LONGEST_PAUSE = 4.0       # seconds


class Patience:
    """Tries operations of a storage; while it is away they are left out, and tried again ever less often."""

    def __init__(
        self, timeout_seconds: float = STORAGE_TIMEOUT, warn: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """How long to wait in all, who hears of it (once for each outage), and a clock that never goes back."""
        self._timeout, self._warn, self._clock = timeout_seconds, warn, clock
        self._since: float | None = None
        self._next = 0.0
        self._pause = _FIRST_PAUSE

    @property
    def away(self) -> bool:
        """Whether the storage did not answer when it was asked last."""
        return self._since is not None

    def attempt(self, operation: Callable[[], T]) -> T | None:
        """Do an operation that may be repeated; None where the storage is away.

        Raises:
            StorageError: The storage has been away for too long.
        """
        if self.away and self._clock() < self._next:
            return None
        try:
            found = operation()
        except StorageUnavailable as error:
            self._note(error)
            return None
        if self.away:
            self._warn("the storage answers again")
        self._since, self._pause = None, _FIRST_PAUSE
        return found

    def _note(self, error: StorageUnavailable) -> None:
        now = self._clock()
        if self._since is None:
            self._since = now
            self._warn(f"{error}; going on without it, results are kept on disk")
        if now - self._since >= self._timeout:
            raise StorageError(f"{error}, for {now - self._since:.0f} s; results are kept in the outbox of the run "
                               "directory, and the same command continues")
        self._next = now + self._pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
