"""The front as flat rows, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paretopress.tables import cells, headings, plain_text

if TYPE_CHECKING:
    from paretopress.result import Front, Point


def front_rows(front: Front, points: Sequence[Point] | None = None) -> list[dict[str, Any]]:
    """Return one flat row per point for CSV, Markdown and data frames, in units of the objectives."""
    rows = []
    for point in front.verified if points is None else points:
        measured = point.measured
        row: dict[str, Any] = {
            "id": point.id,
            "name": point.name,
            "accuracy": measured.get("accuracy"),
            "accuracy_drop": measured.get("accuracy_drop"),
            "latency_ms": measured.get("latency_ms"),
            "speedup": measured.get("speedup"),
            "size_bytes": measured.get("size_bytes"),
            "onnx_bytes": measured.get("onnx_bytes"),
            "macs": measured.get("macs"),
            "peak_memory_bytes": measured.get("peak_memory_bytes"),
        }
        row |= {f"predicted {name}": value for name, value in sorted(point.predicted.items())}
        row |= {
            "feasible": point.feasible,
            "knee": point.knee,
            "why_not": point.why_not,
            "policy_hash": point.policy_hash,
        }
        rows.append(row)
    return rows


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV; None is an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def markdown_text(front: Front, points: Sequence[Point]) -> str:
    """Return the front as a Markdown table."""
    names = headings(front)
    lines = [[plain_text(name) for name in names], ["---:"] * (len(names) - 1) + [":---"]]
    lines += [[plain_text(cell).replace("|", "\\|") for cell in cells(front, point)] for point in points]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
