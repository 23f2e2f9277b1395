"""Arm's Vela compiler in the loop: cycles, memory and flash of an int8 network on an Ethos-U.

Vela compiles the network for the accelerator and adds up its own performance model. Arm calls the cycles an estimate
("not cycle accurate"); the memory and the compressed weights are what the compiled network needs.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from paretopress.hardware_profiles.onnx_view import onnx_kernels
from paretopress.hardware_profiles.tflite_writer import tflite_bytes
from paretopress.spaces.errors import ProfileError, unknown_name

# System configuration and memory mode in Vela's Arm/vela.ini by family of accelerators.
SYSTEMS = {
    "ethos-u55": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u65": ("Ethos_U65_High_End", "Dedicated_Sram_384KB"),
}
ACCELERATORS = ("ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u65-512")
GOALS = ("performance", "size")
SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class VelaEstimate:
    """What Vela says about a network.

    Attributes:
        accelerator: Such as `ethos-u55-128`.
        system: System configuration that clock and bandwidths are of.
        cycles: Estimated cycles of one inference.
        milliseconds: The cycles at the system's clock.
        sram_bytes: SRAM used.
        flash_bytes: Flash or DRAM used: compressed weights and commands, and on an Ethos-U65 activations in DRAM.
        version: Of Vela.
    """

    accelerator: str
    system: str
    cycles: float
    milliseconds: float
    sram_bytes: int
    flash_bytes: int
    version: str


def vela_estimate(path: Path, accelerator: str, optimise: str = "performance") -> VelaEstimate:
    """Compile an int8 ONNX file (QDQ) for an Ethos-U.

    Args:
        path: The ONNX file.
        accelerator: One of `ACCELERATORS`.
        optimise: `performance`, which spends SRAM on buffered weights, or `size`, the least SRAM.

    Raises:
        ProfileError: Unknown accelerator or goal, Vela is not installed, the network has kernels that do not run in
            integers or that are not written as TFLite, or Vela refuses it.
    """
    if accelerator not in ACCELERATORS:
        raise ProfileError(unknown_name("accelerator", accelerator, ACCELERATORS))
    if optimise not in GOALS:
        raise ProfileError(unknown_name("goal", optimise, GOALS))
    if find_spec("ethosu") is None:
        raise ProfileError("Vela is not installed: pip install 'paretopress[ethos-u]'")
    from importlib.metadata import version

    system, mode = SYSTEMS[accelerator.rpartition("-")[0]]
    with tempfile.TemporaryDirectory(prefix="paretopress-vela-") as folder:
        model = Path(folder) / "network.tflite"
        model.write_bytes(tflite_bytes(onnx_kernels(path), str(path)))
        command = [
            sys.executable, "-m", "ethosu.vela", str(model), "--accelerator-config", accelerator,
            "--system-config", system, "--memory-mode", mode, "--config", "Arm/vela.ini", "--output-dir", folder,
            "--optimise", optimise.capitalize(),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=folder, check=False)
        except subprocess.TimeoutExpired:
            raise ProfileError(f"{path}: Vela did not finish within {SECONDS:g} s") from None
        summaries = list(Path(folder).glob("network_summary_*.csv"))
        if done.returncode or not summaries:
            last = (done.stderr or done.stdout).strip().splitlines()
            raise ProfileError(f"{path}: Vela refused the network: {last[-1] if last else 'no message'}")
        with summaries[0].open(encoding="utf-8") as stream:
            row = next(csv.DictReader(stream))
    return _estimate(row, accelerator, system, version("ethos-u-vela"))


def _estimate(row: Mapping[str, str], accelerator: str, system: str, version: str) -> VelaEstimate:
    clock = float(row["core_clock"])
    cycles = float(row["cycles_total"])
    flash = float(row["off_chip_flash_memory_used"]) + float(row["dram_memory_used"])
    return VelaEstimate(
        accelerator, system, cycles, cycles / clock * 1e3, round(float(row["sram_memory_used"]) * 1024),
        round(flash * 1024), version,
    )
