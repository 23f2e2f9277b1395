"""Latency of NAS-Bench-201 networks on three devices, calibrated on a few networks and checked on all others.

Usage:
    python benchmarks/hardware/nasbench201.py nasbench201_measured.csv [-o nasbench201.json]
    python benchmarks/hardware/nasbench201.py nasbench201_measured.csv --profiles hardware_profiles/library

Data: nn-Meter (Zhang et al., MobiSys 2021, MIT licence) for the Cortex-A76 and the Adreno 640 with TFLite, which
drops branches that do not reach the output; HELP (Lee et al., NeurIPS 2021, MIT licence) for the Xeon with PyTorch,
which computes them. The networks that calibrate are drawn at random; every seed draws others.

`ceiling` fits one coefficient per edge and operation to all rows, those it is checked on included: no sum of
operators can order the networks better than that, however many calibrate it.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretopress.hardware_profiles.accuracy import Accuracy, accuracy
from paretopress.hardware_profiles.features import Alignment, columns, matrix
from paretopress.hardware_profiles.nasbench201 import OPERATIONS, cost_view, live_operations, operations
from paretopress.hardware_profiles.nnls import non_negative_least_squares
from paretopress.hardware_profiles.predictor import FamilyModel, LatencyModel
from paretopress.hardware_profiles.schema import SCHEMA
from paretopress.hardware_profiles.writing import latency_section, number, profile_text, validation_entry
from paretopress.spaces.kernels import CostView, Family

Array = NDArray[np.float64]
CALIBRATION_NETWORKS = 50
SEEDS = 20
# Only what these networks tell apart: every stage of a NAS-Bench-201 cell has the same work.
TERMS: Mapping[Family, tuple[str, ...]] = {
    Family.CONV: ("work_1x1", "work_3x3"),
    Family.ADD: ("inputs",),
    Family.POOL: ("window_reads",),
}
NN_METER = "nn-Meter data set (Zhang et al., MobiSys 2021; MIT), NAS-Bench-201 rows"
HELP = "HELP data set (Lee et al., NeurIPS 2021; MIT), NAS-Bench-201 rows"


@dataclass(frozen=True, slots=True)
class Device:
    """A column of the data.

    Attributes:
        column: Its name.
        source: Who measured it.
        dead_branches: Whether the runtime computes what does not reach the output.
        alignment: How the runtime rounds channels up.
        within10: Share within 10% that is asked for.
    """

    column: str
    source: str
    dead_branches: bool
    alignment: Alignment
    within10: float


DEVICES = {
    "cortex-a76-tflite": Device(
        "cortex_a76_tflite_ms", f"{NN_METER}, Cortex-A76, TFLite 2.1", False, Alignment(4, 8, 1), 0.99
    ),
    "adreno640-tflite": Device(
        "adreno640_tflite_ms", f"{NN_METER}, Adreno 640, TFLite 2.1", False, Alignment(4, 4, 1), 0.99
    ),
    "xeon-gold-6226-pytorch": Device(
        "xeon_gold_6226_ms", f"{HELP}, Xeon Gold 6226, PyTorch", True, Alignment(1, 1, 1), 0.94
    ),
}
RANK_CORRELATION = 0.985


def read_rows(path: Path, device: str) -> tuple[list[str], Array]:
    """Return architectures and measured milliseconds of all rows that a device has."""
    rows = []
    with path.open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            value = float(row[DEVICES[device].column] or "nan")
            if math.isfinite(value):
                rows.append((row["arch"], value))
    return [name for name, _ in rows], np.array([value for _, value in rows])


def views_of(architectures: Sequence[str], device: str) -> list[CostView]:
    """Cost views as the device's runtime executes the networks."""
    return [cost_view(name, dead_branches=DEVICES[device].dead_branches) for name in architectures]


def feature_rows(views: Sequence[CostView], alignment: Alignment) -> Array:
    """Features of networks: an intercept, then the terms of each family summed over its kernels."""
    rows = []
    for view in views:
        parts = [np.ones(1)]
        for family, terms in TERMS.items():
            kernels = [kernel for kernel in view.kernels if kernel.family == family]
            parts.append(matrix(columns(kernels), terms, alignment).sum(axis=0))
        rows.append(np.concatenate(parts))
    return np.array(rows)


def solve(rows: Array, milliseconds: Array) -> Array:
    """Microseconds per feature by least squares of the relative errors, none of them negative."""
    measured = milliseconds * 1e3
    return non_negative_least_squares(rows / measured[:, None], np.ones(len(rows)))


def held_out(rows: Array, milliseconds: Array, networks: int, seed: int) -> tuple[Array, Accuracy]:
    """Calibrate on `networks` random rows; return the coefficients and the errors on all others."""
    order = np.random.default_rng(seed).permutation(len(rows))
    chosen, rest = order[:networks], order[networks:]
    coefficients = solve(rows[chosen], milliseconds[chosen])
    return coefficients, accuracy(rows[rest] @ coefficients / 1e3, milliseconds[rest])


