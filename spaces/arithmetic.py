"""Where a model computes in 8-bit integers: which kernels, which tensors, which conversions.

A layer runs in integers only if its input, weight and output (after the fused activation) are
quantised; a residual sum, pooling or concatenation only if all its inputs are (the model's own inputs
can always be) and an integer kernel wants its output. Operators that only move data work on the
integers of the kernel before them, whoever reads them, and on quantised floats where only integer
kernels read them; they share the range of their input. The exported graph, the search's candidates and
the cost model all use this placement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paretopress.spaces.fusion import FusedKernel, is_residual_sum, pads_with_zeros
from paretopress.spaces.graph import Graph, Node
from paretopress.spaces.kernels import Family
from paretopress.spaces.layers import LayerKind
from paretopress.spaces.pooling import averages_positions
from paretopress.spaces.shortcuts import PADDINGS
from paretopress.spaces.structure import Structure

MOVES = frozenset((
    "view", "reshape", "flatten", "squeeze", "unsqueeze", "dropout", "contiguous", "alias", "clone", "slice",
    "pad", "constant_pad_nd", "permute", "transpose", "max_pool2d",
))
FIRST, SECOND = INNER = ":first", ":second"   # suffixes of the tensors between the layers of a factorised one


@dataclass(frozen=True)
class Arithmetic:
    """The integer part of a model.

    Attributes:
        integer_kernels: Main nodes of kernels (or of data-moving operators) that work on integers.
        ranges: Tensors that have a quantisation range of their own, in execution order.
        shared: Quantised tensor to the tensor whose range it uses.
        sources: Quantised tensors whose producer computes in floats: they are quantised on the way
            to integer readers only.
    """

    integer_kernels: frozenset[str]
    ranges: tuple[str, ...]
    shared: Mapping[str, str]
    sources: frozenset[str]

    def is_quantised(self, tensor: str) -> bool:
        """Whether integer readers of `tensor` see it quantised."""
        return tensor in self.shared or tensor in self.ranges

    def range_of(self, tensor: str) -> str:
        """The tensor whose range a quantised tensor uses."""
        return self.shared.get(tensor, tensor)


def choose_arithmetic(
    structure: Structure, integer_layers: frozenset[str], inner: Mapping[str, int]
) -> Arithmetic:
    """Place quantisation for the layers that compute in integers.

    Args:
        structure: The dense model.
        integer_layers: Nodes of the layers with 8-bit activations.
        inner: Nodes of factorised layers, with how many tensors there are between their parts.
    """
    if not integer_layers:
        return Arithmetic(frozenset(), (), {}, frozenset())
    graph = structure.graph
    kernels = {kernel.main: kernel for kernel in structure.fusion.kernels}
    absorbed = {name: kernel.main for kernel in structure.fusion.kernels for name in kernel.absorbed}
    wanted = _wanted(graph, kernels, absorbed, integer_layers)
    integer: set[str] = set()
    ranges: list[str] = []
    shared: dict[str, str] = {}
    sources: set[str] = set()
    produced: set[str] = set()

    def quantise_input(name: str) -> None:
        if name not in shared and name not in ranges:
            ranges.append(name)
            sources.add(name)

    for node in graph.nodes:
        if node.name in absorbed:
            continue
        activations = _activation_inputs(graph, node)
        if node.name in integer_layers:
            integer.add(node.name)
            quantise_input(activations[0])
            ranges += (node.name + suffix for suffix in INNER[: inner.get(node.name, 0)])
            kernel = kernels[node.name]
            linear = kernel.layer is not None and kernel.layer.kind is LayerKind.LINEAR
            if not linear or kernel.output in wanted:
                produced.add(kernel.output)
                ranges.append(kernel.output)
        elif node.name in kernels and can_run_in_integers(graph, node):
            output = kernels[node.name].output
            quantised = [name for name in activations if name in shared or name in ranges]
            given = [name for name in activations if graph.by_name[name].op == "input"]
            if output in wanted and quantised and {*quantised, *given} == set(activations):
                for name in given:
                    quantise_input(name)
                integer.add(node.name)
                produced.add(output)
                ranges.append(output)
        elif moves_data(node) and activations and activations[0] in produced:
            integer.add(node.name)
            produced.add(node.name)
            shared[node.name] = shared.get(activations[0], activations[0])
    unread = _unread(graph, kernels, absorbed, integer, integer_layers)
    dropped = {_output(kernels, name) for name in unread}
    integer -= unread
    # A model input that was quantised for kernels that were dropped has no integer reader left.
    dropped |= {name for name in sources - produced if not integer & _readers(graph, absorbed, name)}
    placed = Arithmetic(
        frozenset(integer),
        tuple(name for name in ranges if name not in dropped),
        {name: owner for name, owner in shared.items() if name not in dropped},
        frozenset(sources - produced - dropped),
    )
    return _quantised_before_moving(graph, absorbed, placed)


def _quantised_before_moving(graph: Graph, absorbed: Mapping[str, str], placed: Arithmetic) -> Arithmetic:
    """Quantise in front of operators that move floats to integer kernels only: rounding commutes with moving."""
    integer, sources = set(placed.integer_kernels), set(placed.sources)
    ranges, shared = list(placed.ranges), dict(placed.shared)
    for node in reversed(graph.nodes):   # backwards: what is quantised there may have been moved there itself
        if node.name not in sources or not moves_data(node):
            continue
        if not _readers(graph, absorbed, node.name) <= integer:
            continue
        source = _activation_inputs(graph, node)[0]
        owner = shared.get(source, source)
        sources.discard(node.name)
        integer.add(node.name)
        if source in shared or source in ranges:
            ranges.remove(node.name)
        else:
            sources.add(source)
            ranges[ranges.index(node.name)] = source
        shared[node.name] = owner
        shared.update({name: owner for name, other in shared.items() if other == node.name})
    if integer == placed.integer_kernels:
        return placed
    # Stable: an inner tensor stays in front of its layer's output.
    ranges.sort(key=lambda name: graph.position[name.removesuffix(FIRST).removesuffix(SECOND)])
    return Arithmetic(frozenset(integer), tuple(ranges), shared, frozenset(sources))


def _output(kernels: Mapping[str, FusedKernel], name: str) -> str:
    return kernels[name].output if name in kernels else name


def _readers(graph: Graph, absorbed: Mapping[str, str], name: str) -> set[str]:
    """The kernels and operators that read a value; asking for its size is not reading it."""
    users = (user for user in graph.users[name] if graph.by_name[user].short_op != "sym_size")
    return {absorbed.get(user, user) for user in users}


def _unread(
    graph: Graph,
    kernels: Mapping[str, FusedKernel],
    absorbed: Mapping[str, str],
    integer: set[str],
    integer_layers: frozenset[str],
) -> set[str]:
    """Kernels without weights that no integer kernel reads after all: floats serve their readers better.

    Operators that move data are no such readers where they only lead to floats, but what they move comes in
    integers from the kernels that stay.
    """
    unread: set[str] = set()
    for node in reversed(graph.nodes):
        if node.name not in integer or node.name in integer_layers:
            continue
        if not _readers(graph, absorbed, _output(kernels, node.name)) & (integer - unread):
            unread.add(node.name)
    made = {_output(kernels, name) for name in integer - unread}
    for node in graph.nodes:
        if node.name in unread and moves_data(node) and node.inputs[0] in made:
            unread.discard(node.name)
            made.add(node.name)
    return unread


def _activation_inputs(graph: Graph, node: Node) -> list[str]:
    skipped = ("parameter", "constant")
    sources = [graph.by_name[name] for name in node.inputs]
    return [source.name for source in sources if source.op not in skipped and source.dtype]


def moves_data(node: Node) -> bool:
    """Whether an operator only moves values, so that it works on integers as on floats."""
    if node.short_op in PADDINGS:
        return pads_with_zeros(node)
    if node.short_op == "max_pool2d":
        return list(node.arguments.get("dilation") or [1, 1]) in ([1, 1], [1])
    return node.short_op in MOVES


def can_run_in_integers(graph: Graph, node: Node) -> bool:
    """Whether a kernel without weights has a form that computes in integers and pays."""
    if is_residual_sum(graph, node):
        return True
    # Windowed average pooling has integer kernels too, but runtimes run them far slower than in floats.
    averages = node.short_op in ("avg_pool2d", "adaptive_avg_pool2d") and all(size == 1 for size in node.shape[2:])
    return averages or averages_positions(node) or node.short_op in ("cat", "concat")


def _wanted(
    graph: Graph,
    kernels: Mapping[str, FusedKernel],
    absorbed: Mapping[str, str],
    integer_layers: frozenset[str],
) -> set[str]:
    """Values that some integer layer reads, directly or through operators that can run in integers."""
    wanted: set[str] = set()
    for node in reversed(graph.nodes):
        if node.name in absorbed:
            continue
        if node.name in integer_layers:
            wanted.update(_activation_inputs(graph, node)[:1])
        elif node.name in kernels and can_run_in_integers(graph, node):
            if kernels[node.name].output in wanted:
                wanted.update(_activation_inputs(graph, node))
        elif moves_data(node) and node.name in wanted:
            wanted.update(_activation_inputs(graph, node)[:1])
    return wanted


def integer_family(family: Family) -> bool:
    """Whether kernels of a family can compute in integers at all."""
    return family in (
        Family.CONV, Family.GROUPED, Family.DEPTHWISE, Family.LINEAR, Family.ADD, Family.GLOBAL_POOL,
        Family.POOL, Family.CONCAT, Family.DATA,
    )
