"""Huffman streams: every symbol comes back, no prefix code is shorter, damage is noticed."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.compressors.huffman import BLOCK, LONGEST, code_lengths, decode, encode
from paretopress.spaces.errors import ArtifactError


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 256), st.integers(0, 3 * BLOCK), st.floats(0.1, 8.0), st.integers(0, 1000))
def test_every_symbol_comes_back(alphabet, count, skew, seed):
    symbols = (alphabet * np.random.default_rng(seed).random(count) ** skew).astype(np.int64)
    stream = encode(symbols, alphabet)
    assert np.array_equal(decode(stream), symbols)
    assert stream.size_bytes == alphabet + 4 * math.ceil(count / BLOCK) + len(stream.data)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=40))
def test_lengths_are_within_a_bit_of_the_entropy_and_fill_the_code(counts):
    counts = np.array(counts)
    lengths = code_lengths(counts).astype(float)
    present = counts > 0
    if present.sum() < 2:
        assert lengths.sum() == present.sum()
        return
    shares = counts[present] / counts.sum()
    entropy, mean = -(shares * np.log2(shares)).sum(), (shares * lengths[present]).sum()
    assert entropy - 1e-9 <= mean < entropy + 1.0
    assert np.sum(2.0 ** -lengths[present]) == 1.0


def test_a_known_code():
    """Huffman's own kind of example: 5 symbols of 0.4, 0.2, 0.2, 0.1, 0.1 take 2.2 bits on average."""
    lengths = code_lengths(np.array([4, 2, 2, 1, 1]))
    assert (lengths * np.array([4, 2, 2, 1, 1])).sum() == 22


def test_codes_of_rare_symbols_are_limited():
    """Fibonacci counts make the longest codes there are."""
    counts = [1, 1]
    while len(counts) < 40:
        counts.append(counts[-1] + counts[-2])
    lengths = code_lengths(np.array(counts))
    assert lengths.max() <= LONGEST
    assert np.sum(2.0 ** -lengths.astype(float)) <= 1.0


@pytest.mark.parametrize("damage", [
    lambda s: replace(s, lengths=np.ones_like(s.lengths)),
    lambda s: replace(s, lengths=np.zeros_like(s.lengths)),
    lambda s: replace(s, starts=s.starts[:-1]),
    lambda s: replace(s, data=s.data[:10]),
    lambda s: replace(s, starts=s.starts + np.uint32(1 << 20)),
])
def test_damage_is_noticed(damage):
    symbols = np.random.default_rng(0).integers(0, 16, 3 * BLOCK)
    with pytest.raises(ArtifactError, match="Huffman stream"):
        decode(damage(encode(symbols, 16)))


def test_symbols_outside_of_the_alphabet_are_refused():
    with pytest.raises(ArtifactError, match="alphabet"):
        encode(np.array([3]), 3)
