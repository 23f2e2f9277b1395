"""SQLite as a database of the trial protocol: embedded, for the processes of one host."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from paretopress.search.storages.sql_store import Transaction, Values
from paretopress.search.storages.trial_store import StorageUnavailable
from paretopress.spaces.errors import ArtifactError, DiskError

T = TypeVar("T")
_BUSY_SECONDS = 20.0    # how long a statement waits for another process's transaction
_ABANDONED: list[object] = []   # connections that came with a fork: closing them would disturb the parent's


class SqliteDatabase:
    """A database file. Each process opens it for itself, also after a fork."""

    # The host's clock is the storage's: all its processes are on this host.
    now = "((julianday('now') - 2440587.5) * 86400.0)"
    for_update = skip_locked = ""   # a writing transaction has the whole file to itself

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self.where = str(path)
        self._connection: sqlite3.Connection | None = None
        self._process = 0

    def run(self, body: Callable[[Transaction], T]) -> T:
        """Run a transaction. See `Database.run`.

        Raises:
            StorageUnavailable: The file is locked, or gone.
            DiskError: The disk is full or fails.
            ArtifactError: The file is no database, or is damaged.
        """
        try:
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                found = body(_SqliteTransaction(connection))
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._described(error) from None
        return found

    def _open(self) -> sqlite3.Connection:
        if self._process != os.getpid():
            _ABANDONED.append(self._connection)
            self._connection = None
        if self._connection is None:
            connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
            # WAL lets readers go on beside a writer; FULL syncs every commit, so that none is lost with the power.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._connection, self._process = connection, os.getpid()
        return self._connection

    def _described(self, error: sqlite3.Error) -> Exception:
        code = getattr(error, "sqlite_errorcode", None) or 0
        match code & 0xFF:
            case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR | sqlite3.SQLITE_READONLY:
                return DiskError(f"cannot write {self.where}: {error}")
            case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
                return ArtifactError(f"{self.where}: {error}")
        self.close()
        return StorageUnavailable(f"{self.where}: {error}")

    def close(self) -> None:
        """Close this process's connection; one that came with a fork is its parent's."""
        if self._connection is not None and self._process == os.getpid():
            self._connection.close()
        self._connection = None


class _SqliteTransaction:
    """See `Transaction`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, statement: str, values: Values) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, values).fetchall()

    def count(self, statement: str, values: Values) -> int:
        return self._connection.execute(statement, values).rowcount
