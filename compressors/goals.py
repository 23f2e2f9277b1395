"""What a layer's output should add up to, where it goes into a residual sum or stands before a dropped branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from paretopress.compressors.network import Selection, select
from paretopress.compressors.program import Program, call
from paretopress.compressors.resized_arguments import argument_changes
from paretopress.spaces.arithmetic import moves_data
from paretopress.spaces.coupling import Axis
from paretopress.spaces.fusion import ACTIVATIONS, is_residual_sum
from paretopress.spaces.graph import Graph
from paretopress.spaces.plan import Plan
from paretopress.spaces.structure import Structure


@dataclass(frozen=True, slots=True)
class Goal:
    """The dense value that a layer's folded output, together with a shortcut, should equal.

    Attributes:
        value: Node of the dense graph: the residual sum, or the last of the dropped sums behind it that
            the layer now stands in for.
        shortcut: The other operand of the sum that is left, `""` where there is none.
        stands_in: Whether `value` is a sum that was dropped.
    """

    value: str
    shortcut: str
    stands_in: bool

    def target(
        self, dense: Mapping[str, Tensor], shortcut: Tensor | None, axes: Sequence[Axis], selection: Selection
    ) -> Tensor:
        """What the layer's output should be.

        Args:
            dense: Values of the dense model.
            shortcut: Value of the shortcut in the model in the making, None where there is none.
            axes: Of the value's dimensions: not only the layer's own outputs may be pruned, but what it is applied
                to at every position as well.
            selection: Channels kept of every pruned group.
        """
        wanted = select(dense[self.value], axes, selection)
        return wanted if shortcut is None else wanted - shortcut


def layer_goals(dense: Graph, structure: Structure) -> dict[str, Goal]:
    """Return the goals of the layers that have one, by the layer's node.

    Args:
        dense: Graph of the dense model.
        structure: What is left of it.
    """
    folds = {layer.node: name for name, layer in structure.fusion.folds.items()}
    goals: dict[str, Goal] = {}
    for layer in structure.layers:
        shortcut, value = "", folds.get(layer.node, layer.node)
        reader = _only_reader(structure.graph, value)
        if reader and is_residual_sum(structure.graph, structure.graph.by_name[reader]):
            others = [name for name in structure.graph.by_name[reader].inputs if name != value]
            if len(others) != 1 or not _known_before(structure.graph, others[0], layer.node):
                continue
            shortcut, value = others[0], reader
        last = _last_replaced(dense, structure, value)
        if last or shortcut:
            goals[layer.node] = Goal(last or value, shortcut, bool(last))
    return goals


def _known_before(graph: Graph, name: str, node: str) -> bool:
    """Whether a value is computed before a node, or only moved after it from one that is."""
    while graph.position[name] > graph.position[node]:
        if not moves_data(graph.by_name[name]):
            return False
        name = graph.by_name[name].inputs[0]
    return True


def shortcut_value(program: Program, plan: Plan, name: str, values: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The value of a goal's shortcut, moved to its place already where the program has not come to that."""
    if name in values:
        return values[name]
    node = program.graph.by_name[name]
    source = node.inputs[0]
    moved = {**values, source: shortcut_value(program, plan, source, values)}
    return call(program, node, moved, argument_changes(plan, node))   # channels that a padding adds may be pruned


def _last_replaced(dense: Graph, structure: Structure, value: str) -> str:
    """The last dropped sum that a value, or the activation behind it, is read instead of; `""` for none.

    Only where nothing else reads the value: another reader wants it as it was.
    """
    reader = _only_reader(structure.graph, value)
    activated = reader if reader and structure.graph.by_name[reader].short_op in ACTIVATIONS else ""
    sums = [branch.sum for branch in structure.dropped]
    for name in filter(None, (activated, value)):
        chain = [replaced for replaced, by in structure.replaced.items() if by == name]
        candidates = [replaced for replaced in chain if replaced in sums]
        if not candidates:
            continue
        last = max(candidates, key=dense.position.__getitem__)
        earlier = [name, *(r for r in chain if dense.position[r] < dense.position[last])]
        gone = {node for branch in structure.dropped for node in branch.nodes} | structure.replaced.keys()
        if all(user in gone for one in earlier for user in dense.users[one]):
            return last
    return ""


def _only_reader(graph: Graph, name: str) -> str:
    users = graph.users[name]
    return users[0] if len(users) == 1 else ""
