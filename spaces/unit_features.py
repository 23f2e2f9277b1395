"""Features of units: what a layer or a channel group is, apart from its name, so that models can be compared.

Pure functions of the captured structure and the weights. Relative quantities (depth, shares of the whole model) are
comparable between models of any size; absolute ones (channels, window) between models of one kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paretopress.spaces.errors import PolicyError
from paretopress.spaces.kernels import product
from paretopress.spaces.layers import Layer, LayerKind
from paretopress.spaces.structure import Structure
from paretopress.spaces.weight_layout import by_outputs

if TYPE_CHECKING:
    from torch import Tensor

MOST_SIDE = 256   # rows and columns, evenly spaced, of a matrix whose spectrum is summarised
ROLES = ("stem", "head", "attention in", "attention out", "mlp", "inside", "trunk", "table")
GROUP, LAYER = "channels", "layer"
_ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")


@dataclass(frozen=True, slots=True)
class UnitFeatures:
    """What a layer, or a channel group, is.

    Attributes:
        operator: What its weight does, a `LayerKind`; of a group that of the first layer that makes its channels.
        role: One of `ROLES`: first or last layers, around attention, in a perceptron between, inside a residual
            branch, or on the trunk.
        pattern: Its name with `*` for the positions in lists of modules: `layer1.*.conv1`.
        place: Position among the layers in execution order, 0 for the first, 1 for the last.
        stage: How often the image has become smaller before its output.
        inputs: Input channels or features; of a group those of the first layer that makes its channels.
        outputs: Output channels or features; of a group all its features.
        window: Elements of the window, 1 where there is none.
        stride: The largest stride, 1 where there is none.
        full_rank: The smaller side of its matrix.
        macs_share: Of the model's multiply-accumulates, in [0, 1]; of a group those of all layers at its ends.
        bytes_share: Of the model's weights, in [0, 1]; of a group those of all layers at its ends.
        activation: Elements of its output per sample.
        rank_share: Effective rank over full rank, in (0, 1].
        kurtosis: Excess kurtosis of its weights: 0 for a normal distribution, more for heavy tails.
        members: Layers that make a group's channels, 1 for a layer: more than one where residual sums join them.
        droppable: Whether the group is the inside of a branch that can be dropped whole.
    """

    operator: str
    role: str
    pattern: str
    place: float
    stage: int
    inputs: int
    outputs: int
    window: int
    stride: int
    full_rank: int
    macs_share: float
    bytes_share: float
    activation: int
    rank_share: float
    kurtosis: float
    members: int = 1
    droppable: bool = False

    def to_plain(self) -> list[object]:
        """The values in the order of `COLUMNS`, numbers to five significant digits."""
        values = (getattr(self, name) for name in COLUMNS)
        return [float(f"{value:.5g}") if isinstance(value, float) else value for value in values]

    @classmethod
    def from_plain(cls, columns: Iterable[str], values: object, where: str) -> UnitFeatures:
        """Read what `to_plain` wrote.

        Raises:
            PolicyError: A column is missing or a value is of another type; the message starts with `where`.
        """
        names = list(columns)
        if not isinstance(values, list) or len(values) != len(names) or not set(COLUMNS) <= set(names):
            raise PolicyError(f"{where}: expected one value for each of {', '.join(COLUMNS)}")
        found = dict(zip(names, values, strict=True))
        for name, kind in _KINDS.items():
            value = found[name]
            right = isinstance(value, int | float) if kind is float else isinstance(value, kind)
            if not right or (isinstance(value, bool) and kind is not bool):
                raise PolicyError(f"{where}: {name}: expected {kind.__name__}, got {value!r}")
        if any(isinstance(value, float) and not np.isfinite(value) for value in found.values()):
            raise PolicyError(f"{where}: features are finite numbers")
        return cls(**{name: kind(found[name]) for name, kind in _KINDS.items()})


COLUMNS = tuple(entry.name for entry in fields(UnitFeatures))
_KINDS: Mapping[str, type] = {
    entry.name: {"str": str, "float": float, "int": int, "bool": bool}[str(entry.type)]
    for entry in fields(UnitFeatures)
}


def subject_of(unit: str) -> str:
    """The key of `unit_features` for a unit: `fc/layer` for `fc/weights`, `fc/channels` for itself."""
    name, _, kind = unit.rpartition("/")
    return unit if kind == GROUP else f"{name}/{LAYER}"


def pattern_of(name: str) -> str:
    """A name with `*` for positions in lists of modules: `layer1.*.conv1` for `layer1.0.conv1`."""
    return ".".join("*" if re.fullmatch(r"[0-9]+", part) else part for part in name.split("."))


def unit_features(structure: Structure, state: Mapping[str, Tensor]) -> dict[str, UnitFeatures]:
    """Return the features of all layers (`NAME/layer`) and channel groups (`NAME/channels`).

    Args:
        structure: Of the dense model.
        state: Its tensors by name; what is missing there counts as random: full rank and no tails.
    """
    layers = structure.layers
    macs = {layer.name: _macs(structure, layer) for layer in layers}
    weights = {layer.name: product(layer.shape) for layer in layers}
    all_macs, all_weights = max(1, sum(macs.values())), max(1, sum(weights.values()))
    roles, stages = _roles(structure), _stages(structure)
    found: dict[str, UnitFeatures] = {}
    for index, layer in enumerate(layers):
        rank_share, kurtosis = _spectrum(layer, state)
        found[f"{layer.name}/{LAYER}"] = UnitFeatures(
            operator=str(layer.kind), role=roles[layer.name], pattern=pattern_of(layer.name),
            place=index / max(1, len(layers) - 1), stage=stages[layer.name], inputs=layer.in_channels,
            outputs=layer.out_channels, window=product(layer.window), stride=max(layer.stride, default=1),
            full_rank=min(layer.sides(layer.shape)), macs_share=macs[layer.name] / all_macs,
            bytes_share=weights[layer.name] / all_weights,
            activation=structure.graph.by_name[layer.node].elements_per_sample,
            rank_share=rank_share, kurtosis=kurtosis,
        )
    for group in structure.coupling.groups:
        makers = [found[f"{name}/{LAYER}"] for name in group.producers if f"{name}/{LAYER}" in found]
        if not makers:
            continue
        first, ends = makers[0], {*group.producers, *group.consumers} & macs.keys()
        found[f"{group.name}/{GROUP}"] = UnitFeatures(
            operator=first.operator, role=first.role, pattern=pattern_of(group.name),
            place=float(np.mean([maker.place for maker in makers])), stage=first.stage, inputs=first.inputs,
            outputs=group.size * group.inner, window=first.window, stride=first.stride, full_rank=group.size,
            macs_share=sum(macs[name] for name in ends) / all_macs,
            bytes_share=sum(weights[name] for name in ends) / all_weights,
            activation=max(maker.activation for maker in makers),
            rank_share=float(np.mean([maker.rank_share for maker in makers])),
            kurtosis=float(np.mean([maker.kurtosis for maker in makers])),
            members=len(makers), droppable=group.name in structure.branches,
        )
    return found


def _macs(structure: Structure, layer: Layer) -> int:
    if layer.kind is LayerKind.EMBEDDING:
        return 0
    node = structure.graph.by_name[layer.node]
    if layer.kind is LayerKind.TRANSPOSED:   # every input position is multiplied with the whole weight
        read = structure.graph.by_name[node.inputs[0]]
        return read.elements_per_sample // layer.in_channels * product(layer.shape) * layer.groups
    return node.elements_per_sample // layer.out_channels * product(layer.shape)


def _stages(structure: Structure) -> dict[str, int]:
    """Per layer how often the positions of its output have become fewer than in any layer before it."""
    stage, least = 0, 0
    found = {}
    for layer in structure.layers:
        count = structure.graph.by_name[layer.node].elements_per_sample // max(1, layer.out_channels)
        if least and count < least:
            stage += 1
        least = min(least or count, count) or count
        found[layer.name] = stage
    return found


def _roles(structure: Structure) -> dict[str, str]:
    inside = {name for branch in structure.branches.values() for name in branch.layers}
    into, out_of = _around_attention(structure)
    found = {}
    for layer in structure.layers:
        end, node = structure.ends.get(layer.name, ""), structure.graph.by_name[layer.node]
        if layer.kind is LayerKind.EMBEDDING:
            role = "table"
        elif layer.name in into:
            role = "attention in"
        elif layer.name in out_of:
            role = "attention out"
        elif end:
            role = "head" if "last" in end else "stem"
        elif layer.kind is LayerKind.LINEAR and len(node.shape) > 2:
            role = "mlp"
        else:
            role = "inside" if layer.name in inside else "trunk"
        found[layer.name] = role
    return found


def _around_attention(structure: Structure) -> tuple[set[str], set[str]]:
    """Layers whose outputs an attention reads, and those that read what it makes, nothing with a weight between."""
    graph, layer_of = structure.graph, {layer.node: layer.name for layer in structure.layers}
    users = graph.users
    cores = [node.name for node in graph.nodes if node.short_op in _ATTENTION or (
        node.short_op in ("softmax", "_softmax") and any(
            graph.by_name[user].short_op in ("matmul", "bmm", "einsum") for user in _beyond_moves(structure, node.name)
        )
    )]

    def reached(neighbours: Mapping[str, tuple[str, ...]]) -> set[str]:
        waiting, seen, found = list(cores), set(cores), set()
        while waiting:
            for name in neighbours[waiting.pop()]:
                if name in layer_of:
                    found.add(layer_of[name])
                elif name not in seen and graph.by_name[name].short_op not in ("layer_norm", "batch_norm", "add"):
                    seen.add(name)
                    waiting.append(name)
        return found

    return reached({node.name: node.inputs for node in graph.nodes}), reached(users)


def _beyond_moves(structure: Structure, name: str) -> tuple[str, ...]:
    """Who reads a value, behind dropouts and conversions."""
    users = structure.graph.users
    found: list[str] = []
    for user in users[name]:
        passes = structure.graph.by_name[user].short_op in ("dropout", "to", "type_as", "expand", "clone")
        found += _beyond_moves(structure, user) if passes else [user]
    return tuple(found)


def _spectrum(layer: Layer, state: Mapping[str, Tensor]) -> tuple[float, float]:
    """Effective over full rank, and excess kurtosis, of a layer's matrix or of evenly spaced rows and columns of it.

    The effective rank is the exponential of the entropy of the normalised singular values (Roy and Vetterli, "The
    effective rank", EUSIPCO 2007).
    """
    tensor = state.get(layer.weight)
    if tensor is None or not tensor.is_floating_point():
        return 1.0, 0.0
    rows = by_outputs(layer, tensor.detach().cpu().float(), layer.groups)
    matrix: NDArray[np.float64] = rows.reshape(rows.shape[0], -1).numpy().astype(np.float64)
    for axis in (0, 1):
        if matrix.shape[axis] > MOST_SIDE:
            matrix = matrix.take(np.linspace(0, matrix.shape[axis] - 1, MOST_SIDE).astype(int), axis=axis)
    spread = matrix - matrix.mean()
    variance = float((spread**2).mean())
    if variance <= 0.0 or not np.isfinite(variance):
        return 1.0, 0.0
    kurtosis = float((spread**4).mean()) / variance**2 - 3.0
    values = np.linalg.svd(matrix, compute_uv=False)
    shares = values / values.sum()
    shares = shares[shares > 1e-12]
    effective = float(np.exp(-(shares * np.log(shares)).sum()))
    return min(1.0, effective / min(matrix.shape)), kurtosis
