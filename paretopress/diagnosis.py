"""What `paretopress doctor` finds out about a machine; none of the packages is imported."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paretopress.hardware_profiles.profile import DeviceProfile

RUNTIMES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "torch": "torch", "executorch": "executorch",
            "litert": "ai-edge-litert"}
MEASURED_WITH = ("onnxruntime", "openvino", "torch", "executorch")   # those that `device measure` knows
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
NVIDIA = Path("/proc/driver/nvidia/version")
AMD = Path("/dev/kfd")
GPU_SECONDS = 5.0
GPU_NOTE = "Searching, verifying and timing use the CPU."


def installed(name: str) -> str | None:
    """Return the version of a package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Return system, processor, memory (bytes) and free disk (bytes) of the current folder."""
    from paretopress.hardware_profiles.host import host_info

    host, folder = host_info(), Path.cwd()
    integer_flags = sorted(host.flags & {"avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})
    return {
        "system": platform.platform(),
        "cpu": host.description,
        "cores": _cores(),
        "integer_flags": integer_flags,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "folder": str(folder),
        "free_bytes": shutil.disk_usage(folder).free,
    }


def threads() -> dict[str, Any]:
    """Return what decides how many threads run: cores, the load of the last minute, environment variables."""
    return {
        "cores": _cores(),
        "machine_cores": os.cpu_count() or _cores(),
        "load": round(os.getloadavg()[0], 2),
        "variables": {name: os.environ.get(name) for name in THREAD_VARIABLES},
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runtimes() -> list[dict[str, Any]]:
    """Return what can run models here, with versions."""
    return [{"name": name, "version": installed(package), "measures": name in MEASURED_WITH}
            for name, package in RUNTIMES.items()]


def gpu() -> dict[str, Any]:
    """Return the GPUs that a driver reports, by names, and the driver; a driver that hangs is given five seconds."""
    if shutil.which("nvidia-smi") is None:
        kernel = "amdgpu" if AMD.exists() else "nvidia" if NVIDIA.exists() else None
        return {"devices": [], "driver": kernel, "note": GPU_NOTE if kernel else f"None found. {GPU_NOTE}"}
    try:
        ended = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], text=True,
                               capture_output=True, timeout=GPU_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"devices": [], "driver": None, "note": f"nvidia-smi failed ({type(error).__name__}). {GPU_NOTE}"}
    rows = [line.rsplit(", ", 1) for line in ended.stdout.splitlines() if ", " in line]
    return {"devices": [row[0] for row in rows], "driver": rows[0][1] if rows else None, "note": GPU_NOTE}


def profiles() -> dict[str, Any]:
    """Return how many profiles are shipped by tier, which run here, and what this machine's own covers."""
    from paretopress.hardware_profiles.catalogue import list_profiles, load_profile
    from paretopress.hardware_profiles.local import cached_profile

    shipped = [load_profile(name) for name in list_profiles()]
    tiers = {tier: sum(profile.tier == tier for profile in shipped) for tier in ("T0", "T1", "T2")}
    local = cached_profile()
    return {
        "shipped": tiers,
        "runs_here": [profile.id for profile in shipped if profile.runs_here()],
        "local": None if local is None else coverage(local),
    }


def coverage(profile: DeviceProfile) -> dict[str, list[str]]:
    """Return which families of kernels a profile has figures for, by executed type, and which in neither."""
    from paretopress.spaces.kernels import Family

    latency = profile.document.latency
    found: dict[str, set[str]] = {"float32": set(), "int8": set()}
    for predictor in latency.predictors if latency is not None else ():
        found.setdefault(str(predictor.executes), set()).add(str(predictor.family.value))
    known = set().union(*found.values())
    missing = sorted(family.value for family in Family if family.value not in known)
    return {"float32": sorted(found["float32"]), "int8": sorted(found["int8"]), "missing": missing}
