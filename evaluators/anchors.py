"""Timing a few variants of the model on this machine, so that its profile is right about this very model.

Done once per model and profile: the times are kept beside the profile, and every later search and resumed run
sees the same figures.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.export_onnx import export_onnx, session
from paretopress.compressors.program import Program
from paretopress.compressors.refit import settle
from paretopress.evaluators.costs import uniform_width
from paretopress.evaluators.timing import call_of
from paretopress.hardware_profiles.anchoring import Anchor, anchor
from paretopress.hardware_profiles.catalogue import LOCAL
from paretopress.hardware_profiles.local import cache_path
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.choices import Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.documents import disk_error, fingerprint, read_document, write_json
from paretopress.spaces.errors import ConfigError, ParetopressError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE, Policy
from paretopress.spaces.space import SearchSpace

RUNS = 150            # counted calls of each variant per series
WARM_UP = 10
QUIET = 0.1           # quantile of the calls that counts
DISTURBED = 1.15      # median over quiet time from which on something else was at work
SERIES = 4
PAUSE_SECONDS = 1.0
VERSION = 2           # rises when variants timed by older code should be timed again


def anchored(device: DeviceProfile, program: Program, space: SearchSpace, inputs: Sequence[Tensor]) -> DeviceProfile:
    """Return this machine's profile corrected by measured variants of the model; other profiles as they are.

    Args:
        device: A target.
        program: The captured model.
        space: Its legal choices on the device.
        inputs: A few samples, one tensor per model input; what is timed runs on the first.

    Raises:
        DiskError: The times cannot be stored.
    """
    if device.id != LOCAL:
        return device
    policies = variants(space)
    times = _read(device, program, policies)
    if times is None:
        times = _measure(program, policies, inputs)
        _write(device, program, policies, times)
    return anchor(device, [
        Anchor(name, cost_view(plan(program.structure, policy)), times[name])
        for name, policy in policies.items() if name in times
    ])


def variants(space: SearchSpace) -> dict[str, Policy]:
    """The variants that are timed: together they tell float and integer kernels, conversions and the rest apart."""
    integers = [unit for unit, options in space.options.items() if Weights(8) in options]
    half = uniform_width(space, 0.5)
    found = {
        "dense": DENSE,
        "int8": Policy.of(dict.fromkeys(integers, Weights(8))),
        "half width": half,
        "half width, int8": half.replace(dict.fromkeys(integers, Weights(8))),
        "every second layer int8": Policy.of(dict.fromkeys(integers[::2], Weights(8))),
    }
    distinct: dict[Policy, str] = {}
    for name, policy in found.items():
        distinct.setdefault(policy, name)
    return {name: policy for policy, name in distinct.items()}


def _measure(program: Program, policies: dict[str, Policy], inputs: Sequence[Tensor]) -> dict[str, float]:
    """Milliseconds of every variant that can be exported; none where the dense model cannot."""
    graph = program.graph
    one = [tensor[: 1 if graph.dynamic_batch else graph.batch] for tensor in inputs]
    entries = Entries(program, calibrate(program, [list(inputs)]), "l1")   # which channels stay does not matter here
    with tempfile.TemporaryDirectory(prefix="paretopress-") as temporary:
        opened: dict[str, Any] = {}
        for name, policy in policies.items():
            path = Path(temporary) / f"{len(opened)}.onnx"
            try:
                export_onnx(program, settle(entries, plan(program.structure, policy))[0], path)
                opened[name] = session(path)
            except ParetopressError:
                if policy.is_dense:
                    return {}
        return dict(zip(opened, quiet_times([*opened.values()], one), strict=True))


def quiet_times(sessions: Sequence[Any], inputs: Sequence[Tensor]) -> list[float]:
    """Milliseconds of each session where nothing else is at work: a low quantile of many calls, all in turn.

    A series in which the median is far above that quantile was disturbed, and is taken again after a pause; the
    lowest counts.
    """
    calls = [call_of(opened, inputs) for opened in sessions]
    lowest = np.full(len(calls), np.inf)
    for series in range(SERIES):
        times = np.empty((RUNS, len(calls)))
        for run in range(-WARM_UP, RUNS):
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
        if series < SERIES - 1:
            time.sleep(PAUSE_SECONDS)
    return [float(value) for value in lowest]


def _path(device: DeviceProfile, program: Program, policies: dict[str, Policy]) -> Path:
    shapes = [list(program.graph.by_name[name].shape) for name in program.graph.inputs]
    hashes = [policy.hash for policy in policies.values()]
    identity = fingerprint([device.fingerprint, program.structure.fingerprint, shapes, hashes, VERSION])
    return cache_path().with_name(f"anchors-{identity}.json")


def _read(device: DeviceProfile, program: Program, policies: dict[str, Policy]) -> dict[str, float] | None:
    path = _path(device, program, policies)
    if not path.exists():
        return None
    try:
        content = read_document(path)
    except ConfigError:
        return None
    times = content.get("milliseconds") if isinstance(content, dict) else None
    if not isinstance(times, dict) or not set(times) <= set(policies):
        return None
    sound = all(isinstance(value, float) and value > 0.0 for value in times.values())
    return dict(times) if sound else None


def _write(device: DeviceProfile, program: Program, policies: dict[str, Policy], times: dict[str, float]) -> None:
    path = _path(device, program, policies)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path.parent, error) from None
    write_json(path, {"profile": device.id, "milliseconds": times})
