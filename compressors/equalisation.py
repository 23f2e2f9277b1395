"""Cross-layer equalisation: the same function with weights whose channels are of like size.

One scale for a whole matrix, or one range for all channels of an activation, is set by the largest channel; small
ones are left with few steps of it. Where `f` is positively homogeneous, `f(s x) = s f(x)` for `s > 0`: channel `i` of a
layer can be divided by `s_i` if whatever reads it multiplies it by `s_i`. With `r1_i` the largest weight that makes the
channel and `r2_i` the largest that reads it,

    s_i = sqrt(r1_i / r2_i)

makes both `sqrt(r1_i r2_i)` (Nagel, van Baalen, Blankevoort, Welling: "Data-Free Quantization Through Weight
Equalization and Bias Correction", ICCV 2019, section 4.1). A depthwise layer both reads and makes channels, so that one
pair undoes a part of the next: all are repeated until nothing changes.

Left alone are layers whose channels meet those of another layer (residual sums, concatenations), pass an operator that
is not positively homogeneous (ReLU6, GELU, norms) or are the model's output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paretopress.compressors.network import Network, Part, channels_along
from paretopress.spaces.coupling import Axis, where
from paretopress.spaces.fusion import POOLS, pads_with_zeros
from paretopress.spaces.graph import Node
from paretopress.spaces.layers import Layer, LayerKind
from paretopress.spaces.shortcuts import PADDINGS
from paretopress.spaces.structure import Structure
from paretopress.spaces.weights_applied import source_of

ROUNDS = 200
TOLERANCE = 1e-4    # of the logarithm of a factor
DEAD = 1e-6         # a channel whose weights are this small beside the largest ones carries nothing to balance

MOVES = frozenset((
    "view", "reshape", "flatten", "squeeze", "unsqueeze", "contiguous", "alias", "detach", "clone", "permute",
    "transpose", "slice", "select", *PADDINGS,
))
HOMOGENEOUS = POOLS | MOVES | frozenset((
    "relu", "leaky_relu", "mean", "dropout", "adaptive_max_pool1d", "adaptive_max_pool2d",
))
"""Operators of one tensor that commute with positive factors of its channels, in eval mode."""


@dataclass(frozen=True)
class Pair:
    """A layer and those that read its channels, all of them and nothing else.

    Attributes:
        producer: The layer that makes the channels.
        made: `(out,)`: which channel each of its outputs belongs to.
        readers: The layers that read them, each with the channel of every of its inputs, `(in,)`.
        count: Number of channels.
    """

    producer: Layer
    made: Tensor
    readers: tuple[tuple[Layer, Tensor], ...]
    count: int


def equalised(network: Network) -> Network:
    """Rescale the layers of a dense network whose batch normalisation is folded; what it computes stays.

    Returns:
        The network; `Network.equalised` counts the pairs. `find_pairs` says why other layers are in none.
    """
    pairs, _ = find_pairs(network.plan.structure)
    scales = equalising_factors(pairs, {node: parts[0].weight for node, parts in network.parts.items()})
    layers = {layer.node: layer for pair in pairs for layer in (pair.producer, *(one for one, _ in pair.readers))}
    divisors = {pair.producer.node: scale[pair.made] for pair, scale in zip(pairs, scales, strict=True)}
    factors = {reader.node: scale[numbers] for pair, scale in zip(pairs, scales, strict=True)
               for reader, numbers in pair.readers}
    parts = dict(network.parts)
    for node, layer in layers.items():
        parts[node] = (rescaled(layer, parts[node][0], divisors.get(node), factors.get(node)),)
    return replace(network, parts=parts, equalised=len(pairs))


def find_pairs(structure: Structure) -> tuple[tuple[Pair, ...], dict[str, str]]:
    """Return the pairs of a dense model in execution order, and for every other layer why it makes none."""
    pairs, left = [], {}
    for layer in structure.layers:
        found = _pair(structure, layer)
        if isinstance(found, Pair):
            pairs.append(found)
        else:
            left[layer.name] = found
    return tuple(pairs), left


def _pair(structure: Structure, layer: Layer) -> Pair | str:
    if layer.frozen:
        return layer.frozen
    if layer.kind is LayerKind.EMBEDDING:
        return "the features of a table are no rows that could be divided"
    found = _readers(structure, layer)
    if isinstance(found, str):
        return found
    axis = _channel_axis(structure, layer, layer.node)
    starts: dict[str, int] = {}
    count = 0
    for segment in axis or ():
        if segment.group not in starts:
            starts[segment.group], count = count, count + segment.size
    made = channels_along(axis, starts)
    if made is None or len(made) != layer.out_channels:
        return "its channels cannot be told apart"
    readers = []
    for reader, source in found:
        numbers = channels_along(_channel_axis(structure, reader, source), starts)
        if numbers is None or len(numbers) != reader.in_channels or bool((numbers < 0).any()):
            return f"its channels cannot be followed to {reader.name}"
        readers.append((reader, numbers))
    return Pair(layer, made, tuple(readers), count)


def _readers(structure: Structure, layer: Layer) -> list[tuple[Layer, str]] | str:
    """The layers that a layer's output reaches, with the nodes they read; or what else reads it."""
    graph, layers = structure.graph, {one.node: one for one in structure.layers}
    found: list[tuple[Layer, str]] = []
    waiting = [layer.node]
    while waiting:
        name = waiting.pop()
        for user in graph.users[name]:
            node, reader = graph.by_name[user], layers.get(user)
            if node.op == "output":
                return "it reaches the model's output"
            if reader is not None:
                if reader.frozen or source_of(node) != name:
                    return f"{reader.name} reads it: {reader.frozen or 'not as its input'}"
                found.append((reader, name))
            elif passes(node) or (user in structure.fusion.folds and name == layer.node):
                waiting.append(user)
            elif node.short_op != "sym_size":
                return f"{where(node)} reads it, which does not pass on factors of single channels"
    return found or "no layer reads it"


