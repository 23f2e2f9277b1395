"""Whether a storage can be reached, for `paretopress doctor --storage`; credentials are never shown."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from paretopress.search.storages.storage_url import StorageUrl

SECONDS = 5.0


def check_storage(text: str) -> dict[str, Any]:
    """Try to reach a storage; nothing is made or written.

    Args:
        text: As `search --storage` takes it: `sqlite:///PATH`, `journal:///PATH`,
            `postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE` or `grpc://HOST:PORT`.

    Returns:
        `url` without credentials, `reachable`, and `detail`: what answered, or one line that says what did not.

    Raises:
        ConfigError: Not such an address.
    """
    url = StorageUrl.parse(text)
    try:
        detail, reachable = _CHECKS[url.kind](url), True
    except (OSError, _UnreachableError) as error:
        detail, reachable = str(error), False
    return {"url": url.shown, "reachable": reachable, "detail": " ".join(url.scrubbed(detail).split())[:300]}


class _UnreachableError(Exception):
    """Nothing answered, or something that is no storage."""


def _sqlite(url: StorageUrl) -> str:
    import sqlite3

    path = _path(url)
    if not path.exists():
        return _can_be_made(path)
    try:
        with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=SECONDS) as database:
            tables = database.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]
    except sqlite3.Error as error:
        raise _UnreachableError(f"{path}: {error}") from None
    return f"SQLite {sqlite3.sqlite_version}, {tables} tables{_writable(path)}"


def _path(url: StorageUrl) -> Path:
    assert url.path is not None   # `parse` names a file for these kinds
    return url.path


def _journal(url: StorageUrl) -> str:
    path = _path(url)
    if not path.exists():
        return _can_be_made(path)
    if not path.is_file():
        raise _UnreachableError(f"{path}: not a file")
    return f"a file of {path.stat().st_size} bytes{_writable(path)}"


def _can_be_made(path: Path) -> str:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise _UnreachableError(f"{path}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise _UnreachableError(f"{path}: the folder {folder} cannot be written")
    return "not there yet; it can be made"


def _writable(path: Path) -> str:
    if not os.access(path, os.W_OK):
        raise _UnreachableError(f"{path}: cannot be written")
    return ", writable"


def _postgresql(url: StorageUrl) -> str:
    try:
        import psycopg
    except ImportError:
        parts = urlsplit(url.secret)
        _connected(parts.hostname or "127.0.0.1", parts.port or 5432)
        return "the server accepts connections; pip install 'paretopress[postgresql]' to look further"
    try:
        with psycopg.connect(url.secret, connect_timeout=int(SECONDS)) as connection:
            row = connection.execute("SELECT version()").fetchone()
    except psycopg.Error as error:
        raise _UnreachableError(str(error) or type(error).__name__) from None
    return str(row[0]).partition(",")[0] if row else "the server answers"


def _grpc(url: StorageUrl) -> str:
    _connected(*url.address)
    return "the server accepts connections"


def _connected(host: str, port: int) -> None:
    try:
        with socket.create_connection((host, port), SECONDS):
            return
    except OSError as error:
        raise _UnreachableError(f"{host}:{port}: {error.strerror or error}") from None


_CHECKS: dict[str, Callable[[StorageUrl], str]] = {
    "sqlite": _sqlite, "journal": _journal, "postgresql": _postgresql, "grpc": _grpc,
}
