"""Overview: the fused kernels of a model as a small graph, which a person can read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from paretopress.spaces.fusion import FusedKernel
from paretopress.spaces.graph import Graph, Node
from paretopress.spaces.kernels import Family
from paretopress.spaces.structure import Structure

GIVEN = ("parameter", "constant")
INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True, slots=True)
class OverviewNode:
    """A fused kernel, an input of the model, or its output.

    Attributes:
        name: Name of the graph node whose value it makes.
        kind: Family of the kernel, `input` or `output`.
        operators: Operators in it, in order.
        layer: Layer whose weight it applies, `""` for none.
        shape: Shape of its value for one sample, `()` where it has none.
        groups: Channel groups of its value, in order, each once.
    """

    name: str
    kind: str
    operators: tuple[str, ...]
    layer: str
    shape: tuple[int, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OverviewEdge:
    """A value that one node makes and another reads.

    Attributes:
        source: Name of the node that makes it.
        target: Name of the node that reads it.
        residual: Whether it goes around the other operand of a residual sum.
    """

    source: str
    target: str
    residual: bool


@dataclass(frozen=True, slots=True)
class Overview:
    """Nodes in execution order, with the edges between them."""

    nodes: tuple[OverviewNode, ...]
    edges: tuple[OverviewEdge, ...]


def overview(structure: Structure) -> Overview:
    """Return the fused kernels of a model with what passes between them; operators that cost nothing are left out."""
    graph, kernels = structure.graph, structure.fusion.kernels
    maker = {name: kernel.output for kernel in kernels for name in (kernel.main, *kernel.absorbed)}
    maker |= {name: name for name in graph.inputs}
    nodes = [_plain_node(structure, name, INPUT) for name in graph.inputs]
    nodes += [_kernel_node(structure, kernel) for kernel in kernels]
    sources = {kernel.output: _sources(graph, kernel, maker) for kernel in kernels}
    end = next(node for node in graph.nodes if node.op == "output")
    nodes.append(_plain_node(structure, end.name, OUTPUT))
    sources[end.name] = list(_makers(graph, end.inputs, maker))
    sums = {kernel.output for kernel in kernels if kernel.family is Family.ADD}
    shortcuts = _shortcuts(sources, sums)
    edges = [OverviewEdge(source, name, (source, name) in shortcuts)
             for name, found in sources.items() for source in found]
    return Overview(tuple(nodes), tuple(edges))


def _plain_node(structure: Structure, name: str, kind: str) -> OverviewNode:
    node = structure.graph.by_name[name]
    return OverviewNode(name, kind, (), "", node.shape[1:], _groups(structure, name) if kind == INPUT else ())


def _kernel_node(structure: Structure, kernel: FusedKernel) -> OverviewNode:
    by_name = structure.graph.by_name
    operators = tuple(by_name[name].short_op for name in (kernel.main, *kernel.absorbed))
    layer = kernel.layer.name if kernel.layer else ""
    shape = by_name[kernel.output].shape[1:]
    return OverviewNode(kernel.output, kernel.family.value, operators, layer, shape, _groups(structure, kernel.output))


def _groups(structure: Structure, name: str) -> tuple[str, ...]:
    known = {group.name for group in structure.coupling.groups}
    segments = (segment for axis in structure.coupling.values.get(name, ()) for segment in axis or ())
    return tuple(dict.fromkeys(segment.group for segment in segments if segment.group in known))


def _sources(graph: Graph, kernel: FusedKernel, maker: Mapping[str, str]) -> list[str]:
    inside = (kernel.main, *kernel.absorbed)
    read = [name for node in inside for name in graph.by_name[node].inputs if name not in inside]
    return [name for name in _makers(graph, read, maker) if name != kernel.output]


def _makers(graph: Graph, names: Iterable[str], maker: Mapping[str, str]) -> dict[str, None]:
    """The nodes of the overview that make some values, looking through operators that cost nothing."""
    found: dict[str, None] = {}
    waiting, seen = list(names)[::-1], set(names)
    while waiting:
        name = waiting.pop()
        node = graph.by_name[name]
        if name in maker:
            found[maker[name]] = None
        elif node.op not in GIVEN and not _is_size(node):
            fresh = [source for source in node.inputs if source not in seen]
            seen.update(fresh)
            waiting.extend(fresh[::-1])
    return found


def _is_size(node: Node) -> bool:
    """Whether a node makes a number for shapes; what makes several tensors at once has no type either."""
    return not node.dtype and (node.short_op == "sym_size" or node.op.startswith("python."))


def _shortcuts(sources: Mapping[str, list[str]], sums: set[str]) -> set[tuple[str, str]]:
    """The edges into residual sums whose source the other operand is computed from."""
    place = {name: index for index, name in enumerate(sources)}
    behind: dict[str, int] = {}   # the nodes that a node is computed from, as a set of bits
    found = set()
    for name, made_from in sources.items():
        behind[name] = 0
        for source in made_from:
            behind[name] |= behind.get(source, 0) | (1 << place[source] if source in place else 0)
        if name in sums and len(made_from) == 2:
            for one, other in (made_from, made_from[::-1]):
                if one in place and behind.get(other, 0) >> place[one] & 1:
                    found.add((one, name))
    return found
