"""Whether the runtime that is installed here is the one that a profile's figures come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from paretopress.hardware_profiles.profile import DeviceProfile

# Runtimes by the name that profiles give them, and the distributions that bring them.
DISTRIBUTIONS: Mapping[str, str] = {
    "onnxruntime": "onnxruntime", "openvino": "openvino", "torch": "torch", "executorch": "executorch",
}


def runtime_mismatch(device: DeviceProfile) -> str | None:
    """Return why times here may differ from a profile's though the CPU is the same, None where they should not.

    Only targets that run here are compared, by major and minor version: kernels change between minor ones.
    """
    name = DISTRIBUTIONS.get(device.runtime)
    if name is None or not device.runs_here():
        return None
    try:
        installed = version(name)
    except PackageNotFoundError:
        return None
    if _minor(installed) == _minor(device.runtime_version):
        return None
    return (
        f"{device.id} was measured with {device.runtime} {device.runtime_version}, {installed} is installed here: "
        f"kernels may take other times than predicted; 'paretopress device measure' makes a profile of this version"
    )


def device_notes(devices: Sequence[DeviceProfile]) -> list[str]:
    """What a reader of predicted times should know about this machine: another CPU, another version of the runtime."""
    notes = (note for device in devices for note in (device.host_warning(), runtime_mismatch(device)))
    return [note for note in notes if note]


def _minor(text: str) -> tuple[str, ...]:
    return tuple(text.partition("+")[0].split(".")[:2])
