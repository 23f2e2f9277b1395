"""Latency and energy of the MLPerf Tiny networks: fixed ratios of kernel families, one scalar per device.

Usage: python benchmarks/hardware/mlperf_tiny.py mlperf_tiny.csv [-o mlperf_tiny.json]

Every figure is of a network that its prediction has not seen: the scalar of a device comes from its other networks
(leave one network out). The ratios are the reference's for vendor libraries, or those of all other boards with the
same kind of library (leave one board out, too). `microcontrollers.py` says which is which. Energy is the device's
power (from its other networks) times time. Systems without a Cortex-M have no ratios and are listed as left out.
"""

from __future__ import annotations

import argparse
import csv
import json
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

from paretopress.hardware_profiles.reference_networks import known_network

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


def benchmark(path: Path) -> dict[str, Any]:
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
    lines.append(f"left out, no ratios for them: {'; '.join(report['left_out'])}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="mlperf_tiny.csv")
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON; a .txt lies beside it")
    arguments = parser.parse_args()
    report = benchmark(arguments.data)
    print(text_of(report), end="")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        arguments.output.with_suffix(".txt").write_text(text_of(report), encoding="utf-8")


if __name__ == "__main__":
    main()
