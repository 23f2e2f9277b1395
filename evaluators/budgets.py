"""Budgets in user units: `<=5ms`, `-50%`, `<=1MB`, `1pp`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from paretopress.spaces.errors import ConfigError, nearest

Kind = Literal["absolute", "relative", "drop"]

# Factors into the unit that objectives carry: milliseconds, bytes, multiply-accumulates, microjoules
# (the unit of MLPerf Tiny; milliwatts times milliseconds).
_TIME = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_BYTES = {
    "B": 1.0, "KB": 1e3, "kB": 1e3, "kb": 1e3, "MB": 1e6, "mb": 1e6, "GB": 1e9, "gb": 1e9,
    "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
}
_COUNT = {"": 1.0, "K": 1e3, "k": 1e3, "M": 1e6, "G": 1e9}
_ENERGY = {"nJ": 1e-3, "uJ": 1.0, "µJ": 1.0, "mJ": 1e3, "J": 1e6}
_SHARE = {"": 1.0}   # of the dense model's time, on the worst target
UNITS: Mapping[str, Mapping[str, float]] = {
    "latency": _TIME, "size": _BYTES, "peak_memory": _BYTES, "macs": _COUNT, "energy": _ENERGY,
    "robust": _SHARE,
}
_EXAMPLES = {
    "latency": "'<=5ms', '800us' or '-50%'", "size": "'<=1MB', '200KiB' or '-50%'",
    "peak_memory": "'<=256KiB' or '-50%'", "macs": "'<=10M' or '-50%'",
    "energy": "'<=3mJ', '500uJ' or '-50%'",
    "robust": "'-40%' or '<=0.6'",
}
_TEXT = re.compile(r"(?P<sign><=|≤|-)?\s*(?P<number>\d+(\.\d*)?([eE][-+]?\d+)?|\.\d+)\s*(?P<unit>[^\s\d]*)")
_TOLERANCE = 1e-9  # relative: 0.98 - 0.01 is not the double nearest to 0.97


@dataclass(frozen=True)
class Budget:
    """An upper limit on a cost, or the largest allowed loss of a metric.

    Attributes:
        objective: `latency`, `latency@DEVICE`, `size`, ... or a metric's name such as `accuracy`.
        kind: `absolute`: the cost's limit in its own unit. `relative`: for a cost the fraction of the
            baseline that may remain (0.5 for `-50%`), for a metric the fraction of the baseline that may be
            lost (0.02 for `2%`). `drop`: what a 0-1 metric may lose (0.01 for `1pp`).
        limit: The number that `kind` explains.
        text: What the user wrote.
        direction: Of the metric; costs are always `min`.
    """

    objective: str
    kind: Kind
    limit: float
    text: str
    direction: Literal["max", "min"] = "min"

    def __str__(self) -> str:
        return f"budget {self.objective} {self.text!r}"

    @property
    def on_cost(self) -> bool:
        """Whether the objective is a cost rather than a metric."""
        return _base(self.objective) in UNITS

    def resolve(self, baseline: float) -> float:
        """Return the absolute limit: the largest cost, or the worst value of the metric, that is allowed.

        Args:
            baseline: The dense model's value in the objective's unit; not read where `kind` is `absolute`.

        Raises:
            ConfigError: A drop in percentage points of a metric that is not 0 to 1, or no finite baseline.
        """
        if self.kind == "absolute":
            return self.limit
        if not math.isfinite(baseline):
            raise ConfigError(f"{self} needs a finite baseline, got {baseline}")
        if self.on_cost:
            return baseline * self.limit
        if self.kind == "drop" and not 0.0 <= baseline <= 1.0:
            raise ConfigError(
                f"{self}: percentage points need a metric from 0 to 1, the baseline is {baseline:.6g} "
                "(allowed: a relative drop such as '2%')"
            )
        loss = self.limit if self.kind == "drop" else self.limit * abs(baseline)
        return baseline - loss if self.direction == "max" else baseline + loss

    def violation(self, value: float, baseline: float) -> float:
        """Return by how much `value` breaks the budget in the objective's unit; at most 0 where it is met.

        Raises:
            ConfigError: `value` is not finite, or see `resolve`.
        """
        if not math.isfinite(value):
            raise ConfigError(f"{self} cannot judge the value {value}")
        limit = self.resolve(baseline)
        excess = limit - value if self.direction == "max" else value - limit
        scale = max(abs(limit), abs(value), abs(baseline) if math.isfinite(baseline) else 0.0)
        return 0.0 if 0.0 < excess <= _TOLERANCE * scale else excess


def _base(objective: str) -> str:
    return objective.partition("@")[0]


def parse_budget(text: str, objective: str, direction: Literal["max", "min"] = "max") -> Budget:
    """Read one budget.

    Args:
        text: For costs an upper limit with a unit (`<=5ms`, `800us`, `<=1MB` = 10^6 bytes, `200KiB`, `10M`,
            `3mJ`) or `-50%` (of the baseline). For metrics the allowed loss: `1pp` (0.01 of a 0-1 metric) or
            `2%` (of the baseline).
        objective: What it limits; anything that is not a cost is a metric.
        direction: The metric's direction; ignored for costs.

    Raises:
        ConfigError: One line: what was got, what this objective allows, the nearest unit.
    """
    match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise _refused(text, objective)
    sign, number, unit = match["sign"] or "", float(match["number"]), match["unit"]
    if not math.isfinite(number):
        raise _refused(text, objective, "the number is too large")
    if _base(objective) in UNITS:
        return _cost_budget(text, objective, sign, number, unit)
    return _metric_budget(text, objective, direction, sign, number, unit)


def _cost_budget(text: str, objective: str, sign: str, number: float, unit: str) -> Budget:
    if unit == "%":
        if sign != "-":
            raise _refused(text, objective, f"write '-{number:g}%' for {number:g}% less than the baseline")
        if not 0.0 < number < 100.0:
            raise _refused(text, objective, "a reduction lies between 0% and 100%")
        return Budget(objective, "relative", 1.0 - number / 100.0, text)
    units = UNITS[_base(objective)]
    if unit not in units:
        same = [name for name in units if name.lower() == unit.lower()]
        close = same or nearest(unit, [name for name in units if name])
        hint = f"; did you mean {close[0]!r}?" if close else ""
        reason = f"unknown unit {unit!r}{hint}" if unit else "the unit is missing"
        raise _refused(text, objective, reason)
    if sign == "-":
        raise _refused(text, objective, "only percentages are relative")
    if number <= 0.0:
        raise _refused(text, objective, "the limit must be above 0")
    return Budget(objective, "absolute", number * units[unit], text)


def _metric_budget(
    text: str, objective: str, direction: Literal["max", "min"], sign: str, number: float, unit: str
) -> Budget:
    if sign == "-":
        raise _refused(text, objective, "write the loss without a sign")
    if unit not in ("pp", "%"):
        raise _refused(text, objective, f"unknown unit {unit!r}" if unit else "the unit is missing")
    if number > 100.0:
        raise _refused(text, objective, "more than 100 cannot be lost")
    if unit == "%":
        return Budget(objective, "relative", number / 100.0, text, direction)
    if direction == "min":
        raise _refused(text, objective, "percentage points belong to metrics that are maximised")
    return Budget(objective, "drop", number / 100.0, text, direction)


def _cost_unit(text: object) -> bool:
    match = _TEXT.fullmatch(str(text).strip())
    return match is not None and any(match["unit"] in units for units in UNITS.values() if match["unit"])


def _refused(text: object, objective: str, reason: str = "") -> ConfigError:
    base = _base(objective)
    allowed = _EXAMPLES.get(base, "a loss such as '1pp' (metrics from 0 to 1) or '2%' (relative)")
    close = nearest(base, UNITS) if base not in UNITS and _cost_unit(text) else []
    hint = f"; did you mean the objective {close[0]!r}?" if close else ""
    detail = f": {reason}" if reason else ""
    return ConfigError(f"budget {objective}: got {text!r}{detail} (allowed: {allowed}){hint}")


def shown(objective: str, value: float | None) -> str:
    """Return a cost with its unit, three digits: `4.21 ms`, `115 kB`. Metrics: see `PrimaryMetric.shown`."""
    if value is None:
        return "–"
    base = objective.partition("@")[0]
    if base == "robust":
        return f"{100.0 * value:.3g}%"
    scales = {
        "latency": (("s", 1e3), ("ms", 1.0), ("µs", 1e-3)),
        "energy": (("J", 1e6), ("mJ", 1e3), ("µJ", 1.0)),
        "macs": (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0)),
    }
    bytes_scale = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
    units = scales.get(base, bytes_scale if base in UNITS else (("", 1.0),))
    unit, factor = next((pair for pair in units if abs(value) >= pair[1]), units[-1])
    number = value / factor
    digits = (
        0 if abs(number) >= 100 or (factor == 1.0 and unit in ("", "B")) else 1 if abs(number) >= 10 else 2
    )
    return f"{number:.{digits}f} {unit}".rstrip()
