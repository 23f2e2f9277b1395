"""The first and the last layers of a model: what reads its inputs, and what makes its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from paretopress.spaces.graph import Graph
from paretopress.spaces.layers import Layer

TABLES = frozenset(("embedding", "embedding_bag"))


def end_layers(graph: Graph, layers: Iterable[Layer]) -> dict[str, str]:
    """Return the layers at both ends of a model, each with what it is: `first`, `last` or `first and last`.

    A first layer reads an input that has gone through no other layer and no table of embeddings; a last one makes
    an output that goes through none. Models with several inputs or outputs have several of each.
    """
    by_node = {layer.node: layer.name for layer in layers}
    operators = [node.name for node in graph.operators()]
    behind = _reached(operators, {node.name: node.inputs for node in graph.nodes}, graph, by_node)
    before = _reached(operators[::-1], graph.users, graph, by_node)
    inputs = _reachable_from(graph)
    found: dict[str, str] = {}
    for node, name in by_node.items():
        ends = [word for word, is_end in (("first", node in inputs and node not in behind),
                                          ("last", node not in before)) if is_end]
        if ends:
            found.setdefault(name, " and ".join(ends))
    return found


def _reached(
    order: Sequence[str], neighbours: Mapping[str, Iterable[str]], graph: Graph, by_node: Mapping[str, str]
) -> set[str]:
    """The nodes that some layer or table lies before, in the direction of `order`."""
    reached: set[str] = set()
    for name in order:
        for other in neighbours[name]:
            if other in reached or other in by_node or graph.by_name[other].short_op in TABLES:
                reached.add(name)
                break
    return reached


def _reachable_from(graph: Graph) -> set[str]:
    """The nodes that depend on an input of the model."""
    found = set(graph.inputs)
    for node in graph.nodes:
        if not found.isdisjoint(node.inputs):
            found.add(node.name)
    return found
