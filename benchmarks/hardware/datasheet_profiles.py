"""Writes the T0 profiles: datasheet peaks, which rank candidates and never print milliseconds.

Usage: python benchmarks/hardware/datasheet_profiles.py hardware_profiles/library

Vendors state operations per second with structured sparsity; what is stored is half of that, and one
multiply-accumulate is two operations.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profile_parts import integer_formats, mixed_formats, step

from paretopress.hardware_profiles.schema import SCHEMA
from paretopress.hardware_profiles.writing import number, profile_text

Figure = tuple[float, str, str]
_RANKS = "Datasheet peaks only: ranks candidates by peak arithmetic and memory bandwidth, never in milliseconds."
_GPU_NOTES = f"{_RANKS} Small networks are bound by kernel launches, which no datasheet states."
_MMA = (
    8, "derived", "NVIDIA tensor cores need rows that are multiples of 16 bytes (8 channels at 16 bits)"
)
FLOAT_FAMILIES = {
    "norm": "normalisations run in float", "matmul": "products of two activations are exported in float",
    "other": "operators without a rule stay in float",
}


@dataclass(frozen=True, slots=True)
class Datasheet:
    """A device by its datasheet.

    Attributes:
        kind: As in profiles.
        notes: What a reader should know.
        peaks: Multiply-accumulates per second by arithmetic, with basis and source.
        bandwidth: Bytes per second, the same.
        step: Hard step of channels and ranks, the same.
    """

    kind: str
    notes: str
    peaks: Mapping[str, Figure]
    bandwidth: Figure
    step: tuple[int, str, str]


def _gpu(name: str, float_tflops: Figure, int8_tops_dense: Figure, bandwidth: Figure) -> Datasheet:
    peaks = {
        "float32": (float_tflops[0] * 1e12 / 2, *float_tflops[1:]),
        "int8": (int8_tops_dense[0] * 1e12 / 2, *int8_tops_dense[1:]),
    }
    return Datasheet("gpu", f"{name}. {_GPU_NOTES}", peaks, bandwidth, _MMA)


def _ethos(macs: int, family: str, clock: float, bandwidth: float, system: str, depth: int) -> Datasheet:
    ini = f"Arm Vela 5.2.0, config_files/Arm/vela.ini, System_Config.{system}"
    units = f"Arm Vela 5.2.0, architecture_features.py, {family}-{macs}"
    return Datasheet(
        "npu", f"Arm {family}-{macs} in Vela's {system} system, int8 only. {_RANKS} With the extra 'ethos-u' Arm's own "
        "compiler gives cycles, memory and flash of a model: paretopress device vela.",
        {"int8": (macs * clock, "derived", f"{units}: {macs} multiply-accumulates per cycle; {ini}: core clock")},
        (bandwidth, "published", f"{ini}: SRAM"), (depth, "published", f"{units}: output channels per block"),
    )


_A100, _H100, _H200 = (f"NVIDIA {name} datasheet" for name in ("A100 80GB", "H100 SXM", "H200"))
_AGX, _NANO = "NVIDIA Jetson AGX Orin Series Technical Brief v1.2", "NVIDIA Jetson Orin Nano Super datasheet (2024)"
_PI5 = "Raspberry Pi 5 product brief: four Cortex-A76 at 2.4 GHz"
_A76 = "Arm Cortex-A76 Software Optimization Guide: two 128-bit ASIMD pipes"
DEVICES = {
    "a100-80g": _gpu(
        "NVIDIA A100 80 GB SXM", (19.5, "datasheet", f"{_A100}: 19.5 TFLOPS FP32, one multiply-accumulate is 2 FLOP"),
        (624, "datasheet", f"{_A100}: 624 TOPS INT8 dense (1248 with sparsity)"),
        (2.039e12, "datasheet", f"{_A100}: 2039 GB/s"),
    ),
    "h100-sxm": _gpu(
        "NVIDIA H100 SXM", (67, "datasheet", f"{_H100}: 67 TFLOPS FP32, one multiply-accumulate is 2 FLOP"),
        (1979, "datasheet", f"{_H100}: 3958 TOPS INT8 with sparsity, 1979 dense"),
        (3.35e12, "datasheet", f"{_H100}: 3.35 TB/s"),
    ),
    "h200-sxm": _gpu(
        "NVIDIA H200 SXM", (67, "datasheet", f"{_H200}: 67 TFLOPS FP32, one multiply-accumulate is 2 FLOP"),
        (1979, "datasheet", f"{_H200}: 3958 TOPS INT8 with sparsity, 1979 dense"),
        (4.8e12, "datasheet", f"{_H200}: 4.8 TB/s HBM3e"),
    ),
    "jetson-agx-orin-64g": _gpu(
        "NVIDIA Jetson AGX Orin 64 GB, GPU only, MAXN",
        (5.3, "datasheet", f"{_AGX}: 2048 CUDA cores, 5.3 FP32 TFLOPS"),
        (85, "datasheet", f"{_AGX}: 170 sparse INT8 TOPS of the GPU, 85 dense"),
        (204.8e9, "datasheet", f"{_AGX}: 256-bit LPDDR5, 204.8 GB/s"),
    ),
    "jetson-orin-nano-8g-super": _gpu(
        "NVIDIA Jetson Orin Nano 8 GB, Super mode",
        (2 * 1024 * 1.02e9 / 1e12, "derived", f"{_NANO}: 1024 CUDA cores at 1020 MHz, one FP32 multiply-add per cycle"),
        (33.5, "datasheet", f"{_NANO}: 67 sparse INT8 TOPS, 33.5 dense"),
        (102e9, "datasheet", f"{_NANO}: 102 GB/s"),
    ),
    "rpi5": Datasheet(
        "cpu", f"Raspberry Pi 5, four Cortex-A76 at 2.4 GHz. {_RANKS}",
        {
            "float32": (4 * 2 * 4 * 2.4e9, "derived", f"{_PI5}; {_A76}, 4 multiply-adds each"),
            "int8": (4 * 2 * 16 * 2.4e9, "derived", f"{_PI5}; {_A76}, 16 products each by SDOT"),
        },
        (17.1e9, "derived", "Raspberry Pi 5 product brief: 32-bit LPDDR4X at 4267 MT/s"),
        (4, "derived", "128-bit NEON registers hold 4 float32 values"),
    ),
    **{
        f"ethos-u55-{macs}": _ethos(macs, "Ethos-U55", 500e6, 4e9, "Ethos_U55_High_End_Embedded", depth)
        for macs, depth in ((32, 4), (64, 8), (128, 8), (256, 8))
    },
    **{
        f"ethos-u65-{macs}": _ethos(macs, "Ethos-U65", 1e9, 16e9, "Ethos_U65_High_End", 8) for macs in (256, 512)
    },
}


def document(identifier: str) -> dict[str, Any]:
    """The profile of a device."""
    device = DEVICES[identifier]
    floats = "float32" in device.peaks
    runtime = {"name": "none", "version": "datasheet", "threads": 1, "batch": 1}
    return {
        "schema": SCHEMA, "id": identifier, "kind": device.kind, "tier": "T0", "notes": device.notes,
        "runtime": runtime,
        "formats": mixed_formats("float32") if floats else integer_formats("the device executes 8-bit integers only"),
        **({"float_families": FLOAT_FAMILIES} if floats else {}),
        "align": step(*device.step),
        "peaks": [{"executes": name, "macs_s": number(*figure)} for name, figure in device.peaks.items()],
        "memory": {"bandwidth_bytes_s": number(*device.bandwidth)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the profiles")
    arguments = parser.parse_args()
    for identifier in DEVICES:
        (arguments.folder / f"{identifier}.yaml").write_text(profile_text(document(identifier)), encoding="utf-8")
        print(identifier)


if __name__ == "__main__":
    main()
