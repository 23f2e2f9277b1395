"""Measures this machine: times random small networks in ONNX Runtime, fits a profile, checks it on others."""

from __future__ import annotations

import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from paretopress.hardware_profiles.accuracy import accuracy
from paretopress.hardware_profiles.fit import Fitted, fit_model, kernel_accuracy, network_us, with_interval
from paretopress.hardware_profiles.host import host_info
from paretopress.hardware_profiles.networks import MODES, random_network
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.hardware_profiles.schema import SCHEMA
from paretopress.hardware_profiles.terms import derived_families
from paretopress.hardware_profiles.timing import Reference, Timed, import_onnxruntime, time_network
from paretopress.hardware_profiles.writing import latency_section, number, validation_entry
from paretopress.spaces.errors import ProfileError

FEWEST_NETWORKS = 12
_HELD_OUT_EVERY = 5
_NOISY, _TOO_NOISY = 1.25, 4.0
_THIS_MACHINE = "This machine: "
_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")   # as the schema has it
_FIT_SECONDS = 0.15  # share of the time kept for fitting

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Campaign:
    """Timed networks and how noisy the machine was (1: quiet)."""

    timed: tuple[Timed, ...]
    noise: float


def time_networks(seconds: float, seed: int = 0, progress: Progress | None = None) -> Campaign:
    """Time random networks, float32, int8 and mixed in turn, until the time is over.

    Args:
        seconds: Wall-clock budget; at least `FEWEST_NETWORKS` networks are timed whatever it takes.
        seed: First seed of the networks.
        progress: Called with the share done and a word.

    Raises:
        ProfileError: The machine is too noisy to measure.
    """
    start = time.monotonic()
    reference = Reference()
    timed: list[Timed] = []
    while len(timed) < FEWEST_NETWORKS or time.monotonic() - start < seconds:
        index = len(timed)
        timed.append(time_network(random_network(seed + index, MODES[index % len(MODES)]), reference))
        if progress is not None:
            done = min(1.0, (time.monotonic() - start) / max(seconds, 1e-9))
            progress(done, f"{len(timed)} networks timed")
        if len(timed) == FEWEST_NETWORKS:
            _check_noise(reference)
    return Campaign(tuple(timed), reference.noise)


def _check_noise(reference: Reference) -> None:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if reference.noise > _TOO_NOISY:
        raise ProfileError(
            f"this machine is too busy to measure: a fixed kernel takes {reference.noise:.1f} times its "
            f"fastest time (load average {load:.1f}); stop other work and measure again"
        )
    if reference.noise > _NOISY:
        warnings.warn(
            f"this machine is busy (a fixed kernel takes {reference.noise:.2f} times its fastest time, load "
            f"average {load:.1f}): measured figures are less certain",
            stacklevel=3,
        )


def split(timed: Sequence[Timed]) -> tuple[list[Timed], list[Timed]]:
    """Return (training, held-out) networks; the held-out ones contain every mode."""
    held = [item for index, item in enumerate(timed) if index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1]
    return [item for index, item in enumerate(timed) if index % _HELD_OUT_EVERY != _HELD_OUT_EVERY - 1], held


def fit_campaign(device: str, campaign: Campaign, source: str) -> tuple[Fitted, list[dict[str, Any]]]:
    """Fit on part of a campaign and validate on the rest.

    Returns:
        The model with its interval, and the validation entries: whole networks, per mode and per kernel
        family in each executed type.
    """
    training, held = split(campaign.timed)
    fitted = fit_model(device, training)
    walls = np.array([item.wall for item in held])
    predicted = network_us(fitted.model, held)
    overall = accuracy(predicted, walls)
    entries = [validation_entry("held-out networks", overall, source)]
    for mode in MODES:
        members = [index for index, item in enumerate(held) if mode_of(item) == mode]
        if members:
            entries.append(
                validation_entry(
                    f"held-out {mode} networks", accuracy(predicted[members], walls[members]), source
                )
            )
    for (family, executed), result in kernel_accuracy(fitted, held).items():
        entries.append(validation_entry(f"held-out {executed} {family} kernels over 5 us", result, source))
    return replace(fitted, model=with_interval(derived_families(fitted.model), overall)), entries


def mode_of(timed: Timed) -> str:
    """Whether a network is float32, int8 or mixed."""
    widths = {kernel.activation_bits for kernel in timed.network.view.kernels}
    return "mixed" if len(widths) > 1 else "int8" if widths == {8} else "float32"


