"""Builds the `x86-zen4-vnni-onnxruntime` profile from published and re-measured figures.

Usage:
    python benchmarks/fit_zen4.py zen4_ort1311_conv_1thread_us.csv --seconds 240 -o PROFILE.yaml

The CSV has isolated 1x1 and 3x3 convolutions on one Zen 4 core. Everything else is measured on the machine
that runs this script (random networks, as for `local`) and scaled to Zen 4 by the ratio of the same
convolutions on both machines, one factor per executed type. The factors are fitted on half of the CSV and
checked on the other half.
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
from paretopress.hardware_profiles.measure import fit_campaign, onnxruntime_document, time_networks
from paretopress.hardware_profiles.predictor import LatencyModel
from paretopress.hardware_profiles.timing import (
    Reference,
    call_times_us,
    open_session,
    paced_calls_us,
    quiet_mean,
)
from paretopress.hardware_profiles.writing import number, profile_text, validation_entry
from paretopress.spaces.kernels import CostView

IDENTIFIER = "x86-zen4-vnni-onnxruntime"
ZEN4_SESSION_US = 7.3
TYPES = ("float32", "int8")
CSV_SOURCE = (
    "zen4_ort1311_conv_1thread_us.csv: 420 isolated convolutions, ONNX Runtime 1.31.1, one Zen 4 thread"
)


@dataclass(frozen=True, slots=True)
class Isolated:
    """One convolution alone in a session: its view, Zen 4 microseconds, microseconds here."""

    view: CostView
    zen4_us: float
    here_us: float


def measure_isolated(path: Path) -> dict[str, list[Isolated]]:
    """Measure every convolution of the CSV on this machine, float32 and int8."""
    reference, result = Reference(), {name: [] for name in TYPES}
    with path.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        cin, cout, window, stride, size = (int(row[name]) for name in ("cin", "cout", "k", "stride", "hw_in"))
        for executed, published in zip(TYPES, (row["f32_us"], row["int8_us"]), strict=True):
            builder = ModelBuilder(0)
            value = builder.start(cin, (size, size))
            model, view = builder.build(
                builder.conv(value, cout, (window, window), stride, int8=executed == "int8")
            )
            session = open_session(model)
            feed = {"input": np.zeros((1, cin, size, size), np.float32)}
            first = float(call_times_us(session, feed, 3).min())
            repeats = int(np.clip(6000 / first, 12, 80))
            here = quiet_mean(
                *paced_calls_us(session, feed, repeats, int(np.clip(150 / first, 1, 12)), reference)
            )
            result[executed].append(Isolated(view, float(published), here))
    return result


def scale(rows: list[Isolated], here_session_us: float) -> float:
    """Zen 4 time / time here, without the overhead of a call, as the median over rows that are not tiny."""
    ratios = [
        (row.zen4_us - ZEN4_SESSION_US) / (row.here_us - here_session_us)
        for row in rows
        if row.here_us > 3 * here_session_us and row.zen4_us > 2 * ZEN4_SESSION_US
    ]
    return float(np.median(ratios))


def to_zen4(fitted: Fitted, factors: dict[str, float]) -> LatencyModel:
    """Scale a model of this machine."""
    model = fitted.model
    return replace(
        model,
        device=IDENTIFIER,
        session_us=ZEN4_SESSION_US,
        calibration={name: model.calibration.get(name, 1.0) * factors[name] for name in TYPES},
        boundaries={
            kind: (names, values * factors["int8"]) for kind, (names, values) in model.boundaries.items()
        },
    )


def check(model: LatencyModel, rows: list[Isolated], executed: str) -> Accuracy:
    """Predict whole sessions of one convolution: call overhead, kernel, and conversions where int8.

    A lone float32 convolution also changes to and from the blocked layout, once per network: that is in the
    measurement and not in the kernel.
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
    fitted: Fitted, entries: list[dict[str, Any]], rows: dict[str, list[Isolated]], networks: int
) -> dict[str, Any]:
    """Return the profile document."""
    host = host_info()
    here = f"random networks measured on {host.description} with ONNX Runtime, {time.strftime('%Y-%m-%d')}"
    factors = {name: scale(rows[name][::2], fitted.model.session_us) for name in TYPES}
    model = to_zen4(fitted, factors)
    checks = {name: check(model, rows[name][1::2], name) for name in TYPES}
    source = (
        f"{here} ({networks} networks), scaled to Zen 4 by {factors['float32']:.2f} (float32) and "
        f"{factors['int8']:.2f} (int8): median ratio of the same convolutions, {CSV_SOURCE}"
    )
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
    content = onnxruntime_document(
        IDENTIFIER,
        "T2",
        "One Zen 4 core with AVX512-VNNI. Convolution levels are Zen 4 measurements; the shape of every cost "
        f"and all other families were measured on {host.description} and scaled. No figure for whole "
        "networks on Zen 4.",
        replace(fitted, model=model),
        [*csv_entries, *relabelled],
        wanted,
        source,
    )
    content["latency"]["session_us"] = number(
        ZEN4_SESSION_US, "published", "empty-session overhead on Zen 4, ONNX Runtime 1.31.1"
    )
    for name in TYPES:
        content["latency"]["calibration"][name]["basis"] = "derived"
    return content


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="zen4_ort1311_conv_1thread_us.csv")
    parser.add_argument("--seconds", type=float, default=240, help="time for random networks")
    parser.add_argument("-o", "--output", type=Path, help="where to write the profile")
    arguments = parser.parse_args()
    rows = measure_isolated(arguments.data)
    campaign = time_networks(arguments.seconds)
    fitted, entries = fit_campaign(IDENTIFIER, campaign, "random networks on the re-measuring machine")
    content = document(fitted, entries, rows, len(campaign.timed))
    for entry in content["validation"]:
        print(
            f"{entry['set']}: n {entry['n']}, MAPE {entry['mape']:.1%}, within 10% {entry['within10']:.0%}, "
            f"Spearman {entry['spearman']:.3f}"
        )
    if arguments.output:
        arguments.output.write_text(profile_text(content), encoding="utf-8")


if __name__ == "__main__":
    main()
