"""What writes the operators of an exported graph: layers, weights as they are stored, tensors as they are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from torch import Tensor

from paretopress.compressors.program import Values
from paretopress.spaces.graph import Node
from paretopress.spaces.layers import Layer

T = TypeVar("T")


class Backend(Protocol[T]):
    """Writes operators; `T` is what stands for a tensor of the ONNX graph."""

    def constant(self, name: str, tensor: Tensor) -> T:
        """An initialiser, the same one whenever the name is the same."""

    def quantise(self, name: str, value: T, scale: T, zero_point: T) -> T:
        """`QuantizeLinear` to uint8."""

    def dequantise(self, name: str, integers: T, scale: T, zero_point: T, axis: int | None = None) -> T:
        """`DequantizeLinear`, per tensor or along an axis."""

    def expand(self, name: str, integers: T, scale: T) -> T:
        """`Cast` and `Mul`: integers times their scale, which broadcasts."""

    def widen(self, name: str, halves: T) -> T:
        """`Cast` of 16-bit floats to 32 bits."""

    def shared(self, name: str, codebook: T, indices: T, scale: T) -> T:
        """`Cast`, `Gather` and `Mul`: shared values by their indices, times a scale, which broadcasts."""

    def offset(self, name: str, codes: T, zeros: T, scale: T) -> T:
        """`Cast`, `Sub` and `Mul`: codes less what stands for zero, times a scale; both broadcast."""

    def block_product(
        self, name: str, x: T, blocks: T, scales: T, zeros: T | None, bias: T | None, columns: int, group: int
    ) -> T:
        """`MatMulNBits`: a linear layer on 4-bit weights with scales of groups of inputs."""

    def signs(self, name: str, x: T, thresholds: T, positive: T, negative: T) -> T:
        """`positive` where a tensor is at least its threshold, else `negative`."""

    def rounded(self, name: str, x: T, step: T, lowest: T, highest: T) -> T:
        """`Div`, `Round`, `Clip` and `Mul`: the nearest multiples of a step, from the lowest to the highest."""

    def quantise_dynamically(self, x: T) -> tuple[T, T, T]:
        """`DynamicQuantizeLinear`: codes, scale and zero point; written once, however many layers read the tensor."""

    def integer_layer(self, name: str, layer: Layer, x: T, zero_point: T, weight: T, weight_zero: T, groups: int) -> T:
        """`MatMulInteger`, the weight as `(in, out)`, or `ConvInteger`: sums of products of integers."""

    def scaled_sums(self, name: str, sums: T, scale: T, factors: T, bias: T | None) -> T:
        """`Cast`, `Mul` and `Add`: sums times a scale and factors of the outputs, and a bias."""

    def layer(self, name: str, layer: Layer, x: T, weight: T, bias: T | None, groups: int) -> T:
        """A convolution or linear layer; the weight as PyTorch's function for it takes it."""

    def call(self, node: Node, values: Values, changes: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Any other operator."""
