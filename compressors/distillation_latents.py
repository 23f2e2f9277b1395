"""Trainable tensors behind a network: latent weights, and gradients through rounding.

Rounding has no useful gradient; the straight-through estimator (Bengio, Leonard, Courville, arXiv:1308.3432)
passes the gradient of the rounded value to the latent one, and none where the value was clipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paretopress.compressors.affine import Affine, spread
from paretopress.compressors.network import Network, Part
from paretopress.compressors.quantisation import largest_level, quantise_tensor, round_to_nearest
from paretopress.compressors.stored import Floats, Integers, Shared, Signs, SparseWeight, StoredWeight
from paretopress.compressors.trained_inputs import in_training, latent_inputs, straight_through, with_latent
from paretopress.spaces.layers import LayerKind

SIGN_REACH = 2.0   # times the scale: beyond it a latent weight takes no gradient that would move it further
LEAST_STRETCH = 0.1   # of the scale that training starts from: a scale of zero would be divided by


def channels_last(tensor: Tensor) -> Tensor:
    """Return the tensor with the memory layout that convolutions over images train fastest in; others as they are."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def quantise_activation(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Quantise a tensor as `quantise_tensor` does; the gradient is that of clipping to the range."""
    clipped = torch.clamp(x, -zero_point * scale, (255 - zero_point) * scale)
    return straight_through(quantise_tensor(x.detach(), scale, zero_point), clipped)


def nearest_of(values: Tensor, levels: Tensor) -> Tensor:
    """The nearest of some rising levels for every value; the gradient is that of clipping to their range.

    Args:
        values: `(out, columns)`.
        levels: `(count,)`, or `(out, count)` for levels of each row.
    """
    edges = (levels[..., 1:] + levels[..., :-1]) / 2
    index = torch.bucketize(values.detach(), edges) if levels.ndim == 1 else torch.searchsorted(
        edges.contiguous(), values.detach().contiguous())
    chosen = levels[index] if levels.ndim == 1 else levels.gather(1, index)
    return straight_through(chosen, torch.clamp(values, levels[..., :1], levels[..., -1:]))


def sign_levels(stored: Signs) -> tuple[Tensor, Tensor]:
    """All sums of signs of each row, rising, `(out, 2^bases)`, and the signs of each, `(out, 2^bases, bases)`."""
    bases = stored.scales.shape[1]
    choices = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * bases).reshape(-1, bases)
    levels, order = (choices @ stored.scales.T).T.sort(dim=1, stable=True)
    return levels, choices[order]


def projected(stored: StoredWeight, values: Tensor) -> Tensor:
    """What is computed with when latent weights are stored so, `(out, columns)`, with straight-through gradients."""
    match stored:
        case Integers(_, scales, bits, highest):
            level, steps = largest_level(bits, highest), scales.unsqueeze(1)
            levels = torch.clamp(values / steps, -level, level)
            return straight_through(levels.round(), levels) * steps
        case Affine():
            steps, offsets, least = _affine_grid(stored)
            most = float((1 << stored.bits) - 1)
            levels = torch.clamp(values / steps, least - offsets, most - offsets)
            return straight_through(levels.round(), levels) * steps
        case Floats(dense):
            return straight_through(values.detach().to(dense.dtype).float(), values)
        case Shared(codebook, _, scales):
            steps = scales.unsqueeze(1)
            return nearest_of(values / steps, codebook) * steps
        case Signs():
            reach = SIGN_REACH * stored.scales.abs().sum(dim=1, keepdim=True)
            levels, _ = sign_levels(stored)
            return straight_through(nearest_of(values, levels).detach(), torch.clamp(values, -reach, reach))
        case SparseWeight(inner, mask):
            return projected(inner, values * mask) * mask


def _affine_grid(stored: Affine) -> tuple[Tensor, Tensor, float]:
    """Steps and codes of zero, `(out, columns)` or broadcast to it, and the least code."""
    columns = stored.codes.shape[1]
    if stored.zeros is None:
        return spread(stored.scales, stored.group, columns), torch.tensor(float(stored.middle)), 1.0
    return spread(stored.scales, stored.group, columns), spread(stored.zeros, stored.group, columns), 0.0


def settled(stored: StoredWeight, values: Tensor) -> StoredWeight:
    """Latent weights `(out, columns)` as they are stored."""
    match stored:
        case Integers(_, scales, bits, highest):
            return replace(stored, integers=round_to_nearest(values, scales, bits, highest))
        case Affine():
            steps, offsets, least = _affine_grid(stored)
            codes = torch.clamp((values / steps).round() + offsets, least, float((1 << stored.bits) - 1))
            return replace(stored, codes=codes.to(torch.uint8).contiguous())
        case Floats(dense):
            return Floats(values.to(dense.dtype))
        case Shared(codebook, _, scales):
            edges = (codebook[1:] + codebook[:-1]) / 2
            return replace(stored, indices=torch.bucketize(values / scales.unsqueeze(1), edges).to(torch.uint8))
        case Signs():
            levels, signs = sign_levels(stored)
            edges = (levels[:, 1:] + levels[:, :-1]) / 2
            index = torch.searchsorted(edges.contiguous(), values.contiguous())
            rows = torch.arange(len(values)).unsqueeze(1)
            chosen = signs[rows, index].transpose(1, 2).to(torch.int8).contiguous()
            return Signs(chosen, stored.scales)
        case SparseWeight(inner, mask):
            kept = settled(inner, values * mask)
            assert isinstance(kept, Integers | Affine | Floats | Shared)
            return replace(stored, values=kept)


