"""Binarisation: weights as signs with a scale per row, and products of signs by exclusive-or and counting bits.

One base is XNOR-Net's (Rastegari, Ordonez, Redmon, Farhadi: "XNOR-Net", ECCV 2016): `w ~ a sign(w)` with
`a = mean |w|`, the least-squares scale. Further bases binarise what the ones before leave, and all scales of a row
are then solved together (Lin, Zhao, Pan: "Towards Accurate Binary Convolutional Neural Network", NeurIPS 2017); with
moments of the inputs, for the row's output. `sign(0) = +1` everywhere.

The product of two rows of signs is `valid - 2 popcount((a xor b) and valid)`: an integer, exactly that of the float
product of +-1. Zero padding is no sign: such places are not valid and add nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad, unfold

from paretopress.compressors.least_squares import centred, damped_cholesky
from paretopress.compressors.stored import Signs
from paretopress.spaces.errors import DataError

Words = NDArray[np.uint64]
MOST_BASES = 3
WORD = 64
CHUNK_WORDS = 1 << 22   # exclusive-ors held at a time


@torch.no_grad()
def binarise(W: Tensor, bases: int = 1, G: Tensor | None = None, damping: float = 1e-2) -> Signs:
    """Replace a matrix by signs with scales.

    Args:
        W: `(out, columns)`.
        bases: 1 to 3.
        G: `(columns + 1, columns + 1)` augmented second moments of the inputs, or `(groups, ...)` for grouped layers,
            whose rows are split evenly over the groups; scales are least squares of the weights where not given.
        damping: Relative to the mean input variance.

    Raises:
        DataError: The number of bases is not offered, or weights or moments are not finite.
    """
    if not 1 <= bases <= MOST_BASES:
        raise DataError(f"binarisation with {bases} bases is not offered (allowed: 1 to {MOST_BASES})")
    if not bool(torch.isfinite(W).all()):
        raise DataError("binarisation: weights are not finite")
    left, found = W.double(), []
    for _ in range(bases):
        found.append(torch.where(left >= 0.0, 1.0, -1.0).double())
        left = left - left.abs().mean(dim=1, keepdim=True) * found[-1]
    rows = torch.stack(found, dim=1)
    if G is None:
        weighted = rows
    else:
        covariance, _ = centred(G if G.ndim == 3 else G.unsqueeze(0))
        _, amount = damped_cholesky(covariance, damping)
        damped = covariance + amount[:, None, None] * torch.eye(W.shape[1], dtype=covariance.dtype)
        grouped = rows.reshape(len(damped), -1, W.shape[1])
        weighted = (grouped @ damped).reshape(rows.shape)
    gram, target = weighted @ rows.transpose(1, 2), (weighted @ W.double().unsqueeze(2)).squeeze(2)
    # Bases of a row may be equal or opposite; the least-norm solution serves these.
    scales = torch.linalg.lstsq(gram, target.unsqueeze(2), driver="gelsd").solution.squeeze(2)
    return Signs(rows.to(torch.int8), scales.float(), W.detach().float())


def packed_words(signs: Tensor) -> Words:
    """Pack rows of booleans into words of 64 bits: `(rows, columns)` to `(rows, ceil(columns / 64))`."""
    rows, columns = signs.shape
    padded = np.zeros((rows, -(-columns // WORD) * WORD), dtype=np.uint8)
    padded[:, :columns] = signs.numpy()
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)


def xnor_product(a: Words, b: Words, valid: Words) -> NDArray[np.int32]:
    """Products of rows of signs.

    Args:
        a: `(rows, words)`, bit 1 for +1.
        b: `(out, words)`, likewise.
        valid: `(rows, words)` or `(1, words)`, bit 1 where a place of `a` counts.

    Returns:
        `(rows, out)`: sums over valid places of the products of signs.
    """
    valid = np.broadcast_to(valid, a.shape)
    counts = np.bitwise_count(valid).sum(axis=1, dtype=np.int32)
    result = np.empty((len(a), len(b)), dtype=np.int32)
    size = max(1, CHUNK_WORDS // max(1, b.size))
    for start in range(0, len(a), size):
        rows = slice(start, start + size)
        different = (a[rows, None] ^ b[None]) & valid[rows, None]
        result[rows] = counts[rows, None] - 2 * np.bitwise_count(different).sum(axis=2, dtype=np.int32)
    return result


def binary_linear(x: Tensor, matrix: Signs, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """A linear layer of binary weights on the signs of its inputs, by integers.

    Args:
        x: `(rows, columns)`.
        matrix: The weights.
        bias: `(out,)`.
        scale: What a sign of the input stands for.

    Returns:
        `(rows, out)` float32.
    """
    columns = x.shape[1]
    valid = packed_words(torch.ones(1, columns, dtype=torch.bool))
    return _scaled(packed_words(x >= 0), valid, matrix, bias, scale)


def binary_conv2d(
    x: Tensor, matrix: Signs, window: tuple[int, int], bias: Tensor | None = None, scale: float = 1.0, *,
    stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0), dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """A convolution of binary weights on the signs of its inputs, by integers; zero padding adds nothing.

    Args:
        x: `(n, channels, height, width)`.
        matrix: The weights, `(out, channels * window)`.
        window: Of the kernel.
        bias: `(out,)`.
        scale: What a sign of the input stands for.
        stride: As in `conv2d`.
        padding: As in `conv2d`.
        dilation: As in `conv2d`.

    Returns:
        `(n, out, rows, columns)` float32.
    """
    edges = (padding[1], padding[1], padding[0], padding[0])
    positive = pad((x >= 0).float(), edges)
    inside = pad(torch.ones(1, *x.shape[1:]), edges)
    places, valid = (
        unfold(part, window, dilation=dilation, stride=stride).transpose(1, 2) > 0.5 for part in (positive, inside)
    )
    count, positions, columns = places.shape
    words = np.tile(packed_words(valid[0]), (count, 1))
    flat = _scaled(packed_words(places.reshape(-1, columns)), words, matrix, bias, scale)
    reach = [dilation[axis] * (window[axis] - 1) + 1 for axis in (0, 1)]
    height = (x.shape[2] + 2 * padding[0] - reach[0]) // stride[0] + 1
    return flat.reshape(count, positions, -1).transpose(1, 2).reshape(count, -1, height, positions // height)


def _scaled(words: Words, valid: Words, matrix: Signs, bias: Tensor | None, scale: float) -> Tensor:
    """Integer products first, then the scales of rows and input, then the bias."""
    total = torch.zeros(len(words), len(matrix.scales))
    for base, signs in enumerate(matrix.signs.unbind(dim=1)):
        products = torch.from_numpy(xnor_product(words, packed_words(signs > 0), valid))
        total = total + products.float() * (matrix.scales[:, base] * scale)
    return total if bias is None else total + bias
