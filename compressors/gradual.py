"""Gradual compression: a policy is reached in steps, with training between them.

One cut removes all at once what training then has to make up for; several smaller ones let it move what is needed
into what stays ("Learning both Weights and Connections for Efficient Neural Networks", Han et al., NeurIPS 2015; the
schedule is that of Zhu and Gupta, "To prune, or not to prune", 2017). Every step is a really smaller network. Its
trained weights are put back into the shapes of the dense model, with zeros where something was removed, so that the
next step is made of them by the same code as the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from paretopress.compressors.network import Network, Part, Selection, axis_index, kept_columns
from paretopress.compressors.program import Program
from paretopress.compressors.thresholds import Schedule, cumulative_keep
from paretopress.spaces.choices import Choice, Keep, Sparse
from paretopress.spaces.kernels import product
from paretopress.spaces.layers import Layer, LayerKind
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


def on_the_way(policy: Policy, step: int, steps: int, schedule: Schedule = "cubic") -> Policy:
    """What a step on the way to a policy removes: channels, and weights that are not in patterns `n:m`.

    Everything else (formats, ranks, dropped branches) is not there by degrees, and comes at the end.

    Args:
        policy: The end.
        step: 1 to `steps`.
        steps: Number of steps, at least 1.
        schedule: How the end is approached; see `cumulative_keep`.
    """
    found: dict[str, Choice] = {}
    for unit, choice in policy:
        if isinstance(choice, Keep) and choice.ratio > 0.0:
            found[unit] = Keep(cumulative_keep(step, steps, choice.ratio, schedule))
        elif isinstance(choice, Sparse) and ":" not in choice.pattern:
            found[unit] = replace(choice, density=cumulative_keep(step, steps, choice.density, schedule))
    return Policy.of(found, model=policy.model, space=policy.space)


def in_dense_shapes(program: Program, network: Network, base: Network) -> Network:
    """A network of removed channels and weights in the shapes of the dense model, zeros where they were.

    It computes the same, but for groups of channels that statistics run over (`stands_for_removal` tells).

    Args:
        program: The captured dense model.
        network: Neither factorised nor in another format than floats.
        base: What holds what the network does not: the dense model, or what stood for it before.
    """
    parts = dict(base.parts)
    for layer in program.structure.layers:
        node = layer.node
        if node in network.parts and not layer.frozen and layer.kind is not LayerKind.EMBEDDING:
            (part,) = network.parts[node]
            parts[node] = (_in_dense_shape(program, layer, part, base.parts[node][0], network.selection),)
    return replace(base, parts=parts)


def _in_dense_shape(program: Program, layer: Layer, part: Part, dense: Part, selection: Selection) -> Part:
    axes = program.structure.weight_axes(layer)
    rows, columns = axis_index(axes[0], selection), kept_columns(layer, axes[1], selection)
    matrix = dense.weight.new_zeros(len(dense.weight), product(tuple(dense.weight.shape[1:])))
    bias = dense.weight.new_zeros(len(dense.weight))
    rows = torch.arange(len(matrix)) if rows is None else rows
    columns = torch.arange(matrix.shape[1]) if columns is None else columns
    matrix[rows.unsqueeze(1), columns] = part.weight.reshape(len(rows), len(columns))
    if part.bias is not None:
        bias[rows] = part.bias
    return Part(matrix.reshape(dense.weight.shape), bias)


def removed_blocks(program: Program, selection: Selection) -> dict[str, Tensor]:
    """Blocks of every pruned group that a selection does not keep, rising."""
    found = {}
    for group in program.structure.coupling.groups:
        if group.name in selection:
            kept = torch.unique(selection[group.name] // group.step)
            left = torch.ones(group.size // group.step, dtype=torch.bool)
            left[kept] = False
            found[group.name] = left.nonzero().flatten()
    return found


def gradual_units(program: Program, policy: Policy, same: Mapping[str, bool]) -> Policy:
    """The part of a policy that steps can approach.

    Args:
        program: The captured dense model.
        policy: The end.
        same: By group whether zeros compute the same as its removal.

    Raises:
        PolicyError: The policy does not fit the model.
    """
    plan(program.structure, policy)
    kept = {unit: choice for unit, choice in on_the_way(policy, 1, 1)
            if not isinstance(choice, Keep) or same.get(unit.rpartition("/")[0], False)}
    return Policy.of(kept, model=policy.model, space=policy.space)
