"""Kernels: what a device really executes once operators are fused. The currency of cost prediction."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Family(StrEnum):
    """Kinds of fused kernels that are priced apart."""

    CONV = "conv"                # dense convolution, 1-d or 2-d, groups == 1
    GROUPED = "grouped"          # 1 < groups < channels
    DEPTHWISE = "depthwise"      # groups == input channels
    TRANSPOSED = "transposed"    # transposed convolution, any groups
    LINEAR = "linear"
    MATMUL = "matmul"            # product of two activations, attention included
    ADD = "add"                  # residual sum of two tensors
    POOL = "pool"                # windowed pooling
    GLOBAL_POOL = "global_pool"  # mean over space
    NORM = "norm"                # normalisation that was not folded into a convolution
    ELEMENTWISE = "elementwise"  # activation or arithmetic that no kernel absorbed
    CONCAT = "concat"
    DATA = "data"                # moves data: pad, slice, transpose, a reshape that copies
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One fused kernel at batch `batch`: a main operator with what it absorbs.

    Attributes:
        name: The node whose value the kernel produces (after its fused tail).
        family: Which cost model prices it.
        layer: Name of the layer it belongs to, `""` for kernels without weights. A factorised layer
            gives two or three kernels with the same layer, those before the last named `NAME:first`, `NAME:second`.
        weight_bits: Stored width of its weights, 32 where they are not quantised.
        activation_bits: 8 where its inputs and output are quantised tensors, else 32. What these
            widths execute as is the device's business (`DeviceProfile.executes`).
        cin: Input channels (features for linear; elements of the shared dimension for matmul).
        cout: Output channels or features.
        window: Kernel size per spatial dimension; `()` for linear.
        stride: Stride per spatial dimension; `()` for linear.
        groups: Convolution groups.
        input_size: Spatial size of the input, `()` for none.
        output_size: Spatial size of the output, `()` for none.
        rows: For linear and matmul: rows of the left matrix per batch (tokens), else 1.
        fused: Absorbed operators in order, such as `("relu",)` or `("add", "relu")`.
        input_elements: Elements read over all activation inputs, per batch.
        output_elements: Elements written, per batch.
        batch: Batch size.
        operator: Function of an element-wise kernel, such as `gelu`; `""` for other kernels.
    """

    name: str
    family: Family
    layer: str = ""
    weight_bits: int = 32
    activation_bits: int = 32
    cin: int = 0
    cout: int = 0
    window: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    input_size: tuple[int, ...] = ()
    output_size: tuple[int, ...] = ()
    rows: int = 1
    fused: tuple[str, ...] = ()
    input_elements: int = 0
    output_elements: int = 0
    batch: int = 1
    operator: str = ""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the main operator (0 for kernels that only move or add)."""
        if self.family in (Family.CONV, Family.GROUPED, Family.DEPTHWISE):
            return self.batch * product(self.output_size) * self.weight_elements
        if self.family is Family.TRANSPOSED:   # every input position meets the whole window
            return self.batch * product(self.input_size) * self.weight_elements
        if self.family in (Family.LINEAR, Family.MATMUL):
            return self.batch * self.rows * self.cin * self.cout
        return 0

    @property
    def weight_elements(self) -> int:
        """Number of weights (bias not counted)."""
        if self.family in (Family.CONV, Family.GROUPED, Family.DEPTHWISE, Family.TRANSPOSED):
            return self.cout * (self.cin // self.groups) * product(self.window)
        return self.cin * self.cout if self.family == Family.LINEAR else 0


@dataclass(frozen=True, slots=True)
class Boundary:
    """A change of arithmetic on one tensor: `"quantize"` (float to 8 bits) or `"dequantize"`.

    Attributes:
        tensor: Node whose value is converted.
        kind: `"quantize"` or `"dequantize"`.
        elements: Elements converted, per batch.
        rank: Number of dimensions (4-d tensors may also pay a layout change).
    """

    tensor: str
    kind: str
    elements: int
    rank: int


@dataclass(frozen=True, slots=True)
class Lifetime:
    """One activation buffer for peak-memory accounting.

    Attributes:
        tensor: Node whose value lives in the buffer.
        size: Bytes per batch at its executed width.
        first: Index of the kernel that writes it (-1 for model inputs).
        last: Index of the last kernel that reads it (number of kernels for model outputs).
    """

    tensor: str
    size: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class CostView:
    """What a device prices: the fused kernels in order, the conversions between them, the buffers."""

    kernels: tuple[Kernel, ...]
    boundaries: tuple[Boundary, ...]
    lifetimes: tuple[Lifetime, ...]
    weight_bytes: int

    @property
    def macs(self) -> int:
        """Total multiply-accumulates per batch."""
        return sum(kernel.macs for kernel in self.kernels)


def product(sizes: tuple[int, ...]) -> int:
    """Product of sizes, 1 for an empty tuple."""
    result = 1
    for size in sizes:
        result *= size
    return result
