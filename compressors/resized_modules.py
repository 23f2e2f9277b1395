"""What changes about modules that are no layers of their own: tensors and the sizes that their code reads.

The user's code takes sizes from attributes (`num_heads`, `split_size`, `normalized_shape`, ...). An
attribute follows a size that the module asks for in a view or a split, where its dense value is that size.
Whether the guess is right, a run of the smaller model tells (`realise.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from paretopress.compressors.resized_arguments import argument_changes, convolution_groups
from paretopress.spaces.graph import Node
from paretopress.spaces.plan import Plan

_NORMS = {"batch_norm": "num_features", "layer_norm": "normalized_shape", "rms_norm": "normalized_shape",
          "group_norm": "num_channels", "instance_norm": "num_features"}
_WITHIN = ("head_dim", "head_size", "dim_head", "per_head", "proj_dim", "d_kv", "d_head", "size_per")
_READ = ("input_size", "embedding_dim")   # attributes of PyTorch's own modules that say what they read
_CONVOLUTIONS = ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d")

Resized = dict[str, tuple[dict[str, int], dict[str, tuple[int, ...]]]]


def resized_modules(plan: Plan) -> Resized:
    """Return the attributes and tensors that change, by the path of their module, in execution order."""
    graph, layers = plan.structure.graph, plan.structure.layers
    owned = {name for layer in layers if not layer.frozen for name in (layer.weight, layer.bias) if name}
    edited = {layer.name for layer in layers if not layer.frozen}
    found: Resized = {}
    nodes: dict[str, list[Node]] = {}
    for node in graph.operators():
        nodes.setdefault(node.module_path, []).append(node)
        if node.name in plan.structure.fusion.folds:
            continue
        attributes = _attributes_of_operator(plan, node)
        if attributes and node.module_path not in edited:
            _at(found, node.module_path)[0].update(attributes)
        for name in node.inputs:
            source = graph.by_name[name]
            if source.op == "parameter" and source.target not in owned:
                shape = _parameter_shape(plan, source)
                if shape != source.shape:
                    _at(found, source.target.rpartition(".")[0])[1][source.target] = shape
    for path, attributes in _guessed(plan, nodes):
        if path not in edited:
            known = found.get(path, ({}, {}))[0]
            _at(found, path)[0].update({name: size for name, size in attributes.items() if name not in known})
    return found


def _at(found: Resized, path: str) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    return found.setdefault(path, ({}, {}))


def _parameter_shape(plan: Plan, node: Node) -> tuple[int, ...]:
    axes = plan.structure.coupling.parameters.get(node.target) or (None,) * len(node.shape)
    return tuple(plan.size(axis, size) for axis, size in zip(axes, node.shape, strict=True))


def _attributes_of_operator(plan: Plan, node: Node) -> dict[str, int]:
    """Attributes of PyTorch's own modules, which have known meanings."""
    if not node.op.startswith("aten."):
        return {}
    name = node.short_op
    if name in _NORMS:
        place = -1 if name in ("layer_norm", "rms_norm") else 1
        channels = plan.shape(node.name)[place]
        if channels == node.shape[place]:
            return {}
        groups = argument_changes(plan, node).get("num_groups")
        return {_NORMS[name]: channels, **({} if groups is None else {"num_groups": groups})}
    if name in _CONVOLUTIONS:
        source = plan.structure.graph.by_name[node.inputs[0]]
        kept = {"in_channels": plan.shape(source.name)[1], "out_channels": plan.shape(node.name)[1],
                "groups": convolution_groups(plan, node)}
        dense = {"in_channels": source.shape[1], "out_channels": node.shape[1], "groups": node.arguments["groups"]}
        return {attribute: size for attribute, size in kept.items() if size != dense[attribute]}
    if name == "linear":
        source = plan.structure.graph.by_name[node.inputs[0]]
        pairs = {"in_features": source, "out_features": node}
        sizes = {key: (plan.shape(one.name)[-1], one.shape[-1]) for key, one in pairs.items() if len(one.shape) > 1}
        return {attribute: kept for attribute, (kept, dense) in sizes.items() if kept != dense}
    return {}


def _guessed(plan: Plan, nodes: Mapping[str, list[Node]]) -> Iterator[tuple[str, dict[str, int]]]:
    for path, sizes in plan.structure.sizes.items():
        run = nodes.get(path, [])
        if not run or not sizes:
            continue
        asked, seen, still = _observed(plan, run)
        found: dict[str, int] = {}
        for name, size in sizes.items():
            if any(word in name for word in _WITHIN) and size in still:
                continue
            if name in _READ:
                changed = {after for after in seen.get(size, set()) if after != size}
                after = changed.pop() if len(changed) == 1 else size
            else:
                after = asked.get(size, size)
            if after != size:
                found[name] = after
        if found:
            yield path, found


def _observed(plan: Plan, run: list[Node]) -> tuple[dict[int, int], dict[int, set[int]], set[int]]:
    """Dense size to pruned size: the last that an argument asks for, all of tensors; and sizes that stay."""
    graph, coupling = plan.structure.graph, plan.structure.coupling
    asked: dict[int, int] = {}
    seen: dict[int, set[int]] = {}
    still: set[int] = set()
    for node in run:
        asked.update(_pairs(node.arguments, argument_changes(plan, node)))
        for name in (node.name, *node.inputs):
            axes = coupling.values.get(name) or ()
            for axis, size in zip(axes, graph.by_name[name].shape, strict=False):
                if axis is None:
                    still.add(size)
                else:
                    seen.setdefault(size, set()).add(plan.size(axis, size))
    return asked, seen, still


def _pairs(arguments: Mapping[str, Any], changes: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    for name, changed in changes.items():
        before: Any = arguments.get(name)
        several = isinstance(before, list) and isinstance(changed, list)
        for one, other in zip(before, changed, strict=False) if several else ((before, changed),):
            if isinstance(one, int) and isinstance(other, int) and one > 0:
                yield one, other
