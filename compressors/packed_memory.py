"""Running a compressed model from what is stored: float weights exist only while their layer computes.

A loaded model holds the float weights beside the packed ones, which is faster. Kept packed, the memory of its weights
is that of the artefact, plus one layer's; every forward pass unpacks every layer again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from paretopress.compressors.compressed_model import CompressedModel
from paretopress.compressors.delta import LayerEdit
from paretopress.compressors.layout_edits import held_places
from paretopress.compressors.stored import read_stored
from paretopress.spaces.layers import Layer
from paretopress.spaces.weight_layout import as_stored


def keep_packed(compressed: CompressedModel) -> CompressedModel:
    """Drop the float weights of a compressed model; each is computed whenever it is read.

    Args:
        compressed: A realised or loaded model; it is changed.

    Returns:
        The same model. What it computes is the same bit for bit.
    """
    for edit in compressed.delta.edits:
        if isinstance(edit, LayerEdit) and edit.stored(edit.shape):
            _keep_packed(compressed.network, edit)
    compressed.forget_network()
    return compressed


def resident_bytes(model: nn.Module) -> int:
    """Bytes of all tensors that a model holds between two calls, stored or not, each once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _keep_packed(network: nn.Module, edit: LayerEdit) -> None:
    if edit.held is None:
        for path, shape in edit.parts:
            module = network.get_submodule(path)
            _compute_on_access(module, "weight", partial(_restored, module, "weight", edit, shape))
        return
    for module, leaf, layer, shape in held_places(network, edit):
        _compute_on_access(module, leaf, partial(_in_its_layout, module, leaf, edit, shape, layer))


def _restored(module: nn.Module, leaf: str, edit: LayerEdit, shape: tuple[int, ...]) -> Tensor:
    stored = read_stored(edit.form, edit.sparse, shape, lambda suffix: getattr(module, f"{leaf}_{suffix}"))
    return stored.weight().reshape(shape)


def _in_its_layout(module: nn.Module, leaf: str, edit: LayerEdit, shape: tuple[int, ...], layer: Layer) -> Tensor:
    return as_stored(layer, _restored(module, leaf, edit, shape), edit.groups)


def _compute_on_access(module: nn.Module, leaf: str, weight: Callable[[], Tensor]) -> None:
    """Turn a tensor of a module into a property of a class of its own, as PyTorch's parametrisations do."""
    delattr(module, leaf)
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {leaf: property(lambda _: weight()), "__module__": kind.__module__})
