"""How far a candidate's outputs are from the dense model's, without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paretopress.compressors.distillation_loss import score_scale


def divergence(dense: Sequence[Any], candidate: Sequence[Any]) -> float:
    """Return the label-free loss of a candidate.

    Two-dimensional float outputs are read as logits: mean Kullback-Leibler divergence of the candidate's
    softmax from the dense one, in nats; where the dense ones are less than a nat apart, as embeddings are, both are
    scaled to that first. Other float outputs: squared error over the dense variance.
    A candidate whose outputs are not finite where the dense ones are is infinitely far away.

    Args:
        dense: Output tensors of the dense model.
        candidate: Output tensors of the candidate, in the same order.
    """
    total = 0.0
    for wanted, found in zip(dense, candidate, strict=True):
        if isinstance(wanted, Tensor) and wanted.is_floating_point():
            total += _one(wanted.float(), found.float())
    return total


def _one(wanted: Tensor, found: Tensor) -> float:
    if wanted.ndim == 2 and wanted.shape[1] > 1:
        scale = score_scale(wanted)
        expected = torch.log_softmax(wanted * scale, dim=1)
        actual = torch.log_softmax(found * scale, dim=1)
        terms = expected.exp() * (expected - actual)
        terms = torch.where(expected == -math.inf, 0.0, terms)   # p log p is 0 at p = 0: masked logits
        return _distance(float(terms.sum(dim=1).mean()))
    spread = float(wanted.var(correction=0))
    return _distance(float((wanted - found).square().mean()) / max(spread, 1e-12))


def _distance(value: float) -> float:
    """The value without rounding below 0; infinity where it is not a number: `max(0.0, nan)` is 0."""
    return math.inf if math.isnan(value) else max(0.0, value)
