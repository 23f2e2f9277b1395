"""`paretopress doctor`: versions, machine, profiles and telemetry, and what is wrong with them."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
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
OPTIONAL = {
    "scikit-learn": "demo", "pyarrow": "parquet", "pillow": "parquet", "pandas": "plot", "matplotlib": "plot",
    "tensorboard": "tensorboard", "mlflow-skinny": "mlflow", "wandb": "wandb",
}
TELEMETRY = {
    "ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "NNCF_CI": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
LEAST_FREE_BYTES = 1_000_000_000


@click.command("doctor")
@click.option("--storage", metavar="URL", help="Also try to reach this storage; nothing is written, and its password "
              "is not shown.")
@common
def doctor_command(storage: str | None, as_json: bool) -> int:
    """Check this installation and machine. Exits 1 where something must be repaired."""
    found = examine(storage)
    if as_json:
        print_json(found)
    else:
        click.echo(_text(found, terminal_width()), nl=False)
        for problem in found["problems"]:
            click.echo(f"problem: {problem}", err=True)
        if not found["problems"]:
            next_command("paretopress demo")
    return 1 if found["problems"] else 0


def examine(storage: str | None = None) -> dict[str, Any]:
    """Return what is installed, the machine, and problems, as plain data; imports none of the packages.

    Args:
        storage: Address of a storage to reach, None for none.

    Raises:
        ConfigError: It is no such address.
    """
    from paretopress import diagnosis
    from paretopress.storage_check import check_storage

    versions = {name: diagnosis.installed(name) for name in ("paretopress", *REQUIRED)}
    optional = {name: diagnosis.installed(name) for name in OPTIONAL}
    machine = diagnosis.machine()
    reached = None if storage is None else check_storage(storage)
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
    if reached is not None and not reached["reachable"]:
        problems.append(f"{reached['url']} cannot be reached: {reached['detail']}")
    local = _local_profile(problems)
    return {
        "versions": versions,
        "optional": optional,
        "python": platform.python_version(),
        "machine": machine,
        "threads": diagnosis.threads(),
        "runtimes": diagnosis.runtimes(),
        "gpu": diagnosis.gpu(),
        "telemetry": telemetry,
        "local_profile": local,
        "profiles": diagnosis.profiles(),
        "storage": reached,
        "problems": problems,
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


def _text(found: Mapping[str, Any], width: int) -> str:
    from paretopress.tables import plain_table, render

    packages = [(name, got or "missing") for name, got in found["versions"].items()]
    packages += [
        (name, got or f"not installed: pip install 'paretopress[{OPTIONAL[name]}]'")
        for name, got in found["optional"].items()
    ]
    runtimes = [
        (one["name"], one["version"] or "not installed", "yes" if one["measures"] else "no")
        for one in found["runtimes"]
    ]
    return render(
        [
            plain_table("", ("machine", ""), _facts(found)),
            plain_table("", ("runtime", "version", "device measure"), runtimes),
            plain_table("", ("package", "version"), packages),
        ],
        width,
    )


def _facts(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    from paretopress.evaluators.budgets import shown

    machine, threads, gpu, profiles = (found[name] for name in ("machine", "threads", "gpu", "profiles"))
    variables = ", ".join(f"{name}={value}" for name, value in threads["variables"].items() if value is not None)
    facts = [
        ("Python", found["python"]),
        ("system", machine["system"]),
        ("CPU", machine["cpu"]),
        ("cores", f"{threads['cores']} of {threads['machine_cores']}, load {threads['load']}"),
        ("threads", variables or "no variable limits them (an evaluation uses one)"),
        ("integer instructions", ", ".join(machine["integer_flags"]) or "none known"),
        ("GPU", f"{', '.join(gpu['devices'])} {gpu['note']}".strip()),
        ("memory", shown("size", machine["memory_bytes"])),
        ("free disk", f"{shown('size', machine['free_bytes'])} in {machine['folder']}"),
        ("local profile", found["local_profile"] or "not measured yet (paretopress device measure)"),
    ]
    if profiles["local"] is not None:
        facts += [(f"  {kind} figures", ", ".join(profiles["local"][kind]) or "none") for kind in ("float32", "int8")]
        facts.append(("  no figures", ", ".join(profiles["local"]["missing"]) or "none are missing"))
    facts += [
        ("shipped profiles", ", ".join(f"{count} {tier}" for tier, count in profiles["shipped"].items())),
        ("  run here", ", ".join(profiles["runs_here"]) or "none"),
        ("telemetry", ", ".join(f"{name}={value}" for name, value in found["telemetry"].items())),
    ]
    if found["storage"] is not None:
        reached = found["storage"]
        state = "reachable" if reached["reachable"] else "not reachable"
        facts.append(("storage", f"{reached['url']}: {state}, {reached['detail']}"))
    return facts
