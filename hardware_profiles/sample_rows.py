"""Raw samples as rows of a CSV file: one timed network a line, appended whole, safe against a killed process."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paretopress.hardware_profiles.timing_protocol import Measurement, Runtime

FORMAT = "paretopress-samples/1"
COLUMNS = (
    "format", "runtime", "version", "threads", "host", "prior", "seed", "mode", "network", "date", "seconds", "load",
    "slowness", "calls", "wall_us", "fastest_us", "median_us", "nodes",
)
SETTING = ("format", "runtime", "version", "threads", "host")     # the same in every row of a file


@dataclass(frozen=True)
class Drawn:
    """Which network a sample is of.

    Attributes:
        prior: What it was drawn from, such as `general`.
        seed: Seed of the drawing.
        mode: `float32`, `int8` or `mixed`.
        network: First 16 hexadecimal digits of the SHA-256 of the serialised model.
    """

    prior: str
    seed: int
    mode: str
    network: str


def setting_of(runtime: Runtime, host: str) -> dict[str, str]:
    """Return what every row of a file has in common."""
    return dict(zip(SETTING, (FORMAT, runtime.name, runtime.version, str(runtime.threads), host)))  # noqa: B905


def row_of(setting: Mapping[str, str], drawn: Drawn, measured: Measurement, date: str) -> dict[str, str]:
    """Return the texts of one row; nodes are a JSON list of [name, operator, microseconds]."""
    nodes = [[node.name, node.operator, round(node.microseconds, 3)] for node in measured.nodes]
    return {
        **setting,
        "prior": drawn.prior, "seed": str(drawn.seed), "mode": drawn.mode, "network": drawn.network, "date": date,
        "seconds": f"{measured.seconds:.3f}", "load": f"{measured.load:.2f}", "slowness": f"{measured.slowness:.4f}",
        "calls": str(measured.calls), "wall_us": f"{measured.wall:.4f}", "fastest_us": f"{measured.fastest:.3f}",
        "median_us": f"{measured.median:.3f}", "nodes": json.dumps(nodes, separators=(",", ":")),
    }


def append_row(path: Path, row: Mapping[str, str]) -> None:
    """Append one row, with the heading where the file is new, in a single write.

    Raises:
        OSError: The file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if not path.exists() or path.stat().st_size == 0:
        writer.writeheader()
    writer.writerow(row)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, text.getvalue().encode("utf-8"))
    finally:
        os.close(descriptor)


def cut_torn_line(path: Path) -> bool:
    """Remove a last line that a killed process left unfinished; tell whether there was one.

    Raises:
        OSError: The file cannot be read or written.
    """
    if not path.exists():
        return False
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return False
    with path.open("r+b") as stream:
        stream.truncate(end)
    return True
