"""Applying edits to the user's own modules, and filling them with stored tensors.

Layers keep their type, so that hooks and padding modes of the user's class stay; only sizes change. A
factorised layer becomes a `Sequential` of two or three at its path. Layers that are stored otherwise compute with a
float `weight` that is not part of the state; the state holds what stands for it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paretopress.compressors.delta import DropEdit, Edit, FoldEdit, LayerEdit, ResizeEdit
from paretopress.compressors.layout_edits import edit_held, fill_held
from paretopress.compressors.stored import DTYPES, read_stored
from paretopress.compressors.zeros import Zeros
from paretopress.spaces.choices import Factorised
from paretopress.spaces.errors import ArtifactError, UnsupportedModelError
from paretopress.spaces.factor_forms import ranks_fit
from paretopress.spaces.structure import is_size


def apply_edits(model: nn.Module, edits: Iterable[Edit]) -> None:
    """Make the modules of a model as small as the edits say, in place; `load_tensors` fills them.

    Args:
        model: A copy of the dense model.
        edits: The edits, each about a module of its own.

    Raises:
        ArtifactError: A module is missing, or its sizes do not belong to the edit.
        UnsupportedModelError: The module at a path is not one whose tensors can be replaced.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        for edit in edits:
            module = _submodule(model, edit.path)
            match edit:
                case LayerEdit():
                    _edit_layer(model, module, edit)
                case FoldEdit():
                    _remove_normalisation(model, module, edit)
                case ResizeEdit():
                    _resize(model, module, edit)
                case DropEdit():
                    _drop(model, module, edit)


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ArtifactError(f"the model has no module {path!r}: the artefact is another model's") from None


def _edit_layer(model: nn.Module, module: nn.Module, edit: LayerEdit) -> None:
    if edit.held is not None:
        replacement = edit_held(module, edit)
        if replacement is not None:
            _replace(model, module, replacement)
        return
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
        kinds = "allowed: Conv1d, Conv2d, Linear and their subclasses"
        raise UnsupportedModelError(f"layer {edit.path!r} is a {type(module).__name__} ({kinds}); exclude it")
    _check_sizes(module, edit)
    if edit.factors is None:
        _resize_layer(module, edit.shape, edit.groups, edit.bias)
        parts: Sequence[nn.Module] = (module,)
    else:
        parts = _factor_modules(module, edit, edit.factors)
        _replace(model, module, nn.Sequential(*parts).train(module.training))
    for part, (_, shape) in zip(parts, edit.parts, strict=True):
        if edit.stored(shape):
            _store_otherwise(part, edit, shape)


def _check_sizes(module: nn.Conv1d | nn.Conv2d | nn.Linear, edit: LayerEdit) -> None:
    dense, wanted = tuple(module.weight.shape), edit.shape
    fits = len(dense) == len(wanted) and all(new <= old for new, old in zip(wanted, dense, strict=True))
    if not fits or edit.groups > wanted[0] or not (edit.factors is None or ranks_fit(edit.factors, wanted)):
        reason = f"a weight of {dense} cannot become {wanted}"
        raise ArtifactError(f"layer {edit.path!r}: {reason}: the artefact is another model's")


