"""Which coupling rule an operator has. Unknown operators freeze what they touch and say so."""

from __future__ import annotations

from collections.abc import Callable

from paretopress.spaces import coupling_elementwise, coupling_layers, coupling_parts, coupling_shapes
from paretopress.spaces.coupling import Axis, CouplingBuilder, where
from paretopress.spaces.graph import Node

Rule = Callable[[CouplingBuilder, Node], tuple[Axis, ...]]
_SPATIAL = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_", "_upsample_", "grid_sampler")
_CREATES = frozenset(("arange", "scalar_tensor", "tensor", "rand", "randn", "eye", "linspace"))
_INTEGERS = ("int", "uint", "bool")


def apply_rule(builder: CouplingBuilder, node: Node) -> None:
    """Give `node` its axes and join, divide or freeze groups by its operator's rule."""
    if node.op in ("parameter", "constant") or (node.inputs and builder.weights.issuperset(node.inputs)):
        builder.weights.add(node.name)
    if node.op in ("input", "constant"):
        builder.values[node.name] = (None,) * len(node.shape)
    elif node.op == "parameter":
        if node.target not in builder.parameters:
            fixed = node.dtype.startswith(_INTEGERS) or node.target in builder.fixed
            builder.parameters[node.target] = (None,) * len(node.shape) if fixed else builder.fresh(node.shape)
        builder.values[node.name] = builder.parameters[node.target]
    elif node.op == "output":
        for name in node.inputs:
            builder.freeze_all(builder.axes(builder.graph.by_name[name]), "it reaches the model's output")
    else:
        axes = _rule_for(node)(builder, node)
        if node.dtype and len(axes) != len(node.shape):
            builder.freeze_all(axes, f"{where(node)} has a rule for other dimensions")
            axes = (None,) * len(node.shape)
        builder.values[node.name] = axes


_FAMILIES = (coupling_elementwise, coupling_layers, coupling_parts, coupling_shapes)
_RULES: dict[str, Rule] = {name: rule for family in _FAMILIES for name, rule in family.RULES.items()}


def _rule_for(node: Node) -> Rule:
    if node.op.startswith("python."):
        return coupling_parts.getitem if node.op.endswith(".getitem") else _no_tensor
    name = node.short_op
    if name in _RULES:
        return _RULES[name]
    if name.startswith(_SPATIAL):
        return coupling_elementwise.spatial
    return _no_tensor if name.startswith("sym_") or name in _CREATES else _unknown


def _no_tensor(_builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    return (None,) * len(node.shape)


def _unknown(builder: CouplingBuilder, node: Node) -> tuple[Axis, ...]:
    reason = f"operator {where(node)} has no channel rule"
    for name in node.inputs:
        builder.freeze_all(builder.axes(builder.graph.by_name[name]), reason)
        for axes in builder.lists.get(name, ()):
            builder.freeze_all(axes, reason)
    return (None,) * len(node.shape)
