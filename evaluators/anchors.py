"""Timing a few variants of the model on this machine, so that its profile is right about this very model.

Done once per model and profile: the times are kept beside the profile, and every later search and resumed run
sees the same figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.program import Program
from paretopress.evaluators.costs import uniform_width
from paretopress.evaluators.policy_times import policy_times
from paretopress.hardware_profiles.anchoring import Anchor, anchor
from paretopress.hardware_profiles.catalogue import LOCAL
from paretopress.hardware_profiles.local import cache_path
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.choices import Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.documents import disk_error, fingerprint, read_document, write_json
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE, Policy
from paretopress.spaces.space import SearchSpace

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
    entries = Entries(program, calibrate(program, [list(inputs)]), "l1")   # which channels stay does not matter here
    found = dict(zip(policies, policy_times(entries, [*policies.values()], inputs), strict=True))
    dense = next(name for name, policy in policies.items() if policy.is_dense)
    return {} if found[dense] is None else {name: value for name, value in found.items() if value is not None}


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
