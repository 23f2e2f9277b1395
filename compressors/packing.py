"""Lossless packing of small integers into bytes.

Values are stored as two's complement of `bits` bits, little-endian, one after the other without gaps: value
`i` fills the bits `i * bits .. (i + 1) * bits - 1` of the stream, the lowest bit of a byte first. Only the
end of the whole tensor is padded (with zeros, fewer than 8 bits): padding every row would never be smaller.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paretopress.spaces.errors import ArtifactError


def packed_bytes(count: int, bits: int) -> int:
    """Return the exact number of bytes that `count` values of `bits` bits take: `ceil(count * bits / 8)`."""
    return (count * bits + 7) // 8


def pack(integers: Tensor, bits: int) -> Tensor:
    """Pack integers into bytes.

    Args:
        integers: Any shape, integer values in `-2^(bits-1) .. 2^(bits-1) - 1` (for one bit: -1 and 0).
        bits: 1 to 8.

    Returns:
        `(packed_bytes(count, bits),)` uint8.

    Raises:
        ArtifactError: A value does not fit; packing it would not be lossless.
    """
    _check_bits(bits)
    values = integers.flatten().to(torch.int16)
    half = 1 << (bits - 1)
    if values.numel() and (int(values.min()) < -half or int(values.max()) >= half):
        span = f"{int(values.min())}..{int(values.max())}"
        raise ArtifactError(f"integers {span} do not fit into {bits} bits (allowed: {-half}..{half - 1})")
    stream = ((values.unsqueeze(1) >> torch.arange(bits, dtype=torch.int16)) & 1).to(torch.uint8).flatten()
    padded = stream.new_zeros(packed_bytes(len(values), bits) * 8)
    padded[: len(stream)] = stream
    return (padded.reshape(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(dim=1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Return the integers that `pack` stored, int8 of shape `shape`.

    Raises:
        ArtifactError: The number of bytes does not belong to this shape and width.
    """
    _check_bits(bits)
    count = 1
    for size in shape:
        count *= size
    if packed.dtype != torch.uint8 or packed.numel() != packed_bytes(count, bits):
        expected = f"{packed_bytes(count, bits)} bytes of uint8 for shape {tuple(shape)} at {bits} bits"
        raise ArtifactError(f"packed weights: expected {expected}, got {packed.numel()} of {packed.dtype}")
    stream = ((packed.flatten().unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()
    digits = stream[: count * bits].reshape(count, bits).to(torch.int16)
    values = (digits << torch.arange(bits, dtype=torch.int16)).sum(dim=1, dtype=torch.int16)
    values -= digits[:, -1] << bits
    return values.to(torch.int8).reshape(tuple(shape))


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ArtifactError(f"integers of {bits} bits cannot be packed (allowed: 1 to 8)")
