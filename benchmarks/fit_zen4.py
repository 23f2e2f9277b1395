"""Builds the `x86-zen4-vnni-onnxruntime` profile from published and re-measured figures.

Usage:
    python benchmarks/fit_zen4.py zen4_ort1311_conv_1thread_us.csv --seconds 240 -o PROFILE.yaml

The CSV has isolated 1x1 and 3x3 convolutions on one Zen 4 core. Every family is measured on the machine that
runs this script (random networks, as for `local`), and the model is scaled to the CSV: per executed type one
factor for arithmetic, one for all other terms, one for conversions. The factors are fitted on half of the
CSV's rows and checked on the other half.
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from paretopress.hardware_profiles.accuracy import Accuracy, accuracy
from paretopress.hardware_profiles.fit import Fitted
from paretopress.hardware_profiles.host import host_info
from paretopress.hardware_profiles.kernels_onnx import ModelBuilder
from paretopress.hardware_profiles.measure import Settings, fit_campaign, time_networks
from paretopress.hardware_profiles.measured_document import profile_document
from paretopress.hardware_profiles.nnls import non_negative_least_squares
from paretopress.hardware_profiles.predictor import LatencyModel
from paretopress.hardware_profiles.runtimes import open_runtime
from paretopress.hardware_profiles.timing_protocol import RuntimeFacts
from paretopress.hardware_profiles.writing import profile_text, validation_entry
from paretopress.spaces.kernels import CostView

IDENTIFIER = "x86-zen4-vnni-onnxruntime"
TYPES = ("float32", "int8")
CSV_SOURCE = (
    "zen4_ort1311_conv_1thread_us.csv: 420 isolated convolutions, ONNX Runtime 1.31.1, one Zen 4 thread"
)


@dataclass(frozen=True, slots=True)
class Isolated:
    """One convolution alone in a session, and its Zen 4 microseconds."""

    view: CostView
    zen4_us: float


def read_isolated(path: Path) -> dict[str, list[Isolated]]:
    """Return the rows of the CSV by executed type."""
    result: dict[str, list[Isolated]] = {name: [] for name in TYPES}
    with path.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        cin, cout, window, stride, size = (int(row[name]) for name in ("cin", "cout", "k", "stride", "hw_in"))
        for executed, published in zip(TYPES, (row["f32_us"], row["int8_us"]), strict=True):
            builder = ModelBuilder(0)
            value = builder.start(cin, (size, size))
            value = builder.conv(value, cout, (window, window), stride, int8=executed == "int8")
            result[executed].append(Isolated(builder.build(value)[1], float(published)))
    return result


def part_of(model: LatencyModel, work: bool) -> LatencyModel:
    """The model with only the terms that count arithmetic, or only the others."""
    families = {}
    for key, item in model.families.items():
        chosen = np.array([is_work(name) == work for name in item.names])
        families[key] = replace(item, coefficients=item.coefficients * chosen)
    return replace(model, families=families)


def is_work(term: str) -> bool:
    """Whether a term counts multiply-accumulates."""
    return term.startswith("work") or term == "window_reads"


@dataclass(frozen=True, slots=True)
class Factors:
    """Zen 4 time / time here of one executed type, and the overhead of a call on Zen 4."""

    session_us: float
    work: float
    other: float
    boundaries: float


def compare(model: LatencyModel, rows: list[Isolated], executed: str) -> Factors:
    """Fit the factors to isolated convolutions.

    A lone float32 convolution also changes to and from the blocked layout, once per network: two more
    unknowns take that up.
    """
    work, other = (part_of(model, flag) for flag in (True, False))
    table = np.array(
        [
            [
                1.0,
                float(work.kernel_us(row.view.kernels, [executed])[0]),
                float(other.kernel_us(row.view.kernels, [executed])[0]),
                float(model.boundary_us(row.view.boundaries).sum()),
                row.view.kernels[0].input_elements / 1e3 * (executed == "float32"),
                row.view.kernels[0].output_elements / 1e3 * (executed == "float32"),
            ]
            for row in rows
        ]
    )
    measured = np.array([row.zen4_us for row in rows])
    solution = non_negative_least_squares(table / measured[:, None], np.ones(len(rows)))
    return Factors(*(float(value) for value in solution[:4]))


def to_zen4(fitted: Fitted, factors: dict[str, Factors]) -> LatencyModel:
    """Scale a model of this machine."""
    model = fitted.model
    families = {}
    for (family, executed), item in model.families.items():
        scale = factors[executed]
        by_term = np.array([scale.work if is_work(name) else scale.other for name in item.names])
        families[family, executed] = replace(item, coefficients=item.coefficients * by_term)
    conversion = factors["int8"].boundaries
    return replace(
        model,
        device=IDENTIFIER,
        session_us=float(np.mean([factors[name].session_us for name in TYPES])),
        families=families,
        boundaries={kind: (names, values * conversion) for kind, (names, values) in model.boundaries.items()},
    )


def check(model: LatencyModel, rows: list[Isolated], executed: str) -> Accuracy:
    """Predict whole sessions of one convolution: call overhead, kernel, and conversions where int8.

    The layout changes of a lone float32 convolution are in the measurement and not in the prediction.
    """
    predicted = np.array(
        [
            model.session_us
            + float(model.kernel_us(row.view.kernels, [executed]).sum())
            + float(model.boundary_us(row.view.boundaries).sum())
            for row in rows
        ]
    )
    return accuracy(predicted, np.array([row.zen4_us for row in rows]))


def document(
    fitted: Fitted, entries: list[dict[str, Any]], rows: dict[str, list[Isolated]], networks: int,
    runtime: RuntimeFacts,
) -> dict[str, Any]:
    """Return the profile document."""
    host = host_info()
    here = f"random networks measured on {host.description} with ONNX Runtime, {time.strftime('%Y-%m-%d')}"
    factors = {name: compare(fitted.model, rows[name][::2], name) for name in TYPES}
    model = to_zen4(fitted, factors)
    checks = {name: check(model, rows[name][1::2], name) for name in TYPES}
    # No network was measured on Zen 4: the interval covers the errors of both checks.
    model = replace(
        model,
        low=min(model.low, *(item.low for item in checks.values())),
        high=max(model.high, *(item.high for item in checks.values())),
    )
    stated = "; ".join(
        f"{name}: arithmetic x{item.work:.2f}, other terms x{item.other:.2f}"
        for name, item in factors.items()
    )
    source = f"{here} ({networks} networks), scaled to Zen 4 ({stated}) by half of the rows of {CSV_SOURCE}"
    wanted = {
        "cpu_model": "EPYC",
        "machine": "x86_64",
        "cpu_family": 25,
        "flags": ["avx512_vnni", "avx512_bf16"],
    }
    csv_entries = [
        validation_entry(f"held-out isolated {name} convolutions, Zen 4", checks[name], CSV_SOURCE)
        for name in TYPES
    ]
    relabelled = [
        {**entry, "set": f"{entry['set']} (on the re-measuring machine, before scaling)"} for entry in entries
    ]
    content = profile_document(
        IDENTIFIER,
        "T2",
        "One Zen 4 core with AVX512-VNNI. Convolution levels are Zen 4 measurements; the shape of every cost "
        f"and all other families were measured on {host.description} and scaled. No figure for whole "
        "networks on Zen 4.",
        replace(fitted, model=model),
        [*csv_entries, *relabelled],
        wanted,
        source,
        runtime,
    )
    for predictor in content["latency"]["predictors"]:
        for leaf in predictor["terms"].values():
            leaf["basis"] = "derived"
    content["latency"]["session_us"]["basis"] = "fitted"
    return content


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="zen4_ort1311_conv_1thread_us.csv")
    parser.add_argument("--seconds", type=float, default=240, help="time for random networks")
    parser.add_argument("-o", "--output", type=Path, help="where to write the profile")
    arguments = parser.parse_args()
    rows = read_isolated(arguments.data)
    campaign = time_networks(open_runtime("onnxruntime"), Settings(arguments.seconds))
    fitted, entries = fit_campaign(IDENTIFIER, campaign, "random networks on the re-measuring machine")
    content = document(fitted, entries, rows, len(campaign.timed), campaign.runtime)
    for entry in content["validation"]:
        print(
            f"{entry['set']}: n {entry['n']}, MAPE {entry['mape']:.1%}, within 10% {entry['within10']:.0%}, "
            f"Spearman {entry['spearman']:.3f}"
        )
    if arguments.output:
        arguments.output.write_text(profile_text(content), encoding="utf-8")


if __name__ == "__main__":
    main()
