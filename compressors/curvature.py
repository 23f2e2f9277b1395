"""The diagonal of the loss's Hessian at the weights, by Hutchinson's estimator: `diag(H) = E[v * (H v)]`.

`v` has independent entries of +1 and -1 (Hutchinson 1990; for a diagonal: Bekas, Kokiopoulou, Saad, "An estimator for
the diagonal of a matrix", 2007). Hessian-aware compression by this estimator: HAWQ-V2 (Dong et al., NeurIPS 2020),
"Hessian-Aware Pruning and Optimal Neural Implant" (Yu et al., WACV 2022); EigenDamage (Wang et al., ICML 2019)
compares it with Kronecker-factored curvature. One pair of backward passes gives `H v` for all layers together
(Pearlmutter 1994); the Hessian itself is never formed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from paretopress.compressors.calibration import Calibration, own_prediction_loss
from paretopress.compressors.network import Part, runner
from paretopress.compressors.program import Program
from paretopress.spaces.errors import DataError, UnsupportedModelError

PROBES = 8           # the error of an entry falls with the root of their number
_SAMPLES_AT_ONCE = 32   # two backward passes hold several times what a forward pass holds


def hessian_diagonal(
    program: Program,
    calibration: Calibration,
    *,
    seed: int = 0,
    probes: int = PROBES,
    vectors: Iterable[Mapping[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Estimate the diagonal of the Hessian at the folded weights of every layer that produces a channel group.

    The loss is that of the Taylor importance: the cross entropy to the dense model's own prediction, summed over the
    calibration's tuning samples.

    Args:
        program: The captured dense model.
        calibration: Its dense statistics.
        seed: Of the random vectors.
        probes: Number of random vectors.
        vectors: The vectors by layer node instead, each entry +1 or -1, shaped like the layer's folded weight.

    Returns:
        Layer node to the diagonal, shaped like its folded weight, float64. Unbiased; entries may be negative.

    Raises:
        DataError: No gradient reaches the weights.
        UnsupportedModelError: An operator of the model has no second derivative.
    """
    with torch.inference_mode(mode=False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        weights = _producers(program, calibration)
        drawn = list(vectors) if vectors is not None else rademacher(weights, probes, seed)
        total = {node: torch.zeros(weight.shape, dtype=torch.float64) for node, weight in weights.items()}
        count = len(calibration.inputs[0])
        pieces = [x.clone().tensor_split(-(-count // _SAMPLES_AT_ONCE)) for x in calibration.inputs]
        for inputs in zip(*pieces, strict=True):
            slopes = _gradients(program, calibration, weights, inputs)
            for vector in drawn:
                for node, product in _products(slopes, weights, vector).items():
                    total[node] += (vector[node] * product).double() / len(drawn)
    return total


def rademacher(weights: Mapping[str, Tensor], probes: int, seed: int) -> list[dict[str, Tensor]]:
    """Draw vectors of +1 and -1, each entry on its own, shaped like the weights."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {node: torch.randint(0, 2, weight.shape, generator=generator).to(weight.dtype) * 2 - 1
         for node, weight in weights.items()}
        for _ in range(probes)
    ]


def _producers(program: Program, calibration: Calibration) -> dict[str, Tensor]:
    """The folded weights of all free layers that produce a group which can be pruned, as leaves of a graph."""
    names = {name for group in program.structure.coupling.groups if not group.frozen for name in group.producers}
    return {
        layer.node: calibration.folded[layer.node][0].detach().clone().requires_grad_(True)
        for layer in program.structure.layers if layer.name in names and not layer.frozen
    }


def _gradients(
    program: Program, calibration: Calibration, weights: Mapping[str, Tensor], inputs: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Gradients of the loss that can be differentiated again; layers that it does not depend on have none."""
    base = calibration.base
    parts = {node: (Part(weight, calibration.folded[node][1].clone()),) for node, weight in weights.items()}
    state = {name: tensor.clone() for name, tensor in base.state.items()}
    network = replace(base, parts={**base.parts, **parts}, state=state)
    values = program.run(inputs, runner(program, network))
    loss = own_prediction_loss([values[name] for name in program.graph.outputs])
    if not loss.requires_grad:
        raise DataError("importance 'hessian': no gradient reaches the weights of any channel group")
    found = torch.autograd.grad(loss, list(weights.values()), create_graph=True, allow_unused=True)
    slopes = zip(weights, found, strict=True)
    return {node: slope for node, slope in slopes if slope is not None and slope.requires_grad}


def _products(
    slopes: Mapping[str, Tensor], weights: Mapping[str, Tensor], vector: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The Hessian times a vector, by layer."""
    if not slopes:   # the loss is linear in the weights
        return {}
    try:
        found = torch.autograd.grad(
            list(slopes.values()), list(weights.values()), [vector[node] for node in slopes], retain_graph=True,
            allow_unused=True, materialize_grads=True,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UnsupportedModelError(
            f"importance 'hessian' needs second derivatives, which this model does not have: {reason} "
            "(allowed: any other importance)"
        ) from None
    return dict(zip(weights, found, strict=True))
