"""What `inspect` shows: layers, groups, options, what is frozen and why, and what budgets can reach."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from paretopress.compressors.probe import own_code_failures
from paretopress.evaluators.costs import integer_policy
from paretopress.evaluators.runtime_versions import device_notes
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.search.problem import Problem
from paretopress.search.reachability import reachable
from paretopress.spaces.arithmetic import INNER
from paretopress.spaces.choices import describe
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.coupling import ChannelGroup
from paretopress.spaces.documents import finite
from paretopress.spaces.kernels import CostView
from paretopress.spaces.layers import Layer
from paretopress.spaces.overview import OverviewNode, overview
from paretopress.spaces.plan import Plan
from paretopress.spaces.policy import DENSE

SCHEMA = 1
DENSE_MODEL, INTEGER_MODEL = "dense", "8 bits wherever they are offered"
Shares = Mapping[str, float]
"""Share of the predicted time of one inference by time objective: of every target that has one."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer: `shape` of its weight, MACs of one sample, bytes of its dense weight, share of the predicted time."""

    name: str
    kind: str
    shape: tuple[int, ...]
    macs: int
    bytes: int
    share: Shares
    end: str | None
    frozen: str | None


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A channel group: what is kept or removed as one is `inner` features; MACs, bytes and share of its producers."""

    name: str
    channels: int
    step: int
    inner: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    macs: int
    bytes: int
    share: Shares
    droppable: bool
    own_code: str | None
    frozen: str | None


@dataclass(frozen=True, slots=True)
class TimeRow:
    """Where the predicted time of a target goes that is no layer's, as shares, and which model is priced."""

    name: str
    model: str
    kernels: float
    conversions: float
    call: float


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A fused kernel of the drawn graph, an input or the output."""

    name: str
    kind: str
    operators: tuple[str, ...]
    layer: str | None
    shape: tuple[int, ...]
    weight: tuple[int, ...] | None
    groups: tuple[str, ...]
    share: Shares
    frozen: str | None


@dataclass(frozen=True, slots=True)
class Prices:
    """Shares of one target: by layer, and by the node that a kernel makes where that is no layer or one of its uses."""

    row: TimeRow
    by_layer: Shares
    by_node: Shares


def inspection(problem: Problem) -> dict[str, Any]:
    """Return a model's structure and space as plain data: the `--json` of `inspect`, see `docs/inspect.md`.

    `objectives` holds, by cost, `minimum`: the lowest predicted value that is reachable, each cost on its own;
    `baseline`: the dense model's; `limit`: the budget; `satisfiable`: whether the minimum meets it.
    """
    structure, space = problem.program.structure, problem.space
    prices = _prices(problem)
    layers = {row.name: row for row in _layer_rows(problem, prices)}
    own_code = own_code_failures(problem.model, problem.program)
    groups = [_group_row(problem, group, layers, own_code) for group in structure.coupling.groups]
    drawn = overview(structure)
    anchors = [f"{device.id}: {device.anchors}" for device in problem.costs.devices if device.anchors]
    return {
        "schema": SCHEMA,
        "layers": [_plain(row) for row in layers.values()],
        "groups": [_plain(row) for row in groups],
        "other_time": [_plain(price.row) for price in prices],
        "options": {unit: ["dense" if c is None else describe(c) for c in options]
                    for unit, options in space.options.items()},
        "dropped": [{"unit": unit, "choice": choice, "reason": reason} for unit, choice, reason in space.dropped],
        "size_only": dict(problem.size_only),
        "space_log10": space.log10_size,
        "objectives": feasibility(problem),
        "targets": [{"id": d.id, "tier": d.tier, "runs_here": d.runs_here()} for d in problem.costs.devices],
        "graph": {
            "nodes": [_plain(_node_row(problem, node, prices)) for node in drawn.nodes],
            "edges": [_plain(edge) for edge in drawn.edges],
        },
        "notes": [*structure.graph.notes, *anchors, *device_notes(problem.costs.devices), *_refusals(problem)],
    }


def _plain(row: Any) -> dict[str, Any]:  # noqa: ANN401 - any of the rows
    """A row as JSON holds it: lists for tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(row).items()}


def _layer_rows(problem: Problem, prices: Iterable[Prices]) -> list[LayerRow]:
    structure = problem.program.structure
    macs: Counter[str] = Counter()
    for kernel in cost_view(problem.plan(DENSE)).kernels:
        macs[kernel.layer] += kernel.macs
    return [
        LayerRow(
            layer.name, layer.kind.value, layer.shape, macs[layer.name], _weight_bytes(layer, structure.state),
            {price.row.name: price.by_layer[layer.name] for price in prices if layer.name in price.by_layer},
            structure.ends.get(layer.name), layer.frozen or None,
        )
        for layer in structure.layers
    ]


