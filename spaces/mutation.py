"""Operators that change a value in place, rewritten to the form that returns a new value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from paretopress.spaces.errors import UnsupportedModelError
from paretopress.spaces.graph import Node, Ref

# In eval mode these return their input itself, although their schema does not say so.
_SAME_VALUE = ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")


def without_mutation(nodes: Sequence[Node], places: Mapping[str, str]) -> tuple[Node, ...]:
    """Return the nodes with every in-place operator in its functional form.

    Later readers of the changed value read the operator's result instead, so that every value of
    the graph is written once.

    Args:
        nodes: The captured nodes in execution order.
        places: Node name to `FILE:LINE` of the user's code, for messages.

    Raises:
        UnsupportedModelError: The model changes its inputs, parameters or buffers, or changes a value
            in place of which another view is read later.
    """
    storage: dict[str, str] = {}    # node to the node that made the memory its value lives in
    successor: dict[str, str] = {}  # changed value to the operator that changed it
    last_read = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    result: list[Node] = []
    for index, original in enumerate(nodes):
        node = _redirect(original, successor)
        target = _changed_value(node)
        storage[node.name] = node.name
        if target is not None:
            _check(node, target, storage, places)
            views = [name for name, owner in storage.items() if owner == storage[target]]
            if any(last_read.get(name, -1) > index and _latest(name, successor) != target for name in views):
                reason = f"{node.short_op} changes a value in place while another view of it is read later"
                raise UnsupportedModelError(reason + _at(node, places))
            storage[node.name] = storage[target]
            successor[target] = node.name
            node = _functional(node, places)
        elif _is_view(node):
            storage[node.name] = storage[node.inputs[0]]
        result.append(node)
    return tuple(result)


def without_dead_code(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Return the nodes whose values reach the output, and all inputs, parameters and constants."""
    needed: set[str] = set()
    kept: list[Node] = []
    for node in reversed(nodes):
        if node.op in ("input", "parameter", "constant", "output") or node.name in needed:
            needed.update(node.inputs)
            kept.append(node)
    return tuple(reversed(kept))


def _latest(name: str, successor: Mapping[str, str]) -> str:
    while name in successor:
        name = successor[name]
    return name


def _redirect(node: Node, successor: Mapping[str, str]) -> Node:
    if not any(name in successor for name in node.inputs):
        return node

    def follow(value: Any) -> Any:  # noqa: ANN401 - arguments have any type
        if isinstance(value, Ref):
            return Ref(_latest(value.node, successor))
        return [follow(item) for item in value] if isinstance(value, list) else value

    inputs = tuple(dict.fromkeys(_latest(name, successor) for name in node.inputs))
    arguments = {name: follow(value) for name, value in node.arguments.items()}
    return replace(node, inputs=inputs, arguments=arguments)


def _overload(op: str) -> torch._ops.OpOverload | None:
    namespace, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), name, None) if namespace not in ("python", op) else None
    return getattr(packet, overload, None) if packet is not None else None


def _changed_value(node: Node) -> str | None:
    """The node whose value an operator changes in place, or None."""
    overload = _overload(node.op)
    for argument in overload._schema.arguments if overload is not None else ():
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.arguments.get(argument.name)
            if isinstance(value, Ref):
                return value.node
    return None


def _is_view(node: Node) -> bool:
    """Whether a node's value may live in the memory of its first input."""
    if not node.inputs:
        return False
    if node.short_op in _SAME_VALUE or node.op.endswith("operator.getitem"):
        return True
    overload = _overload(node.op)
    arguments = overload._schema.arguments if overload is not None else ()
    return any(argument.alias_info is not None for argument in arguments)


def _check(node: Node, target: str, storage: Mapping[str, str], places: Mapping[str, str]) -> None:
    owner = storage[target]
    if owner not in places:   # an input, parameter, buffer or constant
        change = f"{node.short_op} writes to {owner}{_at(node, places)}"
        raise UnsupportedModelError(f"the model changes its own inputs or state in eval mode: {change}")


def _functional(node: Node, places: Mapping[str, str]) -> Node:
    namespace, name, overload = node.op.split(".")
    op = f"{namespace}.{name.removesuffix('_')}.{overload}"
    functional = _overload(op) if name.endswith("_") else None
    if functional is None:
        reason = f"{name} changes a value in place and has no functional form"
        raise UnsupportedModelError(reason + _at(node, places))
    # The two forms take the same arguments in the same order, sometimes under other names.
    names = [argument.name for argument in functional._schema.arguments]
    return replace(node, op=op, arguments=dict(zip(names, node.arguments.values(), strict=True)))


def _at(node: Node, places: Mapping[str, str]) -> str:
    return f" at {places[node.name]}" if places.get(node.name) else ""
