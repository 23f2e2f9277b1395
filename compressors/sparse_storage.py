"""Lossless storage of sparse matrices: where the kept weights are, in the smallest of three layouts.

A sparse matrix is stored as its kept values, row by row, and their places:

- `bitmap`: one bit per weight;
- `csr`: the number of kept weights of each row, and the column of each, in as many bits as these need;
- `n:m`: of every `m` neighbours in a row `n` are stored, with their places among the `m` (2:4 takes 2 bits each);
  where fewer than `n` are kept, zeros fill up.

Bytes are those of the tensors that are stored, to the last one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from paretopress.spaces.errors import ArtifactError

Layout = Literal["bitmap", "csr", "n:m"]
LAYOUTS: tuple[Layout, ...] = ("bitmap", "csr", "n:m")


@dataclass(frozen=True)
class Pattern:
    """At most `kept` of every `of` neighbours in a row are kept.

    Attributes:
        kept: n of n:m, at least 1.
        of: m of n:m, above n.
    """

    kept: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.kept < self.of:
            raise ArtifactError(f"sparsity pattern {self.kept}:{self.of} is not one (allowed: n:m with 1 <= n < m)")

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"

    @property
    def place_bits(self) -> int:
        """Bits of a place among `of` neighbours."""
        return _width(self.of - 1)


@dataclass(frozen=True)
class Places:
    """Where the stored values of a sparse matrix are.

    Attributes:
        layout: How they are stored.
        shape: `(rows, columns)` of the matrix.
        count: How many values are stored.
        tensors: uint8 tensors by name.
        pattern: Of the layout `n:m`.
    """

    layout: Layout
    shape: tuple[int, int]
    count: int
    tensors: Mapping[str, Tensor]
    pattern: Pattern | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the places alone."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def unsigned_bytes(count: int, bits: int) -> int:
    """Bytes that `count` values of `bits` bits take."""
    return (count * bits + 7) // 8


def pack_unsigned(values: Tensor, bits: int) -> Tensor:
    """Pack integers in `0 .. 2^bits - 1` without gaps, the lowest bit of a byte first; 0 bits take no bytes.

    Args:
        values: Any shape, integers.
        bits: 0 to 32.

    Raises:
        ArtifactError: A value does not fit.
    """
    flat = values.flatten().to(torch.int64)
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= 1 << bits):
        raise ArtifactError(f"places {int(flat.min())}..{int(flat.max())} do not fit into {bits} bits")
    stream = ((flat.unsqueeze(1) >> torch.arange(bits)) & 1).to(torch.uint8).flatten()
    padded = stream.new_zeros(unsigned_bytes(len(flat), bits) * 8)
    padded[: len(stream)] = stream
    return (padded.reshape(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(dim=1, dtype=torch.uint8)


def unpack_unsigned(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return what `pack_unsigned` stored, `(count,)` int64.

    Raises:
        ArtifactError: The number of bytes does not belong to this count and width.
    """
    if packed.dtype != torch.uint8 or packed.numel() != unsigned_bytes(count, bits):
        expected = f"{unsigned_bytes(count, bits)} bytes of uint8 for {count} values of {bits} bits"
        raise ArtifactError(f"packed places: expected {expected}, got {packed.numel()} of {packed.dtype}")
    stream = ((packed.flatten().unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()
    digits = stream[: count * bits].reshape(count, bits).to(torch.int64)
    return (digits << torch.arange(bits)).sum(dim=1)


def places_bytes(mask: Tensor, layout: Layout, pattern: Pattern | None = None) -> int:
    """Bytes of the places of a mask in a layout, without storing them.

    Args:
        mask: `(rows, columns)` bool, true where a weight is kept.
        layout: How they would be stored.
        pattern: Of the layout `n:m`.
    """
    rows, columns = mask.shape
    match layout:
        case "bitmap":
            return unsigned_bytes(rows * columns, 1)
        case "csr":
            kept = int(mask.sum())
            return unsigned_bytes(rows, _width(columns)) + unsigned_bytes(kept, _width(columns - 1))
        case "n:m":
            assert pattern is not None
            return unsigned_bytes(_stored(mask, pattern), pattern.place_bits)


def store(weight: Tensor, mask: Tensor, layout: Layout, pattern: Pattern | None = None) -> tuple[Tensor, Places]:
    """Split a matrix into its kept values and their places.

    Args:
        weight: `(rows, columns)`, any type; what is not kept counts as zero.
        mask: `(rows, columns)` bool.
        layout: How the places are stored.
        pattern: Of the layout `n:m`.

    Returns:
        The values `(count,)` of the weight's type, row by row, and their places.

    Raises:
        ArtifactError: The mask does not follow the pattern.
    """
    shape = (weight.shape[0], weight.shape[1])
    match layout:
        case "bitmap":
            tensors = {"bitmap": pack_unsigned(mask, 1)}
        case "csr":
            columns = mask.nonzero()[:, 1]
            tensors = {"row_counts": pack_unsigned(mask.sum(dim=1), _width(shape[1])),
                       "columns": pack_unsigned(columns, _width(shape[1] - 1))}
        case "n:m":
            assert pattern is not None
            return _store_pattern(weight, mask, pattern)
    values = weight[mask]
    return values, Places(layout, shape, len(values), tensors)


def restore(values: Tensor, places: Places) -> Tensor:
    """Return the matrix that `store` split, of the values' type, zeros where nothing was kept.

    Raises:
        ArtifactError: The places do not belong to the shape or to the number of values.
    """
    rows, columns = places.shape
    if len(values) != places.count:
        raise ArtifactError(f"sparse weights: {len(values)} values for {places.count} places")
    match places.layout:
        case "bitmap":
            flat = unpack_unsigned(places.tensors["bitmap"], 1, rows * columns).nonzero().flatten()
        case "csr":
            counts = unpack_unsigned(places.tensors["row_counts"], _width(columns), rows)
            found = unpack_unsigned(places.tensors["columns"], _width(columns - 1), places.count)
            if int(counts.sum()) != places.count:
                raise ArtifactError(f"sparse weights: rows hold {int(counts.sum())} of {places.count} values")
            if places.count and int(found.max()) >= columns:
                raise ArtifactError(f"sparse weights: column {int(found.max())} of {columns}")
            flat = torch.arange(rows).repeat_interleave(counts) * columns + found
        case "n:m":
            return _restore_pattern(values, places)
    if len(flat) != places.count:
        raise ArtifactError(f"sparse weights: {len(flat)} places in {rows}x{columns} for {places.count} values")
    return values.new_zeros(rows * columns).index_put_((flat,), values).reshape(rows, columns)


def smallest_layout(mask: Tensor, value_bits: int, pattern: Pattern | None = None) -> tuple[Layout, int]:
    """The layout with the fewest bytes, values included, and how many these are.

    Args:
        mask: `(rows, columns)` bool.
        value_bits: Bits of each stored value.
        pattern: What the mask follows, if anything: `n:m` is an option then.
    """
    kept = int(mask.sum())
    found: list[tuple[int, Layout]] = [
        (places_bytes(mask, layout) + unsigned_bytes(kept, value_bits), layout) for layout in ("bitmap", "csr")
    ]
    if pattern is not None:
        stored = unsigned_bytes(_stored(mask, pattern), value_bits)
        found.append((places_bytes(mask, "n:m", pattern) + stored, "n:m"))
    size, layout = min(found, key=lambda pair: pair[0])
    return layout, size


def _width(largest: int) -> int:
    """Bits of integers up to `largest`."""
    return max(0, largest).bit_length()


def _stored(mask: Tensor, pattern: Pattern) -> int:
    return mask.shape[0] * math.ceil(mask.shape[1] / pattern.of) * pattern.kept


def _in_groups(matrix: Tensor, pattern: Pattern) -> Tensor:
    """`(rows, groups, of)`; the last group of a row is filled up with zeros."""
    rows, columns = matrix.shape
    groups = math.ceil(columns / pattern.of)
    padded = matrix.new_zeros(rows, groups * pattern.of)
    padded[:, :columns] = matrix
    return padded.reshape(rows, groups, pattern.of)


def _store_pattern(weight: Tensor, mask: Tensor, pattern: Pattern) -> tuple[Tensor, Places]:
    kept = _in_groups(mask, pattern)
    if int(kept.sum(dim=2).max()) > pattern.kept:
        raise ArtifactError(f"sparse weights: more than {pattern} are kept in a group")
    # A stable sort puts the kept ones first, each in its order, then those that fill up with zeros.
    order = (~kept).to(torch.uint8).sort(dim=2, stable=True).indices[:, :, : pattern.kept].sort(dim=2).values
    values = (_in_groups(weight, pattern) * kept).gather(2, order).flatten()
    tensors = {"places": pack_unsigned(order, pattern.place_bits)}
    return values, Places("n:m", (weight.shape[0], weight.shape[1]), len(values), tensors, pattern)


def _restore_pattern(values: Tensor, places: Places) -> Tensor:
    assert places.pattern is not None
    (rows, columns), pattern = places.shape, places.pattern
    groups = math.ceil(columns / pattern.of)
    if places.count != rows * groups * pattern.kept:
        raise ArtifactError(f"sparse weights: {places.count} values for {rows}x{columns} at {pattern}")
    order = unpack_unsigned(places.tensors["places"], pattern.place_bits, places.count)
    if places.count and int(order.max()) >= pattern.of:
        raise ArtifactError(f"sparse weights: a place beyond the {pattern.of} of {pattern}")
    matrix = values.new_zeros(rows, groups, pattern.of)
    matrix.scatter_(2, order.reshape(rows, groups, -1), values.reshape(rows, groups, -1))
    return matrix.reshape(rows, -1)[:, :columns].contiguous()
