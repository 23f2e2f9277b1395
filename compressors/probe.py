"""Probing channel groups: does the captured graph run with fewer of them, and does the user's own code?

The graph is run without arithmetic on fake tensors of the pruned sizes, with another share kept of every
group so that a wrong coupling cannot hide, and every value's shape is compared with the plan's. All groups
are tried at once; only where that fails they are halved to find the ones at fault, which are frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from paretopress.compressors.folding import folded_layers, pruned_state, remaining_state
from paretopress.compressors.network import Network, Part, runner, select
from paretopress.compressors.program import Program, Values
from paretopress.spaces.choices import Keep
from paretopress.spaces.coupling import ChannelGroup
from paretopress.spaces.errors import ParetopressError
from paretopress.spaces.graph import Node
from paretopress.spaces.plan import Plan, plan
from paretopress.spaces.policy import Policy

SHARES = (0.5, 0.75, 0.25, 0.6)

Try = Callable[[Sequence[ChannelGroup]], str]


def with_frozen(program: Program, reasons: Mapping[str, str]) -> Program:
    """The program with some groups frozen."""
    structure = program.structure
    groups = tuple(replace(g, frozen=g.frozen or reasons.get(g.name, "")) for g in structure.coupling.groups)
    return replace(program, structure=replace(structure, coupling=replace(structure.coupling, groups=groups)))


def probed(program: Program) -> Program:
    """The program with those groups frozen that its graph does not run without."""
    groups = [group for group in program.structure.coupling.groups if not group.frozen and group.size > 1]
    with FakeTensorMode():
        if _failure(program, ()):
            return program   # it computes with values, which fake tensors do not have
        reasons = failing(groups, lambda some: _failure(program, some))
    return with_frozen(program, reasons) if reasons else program


def own_code_failures(model: nn.Module, program: Program) -> dict[str, str]:
    """Groups that the user's own code does not run without, with the reason; their models run as captured.

    Args:
        model: The dense model; it is not changed.
        program: Its capture.
    """
    from paretopress.compressors.realise import realise

    def failure(some: Sequence[ChannelGroup]) -> str:
        planned = thinned(program, some)
        with torch.inference_mode():
            return realise(model, program, selected(program, planned, first_channels(planned))).delta.graph

    groups = [group for group in program.structure.coupling.groups if not group.frozen and group.size > 1]
    return failing(groups, failure)


def failing(groups: Sequence[ChannelGroup], failure: Try) -> dict[str, str]:
    """Find the groups at fault by halving, each with its reason."""
    reason = failure(groups) if groups else ""
    if not reason:
        return {}
    if len(groups) == 1:
        return {groups[0].name: reason}
    half = len(groups) // 2
    return failing(groups[:half], failure) | failing(groups[half:], failure)


def thinned(program: Program, groups: Sequence[ChannelGroup]) -> Plan:
    """A plan that keeps another share of every group."""
    shares = {group.name: SHARES[index % len(SHARES)] for index, group in enumerate(groups)}
    counts = {g.name: min(g.size - 1, max(1, round(shares[g.name] * g.size))) for g in groups}
    return plan(program.structure, Policy.of({f"{g.name}/channels": Keep(counts[g.name] / g.size) for g in groups}))


def first_channels(planned: Plan) -> dict[str, Tensor]:
    """The first channels of every group that a plan prunes."""
    groups = planned.structure.coupling.groups
    return {g.name: torch.arange(planned.kept[g.name]) for g in groups if 0 < planned.kept[g.name] < g.size}


def selected(program: Program, planned: Plan, selection: Mapping[str, Tensor]) -> Network:
    """The network of a plan whose tensors only lose channels, without compensation.

    Args:
        program: The captured model.
        planned: The plan.
        selection: Kept channels of every group that it prunes.
    """
    folded, structure = folded_layers(program), program.structure
    parts = {}
    for layer_plan in planned.layers:
        layer = layer_plan.layer
        weight, bias = folded[layer.node]
        own = structure.weight_axes(layer)
        kept = select(bias, own[:1], selection) if layer.frozen or layer.takes_bias else None
        parts[layer.node] = (Part(select(weight, own, selection), kept),)
    state = pruned_state(program.under(planned.structure), selection)
    return Network(planned, parts, state, {}, selection, folded=True)


def _failure(program: Program, groups: Sequence[ChannelGroup]) -> str:
    planned = thinned(program, groups)
    network = _shapes_only(program, planned)
    run = runner(program, network)

    def evaluate(node: Node, values: Values) -> Any:  # noqa: ANN401
        value = run(node, values)
        if isinstance(value, Tensor) and node.dtype and node.shape:
            expected = planned.shape(node.name)
            if tuple(value.shape[1:]) != expected[1:]:
                where = f"{node.short_op} in {node.module_path or 'the root module'}"
                raise ParetopressError(f"{where} makes {tuple(value.shape[1:])} of it instead of {expected[1:]}")
        return value

    graph = program.graph
    try:
        inputs = [_empty(graph.by_name[name].shape, getattr(torch, graph.by_name[name].dtype)) for name in graph.inputs]
        program.run(inputs, evaluate)
    except Exception as error:  # noqa: BLE001 - operators raise anything on sizes that they do not take
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"the captured graph does not run without some of them: {reason[:200]}"
    return ""


def _shapes_only(program: Program, planned: Plan) -> Network:
    parts = {}
    for layer_plan in planned.layers:
        dtype = program.state[layer_plan.layer.weight].dtype
        parts[layer_plan.layer.node] = (Part(_empty(layer_plan.shape, dtype), _empty(layer_plan.shape[:1], dtype)),)
    axes, state = program.structure.coupling.parameters, {}
    for name, tensor in remaining_state(program, folded=True).items():
        own = axes.get(name) or (None,) * tensor.ndim
        shape = tuple(planned.size(axis, size) for axis, size in zip(own, tensor.shape, strict=True))
        state[name] = _empty(shape, tensor.dtype)
    return Network(planned, parts, state, {}, {}, folded=True)


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype)