FORMATS: tuple[dict[str, Any], ...] = (
    {"weights": 32, "activations": 32, "status": "legal", "executes": "float32"},
    {"weights": 8, "activations": 8, "status": "fast", "executes": "int8"},
    *(
        {
            "weights": bits,
            "activations": 8,
            "status": "legal",
            "executes": "int8",
            "reason": f"{bits}-bit weights are stored packed and run in an int8 container: the speed of int8",
        }
        for bits in (4, 3, 2)
    ),
    *(
        {
            "weights": bits,
            "activations": 32,
            "status": "size_only",
            "executes": "float32",
            "reason": "weight-only: convolutions run in float32 after the weights are expanded",
        }
        for bits in (8, 4, 3, 2)
    ),
)
# Families that no random network contains.
NOT_MEASURED = {
    "matmul": "products of activations are priced like linear layers on one row",
    "other": "operators without a rule are priced like an activation that no kernel absorbs",
}
FLOAT_FAMILIES = {
    "elementwise": "activations that no kernel absorbs are exported in float",
    "norm": "ONNX Runtime has no int8 kernel for this normalisation on CPU",
    "matmul": "products of two activations are exported in float",
    "other": "operators without a rule stay in float",
}


def onnxruntime_document(
    identifier: str,
    tier: str,
    notes: str,
    fitted: Fitted,
    entries: list[dict[str, Any]],
    host: dict[str, Any],
    source: str,
) -> dict[str, Any]:
    """Return the profile document of an x86 CPU with ONNX Runtime."""
    rule = "int8 convolutions of ONNX Runtime copy channels whose count is no multiple of 4: they lose time"
    latency = latency_section(fitted.model, "measured", source)
    for predictor in latency["predictors"]:
        if predictor["family"] in NOT_MEASURED:
            origin = f"derived: {NOT_MEASURED[predictor['family']]}; {source}"
            predictor["terms"] = {
                name: number(leaf["value"], "derived", origin) for name, leaf in predictor["terms"].items()
            }
    return {
        "schema": SCHEMA,
        "id": identifier,
        "kind": "cpu",
        "tier": tier,
        "notes": notes,
        "runtime": {
            "name": "onnxruntime",
            "version": import_onnxruntime().__version__,
            "threads": 1,
            "batch": 1,
            "removes_dead_branches": True,
        },
        "host": host,
        "formats": list(FORMATS),
        "float_families": FLOAT_FAMILIES,
        "align": {"channel_step": number(4, "measured", rule), "rank_step": number(4, "measured", rule)},
        "latency": latency,
        "validation": entries,
    }


def profile_id(text: str) -> str:
    """Return the id of a profile of one's own.

    Raises:
        ProfileError: Not an id, or one that names this machine or a shipped profile.
    """
    from paretopress.hardware_profiles.catalogue import LOCAL, list_profiles

    if not _ID.fullmatch(text):
        raise ProfileError(
            f"profile id {text!r}: allowed are small letters, digits, '.', '_' and '-', a letter or digit first"
        )
    if text in (LOCAL, *list_profiles()):
        raise ProfileError(f"profile id {text!r} is taken (allowed: any but {', '.join((LOCAL, *list_profiles()))})")
    return text


def renamed(profile: DeviceProfile, identifier: str) -> DeviceProfile:
    """Return a measured profile under an id of its own, for targets on other machines.

    Raises:
        ProfileError: See `profile_id`.
    """
    notes = profile.notes.replace(_THIS_MACHINE, "Measured on ", 1)
    return DeviceProfile.from_plain({**profile.plain, "id": profile_id(identifier), "notes": notes}, identifier)


def measure_local(seconds: float = 60, progress: Progress | None = None, seed: int = 0) -> DeviceProfile:
    """Measure this machine and return its profile (`local`), without caching it.

    Args:
        seconds: Wall-clock budget, fitting included.
        progress: Called with the share done and a word.
        seed: Seed of the random networks.

    Raises:
        ProfileError: The machine is too noisy.
    """
    campaign = time_networks(seconds * (1 - _FIT_SECONDS), seed, progress)
    host = host_info()
    source = (
        f"measured on {host.description} with ONNX Runtime {import_onnxruntime().__version__}, one thread, "
        f"{len(campaign.timed)} random networks, {time.strftime('%Y-%m-%d')}, noise {campaign.noise:.2f}"
    )
    fitted, entries = fit_campaign("local", campaign, source)
    wanted: dict[str, Any] = {"cpu_model": host.model, "machine": platform.machine()}
    if host.family is not None:
        wanted["cpu_family"] = host.family
    content = onnxruntime_document(
        "local", "T2", f"{_THIS_MACHINE}{host.description}.", fitted, entries, wanted, source
    )
    return DeviceProfile.from_plain(content, "local")
