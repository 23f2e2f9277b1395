"""The trial protocol over an append-only log: a file, or a study behind Optuna's gRPC proxy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from paretopress.search.fault_points import fault_point
from paretopress.search.storages.log_state import LogState
from paretopress.search.storages.trial_store import (
    SCHEMA,
    Claim,
    Proposal,
    Result,
    Status,
    Study,
    TrialRow,
    Verdict,
    compare,
)
from paretopress.spaces.errors import ConfigError

Stamped = tuple[Mapping[str, Any], float | None]


class Log(Protocol):
    """Records in one order that all readers see."""

    where: str   # for messages

    def read(self) -> Iterable[Stamped]:
        """The records since the last call of `read` or `append`, with their stamps."""

    def append(self, record: Mapping[str, Any]) -> Iterable[Stamped]:
        """Append a record durably; returns the records since the last call up to this one."""

    def now(self) -> float | None:
        """The storage's clock in seconds since 1970; None where only records tell it."""

    def names(self) -> list[str]:
        """The names of all studies in the storage."""

    def close(self) -> None:
        """Drop the connection."""


class LogStore:
    """A `TrialStore` in a log."""

    def __init__(self, log: Log, study: str) -> None:
        self._log = log
        self._study = study
        self._state = LogState()

    def _read(self) -> LogState:
        for record, stamp in self._log.read():
            self._state.apply(record, stamp)
        return self._state

    def _ask(self, op: str, **content: Any) -> Any:  # noqa: ANN401 - what the operation returns
        answer = None
        for record, stamp in self._log.append({"op": op, **content}):
            answer = self._state.apply(record, stamp)
        return answer

    def _tick(self) -> float:
        """The storage's clock, which is asked for by a record where there is no other way."""
        now = self._log.now()
        if now is None:
            self._ask("tick")
            return self._state.now
        return now

    def join(self, study: Study) -> None:
        """Create the study, or compare with it. See `TrialStore.join`."""
        if self._read().study is None:
            self._ask("study", study={
                "schema": SCHEMA, "name": study.name, "fingerprints": dict(study.fingerprints),
                "objectives": dict(study.objectives), "settings": dict(study.settings),
            })
        stored = self.study()
        assert stored is not None
        compare(self._log.where, stored, study)

    def study(self) -> Study | None:
        """The study, None where it does not exist yet."""
        plain = self._read().study
        if plain is None:
            return None
        if plain.get("schema") != SCHEMA:
            raise ConfigError(
                f"{self._log.where}: written by another version of Paretopress "
                f"(schema {plain.get('schema')}, expected {SCHEMA})"
            )
        return Study(plain["name"], plain["fingerprints"], plain["objectives"], plain["settings"])

    def studies(self) -> list[str]:
        """The names of all studies in the storage."""
        return self._log.names()

    def lead(self, who: str, seconds: float) -> int | None:
        """Become the coordinator, or stay it. See `TrialStore.lead`."""
        state = self._read()
        if state.leader not in (None, who) and state.leadership is not None \
                and not state.leadership.lapsed(self._tick()):
            return None
        term = self._ask("lead", who=who, seconds=seconds)
        return None if term is None else int(term)

    def resign(self, who: str) -> None:
        """Stop being the coordinator."""
        self._ask("resign", who=who)

    def enqueue(self, term: int, proposals: Sequence[Proposal]) -> bool:
        """Add trials that are not there yet. See `TrialStore.enqueue`."""
        trials = [[one.number, one.policy, one.policy_hash] for one in proposals]
        added = bool(self._ask("enqueue", term=term, trials=trials))
        fault_point("inside enqueue")
        return added

    def announce(self, worker: str, slots: int, seconds: float) -> list[tuple[int, int]]:
        """Say that a worker lives, and renew its leases. See `TrialStore.announce`."""
        held: list[tuple[int, int]] = self._ask("announce", worker=worker, slots=slots, seconds=seconds)
        return sorted(held)

    def leave(self, worker: str) -> None:
        """Say that a worker ends."""
        self._ask("leave", worker=worker)

    def workers(self) -> list[str]:
        """The names of all workers that have not left."""
        return sorted(self._read().workers)

    def bury(self, worker: str) -> None:
        """Let a worker's leases lapse at once. See `TrialStore.bury`."""
        self._ask("bury", worker=worker)

    def leader(self) -> str | None:
        """Who coordinates, or did last."""
        return self._read().leader

    def slots(self) -> int:
        """How many trials the living workers evaluate at a time."""
        state = self._read()
        now = self._log.now()
        now = state.now if now is None else now
        return sum(slots for slots, lease in state.workers.values() if not lease.lapsed(now))

    def claim(self, worker: str, seconds: float, held: Sequence[tuple[int, int]] = ()) -> Claim | None:
        """Take the first waiting trial. See `TrialStore.claim`."""
        state = self._read()
        if state.waiting() is None and state.forgotten(worker, list(held)) is None:
            return None
        claim: Claim | None = self._ask("claim", worker=worker, seconds=seconds, held=[list(one) for one in held])
        fault_point("inside claim")
        return claim

    def give_back(self, number: int, token: int) -> None:
        """Return a trial that was not evaluated."""
        self._ask("give back", number=number, token=token)

    def tell(self, result: Result) -> Verdict:
        """Tell a result. See `TrialStore.tell`."""
        entry = self._read().entries.get(result.number)
        if entry is None or entry.status is Status.DONE:
            return Verdict.DUPLICATE
        verdict = Verdict(self._ask(
            "tell", number=result.number, token=result.token, result=result.text, failed=result.failed
        ))
        fault_point("inside tell")
        return verdict

    def sweep(self) -> int:
        """Return trials whose leases have lapsed. See `TrialStore.sweep`."""
        state = self._read()
        if not state.workers and not state.running:
            return 0
        if not state.overdue(self._tick()):
            return 0
        count = int(self._ask("sweep"))
        fault_point("inside sweep")
        return count

    def trials(self, numbers: Sequence[int] | None = None, status: Status | None = None) -> list[TrialRow]:
        """Trials by number. See `TrialStore.trials`."""
        entries = self._read().entries
        wanted = sorted(entries if numbers is None else (one for one in numbers if one in entries))
        rows = [self._state.row(entries[number]) for number in wanted]
        return [row for row in rows if status is None or row.status is status]

    def close(self) -> None:
        """Drop the connection."""
        self._log.close()
