"""Stored weights: what a compressed matrix is kept as, and the float matrix that it stands for.

Every form is `(out, columns)`, survives that its rows are multiplied (matching of statistics does that), and is
written to tensors and read back without loss. `spaces/stored_weights.py` says which tensors these are before there are
any weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paretopress.compressors.affine import Affine
from paretopress.compressors.packing import pack, unpack
from paretopress.compressors.quantisation import dequantise
from paretopress.compressors.sparse_storage import (
    Pattern,
    Places,
    pack_unsigned,
    restore,
    restore_blocks,
    store,
    store_blocks,
    unpack_unsigned,
)
from paretopress.spaces.choices import BYTE_LEVEL, Binary, Clustered, Half, Sparse, WeightFormat, Weights
from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.kernels import product
from paretopress.spaces.stored_weights import pattern_sizes, places_forms, sparse_plan, stored_forms, value_bits

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "uint8": torch.uint8}
SMALLEST_SCALE = 1e-30   # what is smaller is zero: products with it would not be finite, or not normal


@dataclass(frozen=True)
class Integers:
    """Integers times the scale of their row.

    Attributes:
        integers: `(out, columns)` int8.
        scales: `(out,)` float32, positive.
        bits: Stored width.
        highest: No integer is larger, nor becomes so in training.
    """

    integers: Tensor
    scales: Tensor
    bits: int
    highest: int = BYTE_LEVEL

    def weight(self) -> Tensor:
        """The matrix that it stands for, float32."""
        return dequantise(self.integers, self.scales)

    def scaled(self, factors: Tensor) -> Integers:
        """The form whose rows are multiplied by `factors`, `(out,)`; negative ones turn the integers.

        Scales stay positive, because biases are rounded to multiples of them: rows that vanish are integers of zero.
        """
        scales = self.scales * factors.abs()
        vanish = scales < SMALLEST_SCALE
        sign = torch.where(vanish, 0.0, torch.where(factors < 0, -1.0, 1.0))
        turned = (self.integers.float() * sign.unsqueeze(1)).to(torch.int8)
        return replace(self, integers=turned, scales=torch.where(vanish, self.scales, scales))

    def each(self, change: Callable[[Tensor], Tensor]) -> Integers:
        """The form with every tensor changed: some rows taken, or copied."""
        return replace(self, integers=change(self.integers), scales=change(self.scales))

    def rows(self) -> tuple[Tensor, Tensor]:
        """Integers and scales that an integer kernel computes with."""
        return self.integers, self.scales

    def tensors(self, kept: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """What is stored, by suffix; `kept` picks the values that are."""
        return {"packed": pack(kept(self.integers), self.bits), "scale": self.scales}


@dataclass(frozen=True)
class Floats:
    """Floats of 32 or 16 bits.

    Attributes:
        values: `(out, columns)` float32, float16 or bfloat16.
    """

    values: Tensor

    def weight(self) -> Tensor:
        """The matrix that it stands for, float32."""
        return self.values.float()

    def scaled(self, factors: Tensor) -> Floats:
        """The form whose rows are multiplied by `factors`, `(out,)`, rounded again."""
        return Floats((self.values.float() * factors.unsqueeze(1)).to(self.values.dtype))

    def each(self, change: Callable[[Tensor], Tensor]) -> Floats:
        """The form with every tensor changed."""
        return Floats(change(self.values))

    def rows(self) -> None:
        """No integer kernel computes with it."""

    def tensors(self, kept: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """What is stored, by suffix."""
        return {"values": kept(self.values)}


@dataclass(frozen=True)
class Shared:
    """Shared values times the scale of their row.

    Attributes:
        codebook: `(2^bits,)` float32, rising.
        indices: `(out, columns)` uint8.
        scales: `(out,)` float32.
        bits: Of an index.
    """

    codebook: Tensor
    indices: Tensor
    scales: Tensor
    bits: int

    def weight(self) -> Tensor:
        """The matrix that it stands for, float32."""
        return self.codebook[self.indices.contiguous().long()] * self.scales.unsqueeze(1)

    def scaled(self, factors: Tensor) -> Shared:
        """The form whose rows are multiplied by `factors`, `(out,)`."""
        return replace(self, scales=self.scales * factors)

    def each(self, change: Callable[[Tensor], Tensor]) -> Shared:
        """The form with every tensor of rows changed."""
        return replace(self, indices=change(self.indices), scales=change(self.scales), codebook=self.codebook.clone())

    def rows(self) -> None:
        """No integer kernel computes with it."""

    def tensors(self, kept: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """What is stored, by suffix."""
        packed = pack_unsigned(kept(self.indices), self.bits)
        return {"packed": packed, "scale": self.scales, "codebook": self.codebook}


@dataclass(frozen=True)
class Signs:
    """Sums of signs, each base with a scale per row.

    Attributes:
        signs: `(out, bases, columns)` int8, +1 and -1.
        scales: `(out, bases)` float32.
        latent: `(out, columns)` floats that the signs were made of, which training starts from; not stored.
    """

    signs: Tensor
    scales: Tensor
    latent: Tensor | None = None

    def weight(self) -> Tensor:
        """The matrix that it stands for, float32."""
        return (self.signs.float() * self.scales.unsqueeze(2)).sum(dim=1)

    def scaled(self, factors: Tensor) -> Signs:
        """The form whose rows are multiplied by `factors`, `(out,)`."""
        latent = None if self.latent is None else self.latent * factors.unsqueeze(1)
        return replace(self, scales=self.scales * factors.unsqueeze(1), latent=latent)

    def each(self, change: Callable[[Tensor], Tensor]) -> Signs:
        """The form with every tensor changed."""
        return Signs(change(self.signs), change(self.scales), None if self.latent is None else change(self.latent))

    def rows(self) -> tuple[Tensor, Tensor] | None:
        """Integers and positive scales that an integer kernel computes with, None for several bases."""
        if self.signs.shape[1] > 1:
            return None
        scales = self.scales[:, 0]
        vanish = scales.abs() < SMALLEST_SCALE
        turned = torch.where(vanish, 0, torch.where(scales < 0, -1, 1)).to(torch.int8)
        return self.signs[:, 0] * turned.unsqueeze(1), torch.where(vanish, torch.ones_like(scales), scales.abs())

    def tensors(self, kept: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:  # noqa: ARG002 - all signs are kept
        """What is stored, by suffix: signs as bits, 1 for +1."""
        return {"packed": pack_unsigned(self.signs > 0, 1), "scale": self.scales}


Values = Integers | Affine | Floats | Shared | Signs


@dataclass(frozen=True)
class SparseWeight:
    """Values of which only some are stored; the others are zero.

    Attributes:
        values: All of them, zero or anything where none is kept.
        mask: `(out, columns)` bool, true where one is kept.
        sparse: Density and pattern.
        form: Format of the values, None for 32-bit floats.
    """

    values: Integers | Affine | Floats | Shared
    mask: Tensor
    sparse: Sparse
    form: WeightFormat | None

    def weight(self) -> Tensor:
        """The matrix that it stands for, float32."""
        return (self.values.weight() * self.mask).contiguous()

    def scaled(self, factors: Tensor) -> SparseWeight:
        """The form whose rows are multiplied by `factors`, `(out,)`."""
        return replace(self, values=self.values.scaled(factors))

    def each(self, change: Callable[[Tensor], Tensor]) -> SparseWeight:
        """The form with every tensor changed; all rows stay, or the density would be another."""
        return replace(self, values=self.values.each(change), mask=change(self.mask))

    def rows(self) -> tuple[Tensor, Tensor] | None:
        """Integers and scales that an integer kernel computes with, zeros included."""
        if not isinstance(self.values, Integers):
            return None
        return self.values.integers * self.mask, self.values.scales

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by suffix."""
        planned = sparse_plan(self.sparse, self.mask.shape[0], self.mask.shape[1], value_bits(self.form))
        if planned.layout == "blocks":
            places = store_blocks(self.mask, pattern_sizes(self.sparse.pattern))
            return {**self.values.tensors(places.pick), **places.tensors}
        found = store(self.mask, self.mask, planned.layout, _pattern(self.sparse))[1]

        def pick(values: Tensor) -> Tensor:
            return store(values, self.mask, planned.layout, _pattern(self.sparse))[0]

        return {**self.values.tensors(pick), **found.tensors}


