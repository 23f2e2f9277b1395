"""Measuring this machine with progress, before anything needs its profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paretopress.progress import ProgressObserver, observing

if TYPE_CHECKING:
    from paretopress.hardware_profiles.priors import Prior
    from paretopress.hardware_profiles.profile import DeviceProfile

LOCAL = "local"
SECONDS = 60.0


def measure_local(
    observer: ProgressObserver, seconds: float = SECONDS, *, refresh: bool = False
) -> DeviceProfile:
    """Return this machine's profile, measured where it is not cached.

    Args:
        observer: Hears about progress where something is measured.
        seconds: Time for measuring.
        refresh: Measure although it is cached.

    Raises:
        ProfileError: The machine is too busy to measure.
        DiskError: The cache cannot be written.
    """
    from paretopress.hardware_profiles import local

    return local.local_profile(refresh=refresh, seconds=seconds, progress=_shown(observer))


def measure_with_samples(
    runtime: str, threads: int, seconds: float, identifier: str, samples: Path, *, seed: int = 0,
    factories: tuple[str, str] | None = None, plain: bool = False,
) -> DeviceProfile:
    """Measure this machine with a runtime; raw samples are stored, and an earlier start is continued.

    Args:
        runtime: Its name.
        threads: Threads per inference.
        seconds: Time for measuring, that of earlier starts included.
        identifier: Id of the profile.
        samples: File of raw samples.
        seed: Seed of what is timed.
        factories: Model and data whose reachable kernels are timed; None for the general prior.
        plain: Show plain lines of progress, no bar.

    Raises:
        ConfigError: The runtime is unknown or not installed.
        ProfileError: The machine is too busy, or the samples are of another machine, runtime or model.
        DiskError: Something cannot be written.
    """
    from paretopress.hardware_profiles import measure
    from paretopress.hardware_profiles.priors import GENERAL
    from paretopress.hardware_profiles.runtimes import open_runtime

    opened = open_runtime(runtime, threads)
    prior = GENERAL if factories is None else _model_prior(*factories)
    settings = measure.Settings(seconds, seed, prior, samples=samples)
    with observing(plain=plain) as observer:
        return measure.measure_device(opened, identifier, settings, _shown(observer))


def samples_path(output: Path) -> Path:
    """Return where the raw samples of a profile stand."""
    return output.with_suffix(".samples.csv")


def _model_prior(model: str, data: str) -> Prior:
    from paretopress.evaluators.construction import captured, flat_inputs
    from paretopress.evaluators.data import prepare
    from paretopress.factories import load_data, load_model
    from paretopress.model_prior import SAMPLES, ModelPrior

    samples = prepare(load_data(data)).calibration
    program = captured(load_model(model), samples)
    return ModelPrior.of(program, flat_inputs(program, samples.first(SAMPLES)))


def _shown(observer: ProgressObserver) -> Callable[[float, str], None]:
    """Return a function that shows the share done as a stage of the observer."""
    done: list[int] = []

    def progress(share: float, note: str) -> None:
        if not done:
            observer.stage("measure this machine", 100)
        step = round(100 * share) - sum(done)
        done.append(step)
        observer.advance(step, note)

    return progress


def measure_if_targeted(targets: Sequence[str], observer: ProgressObserver | None) -> None:
    """Measure this machine where it is a target and not measured yet, so that the wait is seen."""
    if LOCAL in targets:
        measure_local(observer or ProgressObserver())
