"""Which operators of a graph apply a parameter as the weight of a layer, in whatever form the user's code has it.

A linear layer may be written as `linear`, as `addmm` (GPT-2's `Conv1D`), as `mm`, `matmul` or `einsum`, with the
parameter as `(out, in)` or `(in, out)`, and transposed on the way any number of times.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from paretopress.spaces.graph import Graph, Node, Ref

_CONVOLUTIONS = ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d")
_PRODUCTS = {"addmm": ("mat1", "mat2"), "mm": ("self", "mat2"), "matmul": ("self", "other")}
_TRANSPOSES = ("t", "numpy_T", "mT", "transpose", "permute", "swapaxes", "swapdims", "adjoint", "movedim")
_SAME = ("alias", "detach", "contiguous")


@dataclass(frozen=True, slots=True)
class AppliedWeight:
    """A parameter that an operator multiplies activations with.

    Attributes:
        source: Node whose value is read.
        weight: The parameter.
        flipped: Whether a matrix is applied as `(in, out)`.
        bias: The parameter that is added, None where there is none.
        problem: Why it cannot be replaced, `""` for no reason.
        views: Nodes between the parameter and the operator, which only transpose it.
    """

    source: str
    weight: Node
    flipped: bool
    bias: Node | None
    problem: str = ""
    views: tuple[str, ...] = ()


def source_of(node: Node) -> str:
    """The node that a layer's operator reads, whatever the order of its arguments."""
    if node.short_op == "einsum":
        return str(node.arguments["tensors"][0].node)
    if node.short_op == "embedding":
        return str(node.arguments["indices"].node)
    argument = _PRODUCTS[node.short_op][0] if node.short_op in _PRODUCTS else "input"
    return str(node.arguments[argument].node)


def applied_weight(graph: Graph, node: Node) -> AppliedWeight | None:
    """The weight that a node applies, None where it is no layer."""
    if not node.op.startswith("aten."):
        return None
    name = node.short_op
    if name in _CONVOLUTIONS:
        weight = graph.parameter(node, "weight")
        return None if weight is None else _with_bias(graph, node, AppliedWeight(source_of(node), weight, False, None))
    if name == "embedding":
        weight = graph.parameter(node, "weight")
        return None if weight is None else AppliedWeight(source_of(node), weight, False, None)
    if name == "linear":
        applied = _matrix(graph, node.arguments["input"], node.arguments["weight"], flipped=False)
        return None if applied is None else _with_bias(graph, node, applied)
    if name in _PRODUCTS:
        first, second = (node.arguments[argument] for argument in _PRODUCTS[name])
        applied = _matrix(graph, first, second, flipped=True)
        return applied if applied is None or name != "addmm" else _with_summand(graph, node, applied)
    return _einsum(graph, node) if name == "einsum" else None


def _matrix(graph: Graph, source: Any, weight: Any, *, flipped: bool) -> AppliedWeight | None:  # noqa: ANN401
    """A product of activations with a parameter of two dimensions."""
    if not isinstance(source, Ref) or not isinstance(weight, Ref):
        return None
    views: list[str] = []
    node = graph.by_name[weight.node]
    while node.op != "parameter":
        turned = _turned(node)
        if turned is None or len(node.shape) != 2:
            return None
        views.append(node.name)
        flipped ^= turned
        node = graph.by_name[node.inputs[0]]
    if len(node.shape) != 2 or _is_fixed(graph, source.node):
        return None
    return AppliedWeight(source.node, node, flipped, None, views=tuple(views))


def _turned(node: Node) -> bool | None:
    """Whether an operator transposes a matrix; None where it does anything but that or nothing."""
    if node.op.startswith("aten.") and len(node.inputs) == 1:
        if node.short_op in _SAME:
            return False
        if node.short_op in _TRANSPOSES:
            places = [value for name, value in node.arguments.items() if name not in ("self", "input")]
            flat = [int(place) % 2 for value in places for place in (value if isinstance(value, list) else [value])]
            return len(flat) < 2 or flat[0] != flat[1] if node.short_op != "permute" else flat == [1, 0]
    return None


def _is_fixed(graph: Graph, name: str) -> bool:
    """Whether a value is a parameter, at most transposed: then the product is a computed weight."""
    node = graph.by_name[name]
    while node.op.startswith("aten.") and node.short_op in (*_TRANSPOSES, *_SAME) and len(node.inputs) == 1:
        node = graph.by_name[node.inputs[0]]
    return node.op == "parameter"


def _with_bias(graph: Graph, node: Node, applied: AppliedWeight) -> AppliedWeight:
    bias = graph.parameter(node, "bias")
    computed = node.arguments.get("bias") is not None and bias is None
    return replace(applied, bias=bias, problem="its bias is computed, not a parameter" if computed else "")


def _with_summand(graph: Graph, node: Node, applied: AppliedWeight) -> AppliedWeight:
    """`beta * self + alpha * (mat1 @ mat2)`: a bias where it is a parameter of one dimension and both factors are 1."""
    bias = graph.parameter(node, "self")
    if node.arguments.get("alpha", 1) != 1 or node.arguments.get("beta", 1) != 1:
        return replace(applied, problem="its operator (addmm) scales the product or what it adds")
    if bias is None or bias.shape != node.shape[-1:]:
        return replace(applied, problem="its operator (addmm) adds something else than a bias")
    return replace(applied, bias=bias)


def _einsum(graph: Graph, node: Node) -> AppliedWeight | None:
    """An equation such as `bti,io->bto`: a linear layer over the last dimension."""
    tensors = node.arguments["tensors"]
    inputs, arrow, output = str(node.arguments["equation"]).replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow or len(tensors) != 2 or len(terms) != 2 or len(terms[1]) != 2 or "." in inputs:
        return None
    (rows, shared), weight = (terms[0][:-1], terms[0][-1:]), terms[1]
    made = output[-1:]
    letters = [*terms[0], made]
    if len(set(letters)) != len(letters) or output[:-1] != rows or set(weight) != {shared, made}:
        return None
    return _matrix(graph, tensors[0], tensors[1], flipped=weight[0] == shared)
