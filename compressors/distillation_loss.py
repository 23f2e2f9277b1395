"""How far a student's values are from the teacher's: what distillation minimises and is judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_MASKED = -1e4   # a score that is -inf at the teacher: no probability, and no NaN in the gradient
_SMALLEST_VARIANCE = 1e-12


def output_loss(teacher: Sequence[Any], student: Sequence[Any], temperature: float = 1.0) -> Tensor:
    """Return the loss of a model's outputs, differentiable in the student's.

    Two-dimensional float outputs are read as class scores: the mean Kullback-Leibler divergence of the student's
    softmax from the teacher's in nats, times the squared temperature so that gradients keep their size. Other
    float outputs: squared error over the teacher's variance. Outputs that are not floats do not count.

    Args:
        teacher: Output values of the teacher.
        student: The same of the student.
        temperature: Divides the scores.
    """
    total = torch.zeros(())
    for wanted, found in zip(teacher, student, strict=True):
        if not isinstance(wanted, Tensor) or not wanted.is_floating_point():
            continue
        if wanted.ndim == 2 and wanted.shape[1] > 1:
            masked = wanted == -math.inf
            scores = (one.float().masked_fill(masked, _MASKED) / temperature for one in (wanted, found))
            total = total + temperature**2 * _divergence(*scores)
        else:
            total = total + relative_error(wanted, found)
    return total


def relative_error(wanted: Tensor, found: Tensor) -> Tensor:
    """Mean squared error over the variance of what is wanted."""
    return (wanted - found).square().mean() / variance(wanted)


def variance(wanted: Tensor) -> Tensor:
    """Variance of a tensor's values, large enough to divide by."""
    return wanted.var(correction=0).clamp_min(_SMALLEST_VARIANCE)


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    expected, actual = torch.log_softmax(wanted, dim=1), torch.log_softmax(found, dim=1)
    return (expected.exp() * (expected - actual)).sum(dim=1).mean()
