"""Measured times that a profile is checked against: a CSV of whole networks or of single kernels.

A table of networks has the columns `network` and one of `measured_ms`, `measured_us`, `measured_s`; `network` is an
ONNX file beside the table, `nasbench201:|...|`, or a name of `reference_networks` (then `arithmetic` says float32,
the default, or int8). A table of kernels has `op` (a family such as conv), `cin`, `cout` and the time; `kernel`,
`stride`, `input_size` (`3` or `10x4`), `groups`, `rows`, `weight_bits` and `activation_bits` where they differ from
1, 1, none, 1, 1, 32 and 32. Both may say `runtime`, `runtime_version`, `threads` and `batch` of the measurement.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from paretopress.hardware_profiles.nasbench201 import cost_view as nasbench201_view
from paretopress.hardware_profiles.onnx_view import onnx_view
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.hardware_profiles.reference_networks import known_network
from paretopress.spaces.errors import ProfileError, unknown_name
from paretopress.spaces.kernels import CostView, Family, Kernel, product

TIMES = {"measured_us": 1e-3, "measured_ms": 1.0, "measured_s": 1e3}   # into milliseconds
SETTINGS = ("runtime", "runtime_version", "threads", "batch")
NETWORK_COLUMNS = ("network", "arithmetic", *SETTINGS)
KERNEL_COLUMNS = (
    "op", "cin", "cout", "kernel", "stride", "input_size", "groups", "rows", "weight_bits", "activation_bits",
    *SETTINGS,
)
NASBENCH201 = "nasbench201:"
ARITHMETICS = {"float32": 32, "int8": 8}
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
LARGEST_TABLE = 64 * 2**20
_SIZE = re.compile(r"\d+(x\d+)*")


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement.

    Attributes:
        line: Its line in the table.
        name: What was measured, for messages.
        view: What a device prices.
        milliseconds: Measured time.
        is_kernel: Whether a kernel was measured alone, without the overhead of a call.
    """

    line: int
    name: str
    view: CostView
    milliseconds: float
    is_kernel: bool


def read_measured(path: Path, profile: DeviceProfile) -> list[Row]:
    """Read a table and the networks it names.

    Raises:
        ProfileError: One line with the file and line: a missing or unknown column, a time that is not a positive
            number, a repeated row, an unknown network, operator or width, or another runtime, version, number of
            threads or batch than the profile's.
    """
    try:
        if path.stat().st_size > LARGEST_TABLE:
            raise ProfileError(f"{path}: more than {LARGEST_TABLE} bytes is no table of measurements")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ProfileError(f"{path}: not a text file in UTF-8") from None
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        time_column = _check_columns(path, list(reader.fieldnames or ()))
        rows = [row for line, cells in _lines(reader) for row in _row(path, line, cells, time_column, profile)]
    except csv.Error as error:
        raise ProfileError(f"{path}:{reader.line_num}: not a CSV table: {error}") from None
    if not rows:
        raise ProfileError(f"{path}: no rows")
    _check_repeats(path, rows)
    return rows


