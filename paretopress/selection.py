"""Picking points of a front: `knee`, `fastest`, `smallest`, `id:7`, `latency<=5ms`, `accuracy>=0.97`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from paretopress.evaluators.budgets import UNITS, Budget, parse_budget
from paretopress.evaluators.primary_metric import ACCURACY, PrimaryMetric
from paretopress.spaces.errors import ConfigError, InfeasibleError, unknown_name

if TYPE_CHECKING:
    from paretopress.result import Front, Point

PICKS = "knee, fastest, smallest, id:N, or a limit such as 'latency<=5ms' or 'accuracy>=0.97'"
_LIMIT = re.compile(r"([A-Za-z][A-Za-z0-9_]*(?:@[^<>=≤≥\s]+)?)\s*(<=|>=|≤|≥)\s*(.+)")
_VALUE = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%?)")
_KEYWORDS = {
    "max_latency": "latency",
    "max_size": "size",
    "max_macs": "macs",
    "max_memory": "peak_memory",
    "max_energy": "energy",
    "max_robust": "robust",
}
_COMPARED = (ACCURACY, "latency", "size")
_SIGNS = {"max": ">=", "min": "<="}


def keyword_budgets(
    max_drop: str | None, limits: Mapping[str, str | None], direction: Literal["max", "min"] = "max"
) -> tuple[Budget, ...]:
    """Turn `max_latency="5ms"` and its like into budgets; `direction` is that of the first metric.

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
        budgets.append(parse_budget(max_drop, ACCURACY, direction))
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
    name, sign, limit = match[1], match[2].replace("≤", "<=").replace("≥", ">="), match[3]
    if name in (ACCURACY, front.metric.label):
        return _cheapest(front, _value_budget(front.metric, sign, limit, pick))
    if sign == ">=":
        raise ConfigError(f"--pick {pick!r}: a limit on a cost is an upper one, such as 'latency<=5ms'")
    # Within a limit on one cost, the user wants the most accurate point.
    return best(front, ACCURACY, (_budget(name, limit),))


def best(front: Front, minimize: str, budgets: Sequence[Budget]) -> Point:
    """Return the feasible point of the front with the lowest `minimize` (best first metric) within budgets.

    Ties go to the one that is better in the first metric, then to the smaller, then to the lower id.

    Raises:
        ConfigError: An unknown objective.
        InfeasibleError: No point fits.
    """
    if minimize.partition("@")[0] not in (*UNITS, ACCURACY):
        raise ConfigError(unknown_name("objective", minimize, (*UNITS, ACCURACY)))
    _check_target(front, minimize)
    if not front.feasible:
        raise InfeasibleError("no verified point meets all budgets of the run")
    known = [point for point in within(front, budgets) if point.value(minimize) is not None]
    if not known:
        raise InfeasibleError(_nothing_fits(front, minimize, budgets))
    names = (minimize, ACCURACY, "size")
    return min(known, key=lambda point: (*(_cost(point, name, front.metric) for name in names), point.id))


def within(front: Front, budgets: Sequence[Budget]) -> list[Point]:
    """Return the feasible points of the front that meet more budgets; an unknown value meets none.

    Raises:
        ConfigError: A budget names a device that was no target of the run, or `robust` where the run has none.
    """
    for budget in budgets:
        _check_target(front, budget.objective)
    return [point for point in front.feasible if all(_meets(point, front.baseline, one) for one in budgets)]


def _check_target(front: Front, objective: str) -> None:
    if objective == "robust" and front.baseline.value(objective) is None:
        raise ConfigError(
            "robust: this run does not know it, which compares several targets that all run the dense model "
            "(allowed: latency)"
        )
    device = objective.partition("@")[2]
    targets = {name.partition("@")[2] for name in front.baseline.predicted if "@" in name}
    if device and device not in targets:
        raise ConfigError(f"{objective}: {unknown_name('target', device, targets)}")


def dominates(first: Point, second: Point, metric: PrimaryMetric) -> bool | None:
    """Tell whether one point is no worse in the first metric, latency and size, and better in one.

    Returns:
        None where neither latency is known, so that the two cannot be compared.
    """
    pairs = [(first.value(name), second.value(name)) for name in _COMPARED]
    if any(mine is None or other is None for mine, other in pairs):
        return None
    costs = [(_cost(first, name, metric), _cost(second, name, metric)) for name in _COMPARED]
    return all(mine <= other for mine, other in costs) and any(mine < other for mine, other in costs)


def knee_of(points: Sequence[Point], metric: PrimaryMetric) -> Point:
    """Return the knee of points by the first metric, latency and size, leaving out what is not known."""
    from paretopress.search.pareto import knee

    names = [name for name in _COMPARED if all(point.value(name) is not None for point in points)]
    return points[knee([[_cost(point, name, metric) for name in names] for point in points])]


def _cost(point: Point, objective: str, metric: PrimaryMetric) -> float:
    value = point.value(objective)
    if value is None:
        return float("inf")
    return metric.cost(value) if objective == ACCURACY else value


def _cheapest(front: Front, budget: Budget) -> Point:
    """Return the fastest point within a limit on the metric, or the smallest where no time is known."""
    timed = any(point.value("latency") is not None for point in within(front, (budget,)))
    return best(front, "latency" if timed else "size", (budget,))


def _value_budget(metric: PrimaryMetric, sign: str, limit: str, pick: str) -> Budget:
    """Read the limit of `accuracy>=0.97`, `accuracy>=97%` or, of a metric to be minimised, `accuracy<=0.031`."""
    match = _VALUE.fullmatch(limit.strip())
    wanted = _SIGNS[metric.direction]
    if sign != wanted or match is None or (match[2] and not metric.is_share):
        example = "'accuracy>=0.97' or 'accuracy>=97%'" if metric.is_share else f"'{metric.label}{wanted}NUMBER'"
        raise ConfigError(f"--pick {pick!r} is no limit on this run's metric (allowed: {example})")
    value = float(match[1]) / (100.0 if match[2] else 1.0)
    return Budget(ACCURACY, "absolute", value, f"{sign}{limit}", metric.direction)


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
            extreme = min(values, key=front.metric.cost) if name == ACCURACY else min(values)
            reachable.append(f"{name} {_in_units(front, name, extreme)}")
    best_values = f"; the front reaches {', '.join(reachable)}" if reachable else ""
    return f"no verified point meets {shown}{best_values}"


def _in_units(front: Front, objective: str, value: float) -> str:
    from paretopress.evaluators.budgets import shown

    return front.metric.shown(value) if objective == ACCURACY else shown(objective, value)


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
