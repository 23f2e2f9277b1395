"""Measuring this machine with progress, before anything needs its profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paretopress.progress import ProgressObserver

if TYPE_CHECKING:
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

    done: list[int] = []

    def progress(share: float, note: str) -> None:
        if not done:
            observer.stage("measure this machine", 100)
        step = round(100 * share) - sum(done)
        done.append(step)
        observer.advance(step, note)

    return local.local_profile(refresh=refresh, seconds=seconds, progress=progress)


def measure_if_targeted(targets: Sequence[str], observer: ProgressObserver | None) -> None:
    """Measure this machine where it is a target and not measured yet, so that the wait is seen."""
    if LOCAL in targets:
        measure_local(observer or ProgressObserver())
