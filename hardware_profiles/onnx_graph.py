"""The nodes and initialisers of an ONNX graph with quantised weights and tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretopress.spaces.kernels import product

OPSET = 20   # as exported models have
SCALE = 0.05
ZERO_POINT = 128


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of the model under construction.

    Attributes:
        name: The float value in the graph (the output of a DequantizeLinear where `int8`).
        channels: Channels or features.
        size: Spatial size, `()` for features.
        int8: Whether the tensor is quantised.
        kernel: Index of the kernel that writes it, -1 for the model's input.
        zero_point: The zero point where quantised.
    """

    name: str
    channels: int
    size: tuple[int, ...]
    int8: bool
    kernel: int
    zero_point: int = ZERO_POINT

    @property
    def elements(self) -> int:
        """Elements at batch 1."""
        return self.channels * product(self.size)


@dataclass
class OnnxGraph:
    """Collects nodes and initialisers; weights are random, scales are fixed."""

    seed: int = 0
    nodes: list[Any] = field(default_factory=list)
    initialisers: list[Any] = field(default_factory=list)
    weight_bytes: int = 0

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def _node(
        self,
        operator: str,
        inputs: list[str],
        prefix: str,
        suffix: str = "main",
        output: str = "",
        **attributes: Any,  # noqa: ANN401 - ONNX attributes have any type
    ) -> None:
        from onnx import helper

        name = f"{prefix}_{suffix}"
        self.nodes.append(
            helper.make_node(operator, inputs, [output or f"{prefix}_value"], name, **attributes)
        )

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.initialisers.append(numpy_helper.from_array(array, name))
        return name

    def _weights(self, prefix: str, shape: tuple[int, ...], int8: bool) -> list[str]:
        cout = shape[0]
        self.weight_bytes += int(np.prod(shape)) * (1 if int8 else 4) + cout * (8 if int8 else 4)
        if not int8:
            spread = float(np.sqrt(2.0 / np.prod(shape[1:])))
            weight = (self._random.standard_normal(shape) * spread).astype(np.float32)
            return [
                self._constant(f"{prefix}_weight", weight),
                self._constant(f"{prefix}_bias", np.zeros(cout, np.float32)),
            ]
        scales = self._constant(f"{prefix}_weight_scale", np.full(cout, 0.01, np.float32))
        zeros = self._constant(f"{prefix}_weight_zero", np.zeros(cout, np.int8))
        integers = self._constant(f"{prefix}_integers", self._random.integers(-90, 90, shape).astype(np.int8))
        bias_scales = self._constant(f"{prefix}_bias_scale", np.full(cout, 0.01 * SCALE, np.float32))
        bias = self._constant(f"{prefix}_bias_integers", np.zeros(cout, np.int32))
        self._node(
            "DequantizeLinear",
            [integers, scales, zeros],
            prefix,
            "weight_dequantize",
            f"{prefix}_weight",
            axis=0,
        )
        self._node(
            "DequantizeLinear", [bias, bias_scales], prefix, "bias_dequantize", f"{prefix}_bias", axis=0
        )
        return [f"{prefix}_weight", f"{prefix}_bias"]

    def _requantise(self, name: str, prefix: str, zero_point: int = ZERO_POINT) -> str:
        """Q then DQ of a value; returns the DQ's output.

        After a ReLU the zero point must be 0: only then does ONNX Runtime drop the Relu and fuse the kernel.
        """
        scale = self._constant(f"{prefix}_scale", np.array(SCALE, np.float32))
        zero = self._constant(f"{prefix}_zero", np.array(zero_point, np.uint8))
        self._node("QuantizeLinear", [name, scale, zero], prefix, "quantize", f"{prefix}_integers_out")
        self._node(
            "DequantizeLinear",
            [f"{prefix}_integers_out", scale, zero],
            prefix,
            "dequantize",
            f"{prefix}_dequantized",
        )
        return f"{prefix}_dequantized"
