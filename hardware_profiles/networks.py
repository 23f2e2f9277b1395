"""Small random networks for measuring kernels in the context they run in.

A kernel alone in a session pays layout changes at both ends that it does not pay inside a network, so
kernels are timed inside random networks of the kind users compress: residual blocks, depthwise-separable
and inverted blocks, low-rank pairs, pooling, concatenation, and small heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from paretopress.hardware_profiles.kernels_onnx import ModelBuilder
from paretopress.hardware_profiles.onnx_graph import Value
from paretopress.spaces.kernels import CostView, product

_CHAINS = 0.35
MODES = ("float32", "int8", "mixed")
_SIZES: tuple[tuple[int, ...], ...] = (
    (8, 8),
    (8, 8),
    (16, 16),
    (16, 16),
    (32, 32),
    (32, 32),
    (49, 10),
    (25, 5),
    (28, 28),
    (24, 24),
    (12, 12),
    (64, 64),
    (4, 4),
    (64,),
    (128,),
    (16,),
)


@dataclass(frozen=True, slots=True)
class Network:
    """A serialised ONNX model, what it should cost, and its input shape."""

    model: bytes
    view: CostView
    input_shape: tuple[int, ...]


@dataclass
class _Drawing:
    """The random choices of one network."""

    random: np.random.Generator
    builder: ModelBuilder
    mode: str
    macs_left: int

    def int8(self) -> bool:
        """Whether the next kernel is quantised."""
        return self.mode == "int8" or (self.mode == "mixed" and bool(self.random.random() < 0.6))

    def channels(self, low: int = 4, high: int = 256) -> int:
        """A channel count, log-uniform; mostly a multiple of 4, often of 16, sometimes odd."""
        value = float(np.exp(self.random.uniform(np.log(low), np.log(high + 1))))
        kind = self.random.random()
        step = 16 if kind < 0.35 and value >= 12 else 4 if kind < 0.93 else 1
        return max(step, min(high // step, round(value / step)) * step)

    def affordable(self, value: Value, area: int, high: int = 256) -> int:
        """A channel count that keeps the network small."""
        limit = max(4, self.macs_left // max(1, 3 * product(value.size) * area * value.channels))
        return self.channels(4, max(4, min(high, limit)))

    def spend(self) -> None:
        """Charge the last kernel."""
        self.macs_left = max(0, self.macs_left - self.builder.kernels[-1].macs)


def random_network(seed: int, mode: str) -> Network:
    """Draw a network; the same seed and mode give the same bytes.

    Args:
        seed: Seed of shapes and weights.
        mode: `"float32"`, `"int8"`, or `"mixed"` (arithmetic drawn per kernel).
    """
    random = np.random.default_rng([seed, MODES.index(mode)])
    builder = ModelBuilder(seed)
    draw = _Drawing(random, builder, mode, int(np.exp(random.uniform(np.log(3e5), np.log(3e7)))))
    if random.random() < 0.08:
        return _finish(builder, _perceptron(draw))
    size = _SIZES[random.integers(len(_SIZES))]
    value = builder.start(int(random.choice([1, 3, 3, 8, 16])), size)
    value = _stem(draw, value)
    if random.random() < _CHAINS:
        value = _chain(draw, value)
    else:
        for _ in range(int(random.integers(2, 8))):
            value = _BLOCKS[random.integers(len(_BLOCKS))](draw, value)
    return _finish(builder, _head(draw, value))


def _finish(builder: ModelBuilder, value: Value) -> Network:
    model, view = builder.build(value)
    assert builder.input is not None
    return Network(model, view, (1, builder.input.channels, *builder.input.size))


def _window(draw: _Drawing, value: Value, odd: bool = False) -> tuple[int, ...]:
    width = int(draw.random.choice([5, 7])) if odd else 3
    return tuple(min(width, size if size % 2 else size - 1) if size > 1 else 1 for size in value.size)


def _stride(draw: _Drawing, value: Value, chance: float = 0.3) -> int:
    return 2 if min(value.size) >= 8 and draw.random.random() < chance else 1


def _conv(
    draw: _Drawing,
    value: Value,
    window: tuple[int, ...],
    stride: int = 1,
    *,
    relu: bool = True,
    depthwise: bool = False,
    groups: int = 1,
    cout: int | None = None,
    int8: bool | None = None,
) -> Value:
    if cout is None:
        cout = value.channels if depthwise else draw.affordable(value, product(window))
    groups = value.channels if depthwise else groups
    result = draw.builder.conv(
        value, cout, window, stride, groups=groups, relu=relu, int8=draw.int8() if int8 is None else int8
    )
    draw.spend()
    return result


def _stem(draw: _Drawing, value: Value) -> Value:
    big = len(value.size) == 2 and min(value.size) >= 10 and draw.random.random() < 0.2
    window = (10, 4) if big else _window(draw, value, odd=draw.random.random() < 0.15)
    return _conv(draw, value, window, 2 if big else _stride(draw, value))


def _plain(draw: _Drawing, value: Value) -> Value:
    return _conv(draw, value, _window(draw, value), _stride(draw, value), relu=draw.random.random() < 0.8)


def _pointwise(draw: _Drawing, value: Value) -> Value:
    return _conv(draw, value, (1,) * len(value.size), relu=draw.random.random() < 0.7)


def _large_window(draw: _Drawing, value: Value) -> Value:
    return _conv(draw, value, _window(draw, value, odd=True))


def _separable(draw: _Drawing, value: Value) -> Value:
    value = _conv(draw, value, _window(draw, value), _stride(draw, value), depthwise=True)
    return _pointwise(draw, value)


def _residual(draw: _Drawing, value: Value) -> Value:
    stride, int8 = _stride(draw, value), draw.int8()
    inner = _conv(draw, value, _window(draw, value), stride, int8=int8)
    keep = stride == 1 and draw.random.random() < 0.7
    outer = _conv(
        draw, inner, _window(draw, inner), relu=False, cout=value.channels if keep else None, int8=int8
    )
    short = (
        value
        if keep
        else _conv(draw, value, (1,) * len(value.size), stride, relu=False, cout=outer.channels, int8=int8)
    )
    return draw.builder.add(short, outer, int8=int8)


def _inverted(draw: _Drawing, value: Value) -> Value:
    int8 = draw.int8()
    inner = _conv(draw, value, (1,) * len(value.size), int8=int8)
    inner = _conv(draw, inner, _window(draw, inner), depthwise=True, int8=int8)
    inner = _conv(draw, inner, (1,) * len(value.size), relu=False, cout=value.channels, int8=int8)
    return draw.builder.add(value, inner, relu=False, int8=int8)


def _low_rank(draw: _Drawing, value: Value) -> Value:
    int8 = draw.int8()
    inner = _conv(draw, value, _window(draw, value), relu=False, cout=draw.channels(4, 48), int8=int8)
    return _conv(draw, inner, (1,) * len(value.size), int8=int8)


def _grouped(draw: _Drawing, value: Value) -> Value:
    divisors = [groups for groups in (2, 4, 8) if value.channels % groups == 0 and value.channels > groups]
    groups = int(draw.random.choice(divisors)) if divisors else 1
    return _conv(draw, value, _window(draw, value), groups=groups, cout=value.channels)


def _normalised(draw: _Drawing, value: Value) -> Value:
    return draw.builder.normalise(_pointwise(draw, value))


def _chain(draw: _Drawing, value: Value) -> Value:
    """The same one or two kernels many times over: then the clock resolves fractions of a microsecond."""
    int8, kind = draw.int8(), draw.random.integers(4)
    value = _conv(draw, value, (1,) * len(value.size), int8=int8)
    window = (
        (1,) * len(value.size)
        if kind == 1
        else _window(draw, value, odd=kind == 0 and draw.random.random() < 0.3)
    )
    channels = value.channels if kind < 3 else draw.affordable(value, 8 * product(window))
    for _ in range(int(draw.random.integers(4, 10))):
        if kind == 2:
            value = _conv(draw, value, window, depthwise=True, int8=int8)
        else:
            cout = (
                channels
                if value.channels != channels
                else draw.builder.kernels[-1].cin
                if kind == 3
                else channels
            )
            value = _conv(draw, value, window, cout=cout, int8=int8)
    return value


def _pool(draw: _Drawing, value: Value) -> Value:
    if min(value.size) < 4:
        return _pointwise(draw, value)
    int8 = draw.int8()
    # ONNX Runtime's int8 average pooling is ten times slower than any other: it would spoil the family.
    return draw.builder.pool(value, 2, 2, average=not int8 and draw.random.random() < 0.3, int8=int8)


def _branches(draw: _Drawing, value: Value) -> Value:
    int8 = draw.int8()
    left = _conv(draw, value, (1,) * len(value.size), int8=int8)
    right = _conv(draw, value, _window(draw, value), int8=int8)
    return draw.builder.concat(left, right, int8=int8)


def _activation(draw: _Drawing, value: Value) -> Value:
    # Simpler activations would be absorbed by the convolution; this one stands for GELU and the like.
    value = _conv(draw, value, (1,) * len(value.size), relu=False)
    return draw.builder.elementwise(value, "Erf")


def _padded(draw: _Drawing, value: Value) -> Value:
    int8 = draw.int8()
    return _conv(draw, draw.builder.pad(value, int8=int8), _window(draw, value), int8=int8)


_BLOCKS: tuple[Callable[[_Drawing, Value], Value], ...] = (
    _plain,
    _plain,
    _pointwise,
    _large_window,
    _separable,
    _separable,
    _residual,
    _residual,
    _residual,
    _inverted,
    _low_rank,
    _pool,
    _branches,
    _activation,
    _padded,
    _grouped,
    _normalised,
)


def _head(draw: _Drawing, value: Value) -> Value:
    int8 = draw.int8()
    value = draw.builder.global_pool(value, int8=int8)
    if draw.random.random() < 0.4:
        value = draw.builder.linear(value, draw.channels(8, 512), relu=True, int8=int8)
    return draw.builder.linear(value, int(draw.random.choice([10, 12, 100])), int8=int8, last=True)


def _perceptron(draw: _Drawing) -> Value:
    value = draw.builder.start(draw.channels(16, 1024), ())
    for _ in range(int(draw.random.integers(2, 6))):
        value = draw.builder.linear(value, draw.channels(8, 1024), relu=True, int8=draw.int8())
    return draw.builder.linear(value, 10, int8=draw.int8(), last=True)
