"""Checking a profile against measurements: predictions, what is unknown, the table of errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paretopress.hardware_profiles.accuracy import Accuracy, accuracy
from paretopress.hardware_profiles.measured import Row, read_measured
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.hardware_profiles.writing import validation_entry
from paretopress.spaces.errors import ProfileError

# A factor of a thousand between measured and predicted, give or take what predictions are off by.
_UNIT, _UNIT_SLACK = 3.0, 0.35
WORST_ROWS = 5


@dataclass(frozen=True, slots=True)
class Checked:
    """A measurement and its prediction.

    Attributes:
        row: What was measured.
        predicted_ms: The prediction, None where the profile does not know an operator or width.
        reason: Why it is unknown, `""` where it is not.
    """

    row: Row
    predicted_ms: float | None
    reason: str = ""

    @property
    def error(self) -> float:
        """Predicted / measured - 1; NaN where unknown."""
        return math.nan if self.predicted_ms is None else self.predicted_ms / self.row.milliseconds - 1


@dataclass(frozen=True)
class ValidationReport:
    """What a table of measurements says about a profile.

    Attributes:
        profile: The profile.
        table: The table's file.
        rows: All rows in their order.
        errors: Over the rows that the profile knows.
    """

    profile: DeviceProfile
    table: Path
    rows: tuple[Checked, ...]
    errors: Accuracy

    @property
    def unknown(self) -> tuple[Checked, ...]:
        """Rows without a prediction."""
        return tuple(item for item in self.rows if item.predicted_ms is None)

    def worst(self, count: int = WORST_ROWS) -> tuple[Checked, ...]:
        """The rows with the largest errors, the largest first."""
        known = [item for item in self.rows if item.predicted_ms is not None]
        return tuple(sorted(known, key=lambda item: -abs(item.error))[:count])

    def entry(self, source: str) -> dict[str, Any]:
        """The entry of the profile's `validation`."""
        result = validation_entry(self.table.name, self.errors, source, unknown=len(self.unknown))
        if self.errors.n < 2:
            del result["spearman"]   # one row has no ranks
        return result

    def updated(self, source: str) -> dict[str, Any]:
        """The profile's document with this check, in place of an earlier one of the same table.

        Raises:
            ProfileError: The document is no valid profile with it.
        """
        kept = [item for item in self.profile.plain.get("validation", []) if item["set"] != self.table.name]
        content = {**self.profile.plain, "validation": [*kept, self.entry(source)]}
        return DeviceProfile.from_plain(content, self.profile.id).plain

    def plain(self) -> dict[str, Any]:
        """JSON document."""
        return {
            "device": self.profile.id, "table": str(self.table), "n": self.errors.n, "unknown": len(self.unknown),
            "mape": self.errors.mape, "within5": self.errors.within5, "within10": self.errors.within10,
            "bias": self.errors.bias, "spearman": self.errors.spearman if self.errors.n > 1 else None,
            "rows": [
                {
                    "line": item.row.line, "name": item.row.name, "measured_ms": item.row.milliseconds,
                    "predicted_ms": item.predicted_ms, "unknown": item.reason or None,
                    "error": None if item.predicted_ms is None else item.error,
                }
                for item in self.rows
            ],
        }


def validate(profile: DeviceProfile, table: Path) -> ValidationReport:
    """Predict every row of a table of measurements.

    Raises:
        ProfileError: A T0 profile, a malformed table (see `read_measured`), times that look like another unit than
            their column says, or a table of which the profile knows nothing.
    """
    if profile.document.latency is None:
        raise ProfileError(
            f"{profile.id} is a T0 profile: it predicts no milliseconds that could be checked; "
            "measure or calibrate the device first"
        )
    rows = tuple(_check(profile, row) for row in read_measured(table, profile))
    known = [item for item in rows if item.predicted_ms is not None]
    if not known:
        raise ProfileError(
            f"{table}: {profile.id} knows none of the {len(rows)} rows; line {rows[0].row.line}: {rows[0].reason}"
        )
    _check_units(table, known)
    predicted = np.array([item.predicted_ms for item in known], dtype=np.float64)
    measured = np.array([item.row.milliseconds for item in known])
    return ValidationReport(profile, table, rows, accuracy(predicted, measured))


def _check(profile: DeviceProfile, row: Row) -> Checked:
    try:
        if row.is_kernel:
            return Checked(row, float(profile.kernel_us(row.view.kernels)[0]) / 1e3)
        return Checked(row, profile.latency_ms(row.view).mid)
    except ProfileError as error:
        return Checked(row, None, str(error))


def _check_units(table: Path, rows: Sequence[Checked]) -> None:
    """Refuse times that are a thousand times too long or short: seconds among milliseconds, or the reverse."""
    for item in rows:
        assert item.predicted_ms is not None
        power = math.log10(item.row.milliseconds / item.predicted_ms)
        if abs(abs(power) - _UNIT) < _UNIT_SLACK:
            factor = "a thousandth" if power < 0 else "a thousand times"
            raise ProfileError(
                f"{table}:{item.row.line}: {item.row.name}: measured {item.row.milliseconds:.4g} ms is {factor} of the "
                f"predicted {item.predicted_ms:.4g} ms; is the unit of the column right for this row?"
            )
