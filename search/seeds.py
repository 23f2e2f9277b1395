"""Exact seeds: the table's losses and the devices' kernel costs as one factor graph, solved exactly.

Loss is additive over units; cost is a sum of terms over the few units that touch a kernel: the groups
of its input and output, its own rank and format. Conversions between float and integer kernels couple
neighbours and are left out here: every seed is priced again with the whole plan.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paretopress.evaluators.costs import CostModel, runnable_options, violations
from paretopress.evaluators.price_tables import kernel_costs
from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.search.conditions import NO_CONDITIONS, Conditions
from paretopress.search.exact import CostTerm, ExactFront, ExactProblem, FrontPoint, FrontPoints, solve_front
from paretopress.spaces.choices import Choice, Keep, Weights, activation_bits, compatible
from paretopress.spaces.cost_view import kernels_of, merged_sums
from paretopress.spaces.fusion import FusedKernel
from paretopress.spaces.kernels import Kernel
from paretopress.spaces.plan import Plan, kept_channels, plan, plan_layer
from paretopress.spaces.policy import DENSE, Policy
from paretopress.spaces.space import SearchSpace
from paretopress.spaces.structure import Structure

UNKNOWN_PRICE = 1e3   # times the dearest known kernel: what a device cannot execute is avoided, yet adds up
SMALLEST_LOSS = 1e-4   # nats: what loses less is as good as dense
EDGE = 2.0    # times the least loss within the budgets
MIXES = (1.0, 0.75, 0.5, 0.25, 0.0)   # weight of relative time against relative size


@dataclass(frozen=True)
class Seeds:
    """Policies from the exact fronts.

    Attributes:
        policies: Distinct policies, the dense one first.
        gap: The largest certified gap of the fronts they come from.
        losses: The table's loss of each policy.
    """

    policies: tuple[Policy, ...]
    gap: float
    losses: tuple[float, ...]


class FactorGraph:
    """Cost terms of a space on one set of devices."""

    def __init__(self, structure: Structure, space: SearchSpace, costs: CostModel) -> None:
        self.structure, self.space, self.costs = structure, space, costs
        self.dense = plan(structure, DENSE)
        self.contexts = {32: self.dense, 8: plan(structure, Policy.of(structure.takers(Weights(8))))}
        self.merged = {bits: merged_sums(context) for bits, context in self.contexts.items()}
        self.by_main = {kernel.main: kernel for kernel in structure.fusion.kernels}
        self.droppable: dict[str, list[str]] = {}   # node to the groups that take it along
        for group, branch in structure.branches.items():
            if Keep(0.0) not in space.options.get(f"{group}/channels", ()):
                continue
            for name in (*branch.nodes, branch.sum):
                self.droppable.setdefault(name, []).append(group)

    def terms(self) -> Terms:
        """Return the terms of relative time (1 = dense) and of relative size (1 = dense).

        Where a device cannot execute the dense model, its time is relative to the 8-bit model's.
        """
        time, size = [], []
        owners = self._owners()
        dense_costs = self.costs.predict(self.dense)
        integer_costs = self.costs.predict(self.contexts[8])
        whole = [next((costs[name] for costs in (dense_costs, integer_costs) if math.isfinite(costs[name])), 1.0)
                 for name in self.costs.latency_names]
        scale = [1.0 / max(value, 1e-12) for value in whole]
        for fused in self.structure.fusion.kernels:
            units = self._units(fused, owners.get(fused.main))
            if not units:
                continue
            kernels, spans, sizes = self._enumerate(fused, units)
            shape = tuple(len(self.space.options[unit]) for unit in units)
            time.append((units, self._price(kernels, spans, scale).reshape(shape)))
            if fused.layer is not None:
                size.append((units, np.array(sizes, dtype=np.float64).reshape(shape) / dense_costs["size"]))
        return time, size

    def _owners(self) -> dict[str, str]:
        """Kernels without weights to the layer whose format decides theirs: the last one before them."""
        graph = self.structure.graph
        owner_of_value: dict[str, str] = {}
        owners: dict[str, str] = {}
        layer_of = {layer.node: layer.name for layer in self.structure.layers}
        for node in graph.nodes:
            if node.name in layer_of:
                owner_of_value[node.name] = layer_of[node.name]
                continue
            sources = [name for name in node.inputs if name in owner_of_value]
            if sources:
                last = max(sources, key=lambda name: graph.position[name])
                owner_of_value[node.name] = owner_of_value[last]
                owners[node.name] = owner_of_value[last]
        return owners

    def _units(self, fused: FusedKernel, owner: str | None) -> tuple[str, ...]:
        """Free units that a kernel's cost depends on."""
        names: list[str] = []
        values = self.structure.coupling.values
        sources = [name for name in self.structure.graph.by_name[fused.main].inputs if name in values]
        for name in (*sources, fused.output):
            for axis in values.get(name, ()):
                names += [f"{segment.group}/channels" for segment in axis or ()]
        ends = (fused.main, *(merged[fused.main] for merged in self.merged.values() if fused.main in merged))
        names += [f"{group}/channels" for end in ends for group in self.droppable.get(end, ())]
        layer = fused.layer.name if fused.layer is not None else owner
        if fused.layer is not None:
            names.append(f"{layer}/rank")
        if layer is not None:
            names += [f"{layer}/sparsity", f"{layer}/weights"]
        return tuple(name for name in dict.fromkeys(names) if name in self.space.options)

    def _enumerate(
        self, fused: FusedKernel, units: Sequence[str]
    ) -> tuple[list[Kernel], list[int], list[float]]:
        """Kernels of every combination of options, how many each combination has, and stored bytes."""
        kernels: list[Kernel] = []
        spans, sizes = [], []
        for combination in itertools.product(*(self.space.options[unit] for unit in units)):
            chosen = {unit: c for unit, c in zip(units, combination, strict=True) if c is not None}
            found, stored = self._kernels(fused, chosen)
            kernels += found
            spans.append(len(found))
            sizes.append(stored)
        return kernels, spans, sizes

    def _kernels(self, fused: FusedKernel, chosen: Mapping[str, Choice]) -> tuple[list[Kernel], float]:
        bits = min((activation_bits(choice) for choice in chosen.values()), default=32)
        dropped = {unit.rpartition("/")[0] for unit, choice in chosen.items() if choice == Keep(0.0)}
        if dropped.intersection(self.droppable.get(fused.main, ())):
            return [], 0.0   # an activation that stays behind the sum is left out here
        kept = dict(self.dense.kept)
        for unit, choice in chosen.items():
            if isinstance(choice, Keep):
                group = self.structure.group(unit.rpartition("/")[0])
                kept[group.name] = kept_channels(group, choice.ratio)
        policy = Policy.of(chosen) if chosen else DENSE
        context = replace(self.contexts[bits], kept=kept, policy=policy)
        merged = self.merged[bits]
        if fused.layer is None:
            if fused.main in merged.values():
                return [], 0.0   # priced with the convolution that absorbs it
            return list(kernels_of(context, fused, None)), 0.0
        layer = plan_layer(self.structure, policy, kept, fused.layer)
        context = Plan(context.structure, policy, kept, (layer,), context.arithmetic)
        addition = self.by_main[merged[fused.main]] if fused.main in merged else None
        if addition is not None and dropped.intersection(self.droppable.get(addition.main, ())):
            addition = None
        return list(kernels_of(context, fused, addition)), float(layer.stored_bytes)

    def _price(self, kernels: list[Kernel], spans: list[int], scale: list[float]) -> np.ndarray:
        """Relative time of every combination, averaged over the devices."""
        distinct = list(dict.fromkeys(kernels))
        index = {kernel: position for position, kernel in enumerate(distinct)}
        total = np.zeros(len(spans))
        if not distinct:
            return total
        place = np.repeat(np.arange(len(spans)), spans)
        rows = np.array([index[kernel] for kernel in kernels], dtype=np.int64)
        for device, factor in zip(self.costs.devices, scale, strict=True):
            prices = kernel_prices(device, distinct)
            unit = factor / 1000.0 if device.tier != "T0" else factor
            total += np.bincount(place, weights=prices[rows] * unit, minlength=len(spans))
        return total / len(self.costs.devices)


