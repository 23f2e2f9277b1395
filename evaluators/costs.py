"""Predicted costs of a plan on the target devices, under the objective names users see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.choices import Choice
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.errors import ConfigError, unknown_name
from paretopress.spaces.plan import Plan, plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SearchSpace, describe
from paretopress.spaces.structure import Structure

RELATIVE_NOISE = 0.002   # a predicted gain below this is not a gain


@dataclass(frozen=True)
class CostModel:
    """Prices plans.

    Attributes:
        devices: Profiles of the target devices.
    """

    devices: tuple[DeviceProfile, ...]

    @property
    def latency_names(self) -> tuple[str, ...]:
        """Name of each device's time objective: `latency@ID` in ms, or `relative@ID` where only ranks are known."""
        return tuple(f"{'relative' if d.tier == 'T0' else 'latency'}@{d.id}" for d in self.devices)

    def predict(self, planned: Plan) -> dict[str, float]:
        """Return all predicted costs of a plan.

        Returns:
            `latency@ID` (ms) or `relative@ID`, `peak_memory@ID` (bytes), `energy@ID` (microjoules) where
            the profile knows its power, `size` (stored bytes) and `macs`.
        """
        view = cost_view(planned)
        costs: dict[str, float] = {"size": float(planned.stored_bytes), "macs": float(view.macs)}
        for device, name in zip(self.devices, self.latency_names, strict=True):
            costs[name] = device.relative_cost(view) if device.tier == "T0" else device.latency_ms(view).mid
            memory = device.memory(view)
            costs[f"peak_memory@{device.id}"] = float(memory.peak_activation_bytes)
            energy = device.energy_mj(view)
            if energy is not None:
                costs[f"energy@{device.id}"] = energy.mid * 1000.0
        return costs

    def interval(self, planned: Plan) -> dict[str, tuple[float, float]]:
        """Return the predicted interval in ms of every `latency@ID`."""
        view = cost_view(planned)
        found = {}
        for device in self.devices:
            if device.tier != "T0":
                estimate = device.latency_ms(view)
                found[f"latency@{device.id}"] = (estimate.low, estimate.high)
        return found

    def resolve(self, objective: str) -> tuple[str, ...]:
        """Return the cost names a user's objective stands for: `latency` is the latency on every target.

        Raises:
            ConfigError: Unknown objective or device; an absolute time on a device that only ranks.
        """
        names = {"size", "macs", *self.latency_names}
        for device in self.devices:
            names.add(f"peak_memory@{device.id}")
            if device.document.active_power_mw is not None:
                names.add(f"energy@{device.id}")
        if objective in names:
            return (objective,)
        if objective == "latency":
            return self.latency_names
        matching = tuple(name for name in sorted(names) if name.partition("@")[0] == objective)
        if matching:
            return matching
        ranked = [d.id for d in self.devices if objective == f"latency@{d.id}" and d.tier == "T0"]
        if ranked:
            return (f"relative@{ranked[0]}",)
        raise ConfigError(unknown_name("objective", objective, [*names, "latency"]))


def drop_what_does_not_pay(
    structure: Structure, space: SearchSpace, costs: CostModel, size_matters: bool = True
) -> tuple[SearchSpace, dict[str, str]]:
    """Remove the choices that save neither time nor bytes on any target, by pricing each alone.

    Args:
        structure: The model.
        space: Its legal space.
        costs: The target devices.
        size_matters: Whether stored bytes are an objective or budget; where not, choices that save only
            bytes are dropped too.

    Returns:
        The smaller space, and the choices that save only bytes as `unit: choice` to the label.
    """
    dense = costs.predict(plan(structure, Policy()))
    removed: dict[str, list[Choice]] = {}
    reasons: dict[str, str] = {}
    size_only: dict[str, str] = {}
    for unit, options in space.options.items():
        for choice in options:
            if choice is None or len(options) == 1:
                continue
            alone = costs.predict(plan(structure, Policy.of({unit: choice})))
            faster = any(alone[name] < dense[name] * (1 - RELATIVE_NOISE) for name in costs.latency_names)
            in_context = _pays_with_neighbours(structure, costs, unit, choice)
            smaller = alone["size"] < dense["size"]
            if faster or in_context:
                continue
            if smaller and size_matters:
                size_only[f"{unit}: {describe(choice)}"] = "size only"
            else:
                removed.setdefault(unit, []).append(choice)
                reasons[unit] = "saves neither time nor bytes on " + ", ".join(d.id for d in costs.devices)
                if smaller:
                    reasons[unit] = "saves only bytes, and size is not asked for"
    return space.without(removed, reasons), size_only


def _pays_with_neighbours(structure: Structure, costs: CostModel, unit: str, choice: Choice) -> bool:
    """Whether a choice saves time when every other layer already has the same format.

    An integer layer among float ones pays conversions that it does not pay among integer ones.
    """
    subject, _, kind = unit.rpartition("/")
    if kind != "weights":
        return False
    others = {name: choice for name, frozen in structure.units.items() if name.endswith("/weights") and not frozen}
    without = {name: value for name, value in others.items() if name != f"{subject}/weights"}
    all_costs = costs.predict(plan(structure, Policy.of(others)))
    rest_costs = costs.predict(plan(structure, Policy.of(without)))
    return any(all_costs[name] < rest_costs[name] * (1 - RELATIVE_NOISE) for name in costs.latency_names)


def violations(budgets: Sequence[tuple[str, str, float]], costs: Mapping[str, float]) -> dict[str, float]:
    """Return how far each cost budget is exceeded, in the cost's unit; at most 0 where it is met.

    Args:
        budgets: `(label, cost name, limit)`.
        costs: Predicted or measured costs.
    """
    return {label: costs[name] - limit for label, name, limit in budgets if name in costs}
