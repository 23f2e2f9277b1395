"""Whether a storage can be reached, for `paretopress doctor --storage`; credentials are never shown."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from paretopress.spaces.errors import ConfigError, unknown_name

SECONDS = 5.0
HIDDEN = "***"


def check_storage(url: str) -> dict[str, Any]:
    """Try to reach a storage; nothing is made or written.

    Args:
        url: `sqlite:///PATH`, `journal:///PATH`, `postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE` or
            `grpc://HOST:PORT`.

    Returns:
        `url` without its password, `reachable`, and `detail`: what answered, or one line that says what did not.

    Raises:
        ConfigError: Not such an address.
    """
    kind, separator, _ = url.partition("://")
    if kind not in _CHECKS or not separator:
        raise ConfigError(f"--storage: {unknown_name('kind', kind[:20], _CHECKS)}")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ConfigError(f"--storage: not an address: {kind}://{HIDDEN}") from None
    try:
        detail, reachable = _CHECKS[kind](url, parts), True
    except (OSError, ConfigError, _UnreachableError) as error:
        detail, reachable = str(error), False
    return {"url": shown(parts), "reachable": reachable, "detail": _scrubbed(detail, parts)}


def shown(parts: SplitResult) -> str:
    """Return an address without password and query, which may hold one too."""
    host = parts.netloc.rpartition("@")[2]
    user = f"{parts.username}{f':{HIDDEN}' if parts.password else ''}@" if parts.username else ""
    return f"{parts.scheme}://{user}{host}{parts.path}{f'?{HIDDEN}' if parts.query else ''}"


class _UnreachableError(Exception):
    """A server or file answered, but not as a storage does."""


def _scrubbed(text: str, parts: SplitResult) -> str:
    """A driver's message on one line, without the password."""
    for secret in (parts.password, unquote(parts.password or ""), parts.query):
        text = text.replace(secret, HIDDEN) if secret else text
    return " ".join(text.split())[:300]


def _path(parts: SplitResult) -> Path:
    text = unquote(parts.path.removeprefix("/"))
    if not text:
        raise ConfigError(f"name a file: {parts.scheme}:///PATH")
    return Path(text)


def _sqlite(_url: str, parts: SplitResult) -> str:
    import sqlite3

    path = _path(parts)
    if not path.exists():
        return _can_be_made(path)
    try:
        with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=SECONDS) as database:
            tables = database.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]
    except sqlite3.Error as error:
        raise _UnreachableError(f"{path}: {error}") from None
    return f"SQLite {sqlite3.sqlite_version}, {tables} tables{_writable(path)}"


def _journal(_url: str, parts: SplitResult) -> str:
    path = _path(parts)
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


def _postgresql(url: str, parts: SplitResult) -> str:
    try:
        import psycopg
    except ImportError:
        _connected(parts, 5432)
        return "the server accepts connections; pip install 'paretopress[postgresql]' to look further"
    try:
        with psycopg.connect(url, connect_timeout=int(SECONDS)) as connection:
            row = connection.execute("SELECT version()").fetchone()
    except psycopg.Error as error:
        raise _UnreachableError(str(error) or type(error).__name__) from None
    return str(row[0]).partition(",")[0] if row else "the server answers"


def _grpc(_url: str, parts: SplitResult) -> str:
    _connected(parts, 13000)
    return "the server accepts connections"


def _connected(parts: SplitResult, port: int) -> None:
    address = (parts.hostname or "127.0.0.1", parts.port or port)
    try:
        with socket.create_connection(address, SECONDS):
            return
    except OSError as error:
        raise _UnreachableError(f"{address[0]}:{address[1]}: {error.strerror or error}") from None


_CHECKS: dict[str, Callable[[str, SplitResult], str]] = {
    "sqlite": _sqlite, "journal": _journal, "postgresql": _postgresql, "grpc": _grpc,
}
