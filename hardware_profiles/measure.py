"""Measures this machine: times random small networks in a runtime, fits a profile, checks it on others."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from paretopress.hardware_profiles.accuracy import accuracy
from paretopress.hardware_profiles.coverage import Coverage, held_out_errors
from paretopress.hardware_profiles.fit import Fitted, fit_model, kernel_accuracy, network_us, with_interval
from paretopress.hardware_profiles.host import HostInfo, host_info
from paretopress.hardware_profiles.measured_document import TITLES, profile_document
from paretopress.hardware_profiles.networks import MODES, Network
from paretopress.hardware_profiles.priors import GENERAL, Prior
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.hardware_profiles.runtimes import open_runtime
from paretopress.hardware_profiles.sample_rows import Drawn, append_row, cut_torn_line, row_of, setting_of
from paretopress.hardware_profiles.samples import network_hash, read_samples, timed_networks
from paretopress.hardware_profiles.terms import derived_families
from paretopress.hardware_profiles.timing import Timed, open_reference, timed_of
from paretopress.hardware_profiles.timing_protocol import Runtime, RuntimeFacts, load_average, time_model
from paretopress.hardware_profiles.writing import validation_entry
from paretopress.spaces.documents import disk_error
from paretopress.spaces.errors import ProfileError

FEWEST_NETWORKS = 12
_HELD_OUT_EVERY = 5
_NOISY, _TOO_NOISY = 1.25, 4.0
_THIS_MACHINE = "This machine: "
_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")   # as the schema has it
_FIT_SECONDS = 0.15  # share of the time kept for fitting
REFINED_FROM, REFINED_FROM_SECONDS = 120, 120.0   # networks and seconds from which on errors steer what is timed

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Campaign:
    """Timed networks and how noisy the machine was (1: quiet)."""

    timed: tuple[Timed, ...]
    noise: float
    runtime: RuntimeFacts


@dataclass(frozen=True, slots=True)
class Settings:
    """How a machine is measured.

    Attributes:
        seconds: Wall-clock time for timing networks, samples of an earlier start included.
        seed: First seed of the networks.
        prior: What networks are drawn from.
        most: Networks at most, None for no limit.
        budget_ms: Roughly how long each of the two measurements of a network may take, loading apart.
        samples: File that raw samples are appended to, and that a measurement is continued from.
    """

    seconds: float
    seed: int = 0
    prior: Prior = GENERAL
    most: int | None = None
    budget_ms: float = 12.0
    samples: Path | None = None


def time_networks(
    runtime: Runtime, settings: Settings, progress: Progress | None = None
) -> Campaign:
    """Time networks, float32, int8 and mixed in turn, until the time is over.

    Of a few networks that are drawn, the one whose kernels are least known is timed (see `coverage`).

    Args:
        runtime: What runs them.
        settings: How; at least `FEWEST_NETWORKS` networks are timed whatever it takes.
        progress: Called with the share done and a word.

    Raises:
        ProfileError: The machine is too noisy to measure, or the file of samples is of another runtime, machine or
            model.
        DiskError: The file of samples cannot be written.
    """
    host = host_info()
    setting = setting_of(runtime, host.text)
    timed, spent, earlier_noise = _continued(settings, setting, runtime)
    start = time.monotonic() - spent
    if len(timed) >= FEWEST_NETWORKS and (spent >= settings.seconds or len(timed) == settings.most):
        return Campaign(tuple(timed), earlier_noise, runtime)
    reference = open_reference(runtime)
    coverage, modes, refined = Coverage(), modes_of(runtime), 0
    for item in timed:
        coverage.add(item.network)
    first = len(timed)
    while len(timed) < FEWEST_NETWORKS or time.monotonic() - start < settings.seconds:
        if settings.most is not None and len(timed) >= max(settings.most, FEWEST_NETWORKS):
            break
        if settings.seconds >= REFINED_FROM_SECONDS and len(timed) >= max(REFINED_FROM, 2 * refined):
            coverage.errors, refined = held_out_errors(timed), len(timed)
        drawn, network = draw(settings, modes[len(timed) % len(modes)], len(timed), coverage)
        measured = time_model(network.model, network.input_shape, runtime, reference, settings.budget_ms)
        if settings.samples is not None:
            _append(settings.samples, row_of(setting, drawn, measured, _now()))
        timed.append(timed_of(network, measured, runtime.sees_every_node))
        coverage.add(network)
        if progress is not None:
            done = min(1.0, max((time.monotonic() - start) / max(settings.seconds, 1e-9),
                                len(timed) / settings.most if settings.most else 0.0))
            progress(done, f"{len(timed)} networks timed")
        if len(timed) - first == FEWEST_NETWORKS:
            check_noise(reference.noise)
    return Campaign(tuple(timed), max(reference.noise, earlier_noise), runtime)


def modes_of(runtime: Runtime) -> tuple[str, ...]:
    """Return the modes of networks that a runtime really executes as such."""
    return MODES if "int8" in runtime.executes else ("float32",)


def draw(settings: Settings, mode: str, index: int, coverage: Coverage) -> tuple[Drawn, Network]:
    """Draw a few networks and return the one that teaches most, for the position `index` in a measurement."""
    drawn_of = settings.prior.drawn
    seeds = [settings.seed + index * drawn_of + offset for offset in range(drawn_of)]
    networks = [settings.prior.network(seed, mode) for seed in seeds]
    chosen = coverage.choose(networks)
    drawn = Drawn(settings.prior.name, seeds[chosen], mode, network_hash(networks[chosen]))
    return drawn, networks[chosen]


def _continued(settings: Settings, setting: Mapping[str, str], runtime: Runtime) -> tuple[list[Timed], float, float]:
    """What an earlier start has measured: its networks, seconds and noise."""
    path = settings.samples
    if path is None or not path.exists():
        return [], 0.0, 1.0
    try:
        cut_torn_line(path)
    except OSError as error:
        raise disk_error(path, error) from None
    found = read_samples(path)
    for name, value in found.setting.items():
        if value != setting[name]:
            raise ProfileError(
                f"{path} was measured with {name} {value!r}, this is {setting[name]!r}: choose another --output, or "
                f"measure anew with --fresh"
            )
    priors = {prior.name: prior for prior in (GENERAL, settings.prior)}
    timed = timed_networks(found.samples, priors, runtime.sees_every_node, str(path))
    return list(timed), found.seconds, found.slowness


def _append(path: Path, row: Mapping[str, str]) -> None:
    try:
        append_row(path, row)
    except OSError as error:
        raise disk_error(path, error) from None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def check_noise(noise: float) -> None:
    """Refuse a machine that is too noisy to measure, warn about one that is busy.

    Not by the load average, which also counts what runs only when nothing else wants to; a fixed network shows what
    other work really takes away.

    Args:
        noise: Median time of the reference relative to its fastest.

    Raises:
        ProfileError: A fixed network takes several times its fastest time.
    """
    load, cores = load_average(), os.cpu_count() or 1
    if noise > _TOO_NOISY:
        raise ProfileError(
            f"this machine is too busy to measure: a fixed kernel takes {noise:.1f} times its "
            f"fastest time (load average {load:.1f} on {cores} cores); stop other work and measure again"
        )
    if noise > _NOISY:
        warnings.warn(
            f"this machine is busy (a fixed kernel takes {noise:.2f} times its fastest time, load "
            f"average {load:.1f} on {cores} cores): measured figures are less certain",
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
    fitted = replace(fitted, model=derived_families(fitted.model))
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
    return replace(fitted, model=with_interval(fitted.model, overall)), entries


def mode_of(timed: Timed) -> str:
    """Whether a network is float32, int8 or mixed."""
    widths = {kernel.activation_bits for kernel in timed.network.view.kernels}
    return "mixed" if len(widths) > 1 else "int8" if widths == {8} else "float32"


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


def as_local(profile: DeviceProfile) -> DeviceProfile:
    """Return a profile of this machine under the id `local`."""
    notes = profile.notes.replace("Measured on ", _THIS_MACHINE, 1)
    return DeviceProfile.from_plain({**profile.plain, "id": "local", "notes": notes}, "local")


def renamed(profile: DeviceProfile, identifier: str) -> DeviceProfile:
    """Return a measured profile under an id of its own, for targets on other machines.

    Raises:
        ProfileError: See `profile_id`.
    """
    notes = profile.notes.replace(_THIS_MACHINE, "Measured on ", 1)
    return DeviceProfile.from_plain({**profile.plain, "id": profile_id(identifier), "notes": notes}, identifier)


def measure_device(
    runtime: Runtime, identifier: str, settings: Settings, progress: Progress | None = None
) -> DeviceProfile:
    """Measure this machine with a runtime and return its profile.

    Args:
        runtime: What runs the networks.
        identifier: Id of the profile.
        settings: How; a part of the seconds is kept for fitting.
        progress: Called with the share done and a word.

    Raises:
        ProfileError: See `time_networks`.
        DiskError: See `time_networks`.
    """
    campaign = time_networks(runtime, replace(settings, seconds=settings.seconds * (1 - _FIT_SECONDS)), progress)
    return fitted_profile(campaign, identifier, host_info(), time.strftime("%Y-%m-%d"), settings.prior.name)


def fitted_profile(
    campaign: Campaign, identifier: str, host: HostInfo, date: str, prior: str = GENERAL.name
) -> DeviceProfile:
    """Fit a profile to timed networks.

    Args:
        campaign: What was timed.
        identifier: Id of the profile.
        host: Where.
        date: When, `YYYY-MM-DD`.
        prior: Name of what the networks were drawn from.
    """
    runtime = campaign.runtime
    threads = "one thread" if runtime.threads == 1 else f"{runtime.threads} threads"
    drawn = "random networks" if prior == GENERAL.name else f"networks of the kernels of {prior}"
    source = (
        f"measured on {host.description} with {TITLES.get(runtime.name, runtime.name)} {runtime.version}, {threads}, "
        f"{len(campaign.timed)} {drawn}, {date}, noise {campaign.noise:.2f}"
    )
    fitted, entries = fit_campaign(identifier, campaign, source)
    notes = f"{_THIS_MACHINE}{host.description}." if identifier == "local" else f"Measured on {host.description}."
    if campaign.noise > _NOISY:
        notes += f" The machine was busy: a fixed network took {campaign.noise:.2f} times its fastest time."
    if "int8" not in runtime.executes:
        notes += f" Floats only: {TITLES.get(runtime.name, runtime.name)} was not measured in int8."
    wanted: dict[str, Any] = {"cpu_model": host.model, "machine": host.machine}
    if host.family is not None:
        wanted["cpu_family"] = host.family
    content = profile_document(identifier, "T2", notes, fitted, entries, wanted, source, runtime)
    return DeviceProfile.from_plain(content, identifier)


def measure_local(seconds: float = 60, progress: Progress | None = None, seed: int = 0) -> DeviceProfile:
    """Measure this machine with ONNX Runtime on one thread and return its profile (`local`), without caching it.

    Args:
        seconds: Wall-clock budget, fitting included.
        progress: Called with the share done and a word.
        seed: Seed of the random networks.

    Raises:
        ProfileError: The machine is too noisy.
    """
    return measure_device(open_runtime("onnxruntime"), "local", Settings(seconds, seed), progress)
