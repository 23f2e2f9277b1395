"""Writes the T1 profiles of CPUs and accelerators that are calibrated on published whole networks.

Usage: python benchmarks/hardware/published_profiles.py hardware_profiles/library

`published_latency.csv` has the figures, `SOURCES` says where they stand. Every arithmetic has four rates (3x3
convolutions, other products, depthwise products, elements read and written), every accelerator overheads of a call
and of a kernel, too; the checks leave out a network at a time, in every arithmetic. What is more than `WORST_MAPE` off
on held-out networks is not calibrated by them: such an arithmetic is refused, and a device without one not written.
Which rates there are was chosen on these networks as well: with so few, errors on others may be larger.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from profile_parts import integer_formats, mixed_formats, step, with_interval
from rates import Part, Rates, fit, latency_model, leave_one_network_out

from paretopress.hardware_profiles.accuracy import Accuracy, accuracy
from paretopress.hardware_profiles.features import Alignment
from paretopress.hardware_profiles.reference_networks import known_network
from paretopress.hardware_profiles.schema import SCHEMA
from paretopress.hardware_profiles.writing import latency_section, number, profile_text, validation_entry
from paretopress.spaces.kernels import Family

DATA = Path(__file__).with_name("published_latency.csv")
_OPENVINO = "OpenVINO 2024.1 benchmark data (openvinotoolkit/openvino, OV-benchmark-data.csv; Apache-2.0)"
SOURCES = {
    "ncnn": "ncnn benchmark/README.md (Tencent; BSD-3-Clause), Raspberry Pi 4B, 1.8 GHz, 1 thread, minimum",
    "openvino-latency": f"{_OPENVINO}, latency column",
    "openvino-latency-ratio": f"{_OPENVINO}, int8 latency times int8 / float32 throughput",
    "openvino-throughput": f"{_OPENVINO}, 1 / throughput",
    "openvino-npu": f"{_OPENVINO}, Core Ultra 7-165H NPU-only, latency column",
    "openvino-npu-ratio": f"{_OPENVINO}, Core Ultra 7-165H NPU-only, int8 latency times int8 / float16 throughput",
    "ai-hub": "Qualcomm AI Hub Models v0.47.0 perf.yaml (BSD-3-Clause), Galaxy S24, TFLite 2.17 with QAIRT 2.43",
    "hailo": "Hailo Model Zoo HAILO8_classification.rst (Dataflow Compiler 3.27.0), 1 / FPS at batch 1",
    "coral": "coral.ai docs/edgetpu/benchmarks, table 1, Dev Board with Edge TPU",
}

_BYTES = {"inputs": "traffic", "outputs": "traffic"}
_PRODUCTS = {"work": "pointwise", **_BYTES}
TERMS: Mapping[Family, Mapping[str, str]] = {
    Family.CONV: {
        "work_1x1": "pointwise", "work_3x3": "dense", "work_other": "pointwise", "work_few_inputs": "dense",
        "work_few_inputs_1x1": "pointwise", **_BYTES,
    },
    Family.GROUPED: {"work": "dense", **_BYTES},
    Family.DEPTHWISE: {"window_reads": "depthwise", **_BYTES},
    Family.LINEAR: _PRODUCTS,
    **dict.fromkeys(
        (Family.ADD, Family.POOL, Family.GLOBAL_POOL, Family.CONCAT, Family.DATA, Family.ELEMENTWISE), _BYTES
    ),
}
CPU_FLOATS = {**TERMS, Family.MATMUL: _PRODUCTS, Family.NORM: _BYTES, Family.OTHER: _BYTES}
CPU = {"dense": 1.0, "pointwise": 1.0, "depthwise": 4.0, "traffic": 10.0}
# `kernel`: a kernel costs what 20 million products cost, before the data say otherwise.
ACCELERATOR = {"dense": 1.0, "pointwise": 1.0, "depthwise": 4.0, "traffic": 20.0, "kernel": 2e4}
ACCELERATOR_TERMS = {family: {**terms, "one": "kernel"} for family, terms in TERMS.items()}
WORST_MAPE = 0.5
DERIVED = {
    "grouped": "rate of 3x3 convolutions", "matmul": "rate of linear layers", "norm": "elements at the rate of others",
    "elementwise": "elements at the rate of others", "other": "elements at the rate of others",
}
FLOAT_FAMILIES = {
    "norm": "normalisations run in float", "matmul": "products of two activations are exported in float",
    "other": "operators without a rule stay in float",
}


@dataclass(frozen=True)
class Target:
    """A device of the data.

    Attributes:
        kind: As in profiles.
        notes: What a reader should know.
        runtime: Name, version, threads.
        alignment: How kernels round channels up, by arithmetic.
        step: Hard step of channels, with basis and source.
        weight: Of the prior.
        memory: Figures with basis and source.
        power_mw: Active power, with basis and source.
    """

    kind: str
    notes: str
    runtime: tuple[str, str, int]
    step: tuple[int, str, str]
    alignment: Mapping[str, Alignment] = field(default_factory=dict)
    weight: float = 0.1
    memory: Mapping[str, tuple[float, str, str]] = field(default_factory=dict)
    power_mw: tuple[float, str, str] | None = None


_X86 = {"float32": Alignment(16, 16, 4), "int8": Alignment(4, 16, 4)}
_X86_STEP = (4, "published", "x86 int8 kernels take 4 inputs at a time; 16 channels fill a register")
_NO_STEP = (1, "derived", "no alignment is published: the compiler pads channels")
_FOUR = "Calibrated on four published networks; what they do not contain (transformers, for one) is extrapolated."
_LATENCY = f"Latency of one inference on all cores. {_FOUR}"
_THROUGHPUT = f"Time per inference at full throughput, all cores busy: not the latency of one call. {_FOUR}"
TARGETS = {
    "rpi4": Target(
        "cpu", "Raspberry Pi 4 at 1.8 GHz, one Cortex-A72 core. ncnn with Winograd convolutions, calibrated on six "
        "networks; no dot-product instructions, so int8 saves a quarter of the time at most.",
        ("ncnn", "2022", 1), (4, "derived", "128-bit NEON registers hold 4 float32 values"),
        {"float32": Alignment(4, 4, 1), "int8": Alignment(4, 4, 1)},
    ),
    "x86-avx2-i7-8700t": Target(
        "cpu", f"Core i7-8700T, 6 cores, AVX2 without VNNI. {_LATENCY}",
        ("openvino", "2024.1", 6), _X86_STEP, _X86, 1.0,
    ),
    "x86-avx512-vnni-i7-1185g7": Target(
        "cpu", f"Core i7-1185G7, 4 cores, AVX512-VNNI. {_LATENCY}",
        ("openvino", "2024.1", 4), _X86_STEP, _X86, 1.0,
    ),
    "x86-avx-vnni-i7-1360p": Target(
        "cpu", f"Core i7-1360P, 4 + 8 cores, AVX-VNNI. {_LATENCY}",
        ("openvino", "2024.1", 12), _X86_STEP, _X86, 1.0,
    ),
    "x86-icx-vnni-8380": Target(
        "cpu", f"Two Xeon Platinum 8380, AVX512-VNNI. {_THROUGHPUT}",
        ("openvino", "2024.1", 80), _X86_STEP, _X86, 1.0,
    ),
    "x86-spr-amx-8490h": Target(
        "cpu", f"Two Xeon Platinum 8490H. {_THROUGHPUT}",
        ("openvino", "2024.1", 120), _X86_STEP, _X86, 1.0,
    ),
    "intel-npu3720": Target(
        "npu", "NPU 3720 of a Core Ultra 7 165H (Meteor Lake), OpenVINO, float16 and int8. Three networks; "
        "static shapes, batch 1.",
        ("openvino", "2024.1", 1), _NO_STEP,
    ),
    "qualcomm-hexagon-s24": Target(
        "npu", "Hexagon NPU of a Snapdragon 8 Gen 3 (Galaxy S24). TFLite, float16 and int8, calibrated on four "
        "networks; below half a millisecond the overhead of a call decides.",
        ("tflite-qnn", "2.43", 1), _NO_STEP,
    ),
    "hailo8": Target(
        "npu", "Hailo-8, 26 TOPS. Int8, time per inference of a full pipeline; the compiler gives every network "
        "another share of the chip: predictions are off by 30% on average.",
        ("hailo-dataflow-compiler", "3.27.0", 1), _NO_STEP,
        power_mw=(2500.0, "datasheet", "Hailo-8 product brief: 2.5 W typical"),
    ),
    "coral-edgetpu": Target(
        "npu", "Coral Dev Board, Edge TPU. Int8, calibrated on three networks that fit the chip's 8 MB; larger ones "
        "load their weights anew in every call and take many times as long, so more than 8 MB is refused.",
        ("edgetpu-tflite", "2019", 1), _NO_STEP,
        memory={"flash_bytes": (8e6, "datasheet", "coral.ai docs: 8 MB of SRAM cache parameters on the chip")},
        power_mw=(2000.0, "datasheet", "coral.ai docs: 0.5 W per TOPS at 4 TOPS"),
    ),
}

def read_parts(identifier: str, path: Path = DATA) -> tuple[dict[str, Part], dict[str, list[str]]]:
    """Return the networks of a device by arithmetic, and where their figures stand."""
    target = TARGETS[identifier]
    rows: dict[str, list[tuple[str, float]]] = {}
    origins: dict[str, list[str]] = {}
    with path.open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["device"] == identifier:
                rows.setdefault(row["arithmetic"], []).append((row["network"], float(row["milliseconds"]) * 1e3))
                origins.setdefault(row["arithmetic"], []).append(row["origin"])
    parts = {}
    for executed, items in sorted(rows.items()):
        if target.kind == "cpu":
            terms, prior = CPU_FLOATS if executed == "float32" else TERMS, CPU
        else:
            terms, prior = ACCELERATOR_TERMS, ACCELERATOR
        rates = Rates(terms, prior, target.weight, target.alignment.get(executed, Alignment()))
        names = tuple(name for name, _ in items)
        views = [known_network(name, 8 if executed == "int8" else 32) for name in names]
        parts[executed] = Part(rates, names, rates.rows(views), np.array([time for _, time in items]))
    return parts, origins


def held_out_errors(identifier: str) -> dict[str, Accuracy]:
    """Errors on networks that were left out, by arithmetic."""
    parts, _ = read_parts(identifier)
    held = leave_one_network_out(parts, TARGETS[identifier].kind != "cpu")
    return {name: accuracy(held[name], part.microseconds) for name, part in parts.items()}


def document(identifier: str) -> dict[str, Any] | None:
    """The profile of a device, None where its published networks do not calibrate it."""
    target = TARGETS[identifier]
    parts, origins = read_parts(identifier)
    checks = held_out_errors(identifier)
    good = [name for name in parts if checks[name].mape <= WORST_MAPE]
    if not good:
        return None
    call, values = fit(parts, target.kind != "cpu")
    rates = {name: parts[name].rates for name in good}
    model = latency_model(identifier, rates, values, call, "traffic" if "int8" in good else "")
    model = with_interval(model, *(checks[name] for name in good))
    stated = {name: "; ".join(dict.fromkeys(SOURCES[origin] for origin in origins[name])) for name in good}
    section = latency_section(model, "fitted", stated[good[0]], _sources(stated))
    for predictor in section["predictors"]:
        if predictor["family"] in DERIVED:
            for leaf in predictor["terms"].values():
                leaf["basis"] = "derived"
    content: dict[str, Any] = {
        "schema": SCHEMA, "id": identifier, "kind": target.kind, "tier": "T1", "notes": target.notes,
        "runtime": {
            "name": target.runtime[0], "version": target.runtime[1], "threads": target.runtime[2], "batch": 1,
            "removes_dead_branches": True,
        },
        "formats": _formats(parts, good, checks),
        "float_families": FLOAT_FAMILIES if "float32" in good else {},
        "align": step(*target.step),
        "memory": {name: number(*figure) for name, figure in target.memory.items()},
        "latency": section,
        "active_power_mw": number(*target.power_mw) if target.power_mw else None,
        "validation": [
            validation_entry(
                f"published networks in {name}, one left out", checks[name], stated[name], len(parts[name].names) - 1
            )
            for name in good
        ],
    }
    return {key: value for key, value in content.items() if value not in (None, {})}


def _formats(
    parts: Mapping[str, Part], good: Sequence[str], checks: Mapping[str, Accuracy]
) -> list[dict[str, Any]]:
    floats = next((name for name in good if name != "int8"), "")
    if not floats:
        return integer_formats("the device executes 8-bit integers only")
    refused = ""
    if "int8" not in good and "int8" in parts:
        refused = f"int8 is not calibrated: {checks['int8'].mape:.0%} off on networks that were left out"
    return mixed_formats(floats, not refused, refused)


def _sources(stated: Mapping[str, str]) -> dict[tuple[str, str], str]:
    result = {}
    for executed, source in stated.items():
        for family in CPU_FLOATS:
            why = f"derived: {DERIVED[family.value]}; " if family.value in DERIVED else ""
            result[family.value, executed] = f"{why}{source}"
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the profiles")
    arguments = parser.parse_args()
    for identifier in TARGETS:
        for name, error in held_out_errors(identifier).items():
            print(
                f"{identifier}, {name}: n {error.n}, MAPE {error.mape:.1%}, within 10% {error.within10:.0%}, "
                f"rank correlation {error.spearman:.2f}"
            )
        content = document(identifier)
        if content is None:
            print(f"{identifier}: not written")
            continue
        (arguments.folder / f"{identifier}.yaml").write_text(profile_text(content), encoding="utf-8")


if __name__ == "__main__":
    main()
