"""The optimiser of distillation: orthogonalised momentum for small matrices, Adam for the rest.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): the momentum of a matrix is
replaced by the nearest matrix whose singular values are all alike, so that directions with small gradients are
learnt as fast as those with large ones. A few hundred steps then go as far as many more of Adam's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_SIDE = 128            # of the shorter side; orthogonalising wider ones costs more than the layer itself
_MOMENTUM = 0.95
_SIZE = 0.2                   # root mean square of a step at rate 1, as Adam's (Liu et al., arXiv:2502.16982)
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)   # of Jordan et al.: singular values of 0.01 to 1 come within about 0.3 of 1


class Optimiser:
    """Trains matrices with more than one input channel by orthogonalised momentum, all else by Adam.

    A convolution's weight is a matrix of as many rows as output channels. Depthwise weights, biases and matrices
    whose shorter side is over `LARGEST_SIDE` are Adam's.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.matrices = [tensor for tensor in tensors if _is_matrix(tensor)]
        self.momenta = [torch.zeros_like(tensor) for tensor in self.matrices]
        others = [tensor for tensor in tensors if not _is_matrix(tensor)]
        self.adam = torch.optim.Adam(others, lr=0.0, fused=True) if others else None
        self.tensors = tuple(tensors)

    def forget_gradients(self) -> None:
        """Drop the gradients of the last step."""
        for tensor in self.tensors:
            tensor.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Take a step along the gradients; tensors without one stay.

        Args:
            rate: Learning rate: about the size of a step of each value.
        """
        if self.adam is not None:
            for group in self.adam.param_groups:
                group["lr"] = rate
            self.adam.step()
        for tensor, momentum in zip(self.matrices, self.momenta, strict=True):
            if tensor.grad is None:
                continue
            momentum.lerp_(tensor.grad, 1.0 - _MOMENTUM)
            ahead = torch.lerp(tensor.grad, momentum, _MOMENTUM).reshape(len(tensor), -1)
            size = _SIZE * max(ahead.shape) ** 0.5
            tensor.sub_(orthogonalised(ahead).reshape(tensor.shape), alpha=rate * size)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return a matrix with the singular vectors of another one and singular values near 1 (Newton-Schulz).

    Args:
        matrix: `(rows, columns)`; zeros stay zeros.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x: Tensor = wide / wide.norm().clamp_min(torch.finfo(matrix.dtype).tiny)
    first, second, third = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = first * x + (second * gram + third * gram @ gram) @ x
    return x if wide is matrix else x.T


def _is_matrix(tensor: Tensor) -> bool:
    if tensor.ndim < 2 or tensor.shape[1] == 1:
        return False
    return 1 < min(len(tensor), tensor[0].numel()) <= LARGEST_SIDE
