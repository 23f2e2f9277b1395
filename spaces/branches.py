"""Residual branches that can be dropped whole, and what is left of a model without them.

Dropping a branch turns `relu(x + f(x))` into `relu(x)`, and into `x` where `x` is already the output of a
ReLU: depth pruning of residual networks (Veit et al., "Residual Networks Behave Like Ensembles of
Relatively Shallow Networks", NeurIPS 2016: deleting single blocks hardly hurts them).
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from paretopress.spaces.coupling import ChannelGroup, Coupling
from paretopress.spaces.fusion import ACTIVATIONS, Fusion, is_residual_sum
from paretopress.spaces.graph import Graph, Node, Ref
from paretopress.spaces.layers import Layer

_GIVEN = ("input", "parameter", "constant", "output")
_NORMS = ("batch_norm", "layer_norm", "group_norm")
# These move values or drop them; zeros that paddings add pass a ReLU unchanged too.
_VALUES_STAY = frozenset((
    "slice", "pad", "constant_pad_nd", "max_pool1d", "max_pool2d", "view", "reshape", "flatten", "squeeze",
    "unsqueeze", "permute", "transpose", "contiguous", "clone", "alias", "detach", "dropout",
))


@dataclass(frozen=True, slots=True)
class Branch:
    """The inside of a residual block.

    Attributes:
        group: The channel group inside whose `Keep(0.0)` drops the branch.
        sum: Node of the residual sum.
        tail: The operand of the sum that the branch makes.
        shortcut: The other operand: what is left.
        nodes: Operators that only the branch needs, in execution order, the sum not among them.
        layers: Layers among them by name, with the shapes of their dense weights.
        norms: Module paths of the normalisations among them.
        state: State names that only the branch needs.
    """

    group: str
    sum: str
    tail: str
    shortcut: str
    nodes: tuple[str, ...]
    layers: Mapping[str, tuple[int, ...]]
    norms: tuple[str, ...]
    state: frozenset[str]


def find_branches(
    graph: Graph,
    layers: Iterable[Layer],
    coupling: Coupling,
    fusion: Fusion,
    state: Collection[str],
    aliases: Mapping[str, str],
) -> dict[str, Branch]:
    """Return the droppable branches of a model by the name of the group inside; one per sum at most."""
    groups = {name: group for group in coupling.groups if not group.frozen for name in group.consumers}
    by_output = {layer.node: layer for layer in layers}
    by_output |= dict(fusion.folds)
    shared = {name for pair in aliases.items() if pair[0] != pair[1] for name in pair}
    carriers = _carriers(graph, coupling)
    found: dict[str, Branch] = {}
    for node in graph.operators():
        if not is_residual_sum(graph, node) or "output" in graph.users[node.name] or len(node.inputs) != 2:
            continue
        branches = []
        for tail, shortcut in (node.inputs, node.inputs[::-1]):
            last = by_output.get(_before_dropout(graph, tail))
            group = groups.get(last.name) if last is not None else None
            if last is None or group is None or not _reads_only(coupling, last, group):
                continue
            branch = _branch(graph, by_output, carriers, group, node.name, tail, shortcut)
            if branch is not None and not branch.state & shared:
                branches.append(_with_counters(branch, state))
        if branches:
            largest = max(branches, key=lambda branch: len(branch.nodes))
            found[largest.group] = largest
    return found


def _carriers(graph: Graph, coupling: Coupling) -> dict[str, set[str]]:
    """The values that have channels of each group, parameters left out."""
    found: dict[str, set[str]] = {}
    for name, axes in coupling.values.items():
        if graph.by_name[name].op not in ("parameter", "output"):
            for axis in axes:
                for segment in axis or ():
                    found.setdefault(segment.group, set()).add(name)
    return found


def _before_dropout(graph: Graph, name: str) -> str:
    while graph.by_name[name].short_op == "dropout":
        name = graph.by_name[name].inputs[0]
    return name


def _reads_only(coupling: Coupling, layer: Layer, group: ChannelGroup) -> bool:
    axes = coupling.parameters.get(layer.weight) or (None,)
    return all(segment.group == group.name for segment in axes[1] or ()) if len(axes) > 1 else False


def _branch(
    graph: Graph,
    by_output: Mapping[str, Layer],
    carriers: Mapping[str, set[str]],
    group: ChannelGroup,
    addition: str,
    tail: str,
    shortcut: str,
) -> Branch | None:
    """The branch that ends in `tail`, None where something in it is needed elsewhere or not its own."""
    inside = _needed_only_for(graph, tail, addition)
    nodes = [graph.by_name[name] for name in sorted(inside, key=graph.position.__getitem__)]
    parameters = {name for node in nodes for name in node.inputs if graph.by_name[name].op == "parameter"}
    holders = [node for node in nodes if parameters.intersection(node.inputs)]
    layers = [by_output[node.name] for node in holders if node.name in by_output and node.short_op not in _NORMS]
    norms = [node for node in holders if node.short_op in _NORMS]
    names = {layer.name for layer in layers}
    own = all(set(graph.users[name]) <= inside for name in parameters)
    if not own or len(layers) + len(norms) != len(holders) or not all(layer.is_droppable for layer in layers):
        return None
    if not names.issuperset((*group.producers, *group.consumers)) or len(group.consumers) != 1:
        return None
    entries = {name for node in nodes for name in node.inputs} - inside - parameters
    if not carriers.get(group.name, set()) <= inside or not _among_ancestors(graph, shortcut, entries):
        return None
    targets = {graph.by_name[name].target for name in parameters}
    paths = tuple(_norm_path(graph, node) for node in norms)
    if not all(paths):
        return None
    ordered = tuple(node.name for node in nodes)
    shapes = {layer.name: layer.shape for layer in layers}
    return Branch(group.name, addition, tail, shortcut, ordered, shapes, paths, frozenset(targets))


def _norm_path(graph: Graph, node: Node) -> str:
    """Path of the module that holds a normalisation's tensors."""
    owned = [graph.parameter(node, name) for name in ("weight", "bias", "running_mean", "running_var")]
    paths = {parameter.target.rpartition(".")[0] for parameter in owned if parameter is not None}
    return paths.pop() if len(paths) == 1 else ""


