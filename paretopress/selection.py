"""Picking points of a front: `knee`, `fastest`, `smallest`, `id:7`, `latency<=5ms`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from paretopress.evaluators.budgets import UNITS, Budget, parse_budget
from paretopress.spaces.errors import ConfigError, InfeasibleError, unknown_name

if TYPE_CHECKING:
    from paretopress.result import Front, Point

PICKS = "knee, fastest, smallest, id:N, or a limit such as 'latency<=5ms'"
_LIMIT = re.compile(r"([A-Za-z_]+(?:@[^<=\s]+)?)\s*(?:<=|≤)\s*(.+)")
_KEYWORDS = {
    "max_latency": "latency",
    "max_size": "size",
    "max_macs": "macs",
    "max_memory": "peak_memory",
    "max_energy": "energy",
}
_COMPARED = ("accuracy", "latency", "size")


def keyword_budgets(max_drop: str | None, limits: Mapping[str, str | None]) -> tuple[Budget, ...]:
    """Turn `max_latency="5ms"` and its like into budgets.

    Raises:
        ConfigError: An unknown keyword or a malformed limit.
    """
    budgets = []
    for keyword, text in limits.items():
        if keyword not in _KEYWORDS:
            raise ConfigError(unknown_name("limit", keyword, [*_KEYWORDS, "max_drop"]))
        if text is not None:
            budgets.append(parse_budget(text, _KEYWORDS[keyword]))
    if max_drop is not None:
        budgets.append(parse_budget(max_drop, "accuracy"))
    return tuple(budgets)


def limit_budget(text: str) -> Budget:
    """Read `latency=5ms`, as `--max` takes it, for choosing among points that are there already.

    Raises:
        ConfigError: No `=`, an unknown objective or a malformed limit.
    """
    objective, equals, limit = text.partition("=")
    if not equals or not objective or not limit:
        raise ConfigError(f"--max {text!r}: write NAME=BUDGET, such as latency=5ms")
    return _budget(objective.strip(), limit.strip())


def pick_point(front: Front, pick: str) -> Point:
    """Return the point that a pick names.

    Raises:
        ConfigError: Not a pick, or an id that the run does not have.
        InfeasibleError: No feasible point fits; the message states the nearest.
    """
    text = pick.strip()
    if text == "knee":
        return front.knee()
    if text == "fastest":
        return best(front, "latency", ())
    if text == "smallest":
        return best(front, "size", ())
    if text.startswith("id:"):
        return _by_id(front, text)
    match = _LIMIT.fullmatch(text)
    if match is None:
        raise ConfigError(f"--pick {pick!r} is not a pick (allowed: {PICKS})")
    # Within a limit on one cost, the user wants the most accurate point.
    return best(front, "accuracy", (_budget(match[1], match[2]),))


def best(front: Front, minimize: str, budgets: Sequence[Budget]) -> Point:
    """Return the feasible point of the front with the lowest `minimize` (highest accuracy) within budgets.

    Ties go to the more accurate, then to the smaller, then to the lower id.

    Raises:
        ConfigError: An unknown objective.
        InfeasibleError: No point fits.
    """
    if minimize.partition("@")[0] not in (*UNITS, "accuracy"):
        raise ConfigError(unknown_name("objective", minimize, (*UNITS, "accuracy")))
    if not front.feasible:
        raise InfeasibleError("no verified point meets all budgets of the run")
    known = [point for point in within(front, budgets) if point.value(minimize) is not None]
    if not known:
        raise InfeasibleError(_nothing_fits(front, minimize, budgets))
    return min(
        known,
        key=lambda point: (_cost(point, minimize), _cost(point, "accuracy"), _cost(point, "size"), point.id),
    )


def within(front: Front, budgets: Sequence[Budget]) -> list[Point]:
    """Return the feasible points of the front that meet more budgets; an unknown value meets none."""
    return [point for point in front.feasible if all(_meets(point, front.baseline, one) for one in budgets)]


def dominates(first: Point, second: Point) -> bool | None:
    """Tell whether one point is no worse in accuracy, latency and size, and better in one.

    Returns:
        None where neither latency is known, so that the two cannot be compared.
    """
    pairs = [(first.value(name), second.value(name)) for name in _COMPARED]
    if any(mine is None or other is None for mine, other in pairs):
        return None
    costs = [(_cost(first, name), _cost(second, name)) for name in _COMPARED]
    return all(mine <= other for mine, other in costs) and any(mine < other for mine, other in costs)


def knee_of(points: Sequence[Point]) -> Point:
    """Return the knee of points by accuracy, latency and size, leaving out objectives that are not known."""
    from paretopress.search.pareto import knee

    names = [name for name in _COMPARED if all(point.value(name) is not None for point in points)]
    return points[knee([[_cost(point, name) for name in names] for point in points])]


def _cost(point: Point, objective: str) -> float:
    value = point.value(objective)
    if value is None:
        return float("inf")
    return -value if objective == "accuracy" else value


def _meets(point: Point, baseline: Point, budget: Budget) -> bool:
    value, dense = point.value(budget.objective), baseline.value(budget.objective)
    if value is None or (dense is None and budget.kind != "absolute"):
        return False
    return budget.violation(value, dense if dense is not None else value) <= 0.0


def _nothing_fits(front: Front, minimize: str, budgets: Sequence[Budget]) -> str:
    shown = " and ".join(str(budget) for budget in budgets) or f"a known {minimize}"
    reachable = []
    for name in dict.fromkeys(budget.objective for budget in budgets):
        values = [value for point in front.feasible if (value := point.value(name)) is not None]
        if values:
            extreme = max(values) if name == "accuracy" else min(values)
            reachable.append(f"{name} {_in_units(name, extreme)}")
    best_values = f"; the front reaches {', '.join(reachable)}" if reachable else ""
    return f"no verified point meets {shown}{best_values}"


def _in_units(objective: str, value: float) -> str:
    from paretopress.tables import shown

    return shown(objective, value)


def _by_id(front: Front, text: str) -> Point:
    number = text.removeprefix("id:")
    points = {str(point.id): point for point in (*front.verified, front.baseline, *front.comparisons)}
    if number not in points:
        raise ConfigError(f"--pick {text}: {unknown_name('id', number, points)}")
    return points[number]


def _budget(objective: str, limit: str) -> Budget:
    base = objective.partition("@")[0]
    if base not in UNITS:
        raise ConfigError(unknown_name("objective", base, UNITS))
    return parse_budget(limit, objective)
