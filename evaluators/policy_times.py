"""Timing policies on this machine before anything is trained: stitched networks, exported, all called in turn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx, session
from paretopress.compressors.refit import settle
from paretopress.evaluators.timing import call_of
from paretopress.spaces.errors import ParetopressError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

RUNS = 150            # counted calls of each session per series
WARM_UP = 10
QUIET = 0.1           # quantile of the calls that counts
DISTURBED = 1.15      # median over quiet time from which on something else was at work
SERIES = 4
PAUSE_SECONDS = 1.0


def policy_times(
    entries: Entries, policies: Sequence[Policy], inputs: Sequence[Tensor], runs: int = RUNS, series: int = SERIES
) -> list[float | None]:
    """Milliseconds of policies' networks in ONNX Runtime on one thread, None for what cannot be exported or opened.

    Args:
        entries: Compressed layers of the model, which candidates are stitched from: how well these are fitted does not
            change the time.
        policies: What to time; all in turn, so that they compare with each other.
        inputs: Samples, one tensor per model input; what is timed runs on the first of them.
        runs: Counted calls of each per series.
        series: How often the measurement is taken at most where something disturbs it.
    """
    program = entries.program
    one = [tensor[: 1 if program.graph.dynamic_batch else program.graph.batch] for tensor in inputs]
    with tempfile.TemporaryDirectory(prefix="paretopress-") as temporary:
        opened: dict[int, Any] = {}
        for number, policy in enumerate(policies):
            path = Path(temporary) / f"{number}.onnx"
            try:
                export_onnx(program, settle(entries, plan(program.structure, policy))[0], path)
                opened[number] = session(path)
            except ParetopressError:
                continue
        found = dict(zip(opened, quiet_times([*opened.values()], one, runs, series), strict=True))
    return [found.get(number) for number in range(len(policies))]


def quiet_times(
    sessions: Sequence[Any], inputs: Sequence[Tensor], runs: int = RUNS, series: int = SERIES
) -> list[float]:
    """Milliseconds of each session where nothing else is at work: a low quantile of many calls, all in turn.

    A series in which the median is far above that quantile was disturbed, and is taken again after a pause; the
    lowest counts.
    """
    calls = [call_of(opened, inputs) for opened in sessions]
    lowest = np.full(len(calls), np.inf)
    for number in range(series if calls else 0):
        times = np.empty((runs, len(calls)))
        for run in range(-WARM_UP, runs):
            for column, call in enumerate(calls):
                call()   # the one before has filled the caches with its own weights
                start = time.perf_counter()
                call()
                if run >= 0:
                    times[run, column] = time.perf_counter() - start
        low, middle = np.quantile(times, [QUIET, 0.5], axis=0) * 1e3
        lowest = np.minimum(lowest, low)
        if float((middle / low).max()) < DISTURBED:
            break
        if number < series - 1:
            time.sleep(PAUSE_SECONDS)
    return [float(value) for value in lowest]
