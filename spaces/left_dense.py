"""Weights that belong to no layer: they may lose channels, but have no rank, no widths and no compensation. And why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paretopress.spaces.graph import Graph, Node
from paretopress.spaces.structure import Structure

if TYPE_CHECKING:
    from paretopress.spaces.plan import Plan

_COMBINED = ("add", "sub", "mul", "div", "cat", "expand", "stack", "repeat")
_VOLUMES = "channels only: there is no compressed form of 3-d convolutions here ({op})"
_RECURRENT = "channels only: one operator ({op}) holds its gates and steps, so that no part of it can be replaced"
_REASONS = {
    **dict.fromkeys(("conv3d", "conv_transpose3d", "convolution"), _VOLUMES),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"), _RECURRENT),
    "bilinear": "its columns are products of two inputs ({op}), which least squares is not set up for",
    **dict.fromkeys(_COMBINED[:4], "a parameter that is combined element by element ({op})"),
    **dict.fromkeys(_COMBINED[4:], "a parameter that is joined to activations ({op})"),
    **dict.fromkeys(
        ("matmul", "mm", "bmm", "baddbmm", "einsum"),
        "a parameter in a product ({op}) that is no linear layer of the activations",
    ),
}
_OTHER = "a parameter that {op} in {where} reads: only convolutions, linear layers and embeddings have compressed forms"
_COMPUTED = "the layer's weight is computed from it ({op}), so that it cannot be replaced by a stored one"
_NORMS = ("batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm")


def left_dense(structure: Structure) -> list[tuple[str, str, str]]:
    """Return `(unit, "*", reason)` for every parameter that is a weight and no layer's."""
    graph = structure.graph
    owned = {name for layer in structure.layers for name in (layer.weight, layer.bias)}
    found: dict[str, str] = {}
    for node in graph.operators():
        for name in node.inputs:
            source = graph.by_name[name]
            is_ours = source.op == "parameter" and source.target not in owned and "float" in source.dtype
            if is_ours and _is_weight(node, source):
                found.setdefault(source.target, _reason(graph, node))
    return [(f"{target}/weights", "*", reason) for target, reason in found.items()]


def _is_weight(node: Node, parameter: Node) -> bool:
    """Whether a parameter is more than a scale or shift of channels, whatever shape it is broadcast from."""
    sizes = [size for size in parameter.shape if size > 1 or node.short_op not in _COMBINED]
    return len(sizes) > 1 and node.short_op not in _NORMS


def _reason(graph: Graph, node: Node) -> str:
    if _feeds_a_weight(graph, node):
        return _COMPUTED.format(op=node.short_op)
    return _REASONS.get(node.short_op, _OTHER).format(op=node.short_op, where=node.module_path or "the root module")


def _feeds_a_weight(graph: Graph, node: Node) -> bool:
    """Whether everything a node reads is fixed, so that it makes a weight and no activation."""
    sources = [graph.by_name[name] for name in node.inputs]
    return all(source.op in ("parameter", "constant") for source in sources) and bool(graph.users[node.name]) and any(
        graph.by_name[user].short_op.startswith(("conv", "linear", "addmm")) for user in graph.users[node.name]
    )


def untouched(planned: Plan) -> list[tuple[str, str]]:
    """Return `(unit, reason)` for every weight of a model that a plan leaves as it is."""
    structure, reason = planned.structure, "the policy has no choice for it"
    found = [(f"{one.layer.name}/weights", one.layer.frozen or reason) for one in planned.layers
             if not one.touched and one.shape == one.layer.shape]
    return [*found, *((unit, why) for unit, _, why in left_dense(structure))]
