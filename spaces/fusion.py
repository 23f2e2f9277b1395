"""Which operators a runtime runs as one kernel, before any policy is applied."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from paretopress.spaces.graph import Graph, Node, Ref
from paretopress.spaces.kernels import Family
from paretopress.spaces.layers import Layer, LayerKind
from paretopress.spaces.shortcuts import PADDINGS

ACTIVATIONS = frozenset(("relu", "relu6", "hardtanh"))
ADDITIONS = frozenset(("add",))
FREE = frozenset((
    "view", "reshape", "flatten", "squeeze", "unsqueeze", "dropout", "contiguous", "alias", "detach", "clone",
    "to", "_to_copy", "sym_size",
))
DATA = frozenset((
    "slice", "pad", "constant_pad_nd", "permute", "transpose", "chunk", "split", "select", "index_select",
))
POOLS = frozenset((
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
))
NORMS = frozenset((
    "batch_norm", "layer_norm", "group_norm", "rms_norm", "instance_norm", "softmax", "log_softmax",
))
PRODUCTS = frozenset(("matmul", "mm", "bmm", "addmm", "scaled_dot_product_attention"))
CONCATS = frozenset(("cat", "concat", "stack"))
PADDING_CONVOLUTIONS = ("aten.conv1d.default", "aten.conv2d.default")


@dataclass(frozen=True, slots=True)
class FusedKernel:
    """A main operator with what it absorbs.

    Attributes:
        main: Node of the main operator.
        absorbed: Nodes absorbed behind it, in order.
        family: Kind of kernel.
        layer: The layer whose weight it applies, None for kernels without weights.
    """

    main: str
    absorbed: tuple[str, ...]
    family: Family
    layer: Layer | None

    @property
    def output(self) -> str:
        """The node whose value the kernel produces."""
        return self.absorbed[-1] if self.absorbed else self.main


@dataclass(frozen=True)
class Fusion:
    """The fused view of a graph.

    Attributes:
        kernels: Kernels in execution order; operators that only rename memory have none.
        folds: Batch normalisation node to the layer it is folded into.
    """

    kernels: tuple[FusedKernel, ...]
    folds: Mapping[str, Layer]


def fuse(graph: Graph, layers: tuple[Layer, ...], foldable: Collection[str] | None = None) -> Fusion:
    """Group the operators of a graph into kernels.

    A convolution, and a linear layer of one row per sample, absorb a following batch normalisation and ReLU-like
    activation; other linear layers and a residual sum a following ReLU-like activation; each only where nothing else
    reads the value in between.

    Args:
        graph: The captured model, or what is left of it.
        layers: Its layers.
        foldable: The batch normalisations that may be folded, None for all that can be.
    """
    by_node = {layer.node: layer for layer in layers}
    folds: dict[str, Layer] = {}
    taken: set[str] = {view for layer in layers if not layer.frozen for view in layer.views}
    kernels: list[FusedKernel] = []
    for node in graph.operators():
        if node.name in taken or is_free(graph, node):
            continue
        layer = by_node.get(node.name)
        absorbed: list[str] = []
        if layer is not None:
            normalisation = foldable_normalisation(graph, layer)
            if normalisation is not None and (foldable is None or normalisation.name in foldable):
                folds[normalisation.name] = layer
                absorbed.append(normalisation.name)
        if (layer is not None and layer.runs_in_integers) or is_residual_sum(graph, node):
            activation = _only_user(graph, absorbed[-1] if absorbed else node.name)
            if activation is not None and activation.short_op in ACTIVATIONS:
                absorbed.append(activation.name)
        taken.update(absorbed)
        kernels.append(FusedKernel(node.name, tuple(absorbed), family_of(graph, node, layer), layer))
    return Fusion(tuple(kernels), folds)


def is_free(graph: Graph, node: Node) -> bool:
    """Whether a node costs nothing: it renames memory, computes sizes, or is done by the kernel behind it."""
    if node.short_op in FREE or not node.dtype or convolution_pads(graph, node):
        return True
    if node.short_op == "slice":
        return graph.by_name[node.inputs[0]].shape == node.shape
    return False


def convolution_pads(graph: Graph, node: Node) -> bool:
    """Whether a node is a zero padding that the one convolution behind it does instead, as exported graphs have it."""
    user = _only_user(graph, node.name)
    return may_pad(node) and user is not None and user.op in PADDING_CONVOLUTIONS and user.inputs[0] == node.name


def may_pad(node: Node) -> bool:
    """Whether a node is a zero padding of positions, which a convolution that alone reads it can do instead."""
    if not pads_with_zeros(node):
        return False
    amounts = node.arguments["pad"]
    of_positions = len(amounts) <= 2 * (len(node.shape) - 2)
    return of_positions and all(isinstance(n, int) and n >= 0 for n in amounts)


def pads_with_zeros(node: Node) -> bool:
    """Whether a node is a padding by zeros."""
    value, mode = node.arguments.get("value"), node.arguments.get("mode", "constant")
    return node.short_op in PADDINGS and mode == "constant" and value in (None, 0, 0.0)


def is_residual_sum(graph: Graph, node: Node) -> bool:
    """Whether a node adds two activations of the same shape."""
    if node.short_op not in ADDITIONS or node.arguments.get("alpha", 1) != 1:
        return False
    operands = [node.arguments.get("self"), node.arguments.get("other")]
    if not all(isinstance(operand, Ref) for operand in operands):
        return False
    nodes = [graph.by_name[operand.node] for operand in operands if isinstance(operand, Ref)]
    return all(n.op not in ("parameter", "constant") and n.shape == node.shape for n in nodes)


def _only_user(graph: Graph, name: str) -> Node | None:
    users = graph.users[name]
    return graph.by_name[users[0]] if len(users) == 1 else None


def foldable_normalisation(graph: Graph, layer: Layer) -> Node | None:
    """The batch normalisation that can be folded into a layer, or None.

    Of linear layers that of one row per sample: of tokens it would normalise positions, not features.
    """
    one_row = layer.kind is LayerKind.LINEAR and len(graph.by_name[layer.node].shape) == 2
    if layer.frozen or not (layer.window or one_row):
        return None
    user = _only_user(graph, layer.node)
    if user is None or user.short_op != "batch_norm" or user.arguments.get("training"):
        return None
    statistics = [graph.parameter(user, argument) for argument in ("running_mean", "running_var")]
    if any(parameter is None or len(graph.users[parameter.name]) != 1 for parameter in statistics):
        return None
    affine = [graph.parameter(user, argument) for argument in ("weight", "bias")]
    shared = any(parameter is not None and len(graph.users[parameter.name]) != 1 for parameter in affine)
    return None if shared else user


def family_of(graph: Graph, node: Node, layer: Layer | None) -> Family:
    """The kind of kernel a main operator makes."""
    if layer is not None and layer.kind is not LayerKind.EMBEDDING:
        return Family(layer.kind.value)
    name = node.short_op
    if is_residual_sum(graph, node):
        return Family.ADD
    if name in POOLS:
        return Family.GLOBAL_POOL if all(size == 1 for size in node.shape[2:]) else Family.POOL
    if name == "mean":
        return Family.GLOBAL_POOL
    for names, family in (
        (NORMS, Family.NORM), (PRODUCTS, Family.MATMUL), (CONCATS, Family.CONCAT), (DATA, Family.DATA),
    ):
        if name in names:
            return family
    source = graph.by_name[node.inputs[0]] if node.inputs else node
    return Family.ELEMENTWISE if source.shape == node.shape else Family.OTHER
