"""Layers: the weights that can be compressed, found in the captured graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from paretopress.spaces.graph import Graph, Node
from paretopress.spaces.kernels import product
from paretopress.spaces.weights_applied import AppliedWeight, applied_weight


class LayerKind(StrEnum):
    """What a layer's weight does."""

    CONV = "conv"
    GROUPED = "grouped"
    DEPTHWISE = "depthwise"
    TRANSPOSED = "transposed"
    LINEAR = "linear"
    EMBEDDING = "embedding"


class Holder(StrEnum):
    """What holds a layer's tensors.

    `MODULE`: one of PyTorch's layer classes, which can be given a bias and be replaced by two of its kind. `OWN`:
    a module of the user's class that holds nothing else (the `Conv1D` of GPT-2), of which there can be two in a
    row. `CODE`: a parameter that the code of a larger module reads: its tensors change where they are.
    """

    MODULE = "module"
    OWN = "own"
    CODE = "code"


NO_INTEGER_KERNEL = "no kernel computes layers of this kind ({kind}) in 8-bit integers: their weights can be stored so"


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight with the node that uses it.

    Whatever the layout of the user's tensor, everything computes with the weight's rows as outputs; what is stored
    has the user's layout (`compressors/weight_layout.py`).

    Attributes:
        name: Path of the module that holds the weight, such as `layer1.0.conv1`; the parameter's own name where
            that is not `weight`.
        kind: Convolution (plain, grouped, depthwise, transposed), linear, or a table whose rows are looked up.
        node: Name of the graph node that applies it.
        weight: Name of the weight in the model's state.
        bias: Name of the bias, `""` where there is none.
        shape: Shape of the weight by outputs: `(out, in / groups, *window)` or `(out, in)`; of an embedding
            `(rows, features)`.
        stride: Stride per spatial dimension, `()` for linear.
        padding: Padding per spatial dimension, `()` for linear; `"same"` is resolved.
        dilation: Dilation per spatial dimension, `()` for linear.
        groups: Convolution groups, 1 for linear.
        frozen: Why its weight cannot be replaced, `""` where it can.
        output_padding: Of a transposed convolution, per spatial dimension, else `()`.
        flipped: Whether a linear layer's tensor is `(in, out)`. That of a transposed convolution always is
            `(in, out / groups, *window)`.
        holder: What holds its tensors.
        views: Nodes between the parameter and the operator, which only transpose it.
    """

    name: str
    kind: LayerKind
    node: str
    weight: str
    bias: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    frozen: str = ""
    output_padding: tuple[int, ...] = ()
    flipped: bool = False
    holder: Holder = Holder.MODULE
    views: tuple[str, ...] = ()

    @property
    def window(self) -> tuple[int, ...]:
        """Kernel size per spatial dimension, `()` for linear."""
        return self.shape[2:]

    @property
    def out_channels(self) -> int:
        """Output channels or features."""
        return self.shape[0]

    @property
    def in_channels(self) -> int:
        """Input channels or features over all groups."""
        return self.shape[1] * self.groups

    @property
    def columns(self) -> int:
        """Columns of the weight as a matrix: inputs per group times window elements."""
        return self.shape[1] * product(self.window)

    @property
    def mixes_all(self) -> bool:
        """Whether every output reads every input: then it can be refitted by least squares and has two factors."""
        return self.groups == 1 and self.kind in (LayerKind.CONV, LayerKind.LINEAR, LayerKind.TRANSPOSED)

    @property
    def why_no_rank(self) -> str:
        """Why it has no low rank, `""` where it has."""
        if self.kind is LayerKind.EMBEDDING:
            return "an embedding is looked up, not multiplied: two factors would add a product"
        kind = f"grouped {self.kind}" if self.kind is LayerKind.TRANSPOSED else self.kind
        return "" if self.mixes_all else f"a {kind} convolution has no low rank"

    @property
    def why_no_signs(self) -> str:
        """Why its weights cannot be signs, `""` where they can."""
        return "the rows of an embedding are no signs" if self.kind is LayerKind.EMBEDDING else ""

    @property
    def takes_bias(self) -> bool:
        """Whether a bias can be stored with it: it has one, or its module can be given one."""
        return bool(self.bias) or (self.holder is Holder.MODULE and self.kind is not LayerKind.EMBEDDING)

    @property
    def runs_in_integers(self) -> bool:
        """Whether runtimes have kernels that compute it in 8-bit integers."""
        return self.kind not in (LayerKind.TRANSPOSED, LayerKind.EMBEDDING)

    @property
    def is_droppable(self) -> bool:
        """Whether its module can be replaced by one that returns zeros."""
        return not self.frozen and self.holder is Holder.MODULE and self.runs_in_integers

    def sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of the matrix that is factorised, of the layer at a pruned shape.

        A transposed convolution is split into a 1x1 convolution and a transposed one, so that its window goes with
        its outputs; every other layer into one with the window and a 1x1 one.
        """
        if self.kind is LayerKind.TRANSPOSED:
            return shape[0] * product(shape[2:]), shape[1]
        return shape[0], product(shape[1:])

    def part_tensors(self, count: int) -> tuple[tuple[str, str], ...]:
        """State names of weight and bias of each of `count` real layers, `""` for no bias."""
        if self.holder is Holder.CODE:
            if count > 1:
                return (f"{self.weight}_first", ""), (f"{self.weight}_second", self.bias)
            return ((self.weight, self.bias),)
        bias = f"{self.name}.bias" if self.takes_bias and self.holder is Holder.MODULE else self.bias
        if count == 1:
            return ((f"{self.name}.weight", bias),)
        last = (f"{self.name}.{count - 1}.weight", f"{self.name}.{count - 1}.bias" if bias else "")
        return (*((f"{self.name}.{index}.weight", "") for index in range(count - 1)), last)