def _with_counters(branch: Branch, state: Collection[str]) -> Branch:
    """The branch with the batch counters of its normalisations, which no operator reads."""
    counters = {f"{path}.num_batches_tracked" for path in branch.norms} & set(state)
    return replace(branch, state=branch.state | counters)


def _needed_only_for(graph: Graph, tail: str, addition: str) -> set[str]:
    """Operators whose values reach nothing but `addition`, and that only through `tail`."""
    if graph.users[tail] != (addition,):
        return set()
    inside: set[str] = set()
    waiting = [(-graph.position[tail], tail)]   # the latest first: whatever reads a node is decided before it
    while waiting:
        _, name = heapq.heappop(waiting)
        if name in inside or graph.by_name[name].op in _GIVEN:
            continue
        if name == tail or inside.issuperset(graph.users[name]):
            inside.add(name)
            for source in graph.by_name[name].inputs:
                heapq.heappush(waiting, (-graph.position[source], source))
    return inside


def _among_ancestors(graph: Graph, name: str, wanted: Collection[str]) -> bool:
    """Whether a node reads, directly or not, all of some nodes, or is one of them."""
    missing = set(wanted)
    first = min((graph.position[one] for one in missing), default=0)
    waiting, seen = [name], {name}
    while waiting and missing:
        current = waiting.pop()
        missing.discard(current)
        for source in graph.by_name[current].inputs:
            if source not in seen and graph.position[source] >= first:
                seen.add(source)
                waiting.append(source)
    return not missing


def without_branches(graph: Graph, branches: Iterable[Branch]) -> tuple[Graph, dict[str, str]]:
    """Return a graph without some branches: their sums' readers read the shortcuts.

    An activation behind such a sum goes too where its input already went through the same activation.
    Node names and shapes stay.

    Returns:
        The graph, and for every sum and activation that is gone the node that its readers read instead.
    """
    branches = tuple(branches)
    gone = {name for branch in branches for name in branch.nodes}
    sums = {branch.sum: branch.shortcut for branch in branches}
    stands_for: dict[str, str] = {}
    kept: dict[str, Node] = {}
    for node in graph.nodes:
        if node.name in gone:
            continue
        if node.name in sums:
            stands_for[node.name] = stands_for.get(sums[node.name], sums[node.name])
            continue
        moved = _redirect(node, stands_for)
        follows = node.short_op in ACTIVATIONS and node.inputs[0] in sums and "output" not in graph.users[node.name]
        if follows and _went_through(kept, moved):
            stands_for[node.name] = moved.inputs[0]
        else:
            kept[node.name] = moved
    used = {name for node in kept.values() for name in node.inputs}
    left = tuple(node for node in kept.values() if node.op not in ("parameter", "constant") or node.name in used)
    return replace(graph, nodes=left), stands_for


def _went_through(kept: Mapping[str, Node], activation: Node) -> bool:
    """Whether the input of an activation is the output of an equal one, moved at most."""
    source = kept[activation.inputs[0]]
    while passes_values(source):
        source = kept[source.inputs[0]]
    return same_activation(source, activation)


def passes_values(node: Node) -> bool:
    """Whether what went through an activation before a node is still as it leaves it."""
    if node.short_op not in _VALUES_STAY or not node.op.startswith("aten."):
        return False
    pads = node.short_op in ("pad", "constant_pad_nd")
    return not pads or (node.arguments.get("mode", "constant") == "constant" and not node.arguments.get("value"))


def same_activation(source: Node, activation: Node) -> bool:
    """Whether a node is the same activation as another one, which then changes nothing behind it."""
    if source.op != activation.op:
        return False
    low, high = (activation.arguments.get(name, default) for name, default in (("min_val", 0), ("max_val", 6)))
    limits = {name: value for name, value in activation.arguments.items() if not isinstance(value, Ref)}
    return all(source.arguments.get(name) == value for name, value in limits.items()) and low <= 0 <= high


def _redirect(node: Node, stands_for: Mapping[str, str]) -> Node:
    if not any(name in stands_for for name in node.inputs):
        return node

    def follow(value: Any) -> Any:  # noqa: ANN401 - arguments have any type
        if isinstance(value, Ref):
            return Ref(stands_for.get(value.node, value.node))
        return [follow(item) for item in value] if isinstance(value, list) else value

    inputs = tuple(dict.fromkeys(stands_for.get(name, name) for name in node.inputs))
    return replace(node, inputs=inputs, arguments={name: follow(value) for name, value in node.arguments.items()})