def _unstretched(stored: StoredWeight | None) -> Tensor | None:
    """Factors that training changes the scales by, all 1: `(out, 1)`, or `(1, 1)` where all rows share one scale."""
    values = stored.values if isinstance(stored, SparseWeight) else stored
    if values is None or isinstance(values, Floats):
        return None
    return torch.ones(len(values.scales), 1, requires_grad=True)


def stretched(stored: StoredWeight, factors: Tensor) -> StoredWeight:
    """A stored weight with its scales multiplied, `(out, 1)`, or `(1, 1)` where all rows share one scale."""
    if isinstance(stored, SparseWeight):
        values = stretched(stored.values, factors)
        assert isinstance(values, Integers | Affine | Floats | Shared)
        return replace(stored, values=values)
    if isinstance(stored, Affine):
        return replace(stored, scales=stored.scales * factors)
    return stored.scaled(factors.flatten())


@dataclass(frozen=True)
class LatentPart:
    """The trainable tensors of one part.

    They are held in units of their own size, so that one learning rate fits every row of every layer: folded
    normalisation makes rows that differ by orders of magnitude.

    Attributes:
        part: What training started from.
        weight: Latent weight in units of `weight_unit`, requires a gradient.
        bias: Latent bias in units of `bias_unit`, or None.
        weight_unit: `(out, 1, ...)` root mean square of each row.
        bias_unit: `()` root mean square of the bias, at least that of the weights.
        stretch: Factor of each row's scales, or of the one that all share, None where the weight is stored as floats.
            Its gradient is that of Esser et al., "Learned Step Size Quantization", ICLR 2020: weights that outgrow
            their grid widen it.
        inputs: What is trained of what becomes of the input.
    """

    part: Part
    weight: Tensor
    bias: Tensor | None
    weight_unit: Tensor
    bias_unit: Tensor
    stretch: Tensor | None = None
    inputs: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, part: Part) -> LatentPart:
        """The latent tensors of a part: integers start at their grid points, signs at what they were made of."""
        weight = part.weight.detach().clone()
        if isinstance(part.stored, Signs) and part.stored.latent is not None:
            weight = part.stored.latent.detach().clone().reshape(weight.shape)
        rows = weight.reshape(len(weight), -1).square().mean(dim=1).sqrt()
        overall = weight.square().mean().sqrt().clamp_min(torch.finfo(weight.dtype).tiny)
        rows = torch.where(rows > 1e-3 * overall, rows, overall)
        unit = rows.reshape(-1, *(1,) * (weight.ndim - 1))
        bias = None if part.bias is None else part.bias.detach().clone()
        bias_unit = overall if bias is None else torch.maximum(bias.square().mean().sqrt(), overall)
        return cls(
            part, channels_last(weight / unit).requires_grad_(True),
            None if bias is None else (bias / bias_unit).requires_grad_(True), unit, bias_unit,
            _unstretched(part.stored), latent_inputs(part.inputs),
        )

    def trained(self) -> Iterator[Tensor]:
        """The tensors that are trained."""
        yield self.weight
        for tensor in (self.bias, self.stretch, *self.inputs):
            if tensor is not None:
                yield tensor

    def current(self) -> Part:
        """The part to compute with now, differentiable in the latent tensors."""
        weight = self.weight * self.weight_unit
        bias = None if self.bias is None else self.bias * self.bias_unit
        if self.part.stored is not None:
            stretch = self._stretch()
            values = projected(self.part.stored, weight.flatten(1) / self._before(stretch)) * stretch
            weight = values.reshape(weight.shape)
        inputs = in_training(with_latent(self.part.inputs, self.inputs))
        return replace(self.part, weight=weight, bias=bias, inputs=inputs)

    @torch.no_grad()
    def finished(self) -> Part:
        """The part to store: in the form that its weight is stored in."""
        weight = (self.weight * self.weight_unit).contiguous()
        bias = None if self.bias is None else self.bias * self.bias_unit
        inputs = with_latent(self.part.inputs, self.inputs)
        if self.part.stored is None:
            return replace(self.part, weight=weight, bias=bias, inputs=inputs)
        stretch = self._stretch()
        stored = settled(self.part.stored, weight.flatten(1) / self._before(stretch))
        if self.stretch is not None:
            stored = stretched(stored, stretch)
        return replace(
            self.part, weight=stored.weight().reshape(weight.shape), bias=bias, stored=stored, inputs=inputs)

    def _stretch(self) -> Tensor:
        return torch.ones(()) if self.stretch is None else self.stretch.clamp_min(LEAST_STRETCH)

    def _before(self, stretch: Tensor) -> Tensor:
        """What latent weights are divided by before they are projected: the sign of a weight does not depend on it."""
        return torch.ones(()) if isinstance(self.part.stored, Signs) else stretch


def latent_parts(network: Network) -> dict[str, tuple[LatentPart, ...]]:
    """The latent parts of every layer of a network that is not frozen, by its node.

    Embeddings stay: a batch shows few of their rows, and the others would only decay.
    """
    return {
        layer.layer.node: tuple(LatentPart.of(part) for part in network.parts[layer.layer.node])
        for layer in network.plan.layers
        if not layer.layer.frozen and layer.layer.kind is not LayerKind.EMBEDDING
    }


def outside_inference(network: Network) -> Network:
    """A copy of a network without inference tensors, which autograd refuses."""
    def copied(tensor: Tensor) -> Tensor:
        return tensor.detach().clone()

    def copied_part(part: Part) -> Part:
        inputs = None if part.inputs is None else part.inputs.each(copied)
        stored = None if part.stored is None else part.stored.each(copied)
        return Part(copied(part.weight), None if part.bias is None else copied(part.bias), stored, inputs)

    state = {name: copied(tensor) for name, tensor in network.state.items()}
    parts = {node: tuple(copied_part(part) for part in parts) for node, parts in network.parts.items()}
    return replace(network, state=state, parts=parts)
