"""The metric that the objective `accuracy` stands for: its direction, and how its values are told to people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from paretopress.evaluators.metrics import Metric

ACCURACY = "accuracy"
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_DEFAULT_METRIC = "top1"


@dataclass(frozen=True)
class PrimaryMetric:
    """The first metric of a run.

    Attributes:
        direction: Whether more (`max`) or less (`min`) is better.
        label: What people call it: the user's name for it, `accuracy` where none is known.
        is_share: Whether it is a share from 0 to 1 of which more is better. Only then percent and percentage
            points mean something; other metrics are shown in their own unit, with relative changes.
    """

    direction: Literal["max", "min"] = "max"
    label: str = ACCURACY
    is_share: bool = True

    @classmethod
    def of(cls, metric: Metric, values: Iterable[float]) -> PrimaryMetric:
        """Describe a metric of the user's data by known values of it."""
        return cls._of(metric.direction, metric.label, values)

    @classmethod
    def of_front(cls, measured: Sequence[Mapping[str, Any]], stated: Mapping[str, Any] | None) -> PrimaryMetric:
        """Describe the metric of a stored front.

        Args:
            measured: What was measured of each verified point.
            stated: The `metric` of `front.json`, name and direction. Where a document has none, the signs of
                the drops tell the direction: a drop is positive where a point is worse than the dense model.
        """
        values = [one[ACCURACY] for one in measured if _is_number(one.get(ACCURACY))]
        known = stated or {}
        return cls._of(known.get("direction") or _direction(measured), known.get("name", ""), values)

    @classmethod
    def _of(cls, direction: Literal["max", "min"], name: str, values: Iterable[float]) -> PrimaryMetric:
        label = name if _LABEL.fullmatch(name) and name != _DEFAULT_METRIC else ACCURACY
        return cls(direction, label, direction == "max" and all(0.0 <= value <= 1.0 for value in values))

    def cost(self, value: float) -> float:
        """Return what is smaller where the metric is better."""
        return -value if self.direction == "max" else value

    def drop(self, value: float, dense: float) -> float:
        """Return by how much a value is worse than the dense model's, in the metric's unit."""
        return self.cost(value) - self.cost(dense)

    def shown(self, value: float | None) -> str:
        """Return a value as text: `98.6 %` of a share, else `0.03121`."""
        if value is None:
            return "–"
        return f"{100 * value:.1f} %" if self.is_share else f"{value:.4g}"

    def change(self, value: float, dense: float) -> str:
        """Return the difference from the dense model: `-0.4 pp` of a share, else `+3.1%`; "" of a dense 0."""
        if self.is_share:
            return f"{100 * (value - dense):+.1f} pp"
        return f"{(value - dense) / abs(dense):+.1%}" if dense else ""

    @property
    def loss_word(self) -> str:
        """What a loss is called: values of which more is better drop, others rise."""
        return "drop" if self.direction == "max" else "rise"

    def scale(self, dense: float) -> float:
        """Return the unit in which drops are compared: 1 of a share, else the dense model's size, 1 where that is 0."""
        return 1.0 if self.is_share else abs(dense) or 1.0

    def drop_shown(self, drop: float, dense: float | None) -> str:
        """Return a drop as text: `+0.30 pp` of a share, else `+0.0009 (+3.1%)`; positive is worse."""
        if self.is_share:
            return f"{100 * drop:+.2f} pp"
        relative = f" ({drop / abs(dense):+.1%})" if dense else ""
        return f"{drop:+.4g}{relative}"


def _direction(measured: Iterable[Mapping[str, Any]]) -> Literal["max", "min"]:
    for one in measured:
        figures = [one.get(name) for name in (ACCURACY, "accuracy_baseline", "accuracy_drop")]
        if not all(map(_is_number, figures)):
            continue
        value, dense, drop = map(float, figures)   # type: ignore[arg-type]
        if (dense - value) * drop:
            return "max" if (dense - value) * drop > 0 else "min"
    return "max"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