def ceiling(architectures: Sequence[str], milliseconds: Array, dead_branches: bool) -> Accuracy:
    """Errors of one coefficient per edge and operation, fitted to the very rows it is checked on."""
    edges = [(start, end) for end in (1, 2, 3) for start in range(end)]
    rows = np.ones((len(architectures), 1 + len(edges) * len(OPERATIONS)))
    for index, name in enumerate(architectures):
        executed = operations(name) if dead_branches else live_operations(name)
        cell = {(start, end): operation for operation, start, end in executed}
        rows[index, 1:] = [cell.get(edge, "none") == one for edge in edges for one in OPERATIONS]
    coefficients = np.linalg.lstsq(rows / milliseconds[:, None], np.ones(len(rows)), rcond=None)[0]
    return accuracy(rows @ coefficients, milliseconds)


def spread(results: Sequence[Accuracy]) -> dict[str, Any]:
    """Mean, smallest and largest of every figure over the seeds."""
    figures = ("within10", "within5", "mape", "bias", "spearman")
    table = {name: [getattr(result, name) for result in results] for name in figures}
    return {
        name: {"mean": round(float(np.mean(found)), 4), "min": round(min(found), 4), "max": round(max(found), 4)}
        for name, found in table.items()
    }


def benchmark(path: Path, sizes: Sequence[int] = (20, CALIBRATION_NETWORKS), seeds: int = SEEDS) -> dict[str, Any]:
    """Return the figures of every device and number of calibration networks."""
    report: dict[str, Any] = {"seeds": seeds, "devices": {}}
    for device, about in DEVICES.items():
        architectures, milliseconds = read_rows(path, device)
        rows = feature_rows(views_of(architectures, device), about.alignment)
        entry: dict[str, Any] = {
            "source": about.source, "networks": len(rows), "asked_within10": about.within10,
            "asked_spearman": RANK_CORRELATION, "calibrated_on": {},
        }
        for size in sizes:
            results = [held_out(rows, milliseconds, size, seed)[1] for seed in range(seeds)]
            entry["calibrated_on"][str(size)] = {"held_out": len(rows) - size, **spread(results)}
        best = ceiling(architectures, milliseconds, about.dead_branches)
        entry["ceiling"] = {"within10": round(best.within10, 4), "spearman": round(best.spearman, 4)}
        report["devices"][device] = entry
    return report


def text_of(report: Mapping[str, Any]) -> str:
    """The figures as lines."""
    lines = [f"mean (min .. max) over {report['seeds']} seeds; the networks that calibrate are not among the held out"]
    for device, entry in report["devices"].items():
        lines.append(f"{device}: {entry['source']}")
        for size, found in entry["calibrated_on"].items():
            near, rank, error = found["within10"], found["spearman"], found["mape"]
            lines.append(
                f"  calibrated on {size:>3}, held out {found['held_out']}: "
                f"within 10% {near['mean']:.1%} ({near['min']:.1%} .. {near['max']:.1%}), "
                f"MAPE {error['mean']:.1%}, rank correlation {rank['mean']:.3f} "
                f"({rank['min']:.3f} .. {rank['max']:.3f})"
            )
        last = list(entry["calibrated_on"].values())[-1]
        passed = last["within10"]["mean"] >= entry["asked_within10"]
        ranked = last["spearman"]["mean"] >= entry["asked_spearman"]
        lines.append(
            f"  asked: within 10% {entry['asked_within10']:.0%} ({'met' if passed else 'NOT met'}), rank correlation "
            f"{entry['asked_spearman']} ({'met' if ranked else 'NOT met'}); ceiling of sums of operators, fitted to "
            f"all rows: {entry['ceiling']['within10']:.1%}, {entry['ceiling']['spearman']:.3f}"
        )
    return "\n".join(lines) + "\n"


# Single-precision MobileNetV2 at 224 x 224 is 46 ms by nn-Meter's published prediction for the Cortex-A76; what its
# 1x1 convolutions and its first convolution leave is given to the depthwise ones. In milliseconds and M MACs.
MOBILENET_V2_MS, MOBILENET_V2_POINTWISE, MOBILENET_V2_DEPTHWISE, MOBILENET_V2_STEM = 46.0, 269.5, 20.4, 10.8
_BY_ADDITIONS = (
    Family.GLOBAL_POOL, Family.ELEMENTWISE, Family.CONCAT, Family.DATA, Family.NORM, Family.OTHER,
)
_DERIVED = {
    Family.DEPTHWISE: "what 1x1 convolutions leave of nn-Meter's predicted 46 ms for MobileNetV2 at 224",
    Family.LINEAR: "rate of 1x1 convolutions",
    Family.MATMUL: "rate of 1x1 convolutions",
    Family.GROUPED: "rate of 3x3 convolutions",
    **dict.fromkeys(_BY_ADDITIONS, "bytes at the rate of additions"),
}
_ABOUT = {
    "cortex-a76-tflite": (
        "cpu", ("One big Cortex-A76 core (Pixel 4), TFLite 2.1, float32. Calibrated on NAS-Bench-201; depthwise and "
        "linear layers are derived, so other kinds of networks are less certain."),
        "128-bit NEON registers hold 4 float32 values",
    ),
    "adreno640-tflite": (
        "gpu", ("Adreno 640 (Pixel 4), TFLite 2.1 GPU delegate, float32. Calibrated on NAS-Bench-201; linear layers "
        "are derived, depthwise convolutions are unknown: no published figure tells their cost."),
        "TFLite's GPU delegate stores channels in slices of 4 (PHWC4)",
    ),
}


