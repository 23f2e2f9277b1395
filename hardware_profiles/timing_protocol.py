"""How a network is timed in any runtime: warm-up, paced calls beside a fixed reference, a stop on confidence.

This module and the `runtime_*` and `sample_rows` modules import nothing but the standard library, numpy and their
runtime: `paretopress device probe` takes them to machines where nothing else is installed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
Call = Callable[[], object]

WARM_UP = 5
PROFILED_CALLS = 40
FEWEST_CALLS = 16
BATCHES = 8              # of calls, whose means say how certain the mean over all is
CONFIDENT = 0.003        # standard error over mean at which timing stops early
STEADY = 1.08            # a chunk of calls counts where the reference changed less than this around it


@dataclass(frozen=True)
class Node:
    """One executed node of a profile: its name, its operator, microseconds per call."""

    name: str
    operator: str
    microseconds: float


class Profiled(Protocol):
    """A session that also measures its nodes."""

    def call(self) -> object:
        """Run one inference."""

    def nodes(self, slowness: Array) -> list[Node]:
        """End profiling; `slowness` is that of the last calls, shape (calls,)."""


class RuntimeFacts(Protocol):
    """What is known of a runtime without running it."""

    @property
    def name(self) -> str:
        """Name as in profiles."""

    @property
    def version(self) -> str:
        """Version of the installed runtime."""

    @property
    def threads(self) -> int:
        """Threads per inference."""

    @property
    def sees_every_node(self) -> bool:
        """Whether profiles have every executed node, also the shortest."""

    @property
    def executes(self) -> tuple[str, ...]:
        """The arithmetics that models really run in."""


class Runtime(RuntimeFacts, Protocol):
    """What runs serialised ONNX models on a number of threads."""

    def open(self, model: bytes, inputs: Floats) -> Call:
        """Load a model and return a function that runs it once on the inputs."""

    def profile(self, model: bytes, inputs: Floats) -> Profiled | None:
        """Load a model for profiling; None where the runtime has no profiler."""


@dataclass(frozen=True)
class Measurement:
    """One network, timed.

    Attributes:
        wall: Microseconds of one call in the machine's fastest state.
        fastest: Of all counted calls.
        median: Of all counted calls.
        calls: Counted calls.
        slowness: Median time of the reference during the calls, relative to its fastest.
        load: Load average of the last minute, 0 where the system has none.
        seconds: What the measurement took, loading included.
        nodes: Executed nodes, empty where the runtime has no profiler.
    """

    wall: float
    fastest: float
    median: float
    calls: int
    slowness: float
    load: float
    seconds: float
    nodes: tuple[Node, ...]


class Reference:
    """A fixed small network that shows how fast the machine is at this moment.

    On shared hosts a core changes speed by a quarter within tenths of a second (a neighbour on the sibling
    thread, boost clocks). Times are scaled to the fastest state seen and slow moments are left out.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self.best = min(self._read() for _ in range(200))
        self.readings: list[float] = []

    def _read(self) -> float:
        times = []
        for _ in range(2):
            start = time.perf_counter_ns()
            self._call()
            times.append(time.perf_counter_ns() - start)
        return min(times) / 1e3

    def slowness(self) -> float:
        """Time of the reference now, relative to the best so far."""
        now = self._read()
        self.best = min(self.best, now)
        self.readings.append(now)
        return now / self.best

    @property
    def noise(self) -> float:
        """Median slowness so far: 1 on a quiet machine."""
        return float(np.median(self.readings)) / self.best if self.readings else 1.0


