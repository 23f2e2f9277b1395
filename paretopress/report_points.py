"""Verified points and budgets as a report draws them: what was measured, what was predicted, and how sure both are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paretopress.evaluators.budgets import parse_budget
from paretopress.evaluators.primary_metric import ACCURACY, PrimaryMetric
from paretopress.spaces.documents import finite
from paretopress.spaces.errors import ConfigError

if TYPE_CHECKING:
    from paretopress.result import Front, Point

DIGITS = 6
Figure = list[float | None]
"""Value, lower and upper end; the ends are None where nothing is known about them."""

_FILES = {"onnx_bytes": "onnx_bytes", "disk_bytes": "disk_bytes"}   # measured only, and never searched for
_KNOWN = {
    "accuracy", "accuracy_baseline", "accuracy_drop", "accuracy_search", "accuracy_stitched", "latency_ms",
    "latency_ms_baseline", "slowdown", "speedup", "size_bytes", "size_bytes_baseline", "runs", "macs", "robust",
    "peak_memory_bytes", "seconds",
}


def point_document(point: Point, front: Front) -> dict[str, Any]:
    """Return a verified point as plain data: `measured` and `predicted` by axis, and its row of the table.

    `beside` is what the dense model took in turn with it: what its time is a ratio of, there as in the table.
    """
    from paretopress.tables import cells, plain_text

    return {
        "id": point.id, "name": point.name, "hash": point.policy_hash,
        "dense": point.policy_hash == front.baseline.policy_hash,
        "feasible": point.feasible, "knee": point.knee, "why_not": point.why_not,
        "measured": _measured(point, front), "predicted": _predicted(point),
        "beside": _beside(point),
        "cells": [plain_text(cell) for cell in cells(front, point)],
    }


def _measured(point: Point, front: Front) -> dict[str, Figure]:
    measured = point.measured
    found: dict[str, Figure] = {}
    if _is_number(measured.get(ACCURACY)):
        found[ACCURACY] = _accuracy(point, front)
    if _is_number(measured.get("latency_ms")):
        low, high = measured.get("latency_ms_iqr") or (None, None)
        found |= {name: _figure(measured["latency_ms"], low, high) for name in _timed_axes(point)}
    for name, key in {"size": "size_bytes", "robust": "robust", **_FILES}.items():
        if _is_number(measured.get(key)):
            found[name] = _figure(measured[key])
    for name, value in measured.items():   # the user's other metrics
        if name not in _KNOWN and name not in _FILES and _is_number(value):
            found[name] = _figure(value)
    return found


def _beside(point: Point) -> dict[str, float]:
    dense = point.measured.get("latency_ms_baseline")
    return dict.fromkeys(_timed_axes(point), float(dense)) if dense is not None and _is_number(dense) else {}


def _timed_axes(point: Point) -> list[str]:
    """Latencies on the device that measured times are of."""
    parts = {name: name.partition("@") for name in point.predicted}
    own = point.measured.get("device")
    return [name for name, (base, _, device) in parts.items() if base == "latency" and own in (None, device)]


def _accuracy(point: Point, front: Front) -> Figure:
    """The metric on holdout; its interval is that of the difference from the dense model."""
    measured, metric = point.measured, front.metric
    interval, dense = measured.get("accuracy_drop_interval"), front.baseline.value(ACCURACY)
    if not interval or dense is None:
        return _figure(measured[ACCURACY])
    sign = -1.0 if metric.direction == "max" else 1.0
    ends = sorted(dense + sign * drop for drop in interval)
    if metric.is_share:   # an interval of differences, which may end where no share can
        ends = [min(max(end, 0.0), 1.0) for end in ends]
    return _figure(measured[ACCURACY], *ends)


def _predicted(point: Point) -> dict[str, Figure]:
    """Predicted costs with their intervals, and the metric on the search set."""
    plain, found = point.predicted, {}
    for name, value in plain.items():
        base, at, device = name.partition("@")
        if base.endswith(("_lower", "_upper")):
            continue
        found[name] = _figure(value, *(plain.get(f"{base}_{end}{at}{device}") for end in ("lower", "upper")))
    searched = point.measured.get("accuracy_search")
    if _is_number(searched):
        found[ACCURACY] = _figure(searched)
    return {name: figure for name, figure in found.items() if figure[0] is not None}


def budget_lines(
    budgets: Sequence[Mapping[str, Any]], axes: Mapping[str, str], metric: PrimaryMetric,
    dense: Mapping[str, float | None],
) -> list[dict[str, Any]]:
    """Return budgets as limits on axes: `axis`, `limit`, `text` and `upper`, whether values must stay below it.

    Args:
        budgets: `objective` and `limit`, the user's text.
        axes: Names that can stand on an axis.
        metric: The first metric.
        dense: The dense model's value on every axis, which relative limits are of.
    """
    lines = []
    for budget in budgets:
        objective, text = str(budget.get("objective")), str(budget.get("limit"))
        try:
            parsed = parse_budget(text, objective, metric.direction)
        except ConfigError:
            continue   # the run itself was made with it: a later version may write what this one does not know
        for axis in (name for name in axes if _is_about(objective, name)):
            base = dense.get(axis)
            if base is None and parsed.kind != "absolute":
                continue
            limit = parsed.resolve(base if base is not None else 0.0)
            upper = parsed.on_cost or metric.direction == "min"
            lines.append({"axis": axis, "limit": limit, "text": f"{objective} {text}", "upper": upper})
    return lines


def _is_about(objective: str, axis: str) -> bool:
    """Whether an objective of a budget stands for an axis: `latency` is the time on every target."""
    if objective == axis:
        return True
    base = axis.partition("@")[0]
    return "@" in axis and (objective == base or (objective == "latency" and base == "relative"))


def _figure(value: float | None, low: float | None = None, high: float | None = None) -> Figure:
    return [_rounded(value), _rounded(low), _rounded(high)]


def _rounded(value: float | None) -> float | None:
    number = finite(value)
    return None if number is None else float(f"{number:.{DIGITS}g}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
