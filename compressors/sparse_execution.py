"""Running linear layers of a compressed model on their sparse weights, where that is faster than on dense ones.

A product with a sparse matrix in compressed rows (CSR) skips what is zero, and pays for it with indirect accesses.
Measured on one x86 core with PyTorch 2.13 (`benchmarks/compressors/sparse_kernels.py`), layers of 256 x 256 to
3072 x 768: from 16 rows of inputs on it is faster up to a density of 0.2, for one row hardly ever. PyTorch has no
sparse convolution for a CPU, and ONNX Runtime no sparse kernel at all: there sparsity saves bytes only.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from paretopress.compressors.compressed_model import CompressedModel
from paretopress.compressors.delta import LayerEdit

BREAK_EVEN = 0.2   # density: above it the dense product is faster
FEWEST_ROWS = 16   # of inputs: below it the dense product is faster


@dataclass(frozen=True)
class Executed:
    """How a layer that is stored sparse is executed.

    Attributes:
        layer: Path of the module.
        density: Share of its weights that are not zero.
        reason: Why it is executed on dense weights; `""` where it is executed on sparse ones.
    """

    layer: str
    density: float
    reason: str


def execute_sparse(compressed: CompressedModel) -> tuple[Executed, ...]:
    """Let linear layers multiply with their sparse weights wherever that is faster; the others stay as they are.

    Outputs change by rounding alone: the terms of a sum are added in another order. The dense weights stay, for calls
    with fewer than `FEWEST_ROWS` rows of inputs.

    Args:
        compressed: A realised or loaded model; it is changed.

    Returns:
        How every layer that is stored sparse is executed, in the order of the model.
    """
    found = []
    for edit in compressed.delta.edits:
        if isinstance(edit, LayerEdit) and edit.sparse is not None:
            found += [_execute(compressed, edit, path, edit.sparse.density) for path, _ in edit.parts]
    return tuple(found)


class SparseProduct(nn.Linear):
    """A linear layer that has its weights in compressed rows as well.

    Attributes:
        rows: The weights `(out, in)` as a CSR tensor.
    """

    rows: Tensor

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that `nn.Linear` gives it
        """Return the layer's outputs: `(..., in)` to `(..., out)`."""
        columns = input.reshape(-1, input.shape[-1]).t()
        if columns.shape[1] < FEWEST_ROWS:
            return linear(input, self.weight, self.bias)
        found = self.rows @ columns if self.bias is None else torch.addmm(self.bias[:, None], self.rows, columns)
        return found.t().reshape(*input.shape[:-1], -1)


def _execute(compressed: CompressedModel, edit: LayerEdit, path: str, density: float) -> Executed:
    module = compressed.network.get_submodule(path) if edit.held is None else None
    if not isinstance(module, nn.Linear):
        return Executed(path, density, "only plain linear layers have a sparse kernel")
    if compressed.delta.ranges or compressed.delta.graph:
        return Executed(path, density, "the model runs its captured graph, on dense weights")
    if isinstance(getattr(type(module), "weight", None), property):
        return Executed(path, density, "its weights are kept packed")
    weight = module.weight.detach()
    density = float(weight.count_nonzero()) / max(1, weight.numel())
    if density > BREAK_EVEN:
        return Executed(path, density, f"dense is faster above a density of {BREAK_EVEN:g}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        rows = weight.to_sparse_csr()
    module.__class__ = SparseProduct
    module.rows = rows   # a plain attribute: it is no tensor of the artefact
    return Executed(path, density, "")
