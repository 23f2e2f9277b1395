"""Calibrates the `stm32-h7a3` profile on the MLPerf Tiny v1.1 results of STMicroelectronics.

Usage: python benchmarks/fit_stm32_h7a3.py mlperf_tiny.csv [-o stm32-h7a3.yaml]

Four networks cannot tell many rates apart: each family has one rate in cycles per multiply-accumulate,
pulled towards a common rate, and validation leaves one network out at a time.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mlperf_tiny import NETWORKS

from paretopress.hardware_profiles.accuracy import Accuracy, accuracy
from paretopress.hardware_profiles.features import Alignment, columns, matrix
from paretopress.hardware_profiles.nnls import non_negative_least_squares
from paretopress.hardware_profiles.predictor import FamilyModel, LatencyModel
from paretopress.hardware_profiles.schema import SCHEMA
from paretopress.hardware_profiles.writing import latency_section, number, profile_text, validation_entry
from paretopress.spaces.kernels import CostView, Family

MHZ = 280.0
SOURCE = "MLPerf Tiny v1.1 closed results (Apache-2.0), STMicroelectronics NUCLEO_H7A3ZI_Q, X-CUBE-AI"
ALIGNMENT = {"int8": Alignment(1, 1, 4)}
# Unknowns, in cycles: per multiply-accumulate of dense convolutions, of depthwise ones, of linear layers,
# and per element of everything else.
UNKNOWNS = ("dense", "depthwise", "linear", "element")
PRIOR = {"dense": 1.2, "depthwise": 2.0, "linear": 1.9, "element": 4.0}
PRIOR_WEIGHT = 0.25


_ELEMENTWISE = (Family.ADD, Family.GLOBAL_POOL, Family.ELEMENTWISE, Family.CONCAT, Family.DATA)


def measured(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Return microseconds and microjoules per inference by network."""
    time, energy = {}, {}
    with path.open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if (
                row["round"] == "v1.1"
                and row["submitter"] == "STMicroelectronics"
                and row["system"] == "NUCLEO_H7A3ZI_Q"
            ):
                time[row["network"]] = 1e6 / float(row["inferences_per_second"])
                energy[row["network"]] = float(row["energy_uj_per_inference"])
    return time, energy


def feature_row(view: CostView) -> np.ndarray:
    """Thousands of multiply-accumulates or elements per unknown."""
    row = np.zeros(len(UNKNOWNS))
    for kernel in view.kernels:
        table = columns([kernel])
        if kernel.family == Family.CONV:
            row[0] += matrix(table, ["work"], ALIGNMENT["int8"])[0, 0]
        elif kernel.family == Family.DEPTHWISE:
            row[1] += matrix(table, ["window_reads"], ALIGNMENT["int8"])[0, 0]
        elif kernel.family == Family.LINEAR:
            row[2] += matrix(table, ["work"], ALIGNMENT["int8"])[0, 0]
        else:
            row[3] += kernel.input_elements / 1e3
    return row


def fit(names: Sequence[str], times: dict[str, float]) -> LatencyModel:
    """Fit cycles on relative errors with a weak prior, and return microseconds."""
    cycles = np.array([times[name] * MHZ for name in names])
    rows = np.array([feature_row(NETWORKS[name]()) for name in names]) * 1e3 / cycles[:, None]
    prior = np.diag([PRIOR_WEIGHT / PRIOR[name] for name in UNKNOWNS])
    solution = non_negative_least_squares(
        np.concatenate([rows, prior]),
        np.concatenate([np.ones(len(names)), np.full(len(UNKNOWNS), PRIOR_WEIGHT)]),
    )
    dense, depthwise, linear, element = solution * 1e3 / MHZ
    terms: dict[Family, tuple[str, float]] = {
        Family.CONV: ("work", dense),
        Family.GROUPED: ("work", dense),
        Family.DEPTHWISE: ("window_reads", depthwise),
        Family.LINEAR: ("work", linear),
        Family.POOL: ("window_reads", element),
        **dict.fromkeys(_ELEMENTWISE, ("inputs", element)),
    }
    families = {
        (family, "int8"): FamilyModel((term,), np.array([value]), None)
        for family, (term, value) in terms.items()
    }
    element_terms = (("elements",), np.array([element]))
    boundaries = {"quantize": element_terms, "dequantize": element_terms}
    return LatencyModel("stm32-h7a3", ALIGNMENT, families, boundaries, {}, 0.0, 1.0, 1.0)


