"""Arguments of captured operators that depend on channel counts, at their pruned values.

The capture holds the sizes that the user's code computed (those of views, splits, slices, fills); under a
plan they follow from the axes of what the operator reads and makes. Sizes that are computed while the
model runs (the batch) stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paretopress.spaces.coupling import Axis
from paretopress.spaces.coupling_parts import part_sizes
from paretopress.spaces.graph import Node, Ref
from paretopress.spaces.plan import Plan

Changes = Mapping[str, Any]


def argument_changes(plan: Plan, node: Node) -> Changes:
    """Return the arguments of an operator that a plan changes."""
    rule = _RULES.get(node.short_op)
    return rule(plan, node) if rule is not None and node.op.startswith("aten.") else {}


def _axes(plan: Plan, name: str) -> tuple[Axis, ...]:
    shape = plan.structure.graph.by_name[name].shape
    return plan.structure.coupling.values.get(name) or (None,) * len(shape)


def _sizes(plan: Plan, node: Node) -> Changes:
    """The sizes that a view, an expansion or a fill asks for."""
    argument = next((name for name in ("size", "shape") if name in node.arguments), "")
    asked, axes = node.arguments.get(argument), _axes(plan, node.name)
    if not isinstance(asked, list) or len(asked) != len(axes):
        return {}
    return {argument: [_resized(plan, size, axis) for size, axis in zip(asked, axes, strict=True)]}


def _resized(plan: Plan, size: Any, axis: Axis) -> Any:  # noqa: ANN401 - a number or a reference to one
    if axis is None or size == -1:
        return size
    if isinstance(size, Ref):   # the batch times something: what is left follows from the other sizes
        return -1
    return plan.size(axis, int(size))


def _unflatten(plan: Plan, node: Node) -> Changes:
    asked, axes = list(node.arguments["sizes"]), _axes(plan, node.name)
    start = int(node.arguments["dim"]) % (len(axes) - len(asked) + 1)
    own = axes[start : start + len(asked)]
    return {"sizes": [_resized(plan, size, axis) for size, axis in zip(asked, own, strict=True)]}


def _layer_norm(plan: Plan, node: Node) -> Changes:
    count = len(node.arguments["normalized_shape"])
    return {"normalized_shape": list(plan.shape(node.name)[-count:])}


def _group_norm(plan: Plan, node: Node) -> Changes:
    return {"num_groups": int(node.arguments["num_groups"]) * plan.shape(node.name)[1] // node.shape[1]}


def convolution_groups(plan: Plan, node: Node) -> int:
    """Groups of a convolution whose weight is a parameter of the model."""
    groups, graph = int(node.arguments["groups"]), plan.structure.graph
    weight = node.arguments["weight"]
    if groups == 1 or not isinstance(weight, Ref):
        return groups
    shape, axes = graph.by_name[weight.node].shape, _axes(plan, weight.node)
    source = node.inputs[0]
    read = plan.size(_axes(plan, source)[1], graph.by_name[source].shape[1])
    if node.short_op.startswith("conv_transpose"):   # (in, out / groups): as many outputs per group as before
        return plan.size(_axes(plan, node.name)[1], node.shape[1]) // plan.size(axes[1], shape[1])
    return read // plan.size(axes[1], shape[1])


def _convolution(plan: Plan, node: Node) -> Changes:
    groups = convolution_groups(plan, node)
    return {"groups": groups} if groups != node.arguments["groups"] else {}


def _split(plan: Plan, node: Node) -> Changes:
    parts = plan.structure.coupling.lists.get(node.name)
    source = plan.structure.graph.by_name[node.inputs[0]]
    dim = int(node.arguments.get("dim") or 0) % len(source.shape)
    if not parts or _axes(plan, source.name)[dim] is None:
        return {}
    dense = part_sizes(node, source.shape[dim])
    sizes = [plan.size(part[dim], size) for part, size in zip(parts, dense, strict=True)]
    if "split_sizes" in node.arguments or isinstance(node.arguments.get("split_size"), list):
        return {"split_sizes" if "split_sizes" in node.arguments else "split_size": sizes}
    if len(set(sizes)) > 1 and sizes != dense:   # `program.call` knows that sizes replace a number of parts
        return {"split_sizes": sizes}
    return {"split_size": sizes[0]} if "split_size" in node.arguments else {}


def _slice(plan: Plan, node: Node) -> Changes:
    source = plan.structure.graph.by_name[node.inputs[0]]
    dim = int(node.arguments["dim"]) % len(source.shape)
    axis = _axes(plan, source.name)[dim]
    if axis is None or source.shape == node.shape:
        return {}
    size = source.shape[dim]
    if node.arguments.get("step", 1) != 1:   # whole runs of the step's length go, so it starts where it did
        return {"end": plan.size(axis, size)}
    start = int(node.arguments.get("start") or 0)
    start = min(max(start + size if start < 0 else start, 0), size)
    first, last = (plan.offset(axis, place) for place in (start, start + node.shape[dim]))
    return {"start": first, "length": last - first} if node.short_op == "narrow" else {"start": first, "end": last}


def _pad(plan: Plan, node: Node) -> Changes:
    """Amounts follow what is left of the constant channels; negative ones, what is left of the channels cut off."""
    source = plan.structure.graph.by_name[node.inputs[0]]
    amounts, old, new = list(node.arguments["pad"]), _axes(plan, source.name), _axes(plan, node.name)
    for index in range(len(amounts) // 2):
        place = len(source.shape) - 1 - index
        before, after = amounts[2 * index : 2 * index + 2]
        if old[place] is None or not (before or after):
            continue
        size, wanted = (plan.size(axes[place], one.shape[place]) for axes, one in ((old, source), (new, node)))
        head = plan.offset(new[place], before) if before > 0 else -plan.offset(old[place], -before)
        tail = size - plan.offset(old[place], source.shape[place] + after) if after < 0 else size + head - wanted
        amounts[2 * index : 2 * index + 2] = head, -tail
    return {"pad": amounts}


_RULES: dict[str, Callable[[Plan, Node], Changes]] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "expand", "broadcast_to"), _sizes),
    **dict.fromkeys(("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"), _sizes),
    "unflatten": _unflatten,
    "layer_norm": _layer_norm, "rms_norm": _layer_norm,
    "group_norm": _group_norm,
    **dict.fromkeys(("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"), _convolution),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "unsafe_split", "unsafe_chunk"), _split),
    "slice": _slice, "narrow": _slice,
    "pad": _pad, "constant_pad_nd": _pad,
}
