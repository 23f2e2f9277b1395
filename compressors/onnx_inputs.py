"""What layers do to their own inputs, in ONNX operators.

Grids and signs are written in floats, in the operations of `compressors/inputs.py`, so that runtimes compute the same
bit for bit; no kernel is faster for them. On a range that is found at run time layers compute in integers: what ONNX
Runtime fuses for linear layers.
"""

from __future__ import annotations

import torch

from paretopress.compressors.inputs import InputGrid, InputSigns
from paretopress.compressors.network import Part
from paretopress.compressors.onnx_backend import Backend, T
from paretopress.spaces.layers import Layer

MIDDLE = 128   # of unsigned codes; what signed integers are stored above


def own_input(backend: Backend[T], path: str, layer: Layer, x: T, inputs: InputSigns | InputGrid) -> T:
    """A real layer's input as signs, or on its grid.

    Args:
        backend: Writes the operators.
        path: Of the layer, for names.
        layer: Its operation.
        x: Its input.
        inputs: What becomes of that.
    """
    if isinstance(inputs, InputGrid):
        bounds = (backend.constant(f"{path}.input_{name}", torch.tensor(float(level)))
                  for name, level in zip(("lowest", "highest"), inputs.bounds, strict=True))
        return backend.rounded(f"{path}.input", x, backend.constant(f"{path}.input_step", inputs.scale[0]), *bounds)
    shape = (1, -1, *(1,) * len(layer.window)) if layer.window else (-1,)
    thresholds = backend.constant(f"{path}.input_threshold", inputs.thresholds.reshape(shape))
    scales = (backend.constant(f"{path}.input_{name}", scale)
              for name, scale in (("scale", inputs.scale), ("negative_scale", -inputs.scale)))
    return backend.signs(f"{path}.signs", x, thresholds, *scales)   # zero counts as positive, as in `InputSigns`


def dynamic_layer(backend: Backend[T], name: str, path: str, layer: Layer, x: T, part: Part, groups: int) -> T:
    """A real layer that computes in integers on the range of its input that is found at run time.

    Args:
        backend: Writes the operators.
        name: Of its output.
        path: Of the layer, for names.
        layer: Its operation.
        x: Its input.
        part: Its integers, scales and bias.
        groups: Of a convolution.
    """
    assert part.rows is not None
    integers, scales = part.rows
    if layer.window:   # unsigned, because older ONNX Runtimes have no kernel for signed weights
        shape, zero = (-1, *(1,) * len(layer.window)), torch.tensor(MIDDLE, dtype=torch.uint8)
        integers = (integers.to(torch.int16) + MIDDLE).to(torch.uint8).reshape(part.weight.shape)
    else:
        shape, zero, integers = (-1,), torch.tensor(0, dtype=torch.int8), integers.t().contiguous()
    codes, scale, zero_point = backend.quantise_dynamically(x)
    weight = backend.constant(f"{path}.weight_integers", integers)
    weight_zero = backend.constant(f"{path}.weight_zero", zero)
    sums = backend.integer_layer(f"{name}_sums", layer, codes, zero_point, weight, weight_zero, groups)
    factors = backend.constant(f"{path}.weight_scales", scales.reshape(shape))
    bias = None if part.bias is None else backend.constant(f"{path}.bias_of_sums", part.bias.reshape(shape))
    return backend.scaled_sums(name, sums, scale, factors, bias)