def _resize_layer(module: nn.Module, shape: tuple[int, ...], groups: int, bias: bool) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    trainable = weight.requires_grad
    module.weight = nn.Parameter(weight.new_zeros(shape), trainable)
    module.register_parameter("bias", nn.Parameter(weight.new_zeros(shape[0]), trainable) if bias else None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    else:
        sizes = {"out_channels": shape[0], "in_channels": shape[1] * groups, "groups": groups}
        for name, size in sizes.items():
            setattr(module, name, size)


def _factor_modules(
    module: nn.Conv1d | nn.Conv2d | nn.Linear, edit: LayerEdit, factors: Factorised
) -> tuple[nn.Module, ...]:
    """The smaller layers: a copy of the module where the user's window is, plain ones around it."""
    own, shapes = copy.deepcopy(module), [shape for _, shape in edit.parts]
    if factors.kind == "spatial":
        assert isinstance(own, nn.Conv2d)
        second = _second_side(own, shapes[1], edit.bias)
        _look_along_columns(own, shapes[0])
        return own, second
    _resize_layer(own, shapes[-2], edit.groups, bias=False)
    last = _pointwise(module, shapes[-1], edit.bias)
    return (_pointwise(module, shapes[0], bias=False), own, last) if factors.kind == "tucker" else (own, last)


def _pointwise(module: nn.Conv1d | nn.Conv2d | nn.Linear, shape: tuple[int, ...], bias: bool) -> nn.Module:
    """A 1x1 convolution, or a linear layer."""
    weight = module.weight
    made: nn.Module
    if isinstance(module, nn.Linear):
        made = nn.Linear(shape[1], shape[0], bias, device=weight.device, dtype=weight.dtype)
    else:
        kind = nn.Conv1d if isinstance(module, nn.Conv1d) else nn.Conv2d
        made = kind(shape[1], shape[0], 1, bias=bias, device=weight.device, dtype=weight.dtype)
    return made.requires_grad_(weight.requires_grad)


def _second_side(module: nn.Conv2d, shape: tuple[int, ...], bias: bool) -> nn.Module:
    """A convolution along the second spatial dimension, as far as a module looks along that."""
    weight = module.weight
    padding: str | tuple[int, int]
    if module.padding_mode != "zeros":
        padding = (0, 0)   # what is no zero is padded in front of the first convolution, on all sides
    else:
        padding = module.padding if isinstance(module.padding, str) else (0, module.padding[1])
    made = nn.Conv2d(
        shape[1], shape[0], (1, shape[3]), (1, module.stride[1]), padding, (1, module.dilation[1]), bias=bias,
        device=weight.device, dtype=weight.dtype,
    )
    return made.requires_grad_(weight.requires_grad)


def _look_along_columns(module: nn.Conv2d, shape: tuple[int, ...]) -> None:
    """Let a convolution look along its first spatial dimension only."""
    _resize_layer(module, shape, 1, bias=False)
    module.kernel_size, module.stride = (shape[2], 1), (module.stride[0], 1)
    module.dilation = (module.dilation[0], 1)
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        module.padding = (module.padding[0], 0)


def _store_otherwise(module: nn.Module, edit: LayerEdit, shape: tuple[int, ...]) -> None:
    """Let a layer's state hold what stands for its weight; a bias stays but is no longer trained."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    del module.weight
    module.register_buffer("weight", weight.detach(), persistent=False)
    for suffix, form in edit.stored(shape).items():
        module.register_buffer(f"weight_{suffix}", torch.zeros(form.shape, dtype=DTYPES[form.dtype]))
    module.requires_grad_(False)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another wherever that is registered."""
    for parent in list(model.modules()):
        for name in [name for name, child in parent._modules.items() if child is old]:
            setattr(parent, name, new)


def _remove_normalisation(model: nn.Module, module: nn.Module, edit: FoldEdit) -> None:
    if not isinstance(module, _BatchNorm):
        reason = "its statistics belong to no batch normalisation module; exclude the layer before it"
        raise UnsupportedModelError(f"{edit.path!r} is a {type(module).__name__}: {reason}")
    if type(module).forward is _BatchNorm.forward:
        _replace(model, module, nn.Identity().train(module.training))
        return
    # A subclass may do more than normalise (an activation, say): let it normalise by mean 0 and variance 1.
    statistics = module.running_mean
    assert statistics is not None
    for name in ("weight", "bias"):
        module.register_parameter(name, None)
    for name, value in (("running_mean", 0.0), ("running_var", 1.0)):
        delattr(module, name)
        module.register_buffer(name, statistics.new_full((edit.channels,), value), persistent=False)
    del module.num_batches_tracked
    module.register_buffer("num_batches_tracked", None)
    module.num_features, module.eps, module.affine = edit.channels, 0.0, False


def _resize(model: nn.Module, module: nn.Module, edit: ResizeEdit) -> None:
    for name, size in edit.attributes.items():
        current = getattr(module, name, None)
        if is_size(current):
            setattr(module, name, size)
        elif isinstance(current, tuple | list) and len(current) == 1 and is_size(current[0]):
            setattr(module, name, (size,))
        elif current is not None:
            raise ArtifactError(f"attribute {edit.path}.{name} is no size: the artefact is another model's")
    for name, shape in edit.tensors.items():
        path, _, leaf = name.rpartition(".")
        old = getattr(_submodule(model, path), leaf, None)
        if not isinstance(old, Tensor) or old.ndim != len(shape) or any(map(int.__gt__, shape, old.shape)):
            raise ArtifactError(f"tensor {name!r} cannot become {shape}: the artefact is another model's")
        new = old.detach().new_zeros(shape)
        _replace_tensor(model, old, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _replace_tensor(model: nn.Module, old: Tensor, new: Tensor) -> None:
    """Put a tensor in the place of another wherever that is registered: tied tensors stay tied."""
    for holder in model.modules():
        for names in (holder._parameters, holder._buffers):
            for leaf in [leaf for leaf, tensor in names.items() if tensor is old]:
                setattr(holder, leaf, new)


def _drop(model: nn.Module, module: nn.Module, edit: DropEdit) -> None:
    if edit.channels == 0:
        _replace(model, module, nn.Identity().train(module.training))
        return
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
        kinds = "allowed: Conv1d, Conv2d, Linear and their subclasses"
        raise UnsupportedModelError(f"layer {edit.path!r} is a {type(module).__name__} ({kinds}); exclude it")
    if edit.channels > len(module.weight):
        raise ArtifactError(f"layer {edit.path!r}: it has no {edit.channels} channels: another model's artefact")
    _replace(model, module, Zeros(module, edit.channels).train(module.training))


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model by name, a tied tensor once under its first name."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if first.setdefault(id(tensor), name) == name}


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], edits: Iterable[Edit]) -> None:
    """Fill an edited model, and compute the float weights of packed layers.

    Args:
        model: The model after `apply_edits`.
        tensors: All of its state, a tied tensor once.
        edits: The edits that were applied.

    Raises:
        ArtifactError: A tensor is missing, unknown, or of another shape or type than the model's.
    """
    wanted = stored_tensors(model)
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors:
            raise ArtifactError(f"tensor {name!r} of the model is not in the artefact")
        if name not in wanted:
            raise ArtifactError(f"tensor {name!r} of the artefact is not in the model")
        one, other = tensors[name], wanted[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            stored, expected = (f"{tuple(t.shape)} {t.dtype}" for t in (one, other))
            raise ArtifactError(f"tensor {name!r}: {stored} in the artefact, {expected} in the model")
    with torch.inference_mode(mode=False), torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)
        for edit in edits:
            if isinstance(edit, LayerEdit) and edit.held is not None:
                fill_held(model, edit)
            elif isinstance(edit, LayerEdit):
                for path, shape in edit.parts:
                    if edit.stored(shape):
                        _restore_weight(model.get_submodule(path), edit, shape)


def _restore_weight(module: nn.Module, edit: LayerEdit, shape: tuple[int, ...]) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    stored = read_stored(edit.form, edit.sparse, shape, lambda suffix: getattr(module, f"weight_{suffix}"))
    weight.copy_(stored.weight().reshape(shape))
