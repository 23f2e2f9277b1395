"""The model card of a verified point of a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretopress.compressors.model_card import Card
from paretopress.evaluators.budgets import shown

if TYPE_CHECKING:
    from paretopress.result import Front, Point


def point_card(front: Front, point: Point, run: Path) -> str:
    """Return the card of a point: measured values beside the dense model's, device, versions and commands.

    Args:
        front: Its run's front.
        point: The point.
        run: The run directory.
    """
    name = run.name.rpartition("-")[0] or run.name
    budgets = ", ".join(f"{one['objective']} {one['limit']}" for one in front.plain.get("budgets") or ()) or "none"
    place = "on the front" if point.on_front else f"not on the front: {point.why_not}"
    summary = (f"Point {point.id} of a search for compressed models, {place}. Accuracy was measured on data that the "
               f"search never saw; bytes are those of the stored tensors.")
    values = point.measured
    return Card(
        name, point.policy, summary, _values(front, point), _facts(front, point, run, budgets),
        [
            f"paretopress front {shlex.quote(str(run))}",
            f"paretopress export {shlex.quote(str(run))} --pick id:{point.id} --format onnx -o model.onnx",
            "paretopress verify FOLDER --model PKG.MOD:FUNCTION --data PKG.MOD:FUNCTION",
        ],
        {front.metric.label: values["accuracy"]} if values.get("accuracy") is not None else {},
        {str(key): str(value) for key, value in (front.plain.get("versions") or {}).items()},
    ).text()


def _values(front: Front, point: Point) -> list[tuple[str, str, str, str]]:
    measured, dense = point.measured, front.baseline.measured
    rows = []
    value, before = measured.get("accuracy"), measured.get("accuracy_baseline")
    if value is not None and before is not None:
        interval = measured.get("accuracy_drop_interval")
        spread = "" if not interval else f" (95%: {interval[0]:+.4g} to {interval[1]:+.4g})"
        change = front.metric.change(value, before) + spread
        rows.append((f"{front.metric.label} (holdout)", front.metric.shown(before), front.metric.shown(value), change))
    time, dense_time = measured.get("latency_ms"), measured.get("latency_ms_baseline")
    if time and dense_time:
        rows.append(("time of one inference", shown("latency", dense_time), shown("latency", time),
                     f"{dense_time / time:.2f} x faster"))
    for key, objective, title in (("size_bytes", "size", "stored tensors"), ("onnx_bytes", "size", "ONNX file"),
                                  ("macs", "macs", "multiply-accumulates")):
        now, then = measured.get(key), dense.get(key)
        if now and then:
            rows.append((title, shown(objective, then), shown(objective, now), f"{then / now:.2f} x fewer"))
    return rows


def _facts(front: Front, point: Point, run: Path, budgets: str) -> list[tuple[str, str]]:
    measured, plain = point.measured, front.plain
    target = plain.get("target")
    facts: list[tuple[str, Any]] = [
        ("targets", ", ".join(target) if isinstance(target, list) else target),
        ("timed on", measured.get("host") if measured.get("latency_ms") else None),
        ("predicted", ", ".join(f"{name} {shown(name, value)}" for name, value in sorted(point.predicted.items())
                                if name.partition("@")[0] in ("latency", "energy") and value is not None)),
        ("budgets", budgets), ("seed", plain.get("seed")), ("run", run.name), ("policy", point.policy_hash),
        ("versions", ", ".join(f"{name} {version}" for name, version in (plain.get("versions") or {}).items())),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]
