"""Tables for terminals, Markdown and CSV: the front, the comparisons, and what stands under them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paretopress.evaluators.budgets import shown
from paretopress.evaluators.primary_metric import ACCURACY, PrimaryMetric
from paretopress.selection import dominates

if TYPE_CHECKING:
    from rich.table import Table

    from paretopress.result import Front, Point

WIDTH = 100


def plain_text(text: object) -> str:
    """Return text on one line without control characters: what is read from files cannot steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def front_text(
    front: Front,
    *,
    width: int = WIDTH,
    show_all: bool = False,
    colour: bool = False,
    points: Sequence[Point] | None = None,
) -> str:
    """Return the front, the comparisons and the facts under them as text.

    Args:
        front: What to print.
        width: Columns of the terminal; readable from 80 on.
        show_all: Also the points that fell off the front, with the reason.
        colour: With terminal colours.
        points: The points to print instead of the front's.
    """
    rows = shown_points(front, show_all) if points is None else list(points)
    parts: list[Any] = [_front_table(front, rows)]
    if front.comparisons:
        parts.append(_comparison_table(front))
    text = render(parts, width, colour=colour)
    known = {point.id for point in rows}
    hidden = sum(not point.on_front and point.id not in known for point in front.verified)
    lines = [
        piece for fact in facts(front, hidden) for piece in textwrap.wrap(fact, width, subsequent_indent="  ")
    ]
    return text + "\n".join(lines) + "\n"


def shown_points(front: Front, show_all: bool) -> list[Point]:
    """Return the baseline and then the points from slow and accurate to fast and small."""
    others = [
        p for p in front.verified if (show_all or p.on_front) and p.policy_hash != front.baseline.policy_hash
    ]
    return [front.baseline, *sorted(others, key=_slow_first)]


def render(parts: Iterable[Any], width: int, *, colour: bool = False) -> str:
    """Return rich tables as text of at most `width` columns."""
    from rich.console import Console

    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=colour,
        no_color=not colour,
        highlight=False,
        legacy_windows=False,
        color_system="standard" if colour else None,
    )
    for part in parts:
        console.print(part, markup=False)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def plain_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    right: Sequence[str] = (),
    whole: Sequence[str] | None = None,
) -> Table:
    """Return a table of plain text.

    Args:
        title: Above the table; `""` for none.
        headings: Column names.
        rows: Cells, shown as text.
        right: Names of the columns that are aligned to the right and never wrapped.
        whole: Names of other columns that are never wrapped; by default the first one.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title) if title else None,
        box=SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        title_style="bold",
        padding=(0, 1, 0, 0),
    )
    unwrapped = {*right, *(headings[:1] if whole is None else whole)} - {""}
    for heading in headings:
        table.add_column(
            heading,
            justify="right" if heading in right else "left",
            no_wrap=heading in unwrapped,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(plain_text(cell)) for cell in row))
    return table


def _front_table(front: Front, points: Sequence[Point]) -> Table:
    from rich.text import Text

    names = headings(front)
    table = plain_table("", names, (), right=names[:6])
    for point in points:
        style = "bold green" if point.knee else "dim" if not point.on_front or not point.feasible else ""
        table.add_row(*(Text(plain_text(cell), style=style) for cell in cells(front, point)))
    return table


def headings(front: Front) -> tuple[str, ...]:
    """Return the front's column names; the first metric goes by the user's name for it."""
    return ("#", front.metric.label, "latency", "predicted", "size", "MACs", "note")


def cells(front: Front, point: Point) -> list[str]:
    """Return a point's row under `headings`."""
    return [
        str(point.id),
        _accuracy(front, point),
        _latency(front, point),
        shown("latency", _prediction(front, point)),
        _size(front, point),
        shown("macs", point.value("macs")),
        note(point, front),
    ]


def note(point: Point, front: Front) -> str:
    """Return what a row's last column says: name, knee, why it misses the budgets or the front."""
    words = []
    if point.policy_hash == front.baseline.policy_hash:
        words.append("dense")
    elif point.name:
        words.append(point.name)
    if point.knee:
        words.append("knee")
    if not point.feasible:
        words.append("infeasible" if point.why_not is None else f"infeasible: {point.why_not}")
    elif point.why_not is not None:
        words.append(point.why_not)
    return ", ".join(words)


def _accuracy(front: Front, point: Point) -> str:
    value, dense = point.value(ACCURACY), front.baseline.value(ACCURACY)
    text = front.metric.shown(value)
    if value is None or dense is None or point is front.baseline:
        return text
    change = front.metric.change(value, dense)
    return f"{text} ({change})" if change else text


def _latency(front: Front, point: Point) -> str:
    measured = point.measured.get("latency_ms")
    if measured is None:
        value = point.value("latency")
        return (
            "–" if value is None else f"{shown('latency', value)} predicted{_ratio(front, point, 'latency')}"
        )
    quartiles = point.measured.get("latency_ms_iqr")
    spread = f" ±{50 * (quartiles[1] - quartiles[0]) / measured:.0f}%" if quartiles and measured else ""
    speedup = point.measured.get("speedup")
    times = f" ({speedup:.2f}x)" if speedup is not None and point is not front.baseline else ""
    return f"{shown('latency', measured)}{spread}{times}"


