"""Layers: the weights that can be compressed, found in the captured graph."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from paretopress.spaces.graph import Graph, Node
from paretopress.spaces.kernels import product

CONVOLUTIONS = ("conv1d", "conv2d")
LAYER_OPS = (*CONVOLUTIONS, "linear")


class LayerKind(StrEnum):
    """What a layer's weight does."""

    CONV = "conv"
    GROUPED = "grouped"
    DEPTHWISE = "depthwise"
    LINEAR = "linear"


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight with the node that uses it.

    Attributes:
        name: Path of the module that holds the weight, such as `layer1.0.conv1`.
        kind: Convolution (plain, grouped, depthwise) or linear.
        node: Name of the graph node that applies it.
        weight: Name of the weight in the model's state.
        bias: Name of the bias, `""` where there is none.
        shape: Shape of the weight: `(out, in / groups, *window)` or `(out, in)`.
        stride: Stride per spatial dimension, `()` for linear.
        padding: Padding per spatial dimension, `()` for linear; `"same"` is resolved.
        dilation: Dilation per spatial dimension, `()` for linear.
        groups: Convolution groups, 1 for linear.
        frozen: Why its weight cannot be replaced, `""` where it can.
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


def find_layers(graph: Graph, aliases: dict[str, str] | None = None) -> tuple[Layer, ...]:
    """Return the convolutions and linear layers of a graph in execution order.

    Args:
        graph: The captured model.
        aliases: State names to the first name of the same tensor; a weight with two names is tied
            and therefore left dense.
    """
    uses: dict[str, int] = {}
    for node in graph.operators():
        for name in node.inputs:
            if graph.by_name[name].op == "parameter":
                target = graph.by_name[name].target
                uses[target] = uses.get(target, 0) + 1
    tied = {alias for alias, first in (aliases or {}).items() if alias != first}
    tied |= {first for alias, first in (aliases or {}).items() if alias != first}
    layers = []
    for node in graph.operators():
        if node.short_op in LAYER_OPS:
            weight = graph.parameter(node, "weight")
            if weight is not None:
                layers.append(_layer(graph, node, weight, uses, tied))
    return tuple(layers)


def _layer(graph: Graph, node: Node, weight: Node, uses: dict[str, int], tied: set[str]) -> Layer:
    bias = graph.parameter(node, "bias")
    name = weight.target.rpartition(".")[0] or weight.target
    frozen = ""
    if uses[weight.target] > 1:
        frozen = f"its weight is used {uses[weight.target]} times in one forward pass"
    elif weight.target in tied:
        frozen = "its weight is tied to another parameter"
    elif node.arguments.get("bias") is not None and bias is None:
        frozen = "its bias is computed, not a parameter"
    elif not weight.target.endswith(".weight"):
        frozen = f"its weight is the parameter {weight.target!r}, not the weight of a layer module"
    elif node.module_path != name:
        frozen = f"its weight belongs to {name!r} but is applied by {node.module_path or 'the root module'!r}"
    bias_name = bias.target if bias else ""
    if node.short_op == "linear":
        return Layer(name, LayerKind.LINEAR, node.name, weight.target, bias_name, weight.shape, frozen=frozen)
    dimensions = len(weight.shape) - 2
    groups = int(node.arguments["groups"])
    in_channels = weight.shape[1] * groups
    kind = LayerKind.CONV if groups == 1 else LayerKind.GROUPED
    if groups == in_channels and groups > 1:
        kind = LayerKind.DEPTHWISE
    stride = _per_dimension(node.arguments["stride"], dimensions)
    dilation = _per_dimension(node.arguments["dilation"], dimensions)
    padding, problem = _padding(node.arguments["padding"], weight.shape[2:], dilation)
    frozen = frozen or problem
    return Layer(
        name, kind, node.name, weight.target, bias_name, weight.shape,
        stride, padding, dilation, groups, frozen,
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
