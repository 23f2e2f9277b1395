"""A reference for channel removal that shares nothing with the analysis: the dense graph over values with presence.

Every value carries, element for element, whether it still exists (1) or is removed (0). Removal starts at the
parameters; presence then travels by its own rules. Operators that move data move presence alike; element-wise
operators intersect it; products multiply by it (a removed channel is zero at every consumer) and check that both
sides agree on what is removed; norms, means and softmax run over the entries that exist. Scales of attention stay
those of the dense model. An operator without a rule that meets a removed element is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from zoo.partial import ConflictError, NoRuleError, Partial, call, is_partial, partial, value_of
from zoo.rules import RULES, SHAPE_ONLY

from paretopress.compressors.program import Program, resolve
from paretopress.spaces.graph import Node, Ref

__all__ = ["ConflictError", "NoRuleError", "Partial", "evaluate"]


def evaluate(
    program: Program,
    inputs: Sequence[Tensor],
    presence: Mapping[str, Tensor],
    zeros: Mapping[str, Sequence[tuple[int, Tensor]]] | None = None,
) -> list[Any]:
    """Return the output nodes' values of the dense graph with some parameters' entries removed.

    Args:
        program: The captured dense model, all tensors in float64.
        inputs: One tensor per input node.
        presence: State name to 1 where an entry of that parameter exists and 0 where it is removed.
        zeros: Node to the dimensions and positions along them that are zero in its value, though they exist.

    Returns:
        For every output a tensor, or a `Partial` where channels of the output itself are removed.

    Raises:
        NoRuleError: A removed entry reached an operator that no rule describes.
        ConflictError: The parameters that lose entries do not fit together.
    """
    values: dict[str, Any] = dict(zip(program.graph.inputs, inputs, strict=True))
    for node in program.graph.nodes:
        if node.op in ("parameter", "constant"):
            tensor = program.state[node.target]
            values[node.name] = partial(tensor, presence[node.target]) if node.target in presence else tensor
        elif node.op not in ("input", "output"):
            values[node.name] = _evaluate(node, values)
        for dimension, positions in (zeros or {}).get(node.name, ()):
            values[node.name] = _with_zeros(values[node.name], dimension, positions)
    return [values[name] for name in program.graph.outputs]


def _with_zeros(item: Any, dimension: int, positions: Tensor) -> Any:
    if isinstance(item, Partial):
        return Partial(_with_zeros(item.value, dimension, positions), item.present)
    return item.index_fill(dimension, positions, 0)


def _evaluate(node: Node, values: Mapping[str, Any]) -> Any:
    function = resolve(node.op)
    arguments = {name: _fill(value, values) for name, value in node.arguments.items()}
    if not any(is_partial(item) for item in arguments.values()):
        return call(function, node, arguments)
    name = node.short_op
    if name in SHAPE_ONLY:
        return call(function, node, {key: value_of(item) for key, item in arguments.items()})
    if name not in RULES:
        raise NoRuleError(f"{node.name}: no rule for {node.op}")
    try:
        return RULES[name](function, node, arguments)
    except ConflictError as error:
        raise ConflictError(f"{node.name} in {node.module_path or 'the root module'}: {error}") from None


def _fill(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Ref):
        return values[value.node]
    return [_fill(item, values) for item in value] if isinstance(value, list) else value