StoredWeight = Values | SparseWeight


def written(stored: StoredWeight) -> dict[str, Tensor]:
    """All that is stored of a weight, by the suffix of its name."""
    if isinstance(stored, SparseWeight):
        return stored.tensors()
    return stored.tensors(lambda values: values)


def read_stored(
    form: WeightFormat | None, sparse: Sparse | None, shape: tuple[int, ...], tensor_of: Callable[[str], Tensor]
) -> StoredWeight:
    """Read back what `written` gave.

    Args:
        form: Format of the values, None for 32-bit floats.
        sparse: Density and pattern, None where all are kept.
        shape: Of the weight, by outputs.
        tensor_of: Gives the stored tensor of a suffix.

    Raises:
        ArtifactError: The tensors do not belong to the shape.
    """
    rows, columns = shape[0], product(shape[1:])
    tensors = {suffix: tensor_of(suffix) for suffix in stored_forms(form, sparse, rows, columns)}
    if sparse is None:
        return _read_values(form, (rows, columns), tensors, lambda values: values.reshape(rows, columns))
    planned = sparse_plan(sparse, rows, columns, value_bits(form))
    names = places_forms(planned.layout, sparse, rows, columns, planned.count)
    places = {name: tensors[name] for name in names}
    if planned.layout == "blocks":
        mask, put = restore_blocks(places, (rows, columns), pattern_sizes(sparse.pattern), planned.kept)
    else:
        layout = Places(planned.layout, (rows, columns), planned.count, places, _pattern(sparse))

        def put(values: Tensor) -> Tensor:
            return restore(values, layout)

        mask = restore(torch.ones(planned.count, dtype=torch.bool), layout)
    values = _read_values(form, (planned.count,), tensors, put)
    if isinstance(values, Signs):
        raise ArtifactError("sparse weights: signs cannot be sparse")
    return SparseWeight(values, mask, sparse, form)