def passes(node: Node) -> bool:
    """Whether positive factors of single channels pass an operator unchanged."""
    return node.short_op in HOMOGENEOUS and (node.short_op not in PADDINGS or pads_with_zeros(node))


def _channel_axis(structure: Structure, layer: Layer, name: str) -> Axis:
    """The axis of the channels of a value that a layer makes or reads."""
    axes = structure.coupling.values.get(name)
    return axes[1 if layer.window else -1] if axes else None


def equalising_factors(pairs: Sequence[Pair], weights: Mapping[str, Tensor]) -> list[Tensor]:
    """Iterate `s_i = sqrt(r1_i / r2_i)` over all pairs until no factor changes.

    Args:
        pairs: In execution order.
        weights: By outputs, of every layer's node.

    Returns:
        Of every pair what each channel is divided by, `(count,)` float64.
    """
    layers = {layer.node: layer for pair in pairs for layer in (pair.producer, *(one for one, _ in pair.readers))}
    sizes = {node: _by_groups(layer, weights[node].double().abs()).amax(dim=3) for node, layer in layers.items()}
    totals = [torch.ones(pair.count, dtype=torch.float64) for pair in pairs]
    for _ in range(ROUNDS):
        change = 0.0
        for index, pair in enumerate(pairs):
            node, groups = pair.producer.node, pair.producer.groups
            factors = _balance(pair, sizes)
            totals[index] = totals[index] * factors
            sizes[node] = sizes[node] / factors[pair.made].reshape(groups, -1, 1)
            for reader, numbers in pair.readers:
                sizes[reader.node] = sizes[reader.node] * factors[numbers].reshape(reader.groups, 1, -1)
            change = max(change, float(factors.log().abs().max()))
        if change < TOLERANCE:
            break
    return totals


def _balance(pair: Pair, sizes: Mapping[str, Tensor]) -> Tensor:
    """The factors that make what makes a channel as large as what reads it; 1 for channels that carry nothing."""
    made = _largest(sizes[pair.producer.node].amax(dim=2).flatten(), pair.made, pair.count)
    read = torch.zeros_like(made)
    for reader, numbers in pair.readers:
        read = torch.maximum(read, _largest(sizes[reader.node].amax(dim=1).flatten(), numbers, pair.count))
    alive = (made > DEAD * made.max()) & (read > DEAD * read.max())
    return torch.where(alive, (made / read).sqrt(), torch.ones_like(made))


def _largest(sizes: Tensor, numbers: Tensor, count: int) -> Tensor:
    return sizes.new_zeros(count).scatter_reduce_(0, numbers, sizes, "amax")


def _by_groups(layer: Layer, weight: Tensor) -> Tensor:
    """A weight by outputs as `(groups, outputs, inputs, window)`."""
    return weight.reshape(layer.groups, len(weight) // layer.groups, weight.shape[1], -1)


def rescaled(layer: Layer, part: Part, divisors: Tensor | None, factors: Tensor | None) -> Part:
    """A layer's part with outputs divided and inputs multiplied, in float64 until the end.

    Args:
        layer: The layer.
        part: Its whole weight and bias.
        divisors: `(out,)`, None for ones.
        factors: `(in,)` over all groups, None for ones.
    """
    weight, bias = _by_groups(layer, part.weight.double()), part.bias
    if factors is not None:
        weight = weight * factors.reshape(layer.groups, 1, -1, 1)
    if divisors is not None:
        weight = weight / divisors.reshape(layer.groups, -1, 1, 1)
        bias = None if bias is None else (bias.double() / divisors).to(bias.dtype)
    return replace(part, weight=weight.reshape(part.weight.shape).to(part.weight.dtype), bias=bias)
