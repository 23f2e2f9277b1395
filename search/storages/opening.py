"""Opens the storage that an address names."""

from __future__ import annotations

from paretopress.search.storages.storage_url import StorageUrl
from paretopress.search.storages.trial_store import TrialStore


def open_store(url: StorageUrl, study: str) -> TrialStore:
    """Return the storage, bound to a study; nothing is connected or written yet.

    Raises:
        ConfigError: What the storage needs is not installed.
    """
    match url.kind:
        case "journal":
            from paretopress.search.storages.journal import JournalFile
            from paretopress.search.storages.log_store import LogStore

            assert url.path is not None
            return LogStore(JournalFile(url.path), study)
        case "grpc":
            from paretopress.search.storages.log_store import LogStore
            from paretopress.search.storages.optuna_log import OptunaLog

            return LogStore(OptunaLog(url, study), study)
        case "postgresql":
            from paretopress.search.storages.postgresql import PostgresqlDatabase
            from paretopress.search.storages.sql_store import SqlStore

            return SqlStore(PostgresqlDatabase(url), study)
        case _:
            from paretopress.search.storages.sql_store import SqlStore
            from paretopress.search.storages.sqlite import SqliteDatabase

            assert url.path is not None
            return SqlStore(SqliteDatabase(url.path), study)