def _read_values(
    form: WeightFormat | None, shape: tuple[int, ...], tensors: Mapping[str, Tensor], put: Callable[[Tensor], Tensor]
) -> Values:
    count = torch.Size(shape).numel()
    match form:
        case None | Half():
            return Floats(put(tensors["values"]))
        case Weights(bits) if not form.is_plain:
            codes, scales = put(unpack_unsigned(tensors["packed"], bits, count).to(torch.uint8)), tensors["scale"]
            zeros = unpack_unsigned(tensors["zero"], bits, scales.numel()) if "zero" in tensors else None
            zeros = None if zeros is None else zeros.to(torch.uint8).reshape(scales.shape)
            return Affine(codes, scales, zeros, bits, form.group or codes.shape[1])
        case Weights(bits):
            return Integers(put(unpack(tensors["packed"], bits, (count,))), tensors["scale"], bits, form.highest)
        case Clustered(bits):
            indices = unpack_unsigned(tensors["packed"], bits, count).to(torch.uint8)
            return Shared(tensors["codebook"], put(indices), tensors["scale"], bits)
        case Binary(bases):
            scales = tensors["scale"]
            bits_of = unpack_unsigned(tensors["packed"], 1, count * bases).to(torch.int8)
            return Signs((2 * bits_of - 1).reshape(len(scales), bases, -1), scales)


def _pattern(sparse: Sparse) -> Pattern | None:
    return Pattern(*pattern_sizes(sparse.pattern)) if ":" in sparse.pattern else None
