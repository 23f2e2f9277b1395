"""Edits of layers whose tensors are not those of a plain convolution or linear module.

Three kinds: transposed convolutions; modules of the user's own class that hold nothing but a weight and a bias
(GPT-2's `Conv1D`), whose factors are two copies in a row; and parameters that the code of a larger module reads.
Of the last the factors stand beside the parameter, which keeps their product for the user's code to read.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from paretopress.compressors.delta import LayerEdit
from paretopress.compressors.held import Held
from paretopress.compressors.stored import DTYPES, read_stored
from paretopress.spaces.errors import ArtifactError, UnsupportedModelError
from paretopress.spaces.factor_forms import part_layers
from paretopress.spaces.layers import Holder, Layer, LayerKind
from paretopress.spaces.structure import is_size
from paretopress.spaces.weight_layout import as_stored, by_outputs, stored_shape

_INPUTS = ("in_features", "in_channels", "nx")   # names of sizes that a module reads


def edit_held(module: nn.Module, edit: LayerEdit) -> nn.Module | None:
    """Make a layer as small as its edit says; `fill_held` computes its float weights afterwards.

    Args:
        module: What is at the edit's path.
        edit: The edit.

    Returns:
        The module to put in its place, None where it stays.

    Raises:
        ArtifactError: The tensors at the path do not belong to the edit.
        UnsupportedModelError: A transposed convolution is of an unknown class.
    """
    held, layer = _held(edit), _layer(edit)
    weight, bias = getattr(module, held.weight, None), getattr(module, held.bias or held.weight, None)
    if not isinstance(weight, nn.Parameter) or not isinstance(bias, nn.Parameter):
        lacks = f"{type(module).__name__} has no parameter {held.weight!r} or {held.bias!r}"
        raise ArtifactError(f"layer {edit.path!r}: {lacks}: the artefact is another model's")
    wanted = stored_shape(layer, edit.shape, edit.groups)
    fits = weight.ndim == len(wanted) and all(new <= old for new, old in zip(wanted, weight.shape, strict=True))
    if not fits or edit.groups > edit.shape[0] or _rank(edit) > min(layer.sides(edit.shape)):
        reason = f"a weight of {tuple(weight.shape)} cannot become {wanted}"
        raise ArtifactError(f"layer {edit.path!r}: {reason}: the artefact is another model's")
    if held.holder is Holder.CODE or held.kind is LayerKind.EMBEDDING:
        _edit_parameter(module, edit, weight)
        if isinstance(module, nn.Embedding):
            module.embedding_dim = edit.shape[1]
        return None
    return _edit_own(module, edit) if held.holder is Holder.OWN else _edit_transposed(module, edit)


def is_split_in_code(edit: LayerEdit) -> bool:
    """Whether a parameter that a larger module's code reads becomes two factors, for which that has no place."""
    return edit.factors is not None and edit.held is not None and edit.held.holder is Holder.CODE


def _rank(edit: LayerEdit) -> int:
    return 1 if edit.factors is None else edit.factors.rank


def _held(edit: LayerEdit) -> Held:
    assert edit.held is not None
    return edit.held


def _layer(edit: LayerEdit) -> Layer:
    """The edited layer, as far as its layout goes."""
    held = _held(edit)
    return Layer(edit.path, held.kind, "", held.weight, held.bias, edit.shape, flipped=held.flipped, holder=held.holder)


def _edit_parameter(module: nn.Module, edit: LayerEdit, weight: Tensor) -> None:
    name = _held(edit).weight
    if edit.factors is None:
        _set_weight(module, name, edit.shape, edit)
    else:
        for suffix, layer, (_, shape) in zip(("first", "second"), _part_layers(edit), edit.parts, strict=True):
            _new_weight(module, f"{name}_{suffix}", layer, shape, weight, edit)
        delattr(module, name)
        shown = weight.detach().new_zeros(stored_shape(_layer(edit), edit.shape, edit.groups))
        module.register_buffer(name, shown, persistent=False)
    _set_bias(module, edit)


def _part_layers(edit: LayerEdit) -> tuple[Layer, ...]:
    return part_layers(_layer(edit), edit.factors)


def _edit_own(module: nn.Module, edit: LayerEdit) -> nn.Module | None:
    name, bias = _held(edit).weight, _held(edit).bias
    out, inputs = by_outputs(_layer(edit), getattr(module, name), edit.groups).shape[:2]
    if edit.factors is None:
        _set_weight(module, name, edit.shape, edit)
        _set_bias(module, edit)
        _set_sizes(module, (inputs, out), (edit.shape[1], edit.shape[0]))
        return None
    parts = (copy.deepcopy(module), module)
    for part, (_, shape) in zip(parts, edit.parts, strict=True):
        _set_weight(part, name, shape, edit)
        _set_sizes(part, (inputs, out), (shape[1], shape[0]))
    _set_bias(parts[1], edit)
    if bias:   # the class adds one: the first factor adds zeros
        zeros = getattr(parts[1], bias).detach().new_zeros(edit.parts[0][1][0])
        delattr(parts[0], bias)
        parts[0].register_buffer(bias, zeros, persistent=False)
    return nn.Sequential(*parts).train(module.training)


