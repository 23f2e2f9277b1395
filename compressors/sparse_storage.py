"""Lossless storage of sparse matrices: where the kept weights are, in the smallest of three layouts.

A sparse matrix is stored as its kept values, row by row, and their places:

- `bitmap`: one bit per weight;
- `csr`: the number of kept weights of each row, and the column of each, in as many bits as these need;
- `n:m`: of every `m` neighbours in a row `n` are stored, with their places among the `m` (2:4 takes 2 bits each);
  where fewer than `n` are kept, zeros fill up;
- `blocks`: one bit per block of weights; blocks are stored whole, those at the edges filled up with zeros.

Which one takes the fewest bytes, and how many, follows from the counts alone: `spaces/stored_weights.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.stored_weights import Layout, packed_size, width_of


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
        return width_of(self.of - 1)


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
    padded = stream.new_zeros(packed_size(len(flat), bits) * 8)
    padded[: len(stream)] = stream
    return (padded.reshape(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(dim=1, dtype=torch.uint8)


def unpack_unsigned(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return what `pack_unsigned` stored, `(count,)` int64.

    Raises:
        ArtifactError: The number of bytes does not belong to this count and width.
    """
    if packed.dtype != torch.uint8 or packed.numel() != packed_size(count, bits):
        expected = f"{packed_size(count, bits)} bytes of uint8 for {count} values of {bits} bits"
        raise ArtifactError(f"packed places: expected {expected}, got {packed.numel()} of {packed.dtype}")
    stream = ((packed.flatten().unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()
    digits = stream[: count * bits].reshape(count, bits).to(torch.int64)
    return (digits << torch.arange(bits)).sum(dim=1)


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
            tensors = {"row_counts": pack_unsigned(mask.sum(dim=1), width_of(shape[1])),
                       "columns": pack_unsigned(columns, width_of(shape[1] - 1))}
        case "n:m":
            assert pattern is not None
            return _store_pattern(weight, mask, pattern)
        case "blocks":
            raise ArtifactError("sparse weights: blocks are stored by store_blocks")
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
            counts = unpack_unsigned(places.tensors["row_counts"], width_of(columns), rows)
            found = unpack_unsigned(places.tensors["columns"], width_of(columns - 1), places.count)
            if int(counts.sum()) != places.count:
                raise ArtifactError(f"sparse weights: rows hold {int(counts.sum())} of {places.count} values")
            if places.count and int(found.max()) >= columns:
                raise ArtifactError(f"sparse weights: column {int(found.max())} of {columns}")
            flat = torch.arange(rows).repeat_interleave(counts) * columns + found
        case "n:m":
            return _restore_pattern(values, places)
        case "blocks":
            raise ArtifactError("sparse weights: blocks are restored by restore_blocks")
    if len(flat) != places.count:
        raise ArtifactError(f"sparse weights: {len(flat)} places in {rows}x{columns} for {places.count} values")
    return values.new_zeros(rows * columns).index_put_((flat,), values).reshape(rows, columns)


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


@dataclass(frozen=True)
class Blocks:
    """Where the stored blocks of a sparse matrix are.

    Attributes:
        tensors: The bitmap of blocks, by name.
        pick: Takes the values of the stored blocks out of a matrix, `(blocks * height * width,)`.
    """

    tensors: Mapping[str, Tensor]
    pick: Callable[[Tensor], Tensor]


def store_blocks(mask: Tensor, block: tuple[int, int]) -> Blocks:
    """Store which blocks of a mask are kept.

    Args:
        mask: `(rows, columns)` bool, the same throughout a block.
        block: Rows and columns of a block.
    """
    kept = _in_blocks(mask, block).any(dim=1)
    return Blocks({"blocks": pack_unsigned(kept, 1)}, lambda matrix: _in_blocks(matrix, block)[kept].flatten())


def restore_blocks(
    tensors: Mapping[str, Tensor], shape: tuple[int, int], block: tuple[int, int], count: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The mask that `store_blocks` stored, and what puts the picked values back.

    Raises:
        ArtifactError: The bitmap does not belong to the shape, or does not mark `count` blocks.
    """
    (rows, columns), (height, width) = shape, block
    down, across = math.ceil(rows / height), math.ceil(columns / width)
    kept = unpack_unsigned(tensors["blocks"], 1, down * across).bool()
    if int(kept.sum()) != count:
        raise ArtifactError(f"sparse weights: {int(kept.sum())} blocks are marked, {count} are stored")

    def put(values: Tensor) -> Tensor:
        if len(values) != count * height * width:
            raise ArtifactError(f"sparse weights: {len(values)} values for {count} blocks of {height}x{width}")
        whole = values.new_zeros(down * across, height * width)
        whole[kept] = values.reshape(count, height * width)
        matrix = whole.reshape(down, across, height, width).transpose(1, 2).reshape(down * height, across * width)
        return matrix[:rows, :columns].contiguous()

    return put(torch.ones(count * height * width, dtype=torch.bool)), put


def _in_blocks(matrix: Tensor, block: tuple[int, int]) -> Tensor:
    """`(blocks, height * width)`, blocks row by row, those at the edges filled up with zeros."""
    (rows, columns), (height, width) = matrix.shape, block
    down, across = math.ceil(rows / height), math.ceil(columns / width)
    padded = matrix.new_zeros(down * height, across * width)
    padded[:rows, :columns] = matrix
    return padded.reshape(down, height, across, width).transpose(1, 2).reshape(down * across, -1)
