"""`paretopress doctor`: versions, machine, profiles and telemetry, and what is wrong with them."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from paretopress.cli.options import common, next_command, print_json, terminal_width

REQUIRED = (
    "torch",
    "optuna",
    "ray",
    "numpy",
    "pyyaml",
    "pydantic",
    "click",
    "rich",
    "safetensors",
    "onnx",
    "onnxscript",
    "onnxruntime",
)
OPTIONAL = {"scikit-learn": "demo", "pyarrow": "examples", "pillow": "examples"}
TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "NNCF_CI": "1"}
LEAST_FREE_BYTES = 1_000_000_000


@click.command("doctor")
@common
def doctor_command(as_json: bool) -> int:
    """Check this installation. Exits 1 where something must be repaired."""
    found = examine()
    if as_json:
        print_json(found)
    else:
        click.echo(_text(found, terminal_width()), nl=False)
        for problem in found["problems"]:
            click.echo(f"problem: {problem}", err=True)
        if not found["problems"]:
            next_command("paretopress demo")
    return 1 if found["problems"] else 0


def examine() -> dict[str, Any]:
    """Return versions, machine, telemetry state and problems as plain data; imports none of the packages."""
    versions = {name: _version(name) for name in ("paretopress", *REQUIRED)}
    optional = {name: _version(name) for name in OPTIONAL}
    machine = _machine()
    telemetry = {name: os.environ.get(name) for name in TELEMETRY}
    problems = [
        f"{name} is not installed: pip install {name}" for name, found in versions.items() if found is None
    ]
    problems += [
        f"{name}={telemetry[name]!r} lets a library report usage (quiet: {quiet})"
        for name, quiet in TELEMETRY.items()
        if telemetry[name] != quiet
    ]
    if machine["free_bytes"] < LEAST_FREE_BYTES:
        problems.append(f"less than 1 GB is free in {machine['folder']}")
    return {
        "versions": versions,
        "optional": optional,
        "python": platform.python_version(),
        "machine": machine,
        "telemetry": telemetry,
        "local_profile": _local_profile(problems),
        "problems": problems,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    from paretopress.hardware_profiles.host import host_info

    host, folder = host_info(), Path.cwd()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    integer_flags = sorted(host.flags & {"avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": platform.platform(),
        "cpu": host.description,
        "cores": cores,
        "integer_flags": integer_flags,
        "memory_bytes": memory,
        "folder": str(folder),
        "free_bytes": shutil.disk_usage(folder).free,
    }


def _local_profile(problems: list[str]) -> str | None:
    """Return the path of this machine's cached profile, None where it is not measured yet."""
    from paretopress.hardware_profiles.local import cache_path, cached_profile

    try:
        path = cache_path()
    except PackageNotFoundError:
        return None
    if path.exists() and cached_profile() is None:
        problems.append(f"{path} is damaged: paretopress device measure")
    return str(path) if path.exists() else None


def _text(found: dict[str, Any], width: int) -> str:
    from paretopress.tables import plain_table, render, shown

    machine = found["machine"]
    facts = [
        ("Python", found["python"]),
        ("system", machine["system"]),
        ("CPU", machine["cpu"]),
        ("cores", machine["cores"]),
        ("integer instructions", ", ".join(machine["integer_flags"]) or "none known"),
        ("memory", shown("size", machine["memory_bytes"])),
        ("free disk", f"{shown('size', machine['free_bytes'])} in {machine['folder']}"),
        ("local profile", found["local_profile"] or "not measured yet (paretopress device measure)"),
        ("telemetry", ", ".join(f"{name}={value}" for name, value in found["telemetry"].items())),
    ]
    packages = [(name, got or "missing") for name, got in found["versions"].items()]
    packages += [
        (name, got or f"not installed: pip install 'paretopress[{OPTIONAL[name]}]'")
        for name, got in found["optional"].items()
    ]
    return render(
        [plain_table("", ("machine", ""), facts), plain_table("", ("package", "version"), packages)], width
    )
