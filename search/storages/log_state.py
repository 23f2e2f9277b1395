"""The trial protocol as a pure state machine over a log of records: whoever reads the same log sees the same state.

A record asks for something; what comes of it is decided by the records before it, so that of two workers who want a
trial the first in the order of the log gets it. Time is what the log's storage wrote beside its records. A log that
cannot stamp every record is given ticks: a lease then runs from the first tick after its renewal, never shorter than
it should.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paretopress.search.storages.result_text import lost_text
from paretopress.search.storages.trial_store import (
    FAILURES_ALLOWED,
    LOSSES_ALLOWED,
    Claim,
    Status,
    TrialRow,
    Verdict,
)


@dataclass
class Lease:
    """How long something is held: `seconds` from `since`, which the next stamp decides where it is None."""

    seconds: float
    since: float | None

    def lapsed(self, now: float) -> bool:
        """Whether it has ended by a time of the storage's clock."""
        return self.since is not None and now > self.since + self.seconds


@dataclass
class Entry:
    """A trial."""

    number: int
    policy: str
    policy_hash: str
    same_as: int | None
    status: Status = Status.WAITING
    owner: str | None = None
    token: int = 0
    lease: Lease | None = None
    failures: int = 0
    losses: int = 0
    result: str | None = None


@dataclass
class LogState:
    """What a log says so far.

    Attributes:
        study: The first study record's content.
        now: The latest stamp.
        leader: Who coordinates.
        term: How often the coordinator changed.
        entries: Trials by number.
        workers: Slots and lease of living workers.
        running: Numbers of trials that are held.
    """

    study: Mapping[str, Any] | None = None
    now: float = 0.0
    leader: str | None = None
    term: int = 0
    leadership: Lease | None = None
    entries: dict[int, Entry] = field(default_factory=dict)
    workers: dict[str, tuple[int, Lease]] = field(default_factory=dict)
    _by_policy: dict[str, int] = field(default_factory=dict)
    _waiting: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    _unstamped: list[Lease] = field(default_factory=list)

    def apply(self, record: Mapping[str, Any], stamp: float | None) -> Any:  # noqa: ANN401 - what was asked for
        """Take a record into account and return what comes of it. A stamp before an earlier one counts as that one."""
        if stamp is not None:
            self._pass_time(max(stamp, self.now))
        match record["op"]:
            case "study":
                self.study = self.study or record["study"]
            case "tick":
                pass
            case "lead":
                return self._lead(record["who"], record["seconds"], stamp)
            case "resign":
                if self.leader == record["who"]:
                    self.leader = None
            case "enqueue":
                return self._enqueue(record)
            case "announce":
                return self._announce(record, stamp)
            case "leave":
                self.workers.pop(record["worker"], None)
            case "bury":
                self.workers.pop(record["worker"], None)
                for entry in self._held_by(record["worker"]):
                    entry.lease = Lease(0.0, -math.inf)
            case "claim":
                return self._claim(record, stamp)
            case "give back":
                self._give_back(record)
            case "tell":
                return self._tell(record)
            case "sweep":
                return self._sweep()
        return None

    def _pass_time(self, now: float) -> None:
        self.now = now
        for lease in self._unstamped:
            lease.since = now
        self._unstamped.clear()

    def _lease(self, seconds: float, stamp: float | None) -> Lease:
        lease = Lease(seconds, None if stamp is None else self.now)
        if stamp is None:
            self._unstamped.append(lease)
        return lease

    def _set(self, entry: Entry, status: Status, owner: str | None = None, lease: Lease | None = None) -> None:
        entry.status, entry.owner, entry.lease = status, owner, lease
        for group, member in ((self._waiting, Status.WAITING), (self.running, Status.RUNNING)):
            (group.add if status is member else group.discard)(entry.number)

    def _lead(self, who: str, seconds: float, stamp: float | None) -> int | None:
        held = self.leader is not None and self.leader != who
        if held and (self.leadership is None or not self.leadership.lapsed(self.now)):
            return None
        if self.leader != who:
            self.leader, self.term = who, self.term + 1
        self.leadership = self._lease(seconds, stamp)
        return self.term

    def _enqueue(self, record: Mapping[str, Any]) -> bool:
        if record["term"] != self.term:
            return False
        for number, policy, policy_hash in record["trials"]:
            if number not in self.entries:
                original = self._by_policy.setdefault(policy_hash, number)
                same = None if original == number else original
                self.entries[number] = Entry(number, policy, policy_hash, same)
                if same is None:
                    self._waiting.add(number)
        return True

    def _announce(self, record: Mapping[str, Any], stamp: float | None) -> list[tuple[int, int]]:
        worker = record["worker"]
        self.workers[worker] = (record["slots"], self._lease(record["seconds"], stamp))
        mine = self._held_by(worker)
        for entry in mine:
            entry.lease = self._lease(record["seconds"], stamp)
        return [(entry.number, entry.token) for entry in mine]

    def _held_by(self, worker: str) -> list[Entry]:
        return [entry for entry in map(self.entries.__getitem__, sorted(self.running)) if entry.owner == worker]

    def waiting(self) -> Entry | None:
        """The trial that the next claim gets."""
        return self.entries[min(self._waiting)] if self._waiting else None

    def forgotten(self, worker: str, held: list[tuple[int, int]]) -> Entry | None:
        """A trial that a worker holds without knowing it, as the answer to its claim was lost."""
        return next((entry for entry in self._held_by(worker) if (entry.number, entry.token) not in held), None)

    def _claim(self, record: Mapping[str, Any], stamp: float | None) -> Claim | None:
        worker = record["worker"]
        entry = self.forgotten(worker, [(number, token) for number, token in record["held"]])
        if entry is None:
            entry = self.waiting()
            if entry is None:
                return None
            entry.token += 1
            self._set(entry, Status.RUNNING, worker, self._lease(record["seconds"], stamp))
        return Claim(entry.number, entry.token, entry.policy, entry.policy_hash, entry.failures)

    def _give_back(self, record: Mapping[str, Any]) -> None:
        entry = self.entries.get(record["number"])
        if entry is not None and entry.status is Status.RUNNING and entry.token == record["token"]:
            self._set(entry, Status.WAITING)

    def _tell(self, record: Mapping[str, Any]) -> Verdict:
        entry = self.entries.get(record["number"])
        if entry is None or entry.status is Status.DONE:
            return Verdict.DUPLICATE
        holds = entry.status is Status.RUNNING and entry.token == record["token"]
        if record["failed"]:
            if not holds:
                return Verdict.FENCED
            given_up = entry.failures >= FAILURES_ALLOWED
            entry.failures += 1
            entry.result = record["result"] if given_up else None
            self._set(entry, Status.DONE if given_up else Status.WAITING)
        elif holds or (entry.status is Status.WAITING and entry.same_as is None):
            entry.result, entry.token = record["result"], record["token"]
            self._set(entry, Status.DONE)
        else:
            return Verdict.FENCED
        return Verdict.ACCEPTED

    def overdue(self, now: float) -> bool:
        """Whether a lease of a trial or of a worker has lapsed."""
        leases = [self.entries[number].lease for number in self.running]
        leases += [lease for _, lease in self.workers.values()]
        return any(lease is not None and lease.lapsed(now) for lease in leases)

    def _sweep(self) -> int:
        self.workers = {name: one for name, one in self.workers.items() if not one[1].lapsed(self.now)}
        count = 0
        for entry in map(self.entries.__getitem__, sorted(self.running)):
            if entry.lease is None or not entry.lease.lapsed(self.now):
                continue
            count += 1
            entry.token, entry.losses = entry.token + 1, entry.losses + 1
            given_up = entry.losses >= LOSSES_ALLOWED
            self._set(entry, Status.DONE if given_up else Status.WAITING)
            entry.result = lost_text(LOSSES_ALLOWED) if given_up else None
        return count

    def row(self, entry: Entry) -> TrialRow:
        """An entry as storages return it; one with another trial's policy has that one's status and result."""
        shown = entry if entry.same_as is None else self.entries[entry.same_as]
        return TrialRow(entry.number, shown.status, entry.token, entry.owner, entry.policy, entry.policy_hash,
                        shown.result, entry.failures, entry.losses)
