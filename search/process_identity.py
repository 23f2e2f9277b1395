"""Names of processes that tell whether one on this host still lives."""

from __future__ import annotations

import functools
import os
import secrets
import socket
from pathlib import Path

from paretopress.spaces.documents import fingerprint


@functools.cache
def _host() -> str:
    """This boot of this host, and this set of process numbers: the same number elsewhere is another process."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(str(Path(path).readlink()) if path.endswith("/pid") else Path(path).read_text().strip())
        except OSError:
            parts.append(secrets.token_hex(8))   # then nothing is known of any other process
    return fingerprint(parts)[:12]


def process_name() -> str:
    """A name for this process that no other one ever has: host, process number, chance."""
    return f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


def is_known_dead(name: str) -> bool:
    """Whether a process of that name ran on this host and has ended. Of others nothing is known."""
    host, _, rest = name.partition("-")
    number = rest.partition("-")[0]
    if host != _host() or not number.isdecimal():
        return False
    try:
        state = Path(f"/proc/{int(number)}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state in ("Z", "X")
