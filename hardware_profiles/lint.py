"""Whether a profile can be believed: sources that name a document, plausible figures, costs that grow with work."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.errors import ProfileError
from paretopress.spaces.kernels import Family, Kernel

FEWEST_WORDS = 3                  # of a source: a document, and where in it
_EMPTY_SOURCE = re.compile(r"\b(todo|tbd|fixme|unknown source|guess(ed)?|estimate[d]? by hand|n/a)\b", re.IGNORECASE)
WORST_MAPE = 0.5                  # a mean error above this is no calibration: T0 says the same honestly
FEWEST_MEASURED = 20              # held-out measurements of a T2 profile
# Smallest and largest plausible values by the last part of a path, in the unit that the key names.
RANGES: Mapping[str, tuple[float, float]] = {
    "macs_s": (1e6, 1e17), "bandwidth_bytes_s": (1e6, 1e14), "sram_bytes": (1e3, 1e13), "flash_bytes": (1e3, 1e13),
    "runtime_bytes": (0, 1e11), "runtime_bytes_per_kernel": (0, 1e6), "active_power_mw": (0.01, 1e7),
    "session_us": (0, 1e6), "input_channels": (1, 1024), "output_channels": (1, 1024), "odd": (1, 1024),
    "channel_step": (1, 256), "rank_step": (1, 256), "interval_low": (0.05, 1), "interval_high": (1, 20),
}
CALIBRATION = (0.2, 5.0)
# Multiply-accumulates per second of any convolution by kind of device: what an error of a thousand in a unit leaves.
MACS_PER_SECOND: Mapping[str, tuple[float, float]] = {
    "mcu": (1e5, 1e11), "cpu": (1e6, 1e14), "npu": (1e5, 1e15), "gpu": (1e7, 1e16),
}
_MAY_SHRINK = 0.9                 # of the cost of half the work: corrections of measured profiles are not smooth


def lint(content: Any, source: str, name: str = "") -> list[str]:  # noqa: ANN401 - unvalidated document
    """Return what is wrong with a profile, one line each; empty where nothing is.

    Args:
        content: The parsed document.
        source: The file, for messages.
        name: The id that the profile must have, `""` for any.
    """
    try:
        profile = DeviceProfile.from_plain(content, source)
    except ProfileError as error:
        return [str(error)]
    found = [
        *_numbers(profile.plain), *_identity(profile, name), *_validation(profile), *_formats(profile),
        *_peaks(profile),
    ]
    found += _costs(profile)
    return [f"{source}: {line}" for line in found]


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:  # noqa: ANN401 - plain document
    if isinstance(node, dict):
        if {"value", "basis", "source"} <= set(node):
            yield path, node
            return
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{path}.{index}")


def _numbers(plain: Mapping[str, Any]) -> Iterator[str]:
    for path, leaf in _leaves(plain):
        text = leaf["source"]
        if len(text.split()) < FEWEST_WORDS or _EMPTY_SOURCE.search(text):
            yield f"{path}: source {text!r} names no document (at least {FEWEST_WORDS} words: which, and where in it)"
        key = path.rpartition(".")[2]
        low, high = CALIBRATION if ".calibration." in path else RANGES.get(key, (0.0, np.inf))
        if not low <= leaf["value"] <= high:
            yield f"{path}: {leaf['value']:g} is not plausible (allowed: {low:g} to {high:g}); is the unit right?"


def _identity(profile: DeviceProfile, name: str) -> Iterator[str]:
    if name and profile.id != name:
        yield f"id: {profile.id!r} is not the file's name {name!r}"
    if not profile.notes:
        yield "notes: missing; say which chip, clock, runtime and what the figures do not cover"


def _validation(profile: DeviceProfile) -> Iterator[str]:
    entries = profile.document.validation
    for index, entry in enumerate(entries):
        if len(entry.source.split()) < FEWEST_WORDS:
            yield f"validation.{index}: source {entry.source!r} names no document"
    measured = sum(entry.n for entry in entries)
    error = sum(entry.n * entry.mape for entry in entries) / max(1, measured)
    if error > WORST_MAPE:
        yield f"validation: mean error {error:.0%} is no calibration (at most {WORST_MAPE:.0%}); make it a T0 profile"
    if profile.tier == "T2" and measured < FEWEST_MEASURED:
        yield f"validation: {measured} held-out measurements are too few for T2 (at least {FEWEST_MEASURED})"


def _formats(profile: DeviceProfile) -> Iterator[str]:
    """Every arithmetic that a format executes as needs figures for convolutions or linear layers."""
    document = profile.document
    wanted = {str(item.executes) for item in document.formats if item.executes}
    if not wanted:
        yield "formats: every format is refused"
    if document.latency is None:
        known = {str(peak.executes) for peak in document.peaks}
    else:
        known = {
            str(item.executes) for item in document.latency.predictors if item.family in (Family.CONV, Family.LINEAR)
        }
    for executed in sorted(wanted - known):
        yield f"formats: nothing prices {executed} arithmetic; refuse these formats or add figures"


def _peaks(profile: DeviceProfile) -> Iterator[str]:
    peaks = {peak.executes: peak.macs_s.value for peak in profile.document.peaks}
    if "int8" in peaks and "float32" in peaks and peaks["int8"] < peaks["float32"]:
        yield f"peaks: int8 {peaks['int8']:g} is below float32 {peaks['float32']:g}"


def _convolution(channels: int, side: int, window: int, bits: int, family: Family) -> Kernel:
    depthwise = family is Family.DEPTHWISE
    return Kernel(
        f"{window}x{window} {family.value}, {channels} channels, {side} x {side}", family, "layer", bits, bits,
        channels, channels, (window, window), (1, 1), channels if depthwise else 1, (side, side), (side, side), 1,
        (), channels * side * side, channels * side * side,
    )


def _linear(features: int, bits: int) -> Kernel:
    return Kernel(
        f"linear, {features} features", Family.LINEAR, "layer", bits, bits, features, features,
        input_elements=features, output_elements=features,
    )


_GROWING = (
    *((Family.CONV, 16, side, window) for side in (8, 32) for window in (1, 3)),
    *((Family.CONV, 64, side, window) for side in (8, 32) for window in (1, 3)),
    *((Family.DEPTHWISE, 64, side, 3) for side in (8, 32)),
)


def _costs(profile: DeviceProfile) -> Iterator[str]:
    """No more work for less time, and rates between those of a microcontroller and of a data centre."""
    executed = {(item.weights, item.activations) for item in profile.document.formats if item.executes}
    for bits in (bits for bits in (8, 32) if (bits, bits) in executed):
        for family, channels, side, window in _GROWING:
            small = _convolution(channels, side, window, bits, family)
            larger = (
                _convolution(2 * channels, side, window, bits, family),
                _convolution(channels, 2 * side, window, bits, family),
            )
            yield from _grows(profile, small, larger)
        yield from _grows(profile, _linear(256, bits), (_linear(512, bits),))


def _grows(profile: DeviceProfile, small: Kernel, larger: tuple[Kernel, ...]) -> Iterator[str]:
    try:
        costs: NDArray[np.float64] = profile.kernel_cost([small, *larger])
    except ProfileError:
        return   # a family without figures is unknown, which is allowed
    title = f"{small.name}, {small.weight_bits} bits"
    for kernel, cost in zip(larger, costs[1:], strict=True):
        if cost < _MAY_SHRINK * costs[0]:
            yield f"{title}: costs {costs[0]:.4g} us, twice the work ({kernel.name}) {cost:.4g} us"
    rate = small.macs / costs[0] * 1e6
    slowest, fastest = MACS_PER_SECOND[profile.document.kind]
    if not slowest <= rate <= fastest:
        yield f"{title}: {rate:.3g} multiply-accumulates per second are not plausible; is the unit microseconds?"
