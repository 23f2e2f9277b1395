"""PostgreSQL as a database of the trial protocol, by psycopg: for workers on many hosts."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from paretopress.search.storages.sql_store import Transaction, Values
from paretopress.search.storages.storage_url import StorageUrl
from paretopress.search.storages.trial_store import StorageUnavailable
from paretopress.spaces.errors import ConfigError, StorageError

if TYPE_CHECKING:
    import psycopg

T = TypeVar("T")
_CONNECT_SECONDS = 5
_STATEMENT_MILLISECONDS = 30_000
_ATTEMPTS = 6                          # of a transaction that deadlocked or met another one
# Serialization failure, deadlock, lock not available; and two processes that create the tables at the same time.
_PASSING = ("40001", "40P01", "55P03", "23505", "42P07")
_REFUSED = ("28", "3D", "3F", "42501")   # credentials, no such database, no such schema, no permission
_ABANDONED: list[object] = []   # connections that came with a fork: closing them would end the parent's session


class PostgresqlDatabase:
    """A database of a server. Each process connects for itself, also after a fork; a lost connection is made anew."""

    now = "EXTRACT(EPOCH FROM clock_timestamp())::double precision"
    for_update = "FOR UPDATE"
    skip_locked = "FOR UPDATE SKIP LOCKED"

    def __init__(self, url: StorageUrl) -> None:
        try:
            import psycopg  # noqa: F401
        except ImportError:
            raise ConfigError(
                "PostgreSQL storages need psycopg; install it with: pip install 'paretopress[postgresql]'"
            ) from None
        self._url = url
        self.where = str(url)
        self._connection: psycopg.Connection[Any] | None = None
        self._process = 0

    def run(self, body: Callable[[Transaction], T]) -> T:
        """Run a transaction, again where it deadlocked. See `Database.run`.

        Raises:
            StorageUnavailable: The server does not answer.
            StorageError: It refuses: credentials, permissions, no such database.
        """
        import psycopg

        for attempt in range(_ATTEMPTS):
            try:
                connection = self._open()
                with connection.transaction():
                    return body(_PostgresqlTransaction(connection))
            except psycopg.Error as error:
                state = error.sqlstate or ""
                if state in _PASSING and attempt < _ATTEMPTS - 1:
                    time.sleep(random.uniform(0.0, 0.02 * 2**attempt))  # noqa: S311 - no secret
                    continue
                raise self._described(error) from None
        raise AssertionError("the last attempt returns or raises")

    def _open(self) -> psycopg.Connection[Any]:
        import psycopg

        if self._process != os.getpid():
            _ABANDONED.append(self._connection)
            self._connection = None
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                self._url.secret, autocommit=True, connect_timeout=_CONNECT_SECONDS, application_name="paretopress",
                options=f"-c statement_timeout={_STATEMENT_MILLISECONDS} -c synchronous_commit=on",
                keepalives_idle=10, keepalives_interval=5, keepalives_count=3, tcp_user_timeout=20_000,
            )
            self._process = os.getpid()
        return self._connection

    def _described(self, error: psycopg.Error) -> StorageError:
        import psycopg

        self.close()
        state = error.sqlstate or ""
        text = self._url.scrubbed(" ".join(str(error).split()))
        refused = state.startswith(_REFUSED) or "authentication failed" in text
        passing = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        kind = StorageUnavailable if passing and not refused else StorageError
        return kind(f"{self.where}: {text}")

    def close(self) -> None:
        """Close this process's connection; one that came with a fork is its parent's."""
        if self._connection is not None and self._process == os.getpid():
            self._connection.close()
        self._connection = None


class _PostgresqlTransaction:
    """See `Transaction`."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def rows(self, statement: str, values: Values) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._connection.execute(_named(statement), values).fetchall()
        return found

    def count(self, statement: str, values: Values) -> int:
        return int(self._connection.execute(_named(statement), values).rowcount)


def _named(statement: str) -> Any:  # noqa: ANN401 - psycopg wants literal strings, to keep values out of statements
    """`:name` as psycopg writes it; casts keep their two colons."""
    return re.sub(r"(?<!:):(?!:)(\w+)", r"%(\1)s", statement)
