"""Timing in ONNX Runtime on one thread: whole calls by the clock, kernels by the runtime's own profiler."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretopress.hardware_profiles.kernels_onnx import ModelBuilder
from paretopress.hardware_profiles.networks import Network
from paretopress.spaces.errors import ProfileError

Array = NDArray[np.float64]
_LAYOUT = ("Transpose", "ReorderInput", "ReorderOutput")
_CONVERSIONS = {"QuantizeLinear": "quantize", "DequantizeLinear": "dequantize"}
# The profiler reports whole microseconds, cut off: half a microsecond is what that loses on average.
_CUT_OFF_US = 0.5
_WARM_UP = 5
_PROFILED_CALLS = 40


@dataclass(frozen=True, slots=True)
class Timed:
    """Measurements of one network, microseconds.

    Attributes:
        network: What was timed.
        wall: One call by the clock.
        kernels: Profiler time per kernel, shape (kernels,), profiler overhead included; 0 where the runtime
            fused the kernel into another.
        kernel_events: Executed nodes per kernel.
        boundaries: Profiler time per boundary, shape (boundaries,).
        boundary_events: Executed nodes per boundary.
    """

    network: Network
    wall: float
    kernels: Array
    kernel_events: Array
    boundaries: Array
    boundary_events: Array

    @property
    def events(self) -> float:
        """Executed nodes."""
        return float(self.kernel_events.sum() + self.boundary_events.sum())

    @property
    def profiled(self) -> float:
        """Sum over all executed nodes."""
        return float(self.kernels.sum() + self.boundaries.sum())


def import_onnxruntime() -> Any:  # noqa: ANN401 - a module without types
    """Import ONNX Runtime with its telemetry switched off first."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def open_session(model: bytes, profile_prefix: str | None = None) -> Any:  # noqa: ANN401 - untyped class
    """Open a session on one thread, as verified models are timed.

    WeightBiasQuantization is disabled: it would turn float layers between quantised ones into int8.
    """
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    return runtime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )


class Reference:
    """A fixed small convolution that shows how fast the machine is at this moment.

    On shared hosts a core changes speed by a quarter within tenths of a second (a neighbour on the sibling
    thread, boost clocks). Times are scaled to the fastest state seen and slow moments are left out.
    """

    def __init__(self) -> None:
        builder = ModelBuilder(0)
        value = builder.start(32, (16, 16))
        for _ in range(2):
            value = builder.conv(value, 32, (3, 3))
        model, _ = builder.build(value)
        self._session = open_session(model)
        self._feed = {"input": np.zeros((1, 32, 16, 16), np.float32)}
        self.best = min(self._read() for _ in range(200))
        self.readings: list[float] = []

    def _read(self) -> float:
        times = []
        for _ in range(2):
            start = time.perf_counter_ns()
            self._session.run(None, self._feed)
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


def call_times_us(
    session: Any,  # noqa: ANN401 - untyped class
    feed: dict[str, NDArray[np.float32]],
    repeats: int,
    warm_up: int = 5,
) -> Array:
    """Return microseconds of each of `repeats` calls, shape (repeats,)."""
    for _ in range(warm_up):
        session.run(None, feed)
    times = np.empty(repeats)
    for index in range(repeats):
        start = time.perf_counter_ns()
        session.run(None, feed)
        times[index] = (time.perf_counter_ns() - start) / 1e3
    return times


def paced_calls_us(
    session: Any,  # noqa: ANN401 - untyped class
    feed: dict[str, NDArray[np.float32]],
    repeats: int,
    chunk: int,
    reference: Reference,
) -> tuple[Array, Array]:
    """Time calls in chunks between readings of the reference.

    Returns:
        Microseconds and slowness of each call, both of shape (repeats,). A chunk during which the speed
        changed has slowness infinity.
    """
    times, slowness = np.empty(repeats), np.empty(repeats)
    before = reference.slowness()
    for start in range(0, repeats, chunk):
        stop = min(repeats, start + chunk)
        times[start:stop] = call_times_us(session, feed, stop - start, warm_up=0)
        after = reference.slowness()
        steady = max(before, after) / min(before, after) < 1.08
        slowness[start:stop] = (before * after) ** 0.5 if steady else np.inf
        before = after
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


