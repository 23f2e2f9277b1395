"""Places at which a test may kill the process: between any two steps that something durable depends on.

`PARETOPRESS_FAULT_POINT=NAME:N` kills the process with SIGKILL when it reaches the place NAME for the N-th time.
Without the variable a fault point costs one comparison.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "PARETOPRESS_FAULT_POINT"

WORKER_POINTS = (
    "before announce", "after announce", "before renew", "after renew", "before claim", "inside claim", "after claim",
    "before evaluate", "after evaluate", "inside artefacts", "after artefacts", "before commit", "after commit",
    "before tell", "inside tell", "after tell", "before filing", "after filing",
)
COORDINATOR_POINTS = (
    "before lead", "after lead", "before enqueue", "inside enqueue", "after enqueue", "before record", "after record",
    "before mirror", "after mirror",
)
SWEEPER_POINTS = ("before sweep", "inside sweep", "after sweep", "before drain", "after drain")
FAULT_POINTS = (*WORKER_POINTS, *COORDINATOR_POINTS, *SWEEPER_POINTS)

_reached: dict[str, int] = {}


def fault_point(name: str) -> None:
    """Kill this process where the environment asks for it at this place."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    where, _, count = wanted.partition(":")
    if where == name:
        _reached[name] = _reached.get(name, 0) + 1
        if _reached[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)
