"""Finding profiles: by name in the library, by path, or `local` for this machine."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.documents import parse_yaml, read_document
from paretopress.spaces.errors import ConfigError, ProfileError, unknown_name

LOCAL = "local"
_SUFFIXES = (".yaml", ".yml", ".json")


def list_profiles() -> list[str]:
    """Return the ids of the shipped profiles, sorted. `local` is understood too."""
    folder = files("paretopress.hardware_profiles") / "library"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def load_profile(name_or_path: str | Path, *, refresh: bool = False) -> DeviceProfile:
    """Load a shipped profile by id, a profile file by path, or `local`: this machine, measured and cached.

    Args:
        name_or_path: An id of `list_profiles()`, a path of a .yaml or .json file, or `"local"`.
        refresh: Measure `local` again even where it is cached.

    Raises:
        ProfileError: Unknown name (with the nearest match), or a malformed profile.
    """
    name = str(name_or_path)
    if name == LOCAL:
        from paretopress.hardware_profiles.local import local_profile

        return local_profile(refresh=refresh)
    if isinstance(name_or_path, Path) or name.endswith(_SUFFIXES) or "/" in name:
        return read_profile(Path(name))
    return DeviceProfile.from_plain(shipped_document(name), f"{name}.yaml")


def shipped_document(name: str) -> Any:  # noqa: ANN401 - unvalidated document
    """Return the parsed, unvalidated document of a shipped profile.

    Raises:
        ProfileError: Unknown name (with the nearest match).
    """
    if name not in list_profiles():
        raise ProfileError(unknown_name("device", name, [*list_profiles(), LOCAL]))
    entry = files("paretopress.hardware_profiles") / "library" / f"{name}.yaml"
    return parse_yaml(entry.read_text(encoding="utf-8"), entry.name)


def read_profile(path: Path) -> DeviceProfile:
    """Read one profile file.

    Raises:
        ProfileError: The file is missing, malformed, or not a valid profile.
    """
    try:
        content = read_document(path)
    except ConfigError as error:
        raise ProfileError(str(error)) from None
    return DeviceProfile.from_plain(content, str(path))
