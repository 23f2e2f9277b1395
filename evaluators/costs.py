"""Predicted costs of a plan on the target devices, under the objective names users see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.choices import (
    Choice,
    Factorised,
    Keep,
    WeightFormat,
    Weights,
    activation_bits,
    describe,
)
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.errors import ConfigError, ProfileError, unknown_name
from paretopress.spaces.kernels import CostView
from paretopress.spaces.plan import Plan, plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SearchSpace
from paretopress.spaces.structure import Structure

RELATIVE_NOISE = 0.002   # a predicted gain below this is not a gain
TWIN_WIDTHS = (0.75, 0.625, 0.5)   # of all channels, where integers that pay in the dense model may not


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
            the profile knows its power, `size` (stored bytes) and `macs`. Time and energy are infinite where
            the device cannot execute the plan.
        """
        view = cost_view(planned)
        costs: dict[str, float] = {"size": float(planned.stored_bytes), "macs": float(view.macs)}
        for device, name in zip(self.devices, self.latency_names, strict=True):
            memory = device.memory(view)
            costs[f"peak_memory@{device.id}"] = float(memory.peak_activation_bytes)
            try:
                costs[name] = device.relative_cost(view) if device.tier == "T0" else device.latency_ms(view).mid
                energy = device.energy_mj(view)
            except ProfileError:   # a figure that is not known is never 0
                costs[name] = math.inf
                if _knows_energy(device):
                    costs[f"energy@{device.id}"] = math.inf
                continue
            if energy is not None:
                costs[f"energy@{device.id}"] = energy.mid * 1000.0
        return costs

    def interval(self, planned: Plan) -> dict[str, tuple[float, float]]:
        """Return the predicted interval in ms of every `latency@ID` whose device can execute the plan."""
        view = cost_view(planned)
        found = {}
        for device in self.devices:
            if device.tier == "T0":
                continue
            try:
                estimate = device.latency_ms(view)
            except ProfileError:
                continue
            found[f"latency@{device.id}"] = (estimate.low, estimate.high)
        return found

    def refusals(self, planned: Plan) -> dict[str, str]:
        """Return the devices that cannot execute a plan, each with one line that says why."""
        view = cost_view(planned)
        found = {device.id: _refusal(device, view) for device in self.devices}
        return {name: f"{name} cannot run it: {reason}" for name, reason in found.items() if reason}

    def over_capacity(self, planned: Plan) -> dict[str, str]:
        """Return the devices that have no room for a plan, each with one line that says why."""
        view = cost_view(planned)
        found = {device.id: device.over_capacity(view) for device in self.devices}
        return {name: f"{name} has no room for it: {reason}" for name, reason in found.items() if reason}

    def capacities(self, baseline: Mapping[str, float]) -> tuple[tuple[str, str, float], ...]:
        """Return limits on memory that devices set, as `(label, cost name, bytes)`, where the dense model breaks them.

        Args:
            baseline: The dense model's costs.
        """
        found = []
        for device in self.devices:
            name, limit = f"peak_memory@{device.id}", device.limits.sram_bytes
            if limit is not None and baseline[name] > limit:
                found.append((f"{name} <={limit}B (its SRAM)", name, float(limit)))
        return tuple(found)

    def resolve(self, objective: str) -> tuple[str, ...]:
        """Return the cost names a user's objective stands for: `latency` is the latency on every target.

        Raises:
            ConfigError: Unknown objective or device; an absolute time on a device that only ranks.
        """
        names = {"size", "macs", *self.latency_names}
        for device in self.devices:
            names.add(f"peak_memory@{device.id}")
            if _knows_energy(device):
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


def _refusal(device: DeviceProfile, view: CostView) -> str:
    """Why a device cannot execute a plan, `""` where it can."""
    try:
        device.relative_cost(view)   # every tier prices kernels and conversions by this
    except ProfileError as error:
        return " ".join(str(error).split()).removeprefix(f"{device.id} ").removeprefix("cannot run ")
    return ""


