"""Calibrates the `cortex-a76-tflite` profile on published NAS-Bench-201 latencies and checks it on the rest.

Usage: python benchmarks/fit_cortex_a76.py nasbench201_measured.csv [-o cortex-a76-tflite.yaml]

Data: nn-Meter's measurements (Zhang et al., MobiSys 2021, MIT licence) of NAS-Bench-201 networks on one
big Cortex-A76 core, float32. A fifth of the networks or fewer calibrate; all others validate.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from nasbench201 import cost_view

from paretopress.hardware_profiles.accuracy import Accuracy, accuracy
from paretopress.hardware_profiles.features import Alignment, columns, matrix
from paretopress.hardware_profiles.nnls import non_negative_least_squares
from paretopress.hardware_profiles.predictor import FamilyModel, LatencyModel
from paretopress.hardware_profiles.schema import SCHEMA
from paretopress.hardware_profiles.writing import latency_section, number, profile_text, validation_entry
from paretopress.spaces.kernels import CostView, Family

CALIBRATION_NETWORKS = 300
ALIGNMENT = {"float32": Alignment(4, 8, 1)}
SOURCE = "nn-Meter data set (Zhang et al., MobiSys 2021; MIT), NAS-Bench-201 rows, Cortex-A76, TFLite 2.1"
# Only what these networks tell apart: every stage of a NAS-Bench-201 cell has the same work.
TERMS: dict[Family, tuple[str, ...]] = {
    Family.CONV: ("work_1x1", "work_3x3"),
    Family.ADD: ("inputs",),
    Family.POOL: ("window_reads",),
}
# Single-precision MobileNetV2 at 224 x 224 is 46 ms by nn-Meter's published prediction; what its 1x1
# convolutions and its first convolution leave is given to the depthwise ones.
MOBILENET_V2_MS, MOBILENET_V2_POINTWISE, MOBILENET_V2_DEPTHWISE, MOBILENET_V2_STEM = (
    46.0,
    269.5,
    20.4,
    10.8,
)  # ms, M MACs


def read_rows(path: Path) -> tuple[list[CostView], np.ndarray]:
    """Return the cost views and measured milliseconds of all rows with a Cortex-A76 figure."""
    views, times = [], []
    with path.open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            value = float(row["cortex_a76_tflite_ms"] or "nan")
            if math.isfinite(value):
                views.append(cost_view(row["arch"]))
                times.append(value)
    return views, np.array(times)


def feature_row(view: CostView) -> np.ndarray:
    """Features of a network: an intercept, then the terms of each family summed over its kernels."""
    parts = [np.ones(1)]
    for family, terms in TERMS.items():
        kernels = [kernel for kernel in view.kernels if kernel.family == family]
        parts.append(matrix(columns(kernels), terms, ALIGNMENT["float32"]).sum(axis=0))
    return np.concatenate(parts)


def fit(views: list[CostView], milliseconds: np.ndarray) -> LatencyModel:
    """Fit microseconds per feature on relative errors."""
    rows, measured = np.array([feature_row(view) for view in views]), milliseconds * 1e3
    solution = non_negative_least_squares(rows / measured[:, None], np.ones(len(rows)))
    families, position = {}, 1
    for family, terms in TERMS.items():
        families[family, "float32"] = FamilyModel(terms, solution[position : position + len(terms)], None)
        position += len(terms)
    return LatencyModel(
        "cortex-a76-tflite", ALIGNMENT, with_derived(families), {}, {}, float(solution[0]), 1.0, 1.0
    )


def with_derived(families: dict[tuple[Family, str], FamilyModel]) -> dict[tuple[Family, str], FamilyModel]:
    """Add families that NAS-Bench-201 does not have."""
    pointwise, three = families[Family.CONV, "float32"].coefficients
    add = families[Family.ADD, "float32"].coefficients[0]
    rest_us = MOBILENET_V2_MS * 1e3 - 1e3 * (MOBILENET_V2_POINTWISE * pointwise + MOBILENET_V2_STEM * three)
    families[Family.CONV, "float32"] = FamilyModel(
        ("work_1x1", "work_3x3", "work_other"), np.array([pointwise, three, three]), None
    )
    families[Family.GROUPED, "float32"] = FamilyModel(("work",), np.array([three]), None)
    families[Family.DEPTHWISE, "float32"] = FamilyModel(
        ("window_reads",), np.array([max(rest_us / (MOBILENET_V2_DEPTHWISE * 1e3), three)]), None
    )
    for family in (Family.LINEAR, Family.MATMUL):
        families[family, "float32"] = FamilyModel(("work",), np.array([pointwise]), None)
    for family in (
        Family.GLOBAL_POOL,
        Family.ELEMENTWISE,
        Family.CONCAT,
        Family.DATA,
        Family.NORM,
        Family.OTHER,
    ):
        families[family, "float32"] = FamilyModel(("inputs",), np.array([add]), None)
    return families


def predict_ms(model: LatencyModel, views: list[CostView]) -> np.ndarray:
    """Predict milliseconds of networks."""
    return np.array(
        [
            (model.session_us + model.kernel_us(view.kernels, ["float32"] * len(view.kernels)).sum()) / 1e3
            for view in views
        ]
    )


def calibrate(path: Path, seed: int = 0) -> tuple[LatencyModel, Accuracy]:
    """Fit on `CALIBRATION_NETWORKS` random networks, validate on all others."""
    views, times = read_rows(path)
    order = np.random.default_rng(seed).permutation(len(views))
    chosen, held = order[:CALIBRATION_NETWORKS], order[CALIBRATION_NETWORKS:]
    assert len(held) >= 0.8 * len(views)
    model = fit([views[i] for i in chosen], times[chosen])
    result = accuracy(predict_ms(model, [views[i] for i in held]), times[held])
    return replace(model, low=result.low, high=result.high), result


_DERIVED = {
    Family.DEPTHWISE: "what 1x1 convolutions leave of nn-Meter's predicted 46 ms for MobileNetV2 at 224",
    Family.LINEAR: "rate of 1x1 convolutions",
    Family.MATMUL: "rate of 1x1 convolutions",
    Family.GROUPED: "rate of 3x3 convolutions",
    Family.GLOBAL_POOL: "bytes at the rate of additions",
    Family.ELEMENTWISE: "bytes at the rate of additions",
    Family.CONCAT: "bytes at the rate of additions",
    Family.DATA: "bytes at the rate of additions",
    Family.NORM: "bytes at the rate of additions",
    Family.OTHER: "bytes at the rate of additions",
}
_UNKNOWN = "TFLite int8 on this device is unknown: no published measurement calibrates it"
_WEIGHT_ONLY = "weight-only: runs in float32 after the weights are expanded"


def formats() -> list[dict[str, Any]]:
    """Which widths are legal: float32, and weight-only storage."""
    return [
        {"weights": 32, "activations": 32, "status": "legal", "executes": "float32"},
        *(
            {"weights": bits, "activations": 8, "status": "refused", "reason": _UNKNOWN}
            for bits in (8, 4, 3, 2)
        ),
        *(
            {
                "weights": bits,
                "activations": 32,
                "status": "size_only",
                "executes": "float32",
                "reason": _WEIGHT_ONLY,
            }
            for bits in (8, 4, 3, 2)
        ),
    ]


def latency(model: LatencyModel) -> dict[str, Any]:
    """The latency section, with derived families marked as such."""
    sources = {(family.value, "float32"): f"derived: {reason}" for family, reason in _DERIVED.items()}
    section = latency_section(model, "fitted", SOURCE, sources)
    for item in section["predictors"]:
        if (item["family"], "float32") in sources:
            for leaf in item["terms"].values():
                leaf["basis"] = "derived"
    return section


def document(model: LatencyModel, result: Accuracy) -> dict[str, Any]:
    """Return the profile document."""
    step = number(4, "derived", "128-bit NEON registers hold 4 float32 values")
    name = "nasbench201-cortex-a76 (networks not used for calibration)"
    return {
        "schema": SCHEMA,
        "id": "cortex-a76-tflite",
        "kind": "cpu",
        "tier": "T1",
        "notes": "One big Cortex-A76 core (Pixel 4), TFLite 2.1, float32. Calibrated on NAS-Bench-201; "
        "depthwise and linear layers are derived, so other kinds of networks are less certain.",
        "runtime": {
            "name": "tflite",
            "version": "2.1",
            "threads": 1,
            "batch": 1,
            "removes_dead_branches": True,
        },
        "formats": formats(),
        "align": {"channel_step": step, "rank_step": step},
        "latency": latency(model),
        "validation": [validation_entry(name, result, SOURCE)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="nasbench201_measured.csv")
    parser.add_argument("-o", "--output", type=Path, help="where to write the profile")
    arguments = parser.parse_args()
    model, result = calibrate(arguments.data)
    print(
        f"calibrated on {CALIBRATION_NETWORKS} networks, held out {result.n}: MAPE {result.mape:.2%}, "
        f"within 10% {result.within10:.2%}, Spearman {result.spearman:.4f}"
    )
    if arguments.output:
        arguments.output.write_text(profile_text(document(model, result)), encoding="utf-8")


if __name__ == "__main__":
    main()
