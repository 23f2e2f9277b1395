"""The coordinator's side of a shared search: an executor whose evaluations are done by whoever claims them.

One coordinator proposes at a time. It leads for a term that it renews; another one that stands by takes over when the
term is not renewed, and what the first one would still propose is refused from then on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from paretopress.search.executors import Outcome
from paretopress.search.fault_points import fault_point
from paretopress.search.patience import Patience
from paretopress.search.process_identity import is_known_dead
from paretopress.search.records import TrialRecord
from paretopress.search.storage_worker import StorageWorker, sweep
from paretopress.search.storages.result_text import read_result, result_text
from paretopress.search.storages.trial_store import Proposal, Result, Status, TrialRow, TrialStore
from paretopress.search.tasks import Task
from paretopress.spaces.documents import canonical_json
from paretopress.spaces.errors import ArtifactError, StorageError
from paretopress.spaces.policy import Policy

T = TypeVar("T")
TERM_SECONDS = 120.0        # measuring a table or building finalists in between takes time too
_RENEWALS = 4               # of a term in its time
_POLL_SECONDS = 0.1         # between two looks for results of other workers
_CAPACITY_SECONDS = 1.0     # between two counts of workers
_QUEUED = 0.25              # of the workers' slots that are kept waiting, so that no worker waits for a proposal


class Leadership:
    """The right to propose, renewed as long as `hold` is called now and then."""

    def __init__(self, store: TrialStore, who: str, patience: Patience, seconds: float = TERM_SECONDS) -> None:
        self.term: int | None = None
        self._store, self._who, self._patience, self._seconds = store, who, patience, seconds
        self._renewed = -math.inf

    def wait(
        self, should_stop: Callable[[], bool] = lambda: False, message: Callable[[str], None] = lambda _: None
    ) -> bool:
        """Stand by until nobody else leads; False where somebody wanted to stop before."""
        told = False
        while not should_stop():
            leader = self._patience.attempt(self._store.leader)
            if leader is not None and leader != self._who and is_known_dead(leader):
                self._patience.attempt(lambda: self._store.resign(leader))  # noqa: B023
            self.hold()
            if self.term is not None:
                return True
            if not told:
                message("another coordinator leads this search; standing by to take over")
                told = True
            time.sleep(min(0.5, self._seconds / _RENEWALS))
        return False

    def hold(self) -> None:
        """Renew the term where it is time to.

        Raises:
            StorageError: Another coordinator has taken over.
        """
        if time.monotonic() - self._renewed < self._seconds / _RENEWALS:
            return
        fault_point("before lead")
        answer = self._patience.attempt(lambda: (self._store.lead(self._who, self._seconds),))
        if answer is None:
            return
        fault_point("after lead")
        if self.term is not None and answer[0] != self.term:
            self._lost()
        self.term = answer[0]
        self._renewed = time.monotonic() if self.term is not None else -math.inf

    def _lost(self) -> None:
        raise StorageError("another coordinator has taken over this search; what was finished is stored")

    def enqueue(self, proposals: list[Proposal]) -> bool:
        """Propose trials; False where the storage is away. Raises `StorageError` where another one leads."""
        assert self.term is not None
        term = self.term
        fault_point("before enqueue")
        added = self._patience.attempt(lambda: self._store.enqueue(term, proposals))
        if added is False:
            self._lost()
        fault_point("after enqueue")
        return bool(added)

    def resign(self) -> None:
        """Let another one lead at once."""
        if self.term is not None:
            self._patience.attempt(lambda: self._store.resign(self._who))
            self.term = None


class StorageExecutor:
    """An `Executor` over a storage; where it is given a worker of this process, that works between two looks."""

    def __init__(
        self, store: TrialStore, leadership: Leadership, patience: Patience, worker: StorageWorker | None,
        sweep_seconds: float = 15.0,
    ) -> None:
        self._store, self._leadership, self._patience, self._worker = store, leadership, patience, worker
        self._sweep_seconds = sweep_seconds
        self._waiting: list[Proposal] = []
        self._pending: dict[int, str] = {}
        self._finished: dict[int, Outcome] = {}
        self._capacity = 1
        self._counted = self._polled = self._swept = -math.inf
        if worker is not None:   # what an earlier process left is told, or goes back, before anything is counted
            worker.recover()
            worker.step(0.0, claiming=False)
        else:
            patience.attempt(lambda: sweep(store))

    @property
    def capacity(self) -> int:
        """What the living workers evaluate at a time, and a little more where they are several."""
        if time.monotonic() - self._counted >= _CAPACITY_SECONDS:
            slots = self._patience.attempt(self._store.slots)
            if slots is not None:
                self._counted = time.monotonic()
                self._capacity = max(1, slots) if slots <= 1 else slots + math.ceil(_QUEUED * slots)
        return self._capacity

    @property
    def pending(self) -> int:
        """Submitted trials that have not been returned."""
        return len(self._pending)

    def submit(self, number: int, task: Task) -> None:
        """Propose a policy as a trial."""
        if not isinstance(task, Policy):
            raise TypeError("storages hand out policies alone")
        self._waiting.append(proposal_of(number, task))
        self._pending[number] = task.hash

    def next_result(self, timeout_seconds: float | None = None) -> Outcome | None:
        """Return the next finished trial. See `Executor.next_result`.

        Raises:
            StorageError: The storage has been away for too long, or another coordinator has taken over.
            ArtifactError: The storage has another policy under a number, or something that is no result.
        """
        if not self._pending:
            raise ValueError("nothing is pending")
        end = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            self._leadership.hold()
            if self._waiting and self._leadership.enqueue(self._waiting):
                self._waiting = []
            self._look_after()
            for number in self._pending:
                if number in self._finished:
                    del self._pending[number]
                    return self._finished.pop(number)
            if time.monotonic() >= end:
                return None

    def _look_after(self) -> None:
        """Let the worker work, and collect what others told."""
        if self._worker is not None:
            for outcome in self._worker.step(_POLL_SECONDS):
                if outcome.number in self._pending:
                    self._finished[outcome.number] = outcome
            if self._finished:
                return
        else:
            time.sleep(_POLL_SECONDS / 4)
            if time.monotonic() - self._swept >= self._sweep_seconds:
                self._swept = time.monotonic()
                self._patience.attempt(lambda: sweep(self._store))
        if time.monotonic() - self._polled < _POLL_SECONDS:
            return
        self._polled = time.monotonic()
        rows = self._patience.attempt(lambda: self._store.trials(list(self._pending), Status.DONE))
        for row in rows or ():
            if row.policy_hash != self._pending[row.number]:
                raise ArtifactError(f"trial {row.number}: the storage has another policy than was proposed")
            self._finished[row.number] = outcome_of(row)

    def unrecorded(self, records: Iterable[TrialRecord]) -> Iterator[tuple[TrialRow, Outcome]]:
        """What the storage has beyond a run's records: yields every such trial once it is done.

        Records that the storage lacks are told to it first, so that both hold the same from here on.
        """
        known = {record.number: record for record in records}
        rows = self._patiently(self._store.trials)
        stored = {row.number: row for row in rows}
        self._tell_missing([record for number, record in known.items()
                            if number not in stored or stored[number].status is not Status.DONE])
        open_rows = {row.number: row for row in rows if row.number not in known}
        self._pending = {number: row.policy_hash for number, row in open_rows.items()}
        while self._pending:
            outcome = self.next_result()
            assert outcome is not None
            yield open_rows[outcome.number], outcome

    def _tell_missing(self, records: list[TrialRecord]) -> None:
        if not records:
            return
        proposals = [proposal_of(record.number, record.policy) for record in records]
        self._patiently(lambda: self._leadership.enqueue(proposals) or None)
        for record in records:
            text = result_text(record.evaluation(), record.seconds)
            self._patiently(lambda: self._store.tell(Result(record.number, 0, text)))  # noqa: B023

    def _patiently(self, operation: Callable[[], T | None]) -> T:
        while True:
            self._leadership.hold()
            found = self._patience.attempt(operation)
            if found is not None:
                return found
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Forget what is pending: the storage keeps it, and the next coordinator waits for it."""
        self._waiting.clear()
        self._pending.clear()
        self._finished.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def proposal_of(number: int, policy: Policy) -> Proposal:
    """A policy as a trial to evaluate."""
    return Proposal(number, canonical_json(policy.to_plain()), policy.hash)


def outcome_of(row: TrialRow) -> Outcome:
    """What came of a trial that is done. Raises `ArtifactError` where the storage has no sound result."""
    assert row.result is not None
    evaluation, seconds = read_result(row.result, f"trial {row.number}")
    return Outcome(row.number, evaluation, seconds)