def latency_model(device: str, coefficients: Array) -> LatencyModel:
    """The predictor of a device, with the families that NAS-Bench-201 does not have."""
    families: dict[tuple[Family, str], FamilyModel] = {}
    position = 1
    for family, terms in TERMS.items():
        families[family, "float32"] = FamilyModel(terms, coefficients[position : position + len(terms)], None)
        position += len(terms)
    pointwise, three = families[Family.CONV, "float32"].coefficients
    add = families[Family.ADD, "float32"].coefficients[0]
    one = lambda term, value: FamilyModel((term,), np.array([value]), None)  # noqa: E731 - one short table
    families[Family.CONV, "float32"] = FamilyModel(
        ("work_1x1", "work_3x3", "work_other"), np.array([pointwise, three, three]), None
    )
    families[Family.GROUPED, "float32"] = one("work", three)
    if device == "cortex-a76-tflite":
        known = MOBILENET_V2_POINTWISE * pointwise + MOBILENET_V2_STEM * three
        rest = (MOBILENET_V2_MS - known) / MOBILENET_V2_DEPTHWISE
        families[Family.DEPTHWISE, "float32"] = one("window_reads", max(rest, three))
    for family in (Family.LINEAR, Family.MATMUL):
        families[family, "float32"] = one("work", pointwise)
    for family in _BY_ADDITIONS:
        families[family, "float32"] = one("inputs", add)
    alignment = {"float32": DEVICES[device].alignment}
    return LatencyModel(device, alignment, families, {}, {}, float(coefficients[0]), 1.0, 1.0)


def calibrate(path: Path, device: str, seed: int = 0) -> tuple[LatencyModel, Accuracy]:
    """Fit on `CALIBRATION_NETWORKS` random networks, validate on all others."""
    architectures, milliseconds = read_rows(path, device)
    rows = feature_rows(views_of(architectures, device), DEVICES[device].alignment)
    coefficients, result = held_out(rows, milliseconds, CALIBRATION_NETWORKS, seed)
    model = latency_model(device, coefficients)
    return replace(model, low=min(result.low, 1.0), high=max(result.high, 1.0)), result


def predict_ms(model: LatencyModel, views: Sequence[CostView]) -> Array:
    """Predict milliseconds of networks."""
    return np.array([
        (model.session_us + model.kernel_us(view.kernels, ["float32"] * len(view.kernels)).sum()) / 1e3
        for view in views
    ])


def formats() -> list[dict[str, Any]]:
    """Which widths are legal: float32, and weight-only storage."""
    unknown = "TFLite int8 on this device is unknown: no published measurement calibrates it"
    expanded = "weight-only: runs in float32 after the weights are expanded"
    return [
        {"weights": 32, "activations": 32, "status": "legal", "executes": "float32"},
        *({"weights": bits, "activations": 8, "status": "refused", "reason": unknown} for bits in (8, 4, 3, 2)),
        *(
            {"weights": bits, "activations": 32, "status": "size_only", "executes": "float32", "reason": expanded}
            for bits in (8, 4, 3, 2)
        ),
    ]


def document(device: str, model: LatencyModel, result: Accuracy) -> dict[str, Any]:
    """Return the profile document, with derived families marked as such."""
    kind, notes, reason = _ABOUT[device]
    source = DEVICES[device].source
    sources = {(family.value, "float32"): f"derived: {origin}" for family, origin in _DERIVED.items()}
    section = latency_section(model, "fitted", source, sources)
    for item in section["predictors"]:
        if (item["family"], "float32") in sources:
            for leaf in item["terms"].values():
                leaf["basis"] = "derived"
    step = number(4, "derived", reason)
    name = f"NAS-Bench-201 networks that did not calibrate ({device})"
    return {
        "schema": SCHEMA, "id": device, "kind": kind, "tier": "T1", "notes": notes,
        "runtime": {"name": "tflite", "version": "2.1", "threads": 1, "batch": 1, "removes_dead_branches": True},
        "formats": formats(),
        "align": {"channel_step": step, "rank_step": step},
        "latency": section,
        "validation": [validation_entry(name, result, source, CALIBRATION_NETWORKS)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="nasbench201_measured.csv")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON; a .txt lies beside it")
    parser.add_argument("--profiles", type=Path, help="folder to write the profiles into")
    arguments = parser.parse_args()
    if arguments.profiles:
        for device in _ABOUT:
            text = profile_text(document(device, *calibrate(arguments.data, device)))
            (arguments.profiles / f"{device}.yaml").write_text(text, encoding="utf-8")
        return
    report = benchmark(arguments.data, seeds=arguments.seeds)
    print(text_of(report), end="")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        arguments.output.with_suffix(".txt").write_text(text_of(report), encoding="utf-8")


if __name__ == "__main__":
    main()
