"""Small random networks for measuring kernels in the context they run in.

A kernel alone in a session pays layout changes at both ends that it does not pay inside a network, so
kernels are timed inside random networks of the kind users compress: residual blocks, depthwise-separable
and inverted blocks, low-rank pairs, pooling, concatenation, and small heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from paretopress.hardware_profiles.kernels_onnx_tokens import NetworkBuilder
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
    """A serialised ONNX model with one input.

    Attributes:
        model: Serialised ONNX.
        view: What it should cost.
        input_shape: Shape of its input, batch included.
        named: Whether the names of its nodes say which kernel they belong to.
    """

    model: bytes
    view: CostView
    input_shape: tuple[int, ...]
    named: bool = True


@dataclass
class _Drawing:
    """The random choices of one network."""

    random: np.random.Generator
    builder: NetworkBuilder
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
    builder = NetworkBuilder(seed)
    draw = _Drawing(random, builder, mode, int(np.exp(random.uniform(np.log(3e5), np.log(3e7)))))
    kind = random.random()
    if kind < 0.06:
        return finish(builder, _perceptron(draw))
    if kind < 0.16:
        return finish(builder, _transformer(draw))
    size = _SIZES[random.integers(len(_SIZES))]
    value = builder.start(int(random.choice([1, 3, 3, 8, 16])), size)
    value = _stem(draw, value)
    if random.random() < _CHAINS:
        value = _chain(draw, value)
    else:
        for _ in range(int(random.integers(2, 8))):
            value = _BLOCKS[random.integers(len(_BLOCKS))](draw, value)
    return finish(builder, _head(draw, value))


def finish(builder: NetworkBuilder, value: Value) -> Network:
    """Return what a builder has built up to its output `value`."""
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
    value = _conv(draw, value, (1,) * len(value.size), relu=False)
    return draw.builder.elementwise(value, str(draw.random.choice(_ACTIVATIONS)))


def _pre_activated(draw: _Drawing, value: Value) -> Value:
    """Normalisation and activation in front of the convolution, its output beside its input: a dense block."""
    int8 = draw.int8()
    inner = draw.builder.elementwise(draw.builder.batch_norm(value), "Relu")
    inner = _conv(draw, inner, _window(draw, value), relu=False, cout=draw.channels(4, 32), int8=int8)
    return draw.builder.concat(value, inner)


def _squeezed(draw: _Drawing, value: Value) -> Value:
    """Squeeze and excitation behind a depthwise or plain convolution."""
    int8 = draw.int8()
    value = _conv(draw, value, _window(draw, value), depthwise=draw.random.random() < 0.5, int8=int8)
    ones = (1,) * len(value.size)
    gate = _conv(draw, draw.builder.pooled(value), ones, cout=draw.channels(4, 48), int8=int8)
    gate = _conv(draw, gate, ones, relu=False, cout=value.channels, int8=int8)
    gate = draw.builder.elementwise(gate, str(draw.random.choice(["Sigmoid", "HardSigmoid"])))
    return draw.builder.scale_channels(value, gate)


def _swished(draw: _Drawing, value: Value) -> Value:
    """An inverted bottleneck with hard swish."""
    int8, ones = draw.int8(), (1,) * len(value.size)
    inner = draw.builder.elementwise(_conv(draw, value, ones, relu=False, int8=int8), "HardSwish")
    inner = _conv(draw, inner, _window(draw, inner), relu=False, depthwise=True, int8=int8)
    inner = draw.builder.elementwise(inner, "HardSwish")
    return _conv(draw, inner, ones, relu=False, int8=int8)


def _padded(draw: _Drawing, value: Value) -> Value:
    int8 = draw.int8()
    return _conv(draw, draw.builder.pad(value, int8=int8), _window(draw, value), int8=int8)


def _upsampled(draw: _Drawing, value: Value) -> Value:
    """A convolution whose channels become space, and one with a stride that takes it back."""
    if len(value.size) != 2 or min(value.size) > 32:
        return _plain(draw, value)
    int8, channels = draw.int8(), draw.channels(4, 32)
    inner = _conv(draw, value, _window(draw, value), relu=False, cout=4 * channels, int8=int8)
    return _conv(draw, draw.builder.shuffle_pixels(inner), (3, 3), 2, int8=int8)


_ACTIVATIONS = ("Gelu", "Relu", "Sigmoid", "HardSwish", "Tanh")
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
    _pre_activated,
    _squeezed,
    _swished,
    _upsampled,
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


def _transformer(draw: _Drawing) -> Value:
    """Blocks of attention, or of mixed tokens, and of two linear layers on every token."""
    heads, width = int(draw.random.choice([1, 2, 3, 4])), int(draw.random.choice([8, 12, 16, 24, 32, 33]))
    tokens, features = int(draw.random.integers(8, 100)), heads * width
    value = draw.builder.start(tokens, (draw.channels(16, 128),))
    value = draw.builder.project(value, features, int8=draw.int8())
    mixes = draw.random.random() < 0.3
    for _ in range(int(draw.random.integers(1, 4))):
        inner = draw.builder.layer_norm(value)
        inner = _mixed(draw, inner) if mixes else _attended(draw, inner, heads, width)
        value = draw.builder.add(value, inner, relu=False)
        inner = draw.builder.project(draw.builder.layer_norm(value), draw.channels(8, 256), int8=draw.int8())
        inner = draw.builder.project(draw.builder.elementwise(inner, "Gelu"), features, int8=draw.int8())
        value = draw.builder.add(value, inner, relu=False)
    return draw.builder.project(draw.builder.layer_norm(value), 10)


def _attended(draw: _Drawing, value: Value, heads: int, width: int) -> Value:
    builder, tokens, int8 = draw.builder, value.channels, draw.int8()
    query, key, values = (builder.project(value, heads * width, int8=int8) for _ in range(3))
    shape = (tokens, heads, width)
    query, values = (builder.permute(item, (1, 0, 2), shape) for item in (query, values))
    scores = builder.matmul(query, builder.permute(key, (1, 2, 0), shape))
    mixed = builder.permute(builder.matmul(builder.softmax(scores), values), (1, 0, 2))
    return builder.project(builder.view(mixed, (tokens, heads * width)), heads * width, int8=int8)


def _mixed(draw: _Drawing, value: Value) -> Value:
    builder, tokens = draw.builder, value.channels
    inner = builder.project(builder.permute(value, (1, 0)), draw.channels(8, 96), int8=draw.int8())
    inner = builder.project(builder.elementwise(inner, "Gelu"), tokens, int8=draw.int8())
    return builder.permute(inner, (1, 0))
