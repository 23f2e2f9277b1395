"""Peak activation memory by liveness over the execution order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paretopress.spaces.kernels import Lifetime


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes at the profile's batch; `runtime_bytes` is None where the profile does not know it."""

    peak_activation_bytes: int
    weight_bytes: int
    runtime_bytes: int | None


def peak_bytes(lifetimes: Sequence[Lifetime], kernels: int) -> int:
    """Return the largest sum of sizes of buffers that are alive during one kernel.

    A buffer is alive from the kernel that writes it to the last kernel that reads it, both included: while
    a kernel runs, its inputs and its output exist. Model inputs are alive from before the first kernel,
    model outputs until after the last. Fragmentation of a real arena is not modelled.

    Args:
        lifetimes: The buffers.
        kernels: Number of kernels.
    """
    change = np.zeros(kernels + 3, dtype=np.int64)
    for item in lifetimes:
        change[item.first + 1] += item.size
        change[max(item.last, item.first) + 2] -= item.size
    return int(np.cumsum(change).max(initial=0))
