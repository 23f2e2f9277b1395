"""Folding batch normalisation into the layer before it: `y = gamma (W x + b - mean) / sqrt(var + eps) + beta`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from paretopress.compressors.network import Selection, select
from paretopress.compressors.program import Program
from paretopress.spaces.graph import Node
from paretopress.spaces.weight_layout import by_outputs


def folded_layers(program: Program) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weight and bias of every layer with its batch normalisation folded in.

    Args:
        program: The captured dense model.

    Returns:
        Layer node to `(weight, bias)`; layers without normalisation keep theirs, a missing bias is zero.
    """
    normalisations = {layer.node: name for name, layer in program.structure.fusion.folds.items()}
    folded = {}
    for layer in program.structure.layers:
        weight = by_outputs(layer, program.state[layer.weight], layer.groups).contiguous()
        bias = program.state[layer.bias] if layer.bias else torch.zeros(layer.out_channels, dtype=weight.dtype)
        if layer.node in normalisations:
            weight, bias = fold(weight, bias, *normalisation_affine(program, normalisations[layer.node]))
        folded[layer.node] = (weight, bias)
    return folded


def normalisation_affine(program: Program, name: str) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel that a batch normalisation in eval mode applies."""
    node = program.graph.by_name[name]
    mean, variance = (_parameter(program, node, argument) for argument in ("running_mean", "running_var"))
    gamma, beta = (_parameter(program, node, argument) for argument in ("weight", "bias"))
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance.double() + float(node.arguments["eps"]))
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() * scale
    if beta is not None:
        shift = shift + beta.double()
    return scale, shift


def normalisation_scale(program: Program, name: str) -> Tensor | None:
    """The learned scale per channel of a batch normalisation, None where it has none."""
    return _parameter(program, program.graph.by_name[name], "weight")


def fold(weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of `scale * (W x + b) + shift`, computed in float64."""
    rows = scale.reshape(-1, *(1,) * (weight.ndim - 1))
    return (weight.double() * rows).to(weight.dtype), (bias.double() * scale + shift).to(bias.dtype)


def _parameter(program: Program, node: Node, argument: str) -> Tensor | None:
    parameter = program.graph.parameter(node, argument)
    return program.state[parameter.target] if parameter is not None else None


def remaining_state(program: Program, folded: bool) -> Mapping[str, Tensor]:
    """State that belongs to no layer that may change: without folded normalisations where `folded`."""
    free = [layer for layer in program.structure.layers if not layer.frozen]
    owned = {name for layer in free for name in (layer.weight, layer.bias) if name}
    gone = program.structure.folded_state if folded else frozenset()
    return {name: tensor for name, tensor in program.state.items() if name not in owned and name not in gone}


def pruned_state(program: Program, selection: Selection) -> dict[str, Tensor]:
    """`remaining_state` with normalisation folded at its pruned sizes; normalised weights stay what they were.

    The norm of a normalised weight runs over what is left of it, so its gain takes over what is missing: then the
    weight that both make keeps its dense values.
    """
    axes = program.structure.coupling.parameters
    state = {
        name: select(tensor, axes.get(name) or (None,) * tensor.ndim, selection)
        for name, tensor in remaining_state(program, folded=True).items()
    }
    for node in program.graph.operators():
        names = [program.graph.parameter(node, argument) for argument in ("v", "g")]
        direction, gain = (None if one is None else one.target for one in names)
        if node.short_op != "_weight_norm" or direction is None or gain is None:
            continue
        dense, own, dim = program.state[direction], axes.get(direction), int(node.arguments["dim"])
        if own is None or dense.shape == state[direction].shape:
            continue
        rows = [axis if place == dim % dense.ndim else None for place, axis in enumerate(own)]
        along = select(dense, rows, selection)
        norms = [torch.norm_except_dim(tensor, 2, dim) for tensor in (state[direction], along)]
        state[gain] = state[gain] * torch.where(norms[1] > 0, norms[0] / norms[1], 1.0).to(state[gain].dtype)
    return state