Terms = tuple[list[tuple[tuple[str, ...], np.ndarray]], list[tuple[tuple[str, ...], np.ndarray]]]
_KEPT = 4   # factor graphs
_known: OrderedDict[tuple[int, ...], tuple[tuple[object, ...], Terms]] = OrderedDict()


def terms_of(structure: Structure, space: SearchSpace, costs: CostModel) -> Terms:
    """What `FactorGraph.terms` returns, which nobody may write into; those asked for last are kept.

    Of a deep network they take far longer than to solve, and a search solves tables that change while costs do not.
    """
    of = (structure, space, *costs.devices)
    key = tuple(map(id, of))
    if key not in _known:
        _known[key] = of, FactorGraph(structure, space, costs).terms()   # with what the numbers stand for: it lives on
    _known.move_to_end(key)
    while len(_known) > _KEPT:
        _known.popitem(last=False)
    return _known[key][1]


def kernel_prices(device: DeviceProfile, kernels: Sequence[Kernel]) -> np.ndarray:
    """Price kernels, shape (n,); those that the device cannot execute get a large finite price."""
    prices = kernel_costs(device, kernels)
    unknown = np.isinf(prices)
    dearest = float(prices[~unknown].max(initial=0.0)) or 1.0
    return np.where(unknown, UNKNOWN_PRICE * dearest, prices)


