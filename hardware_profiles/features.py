"""Features of fused kernels for the aligned roofline: work and bytes after rounding channels up.

Each feature is a count (multiply-accumulates, bytes, calls) in thousands, so a coefficient is microseconds
per thousand. Separate work features per window class stand for separate efficiencies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from paretopress.spaces.kernels import Boundary, Family, Kernel, product

Array = NDArray[np.float64]
# Element-wise functions that take an exponential or an error function: many times the work of a comparison.
CURVED = frozenset(("gelu", "sigmoid", "tanh", "erf", "exp", "log", "silu", "elu", "selu", "celu", "mish", "softplus"))


@dataclass(frozen=True, slots=True)
class Alignment:
    """How far the runtime rounds channels up inside a kernel.

    Attributes:
        input_channels: Input channels are processed in multiples of this.
        output_channels: Output channels are computed in multiples of this.
        odd: Channel counts that are no multiple of this pay a copy.
    """

    input_channels: int = 1
    output_channels: int = 1
    odd: int = 1


@dataclass(frozen=True, slots=True)
class Columns:
    """Shapes of n kernels as columns, each of shape (n,) and dtype float64."""

    cin: Array
    cout: Array
    area: Array
    groups: Array
    pixels: Array
    lines: Array
    strided: Array
    inputs: Array
    outputs: Array
    rows: Array
    batch: Array
    fused: Array
    flat: Array
    curved: Array


def as_product(kernel: Kernel) -> Kernel:
    """What a transposed convolution is computed as: a product at every input position, summed up into the output.

    The product is that of a 1x1 convolution that makes `window` times as many channels; other kernels stay.
    """
    if kernel.family is not Family.TRANSPOSED:
        return kernel
    ones = (1,) * len(kernel.window)
    return replace(
        kernel, cout=kernel.cout * product(kernel.window), window=ones, stride=ones, output_size=kernel.input_size,
        output_elements=kernel.output_elements + kernel.cout * product(kernel.window) * product(kernel.input_size),
    )


def columns(kernels: Sequence[Kernel]) -> Columns:
    """Extract the shapes of kernels; transposed convolutions as products.

    `pixels` are output positions, `lines` output positions without the innermost dimension, `fused` the
    number of absorbed operators, `flat` 1 for windows of one dimension, `curved` 1 for functions of exponentials.
    """
    table = np.array(
        [
            (
                k.cin,
                k.cout,
                prod(k.window),
                k.groups,
                prod(k.output_size),
                prod(k.output_size[:-1]),
                prod(k.stride) > 1,
                k.input_elements,
                k.output_elements,
                k.rows,
                k.batch,
                len(k.fused),
                len(k.window) == 1,
                k.operator in CURVED,
            )
            for k in map(as_product, kernels)
        ],
        dtype=np.float64,
    ).reshape(len(kernels), 14)
    return Columns(*table.T)


def _up(count: Array, step: int) -> Array:
    return np.ceil(count / step) * step


def _work(c: Columns, a: Alignment) -> Array:
    """Multiply-accumulates after alignment, in thousands."""
    dense = np.where(_few_inputs(c, a), c.cin, _up(c.cin, a.input_channels))
    cin = np.where(c.groups > 1, c.cin / c.groups, dense)
    return c.batch * c.rows * c.pixels * c.area * cin * _up(c.cout, a.output_channels) / 1e3


def _gathers(c: Columns, _: Alignment) -> Array:
    """Copies that build the im2col matrix: one per output position and tap, none for unstrided 1x1."""
    return np.where((c.area > 1) | (c.strided > 0), c.batch * c.pixels * c.area, 0.0) / 1e3


def _lines(c: Columns, a: Alignment) -> Array:
    """Inner loops over an output line: one per line, tap, block of output and of 16 input channels."""
    return (
        c.batch
        * c.lines
        * c.area
        * np.ceil(c.cout / a.output_channels)
        * np.ceil(c.cin / c.groups / 16)
        / 1e3
    )


def _where(
    condition: Callable[[Columns, Alignment], NDArray[np.bool_]],
    feature: Callable[[Columns, Alignment], Array],
) -> Callable[[Columns, Alignment], Array]:
    """A feature that counts only for some kernels."""
    return lambda c, a: np.where(condition(c, a), feature(c, a), 0.0)


def _one(c: Columns, _: Alignment) -> Array:
    return np.ones_like(c.cin)


def _odd_in(c: Columns, a: Alignment) -> NDArray[np.bool_]:
    return np.asarray(c.cin % a.odd != 0)


def _odd_out(c: Columns, a: Alignment) -> NDArray[np.bool_]:
    return np.asarray(c.cout % a.odd != 0)


def _few_inputs(c: Columns, a: Alignment) -> NDArray[np.bool_]:
    """Fewer input channels than a blocked layout holds: another kernel reads them without rounding up."""
    return np.asarray((c.cin < a.input_channels) & (c.groups == 1) & (a.input_channels > 4))


def _shallow(c: Columns, _: Alignment) -> NDArray[np.bool_]:
    """Dense windows over fewer than four channels: they leave lanes of four products idle."""
    return np.asarray((c.cin < 4) & (c.groups == 1))


def _few_outputs(c: Columns, _: Alignment) -> NDArray[np.bool_]:
    """Fewer outputs than a vector register: every position ends in scalar code."""
    return np.asarray(c.cout < 16)


def _unblocked(c: Columns, a: Alignment) -> NDArray[np.bool_]:
    """Kernels outside the blocked layout: windows of one dimension and odd channel counts."""
    return np.asarray((c.flat > 0) | (c.cin % a.odd != 0))


def _tokens(c: Columns, _: Alignment) -> NDArray[np.bool_]:
    """Linear layers on many rows: a product and a sum, where a layer on one row reads its weights once."""
    return np.asarray(c.rows > 1)


FEATURES: dict[str, Callable[[Columns, Alignment], Array]] = {
    "one": _one,
    "work": _work,
    "work_1x1": _where(lambda c, a: (c.area == 1) & ~_few_inputs(c, a), _work),
    "work_3x3": _where(lambda c, a: (c.area == 9) & ~_few_inputs(c, a), _work),
    "work_other": _where(lambda c, a: ((c.area != 1) & (c.area != 9)) & ~_few_inputs(c, a), _work),
    "work_strided": _where(lambda c, _: c.strided > 0, _work),
    "work_few_pixels": _where(lambda c, _: c.pixels < 32, _work),
    "work_odd_input": _where(_odd_in, _work),
    "work_odd_output": _where(_odd_out, _work),
    "work_few_inputs": _where(lambda c, a: _few_inputs(c, a) & (c.area > 1), _work),
    "work_few_inputs_1x1": _where(lambda c, a: _few_inputs(c, a) & (c.area == 1), _work),
    "work_shallow": _where(_shallow, _work),
    "work_tokens": _where(_tokens, _work),
    "tokens_one": _where(_tokens, _one),
    "tokens_outputs": _where(_tokens, lambda c, _: c.outputs / 1e3),
    "row_weights": _where(lambda c, a: ~_tokens(c, a), lambda c, a: c.cin * _up(c.cout, a.output_channels) / 1e3),
    "work_flat": _where(lambda c, _: c.flat > 0, _work),
    "gathers": _gathers,
    "im2col": lambda c, a: _gathers(c, a) * c.cin / c.groups,
    "lines": _lines,
    "blocks": lambda c, a: c.batch * c.rows * c.pixels * np.ceil(c.cout / a.output_channels) / 1e3,
    "pixels": lambda c, _: c.batch * c.rows * c.pixels / 1e3,
    "tail": lambda c, _: c.batch * c.pixels * (c.cout % 8) / 1e3,
    "tap_blocks": lambda c, _: c.batch * c.pixels * c.area * np.ceil(c.cout / 8) / 1e3,
    "tap_tail": lambda c, _: c.batch * c.pixels * c.area * (c.cout % 8) / 1e3,
    "few_outputs": _where(_few_outputs, lambda c, _: c.batch * c.pixels / 1e3),
    "tap_few_outputs": _where(_few_outputs, lambda c, _: c.batch * c.pixels * c.area / 1e3),
    "tap_half": _where(lambda c, _: c.cout % 16 >= 8, lambda c, _: c.batch * c.pixels * c.area / 1e3),
    "tap_quarter": _where(lambda c, _: c.cout % 8 >= 4, lambda c, _: c.batch * c.pixels * c.area / 1e3),
    "group_pixels": lambda c, _: c.batch * c.pixels * c.groups / 1e3,
    "weights": lambda c, a: c.area * (c.cin / c.groups) * _up(c.cout, a.output_channels) / 1e3,
    "window_reads": lambda c, _: c.outputs * c.area / 1e3,
    "inputs": lambda c, _: c.inputs / 1e3,
    "inputs_curved": lambda c, _: c.curved * c.inputs / 1e3,
    "inputs_few": _where(_few_inputs, lambda c, _: c.inputs / 1e3),
    "outputs": lambda c, _: c.outputs / 1e3,
    "outputs_aligned": lambda c, a: c.batch * c.pixels * _up(c.cout, a.output_channels) / 1e3,
    "odd_input": _where(_odd_in, lambda c, _: c.inputs / 1e3),
    "odd_output": _where(_odd_out, lambda c, _: c.outputs / 1e3),
    "odd_input_one": _where(_odd_in, _one),
    "odd_output_one": _where(_odd_out, _one),
    "few_inputs_one": _where(_few_inputs, _one),
    "groups": lambda c, _: c.groups / 1e3,
    "flat_one": _where(lambda c, _: c.flat > 0, _one),
    "unblocked_channels": _where(_unblocked, lambda c, _: c.cout / 1e3),
    "fused": lambda c, _: c.fused * c.outputs / 1e3,
}

BOUNDARY_FEATURES: dict[str, Callable[[Array, Array], Array]] = {
    "one": lambda elements, _: np.ones_like(elements),
    "elements": lambda elements, _: elements / 1e3,
    "layout_one": lambda _, rank: (rank > 2).astype(np.float64),
    "layout": lambda elements, rank: np.where(rank > 2, elements, 0.0) / 1e3,
}


def matrix(table: Columns, names: Sequence[str], alignment: Alignment) -> Array:
    """Return the feature matrix of shape (kernels, len(names))."""
    return np.stack([FEATURES[name](table, alignment) for name in names], axis=1)


def boundary_matrix(boundaries: Sequence[Boundary], names: Sequence[str]) -> Array:
    """Return the feature matrix of shape (boundaries, len(names))."""
    table = np.array([(b.elements, b.rank) for b in boundaries], dtype=np.float64).reshape(len(boundaries), 2)
    return np.stack([BOUNDARY_FEATURES[name](table[:, 0], table[:, 1]) for name in names], axis=1)