def layer_name(target: str) -> str:
    """Name of the layer that a parameter is the weight of."""
    path, _, leaf = target.rpartition(".")
    return path if leaf == "weight" and path else target


def find_layers(
    graph: Graph, aliases: Mapping[str, str] | None = None, holders: Mapping[str, Holder] | None = None
) -> tuple[Layer, ...]:
    """Return the convolutions and linear layers of a graph in execution order.

    Args:
        graph: The captured model.
        aliases: State names to the first name of the same tensor; a weight with two names is tied
            and therefore left dense.
        holders: What the modules at some paths are, `CODE` where a path is missing; all are PyTorch's layers
            where not given.
    """
    uses: dict[str, int] = {}
    for node in graph.operators():
        for name in node.inputs:
            if graph.by_name[name].op == "parameter":
                target = graph.by_name[name].target
                uses[target] = uses.get(target, 0) + 1
    tied = {name for alias, first in (aliases or {}).items() if alias != first for name in (alias, first)}
    layers = []
    for node in graph.operators():
        applied = applied_weight(graph, node)
        if applied is not None:
            holder = _holder(node, applied, holders)
            frozen = _why_frozen(graph, applied, uses, tied, holder)
            layers.append(_layer(graph, node, applied, frozen, holder))
    return tuple(layers)


def _holder(node: Node, applied: AppliedWeight, holders: Mapping[str, Holder] | None) -> Holder:
    """What holds a weight: a module only where that module itself applies it."""
    path, _, leaf = applied.weight.target.rpartition(".")
    if leaf != "weight" or node.module_path != path or not path:
        return Holder.CODE
    if applied.bias is not None and applied.bias.target != f"{path}.bias":
        return Holder.CODE
    return Holder.MODULE if holders is None else holders.get(path, Holder.CODE)


def _why_frozen(
    graph: Graph, applied: AppliedWeight, uses: Mapping[str, int], tied: set[str], holder: Holder
) -> str:
    target = applied.weight.target
    if uses[target] > 1 or any(len(graph.users[view]) > 1 for view in applied.views):
        count = max(uses[target], *(len(graph.users[view]) for view in applied.views), 0)
        return f"its weight is used {count} times in one forward pass"
    if target in tied:
        return "its weight is tied to another parameter"
    if applied.problem:
        return applied.problem
    bias = applied.bias
    if bias is not None and holder is not Holder.MODULE and (uses[bias.target] > 1 or bias.target in tied):
        return "its bias is shared, and its module is none that could be given another"
    return ""


def _layer(graph: Graph, node: Node, applied: AppliedWeight, frozen: str, holder: Holder) -> Layer:
    weight, bias = applied.weight, applied.bias.target if applied.bias else ""
    name = layer_name(weight.target)
    if node.short_op == "embedding":
        kind = LayerKind.EMBEDDING
        return Layer(name, kind, node.name, weight.target, "", weight.shape, frozen=frozen, holder=holder)
    if not node.short_op.startswith("conv"):
        shape = weight.shape[::-1] if applied.flipped else weight.shape
        return Layer(
            name, LayerKind.LINEAR, node.name, weight.target, bias, shape, frozen=frozen, flipped=applied.flipped,
            holder=holder, views=applied.views,
        )
    dimensions = len(weight.shape) - 2
    groups = int(node.arguments["groups"])
    window = weight.shape[2:]
    stride = _per_dimension(node.arguments["stride"], dimensions)
    dilation = _per_dimension(node.arguments["dilation"], dimensions)
    padding, problem = _padding(node.arguments["padding"], window, dilation)
    if len(graph.by_name[applied.source].shape) != dimensions + 2:
        problem = problem or "its input has no batch dimension"
    if "output_padding" in node.arguments:
        shape = (weight.shape[1] * groups, weight.shape[0] // groups, *window)
        return Layer(
            name, LayerKind.TRANSPOSED, node.name, weight.target, bias, shape, stride, padding, dilation, groups,
            frozen or problem, _per_dimension(node.arguments["output_padding"], dimensions), holder=holder,
        )
    kind = LayerKind.CONV if groups == 1 else LayerKind.GROUPED
    if groups == weight.shape[1] * groups and groups > 1:
        kind = LayerKind.DEPTHWISE
    return Layer(
        name, kind, node.name, weight.target, bias, weight.shape, stride, padding, dilation, groups,
        frozen or problem, holder=holder,
    )


def _per_dimension(value: object, dimensions: int) -> tuple[int, ...]:
    sizes = [value] if isinstance(value, int) else list(value)  # type: ignore[call-overload]
    return tuple(int(size) for size in (sizes * dimensions if len(sizes) == 1 else sizes))


def _padding(
    value: object, window: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], str]:
    """Return the padding per dimension and, where it cannot be written so, the reason."""
    if value == "valid":
        return (0,) * len(window), ""
    if value == "same":
        total = [step * (size - 1) for size, step in zip(window, dilation, strict=True)]
        uneven = any(amount % 2 for amount in total)
        return tuple(amount // 2 for amount in total), "uneven 'same' padding" if uneven else ""
    return _per_dimension(value, len(window)), ""
