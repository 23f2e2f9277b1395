"""A front drawn with matplotlib, in shapes and colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paretopress.evaluators.budgets import UNITS
from paretopress.evaluators.primary_metric import ACCURACY
from paretopress.spaces.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from paretopress.result import Front, Point

AXIS_UNITS = {"latency": "ms", "size": "bytes", "macs": "multiply-accumulates", "peak_memory": "bytes",
              "energy": "µJ", "robust": "of the dense model's time"}
# Okabe and Ito's colours; every kind has a shape of its own too.
STYLES = {
    "front": {"marker": "o", "color": "#0072B2", "s": 36, "zorder": 3},
    "off": {"marker": ".", "color": "#999999", "s": 30, "zorder": 2},
    "infeasible": {"marker": "x", "color": "#D55E00", "s": 36, "zorder": 2},
    "dense": {"marker": "s", "color": "#000000", "s": 50, "zorder": 4},
    "compared": {"marker": "^", "color": "#E69F00", "s": 50, "zorder": 3},
    "knee": {"marker": "*", "color": "#009E73", "s": 170, "zorder": 5},
}
LABELS = {"front": "front", "off": "verified, not on the front", "infeasible": "misses a budget", "dense": "dense",
          "compared": "uniform int8, half width", "knee": "knee"}


def plot_front(front: Front, x: str, y: str, axes: Axes | None = None) -> Axes:
    """Draw a front; see `Front.plot`."""
    for name in (x, y):
        if name.partition("@")[0] not in (*UNITS, ACCURACY):
            raise ConfigError(f"plot: {unknown_name('objective', name, (*UNITS, ACCURACY))}")
        if not any(point.value(name) is not None for point in front.verified):
            raise ConfigError(f"plot: no point of this run has a value for {name}")
    if axes is None:
        try:
            from matplotlib import pyplot
        except ImportError:
            raise ConfigError("the package matplotlib is not installed: pip install 'paretopress[plot]'") from None
        _, axes = pyplot.subplots(figsize=(7.0, 4.5), layout="constrained")
    assert axes is not None
    for kind, points in _by_kind(front).items():
        _scatter(axes, points, x, y, kind)
    line = sorted(pair for point in front.points if (pair := _place(point, x, y)) is not None)
    across, up = [a for a, _ in line], [b for _, b in line]
    axes.plot(across, up, color="#0072B2", linewidth=1.0, zorder=1, drawstyle="steps-post")
    _label(axes, front, x, y)
    return axes


def _by_kind(front: Front) -> dict[str, list[Point]]:
    compared = {point.policy_hash for point in front.comparisons}
    found: dict[str, list[Point]] = {kind: [] for kind in STYLES}
    for point in front.verified:
        if point.policy_hash == front.baseline.policy_hash:
            kind = "dense"
        elif point.policy_hash in compared:
            kind = "compared"
        else:
            kind = "infeasible" if not point.feasible else "front" if point.on_front else "off"
        found[kind].append(point)
        if point.knee:
            found["knee"].append(point)
    found["compared"] += [point for point in front.comparisons
                          if point.policy_hash not in {one.policy_hash for one in front.verified}]
    return {kind: points for kind, points in found.items() if points}


def _scatter(axes: Any, points: Sequence[Point], x: str, y: str, kind: str) -> None:  # noqa: ANN401 - of matplotlib
    places = [pair for point in points if (pair := _place(point, x, y)) is not None]
    if places:
        axes.scatter([a for a, _ in places], [b for _, b in places], label=LABELS[kind], **STYLES[kind])


def _place(point: Point, x: str, y: str) -> tuple[float, float] | None:
    first, second = point.value(x), point.value(y)
    return None if first is None or second is None else (first, second)


def _label(axes: Any, front: Front, x: str, y: str) -> None:  # noqa: ANN401 - of matplotlib
    def title(name: str) -> str:
        if name == ACCURACY:
            return f"{front.metric.label} (holdout)"
        base = name.partition("@")[0]
        measured = all(point.measured.get("latency_ms") for point in front.points)
        kind = " measured" if base == "latency" and measured else " predicted" if base == "latency" else ""
        return f"{name}{kind} ({AXIS_UNITS.get(base, '')})"

    axes.set_xlabel(title(x))
    axes.set_ylabel(title(y))
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
