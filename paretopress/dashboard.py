"""`paretopress dashboard`: a run's report, refreshed while the search goes on, and optuna-dashboard beside it.

Only this machine can reach it: it listens on a loopback address, answers only where the Host header names one (so that
a web page elsewhere cannot reach it through a name that it points here), only to GET and HEAD, and changes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import ipaddress
import json
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from paretopress.report import content_policy, report_page
from paretopress.report_data import read_content, report_data
from paretopress.spaces.errors import ConfigError, ParetopressError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from paretopress.search.optuna_mirror import Mirror

PORT = 8787
LOOPBACK = "127.0.0.1"
EXTRA = "pip install 'paretopress[dashboard]'"
WATCHED = ("trials.jsonl", "front.json", "anatomy.json", "run.yaml")   # what the page shows changes with these
OPTUNA_PATHS = ("/dashboard", "/api/", "/static/", "/favicon.ico")
HEADERS = (
    ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"), ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"), ("Cross-Origin-Opener-Policy", "same-origin"),
)
Headers = list[tuple[str, str]]
Answer = tuple[str, Headers, bytes]


class Dashboard:
    """The WSGI application: `/` is the report, `/data.json` what it shows now, `/dashboard` optuna-dashboard."""

    def __init__(self, run: str | Path, *, with_optuna: bool = True) -> None:
        """Serve a run.

        Args:
            run: The run directory.
            with_optuna: Whether optuna-dashboard is served too; it must be installed.

        Raises:
            ParetopressError: There is no such run, or a file of it is damaged.
        """
        self._run = Path(run)
        self._with_optuna = with_optuna
        self._optuna: tuple[Mirror, WSGIApplication] | None = None   # made once there is a trial
        self._lock = threading.Lock()
        self._tag, self._data = "", b""
        self._refreshed()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path = str(environ.get("PATH_INFO") or "/")
        refusal = _refusal(environ)
        if refusal is not None:
            return _send(environ, start_response, refusal)
        try:
            if self._with_optuna and path.startswith(OPTUNA_PATHS):
                return self._optunas(path, environ, start_response)
            answer = self._answer(path, str(environ.get("HTTP_IF_NONE_MATCH") or ""))
        except ParetopressError as error:   # a run that is being moved aside, or written this moment
            answer = _plain("503 Service Unavailable", str(error))
        return _send(environ, start_response, answer)

    def _answer(self, path: str, known: str) -> Answer:
        if path == "/":
            policy = f"{content_policy(live=True)}; frame-ancestors 'none'"
            page = report_page(json.loads(self._refreshed()[1]))
            headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Security-Policy", policy)]
            return "200 OK", headers, page.encode()
        if path == "/data.json":
            tag, data = self._refreshed()
            if tag == known:
                return "304 Not Modified", [("ETag", tag)], b""
            return "200 OK", [("Content-Type", "application/json"), ("ETag", tag)], data
        return _plain("404 Not Found", "nothing is here; the report is at /")

    def _refreshed(self) -> tuple[str, bytes]:
        """The data and its tag, read anew where a file of the run has changed."""
        with self._lock:
            tag = _state_of(self._run)
            if tag != self._tag:
                data = {**report_data(read_content(self._run), live=True), "optuna": self._with_optuna}
                self._data, self._tag = json.dumps(data, separators=(",", ":"), allow_nan=False).encode(), tag
            return self._tag, self._data

    def _optunas(self, path: str, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Hand a request on to optuna-dashboard, the mirror brought up to date where data is asked for."""
        with self._lock:
            self._optuna = self._optuna or optuna_application(self._run)
            mirror, application = self._optuna
            if path.startswith("/api/"):
                mirror.update()

        def started(status: str, headers: Headers, *rest: Any) -> Callable[[bytes], object]:  # noqa: ANN401
            return start_response(status, [*headers, *HEADERS], *rest)

        return application(environ, started)


def has_optuna_dashboard() -> bool:
    """Whether optuna-dashboard is installed."""
    return importlib.util.find_spec("optuna_dashboard") is not None


def optuna_application(run: str | Path) -> tuple[Mirror, WSGIApplication]:
    """Return a run's mirror with optuna-dashboard over it.

    Raises:
        ParetopressError: There is no such run or no trial yet, or a file of it is damaged.
    """
    import optuna_dashboard

    from paretopress.search.optuna_mirror import Mirror

    mirror = Mirror.of(run)
    application: WSGIApplication = optuna_dashboard.wsgi(mirror.study._storage)
    return mirror, application


def listen(application: WSGIApplication, host: str = LOOPBACK, port: int = PORT) -> WSGIServer:
    """Return a server that listens; `serve_forever` of it answers.

    Args:
        application: What answers.
        host: A loopback address or `localhost`.
        port: 0 takes any free one.

    Raises:
        ConfigError: Another host than loopback, or the port is in use.
    """
    if not is_loopback(host):
        raise ConfigError(
            f"--host {host}: the dashboard has no log-in and listens on this machine only (allowed: 127.0.0.1, ::1, "
            f"localhost; from elsewhere: ssh -L {port or PORT}:127.0.0.1:{port or PORT} THIS_MACHINE)"
        )
    kind = _Server6 if ":" in host else _Server
    try:
        server = kind((host, port), _Handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        reason = "is in use" if error.errno == errno.EADDRINUSE else "needs privileges"
        raise ConfigError(f"--port {port} {reason} (0 takes any free one)") from None
    server.set_app(application)
    return server


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own and nobody else's."""
    name = host.removeprefix("[").removesuffix("]")
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _refusal(environ: Mapping[str, Any]) -> Answer | None:
    """Why a request is not answered: it changes something, or comes by a name that is not this machine's."""
    if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
        status, headers, body = _plain("405 Method Not Allowed", "the dashboard only shows: GET and HEAD")
        return status, [*headers, ("Allow", "GET, HEAD")], body
    if not is_loopback(_host_name(str(environ.get("HTTP_HOST") or ""))):
        return _plain("403 Forbidden", "the dashboard answers to 127.0.0.1, ::1 and localhost only")
    return None


def _host_name(header: str) -> str:
    """The name in a Host header, without the port: `[::1]:80` and `localhost:80`."""
    if header.startswith("["):
        return header[: header.find("]") + 1]
    return header.partition(":")[0]


def _state_of(run: Path) -> str:
    """A tag that changes whenever a file that the page shows does."""
    parts = []
    for name in WATCHED:
        try:
            stat = (run / name).stat()
        except OSError:
            continue
        parts.append((name, stat.st_mtime_ns, stat.st_size))
    return f'"{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"'


def _plain(status: str, text: str) -> Answer:
    return status, [("Content-Type", "text/plain; charset=utf-8")], text.encode()


def _send(environ: Mapping[str, Any], start_response: StartResponse, answer: Answer) -> Iterable[bytes]:
    status, headers, body = answer
    start_response(status, [*headers, ("Content-Length", str(len(body))), ("Cache-Control", "no-store"), *HEADERS])
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without asking a name server for the machine's own name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - the base class's signature
        """Say nothing: a page that refreshes itself would fill the terminal."""

    def address_string(self) -> str:
        """The address, without asking a name server."""
        return str(self.client_address[0])
