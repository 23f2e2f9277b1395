"""Latency and energy of the MLPerf Tiny networks: fixed ratios of kernel families, one scalar per device.

Usage: python benchmarks/hardware/mlperf_tiny.py mlperf_tiny.csv [--vela] [-o mlperf_tiny.json]

Every figure is of a network that its prediction has not seen: the scalar of a device comes from its other networks
(leave one network out). The ratios are the reference's for vendor libraries, or those of all other boards with the
same kind of library (leave one board out, too). `microcontrollers.py` says which is which. Energy is the device's
power (from its other networks) times time. Systems without a Cortex-M have no ratios and are listed as left out.
Memory is predicted for ResNet-8 and DS-CNN and compared with vendors' figures; `--vela` compiles both with Arm's
compiler (the extra ethos-u), with random weights, which hardly compress.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from microcontrollers import (
    NETWORKS,
    RATES,
    STOCK,
    VENDOR,
    Array,
    Submission,
    network_rows,
    ratios_of,
    read_submissions,
    reference_ratios,
)
from rates import geometric_scale, scaled_leave_one_out

from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.kernels_onnx import ModelBuilder
from paretopress.hardware_profiles.reference_networks import known_network
from paretopress.hardware_profiles.vela import GOALS, VelaEstimate, vela_estimate

ZOO = Path(__file__).with_name("stm32_model_zoo.csv")
WITHIN, ASKED = 0.20, 0.80


def figures(errors: Sequence[float]) -> dict[str, Any]:
    """Rows, shares within 20% and 10%, mean and largest error."""
    found = np.abs(np.array(errors))
    return {
        "rows": len(found), "within20": round(float((found <= WITHIN).mean()), 4),
        "within10": round(float((found <= 0.1).mean()), 4), "mape": round(float(found.mean()), 4),
        "largest": round(float(found.max()), 4),
    }


def shape_of(names: Sequence[str], rates: Array) -> Array:
    """Predicted times of networks up to a scale."""
    return network_rows(names) @ rates


def latency_errors(submissions: Sequence[Submission], rates_for: Mapping[str, Array]) -> dict[str, list[float]]:
    """Relative errors by system, the ratios by system."""
    result = {}
    for one in submissions:
        names, times = one.times()
        if len(names) > 1:
            held = scaled_leave_one_out(shape_of(names, rates_for[one.title]), times)
            result[one.title] = [float(error) for error in held / times - 1]
    return result


def energy_errors(one: Submission, rates: Array) -> tuple[list[float], list[float]]:
    """Relative errors of energy given the measured time, and given nothing of the held-out network."""
    names = tuple(name for name in NETWORKS if name in one.microjoules)
    times = np.array([one.microseconds[name] for name in names])
    energies = np.array([one.microjoules[name] for name in names])
    if len(names) < 2:
        return [], []
    power = scaled_leave_one_out(times, energies)
    shape, given, whole = shape_of(names, rates), [], []
    for index in range(len(names)):
        others = np.arange(len(names)) != index
        watts = geometric_scale(times[others], energies[others])
        time = shape[index] * geometric_scale(shape[others], times[others])
        given.append(float(power[index] / energies[index] - 1))
        whole.append(float(watts * time / energies[index] - 1))
    return given, whole


def zoo_errors(rates: Array) -> dict[str, float]:
    """STM32 model zoo on the STM32H747 (X-CUBE-AI 9.1.0): seven networks, ratios from MLPerf Tiny."""
    with ZOO.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    shape = RATES.rows([known_network(row["network"], 8) for row in rows]) @ rates
    times = np.array([float(row["milliseconds"]) for row in rows])
    errors = scaled_leave_one_out(shape, times) / times - 1
    return {row["network"]: round(float(error), 4) for row, error in zip(rows, errors, strict=True)}


# KiB, from the reference: Arm Vela on Ethos-U55-128; ST's model zoo, X-CUBE-AI 9.1.0 on the STM32H747.
VENDOR_KIB = (
    ("resnet-8", "activations", "Vela, SRAM", 50.6), ("resnet-8", "weights", "Vela, flash", 77.4),
    ("resnet-8", "activations", "ST, activations", 62.5), ("resnet-8", "runtime", "ST, runtime", 7.2),
    ("resnet-8", "weights", "ST, weights", 76.9),
)
MEMORY_WITHIN = 0.15


def memory_figures(compiled: Mapping[tuple[str, str], VelaEstimate]) -> list[dict[str, Any]]:
    """Predicted memory beside the vendors' figures, and what Vela says of the networks that were compiled."""
    vendors = list(VENDOR_KIB)
    with ZOO.open(encoding="utf-8") as stream:
        others = [row for row in csv.DictReader(stream) if row["network"] != "resnet-8"]
    vendors += [(row["network"], "activations", "ST, activations", float(row["activation_kib"])) for row in others]
    for (name, goal), found in compiled.items():
        vendors.append((name, "activations", f"Vela here for {goal}, SRAM", found.sram_bytes / 1024))
        vendors.append((name, "weights", f"Vela here for {goal}, flash, random weights", found.flash_bytes / 1024))
    rows = []
    for name, what, vendor, kib in vendors:
        memory = load_profile("stm32-h747").memory(known_network(name, 8))
        predicted = {
            "activations": memory.peak_activation_bytes, "weights": memory.weight_bytes,
            "runtime": memory.runtime_bytes or 0,
        }[what] / 1024
        rows.append({
            "network": name, "what": what, "vendor": vendor, "vendor_kib": round(kib, 2),
            "predicted_kib": round(predicted, 2), "error": round(predicted / kib - 1, 4),
        })
    return rows


