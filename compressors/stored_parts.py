"""The parts of a layer, read from the tensors of an artefact."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from paretopress.compressors.inputs import read_inputs
from paretopress.compressors.network import PackedPart, Part
from paretopress.compressors.stored import StoredWeight, read_stored
from paretopress.spaces.factor_forms import part_layers
from paretopress.spaces.plan import LayerPlan
from paretopress.spaces.weight_layout import by_outputs


def read_parts(layer_plan: LayerPlan, tensors: Mapping[str, Tensor]) -> tuple[Part, ...]:
    """Read the parts of a layer.

    Args:
        layer_plan: What the layer has become.
        tensors: All tensors of the realised model by name. Where the float weight of a part that is stored otherwise
            is missing, the part computes it whenever it is read.
    """
    layer = layer_plan.layer
    if layer.frozen:
        dense = by_outputs(layer, tensors[layer.weight], layer.groups)
        return (Part(dense, tensors[layer.bias] if layer.bias else dense.new_zeros(len(dense))),)
    parts = []
    shapes = layer_plan.parts
    named = zip(part_layers(layer, layer_plan.factors), layer.part_tensors(len(shapes)), shapes, strict=True)
    for applied, (name, bias_name), (_, shape) in named:
        weight = by_outputs(applied, tensors[name], layer_plan.groups) if name in tensors else None
        bias = tensors.get(bias_name)
        if layer_plan.is_stored_otherwise:
            parts.append(_read_part(layer_plan, name, shape, weight, bias, tensors))
        else:
            assert weight is not None
            parts.append(Part(weight, bias))
    return tuple(parts)


def _read_part(
    layer_plan: LayerPlan, name: str, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None,
    tensors: Mapping[str, Tensor],
) -> Part:
    def read() -> StoredWeight:
        return read_stored(
            layer_plan.form, layer_plan.sparse, shape, lambda suffix: tensors[f"{name}_{suffix}"].cpu())

    inputs = read_inputs(layer_plan.form, lambda suffix: tensors[f"{name}_{suffix}"])
    return PackedPart(shape, bias, read, inputs) if weight is None else Part(weight, bias, read(), inputs)
