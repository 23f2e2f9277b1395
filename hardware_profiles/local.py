"""The cached profile of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from paretopress.hardware_profiles.host import host_info
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.hardware_profiles.schema import SCHEMA
from paretopress.spaces.documents import disk_error, fingerprint, read_document, write_text
from paretopress.spaces.errors import ConfigError, ProfileError

# Rises when profiles measured by older code should be measured again.
_MEASUREMENT_VERSION = 3


def cache_path() -> Path:
    """Where this machine's profile is cached: one file per CPU, runtime version and schema."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    host = host_info()
    key = fingerprint(
        [host.model, host.family, sorted(host.flags), version("onnxruntime"), SCHEMA, _MEASUREMENT_VERSION]
    )
    return base / "paretopress" / f"local-{key}.yaml"


def cached_profile() -> DeviceProfile | None:
    """Return the cached profile; None where there is none or it is damaged."""
    path = cache_path()
    if not path.exists():
        return None
    try:
        profile = DeviceProfile.from_plain(read_document(path), str(path))
    except (ConfigError, ProfileError):
        return None
    return profile if profile.id == "local" else None


def store_profile(profile: DeviceProfile) -> Path:
    """Write the cache atomically and return its path. Raises `DiskError`."""
    from paretopress.hardware_profiles.writing import profile_text

    path = cache_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path.parent, error) from None
    write_text(path, profile_text(profile.plain))
    return path


def local_profile(
    *, refresh: bool = False, seconds: float = 60, progress: Callable[[float, str], None] | None = None
) -> DeviceProfile:
    """Return this machine's profile from the cache, measuring it first where there is none.

    Args:
        refresh: Measure again.
        seconds: Time for measuring.
        progress: Called with the share done and a word.

    Raises:
        ProfileError: The machine is too noisy to measure.
        DiskError: The cache cannot be written.
    """
    known = None if refresh else cached_profile()
    if known is not None:
        return known
    from paretopress.hardware_profiles.measure import measure_local

    profile = measure_local(seconds, progress)
    store_profile(profile)
    # Read back what was stored, so that the first run and later runs see the same rounded figures.
    return cached_profile() or profile
