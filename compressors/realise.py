"""Realising a network: from the tensors of a candidate to a smaller instance of the user's own class."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paretopress.compressors.apply_edits import apply_edits, load_tensors, stored_tensors
from paretopress.compressors.compressed_model import CompressedModel, delta_of
from paretopress.compressors.delta import LayerEdit, module_edits
from paretopress.compressors.layout_edits import is_split_in_code
from paretopress.compressors.network import Network, Part, apply_parts, runner
from paretopress.compressors.program import Program, Values
from paretopress.compressors.stored import written
from paretopress.spaces.errors import UnsupportedModelError
from paretopress.spaces.factor_forms import part_layers
from paretopress.spaces.layer_formats import own_input
from paretopress.spaces.plan import LayerPlan
from paretopress.spaces.weight_layout import as_stored


def realise(model: nn.Module, program: Program, network: Network) -> CompressedModel:
    """Return the compressed model of a network; for the dense policy that is the model itself, copied.

    Args:
        model: The dense model that `program` captured; it is not changed.
        program: Its capture.
        network: All tensors of the candidate.

    Returns:
        The compressed model in eval mode on the CPU, its parameters frozen (PyTorch chooses other kernels
        for parameters that require gradients). It computes what `network` computes, bit for bit; under the
        dense policy it is a copy of `model`.

        Where the user's code does not compute that with smaller layers (sizes are written in it), the
        model runs its captured graph instead; `delta.graph` says why.

    Raises:
        UnsupportedModelError: A module cannot be changed, or the captured graph does not run either.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        delta = delta_of(program, network)
        realised = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        apply_edits(realised, delta.edits)
        if not network.plan.policy.is_dense:
            load_tensors(realised, network_tensors(network, realised), delta.edits)
            delta = replace(delta, graph=_difference(program, network, realised))
        return CompressedModel(realised, delta, network.ranges, program)


def network_tensors(network: Network, realised: nn.Module) -> dict[str, Tensor]:
    """Return the state of a realised model from the tensors of a network.

    Args:
        network: The network.
        realised: The user's model after edits, which says what belongs to its state.
    """
    names = stored_tensors(realised).keys()
    tensors = {name: tensor for name, tensor in network.state.items() if name in names}
    for layer_plan in network.plan.layers:
        if not layer_plan.layer.frozen:
            tensors.update(_layer_tensors(layer_plan, network.parts[layer_plan.layer.node]))
    return tensors


def _layer_tensors(layer_plan: LayerPlan, parts: tuple[Part, ...]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    names = layer_plan.layer.part_tensors(len(parts))
    applied_layers = part_layers(layer_plan.layer, layer_plan.factors)
    for applied, (name, _), part in zip(applied_layers, names, parts, strict=True):
        if part.stored is None:
            tensors[name] = as_stored(applied, part.weight, layer_plan.groups)
            continue
        stored = {**written(part.stored), **({} if part.inputs is None else part.inputs.tensors())}
        tensors.update((f"{name}_{suffix}", tensor) for suffix, tensor in stored.items())
    bias = parts[-1].bias
    if bias is not None:
        tensors[names[-1][1]] = bias
    return tensors


def _difference(program: Program, network: Network, realised: nn.Module) -> str:
    """Run both once: why the user's code does not compute what was captured, `""` where it does.

    Sizes that are written in the user's code (views of an attention, say) do not follow smaller layers.
    """
    for edit in module_edits(network.plan):
        if isinstance(edit, LayerEdit) and edit.held is not None and is_split_in_code(edit):
            return f"the model's code has no place for two factors of the parameter {edit.held.weight!r}"
        if isinstance(edit, LayerEdit) and (changed := own_input(edit.form)):
            return f"layer {edit.path!r} {changed}, which the model's code does not"
    inputs = [_example(program, name) for name in program.graph.inputs]
    positional = len(inputs) - len(program.capture.keywords)
    keywords = dict(zip(program.capture.keywords, inputs[positional:], strict=True))

    def apply(layer: LayerPlan, x: Tensor, _: Values) -> Tensor:
        return apply_parts(network, layer, x, _in_floats)

    program = program.under(network.plan.structure)
    try:
        values = program.run(inputs, runner(program, network, apply=apply, quantise=_in_floats))
    except Exception as error:  # noqa: BLE001 - operators raise anything on sizes that they do not take
        raise UnsupportedModelError(f"the captured graph does not run with smaller layers: {_line(error)}") from None
    try:
        found = pytree.tree_leaves(realised(*inputs[:positional], **keywords))
    except Exception as error:  # noqa: BLE001 - the user's own code raises anything
        return f"the model's code does not run with smaller layers: {_line(error)}"
    expected = pytree.tree_leaves(program.outputs(values))
    for one, other in zip(expected, found, strict=True):
        if isinstance(one, Tensor) and not _close(one, other):
            return "with smaller layers the model's code does not compute what was captured"
    return ""


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _in_floats(_: str, value: Tensor) -> Tensor:
    return value


def _example(program: Program, name: str) -> Any:  # noqa: ANN401
    """Values between -1 and 1; zeros for inputs that are indices."""
    node = program.graph.by_name[name]
    dtype = getattr(torch, node.dtype)
    if not dtype.is_floating_point:
        return torch.zeros(node.shape, dtype=dtype)
    count = torch.Size(node.shape).numel()
    return torch.sin(torch.arange(count) * 0.7).to(dtype).reshape(node.shape)
