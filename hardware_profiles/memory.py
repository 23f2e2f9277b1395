"""Peak activation memory by liveness over the execution order, and what a device has room for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paretopress.spaces.kernels import Family, Kernel, Lifetime


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes at the profile's batch; `runtime_bytes` is None where the profile does not know it.

    Attributes:
        peak_activation_bytes: Largest sum of buffers that are alive at one time.
        weight_bytes: Weights in the file that the runtime loads.
        runtime_bytes: What the runtime needs beside them.
    """

    peak_activation_bytes: int
    weight_bytes: int
    runtime_bytes: int | None

    @property
    def ram_bytes(self) -> int:
        """Activations and what is known of the runtime's own data; weights stay in flash."""
        return self.peak_activation_bytes + (self.runtime_bytes or 0)


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


def written_in_place(
    lifetimes: Sequence[Lifetime], kernels: Sequence[Kernel], families: Collection[Family]
) -> tuple[Lifetime, ...]:
    """Shorten the buffers that a kernel writes over.

    A kernel of one of the `families` writes its output over an input that it is the last to read and that is large
    enough, the smallest of these; that input is then alive until the kernel before.

    Args:
        lifetimes: The buffers.
        kernels: The kernels in their order.
        families: Whose kernels run in place.
    """
    result = list(lifetimes)
    by_first = {item.first: item for item in lifetimes if item.first >= 0}
    for index, kernel in enumerate(kernels):
        output = by_first.get(index)
        if kernel.family not in families or output is None:
            continue
        dying = [
            place for place, item in enumerate(result)
            if item.last == index and item.first < index and item.size >= output.size
        ]
        if dying:
            place = min(dying, key=lambda one: result[one].size)
            result[place] = replace(result[place], last=index - 1)
    return tuple(result)