def compiled_networks(folder: Path) -> dict[tuple[str, str], VelaEstimate]:
    """Compile ResNet-8 and DS-CNN for the Ethos-U55-128, for performance and for size."""
    result = {}
    for name, build in {"resnet-8": _resnet8, "ds-cnn": _ds_cnn}.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(build())
        result.update({(name, goal): vela_estimate(path, "ethos-u55-128", goal) for goal in GOALS})
    return result


def _resnet8() -> bytes:
    builder = ModelBuilder(0)
    value = builder.conv(builder.start(3, (32, 32)), 16, (3, 3), int8=True)
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        inner = builder.conv(value, channels, (3, 3), stride, int8=True)
        inner = builder.conv(inner, channels, (3, 3), relu=False, int8=True)
        if stride > 1:
            value = builder.conv(value, channels, (1, 1), stride, relu=False, int8=True)
        value = builder.add(value, inner, int8=True)
    return builder.build(builder.linear(builder.global_pool(value, int8=True), 10, int8=True, last=True))[0]


def _ds_cnn() -> bytes:
    builder = ModelBuilder(0)
    value = builder.conv(builder.start(1, (49, 10)), 64, (10, 4), 2, int8=True)
    for _ in range(4):
        value = builder.conv(value, 64, (3, 3), groups=64, int8=True)
        value = builder.conv(value, 64, (1, 1), int8=True)
    return builder.build(builder.linear(builder.global_pool(value, int8=True), 12, int8=True, last=True))[0]


def benchmark(path: Path, compiled: Mapping[tuple[str, str], VelaEstimate]) -> dict[str, Any]:
    """Return all figures."""
    submissions = read_submissions(path)
    reference = reference_ratios()
    by_kind = {kind: [one for one in submissions if one.kind == kind] for kind in (VENDOR, STOCK)}
    others = {
        one.title: ratios_of(submissions, kind, one.board) for kind, found in by_kind.items() for one in found
    }
    protocols = {
        "vendor libraries, the reference's ratios": (by_kind[VENDOR], dict.fromkeys(others, reference)),
        "vendor libraries, ratios of all other boards": (by_kind[VENDOR], others),
        "stock libraries, ratios of all other boards": (by_kind[STOCK], others),
        "all Cortex-M, ratios of all other boards of the kind": ([*by_kind[VENDOR], *by_kind[STOCK]], others),
        "all Cortex-M, the reference's ratios whatever the library": (
            [*by_kind[VENDOR], *by_kind[STOCK]], dict.fromkeys(others, reference)
        ),
    }
    report: dict[str, Any] = {"asked": f"within {WITHIN:.0%} for {ASKED:.0%} of rows", "latency": {}, "energy": {}}
    for title, (chosen, rates_for) in protocols.items():
        errors = latency_errors(chosen, rates_for)
        report["latency"][title] = {
            **figures([error for found in errors.values() for error in found]), "systems": len(errors),
        }
    measured = [one for one in submissions if one.kind and len(one.microjoules) > 1]
    given, whole = [], []
    for one in measured:
        first, second = energy_errors(one, others[one.title])
        given += first
        whole += second
    report["energy"] = {
        "systems": len(measured), "given the measured time": figures(given), "with the predicted time": figures(whole),
    }
    errors = zoo_errors(ratios_of(submissions, STOCK))
    report["stm32_model_zoo"] = {**figures(list(errors.values())), "errors": errors}
    report["memory"] = memory_figures(compiled)
    report["left_out"] = sorted(one.title for one in submissions if not one.kind)
    return report


def text_of(report: Mapping[str, Any]) -> str:
    """The figures as lines."""
    lines = [f"asked: {report['asked']}; every row is a network that its prediction has not seen"]
    for title, found in report["latency"].items():
        verdict = "met" if found["within20"] >= ASKED else "NOT met"
        lines.append(
            f"latency, {title}: {found['rows']} rows of {found['systems']} systems: within 20% {found['within20']:.1%} "
            f"({verdict}), within 10% {found['within10']:.1%}, MAPE {found['mape']:.1%}, largest {found['largest']:.0%}"
        )
    for title in ("given the measured time", "with the predicted time"):
        found = report["energy"][title]
        lines.append(
            f"energy {title}: {found['rows']} rows of {report['energy']['systems']} systems: within 20% "
            f"{found['within20']:.1%}, within 10% {found['within10']:.1%}, MAPE {found['mape']:.1%}, "
            f"largest {found['largest']:.0%}"
        )
    zoo = report["stm32_model_zoo"]
    lines.append(
        f"STM32H747, model zoo, ratios of MLPerf Tiny (stock libraries): {zoo['rows']} networks: within 20% "
        f"{zoo['within20']:.1%}, MAPE {zoo['mape']:.1%}"
    )
    for row in report["memory"]:
        verdict = "within 15%" if abs(row["error"]) <= MEMORY_WITHIN else "NOT within 15%"
        lines.append(
            f"memory, {row['network']} {row['what']}: predicted {row['predicted_kib']} KiB, {row['vendor']} "
            f"{row['vendor_kib']} KiB: {row['error']:+.0%} ({verdict})"
        )
    lines.append(f"left out, no ratios for them: {'; '.join(report['left_out'])}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="mlperf_tiny.csv")
    parser.add_argument("--vela", action="store_true", help="compile ResNet-8 and DS-CNN with Arm Vela")
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON; a .txt lies beside it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compiled = compiled_networks(Path(folder)) if arguments.vela else {}
    report = benchmark(arguments.data, compiled)
    print(text_of(report), end="")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        arguments.output.with_suffix(".txt").write_text(text_of(report), encoding="utf-8")


if __name__ == "__main__":
    main()
