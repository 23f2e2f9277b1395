"""Measuring another machine: a probe that needs only Python and a runtime, and its results read back."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from paretopress.hardware_profiles.coverage import Coverage
from paretopress.hardware_profiles.host import HostInfo
from paretopress.hardware_profiles.measure import FEWEST_NETWORKS, Campaign, Settings, draw, fitted_profile
from paretopress.hardware_profiles.networks import MODES
from paretopress.hardware_profiles.priors import GENERAL
from paretopress.hardware_profiles.probe_script import MANIFEST, REFERENCE, RUNTIMES
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.hardware_profiles.samples import SampleFile, read_samples, timed_networks
from paretopress.hardware_profiles.timing import reference_model
from paretopress.spaces.documents import disk_error, write_atomic
from paretopress.spaces.errors import ConfigError, ProfileError, unknown_name

BUDGET_MS = 40.0
_MODULES = ("timing_protocol", "sample_rows", "host", "runtime_onnxruntime", "runtime_openvino")
_HOST = re.compile(r"(?P<machine>\S+): (?P<model>.+?)(?: \(family (?P<family>[0-9]{1,6})\))?")


def export_probe(destination: Path, networks: int, seed: int = 0) -> int:
    """Write a probe.

    Args:
        destination: A new or empty folder, or a `.zip` file that does not exist.
        networks: How many networks it times.
        seed: First seed of the networks.

    Returns:
        Its size in bytes.

    Raises:
        ConfigError: The destination exists.
        DiskError: It cannot be written; nothing half-written is left.
    """
    if destination.exists() and (destination.is_file() or any(destination.iterdir())):
        raise ConfigError(f"--export {destination}: it exists already; choose another folder or file")
    try:
        with tempfile.TemporaryDirectory(prefix="paretopress-") as temporary:
            folder = Path(temporary) / "probe"
            size = 0
            for name, content in _contents(networks, seed):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                size += len(content)
            if destination.suffix == ".zip":
                write_atomic(destination, lambda stream: _pack(folder, stream))
                return destination.stat().st_size
            shutil.copytree(folder, destination, dirs_exist_ok=True)
            return size
    except OSError as error:
        raise disk_error(destination, error) from None


def _pack(folder: Path, stream: object) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())


def _contents(networks: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all files of a probe."""
    package = files("paretopress.hardware_profiles")
    yield "__main__.py", (package / "probe_script.py").read_bytes()
    for name in ("paretopress", "paretopress/hardware_profiles"):
        yield f"{name}/__init__.py", b'"""The part of paretopress that times networks."""\n'
    for name in _MODULES:
        yield f"paretopress/hardware_profiles/{name}.py", (package / f"{name}.py").read_bytes()
    model, shape = reference_model()
    yield REFERENCE, model
    coverage, entries = Coverage(), []
    for index in range(networks):
        drawn, network = draw(Settings(0.0, seed), MODES[index % len(MODES)], index, coverage)
        coverage.add(network)
        file = f"networks/{drawn.network}.onnx"
        entries.append({
            "prior": drawn.prior, "seed": drawn.seed, "mode": drawn.mode, "network": drawn.network, "file": file,
            "shape": list(network.input_shape),
        })
        yield file, network.model
    manifest = {"reference": {"shape": list(shape)}, "budget_ms": BUDGET_MS, "networks": entries}
    yield MANIFEST, json.dumps(manifest, indent=1).encode()


@dataclass(frozen=True, slots=True)
class ElsewhereRuntime:
    """The runtime of another machine: what is known of it without running it."""

    name: str
    version: str
    threads: int
    sees_every_node: bool
    executes: tuple[str, ...]


def import_results(path: Path, identifier: str, version: str | None = None) -> DeviceProfile:
    """Fit a profile to the results of a probe.

    Args:
        path: The CSV file.
        identifier: Id of the profile.
        version: Version of the runtime that the results must have, None for any.

    Raises:
        ProfileError: Malformed results (see `read_samples`), another version, networks that are not of this version
            of paretopress, or too few of them.
        DiskError: The file cannot be read.
    """
    found = read_samples(path)
    if len(found.samples) < FEWEST_NETWORKS:
        raise ProfileError(f"{path}: {len(found.samples)} networks, at least {FEWEST_NETWORKS} are needed")
    runtime = _runtime(found, path)
    if version is not None and runtime.version != version:
        raise ProfileError(f"{path}: measured with {runtime.name} {runtime.version}, expected {version}")
    timed = timed_networks(found.samples, {GENERAL.name: GENERAL}, runtime.sees_every_node, str(path))
    campaign = Campaign(timed, found.slowness, runtime)
    return fitted_profile(campaign, identifier, _host(found, path), found.samples[-1].date[:10])


def _runtime(found: SampleFile, path: Path) -> ElsewhereRuntime:
    name = found.setting["runtime"]
    if name not in RUNTIMES:
        raise ProfileError(f"{path}: {unknown_name('runtime', name, list(RUNTIMES))}")
    known = RUNTIMES[name].create
    return ElsewhereRuntime(
        name, found.setting["version"], int(found.setting["threads"]), known.sees_every_node, known.executes
    )


def _host(found: SampleFile, path: Path) -> HostInfo:
    match = _HOST.fullmatch(found.setting["host"])
    if match is None:
        raise ProfileError(
            f"{path}: host {found.setting['host']!r} (allowed: MACHINE: MODEL, such as x86_64: AMD EPYC)"
        )
    family = match["family"]
    return HostInfo(match["model"], int(family) if family else None, frozenset(), match["machine"])
