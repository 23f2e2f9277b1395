"""Addresses of storages: read strictly, and never shown with their passwords."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from paretopress.spaces.errors import ConfigError, unknown_name

KINDS = ("sqlite", "journal", "postgresql", "grpc")
HIDDEN = "***"
_SECRET_PARAMETERS = ("password", "passfile", "sslpassword", "sslkey")


@dataclass(frozen=True)
class StorageUrl:
    """An address; shown, printed or put into a message it has no password.

    Attributes:
        kind: One of `KINDS`.
        shown: The address without credentials.
        secret: The address as it was given; for connecting alone.
        path: The file of SQLite and journals, None for servers.
    """

    kind: str
    shown: str
    secret: str = field(repr=False)
    path: Path | None = None

    def __str__(self) -> str:
        return self.shown

    def scrubbed(self, text: str) -> str:
        """A text, such as a driver's message, without this address's credentials."""
        text = text.replace(self.secret, self.shown)
        for word in _secrets_of(self.secret):
            text = text.replace(word, HIDDEN)
        return text

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of a gRPC proxy."""
        parts = urlsplit(self.secret)
        return parts.hostname or "127.0.0.1", parts.port or 13000

    @classmethod
    def parse(cls, text: str, run: Path | None = None) -> StorageUrl:
        """Read an address.

        Args:
            text: `sqlite:///PATH`, `journal:///PATH`, `postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE` or
                `grpc://HOST:PORT`. `sqlite` and `journal` alone are a file in the run directory.
            run: The run directory.

        Raises:
            ConfigError: Malformed; the message shows no password. Or a gRPC proxy that is not on this host: its
                connections are neither encrypted nor authenticated.
        """
        kind, colon, rest = text.partition("://")
        kind = {"postgres": "postgresql"}.get(kind, kind)
        if kind not in KINDS:
            raise ConfigError(f"storage: {unknown_name('kind', kind[:20], KINDS)}")
        if kind in ("sqlite", "journal"):
            return cls._file(kind, rest if colon else "", run)
        try:
            parts = urlsplit(f"{kind}://{rest}")
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ConfigError(f"storage: not an address: {kind}://{HIDDEN}") from None
        if not colon or (kind == "grpc" and not host):
            raise ConfigError(f"storage: {kind}: expected {kind}://HOST:PORT{'/DATABASE' * (kind != 'grpc')}")
        if kind == "grpc" and not _is_loopback(host or ""):
            raise ConfigError(
                f"storage: grpc://{host}:{port or 13000}: Optuna's gRPC proxy neither encrypts nor authenticates; "
                "reach it through a tunnel (ssh -L 13000:localhost:13000 HOST) and use grpc://127.0.0.1:13000"
            )
        return cls(kind, _without_secrets(f"{kind}://{rest}"), f"{kind}://{rest}")

    @classmethod
    def _file(cls, kind: str, rest: str, run: Path | None) -> StorageUrl:
        if rest:
            path = Path(unquote(rest[1:] if rest.startswith("/") else rest)).absolute()
        elif run is not None:
            path = (run / {"sqlite": "ledger.sqlite3", "journal": "ledger.journal"}[kind]).absolute()
        else:
            raise ConfigError(f"storage: {kind}: name a file, {kind}:///PATH, or a run directory with --run")
        return cls(kind, f"{kind}:///{path}", f"{kind}:///{path}", path)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    query = [(key, HIDDEN if key in _SECRET_PARAMETERS else value) for key, value in parse_qsl(parts.query)]
    netloc = f"{name}{f':{HIDDEN}' if colon else ''}{at}{place}"
    return urlunsplit((parts.scheme, netloc, parts.path, urlencode(query, safe=f"{HIDDEN}/"), ""))


def _secrets_of(url: str) -> list[str]:
    parts = urlsplit(url)
    _, _, password = parts.netloc.rpartition("@")[0].partition(":")
    words = [password, unquote(password)]
    words += [value for key, value in parse_qsl(parts.query) if key in _SECRET_PARAMETERS]
    return [word for word in words if word]