def _knows_energy(device: DeviceProfile) -> bool:
    return device.document.active_power_mw is not None and device.document.latency is not None


def runs_everywhere(costs: Mapping[str, float]) -> bool:
    """Whether predicted costs are those of a plan that every target can execute."""
    return all(math.isfinite(value) for value in costs.values())


def integer_policy(space: SearchSpace) -> Policy:
    """The lightest change that makes every layer compute in integers, where the space offers one."""
    choices: dict[str, Choice] = {}
    for unit, options in space.options.items():
        integer = next((c for c in options if isinstance(c, Weights) and c.activations == 8), None)
        if integer is not None:
            choices[unit] = integer
    return Policy.of(choices)


def runnable_options(structure: Structure, space: SearchSpace, costs: CostModel) -> dict[str, list[int]]:
    """Return per unit the numbers of its options that every target can execute.

    Where some target refuses the dense model, each option is tried among 8-bit layers, the one form such
    devices run. Where that is refused too, nothing can be told apart and every option counts.
    """
    everything = {unit: list(range(len(options))) for unit, options in space.options.items()}
    integer = integer_policy(space)
    if not costs.refusals(plan(structure, Policy())) or costs.refusals(plan(structure, integer)):
        return everything
    runnable = {
        unit: [number for number in numbers
               if not costs.refusals(plan(structure, integer.replace({unit: space.options[unit][number]})))]
        for unit, numbers in everything.items()
    }
    return {unit: numbers or everything[unit] for unit, numbers in runnable.items()}


def drop_what_cannot_run(structure: Structure, space: SearchSpace, costs: CostModel) -> SearchSpace:
    """Remove the choices that leave an operator no target's profile knows, such as a float one on an MCU.

    The dense choice of a unit stays, whether a target can execute it or not: spaces begin with it.
    """
    integer = integer_policy(space)
    for unit, numbers in runnable_options(structure, space, costs).items():
        for number, choice in enumerate(space.options[unit]):
            if choice is None or number in numbers:
                continue
            refusals = costs.refusals(plan(structure, integer.replace({unit: choice})))
            space = space.without({unit: [choice]}, {unit: "; ".join(refusals.values())})
    return space


def drop_slower_ranks(structure: Structure, space: SearchSpace, costs: CostModel) -> SearchSpace:
    """Remove the ranks that are predicted no faster than the layer in one piece, on any target.

    Two kernels read and write more than one; fewer multiplications do not always pay for that. Each rank is priced
    among float layers and among 8-bit ones, as far as a target can execute them: what no target can is left alone.
    """
    contexts = [context for context in (Policy(), integer_policy(space))
                if any(math.isfinite(costs.predict(plan(structure, context))[name]) for name in costs.latency_names)]
    before = [costs.predict(plan(structure, context)) for context in contexts]

    def is_slower(unit: str, choice: Choice) -> bool:
        after = (costs.predict(plan(structure, context.replace({unit: choice}))) for context in contexts)
        return not any(_saves_time(costs, new, old) for new, old in zip(after, before, strict=True))

    removed: dict[str, list[Choice]] = {
        unit: [choice for choice in options if isinstance(choice, Factorised) and is_slower(unit, choice)]
        for unit, options in space.options.items() if contexts and unit.endswith("/rank")
    }
    reason = f"predicted no faster than the layer in one piece on {', '.join(d.id for d in costs.devices)}"
    return space.without(removed, dict.fromkeys(removed, reason))