def _prediction(front: Front, point: Point) -> float | None:
    target = first_target(front)
    return point.predicted.get(f"latency@{target}") if target else None


def _size(front: Front, point: Point) -> str:
    return f"{shown('size', point.value('size'))}{_ratio(front, point, 'size')}"


def _ratio(front: Front, point: Point, objective: str) -> str:
    value, dense = point.value(objective), front.baseline.value(objective)
    return "" if not value or not dense or point is front.baseline else f" ({dense / value:.2f}x)"


def _comparison_table(front: Front) -> Table:
    knee = next((point for point in front.verified if point.knee), None)
    rows = []
    for point in front.comparisons:
        answer = _comparison(front, knee, point)
        rows.append(
            [
                plain_text(point.name or point.id),
                _accuracy(front, point),
                _latency(front, point),
                _size(front, point),
                answer,
            ]
        )
    return plain_table(
        "Beside it, verified alike",
        ("", front.metric.label, "latency", "size", "knee wins in all"),
        rows,
        right=(front.metric.label, "latency", "size"),
    )


def _comparison(front: Front, knee: Point | None, point: Point) -> str:
    if knee is None:
        return "no knee"
    if knee.policy_hash == point.policy_hash:
        return "is the knee"
    return {True: "yes", False: "no", None: "unknown"}[dominates(knee, point, front.metric)]


def first_target(front: Front) -> str | None:
    """Return the device that predictions in the table are for: the run's first target."""
    target = front.plain.get("target")
    if isinstance(target, list):
        target = target[0] if target else None
    if isinstance(target, str):
        return target
    names = [name for name in front.baseline.predicted if name.startswith("latency@")]
    return names[0].partition("@")[2] if names else None


def facts(front: Front, hidden: int = 0) -> list[str]:
    """Return the lines under the table: machine, timing, seed, prediction error, data, budgets."""
    plain, measured = front.plain, front.baseline.measured
    lines = []
    host = _host_text(plain.get("host"))
    if not any(point.measured.get("latency_ms") for point in front.verified):
        lines.append("latency: the upper end of what is predicted; no target of this run can be timed on this machine")
    elif host:
        timed = f"latency: median of {measured['runs']} alternated runs" if measured.get("runs") else "latency"
        lines.append(f"{timed} on {host}; ±: half the interquartile range")
    error = plain.get("latency_error") or {}
    parts = [f"target {first_target(front) or '–'}", f"seed {plain.get('seed', '–')}"]
    if error.get("spearman") is not None:
        parts.append(
            f"predicted against measured: Spearman {error['spearman']:.2f}, "
            f"median error {error.get('median_abs_pct', float('nan')):.1f} %{_speedup_error(error)}"
        )
    lines.append("; ".join(parts))
    lines += _accuracy_facts(front)
    budgets = [_budget_text(budget, front.metric) for budget in plain.get("budgets") or []]
    if budgets:
        lines.append(f"budgets: {', '.join(budgets)}")
    if hidden > 0:
        noun = "point" if hidden == 1 else "points"
        lines.append(f"{hidden} verified {noun} off the front not shown (--all shows why)")
    return [plain_text(line) for line in lines]


def _speedup_error(error: Mapping[str, object]) -> str:
    """Return what predicted speed-ups are off by, which the speed of the machine at that moment does not change."""
    found = error.get("speedup_median_abs_pct")
    return f", of speed-ups {found:.1f} %" if isinstance(found, float) else ""


def _accuracy_facts(front: Front) -> list[str]:
    """Return what the metric's values stand on, with the interval of the knee's drop where it is a share."""
    better = "" if front.metric.is_share else f" ({'more' if front.metric.direction == 'max' else 'less'} is better)"
    text = f"{front.metric.label}{better} on holdout data that the search never saw"
    known = [point for point in front.verified if point.knee and point.measured.get("accuracy_drop_interval")]
    if known and front.metric.is_share:
        low, high = known[0].measured["accuracy_drop_interval"]
        text += f"; the knee's drop: {100 * low:.1f} to {100 * high:.1f} pp (95 % interval)"
    return [text]


def _host_text(host: object) -> str:
    if not isinstance(host, Mapping):
        return host if isinstance(host, str) else ""
    words = [str(host[key]) for key in ("cpu", "runtime") if host.get(key)]
    return ", ".join(
        [*words, *(f"{key} {host[key]}" for key in ("threads", "batch", "load") if host.get(key))]
    )


def _budget_text(budget: object, metric: PrimaryMetric) -> str:
    if not isinstance(budget, Mapping):
        return str(budget)
    objective = budget.get("objective", "?")
    name = f"{metric.label} {'drop' if metric.direction == 'max' else 'rise'}" if objective == ACCURACY else objective
    return f"{name} {budget.get('limit', '?')}"


def _slow_first(point: Point) -> tuple[float, float, int]:
    latency, size = point.value("latency"), point.value("size")
    return (-latency if latency is not None else 0.0, -size if size is not None else 0.0, point.id)
