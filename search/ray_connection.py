"""Joining a Ray cluster, or starting one on this machine: safe defaults, and one line where it is not there.

A local instance listens on the loopback address alone, asks for no dashboard and no usage statistics, and only
takes whoever has its token: one of its own, that ends with it, or yours. Joining needs the cluster's token too.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paretopress.spaces.errors import ConfigError

_ANSWER_SECONDS = 5.0     # how long a cluster may take to answer at all
_FRAME_HEADER = 9         # bytes of HTTP/2: length (3), type, flags, stream (4)
_SETTINGS = 4
MODE, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"   # Ray's own variables, read by all of its processes


@dataclass
class Connection:
    """What `connect` did, to be undone.

    Attributes:
        owned: Whether the connection was made here; one that this process had before stays.
        environment: Variables that were set for it, with their values before.
    """

    owned: bool
    environment: Mapping[str, str | None] = field(default_factory=dict)

    def close(self) -> None:
        """End the connection, and Ray where it was started here; harmless when called again."""
        import ray

        if self.owned and ray.is_initialized():
            ray.shutdown()
        _restore(self.environment)
        self.owned, self.environment = False, {}


def connect(address: str | None, resources: Mapping[str, float]) -> Connection:
    """Connect to Ray.

    Args:
        address: Of an existing cluster, or "auto" to find one. None uses the connection this process has, or else
            starts Ray on this machine.
        resources: What an instance that is started offers: `CPU`, `GPU` and names of the user's own.

    Raises:
        ConfigError: No cluster is at `address`, it cannot be joined, or there is no token to show.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if ray.is_initialized():
        return Connection(False)
    if address is not None:
        _check_reachable(address)
    environment = _authenticate(address)
    _report_to_stderr()
    try:
        if address is None:
            _start_on_loopback(resources)
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, OSError, TimeoutError, ray.exceptions.RayError) as error:
        _restore(environment)
        raise _unreachable(address or "this machine", error) from None
    except BaseException:
        _restore(environment)
        raise
    return Connection(True, environment)


def _authenticate(address: str | None) -> dict[str, str | None]:
    """Turn token authentication on where the user's environment leaves that open.

    Ray makes tokens for local instances in the home directory, for all of them and readable by the umask; ours is in
    the environment of the instance's own processes, and ends with them.

    Returns:
        The variables that were set, with their values before.

    Raises:
        ConfigError: A cluster is joined and there is no token.
    """
    if os.environ.get(MODE):
        return {}
    import ray

    before = {MODE: os.environ.get(MODE), TOKEN: os.environ.get(TOKEN)}
    os.environ[MODE] = "token"
    _reload()
    if ray._raylet.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        return before
    if address is not None:
        _restore(before)
        raise ConfigError(
            f"no authentication token for Ray at {address}: whoever reaches a cluster without tokens runs code on it "
            f"(allowed: 'ray get-auth-token --generate', the same file on all nodes, or {MODE}=disabled in the "
            "environment where everyone in the network is trusted)"
        )
    os.environ[TOKEN] = secrets.token_hex(32)
    _reload()
    return before


def _report_to_stderr() -> None:
    """Ray prints what its nodes report (that one died, say) to stdout, which is for results here; for this process."""
    from ray._private import worker

    shown = getattr(worker, "print_to_stdstream", None)
    if shown is None or getattr(shown, "to_stderr", False):
        return

    def to_stderr(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        shown({**data, "is_err": True}, ignore_prefix)

    to_stderr.to_stderr = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = to_stderr


def _restore(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if environment:
        _reload()


def _reload() -> None:
    """Let this process's Ray read the mode again, then the token: the other order can ask for one that is gone."""
    import ray

    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


def _unreachable(address: str, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return ConfigError(f"cannot connect to Ray at {address}: {reason}")


def _check_reachable(address: str) -> None:
    """Refuse at once an address where no Ray listens; Ray itself would try, and print, for minutes."""
    place = address
    try:
        place = _resolve(address)
        host, _, port = place.removeprefix("ray://").rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS) as connection:
            answers = _speaks_grpc(connection)
    except (OSError, OverflowError) as error:
        raise _unreachable(place if address == "auto" else address, error) from None
    if not answers:
        raise ConfigError(f"cannot connect to Ray at {address}: something else listens at {place}")


def _resolve(address: str) -> str:
    """Return what Ray connects to: `auto` found, this machine's names replaced by its address in the network."""
    from ray._private.services import canonicalize_bootstrap_address

    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"Ray address {address!r}: expected HOST:PORT or 'auto'")
    return address if address.startswith("ray://") else str(canonicalize_bootstrap_address(address))


def _speaks_grpc(connection: socket.socket) -> bool:
    """Whether the other side opens HTTP/2 with a SETTINGS frame (RFC 9113, section 3.4), as every gRPC server does."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("0", "false", ""):
        return True   # encrypted: only Ray itself can tell
    preface, no_settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\4\0\0\0\0\0"
    connection.sendall(preface + no_settings)
    answer = b""
    while len(answer) < _FRAME_HEADER:
        received = connection.recv(_FRAME_HEADER - len(answer))
        if not received:
            return False
        answer += received
    return answer[3] == _SETTINGS


def _start_on_loopback(resources: Mapping[str, float]) -> None:
    """Start Ray on 127.0.0.1 alone.

    Ray 2.60 replaces a loopback `_node_ip_address` by the machine's address and then listens on every
    interface, unless this constant (off by default on macOS and Windows) says that no cluster is wanted.
    """
    import ray
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    own = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    try:
        ray.init(
            address="local",
            num_cpus=resources.get("CPU", 1),
            num_gpus=resources.get("GPU", 0),
            resources=own or None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
