"""The files of a finished run: finalists.csv, measured.csv, front.csv and the JSON contract front.json."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretopress.evaluators.runtime_versions import device_notes
from paretopress.evaluators.timing import host_description
from paretopress.evaluators.verification import Verified
from paretopress.search.judgement import Judged, Verdict
from paretopress.search.ledger import package_versions
from paretopress.search.problem import Problem
from paretopress.search.records import TrialRecord
from paretopress.spaces.choices import choice_to_plain
from paretopress.spaces.documents import finite, write_json, write_text

_TIMED = (
    "latency_ms", "latency_ms_iqr", "latency_ms_baseline", "latency_ms_baseline_iqr", "slowdown", "speedup", "runs",
)


def write_front(
    path: Path, problem: Problem, verdict: Verdict, lowest: Mapping[str, float], records: Sequence[TrialRecord],
    proxies: Sequence[Mapping[str, Any]] = (), images: Mapping[str, int] | None = None,
) -> None:
    """Write what a run found. Every file is replaced as a whole.

    Args:
        path: The run directory.
        problem: The run's problem.
        verdict: The judged points.
        lowest: Best reachable predicted costs.
        records: The run's trials.
        proxies: Reports on the proxies.
        images: Samples that were forwarded before the first trial, by what for.

    Raises:
        DiskError: A file cannot be written.
    """
    finalists = [_finalist_row(point) for point in verdict.points]
    write_text(path / "finalists.csv", _csv(finalists))
    write_text(path / "measured.csv", _csv([_measured_row(point) for point in verdict.points]))
    write_text(path / "front.csv", _csv([_front_row(point) for point in verdict.points if point.why_not is None]))
    write_json(path / "front.json", contract(path, problem, verdict, lowest, records, proxies, images))


def contract(
    path: Path, problem: Problem, verdict: Verdict, lowest: Mapping[str, float], records: Sequence[TrialRecord],
    proxies: Sequence[Mapping[str, Any]] = (), images: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the JSON that `demo`, `search` and `front` print."""
    host = host_description()
    device = next((device.id for device in problem.costs.devices if device.runs_here()), None)
    where = {"host": f"{host['cpu']}, {host['runtime']}, {host['threads']} thread", "device": device}
    points = [_point(point, where) for point in verdict.points]
    named = [point for point in points if point["name"] not in (None, "dense")]
    metric = problem.data.metrics[0]
    states: dict[str, int] = {}
    for record in records:
        states[record.state.value] = states.get(record.state.value, 0) + 1
    return {
        "run": str(path),
        "baseline": points[0],
        "points": points,
        "comparisons": named,
        "metric": {"name": metric.label or metric.name, "direction": metric.direction},
        "seed": problem.settings.seed,
        "target": [device.id for device in problem.costs.devices],
        "tiers": {device.id: device.tier for device in problem.costs.devices},
        "host": host,
        "versions": package_versions(),
        "budgets": [{"objective": b.objective, "limit": b.text} for b in problem.settings.budgets],
        "reachable": {name: finite(value) for name, value in lowest.items()},
        "trials": {"total": len(records), **states},
        "images": {**(images or {}), "trials": sum(record.images for record in records)},
        "latency_error": dict(verdict.latency_error),
        "proxies": {**verdict.proxy, "measured": [dict(report) for report in proxies]},
        "hypervolume": finite(verdict.hypervolume),
        "space_log10": problem.space.log10_size,
        "size_only": dict(problem.size_only),
        "dropped": [{"unit": unit, "choice": choice, "reason": why} for unit, choice, why in problem.space.dropped],
        "notes": [*problem.program.graph.notes, *device_notes(problem.costs.devices)],
    }


def _point(point: Judged, where: Mapping[str, str | None]) -> dict[str, Any]:
    """A point of the contract; `where` names the machine, and the target that it can run, of measured times."""
    finalist = point.candidate.finalist
    predicted: dict[str, float | None] = {name: finite(value) for name, value in point.candidate.predicted.items()}
    for name, (low, high) in point.candidate.interval.items():
        base, _, device = name.partition("@")
        predicted[f"{base}_lower@{device}"], predicted[f"{base}_upper@{device}"] = finite(low), finite(high)
    return {
        "id": finalist.number,
        "name": finalist.name,
        "policy_hash": finalist.policy.hash,
        "policy": {unit: choice_to_plain(choice) for unit, choice in finalist.policy},
        "tier": finalist.tier,
        "feasible": point.feasible,
        "knee": point.knee,
        "predicted": predicted,
        "measured": {
            **point.measured, "accuracy_search": finalist.refitted, "accuracy_stitched": finalist.stitched,
            **(where if point.measured.get("latency_ms") else dict.fromkeys(where)),
        } if point.measured else {},
        "why_not": point.why_not,
    }


def _finalist_row(point: Judged) -> dict[str, Any]:
    """What does not depend on the clock."""
    finalist, verified = point.candidate.finalist, point.candidate.verified
    row: dict[str, Any] = {
        "id": finalist.number, "name": finalist.name or "", "policy": finalist.policy.hash, "tier": finalist.tier,
        "accuracy_stitched": finalist.stitched, "accuracy_search": finalist.refitted,
    }
    if isinstance(verified, Verified):
        row |= {"accuracy": verified.scores["accuracy"], "size_bytes": verified.size_bytes,
                "onnx_bytes": verified.onnx_bytes}
    return {**row, **{f"predicted_{name}": finite(value) for name, value in point.candidate.predicted.items()}}


def _measured_row(point: Judged) -> dict[str, Any]:
    row: dict[str, Any] = {"id": point.candidate.finalist.number}
    for name in _TIMED:
        value = point.measured.get(name)
        if name.endswith("_iqr"):
            row[f"{name}_low"], row[f"{name}_high"] = value or (None, None)
        else:
            row[name] = value
    return row


def _front_row(point: Judged) -> dict[str, Any]:
    finalist = point.candidate.finalist
    return {
        "id": finalist.number, "name": finalist.name or "", "policy": finalist.policy.hash, "knee": point.knee,
        "feasible": point.feasible, "accuracy": point.measured.get("accuracy"),
        "accuracy_drop": point.measured.get("accuracy_drop"), "latency_ms": point.measured.get("latency_ms"),
        "speedup": point.measured.get("speedup"), "size_bytes": point.measured.get("size_bytes"),
        "macs": point.measured.get("macs"),
    }


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
