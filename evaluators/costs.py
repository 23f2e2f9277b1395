"""Predicted costs of a plan on the target devices, under the objective names users see."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from paretopress.evaluators.price_tables import Array
from paretopress.evaluators.pricing import Bools, price_policies
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

ROBUST = "robust"        # the cost that is the worst device's time, relative to the dense model's
RELATIVE_NOISE = 0.002   # a predicted gain below this is not a gain
TWIN_WIDTHS = (0.75, 0.625, 0.5)   # of all channels, where integers that pay in the dense model may not


@dataclass(frozen=True)
class CostModel:
    """Prices plans.

    Attributes:
        devices: Profiles of the target devices.
        dense: The dense model's time on each of them, in their order, which `robust` is relative to; empty where that
            is not asked for, or some device cannot execute the dense model.
    """

    devices: tuple[DeviceProfile, ...]
    dense: tuple[float, ...] = ()

    @property
    def latency_names(self) -> tuple[str, ...]:
        """Name of each device's time objective: `latency@ID` in ms, or `relative@ID` where only ranks are known."""
        return tuple(f"{'relative' if d.tier == 'T0' else 'latency'}@{d.id}" for d in self.devices)

    def predict(self, planned: Plan) -> dict[str, float]:
        """Return all predicted costs of a plan.

        Returns:
            `latency@ID` (ms) or `relative@ID`, `peak_memory@ID` (bytes), `energy@ID` (microjoules) where
            the profile knows its power, `size` (stored bytes) and `macs`; `robust` where `dense` is known. Time and
            energy are infinite where the device cannot execute the plan.
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
        if self.dense:
            costs[ROBUST] = float(self.robust(costs))
        return costs

    def relative_to(self, structure: Structure) -> CostModel:
        """Return the same with `robust` among its costs, where every device can execute the dense model."""
        found = self.predict(plan(structure, Policy()))
        dense = tuple(found[name] for name in self.latency_names)
        return replace(self, dense=dense) if all(map(math.isfinite, dense)) else self

    def robust(self, costs: Mapping[str, Any], baseline: Mapping[str, float] | None = None) -> Any:  # noqa: ANN401
        """The worst device: the largest ratio of a time to the dense model's on the same device.

        The minimax relative loss of robust optimisation (Ben-Tal, El Ghaoui and Nemirovski, "Robust Optimization",
        2009) over devices: `max_d t_d(policy) / t_d(dense)`, 1 for the dense model. Ratios also mean something on
        devices that only rank.

        Args:
            costs: Times by name, numbers or arrays.
            baseline: The dense model's times by name; `dense` where not given.
        """
        dense = self.dense if baseline is None else [baseline[name] for name in self.latency_names]
        ratios = [np.asarray(costs[name]) / base for name, base in zip(self.latency_names, dense, strict=True)]
        return np.max(ratios, axis=0)

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
        names = {"size", "macs", ROBUST, *self.latency_names}
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
    ranks = [(unit, choice) for unit, options in space.options.items() if contexts and unit.endswith("/rank")
             for choice in options if isinstance(choice, Factorised)]
    faster = np.zeros(len(ranks), dtype=bool)
    for context in contexts:
        before, after = _alone(structure, costs, context, ranks)
        faster |= _saves_time(costs, after, before)
    removed: dict[str, list[Choice]] = {}
    for (unit, choice), pays in zip(ranks, faster, strict=True):
        if not pays:
            removed.setdefault(unit, []).append(choice)
    reason = f"predicted no faster than the layer in one piece on {', '.join(d.id for d in costs.devices)}"
    return space.without(removed, dict.fromkeys(removed, reason))


def _alone(
    structure: Structure, costs: CostModel, context: Policy, changes: Sequence[tuple[str, Choice]]
) -> tuple[dict[str, float], dict[str, Array]]:
    """Costs of a policy, and of the same with each change alone, shape `(changes,)`."""
    changed = [context.replace({unit: choice}) for unit, choice in changes]
    found = price_policies(structure, costs, [context, *changed])
    return {name: float(values[0]) for name, values in found.items()}, {n: v[1:] for n, v in found.items()}


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
    pairs = list(_twins(space, costs))
    first = {key: number for number, (*_, key) in reversed(list(enumerate(pairs)))}   # widths that run alike
    tried = [pairs[number] for number in first.values()]
    found = price_policies(structure, costs, [
        context.replace({unit: choice}) for unit, *both, _ in tried for choice in both for context in contexts
    ])
    faster = {}
    for number, (*_, key) in enumerate(tried):
        start = 2 * len(contexts) * number
        twin, one = (slice(start + side * len(contexts), start + (side + 1) * len(contexts)) for side in (0, 1))
        faster[key] = all(bool((found[name][twin] < found[name][one] * (1 - RELATIVE_NOISE)).all())
                          for name in costs.latency_names)
    for unit in space.options:
        removed = [choice for name, _, choice, key in pairs if name == unit and faster[key]]
        space = space.without({unit: removed}, {unit: "the same bytes with 8-bit activations run faster"})
    return space


def _twins(space: SearchSpace, costs: CostModel) -> Iterator[tuple[str, Weights, Weights, tuple[str, ...]]]:
    """Units with weights that compute in integers, the same in floats, and what tells such pairs apart."""
    for unit, options in space.options.items():
        for choice in options:
            if not isinstance(choice, Weights) or choice.activations != 32 or not choice.is_plain:
                continue
            twin = replace(choice, activations=8)
            if twin in options:
                arithmetic = (device.arithmetic(one.bits, one.activations)
                              for device in costs.devices for one in (twin, choice))
                yield unit, twin, choice, (unit, *arithmetic)


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
    choices = [(unit, choice) for unit, options in space.options.items() if len(options) > 1
               for choice in options if choice is not None]
    priced = [_alone(structure, costs, context, choices) for context in contexts]
    pays = np.any([_saves_time(costs, after, before) for before, after in priced], axis=0)
    pays = pays | _pay_with_neighbours(structure, costs, choices)
    smaller = priced[0][1]["size"] < priced[0][0]["size"]
    removed: dict[str, list[Choice]] = {}
    reasons: dict[str, str] = {}
    size_only: dict[str, str] = {}
    for (unit, choice), faster, saves_bytes in zip(choices, pays.tolist(), smaller.tolist(), strict=True):
        if faster:
            continue
        if saves_bytes and size_matters:
            size_only[f"{unit}: {describe(choice)}"] = "size only"
        else:
            removed.setdefault(unit, []).append(choice)
            reasons[unit] = "saves neither time nor bytes on " + ", ".join(d.id for d in costs.devices)
            if saves_bytes:
                reasons[unit] = "saves only bytes, and size is not asked for"
    return space.without(removed, reasons), size_only


def _pay_with_neighbours(structure: Structure, costs: CostModel, choices: Sequence[tuple[str, Choice]]) -> Bools:
    """Which choices save time when every other layer already has the same format, shape `(choices,)`.

    An integer layer among float ones pays conversions that it does not pay among integer ones.
    """
    pays = np.zeros(len(choices), dtype=bool)
    formats = [number for number, (unit, choice) in enumerate(choices)
               if unit.endswith("/weights") and isinstance(choice, WeightFormat) and activation_bits(choice) == 8]
    policies = []
    for number in formats:
        unit, choice = choices[number]
        assert isinstance(choice, WeightFormat)
        everywhere = Policy.of(structure.takers(choice))
        policies += [everywhere, everywhere.replace({unit: None})]
    found = price_policies(structure, costs, policies)
    pays[formats] = _saves_time(costs, {n: v[::2] for n, v in found.items()}, {n: v[1::2] for n, v in found.items()})
    return pays


def _saves_time(costs: CostModel, new: Mapping[str, Array], old: Mapping[str, Array | float]) -> Bools:
    """Which changes save time on any target, or make the plan executable there."""
    saved = [np.asarray(new[name] < np.asarray(old[name]) * (1 - RELATIVE_NOISE)) for name in costs.latency_names]
    found: Bools = np.any(saved, axis=0)
    return found


def violations(budgets: Sequence[tuple[str, str, float]], costs: Mapping[str, float]) -> dict[str, float]:
    """Return how far each cost budget is exceeded, in the cost's unit; at most 0 where it is met.

    Args:
        budgets: `(label, cost name, limit)`.
        costs: Predicted or measured costs.
    """
    return {label: costs[name] - limit for label, name, limit in budgets if name in costs}