def exact_fronts(
    structure: Structure, space: SearchSpace, table: SensitivityTable, costs: CostModel,
    conditions: Conditions = NO_CONDITIONS,
) -> dict[float, ExactFront]:
    """Solve the whole (cost, loss) front for several mixes of relative time and relative size.

    Options that some target cannot execute are left out of every mix, and so are those that the conditions exclude.
    """
    time, size = terms_of(structure, space, costs)
    runnable = conditions.offered(space, runnable_options(structure, space, costs))
    losses = {unit: np.array(row, dtype=np.float64)[list(runnable[unit])] for unit, row in table.losses.items()}
    options = {unit: len(numbers) for unit, numbers in runnable.items()}
    fronts = {}
    for mix in MIXES:
        scaled = [_term(units, mix * values, runnable) for units, values in time if mix > 0.0]
        scaled += [_term(units, (1.0 - mix) * values, runnable) for units, values in size if mix < 1.0]
        problem = ExactProblem(options=options, losses=losses, costs=tuple(scaled))
        front = solve_front(problem, equal=conditions.shared)
        rows = np.empty_like(front.points.assignments)
        for place, unit in enumerate(front.points.units):
            rows[:, place] = np.array(runnable[unit])[front.points.assignments[:, place]]
        points = FrontPoints(front.points.units, front.points.costs, front.points.losses, rows)
        fronts[mix] = replace(front, points=points)
    return fronts


def _term(units: tuple[str, ...], values: np.ndarray, runnable: Mapping[str, Sequence[int]]) -> CostTerm:
    """A cost term over the options that can be executed."""
    return CostTerm(units, values[np.ix_(*(runnable[unit] for unit in units))])


def policy_of(space: SearchSpace, assignment: Mapping[str, int], model: str) -> Policy:
    """The policy of an assignment of option numbers, without what does not go together."""
    chosen = ((unit, space.options[unit][option]) for unit, option in assignment.items())
    kept = compatible({unit: choice for unit, choice in chosen if choice is not None})
    return Policy.of(kept, model=model, space=space.fingerprint)


def exact_seeds(
    structure: Structure,
    space: SearchSpace,
    table: SensitivityTable,
    costs: CostModel,
    count: int,
    limits: Sequence[tuple[str, str, float]] = (),
) -> Seeds:
    """Return about `count` policies, spread over the exact fronts evenly in the logarithm of their loss.

    Of each front only what is within the budgets on costs, with the whole plan's costs, is spread over. Half of the
    seeds lie just inside them: that is where a budget's answer is, and where the table, which knows no interactions,
    orders candidates least reliably.

    Args:
        structure: The model.
        space: Its space.
        table: Losses of its choices.
        costs: Target devices.
        count: Number of seeds beside the dense policy.
        limits: Budgets on costs, `(label, cost name, limit)`.
    """
    fronts = exact_fronts(structure, space, table, costs)
    found: dict[Policy, float] = {Policy.of({}, model=structure.fingerprint, space=space.fingerprint): 0.0}

    def affordable(point: FrontPoint) -> bool:
        policy = policy_of(space, point.assignment, structure.fingerprint)
        return not any(over > 0.0 for over in violations(limits, costs.predict(plan(structure, policy))).values())

    per_front = max(2, -(-count // len(fronts)))
    for front in fronts.values():
        inside = within(front.points, affordable) if limits else []
        points = spread_inside(inside, per_front) if inside else spread_by_loss(front.points, per_front)
        for point in points:
            found.setdefault(policy_of(space, point.assignment, structure.fingerprint), point.loss)
    gap = max(front.gap for front in fronts.values())
    return Seeds(tuple(found), gap, tuple(found.values()))


def within(points: Sequence[FrontPoint], affordable: Callable[[FrontPoint], bool]) -> list[FrontPoint]:
    """The points of a front from the least loss on that is affordable.

    The cost that the front weighs falls as the loss rises, each of its parts only nearly so: the first affordable point
    is searched for by bisection, and what lies behind it may exceed a budget a little, which exploring screens.
    """
    ordered = sorted(points, key=lambda point: point.loss)
    return ordered[bisect.bisect_left(ordered, True, key=affordable):]


def spread_inside(points: Sequence[FrontPoint], count: int, ceiling: float = 1.0) -> list[FrontPoint]:
    """Pick points from the least loss on: half of them up to twice that loss, the others up to `ceiling` nats."""
    floor = max(points[0].loss, SMALLEST_LOSS)
    near = -(-count // 2)
    edge = EDGE * floor
    beyond = np.geomspace(edge, max(edge, ceiling), count - near + 1)[1:]
    return nearest_below(points, [*np.geomspace(floor, edge, near), *beyond])


def spread_by_loss(
    points: Sequence[FrontPoint], count: int, floor: float = SMALLEST_LOSS, ceiling: float = 1.0
) -> list[FrontPoint]:
    """Pick points whose losses are spread evenly on a logarithmic scale between `floor` and `ceiling` nats."""
    return nearest_below(points, np.geomspace(floor, ceiling, count))


def nearest_below(points: Sequence[FrontPoint], wanted: Iterable[float]) -> list[FrontPoint]:
    """For every loss the point that comes nearest without exceeding it; each once, none where all exceed it."""
    losses = np.array([point.loss for point in points])
    picked: dict[int, FrontPoint] = {}
    for loss in wanted:
        below = np.flatnonzero(losses <= loss)
        if len(below):
            index = int(below[np.argmax(losses[below])])
            picked.setdefault(index, points[index])
    return list(picked.values())
