"""How far a student's values are from the teacher's: what distillation minimises and is judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_MASKED = -1e4   # a score that is -inf at the teacher: no probability, and no NaN in the gradient
_SMALLEST_VARIANCE = 1e-12
_SMALLEST_SPREAD = 1e-6
LEAST_SPREAD = 1.0   # nats that scores of classes are apart


def output_loss(teacher: Sequence[Any], student: Sequence[Any], temperature: float = 1.0) -> Tensor:
    """Return the loss of a model's outputs, differentiable in the student's.

    Two-dimensional float outputs are read as class scores: the mean Kullback-Leibler divergence of the student's
    softmax from the teacher's in nats, times the squared temperature so that gradients keep their size; of scores that
    are less than a nat apart, such as embeddings, after `score_scale`. Other float outputs: squared error over the
    teacher's variance. Outputs that are not floats do not count.

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
            masked, size = wanted == -math.inf, score_scale(wanted) / temperature
            scores = (one.float().masked_fill(masked, _MASKED) * size for one in (wanted, found))
            total = total + temperature**2 * _divergence(*scores)
        else:
            total = total + relative_error(wanted, found)
    return total


def relative_error(wanted: Tensor, found: Tensor) -> Tensor:
    """Mean squared error over the variance of what is wanted."""
    return (wanted - found).square().mean() / variance(wanted)


def score_scale(wanted: Tensor) -> float:
    """What scores of classes are multiplied by, so that they are a nat apart at least.

    Trained class scores differ by several nats. Embeddings are as wide, but their softmax is next to uniform: all
    divergences are then thousandths, and everything that is measured in nats is blind to them. Scaled to a spread of
    1, their divergence is about half of the squared error over the variance, as of other outputs.

    Args:
        wanted: Scores of the dense model, `(n, classes)`; masked ones are -inf.

    Returns:
        One over the root mean square of their distances from the mean of their row, at least 1; 1 where all are equal.
    """
    scores = wanted.float()
    known = scores.isfinite()
    counts = known.sum(dim=1, keepdim=True).clamp(min=1)
    distances = torch.where(known, scores - torch.where(known, scores, 0.0).sum(dim=1, keepdim=True) / counts, 0.0)
    spread = math.sqrt(float(distances.square().sum()) / max(1, int(known.sum())))
    return LEAST_SPREAD / spread if _SMALLEST_SPREAD < spread < LEAST_SPREAD else 1.0


def variance(wanted: Tensor) -> Tensor:
    """Variance of a tensor's values, large enough to divide by."""
    return wanted.var(correction=0).clamp_min(_SMALLEST_VARIANCE)


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    expected, actual = torch.log_softmax(wanted, dim=1), torch.log_softmax(found, dim=1)
    return (expected.exp() * (expected - actual)).sum(dim=1).mean()
