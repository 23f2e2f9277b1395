"""The trial protocol in a relational database: SQLite for one host, PostgreSQL for clusters.

Every operation is one transaction of few statements, which unique keys and row locks make exact; nothing rests on an
isolation level. Both databases are told the same statements.
"""

# ruff: noqa: S608 - statements are put together from this package's constants; values are bound
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from paretopress.search.fault_points import fault_point
from paretopress.search.storages.result_text import lost_text
from paretopress.search.storages.trial_store import (
    FAILURES_ALLOWED,
    LOSSES_ALLOWED,
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
from paretopress.spaces.documents import canonical_json, parse_json
from paretopress.spaces.errors import ConfigError

T = TypeVar("T")
Values = dict[str, Any]

TABLES = (
    """CREATE TABLE IF NOT EXISTS paretopress_studies (
        name TEXT PRIMARY KEY, version INTEGER NOT NULL, fingerprints TEXT NOT NULL, objectives TEXT NOT NULL,
        settings TEXT NOT NULL, leader TEXT, term INTEGER NOT NULL DEFAULT 0,
        lead_until DOUBLE PRECISION NOT NULL DEFAULT 0)""",
    """CREATE TABLE IF NOT EXISTS paretopress_trials (
        study TEXT NOT NULL, number INTEGER NOT NULL, policy TEXT NOT NULL, policy_hash TEXT NOT NULL,
        status TEXT NOT NULL, owner TEXT, token INTEGER NOT NULL DEFAULT 0,
        lease_until DOUBLE PRECISION NOT NULL DEFAULT 0, failures INTEGER NOT NULL DEFAULT 0,
        losses INTEGER NOT NULL DEFAULT 0, result TEXT, same_as INTEGER, PRIMARY KEY (study, number))""",
    """CREATE UNIQUE INDEX IF NOT EXISTS paretopress_trials_policy
        ON paretopress_trials (study, policy_hash) WHERE same_as IS NULL""",
    """CREATE INDEX IF NOT EXISTS paretopress_trials_status
        ON paretopress_trials (study, status, number)""",
    """CREATE TABLE IF NOT EXISTS paretopress_workers (
        study TEXT NOT NULL, worker TEXT NOT NULL, slots INTEGER NOT NULL, alive_until DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (study, worker))""",
)

# A trial with a policy that another one has is done when that one is, and has its result.
_ROWS = """SELECT t.number, COALESCE(o.status, t.status), t.token, t.owner, t.policy, t.policy_hash,
        COALESCE(o.result, t.result), t.failures, t.losses
    FROM paretopress_trials t
    LEFT JOIN paretopress_trials o ON o.study = t.study AND o.number = t.same_as
    WHERE t.study = :study"""


class Transaction(Protocol):
    """Statements of one transaction, with `:name` for values."""

    def rows(self, statement: str, values: Values) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""

    def count(self, statement: str, values: Values) -> int:
        """Run a statement and return how many rows it changed."""


class Database(Protocol):
    """A database that transactions run in."""

    where: str        # for messages, without credentials
    now: str          # expression: seconds since 1970 by the database's clock
    for_update: str   # clause: locks the rows of a SELECT
    skip_locked: str  # clause: locks them, passing over rows that are locked already

    def run(self, body: Callable[[Transaction], T]) -> T:
        """Run a transaction; what is raised in it rolls it back. Raises `StorageUnavailable`."""

    def close(self) -> None:
        """Drop the connection."""


class SqlStore:
    """A `TrialStore` in a database."""

    def __init__(self, database: Database, study: str) -> None:
        self._database = database
        self._study = study

    def join(self, study: Study) -> None:
        """Create the study, or compare with it. See `TrialStore.join`."""
        def create(run: Transaction) -> None:
            for statement in TABLES:
                run.count(statement, {})
            run.count(
                """INSERT INTO paretopress_studies (name, version, fingerprints, objectives, settings)
                   VALUES (:study, :version, :fingerprints, :objectives, :settings) ON CONFLICT (name) DO NOTHING""",
                {"study": study.name, "version": SCHEMA, "fingerprints": canonical_json(dict(study.fingerprints)),
                 "objectives": canonical_json(dict(study.objectives)),
                 "settings": canonical_json(dict(study.settings))},
            )

        self._database.run(create)
        stored = self.study()
        assert stored is not None
        compare(self._database.where, stored, study)

    def study(self) -> Study | None:
        """The study, None where it does not exist yet."""
        statement = "SELECT version, fingerprints, objectives, settings FROM paretopress_studies WHERE name = :study"
        rows = self._database.run(lambda run: _where_tables_are(run, statement, {"study": self._study}))
        if not rows:
            return None
        version, *texts = rows[0]
        if version != SCHEMA:
            raise ConfigError(
                f"{self._database.where}: written by another version of Paretopress "
                f"(schema {version}, expected {SCHEMA})"
            )
        fingerprints, objectives, settings = (parse_json(text, self._database.where) for text in texts)
        return Study(self._study, fingerprints, objectives, settings)

    def studies(self) -> list[str]:
        """The names of all studies in the storage."""
        statement = "SELECT name FROM paretopress_studies ORDER BY name"
        return [name for name, in self._database.run(lambda run: _where_tables_are(run, statement, {}))]

    def lead(self, who: str, seconds: float) -> int | None:
        """Become the coordinator, or stay it. See `TrialStore.lead`."""
        now = self._database.now
        rows = self._one(
            f"""UPDATE paretopress_studies
                SET term = CASE WHEN leader = :who THEN term ELSE term + 1 END, leader = :who,
                    lead_until = {now} + :seconds
                WHERE name = :study AND (leader IS NULL OR leader = :who OR lead_until < {now}) RETURNING term""",
            who=who, seconds=seconds,
        )
        return int(rows[0][0]) if rows else None

    def resign(self, who: str) -> None:
        """Stop being the coordinator."""
        self._one("UPDATE paretopress_studies SET leader = NULL WHERE name = :study AND leader = :who RETURNING term",
                  who=who)

    def enqueue(self, term: int, proposals: Sequence[Proposal]) -> bool:
        """Add trials that are not there yet. See `TrialStore.enqueue`."""
        leads = f"SELECT name FROM paretopress_studies WHERE name = :study AND term = :term {self._database.for_update}"

        def add(run: Transaction) -> bool:
            if not run.rows(leads, {"study": self._study, "term": term}):
                return False
            for one in proposals:
                run.count(
                    """INSERT INTO paretopress_trials (study, number, policy, policy_hash, status, same_as)
                       VALUES (:study, :number, :policy, :hash, 'WAITING', (
                           SELECT number FROM paretopress_trials
                           WHERE study = :study AND policy_hash = :hash AND same_as IS NULL AND number <> :number))
                       ON CONFLICT (study, number) DO NOTHING""",
                    {"study": self._study, "number": one.number, "policy": one.policy, "hash": one.policy_hash},
                )
            fault_point("inside enqueue")
            return True

        return self._database.run(add)

    def announce(self, worker: str, slots: int, seconds: float) -> list[tuple[int, int]]:
        """Say that a worker lives, and renew its leases. See `TrialStore.announce`."""
        now = self._database.now
        values = {"study": self._study, "worker": worker, "slots": slots, "seconds": seconds}

        def renew(run: Transaction) -> list[tuple[Any, ...]]:
            run.count(
                f"""INSERT INTO paretopress_workers (study, worker, slots, alive_until)
                    VALUES (:study, :worker, :slots, {now} + :seconds)
                    ON CONFLICT (study, worker) DO UPDATE SET slots = excluded.slots,
                        alive_until = excluded.alive_until""", values,
            )
            return run.rows(
                f"""UPDATE paretopress_trials SET lease_until = {now} + :seconds
                    WHERE study = :study AND status = 'RUNNING' AND owner = :worker RETURNING number, token""",
                values,
            )

        return sorted((int(number), int(token)) for number, token in self._database.run(renew))

    def leave(self, worker: str) -> None:
        """Say that a worker ends."""
        self._database.run(lambda run: run.count(
            "DELETE FROM paretopress_workers WHERE study = :study AND worker = :worker",
            {"study": self._study, "worker": worker},
        ))

    def workers(self) -> list[str]:
        """The names of all workers that have not left."""
        return [name for name, in self._one("SELECT worker FROM paretopress_workers WHERE study = :study")]

    def bury(self, worker: str) -> None:
        """Let a worker's leases lapse at once. See `TrialStore.bury`."""
        values = {"study": self._study, "worker": worker}

        def end(run: Transaction) -> None:
            run.count("DELETE FROM paretopress_workers WHERE study = :study AND worker = :worker", values)
            run.count("UPDATE paretopress_trials SET lease_until = 0 "
                      "WHERE study = :study AND owner = :worker AND status = 'RUNNING'", values)

        self._database.run(end)

    def leader(self) -> str | None:
        """Who coordinates, or did last."""
        rows = self._one("SELECT leader FROM paretopress_studies WHERE name = :study")
        return rows[0][0] if rows else None

    def slots(self) -> int:
        """How many trials the living workers evaluate at a time."""
        statement = (
            "SELECT COALESCE(SUM(slots), 0) FROM paretopress_workers "
            f"WHERE study = :study AND alive_until >= {self._database.now}"
        )
        return int(self._one(statement)[0][0])

    def claim(self, worker: str, seconds: float, held: Sequence[tuple[int, int]] = ()) -> Claim | None:
        """Take the first waiting trial. See `TrialStore.claim`."""
        now, skip = self._database.now, self._database.skip_locked
        values = {"study": self._study, "worker": worker, "seconds": seconds}
        columns = "number, token, policy, policy_hash, failures"

        def take(run: Transaction) -> list[tuple[Any, ...]]:
            mine = run.rows(
                f"SELECT {columns} FROM paretopress_trials "
                "WHERE study = :study AND status = 'RUNNING' AND owner = :worker ORDER BY number", values,
            )
            forgotten = [row for row in mine if (row[0], row[1]) not in held]
            if forgotten:
                return forgotten
            found = run.rows(
                f"""UPDATE paretopress_trials
                    SET status = 'RUNNING', owner = :worker, token = token + 1, lease_until = {now} + :seconds
                    WHERE study = :study AND status = 'WAITING' AND number = (
                        SELECT number FROM paretopress_trials
                        WHERE study = :study AND status = 'WAITING' AND same_as IS NULL
                        ORDER BY number LIMIT 1 {skip})
                    RETURNING {columns}""", values,
            )
            fault_point("inside claim")
            return found

        rows = self._database.run(take)
        return Claim(*rows[0]) if rows else None

    def give_back(self, number: int, token: int) -> None:
        """Return a trial that was not evaluated."""
        self._one(
            """UPDATE paretopress_trials SET status = 'WAITING', owner = NULL
               WHERE study = :study AND number = :number AND token = :token AND status = 'RUNNING' RETURNING number""",
            number=number, token=token,
        )

    def tell(self, result: Result) -> Verdict:
        """Tell a result. See `TrialStore.tell`."""
        values = {"study": self._study, "number": result.number, "token": result.token, "result": result.text,
                  "allowed": FAILURES_ALLOWED}
        if result.failed:   # of the holder alone: what failed elsewhere is no news
            change = """failures = failures + 1,
                status = CASE WHEN failures >= :allowed THEN 'DONE' ELSE 'WAITING' END,
                result = CASE WHEN failures >= :allowed THEN :result END"""
            allowed = "status = 'RUNNING' AND token = :token"
        else:
            change = "status = 'DONE', result = :result, token = :token"
            allowed = "(status = 'RUNNING' AND token = :token OR status = 'WAITING' AND same_as IS NULL)"

        def finish(run: Transaction) -> Verdict:
            changed = run.count(
                f"UPDATE paretopress_trials SET owner = NULL, {change} "
                f"WHERE study = :study AND number = :number AND {allowed}", values,
            )
            fault_point("inside tell")
            if changed:
                return Verdict.ACCEPTED
            rows = run.rows("SELECT status FROM paretopress_trials WHERE study = :study AND number = :number", values)
            return Verdict.DUPLICATE if not rows or rows[0][0] == Status.DONE else Verdict.FENCED

        return self._database.run(finish)

    def sweep(self) -> int:
        """Return trials whose leases have lapsed. See `TrialStore.sweep`."""
        now = self._database.now
        values = {"study": self._study, "allowed": LOSSES_ALLOWED, "lost": lost_text(LOSSES_ALLOWED)}

        def lapse(run: Transaction) -> int:
            run.count(f"DELETE FROM paretopress_workers WHERE study = :study AND alive_until < {now}", values)
            count = run.count(
                f"""UPDATE paretopress_trials
                    SET owner = NULL, token = token + 1, losses = losses + 1,
                        status = CASE WHEN losses + 1 >= :allowed THEN 'DONE' ELSE 'WAITING' END,
                        result = CASE WHEN losses + 1 >= :allowed THEN :lost END
                    WHERE study = :study AND status = 'RUNNING' AND lease_until < {now}""", values,
            )
            fault_point("inside sweep")
            return count

        return self._database.run(lapse)

    def trials(self, numbers: Sequence[int] | None = None, status: Status | None = None) -> list[TrialRow]:
        """Trials by number. See `TrialStore.trials`."""
        statement, values = _ROWS, {"study": self._study}
        if numbers is not None:
            statement += f" AND t.number IN ({', '.join(str(int(number)) for number in numbers) or 'NULL'})"
        if status is not None:
            statement += " AND COALESCE(o.status, t.status) = :status"
            values["status"] = status.value
        rows: Iterable[tuple[Any, ...]] = self._database.run(
            lambda run: run.rows(f"{statement} ORDER BY t.number", values)
        )
        return [TrialRow(number, Status(where), *rest) for number, where, *rest in rows]

    def _one(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:  # noqa: ANN401 - what columns hold
        return self._database.run(lambda run: run.rows(statement, {"study": self._study, **values}))

    def close(self) -> None:
        """Drop the connection."""
        self._database.close()


def _where_tables_are(run: Transaction, statement: str, values: Values) -> list[tuple[Any, ...]]:
    """Rows of a statement, none where nobody has created the tables yet."""
    for table in TABLES:
        run.count(table, {})
    return run.rows(statement, values)
