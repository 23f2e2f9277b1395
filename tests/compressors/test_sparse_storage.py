"""Sparse storage: every layout gives back every bit, and takes the bytes that it says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
from paretopress.spaces.choices import Sparse
from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.stored_weights import places_size, sparse_plan

LAYOUTS = ("bitmap", "csr", "n:m")


def matrix(rows, columns, density, pattern, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, columns, generator=generator) * 50).to(dtype)
    mask = torch.rand(rows, columns, generator=generator) < density
    if pattern:   # the first kept ones of every group
        padded = torch.zeros(rows, math.ceil(columns / pattern.of) * pattern.of, dtype=torch.bool)
        padded[:, :columns] = mask
        groups = padded.reshape(rows, -1, pattern.of)
        groups &= groups.cumsum(dim=2) <= pattern.kept
        mask = groups.reshape(rows, -1)[:, :columns]
    return weight, mask


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 70), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from(LAYOUTS),
    st.sampled_from([Pattern(2, 4), Pattern(1, 4), Pattern(4, 8), Pattern(1, 2), Pattern(3, 7)]),
    st.sampled_from([torch.float32, torch.float16, torch.int8]), st.integers(0, 1000),
)
def test_every_bit_comes_back_from_as_many_bytes_as_said(rows, columns, density, layout, pattern, dtype, seed):
    weight, mask = matrix(rows, columns, density, pattern if layout == "n:m" else None, seed, dtype)
    values, places = store(weight, mask, layout, pattern)
    assert torch.equal(restore(values, places), torch.where(mask, weight, torch.zeros((), dtype=dtype)))
    sparse = Sparse(pattern.kept / pattern.of, str(pattern))
    assert places.size_bytes == places_size(layout, sparse, rows, columns, places.count)
    assert values.dtype == dtype
    assert len(values) == places.count


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 32), st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_packed_places_come_back(bits, numbers):
    values = torch.tensor([number % (1 << bits) for number in numbers], dtype=torch.int64)
    packed = pack_unsigned(values, bits)
    assert packed.numel() == math.ceil(len(numbers) * bits / 8)
    assert torch.equal(unpack_unsigned(packed, bits, len(numbers)), values)


def test_bytes_of_known_matrices():
    """16x64 at 2:4: 512 kept of 1,024. 128 bytes of bitmap; 2 bits each: 128; CSR 16 x 7 + 512 x 6 bits = 398."""
    sizes = [places_size(layout, Sparse(0.5, "2:4"), 16, 64, 512) for layout in LAYOUTS]
    assert sizes == [128, 14 + 384, 128]


@pytest.mark.parametrize(("density", "expected"), [(0.02, "csr"), (0.6, "bitmap")])
def test_few_kept_weights_are_smallest_by_column_and_many_by_bitmap(density, expected):
    planned = sparse_plan(Sparse(density), 64, 256, 8)
    assert planned.layout == expected
    assert planned.count == planned.kept == round(density * 64 * 256)


def test_a_pattern_is_smallest_where_it_saves_the_most():
    """1:16 takes 4 bits for each kept weight; a bitmap 16, columns of 1,024 take 10."""
    sparse = Sparse(1 / 16, "1:16")
    planned = sparse_plan(sparse, 8, 1024, 8)
    assert (planned.layout, planned.count) == ("n:m", 8 * 64)
    assert places_size("n:m", sparse, 8, 1024, 8 * 64) == 8 * 64 // 2


def test_a_pattern_that_is_mostly_padding_is_stored_plainly():
    """3 of every 4 of 5 columns: 3 and 1 are kept, and 2 more would be zeros."""
    planned = sparse_plan(Sparse(0.75, "3:4"), 8, 5, 32)
    assert (planned.layout, planned.count) == ("bitmap", 8 * 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))
def test_blocks_come_back(rows, columns, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    down, across = math.ceil(rows / height), math.ceil(columns / width)
    blocks = torch.rand(down, across, generator=generator) < 0.5
    mask = blocks.repeat_interleave(height, 0).repeat_interleave(width, 1)[:rows, :columns]
    weight = torch.randn(rows, columns, generator=generator)
    stored = store_blocks(mask, (height, width))
    again, put = restore_blocks(stored.tensors, (rows, columns), (height, width), int(blocks.sum()))
    assert torch.equal(again, mask)
    assert torch.equal(put(stored.pick(weight)), weight * mask)
    with pytest.raises(ArtifactError, match="sparse weights"):
        restore_blocks(stored.tensors, (rows, columns), (height, width), int(blocks.sum()) + 1)


@pytest.mark.parametrize("break_it", ["values", "row counts", "column", "bitmap", "place"])
def test_damaged_places_are_refused(break_it):
    layouts = {"values": "csr", "row counts": "csr", "column": "csr", "bitmap": "bitmap", "place": "n:m"}
    weight, mask = matrix(6, 21, 0.4, Pattern(1, 3), 3)
    values, places = store(weight, mask, layouts[break_it], Pattern(1, 3))
    tensors = {name: tensor.clone() for name, tensor in places.tensors.items()}
    if break_it == "values":
        values = values[:-1]
    elif break_it == "row counts":
        tensors["row_counts"][0] ^= 1
    elif break_it == "column":
        tensors["columns"][0] |= 31
    elif break_it == "bitmap":
        tensors["bitmap"][0] ^= 1
    else:
        tensors["places"][0] |= 3
    with pytest.raises(ArtifactError, match="sparse weights"):
        restore(values, Places(places.layout, places.shape, places.count, tensors, places.pattern))


@pytest.mark.parametrize("call", [
    lambda: Pattern(4, 4), lambda: Pattern(0, 4), lambda: pack_unsigned(torch.tensor([4]), 2),
    lambda: unpack_unsigned(torch.zeros(3, dtype=torch.uint8), 2, 4),
    lambda: store(torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool), "n:m", Pattern(2, 4)),
])
def test_what_is_no_pattern_or_does_not_fit_is_refused(call):
    with pytest.raises(ArtifactError):
        call()
