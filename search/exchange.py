"""What would it take? What every change of one unit of a policy costs and saves: marginal exchange rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.spaces.choices import Choice, choice_to_plain, compatible, describe
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SearchSpace

SMALLEST = 1e-12
NEAR = 3.0      # times the loss, either way, of trials that tell what a nat is worth at a point
FEWEST = 5      # such trials


@dataclass(frozen=True)
class Exchange:
    """One change of a policy.

    Attributes:
        unit: The unit that changes.
        before: Its choice in words.
        after: What it becomes.
        choice: The same as plain data, None for dense.
        loss: Change of the table's loss, in nats.
        costs: Change of every predicted cost by name, in its own unit; negative is saved.
        rates: By cost that changes the other way than the loss: nats per unit of it, at least 0: what saving one
            costs, or what spending one wins back.
        drop: Change of the loss of the metric to be expected, None where too few trials say.
    """

    unit: str
    before: str
    after: str
    choice: Mapping[str, Any] | None
    loss: float
    costs: Mapping[str, float]
    rates: Mapping[str, float]
    drop: float | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return the exchange as plain data."""
        return asdict(self)


def exchanges(
    space: SearchSpace, table: SensitivityTable, policy: Policy,
    price: Callable[[Sequence[Policy]], Sequence[Mapping[str, float]]], drop_per_nat: float | None = None,
) -> list[Exchange]:
    """Return what every change of a single unit of a policy does, priced with the whole plan.

    Changes that leave all finite costs as they are, and what a target cannot execute, are left out.

    Args:
        space: The choices.
        table: Their losses.
        policy: The point.
        price: Predicted costs of policies by name.
        drop_per_nat: Loss of the metric per nat near the point.
    """
    changes = list(_changes(space, policy))
    now, *prices = price([policy, *(changed for _, _, changed in changes)])
    found = []
    for (unit, index, _), after in zip(changes, prices, strict=True):
        if not all(math.isfinite(value) for value in after.values()):
            continue
        options, own = space.options[unit], policy.choices.get(unit)
        costs = {name: after[name] - value for name, value in now.items() if math.isfinite(value)}
        loss = table.losses[unit][index] - table.losses[unit][options.index(own)]
        if any(abs(change) > SMALLEST for change in costs.values()):
            found.append(_exchange(unit, own, options[index], loss, costs, drop_per_nat))
    return found


def _changes(space: SearchSpace, policy: Policy) -> Iterator[tuple[str, int, Policy]]:
    """Every change of one unit of a policy: the unit, the number of its new option, the policy then."""
    for unit, options in space.options.items():
        own = policy.choices.get(unit)
        if own not in options:
            continue
        for index, choice in enumerate(options):
            if choice != own:
                others = {name: one for name, one in policy if name != unit}
                changed = compatible({**others, **({unit: choice} if choice else {})})
                yield unit, index, Policy.of(changed, model=policy.model, space=policy.space)


def _exchange(
    unit: str, own: Choice | None, choice: Choice | None, loss: float, costs: Mapping[str, float],
    drop_per_nat: float | None,
) -> Exchange:
    rates = {name: max(0.0, -loss / change) for name, change in costs.items()
             if abs(change) > SMALLEST and loss * change <= 0.0}
    return Exchange(
        unit, _words(own), _words(choice), None if choice is None else choice_to_plain(choice), loss, costs, rates,
        None if drop_per_nat is None else drop_per_nat * loss,
    )


def _words(choice: Choice | None) -> str:
    return "dense" if choice is None else describe(choice)


def cheapest_savings(found: Sequence[Exchange], cost: str, count: int) -> list[Exchange]:
    """Return, of the changes that save some cost, those that lose least per saving."""
    saving = [one for one in found if one.costs.get(cost, 0.0) < -SMALLEST]
    return sorted(saving, key=lambda one: one.loss / -one.costs[cost])[:count]


def cheapest_rates(found: Sequence[Exchange]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return, per layer or channel group and cost, the change there that loses least per saving.

    Returns:
        By the subject of the units, then by cost: `unit`, `after`, `saves` (of the cost, in its unit), `nats` and
        `drop` per unit of the cost saved; `drop` is None where too few trials say what a nat is worth. Changes that
        lose nothing have rates of 0.
    """
    best: dict[str, dict[str, dict[str, Any]]] = {}
    for one in found:
        of_layer = best.setdefault(one.unit.rpartition("/")[0], {})
        for cost, change in one.costs.items():
            if change >= -SMALLEST:
                continue
            rate = max(0.0, one.loss / -change)
            if cost not in of_layer or (rate, change) < (of_layer[cost]["nats"], -of_layer[cost]["saves"]):
                drop = None if one.drop is None else max(0.0, one.drop / -change)
                of_layer[cost] = {"unit": one.unit, "after": one.after, "saves": -change, "nats": rate, "drop": drop}
    return {layer: rates for layer, rates in best.items() if rates}


def best_purchases(found: Sequence[Exchange], cost: str, count: int) -> list[Exchange]:
    """Return, of the changes that win loss back, those that win most per cost; free ones first."""
    winning = [one for one in found if one.loss < 0.0]

    def price(one: Exchange) -> tuple[float, float]:
        spent = one.costs.get(cost, 0.0)
        return (0.0, one.loss) if spent <= SMALLEST else (1.0, one.loss / spent)

    return sorted(winning, key=price)[:count]


def drop_per_nat(losses: Sequence[float], drops: Sequence[float], at: float) -> float | None:
    """Return what a nat of the table's loss is worth in loss of the metric near a point: the median of trials there.

    Args:
        losses: The table's loss of scored trials, in nats.
        drops: Their loss of the metric.
        at: The table's loss of the point.

    Returns:
        Loss of the metric per nat; None where fewer than five trials lie within a factor of three.
    """
    ratios = sorted(drop / loss for loss, drop in zip(losses, drops, strict=True)
                    if loss > 0.0 and at / NEAR <= loss <= at * NEAR)
    if len(ratios) < FEWEST:
        return None
    middle = len(ratios) // 2
    return ratios[middle] if len(ratios) % 2 else 0.5 * (ratios[middle - 1] + ratios[middle])
