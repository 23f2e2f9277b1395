"""Huffman-coded tensors: packed integers in fewer bytes where some values occur more often than others.

An option of saving, without loss: what a loaded model computes does not depend on it. Every packed tensor is coded by
its own values, of the width that it was packed at, and only where that takes fewer bytes, tables included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from paretopress.compressors.delta import Edit, LayerEdit
from paretopress.compressors.huffman import HuffmanStream, decode, encode
from paretopress.compressors.sparse_storage import pack_unsigned, unpack_unsigned
from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.stored_weights import value_bits

PARTS = ("huffman_lengths", "huffman_starts", "huffman_data")
BYTE = 8   # bits of the values of a tensor that is not packed at a known width, such as a bitmap

Coded = dict[str, tuple[int, int]]
"""Names of coded tensors: the bits of a value, and how many bytes the packed tensor has."""


def packed_widths(edits: Iterable[Edit], names: Iterable[str]) -> dict[str, int]:
    """Bits of the values in every packed weight, by the tensor's name.

    Args:
        edits: What was done to the layers.
        names: Names of tensors.
    """
    packed = [name for name in names if name.endswith("_packed")]
    widths: dict[str, int] = {}
    for edit in edits:
        if isinstance(edit, LayerEdit) and edit.form is not None:
            start = f"{edit.path}." if edit.held is None else f"{edit.path}.{edit.held.weight}".removeprefix(".")
            widths |= {name: value_bits(edit.form) for name in packed if name.startswith(start)}
    return widths


def encoded(tensors: Mapping[str, Tensor], widths: Mapping[str, int]) -> tuple[dict[str, Tensor], Coded]:
    """Code every tensor of bytes that gets smaller.

    Args:
        tensors: What is stored, by name.
        widths: Bits of the values that tensors are packed from; 8 for a name that is missing.

    Returns:
        What is stored then, and which tensors are coded.
    """
    found: dict[str, Tensor] = {}
    coded = Coded()
    for name, tensor in tensors.items():
        bits = widths.get(name, BYTE)
        if tensor.dtype != torch.uint8 or tensor.ndim != 1 or bits == 1 or not tensor.numel():
            found[name] = tensor
            continue
        values = unpack_unsigned(tensor.cpu(), bits, tensor.numel() * BYTE // bits)
        if not torch.equal(pack_unsigned(values, bits), tensor.cpu()):   # the last bits are not padding
            bits, values = BYTE, unpack_unsigned(tensor.cpu(), BYTE, tensor.numel())
        stream = encode(values.numpy(), 1 << bits)
        if stream.size_bytes >= tensor.numel():
            found[name] = tensor
            continue
        arrays = (stream.lengths, stream.starts.view(np.uint8), stream.data)
        found |= {f"{name}.{part}": torch.from_numpy(array.copy()) for part, array in zip(PARTS, arrays, strict=True)}
        coded[name] = (bits, tensor.numel())
    return found, coded


def decoded(tensors: Mapping[str, Tensor], coded: Mapping[str, tuple[int, int]], where: str) -> dict[str, Tensor]:
    """Return what was coded.

    Args:
        tensors: What is stored, by name.
        coded: Which tensors are coded.
        where: The file, for errors.

    Raises:
        ArtifactError: A part of a coded tensor is missing or damaged.
    """
    found = dict(tensors)
    for name, (bits, size) in coded.items():
        parts = [found.pop(f"{name}.{part}", None) for part in PARTS]
        if any(part is None or part.dtype != torch.uint8 or part.ndim != 1 for part in parts):
            raise ArtifactError(f"{where}: Huffman-coded tensor {name!r} is missing or damaged")
        lengths, starts, data = (part.numpy() for part in parts if part is not None)
        if len(lengths) != 1 << bits or len(starts) % 4:
            raise ArtifactError(f"{where}: Huffman-coded tensor {name!r}: its table is damaged")
        values = decode(HuffmanStream(lengths, starts.copy().view(np.uint32), data, size * BYTE // bits))
        found[name] = pack_unsigned(torch.from_numpy(values), bits)
    return found
