"""What every storage of a shared search can do, in the words of the trial protocol.

A trial is proposed by the coordinator, claimed by a worker with a fencing token and a lease, evaluated, committed in
the worker's outbox, told, and so done. Every operation may be repeated: what has taken effect already takes no effect
again. Leases are judged by the storage's clock alone. A trial that is done never changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from paretopress.spaces.errors import ConfigError, StorageError

SCHEMA = 1
FAILURES_ALLOWED = 1    # evaluations of a trial that may fail before it is quarantined
LOSSES_ALLOWED = 8      # workers that may vanish over a trial before it is quarantined


class StorageUnavailable(StorageError):  # noqa: N818 - a state that passes
    """The storage does not answer; the same operation may be tried again."""


class Status(StrEnum):
    """Where a trial stands."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    DONE = "DONE"


class Verdict(StrEnum):
    """What became of a result that was told."""

    ACCEPTED = "ACCEPTED"
    DUPLICATE = "DUPLICATE"   # the trial was done already
    FENCED = "FENCED"         # another worker holds the trial by now


@dataclass(frozen=True, slots=True)
class Study:
    """What a shared search is about.

    Attributes:
        name: Tells searches of one storage apart.
        fingerprints: What results depend on, by name; whoever joins must have the same.
        objectives: Objective names and directions.
        settings: The coordinator's settings as plain data, for workers that are started by hand.
    """

    name: str
    fingerprints: Mapping[str, str]
    objectives: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial to evaluate: its number, and its policy as canonical JSON with the policy's hash."""

    number: int
    policy: str
    policy_hash: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's hold on a trial.

    Attributes:
        number: The trial.
        token: Rises with every claim and every lapsed lease of the trial, so that an earlier holder is known as such.
        policy: Canonical JSON.
        policy_hash: Of the policy.
        failures: How many evaluations of the trial failed before.
    """

    number: int
    token: int
    policy: str
    policy_hash: str
    failures: int = 0


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A trial as the storage has it; `result` is the text that was told, None until it is done."""

    number: int
    status: Status
    token: int
    owner: str | None
    policy: str
    policy_hash: str
    result: str | None
    failures: int
    losses: int


@dataclass(frozen=True, slots=True)
class Result:
    """What is told of a trial.

    Attributes:
        number: The trial.
        token: Of the claim that it was evaluated under.
        text: The evaluation as JSON.
        failed: Whether the evaluation failed in a way that another try may mend.
    """

    number: int
    token: int
    text: str
    failed: bool = False


class TrialStore(Protocol):
    """A storage, bound to one study. All operations raise `StorageUnavailable` where it does not answer."""

    def join(self, study: Study) -> None:
        """Create the study, or compare with it. Raises `ConfigError` naming what differs."""

    def study(self) -> Study | None:
        """The study, None where it does not exist yet."""

    def studies(self) -> list[str]:
        """The names of all studies in the storage."""

    def lead(self, who: str, seconds: float) -> int | None:
        """Become the coordinator, or stay it, for some seconds; returns the term, None where another one leads."""

    def resign(self, who: str) -> None:
        """Stop being the coordinator."""

    def enqueue(self, term: int, proposals: Sequence[Proposal]) -> bool:
        """Add trials that are not there yet; False where the term is over.

        A policy that stands in another trial already is not evaluated again: the trial gets that one's result.
        """

    def announce(self, worker: str, slots: int, seconds: float) -> list[tuple[int, int]]:
        """Say that a worker lives, and renew its leases; returns the `(number, token)` it still holds."""

    def leave(self, worker: str) -> None:
        """Say that a worker ends."""

    def workers(self) -> list[str]:
        """The names of all workers that have not left, living or not."""

    def bury(self, worker: str) -> None:
        """Let a worker's leases lapse at once: whoever calls this knows that it is dead."""

    def leader(self) -> str | None:
        """Who coordinates, or did last."""

    def slots(self) -> int:
        """How many trials the living workers evaluate at a time."""

    def claim(self, worker: str, seconds: float, held: Sequence[tuple[int, int]] = ()) -> Claim | None:
        """Take the first waiting trial; a claim whose answer was lost, so that it is not `held`, is returned again."""

    def give_back(self, number: int, token: int) -> None:
        """Return a trial that was not evaluated."""

    def tell(self, result: Result) -> Verdict:
        """Tell a result. Accepted from the holder, and of a trial that nobody holds."""

    def sweep(self) -> int:
        """Return trials whose leases have lapsed; returns how many there were."""

    def trials(self, numbers: Sequence[int] | None = None, status: Status | None = None) -> list[TrialRow]:
        """Trials by number, all of them by default."""

    def close(self) -> None:
        """Drop the connection; harmless when called again."""


def compare(where: str, stored: Study, wanted: Study) -> None:
    """Check that a study is the one that somebody wants to join.

    Raises:
        ConfigError: It is not; the message names the keys that differ.
    """
    keys = sorted({*stored.fingerprints, *wanted.fingerprints})
    changed = [key for key in keys if stored.fingerprints.get(key) != wanted.fingerprints.get(key)]
    if dict(stored.objectives) != dict(wanted.objectives):
        changed.append("objectives")
    if changed:
        raise ConfigError(
            f"{where}: study {stored.name!r} was made with a different {', '.join(changed)}; "
            "use what it was made with, or another storage"
        )