def time_network(network: Network, reference: Reference, budget_ms: float = 12.0) -> Timed:
    """Time one network by the clock, then kernel by kernel.

    Args:
        network: The model and its cost view.
        reference: Shows the machine's speed between the calls.
        budget_ms: Roughly how long each of the two measurements may take.
    """
    feed = {"input": np.random.default_rng(0).standard_normal(network.input_shape).astype(np.float32)}
    session = open_session(network.model)
    first = float(call_times_us(session, feed, 3, warm_up=3).min())
    repeats = int(np.clip(budget_ms * 1e3 / first, 16, 150))
    chunk = int(np.clip(150 / first, 1, 12))
    wall = quiet_mean(*paced_calls_us(session, feed, repeats, chunk, reference))
    with tempfile.TemporaryDirectory(prefix="paretopress-") as folder:
        profiled = open_session(network.model, str(Path(folder) / "profile"))
        call_times_us(profiled, feed, _WARM_UP, warm_up=0)
        # Reading the profile costs more than the calls: fewer of them.
        _, slowness = paced_calls_us(profiled, feed, min(repeats, _PROFILED_CALLS), chunk, reference)
        events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
    return _assign(network, wall, _node_times(events, slowness))


def _node_times(events: Sequence[dict[str, Any]], slowness: Array) -> list[tuple[str, str, float]]:
    """Return (node name, operator, microseconds) in execution order."""
    times: dict[str, list[float]] = {}
    operators: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            times.setdefault(name, []).append(float(event["dur"]))
            operators[name] = event["args"]["op_name"]
    result = []
    for name, values in times.items():
        calls = np.array(values[-len(slowness) :]) + _CUT_OFF_US
        result.append((name, operators[name], quiet_mean(calls, slowness[-len(calls) :])))
    return result


def _assign(network: Network, wall: float, nodes: list[tuple[str, str, float]]) -> Timed:
    """Add executed nodes up per kernel and per boundary."""
    view = network.view
    kernels, kernel_events = np.zeros(len(view.kernels)), np.zeros(len(view.kernels))
    boundaries, boundary_events = np.zeros(len(view.boundaries)), np.zeros(len(view.boundaries))
    owners = [_owner(network, name, operator) for name, operator, _ in nodes]
    for index, (name, operator, spent) in enumerate(nodes):
        owner = owners[index] or _layout_owner(owners, nodes, index)
        if owner is None:
            raise ProfileError(
                f"cannot tell which kernel the runtime's node {name!r} ({operator}) belongs to"
            )
        if owner[0] == "kernel":
            kernels[owner[1]] += spent
            kernel_events[owner[1]] += 1
        else:
            boundaries[owner[1]] += spent
            boundary_events[owner[1]] += 1
    return Timed(network, wall, kernels, kernel_events, boundaries, boundary_events)


def _owner(network: Network, name: str, operator: str) -> tuple[str, int] | None:
    """The kernel or boundary in a node's name; None for layout changes, which the runtime names itself."""
    if operator in _LAYOUT:
        return None
    found = re.search(r"(?:^|\s)([bk])(\d+)_", name)
    if found is None:
        return None
    if found[1] == "b":
        return "boundary", int(found[2])
    if operator in _CONVERSIONS:
        for index, item in enumerate(network.view.boundaries):
            if item.kind == _CONVERSIONS[operator] and item.tensor.startswith(f"k{found[2]}_"):
                return "boundary", index
    return "kernel", int(found[2])


def _layout_owner(
    owners: list[tuple[str, int] | None], nodes: list[tuple[str, str, float]], index: int
) -> tuple[str, int] | None:
    """A layout change beside a conversion, or a transpose, belongs to it; else to the kernel it serves."""
    near = sorted((abs(other - index), owner) for other, owner in enumerate(owners) if owner)
    reach = len(nodes) if nodes[index][1] == "Transpose" else 1
    conversion = next(
        (owner for distance, owner in near if owner[0] == "boundary" and distance <= reach), None
    )
    if conversion is not None:
        return conversion
    before = next((owner for owner in reversed(owners[:index]) if owner), None)
    after = next((owner for owner in owners[index + 1 :] if owner), None)
    return (before or after) if nodes[index][1] == "ReorderOutput" else (after or before)