def _weight_bytes(layer: Layer, state: Mapping[str, tuple[tuple[int, ...], int]]) -> int:
    width = state[layer.weight][1] if layer.weight in state else 4
    return width * layer.out_channels * layer.columns


def _group_row(
    problem: Problem, group: ChannelGroup, layers: Mapping[str, LayerRow], own_code: Mapping[str, str]
) -> GroupRow:
    makers = [layers[name] for name in group.producers if name in layers]
    names = dict.fromkeys(name for row in makers for name in row.share)
    return GroupRow(
        group.name, group.size, group.step, group.inner, group.producers, group.consumers,
        sum(row.macs for row in makers), sum(row.bytes for row in makers),
        {name: sum(row.share.get(name, 0.0) for row in makers) for name in names},
        group.name in problem.program.structure.branches, own_code.get(group.name),
        problem.program.structure.units[f"{group.name}/channels"] or None,
    )


def _node_row(problem: Problem, node: OverviewNode, prices: Iterable[Prices]) -> NodeRow:
    layer = problem.program.structure.layer(node.layer) if node.layer else None
    shares: dict[str, float] = {}
    for price in prices:
        share = price.by_node.get(node.name, price.by_layer.get(node.layer))
        shares |= {} if share is None else {price.row.name: share}
    return NodeRow(
        node.name, node.kind, node.operators, node.layer or None, node.shape, layer.shape if layer else None,
        node.groups, shares, layer.frozen or None if layer else None,
    )


def feasibility(problem: Problem) -> dict[str, dict[str, Any]]:
    """What budgets can reach: per cost the lowest predicted value, the dense model's, the limit and whether it is met.

    In ms, bytes, multiply-accumulates or microjoules; None where unknown.
    """
    lowest = reachable(problem)
    limits = {name: limit for _, name, limit in problem.limits_without_accuracy().costs}
    return {
        name: {
            "minimum": finite(lowest[name]), "baseline": finite(value), "limit": limits.get(name),
            "satisfiable": None if name not in limits else bool(lowest[name] <= limits[name]),
        }
        for name, value in problem.baseline.items()
    }


def _refusals(problem: Problem) -> list[str]:
    """Which targets cannot execute the dense model, and which not the 8-bit model either."""
    dense = problem.costs.refusals(problem.plan(DENSE))
    integer = problem.costs.refusals(problem.plan(integer_policy(problem.space))) if dense else {}
    return [*(f"{DENSE_MODEL}: {line}" for line in dense.values()),
            *(f"{INTEGER_MODEL}: {line}" for line in integer.values())]


def _prices(problem: Problem) -> list[Prices]:
    """Where the time of each target goes: in the dense model, or in the 8-bit one where only that runs.

    A target that executes neither has none.
    """
    plans = {DENSE_MODEL: problem.plan(DENSE), INTEGER_MODEL: problem.plan(integer_policy(problem.space))}
    found = []
    for device, name in zip(problem.costs.devices, problem.costs.latency_names, strict=True):
        runnable = next((pair for pair in plans.items() if _executes(problem, device, pair[1])), None)
        if runnable is not None:
            found.append(priced(device, name, runnable[0], cost_view(runnable[1])))
    return found


def _executes(problem: Problem, device: DeviceProfile, planned: Plan) -> bool:
    return device.id not in problem.costs.refusals(planned)


def priced(device: DeviceProfile, name: str, model: str, view: CostView) -> Prices:
    """The shares of a target's time; those of all kernels, the conversions and the call of the runtime add up to 1."""
    total = device.relative_cost(view) or 1.0
    by_layer: defaultdict[str, float] = defaultdict(float)
    by_node: defaultdict[str, float] = defaultdict(float)
    uses = Counter(kernel.layer for kernel in view.kernels if not kernel.name.endswith(INNER))
    for kernel, price in zip(view.kernels, device.kernel_cost(view.kernels), strict=True):
        if kernel.layer:
            by_layer[kernel.layer] += float(price) / total
        if not kernel.layer or uses[kernel.layer] > 1:   # a layer that is used twice has two nodes
            by_node[kernel.name] += float(price) / total
    others = sum(by_node[kernel.name] for kernel in view.kernels if not kernel.layer)
    conversions = float(device.boundary_cost(view.boundaries).sum()) / total
    call = max(0.0, 1.0 - sum(by_layer.values()) - others - conversions)
    return Prices(TimeRow(name, model, others, conversions, call), dict(by_layer), dict(by_node))