def predict_us(model: LatencyModel, name: str) -> float:
    """Predict microseconds of one reference network."""
    view = NETWORKS[name]()
    return float(model.kernel_us(view.kernels, ["int8"] * len(view.kernels)).sum())


def calibrate(path: Path) -> tuple[LatencyModel, Accuracy, float]:
    """Return the model, its leave-one-network-out accuracy, and the active power in milliwatts."""
    times, energies = measured(path)
    held = np.array(
        [predict_us(fit([other for other in NETWORKS if other != name], times), name) for name in NETWORKS]
    )
    truth = np.array([times[name] for name in NETWORKS])
    result = accuracy(held, truth)
    power = float(np.mean([energies[name] / times[name] * 1e3 for name in NETWORKS]))
    return (
        replace(fit(tuple(NETWORKS), times), low=min(result.low, 1.0), high=max(result.high, 1.0)),
        result,
        power,
    )


def document(model: LatencyModel, result: Accuracy, power_mw: float) -> dict[str, Any]:
    """Return the profile document."""
    board = "ST STM32H7A3ZI datasheet (DS13195)"
    unknown = "float32 networks on this device are unknown: all published results are int8"
    return {
        "schema": SCHEMA,
        "id": "stm32-h7a3",
        "kind": "mcu",
        "tier": "T1",
        "notes": f"Cortex-M7 at {MHZ:.0f} MHz, X-CUBE-AI, int8 only. Calibrated on four networks; energy is "
        "active power times latency.",
        "runtime": {
            "name": "x-cube-ai",
            "version": "7.3",
            "threads": 1,
            "batch": 1,
            "removes_dead_branches": True,
        },
        "formats": [
            {"weights": 8, "activations": 8, "status": "fast", "executes": "int8"},
            *(
                {
                    "weights": bits,
                    "activations": 8,
                    "status": "legal",
                    "executes": "int8",
                    "reason": f"{bits}-bit weights are expanded to int8 in flash: no saving on the device",
                }
                for bits in (4, 3, 2)
            ),
            *(
                {"weights": bits, "activations": 32, "status": "refused", "reason": unknown}
                for bits in (32, 8, 4, 3, 2)
            ),
        ],
        "align": {
            "channel_step": number(
                4, "published", "CMSIS-NN processes channels in fours (SIMD of 8-bit values)"
            ),
            "rank_step": number(
                4, "published", "CMSIS-NN processes channels in fours (SIMD of 8-bit values)"
            ),
        },
        "memory": {
            "sram_bytes": number(1.18e6, "datasheet", f"{board}: 1.18 Mbyte of user RAM"),
            "flash_bytes": number(2 * 1024 * 1024, "datasheet", f"{board}: 2 Mbyte of flash"),
        },
        "latency": latency_section(model, "fitted", f"{SOURCE}, {MHZ:.0f} MHz"),
        "active_power_mw": number(
            power_mw, "derived", f"{SOURCE}: energy / time, mean over the four networks"
        ),
        "validation": [validation_entry("MLPerf Tiny, leave one network out", result, SOURCE)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="mlperf_tiny.csv")
    parser.add_argument("-o", "--output", type=Path, help="where to write the profile")
    arguments = parser.parse_args()
    model, result, power = calibrate(arguments.data)
    times, _ = measured(arguments.data)
    for name in NETWORKS:
        print(f"{name}: {predict_us(model, name) / 1e3:.2f} ms, published {times[name] / 1e3:.2f} ms")
    print(
        f"leave one out: MAPE {result.mape:.1%}, low {result.low:.2f}, high {result.high:.2f}; "
        f"power {power:.1f} mW"
    )
    if arguments.output:
        arguments.output.write_text(profile_text(document(model, result, power)), encoding="utf-8")


if __name__ == "__main__":
    main()
