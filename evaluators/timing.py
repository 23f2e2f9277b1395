"""Measured latency: a candidate and the dense baseline timed alternately in one process."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

WARM_UP = 20
UNSTEADY = 0.1      # interquartile range over the median: something else was at work
SERIES = 3


@dataclass(frozen=True)
class Timing:
    """Milliseconds per inference.

    Attributes:
        median: Median of the candidate.
        quartiles: First and third quartile of the candidate.
        baseline: Median of the dense baseline, timed in turn with the candidate.
        baseline_quartiles: Its quartiles.
        runs: Counted runs of each.
        slowdown: What all times of the series were divided by (`at_one_speed`).
    """

    median: float
    quartiles: tuple[float, float]
    baseline: float
    baseline_quartiles: tuple[float, float]
    runs: int
    slowdown: float = 1.0

    @property
    def spread(self) -> float:
        """The larger interquartile range of the two, relative to its median."""
        pairs = ((self.quartiles, self.median), (self.baseline_quartiles, self.baseline))
        return max((high - low) / median for (low, high), median in pairs)


def time_steadily(candidate: Any, baseline: Any, inputs: Sequence[Tensor], runs: int = 200) -> Timing:  # noqa: ANN401
    """Time two sessions in turn; a series that something disturbed is taken again, and the steadiest counts.

    Args:
        candidate: Open session.
        baseline: Open session of the dense model.
        inputs: One tensor per input, batch 1.
        runs: Counted runs of each, per series.
    """
    series = [time_alternately(candidate, baseline, inputs, runs)]
    while series[-1].spread > UNSTEADY and len(series) < SERIES:
        series.append(time_alternately(candidate, baseline, inputs, runs))
    return min(series, key=lambda timing: timing.spread)


def at_one_speed(timings: Sequence[Timing | str]) -> list[Timing | str]:
    """Bring series that were taken one after the other to one speed of the machine.

    A machine that others share has minutes in which everything takes half as long again. What is timed in turn meets
    the same minutes, so that its ratio stays; times of different series do not compare. Every series is divided by
    what the dense model took in it over what it took in the median series.

    Args:
        timings: The series, or reasons why there is none, which stay.
    """
    beside = [timing.baseline for timing in timings if isinstance(timing, Timing)]
    usual = float(np.median(beside)) if beside else 1.0
    return [timing if isinstance(timing, str) else _slowed(timing, timing.baseline / usual) for timing in timings]


def _slowed(timing: Timing, slowdown: float) -> Timing:
    (low, high), (dense_low, dense_high) = timing.quartiles, timing.baseline_quartiles
    return Timing(
        timing.median / slowdown, (low / slowdown, high / slowdown), timing.baseline / slowdown,
        (dense_low / slowdown, dense_high / slowdown), timing.runs, timing.slowdown * slowdown,
    )


def time_alternately(candidate: Any, baseline: Any, inputs: Sequence[Tensor], runs: int = 200) -> Timing:  # noqa: ANN401
    """Time two ONNX Runtime sessions in turn, A B A B, after a warm-up.

    Args:
        candidate: Open session.
        baseline: Open session of the dense model.
        inputs: One tensor per input, batch 1.
        runs: Counted runs of each.
    """
    times = np.empty((runs, 2))
    calls = [call_of(opened, inputs) for opened in (candidate, baseline)]
    for index in range(-WARM_UP, runs):
        for column, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if index >= 0:
                times[index, column] = time.perf_counter() - start
    low, middle, high = np.percentile(times * 1e3, [25, 50, 75], axis=0)
    return Timing(
        float(middle[0]), (float(low[0]), float(high[0])), float(middle[1]), (float(low[1]), float(high[1])), runs
    )


def call_of(opened: Any, inputs: Sequence[Tensor]) -> Any:  # noqa: ANN401
    """Return a function that runs an open session once on the inputs."""
    names = [argument.name for argument in opened.get_inputs()]
    feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return lambda: opened.run(None, feed)


def host_description() -> dict[str, Any]:
    """Return the machine and runtime that times are measured on."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    from paretopress.hardware_profiles.host import host_info

    return {
        "cpu": host_info().description,
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "threads": 1,
        "batch": 1,
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 2),
    }
