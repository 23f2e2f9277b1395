"""Anchoring: correcting a measured profile by a few whole networks of the very model that is searched.

A profile fitted to hundreds of other networks may be off by a tenth or two for one model, and by different factors
for its parts: a model of small kernels waits for the runtime, one of large ones for the arithmetic. A few variants
of the model, timed, say how much slower or faster than predicted each part is here. This is transfer of a latency
predictor by few measurements, as in HELP (Lee et al., NeurIPS 2021), with a linear model in place of a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.kernels import CostView

Array = NDArray[np.float64]
PARTS = ("float kernels", "integer kernels", "conversions", "session")
SPREAD = 0.25      # expected size of the logarithm of a part's factor: what a profile is off by for one model
NOISE = 0.02       # of the logarithm of a measured time
ROUNDS = 20
HALVINGS = 20
LARGEST = 8.0      # a part's factor is between its inverse and this; MiniLM's float kernels take 3.8 times as long


@dataclass(frozen=True, slots=True)
class Anchor:
    """A variant of the model that was timed.

    Attributes:
        name: What it is, for messages.
        view: Its cost view.
        milliseconds: Measured median.
    """

    name: str
    view: CostView
    milliseconds: float


def part_times(profile: DeviceProfile, view: CostView) -> Array:
    """Predicted microseconds of the `PARTS` of a network, shape (4,).

    Raises:
        ProfileError: The profile has no milliseconds, or cannot execute the network.
    """
    times = profile.kernel_us(view.kernels)
    floats = np.array([profile.executes(kernel) != "int8" for kernel in view.kernels], dtype=bool)
    return np.array([
        times[floats].sum(), times[~floats].sum(), profile.boundary_us(view.boundaries).sum(), profile.session_us,
    ])


def fit_factors(parts: Array, measured: Array) -> Array:
    """Fit a factor to every part, so that the predicted sums agree with what was measured.

    The most probable logarithms of the factors where they are normal with standard deviation `SPREAD` around 0
    and measured logarithms normal with `NOISE` around the predicted ones: Gauss-Newton on the squared errors, steps
    halved until these fall, so that the networks are never predicted worse than without factors.
    A part that no network has keeps the factor 1.

    Args:
        parts: Predicted times of the parts of every network, shape (networks, parts), not negative.
        measured: Measured times in the same unit, shape (networks,), positive.

    Returns:
        Shape (parts,).
    """
    logs = np.zeros(parts.shape[1])
    errors = _errors(parts, measured, logs)
    for _ in range(ROUNDS):
        shares = parts * np.exp(logs)
        slopes = np.vstack([shares / shares.sum(axis=1)[:, None] / NOISE, -np.eye(len(logs)) / SPREAD])
        step = np.linalg.lstsq(slopes, errors, rcond=None)[0]
        for _ in range(HALVINGS):
            moved = np.clip(logs + step, -np.log(LARGEST), np.log(LARGEST))
            found = _errors(parts, measured, moved)
            if found @ found < errors @ errors:
                break
            step = step / 2.0
        else:
            break
        logs, errors = moved, found
    result: Array = np.exp(logs)
    return result


def _errors(parts: Array, measured: Array, logs: Array) -> Array:
    """What is squared and summed: errors of the logarithms of all times, then the logarithms of the factors."""
    total = (parts * np.exp(logs)).sum(axis=1)
    return np.concatenate([(np.log(measured) - np.log(total)) / NOISE, logs / SPREAD])


def anchor(profile: DeviceProfile, anchors: Sequence[Anchor]) -> DeviceProfile:
    """Return a profile that agrees with the timed networks as far as one factor per part can.

    Args:
        profile: A profile in milliseconds.
        anchors: Timed variants of the model, the dense one among them.

    Raises:
        ProfileError: The profile has no milliseconds, or cannot execute one of the networks.
    """
    if not anchors:
        return profile
    parts = np.array([part_times(profile, one.view) for one in anchors])
    measured = np.array([one.milliseconds * 1e3 for one in anchors])
    factors = fit_factors(parts, measured)
    return _scaled(profile, factors, tuple(one.name for one in anchors))


def _scaled(profile: DeviceProfile, factors: Array, names: Sequence[str]) -> DeviceProfile:
    floats, integers, conversions, session = (round(float(factor), 6) for factor in factors)
    latency = profile.document.latency
    assert latency is not None
    count = "1 network" if len(names) == 1 else f"{len(names)} networks"
    source = f"anchored on {count} of the model: {', '.join(names)}"
    calibration: dict[Any, Any] = {}
    for executes in dict.fromkeys(predictor.executes for predictor in latency.predictors):
        known = latency.calibration.get(executes)
        factor = integers if executes == "int8" else floats
        number = {"value": (known.value if known else 1.0) * factor, "basis": "fitted", "source": source}
        calibration[executes] = number
    plain = profile.plain
    boundaries = []
    for entry in plain["latency"].get("boundaries", []):
        terms = {name: {**term, "value": term["value"] * conversions} for name, term in entry["terms"].items()}
        boundaries.append({**entry, "terms": terms})
    session_us = {**plain["latency"]["session_us"], "value": plain["latency"]["session_us"]["value"] * session}
    shown = ", ".join(f"{part} x{factor:.2f}" for part, factor in zip(PARTS, factors, strict=True))
    content = {
        **plain,
        "latency": {
            **plain["latency"], "anchors": f"{source} ({shown})", "calibration": calibration,
            "boundaries": boundaries, "session_us": session_us,
        },
    }
    return DeviceProfile.from_plain(content, f"{profile.id}, anchored")
