"""What is stored of a weight in each format: the tensors with their shapes and types, before any weight is touched.

All weights are matrices here: rows are outputs, columns are inputs of a group times window elements. Sparse weights
are stored as their kept values and their places, in whichever layout takes the fewest bytes:

- `bitmap`: one bit per weight;
- `csr`: the number of kept weights of each row, and the column of each, in as many bits as these need;
- `n:m`: the places of the n kept ones among m neighbours, padded with zeros where a row ends;
- `blocks`: one bit per block; blocks at the edges are padded with zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from paretopress.spaces.choices import UNSTRUCTURED, Binary, Clustered, Half, Sparse, WeightFormat, Weights
from paretopress.spaces.kernels import product

Layout = Literal["bitmap", "csr", "n:m", "blocks"]
WIDTHS: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}
FLOAT_BITS = 32


@dataclass(frozen=True, slots=True)
class TensorForm:
    """Shape and type of a stored tensor.

    Attributes:
        shape: Its dimensions.
        dtype: Such as `"uint8"`.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def size_bytes(self) -> int:
        """Bytes it takes."""
        return product(self.shape) * WIDTHS[self.dtype]


@dataclass(frozen=True, slots=True)
class SparsePlan:
    """How many weights of a matrix are stored, and in what layout.

    Attributes:
        layout: How their places are stored.
        count: Stored values, padding included.
        kept: Kept weights, or blocks.
    """

    layout: Layout
    count: int
    kept: int


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` values of `bits` bits take without gaps."""
    return (count * bits + 7) // 8


def pattern_sizes(pattern: str) -> tuple[int, int]:
    """The two numbers of `n:m` or `RxC`."""
    one, other = pattern.replace("x", ":").split(":")
    return int(one), int(other)


def width_of(largest: int) -> int:
    """Bits of integers up to `largest`."""
    return max(0, largest).bit_length()


def kept_of(density: float, count: int) -> int:
    """How many of `count` are kept: the one place where this is rounded, masks included."""
    return max(1, round(density * count))


def sparse_plan(sparse: Sparse, rows: int, columns: int, value_bits: int) -> SparsePlan:
    """How a sparse matrix is stored.

    Args:
        sparse: Density and pattern.
        rows: Of the matrix.
        columns: Of the matrix.
        value_bits: Bits of a stored value.
    """
    if sparse.pattern == UNSTRUCTURED:
        kept = kept_of(sparse.density, rows * columns)
        layouts: tuple[Layout, ...] = ("bitmap", "csr")
        found = min(layouts, key=lambda layout: places_size(layout, sparse, rows, columns, kept))
        return SparsePlan(found, kept, kept)
    first, second = pattern_sizes(sparse.pattern)
    if ":" in sparse.pattern:
        stored = rows * math.ceil(columns / second) * first
        exact = rows * (columns // second * first + min(first, columns % second))
        # Where few rows are padded much, the plain layouts may be smaller.
        plain = {layout: places_size(layout, sparse, rows, columns, exact) + packed_size(exact, value_bits)
                 for layout in ("bitmap", "csr")}
        best = min(plain, key=lambda layout: plain[layout])
        if plain[best] < places_size("n:m", sparse, rows, columns, stored) + packed_size(stored, value_bits):
            return SparsePlan("bitmap" if best == "bitmap" else "csr", exact, exact)
        return SparsePlan("n:m", stored, exact)
    blocks = kept_of(sparse.density, math.ceil(rows / first) * math.ceil(columns / second))
    return SparsePlan("blocks", blocks * first * second, blocks)


def places_size(layout: Layout, sparse: Sparse, rows: int, columns: int, count: int) -> int:
    """Bytes of the places of `count` stored values."""
    return sum(form.size_bytes for form in places_forms(layout, sparse, rows, columns, count).values())


def places_forms(layout: Layout, sparse: Sparse, rows: int, columns: int, count: int) -> dict[str, TensorForm]:
    """Tensors of the places of `count` stored values, by suffix."""
    match layout:
        case "bitmap":
            return {"bitmap": _bytes(packed_size(rows * columns, 1))}
        case "csr":
            return {"row_counts": _bytes(packed_size(rows, width_of(columns))),
                    "columns": _bytes(packed_size(count, width_of(columns - 1)))}
        case "n:m":
            return {"places": _bytes(packed_size(count, width_of(pattern_sizes(sparse.pattern)[1] - 1)))}
        case "blocks":
            height, width = pattern_sizes(sparse.pattern)
            return {"blocks": _bytes(packed_size(math.ceil(rows / height) * math.ceil(columns / width), 1))}


def value_bits(form: WeightFormat | None) -> int:
    """Bits of one stored value of a format, the scales left out."""
    match form:
        case None:
            return FLOAT_BITS
        case Half():
            return 16
        case Weights(bits):
            return bits
        case Clustered(bits):
            return bits
        case Binary(bases):
            return bases


def stored_forms(
    form: WeightFormat | None, sparse: Sparse | None, rows: int, columns: int
) -> dict[str, TensorForm]:
    """Every tensor that is stored in place of a float weight, by the suffix of its name.

    Args:
        form: Format of the values, None for 32-bit floats.
        sparse: Which weights are kept, None for all.
        rows: Outputs.
        columns: Inputs of a group times window elements.

    Returns:
        Nothing where the float weight itself is stored.
    """
    if form is None and sparse is None:
        return {}
    count, forms = rows * columns, {}
    if sparse is not None:
        planned = sparse_plan(sparse, rows, columns, value_bits(form))
        count = planned.count
        forms = places_forms(planned.layout, sparse, rows, columns, count)
    shape = (count,) if sparse is not None else (rows, columns)
    match form:
        case None:
            return {"values": TensorForm(shape, "float32"), **forms}
        case Half(kind):
            return {"values": TensorForm(shape, "float16" if kind == "fp16" else "bfloat16"), **forms}
        case Weights(bits, _, scheme):
            packed = _bytes(packed_size(count, bits))
            scales = TensorForm((rows,) if form.is_plain else scale_shape(form, rows, columns), "float32")
            zeros = {"zero": _bytes(packed_size(product(scales.shape), bits))} if scheme == "asymmetric" else {}
            return {"packed": packed, "scale": scales, **zeros, **forms}
        case Clustered(bits):
            return {"packed": _bytes(packed_size(count, bits)), "scale": TensorForm((rows,), "float32"),
                    "codebook": TensorForm((1 << bits,), "float32"), **forms}
        case Binary(bases):
            return {"packed": _bytes(packed_size(count * bases, 1)), "scale": TensorForm((rows, bases), "float32")}


def scale_shape(form: Weights, rows: int, columns: int) -> tuple[int, int]:
    """Rows and groups of the scales of weights that have other ones than one per row."""
    if form.scheme == "tensor":
        return 1, 1
    return rows, math.ceil(columns / form.group) if form.group else 1


def input_forms(form: WeightFormat | None, channels: int) -> dict[str, TensorForm]:
    """Tensors stored of what a real layer does to its own input, by the suffix of their names.

    Signs: what one stands for, and the threshold of each of the input `channels`. A grid: its step and the code of
    zero, which has as many bytes as the bits of a code need. A range that is found at run time: nothing.
    """
    scale = {"input_scale": TensorForm((1,), "float32")}
    match form:
        case Binary(_, 1):
            return {**scale, "input_threshold": TensorForm((channels,), "float32")}
        case Weights() if form.grid_bits:
            return {**scale, "input_zero_point": _bytes(packed_size(1, form.grid_bits))}
    return {}


def stored_size(form: WeightFormat | None, sparse: Sparse | None, shape: tuple[int, ...]) -> int:
    """Bytes of a weight of `shape` by outputs as it is stored."""
    rows, columns = shape[0], product(shape[1:])
    forms = stored_forms(form, sparse, rows, columns)
    return sum(one.size_bytes for one in forms.values()) if forms else 4 * rows * columns


def _bytes(count: int) -> TensorForm:
    return TensorForm((count,), "uint8")
