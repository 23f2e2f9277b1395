"""Error feedback: columns are rounded one after the other, and those still to come make up for each error.

GPTQ (Frantar, Ashkboos, Hoefler, Alistarh: "GPTQ", ICLR 2023): each error is spread over the columns still to come
along the Cholesky factor of the inverse Hessian. The Hessian is the centred covariance of the inputs, because the bias
correction `b' = b + (W - Wq) E[x]` absorbs the mean error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from paretopress.compressors.least_squares import damped_cholesky

LEAF = 16   # columns whose errors are spread one by one

Rounding = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From the values of one column, `(groups, rows)`, and which column it is of each group, `(groups,)`, to codes and to
what these stand for, float64."""


def swept(
    W: Tensor, covariance: Tensor, rounding: Rounding, damping: float, actorder: bool = True, mask: Tensor | None = None
) -> Tensor:
    """Round a matrix column by column.

    Args:
        W: `(groups, rows, columns)`; its type is swept in.
        covariance: `(groups, columns, columns)` of the inputs, float64.
        rounding: Rounds the values of one column.
        damping: Relative to the mean input variance.
        actorder: Round columns in order of decreasing input variance.
        mask: `(groups, rows, columns)` bool: where it is false, code and value are 0.

    Returns:
        The codes `(groups, rows, columns)`, of the type of `W`, in the given column order.
    """
    groups, _, columns = W.shape
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    order = torch.arange(columns).expand(groups, -1)
    if actorder:
        order = variance.sort(dim=1, descending=True, stable=True).indices
    ordered = covariance.gather(1, order.unsqueeze(2).expand_as(covariance))
    ordered = ordered.gather(2, order.unsqueeze(1).expand_as(covariance))
    upper = _inverse_factor(ordered, damping, W.dtype)
    index = order.unsqueeze(2).expand(-1, -1, W.shape[1])
    work = W.transpose(1, 2).gather(1, index)  # columns first: one column is contiguous
    kept = None if mask is None else mask.to(W.dtype).transpose(1, 2).gather(1, index)
    codes, errors = torch.empty_like(work), torch.empty_like(work)

    def sweep(start: int, stop: int) -> None:
        if stop - start > LEAF:   # halves: most of the spreading is done by large products
            middle = (start + stop) // 2
            sweep(start, middle)
            spread = upper[:, start:middle, middle:stop].transpose(1, 2)
            work[:, middle:stop].baddbmm_(spread, errors[:, start:middle], alpha=-1.0)
            sweep(middle, stop)
            return
        for column in range(start, stop):
            value = work[:, column]
            code, rounded = rounding(value, order[:, column])
            if kept is not None:
                code, rounded = code * kept[:, column], rounded * kept[:, column]
            codes[:, column] = code
            error = errors[:, column] = (value - rounded) / upper[:, column, column].unsqueeze(1)
            rest = upper[:, column, column + 1 : stop].unsqueeze(2)
            work[:, column + 1 : stop].baddbmm_(rest, error.unsqueeze(1), alpha=-1.0)

    sweep(0, columns)
    return torch.empty_like(codes).scatter_(1, index, codes).transpose(1, 2)


def _inverse_factor(covariance: Tensor, damping: float, kind: torch.dtype) -> Tensor:
    """Return the upper triangular `U` with `(C + d I)^-1 = U^T U`.

    Reversing the order of rows and columns turns the wanted factor into the inverse of a plain Cholesky
    factor, `U = flip(L)^-1` with `L L^T = flip(C + d I)`: one triangular inverse, no explicit `H^-1`.
    """
    lower = damped_cholesky(covariance.flip(1, 2), damping)[0].to(kind)
    identity = torch.eye(covariance.shape[-1], dtype=kind).expand_as(covariance)
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse.flip(1, 2)