def load_average() -> float:
    """Return the load average of the last minute, 0 where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def sample_inputs(shape: Sequence[int]) -> Floats:
    """Return the values that a network of this input shape is timed on."""
    return np.random.default_rng(0).standard_normal(tuple(shape)).astype(np.float32)


def call_times_us(call: Call, repeats: int, warm_up: int = WARM_UP) -> Array:
    """Return microseconds of each of `repeats` calls, shape (repeats,)."""
    for _ in range(warm_up):
        call()
    times = np.empty(repeats)
    for index in range(repeats):
        start = time.perf_counter_ns()
        call()
        times[index] = (time.perf_counter_ns() - start) / 1e3
    return times


def paced_calls_us(
    call: Call, repeats: int, chunk: int, reference: Reference, confident: float = 0.0
) -> tuple[Array, Array]:
    """Time calls in chunks between readings of the reference.

    Args:
        call: Runs the network once.
        repeats: Calls at most.
        chunk: Calls between two readings.
        reference: Shows the machine's speed.
        confident: Stop as soon as the standard error of the mean, relative to it, is below this.

    Returns:
        Microseconds and slowness of each call, both of shape (calls,). A chunk during which the speed
        changed has slowness infinity.
    """
    times, slowness = np.empty(repeats), np.empty(repeats)
    before = reference.slowness()
    check = max(FEWEST_CALLS, BATCHES * chunk)
    for start in range(0, repeats, chunk):
        stop = min(repeats, start + chunk)
        times[start:stop] = call_times_us(call, stop - start, warm_up=0)
        after = reference.slowness()
        steady = max(before, after) / min(before, after) < STEADY
        slowness[start:stop] = (before * after) ** 0.5 if steady else np.inf
        before = after
        if confident and stop >= check and stop < repeats:
            check = stop + BATCHES * chunk
            if standard_error(times[:stop], slowness[:stop]) < confident:
                return times[:stop], slowness[:stop]
    return times, slowness


def quiet_mean(times: Array, slowness: Array) -> float:
    """What the machine's fastest state would show: the mean of the faster half of the steady calls.

    Args:
        times: Microseconds of repeated calls, shape (n,).
        slowness: Of the same calls; only the least slow ones count, scaled to slowness 1.
    """
    if not np.isfinite(slowness).any():
        slowness = np.ones_like(times)
    chosen = slowness <= max(1.06, float(np.quantile(slowness[np.isfinite(slowness)], 0.3)))
    ordered = np.sort(times[chosen] / slowness[chosen])
    return float(ordered[: max(1, (len(ordered) + 1) // 2)].mean())


def standard_error(times: Array, slowness: Array) -> float:
    """Standard error of `quiet_mean`, relative to it, from batches of calls; infinite for too few calls."""
    if len(times) < 2 * BATCHES:
        return float("inf")
    parts = zip(np.array_split(times, BATCHES), np.array_split(slowness, BATCHES))  # noqa: B905 - Python 3.9 reads this
    means = np.array([quiet_mean(part, slow) for part, slow in parts])
    return float(means.std(ddof=1) / means.mean() / BATCHES**0.5)


def time_model(
    model: bytes, shape: Sequence[int], runtime: Runtime, reference: Reference, budget_ms: float = 12.0
) -> Measurement:
    """Time one network by the clock, then node by node.

    Args:
        model: Serialised ONNX.
        shape: Of its one input, batch included.
        runtime: What runs it.
        reference: Shows the machine's speed between the calls.
        budget_ms: Roughly how long each of the two measurements may take.
    """
    began, inputs, readings = time.monotonic(), sample_inputs(shape), len(reference.readings)
    call = runtime.open(model, inputs)
    first = float(call_times_us(call, 3, warm_up=3).min())
    repeats = int(np.clip(budget_ms * 1e3 / first, FEWEST_CALLS, 12.5 * budget_ms))
    chunk = int(np.clip(150 / first, 1, 12))
    times, slowness = paced_calls_us(call, repeats, chunk, reference, CONFIDENT)
    profiled = runtime.profile(model, inputs)
    nodes: list[Node] = []
    if profiled is not None:
        call_times_us(profiled.call, WARM_UP, warm_up=0)
        # Reading the profile costs more than the calls: fewer of them.
        nodes = profiled.nodes(paced_calls_us(profiled.call, min(repeats, PROFILED_CALLS), chunk, reference)[1])
    return Measurement(
        quiet_mean(times, slowness), float(times.min()), float(np.median(times)), len(times),
        float(np.median(reference.readings[readings:])) / reference.best, load_average(),
        time.monotonic() - began, tuple(nodes),
    )


def runtime_of(module: Any, threads: int) -> Runtime:  # noqa: ANN401 - a module
    """Return the runtime that a `runtime_*` module describes."""
    found: Runtime = module.create(threads)
    return found
