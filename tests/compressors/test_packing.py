"""Packing is lossless and exactly as large as it says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.compressors.packing import pack, packed_bytes, unpack
from paretopress.spaces.errors import ArtifactError


@st.composite
def _integers(draw):
    bits = draw(st.integers(1, 8))
    rows, columns = draw(st.integers(0, 9)), draw(st.integers(1, 13))
    half = 2 ** (bits - 1)
    values = draw(st.lists(st.integers(-half, half - 1), min_size=rows * columns, max_size=rows * columns))
    return bits, torch.tensor(values, dtype=torch.int8).reshape(rows, columns)


@settings(max_examples=200, deadline=None)
@given(_integers())
def test_round_trip(case):
    bits, integers = case
    packed = pack(integers, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_bytes(integers.numel(), bits),)
    restored = unpack(packed, bits, integers.shape)
    assert restored.dtype == torch.int8
    assert torch.equal(restored, integers)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_value_of_every_width_survives(bits):
    half = 2 ** (bits - 1)
    integers = torch.arange(-half, half, dtype=torch.int16).to(torch.int8)
    assert torch.equal(unpack(pack(integers, bits), bits, integers.shape), integers)


def test_golden_bytes():
    assert pack(torch.tensor([1, -1, 0, -2], dtype=torch.int8), 2).tolist() == [0b10_00_11_01]
    assert pack(torch.tensor([3, -4, 1], dtype=torch.int8), 3).tolist() == [0b01_100_011, 0b0]
    assert pack(torch.tensor([-128, 127], dtype=torch.int8), 8).tolist() == [128, 127]
    assert pack(torch.tensor([-1, 0, -1], dtype=torch.int8), 1).tolist() == [0b101]


PACKED = [(0, 3, 0), (1, 1, 1), (8, 3, 3), (9, 3, 4), (577, 2, 145)]


@pytest.mark.parametrize(("count", "bits", "expected"), PACKED)
def test_packed_bytes(count, bits, expected):
    assert packed_bytes(count, bits) == expected


def test_what_would_lose_information_is_refused():
    with pytest.raises(ArtifactError, match=r"2 bits \(allowed: -2..1\)"):
        pack(torch.tensor([2]), 2)
    with pytest.raises(ArtifactError, match="-3"):
        pack(torch.tensor([-3]), 2)
    with pytest.raises(ArtifactError, match="9 bits"):
        pack(torch.tensor([0]), 9)


def test_bytes_of_another_shape_are_refused():
    packed = pack(torch.zeros(10, dtype=torch.int8), 4)
    with pytest.raises(ArtifactError, match="expected 6 bytes"):
        unpack(packed, 4, (3, 4))
    with pytest.raises(ArtifactError, match="uint8"):
        unpack(packed.to(torch.int8), 4, (10,))
