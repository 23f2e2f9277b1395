"""Tracing recurrent layers by their shapes, whatever the length of the sequence.

While a model is traced, PyTorch runs `lstm` and `gru` on tensors without data in Python, one step of the sequence
after the other: a second for every four steps, for shapes that the arguments say already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

_OPERATORS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@contextmanager
def traced_by_shape() -> Iterator[None]:
    """Give recurrent operators kernels for traced tensors, inside the block, that make empty results."""
    try:
        for operator, kernels in _own_kernels():
            _install(operator, dict.fromkeys(kernels, _empty_results))
        yield
    finally:
        for operator, kernels in _own_kernels():
            _install(operator, kernels)


@cache
def _own_kernels() -> tuple[tuple[torch._ops.OpOverload, Mapping[Any, Any]], ...]:
    """PyTorch's own, read once: a second block must not take the first one's for them."""
    operators = [getattr(torch.ops.aten, name).input for name in _OPERATORS]
    return tuple((operator, dict(operator.py_kernels)) for operator in operators)


def _install(operator: torch._ops.OpOverload, kernels: Mapping[Any, Any]) -> None:
    operator.py_kernels.clear()
    operator.py_kernels.update(kernels)
    operator._dispatch_cache.clear()


def _empty_results(
    source: Tensor,
    states: Tensor | Sequence[Tensor],
    weights: Sequence[Tensor],  # noqa: ARG001 - the signature of PyTorch's operators
    has_biases: bool,  # noqa: ARG001
    layers: int,  # noqa: ARG001
    dropout: float,  # noqa: ARG001
    train: bool,  # noqa: ARG001
    bidirectional: bool,
    batch_first: bool,  # noqa: ARG001
) -> tuple[Tensor, ...]:
    """The output, `(sequence, batch, features)` in the order of the source, and the last states."""
    several = [states] if isinstance(states, Tensor) else list(states)
    features = several[0].shape[-1] * (2 if bidirectional else 1)
    return (source.new_empty((*source.shape[:-1], features)), *(source.new_empty(state.shape) for state in several))
