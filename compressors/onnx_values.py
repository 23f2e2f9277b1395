"""What stands for a tensor of an ONNX graph while it is written, and what rules ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paretopress.compressors.onnx_known import Contents
from paretopress.spaces.layers import Layer


class UntranslatableError(Exception):
    """The graph holds something that has no rule here."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the ONNX graph.

    Attributes:
        name: Its name.
        metas: The tensor without data, at each of the two batch sizes.
        tensor: Its content where it is a constant.
        contents: What it holds at each of the two batch sizes where that follows from sizes alone; such a value is
            written when an operator reads it.
    """

    name: str
    metas: tuple[Tensor, Tensor]
    tensor: Tensor | None = None
    contents: Contents | None = None

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Its dimensions, None where they depend on the batch."""
        one, other = self.metas
        return tuple(a if a == b else None for a, b in zip(one.shape, other.shape, strict=True))

    @property
    def dtype(self) -> torch.dtype:
        """Its element type."""
        return self.metas[0].dtype


@dataclass(frozen=True)
class Varying:
    """A number that depends on the batch, at each of the two batch sizes."""

    numbers: tuple[int, int]


Metas = tuple[Tensor, Tensor]


def element_type(dtype: torch.dtype) -> int:
    """Return ONNX's number for an element type. Raises `UntranslatableError` where NumPy has no such type."""
    from onnx import helper

    try:
        array = torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        raise UntranslatableError(str(dtype)) from None
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(array.dtype)))


def convolution_attributes(layer: Layer, groups: int) -> dict[str, Any]:
    """The attributes of a convolution of ONNX."""
    return {"group": groups, "pads": 2 * list(layer.padding), "strides": list(layer.stride),
            "dilations": list(layer.dilation), "kernel_shape": list(layer.window)}


def require(condition: bool, what: str) -> None:
    """Raise `UntranslatableError` unless the condition holds."""
    if not condition:
        raise UntranslatableError(what)


def as_tensor(value: Any) -> Value:  # noqa: ANN401
    """Return an argument that must be a tensor. Raises `UntranslatableError`."""
    require(isinstance(value, Value), "an argument that is no tensor")
    known: Value = value
    return known


def static_sizes(x: Value, *dims: int) -> list[int]:
    """Return sizes of dimensions, which must not depend on the batch. Raises `UntranslatableError`."""
    sizes = [x.shape[dim] for dim in dims]
    require(None not in sizes, "a size that depends on the batch")
    return [size for size in sizes if size is not None]