def drop_slower_twins(structure: Structure, space: SearchSpace, costs: CostModel) -> SearchSpace:
    """Remove weights that compute in floats where the same bytes computing in integers are faster in any case.

    An integer layer between float ones pays for the conversions on both sides. Where it is faster even then, on
    every target, in the dense model and in narrower ones, it is faster among integer layers all the more; where it is
    not, both are offered.

    Args:
        structure: The model.
        space: Its legal space.
        costs: The target devices.
    """
    contexts = [Policy(), *(uniform_width(space, ratio) for ratio in TWIN_WIDTHS)]
    for unit, options in space.options.items():
        removed: list[Choice] = []
        known: dict[tuple[str, ...], bool] = {}
        for choice in options:
            if not isinstance(choice, Weights) or choice.activations != 32 or not choice.is_plain:
                continue
            twin = replace(choice, activations=8)
            if twin not in options:
                continue
            arithmetic = tuple(device.arithmetic(one.bits, one.activations)
                               for device in costs.devices for one in (twin, choice))
            if arithmetic not in known:   # widths that run alike take the same time
                known[arithmetic] = all(
                    _is_faster(structure, costs, context.replace({unit: twin}), context.replace({unit: choice}))
                    for context in contexts
                )
            if known[arithmetic]:
                removed.append(choice)
        space = space.without({unit: removed}, {unit: "the same bytes with 8-bit activations run faster"})
    return space


def _is_faster(structure: Structure, costs: CostModel, policy: Policy, other: Policy) -> bool:
    """Whether a policy is clearly faster than another one on every target."""
    found, before = costs.predict(plan(structure, policy)), costs.predict(plan(structure, other))
    return all(found[name] < before[name] * (1 - RELATIVE_NOISE) for name in costs.latency_names)


def uniform_width(space: SearchSpace, ratio: float) -> Policy:
    """The policy that keeps one fraction of every channel group, or what the group offers nearest to it."""
    kept = {
        unit: [choice for choice in options if isinstance(choice, Keep) and choice.ratio > 0.0]
        for unit, options in space.options.items()
    }
    return Policy.of({
        unit: min(keeps, key=lambda keep: abs(keep.ratio - ratio)) for unit, keeps in kept.items() if keeps
    })


def drop_what_does_not_pay(
    structure: Structure, space: SearchSpace, costs: CostModel, size_matters: bool = True
) -> tuple[SearchSpace, dict[str, str]]:
    """Remove the choices that save neither time nor bytes on any target, by pricing each alone.

    Where a target cannot execute the dense model, each is priced among 8-bit layers too; what makes a layer
    executable at all pays.

    Args:
        structure: The model.
        space: Its legal space.
        costs: The target devices.
        size_matters: Whether stored bytes are an objective or budget; where not, choices that save only
            bytes are dropped too.

    Returns:
        The smaller space, and the choices that save only bytes as `unit: choice` to the label.
    """
    contexts = [Policy()]
    if costs.refusals(plan(structure, Policy())):
        contexts.append(integer_policy(space))
    before = [costs.predict(plan(structure, context)) for context in contexts]
    removed: dict[str, list[Choice]] = {}
    reasons: dict[str, str] = {}
    size_only: dict[str, str] = {}
    for unit, options in space.options.items():
        for choice in options:
            if choice is None or len(options) == 1:
                continue
            after = [costs.predict(plan(structure, context.replace({unit: choice}))) for context in contexts]
            faster = any(_saves_time(costs, new, old) for new, old in zip(after, before, strict=True))
            smaller = after[0]["size"] < before[0]["size"]
            if faster or _pays_with_neighbours(structure, costs, unit, choice):
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
    if kind != "weights" or not isinstance(choice, WeightFormat) or activation_bits(choice) != 8:
        return False
    others = structure.takers(choice)
    without = {name: value for name, value in others.items() if name != f"{subject}/weights"}
    all_costs = costs.predict(plan(structure, Policy.of(others)))
    rest_costs = costs.predict(plan(structure, Policy.of(without)))
    return _saves_time(costs, all_costs, rest_costs)


def _saves_time(costs: CostModel, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
    """Whether a change saves time on any target, or makes the plan executable there."""
    return any(new[name] < old[name] * (1 - RELATIVE_NOISE) for name in costs.latency_names)


def violations(budgets: Sequence[tuple[str, str, float]], costs: Mapping[str, float]) -> dict[str, float]:
    """Return how far each cost budget is exceeded, in the cost's unit; at most 0 where it is met.

    Args:
        budgets: `(label, cost name, limit)`.
        costs: Predicted or measured costs.
    """
    return {label: costs[name] - limit for label, name, limit in budgets if name in costs}
