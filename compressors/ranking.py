"""How the channels of a group are ranked: every importance on a captured model and its calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from paretopress.compressors.calibration import Calibration
from paretopress.compressors.channel_selection import (
    curvature_scores,
    eliminate,
    fisher_scores,
    geometric_median_scores,
    l1_scores,
    l2_scores,
    order_of,
    scale_scores,
    taylor_scores,
)
from paretopress.compressors.folding import normalisation_scale
from paretopress.compressors.network import layer_columns
from paretopress.compressors.program import Program
from paretopress.spaces.coupling import Axis, ChannelGroup
from paretopress.spaces.kernels import product
from paretopress.spaces.layers import Layer

Importance = Literal["l1", "l2", "taylor", "obs", "fpgm", "bn_scale", "fisher", "hessian"]
IMPORTANCES: tuple[Importance, ...] = ("l1", "l2", "taylor", "obs", "fpgm", "bn_scale", "fisher", "hessian")
Curvature = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Ranking:
    """Blocks of a group's channels by importance.

    Attributes:
        order: `(blocks,)` block indices from least to most important.
        scores: `(blocks,)` float64 importance of each block in the order of the channels; of `"obs"` what its removal
            costs, as a fraction of the variance of the layers that read it, when its turn comes.
    """

    order: Tensor
    scores: Tensor


def rank_channels(
    program: Program,
    calibration: Calibration,
    importance: Importance,
    group: ChannelGroup,
    curvature: Curvature,
) -> Ranking:
    """Rank the blocks of a group.

    An importance that a group has no basis for gives way to `"l2"`: gradients and curvature where no free layer
    produces the group, `"obs"` where none reads it, `"bn_scale"` where no batch normalisation with a learned scale is
    folded into a producer.

    Args:
        program: The captured dense model.
        calibration: Its dense statistics.
        importance: How channels are ranked.
        group: The group.
        curvature: Gives `curvature.relative_curvature` by layer node, summed over each output; called for `"hessian"`
            only.

    Raises:
        DataError: No gradient reaches the producers, or the moments are unusable.
        UnsupportedModelError: `"hessian"` where an operator has no second derivative.
    """
    if importance == "obs":
        views = [_consumer_views(program, calibration, program.structure.layer(name), group.name)
                 for name in group.consumers]
        consumers = [view for found in views for view in found]
        if consumers:
            return Ranking(*eliminate(consumers, group.step, group.size // group.step))
    scores = _scores(program, calibration, importance, group, curvature)
    return Ranking(order_of(scores), scores)


def _scores(
    program: Program, calibration: Calibration, importance: Importance, group: ChannelGroup, curvature: Curvature
) -> Tensor:
    producers = [program.structure.layer(name) for name in group.producers]
    free = [layer for layer in producers if not layer.frozen]
    match importance:
        case "taylor" if free:
            return taylor_scores(calibration.taylor(program, group), group.step)
        case "fisher" if free:
            return fisher_scores(list(calibration.gradient_activations(program, group).values()), group.step)
        case "hessian" if free and not group.frozen:
            by_node = curvature()
            curved = [(by_node[layer.node], program.structure.weight_axes(layer)[:1]) for layer in free]
            runs = [run for tensor, axes in curved for run in channel_runs(tensor, axes, group.name)]
            return curvature_scores(runs, group.step)
        case "bn_scale" if scales := _scales(program, producers, group.name):
            return scale_scores(scales, group.step)
    runs = _weight_runs(program, calibration, producers, group.name)
    match importance:
        case "l1":
            return l1_scores(runs, group.step)
        case "fpgm":
            return geometric_median_scores(runs, group.step)
        case _:
            return l2_scores(runs, group.step)


def _weight_runs(
    program: Program, calibration: Calibration, producers: Sequence[Layer], group: str
) -> list[Tensor]:
    """The weights `(channels, columns)` that make a group's channels."""
    axes = program.structure.weight_axes
    weights = [(calibration.folded[layer.node][0], axes(layer)[:1]) for layer in producers]
    if not weights:   # made by no layer but an embedding, a recurrent network or a product in the user's code
        own = program.structure.coupling.parameters
        weights = [(program.state[name], own[name]) for name in own if program.state[name].ndim > 1]
    return [run for tensor, axis in weights for run in channel_runs(tensor, axis, group)]


def _scales(program: Program, producers: Sequence[Layer], group: str) -> list[Tensor]:
    """The learned scales of the batch normalisations folded into a group's producers."""
    normalisations = {layer.node: name for name, layer in program.structure.fusion.folds.items()}
    found = []
    for layer in producers:
        if layer.node in normalisations:
            scale = normalisation_scale(program, normalisations[layer.node])
            if scale is not None:
                found += channel_runs(scale, program.structure.weight_axes(layer)[:1], group)
    return found


def _consumer_views(
    program: Program, calibration: Calibration, layer: Layer, group: str
) -> list[tuple[Tensor, Tensor, int]]:
    """`(W, G, columns per channel)` of each run of the group's channels among a layer's inputs.

    None of layers whose weights are shared or tied, of which there are no moments, and of grouped
    convolutions, whose groups read different channels.
    """
    if layer.frozen or not layer.mixes_all:
        return []
    matrix = layer_columns(calibration.folded[layer.node][0])
    moments = calibration.layers[layer.node].moments
    views, offset, window = [], 0, product(layer.window)
    for segment in program.structure.weight_axes(layer)[1] or ():
        width = segment.inner * window
        count = segment.size * width
        if segment.group == group:
            index = torch.arange(offset, offset + count)
            augmented = torch.cat([index, torch.tensor([matrix.shape[1]])])
            views.append((matrix[:, index], moments[augmented][:, augmented], width))
        offset += count
    return views


def channel_runs(tensor: Tensor, axes: Sequence[Axis], group: str) -> list[Tensor]:
    """`(channels, entries)` of each run of a group's channels along the dimensions of a parameter."""
    runs = []
    for dimension, axis in enumerate(axes):
        offset = 0
        for segment in axis or ():
            if segment.group == group:
                rows = tensor.narrow(dimension, offset, segment.length).movedim(dimension, 0)
                runs.append(rows.reshape(segment.size, -1))
            offset += segment.length
    return runs