def _edit_transposed(module: nn.Module, edit: LayerEdit) -> nn.Module | None:
    if not isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        kinds = "allowed: ConvTranspose1d, ConvTranspose2d and their subclasses"
        raise UnsupportedModelError(f"layer {edit.path!r} is a {type(module).__name__} ({kinds}); exclude it")
    weight = module.weight
    inputs = edit.shape[1] * edit.groups
    first: nn.Module | None = None
    if edit.factors is not None:
        kind = nn.Conv1d if isinstance(module, nn.ConvTranspose1d) else nn.Conv2d
        first = kind(inputs, edit.factors.rank, 1, bias=False, device=weight.device, dtype=weight.dtype)
        first.requires_grad_(weight.requires_grad)
        _set_weight(first, "weight", edit.parts[0][1], edit, _part_layers(edit)[0])
        inputs = edit.factors.rank
    _set_weight(module, "weight", edit.parts[-1][1], edit)
    bias = nn.Parameter(weight.detach().new_zeros(edit.shape[0]), weight.requires_grad) if edit.bias else None
    module.register_parameter("bias", bias)
    module.in_channels, module.out_channels, module.groups = inputs, edit.shape[0], edit.groups
    return None if first is None else nn.Sequential(first, module).train(module.training)


def _set_weight(
    module: nn.Module, name: str, shape: tuple[int, ...], edit: LayerEdit, layer: Layer | None = None
) -> None:
    old = getattr(module, name)
    delattr(module, name)
    _new_weight(module, name, layer or _layer(edit), shape, old, edit)


def _new_weight(
    module: nn.Module, name: str, layer: Layer, shape: tuple[int, ...], like: Tensor, edit: LayerEdit
) -> None:
    """A weight of `shape` by outputs: a parameter, or what is stored in its place beside the float weight."""
    tensor = like.detach().new_zeros(stored_shape(layer, shape, edit.groups))
    stored = edit.stored(shape)
    if not stored:
        module.register_parameter(name, nn.Parameter(tensor, like.requires_grad))
        return
    module.register_buffer(name, tensor, persistent=False)
    for suffix, form in stored.items():
        module.register_buffer(f"{name}_{suffix}", torch.zeros(form.shape, dtype=DTYPES[form.dtype]))


def _set_bias(module: nn.Module, edit: LayerEdit) -> None:
    name = _held(edit).bias
    if name:
        bias = getattr(module, name)
        setattr(module, name, nn.Parameter(bias.detach().new_zeros(edit.shape[0]), bias.requires_grad))


def _set_sizes(module: nn.Module, dense: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Attributes of the user's class that are its dense sizes; where both are equal, names tell which is the input."""
    for name, value in list(vars(module).items()):
        if name.startswith("_") or not is_size(value):
            continue
        reads = name in _INPUTS or (name.startswith("in") and not name.startswith("inner"))
        if value == dense[0] and (reads or dense[0] != dense[1]):
            setattr(module, name, wanted[0])
        elif value == dense[1]:
            setattr(module, name, wanted[1])


def held_places(model: nn.Module, edit: LayerEdit) -> list[tuple[nn.Module, str, Layer, tuple[int, ...]]]:
    """Module, attribute, layout and shape by outputs of the weight of each real layer of an edit."""
    places = _layer(edit).part_tensors(len(edit.parts))
    in_code = _held(edit).holder is Holder.CODE
    return [
        (model.get_submodule(edit.path if in_code else path), name.rpartition(".")[2], layer, shape)
        for (path, shape), (name, _), layer in zip(edit.parts, places, _part_layers(edit), strict=True)
    ]


def fill_held(model: nn.Module, edit: LayerEdit) -> None:
    """Compute the float weights that the user's code reads, from what is stored or from two factors."""
    found: list[Tensor] = []
    for module, leaf, layer, shape in held_places(model, edit):
        weight = getattr(module, leaf)
        assert isinstance(weight, Tensor)
        if edit.stored(shape):
            stored = read_stored(edit.form, edit.sparse, shape, partial(_suffixed, module, leaf))
            weight.copy_(as_stored(layer, stored.weight().reshape(shape), edit.groups))
        found.append(by_outputs(layer, weight, edit.groups))
    if is_split_in_code(edit):
        first, second = (matrix.flatten(1) for matrix in found)
        whole = (second @ first).reshape(edit.shape)
        getattr(model.get_submodule(edit.path), _held(edit).weight).copy_(as_stored(_layer(edit), whole, edit.groups))


def _suffixed(module: nn.Module, leaf: str, suffix: str) -> Tensor:
    tensor = getattr(module, f"{leaf}_{suffix}")
    assert isinstance(tensor, Tensor)
    return tensor
