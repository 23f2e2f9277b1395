"""Huffman codes of small integers: fewer bits for those that occur often.

Codes are canonical, so that their lengths alone describe them (one byte per symbol). The stream is cut into blocks of
equally many symbols whose first bits are stored: all blocks are decoded in step, one symbol of each at a time, and
nothing runs once per symbol.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretopress.spaces.errors import ArtifactError

Integers = NDArray[np.int64]
BLOCK = 2048          # symbols
LONGEST = 24          # bits of a code: a window of 32 bits that starts anywhere in a byte holds it


@dataclass(frozen=True)
class HuffmanStream:
    """Encoded symbols.

    Attributes:
        lengths: `(symbols,)` uint8, bits of each symbol's code, 0 for those that do not occur.
        starts: `(blocks,)` uint32, first bit of each block.
        data: uint8, the codes, the highest bit of a byte first.
        count: How many symbols are encoded.
    """

    lengths: NDArray[np.uint8]
    starts: NDArray[np.uint32]
    data: NDArray[np.uint8]
    count: int

    @property
    def size_bytes(self) -> int:
        """Bytes of all that is stored."""
        return self.lengths.nbytes + self.starts.nbytes + self.data.nbytes


def code_lengths(counts: Integers) -> NDArray[np.uint8]:
    """Bits of each symbol's code, for the shortest stream there is (Huffman 1952).

    Args:
        counts: `(symbols,)` how often each occurs. Where codes came out longer than 24 bits, rare symbols are taken
            for less rare ones until they do not.
    """
    counts = np.asarray(counts, dtype=np.int64)
    lengths = _lengths(counts)
    while lengths.max(initial=0) > LONGEST:
        counts = np.where(counts > 0, (counts + 1) // 2 + 1, 0)
        lengths = _lengths(counts)
    return lengths


def _lengths(counts: Integers) -> NDArray[np.uint8]:
    present = np.flatnonzero(counts)
    lengths = np.zeros(len(counts), dtype=np.uint8)
    if len(present) == 1:
        lengths[present] = 1
    heap: list[tuple[int, int, tuple[int, ...]]]
    heap = [(int(counts[symbol]), int(symbol), (int(symbol),)) for symbol in present]
    heapq.heapify(heap)
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        members = (*first[2], *second[2])
        lengths[list(members)] += 1
        heapq.heappush(heap, (first[0] + second[0], min(first[1], second[1]), members))
    return lengths


def encode(symbols: Integers, alphabet: int) -> HuffmanStream:
    """Encode integers in `0 .. alphabet - 1`.

    Raises:
        ArtifactError: A symbol is outside of the alphabet.
    """
    symbols = np.asarray(symbols, dtype=np.int64).ravel()
    if len(symbols) and (symbols.min() < 0 or symbols.max() >= alphabet):
        raise ArtifactError(f"symbols {symbols.min()}..{symbols.max()} are outside an alphabet of {alphabet}")
    lengths = code_lengths(np.bincount(symbols, minlength=alphabet))
    codes, bits = _canonical(lengths), lengths[symbols].astype(np.int64)
    ends = np.cumsum(bits)
    total, starts = int(ends[-1]) if len(ends) else 0, ends - bits
    stream = np.zeros(-(-total // 8) * 8, dtype=np.uint8)
    for place in range(int(lengths.max(initial=0))):
        longer = bits > place
        stream[starts[longer] + place] = (codes[symbols[longer]] >> (bits[longer] - 1 - place)) & 1
    return HuffmanStream(lengths, starts[::BLOCK].astype(np.uint32), np.packbits(stream), len(symbols))


def decode(stream: HuffmanStream) -> Integers:
    """Return what was encoded, `(count,)`.

    Raises:
        ArtifactError: The stream is damaged: its codes, its blocks or its length.
    """
    lengths = stream.lengths.astype(np.int64)
    blocks = -(-stream.count // BLOCK)
    kraft = float(np.sum(np.where(lengths > 0, 2.0 ** -lengths, 0.0)))
    if len(stream.starts) != blocks or kraft > 1.0 or (stream.count and not kraft) or lengths.max(initial=0) > LONGEST:
        raise ArtifactError("Huffman stream: its codes or its blocks are damaged")
    if not stream.count:
        return np.zeros(0, dtype=np.int64)
    if stream.count > 8 * len(stream.data):   # every value takes a bit at least: claims without data allocate nothing
        raise ArtifactError("Huffman stream: it ends too early")
    data = np.concatenate([stream.data, np.zeros(4, dtype=np.uint8)]).astype(np.uint32)
    windows = (data[:-3] << 24) | (data[1:-2] << 16) | (data[2:-1] << 8) | data[3:]
    order, limits, shifts = _table(lengths)
    position = stream.starts.astype(np.int64)
    result = np.zeros((blocks, BLOCK), dtype=np.int64)
    last = stream.count - (blocks - 1) * BLOCK
    for step in range(BLOCK):
        active = slice(None) if step < last else slice(0, blocks - 1)
        at = position[active]
        if not len(at):
            break
        if at.max() >= 8 * len(stream.data):
            raise ArtifactError("Huffman stream: it ends too early")
        window = (windows[at >> 3] << (at & 7).astype(np.uint32)).astype(np.uint32)
        length = np.searchsorted(limits, window.astype(np.int64), side="right") + 1
        if length.max() > LONGEST:
            raise ArtifactError("Huffman stream: bits that are no code")
        code = window.astype(np.int64) >> (32 - length)
        result[active, step] = order[code + shifts[length]]
        position[active] = at + length
    return result.ravel()[: stream.count]


def _canonical(lengths: NDArray[np.uint8]) -> Integers:
    """Codes by symbol: of one length in the order of symbols, shorter ones first."""
    codes, code = np.zeros(len(lengths), dtype=np.int64), 0
    for length in range(1, int(lengths.max(initial=0)) + 1):
        members = np.flatnonzero(lengths == length)
        codes[members] = code + np.arange(len(members))
        code = (code + len(members)) << 1
    return codes


def _table(lengths: Integers) -> tuple[Integers, Integers, Integers]:
    """How a window of 32 bits is read: symbols in the order of codes, the first window beyond each length, offsets."""
    order = np.concatenate([np.flatnonzero(lengths == length) for length in range(1, LONGEST + 1)])
    limits, shifts = np.zeros(LONGEST, dtype=np.int64), np.zeros(LONGEST + 2, dtype=np.int64)
    code, seen = 0, 0
    for length in range(1, LONGEST + 1):
        members = int((lengths == length).sum())
        shifts[length] = seen - code
        code, seen = code + members, seen + members
        limits[length - 1] = code << (32 - length)
        code <<= 1
    return order, limits, shifts