def _lines(reader: csv.DictReader[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    for cells in reader:
        yield reader.line_num, {key: (value or "").strip() for key, value in cells.items() if key is not None}


def _check_columns(path: Path, columns: list[str]) -> str:
    if not columns:
        raise ProfileError(f"{path}: empty; expected a header such as network,measured_ms")
    repeated = next((name for name in columns if columns.count(name) > 1), None)
    if repeated is not None:
        raise ProfileError(f"{path}:1: column {repeated!r} stands there twice")
    times = [name for name in columns if name in TIMES]
    if len(times) != 1:
        found = " and ".join(times) if times else "none"
        raise ProfileError(f"{path}:1: expected one column of times ({', '.join(TIMES)}), got {found}")
    kinds = [name for name in ("network", "op") if name in columns]
    if len(kinds) != 1:
        raise ProfileError(f"{path}:1: expected a column 'network' (whole networks) or 'op' (single kernels)")
    allowed = [*(NETWORK_COLUMNS if kinds[0] == "network" else KERNEL_COLUMNS), *TIMES]
    unknown = next((name for name in columns if name not in allowed), None)
    if unknown is not None:
        raise ProfileError(f"{path}:1: {unknown_name('column', unknown, allowed)}")
    missing = next((name for name in ("cin", "cout") if kinds[0] == "op" and name not in columns), None)
    if missing is not None:
        raise ProfileError(f"{path}:1: the column {missing!r} is missing")
    return times[0]


def _row(
    path: Path, line: int, cells: Mapping[str, str], time_column: str, profile: DeviceProfile
) -> Iterator[Row]:
    where = f"{path}:{line}"
    try:
        value = float(cells[time_column])
    except ValueError:
        raise ProfileError(f"{where}: {time_column} {cells[time_column]!r} is not a number") from None
    if not math.isfinite(value):
        raise ProfileError(f"{where}: {time_column} is {value}; leave out rows that were not measured")
    if value <= 0.0:
        raise ProfileError(f"{where}: {time_column} is {value:g}; a time is above 0")
    _check_settings(where, cells, profile)
    name, view = _network(where, path.parent, cells) if "network" in cells else _single(where, cells)
    yield Row(line, name, view, value * TIMES[time_column], "op" in cells)


def _check_settings(where: str, cells: Mapping[str, str], profile: DeviceProfile) -> None:
    """A figure of another runtime says nothing about this profile."""
    stated = {
        "runtime": profile.runtime, "runtime_version": profile.runtime_version, "threads": str(profile.threads),
        "batch": str(profile.batch),
    }
    for key, expected in stated.items():
        if cells.get(key) and cells[key] != expected:
            raise ProfileError(
                f"{where}: measured with {key.replace('_', ' ')} {cells[key]}, {profile.id} is for {expected}"
            )


def _network(where: str, folder: Path, cells: Mapping[str, str]) -> tuple[str, CostView]:
    name, arithmetic = cells["network"], cells.get("arithmetic", "")
    if not name:
        raise ProfileError(f"{where}: the network is missing")
    if arithmetic and arithmetic not in ARITHMETICS:
        raise ProfileError(f"{where}: {unknown_name('arithmetic', arithmetic, ARITHMETICS)}")
    try:
        if name.endswith(".onnx"):
            if arithmetic:
                raise ProfileError("an ONNX file says itself what it computes in; leave 'arithmetic' empty")
            return name, onnx_view(folder / name)
        if name.startswith(NASBENCH201):
            if arithmetic == "int8":
                raise ProfileError("NAS-Bench-201 networks are known in float32 only")
            return name, nasbench201_view(name.removeprefix(NASBENCH201))
        shown = f"{name} ({arithmetic})" if arithmetic else name
        return shown, known_network(name, ARITHMETICS[arithmetic or "float32"])
    except ProfileError as error:
        raise ProfileError(f"{where}: {error}") from None


def _single(where: str, cells: Mapping[str, str]) -> tuple[str, CostView]:
    families = [family.value for family in Family]
    if cells["op"] not in families:
        raise ProfileError(f"{where}: {unknown_name('op', cells['op'], families)}")
    family = Family(cells["op"])
    counts = {
        key: _count(where, key, cells.get(key, "") or default)
        for key, default in (("cin", ""), ("cout", ""), ("groups", "1"), ("rows", "1"))
    }
    widths = {key: _width(where, key, cells.get(key, "") or "32") for key in ("weight_bits", "activation_bits")}
    size = _sizes(where, "input_size", cells.get("input_size", ""))
    if family in (Family.LINEAR, Family.MATMUL):
        size = ()
    rank = len(size)
    window = _sizes(where, "kernel", cells.get("kernel", "") or "1", rank) if rank else ()
    stride = _sizes(where, "stride", cells.get("stride", "") or "1", rank) if rank else ()
    if family is Family.CONV and counts["groups"] > 1:
        family = Family.DEPTHWISE if counts["groups"] == counts["cin"] else Family.GROUPED
    if family is Family.DEPTHWISE:
        counts["groups"] = counts["cin"]
    if counts["cin"] % counts["groups"]:
        raise ProfileError(f"{where}: {counts['cin']} input channels do not divide into {counts['groups']} groups")
    after = () if family is Family.GLOBAL_POOL else tuple(-(-s // t) for s, t in zip(size, stride, strict=True))
    weighted = family in (Family.CONV, Family.GROUPED, Family.DEPTHWISE, Family.TRANSPOSED, Family.LINEAR)
    name = " ".join(cells[key] for key in KERNEL_COLUMNS if cells.get(key) and key not in SETTINGS)
    kernel = Kernel(
        name, family, "kernel" if weighted else "", widths["weight_bits"] if weighted else 32,
        widths["activation_bits"], counts["cin"], counts["cout"], window, stride, counts["groups"], size, after,
        counts["rows"], (), counts["rows"] * counts["cin"] * product(size) * (2 if family is Family.ADD else 1),
        counts["rows"] * counts["cout"] * product(after),
    )
    return name, CostView((kernel,), (), (), kernel.weight_elements * kernel.weight_bits // 8)


def _count(where: str, key: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ProfileError(f"{where}: {key} {text!r} is not a count of at least 1")
    return int(text)


def _width(where: str, key: str, text: str) -> int:
    if not text.isdecimal() or int(text) not in WIDTHS:
        raise ProfileError(f"{where}: unknown width {key} {text!r} (allowed: {', '.join(map(str, WIDTHS))})")
    return int(text)


def _sizes(where: str, key: str, text: str, rank: int = 0) -> tuple[int, ...]:
    """`3` or `10x4`; one number stands for two dimensions, or for as many as `rank`."""
    if not text:
        return ()
    if not _SIZE.fullmatch(text) or "0" in text.split("x"):
        raise ProfileError(f"{where}: {key} {text!r} is not a size such as 3 or 10x4")
    sizes = tuple(int(part) for part in text.split("x"))
    if len(sizes) == 1:
        sizes *= rank or 2
    if rank and len(sizes) != rank:
        raise ProfileError(f"{where}: {key} {text!r} has {len(sizes)} dimensions, input_size has {rank}")
    return sizes


def _check_repeats(path: Path, rows: list[Row]) -> None:
    first: dict[str, int] = {}
    for row in rows:
        if row.name in first:
            raise ProfileError(
                f"{path}:{row.line}: {row.name!r} stands in line {first[row.name]} already; keep one of them"
            )
        first[row.name] = row.line
