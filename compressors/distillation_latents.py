"""Trainable tensors behind a network: latent weights, and gradients through rounding.

Rounding has no useful gradient; the straight-through estimator (Bengio, Leonard, Courville, arXiv:1308.3432)
passes the gradient of the rounded value to the latent one, and none where the value was clipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paretopress.compressors.network import Network, Part
from paretopress.compressors.quantisation import dequantise, largest_level, quantise_tensor, round_to_nearest
from paretopress.spaces.layers import LayerKind


def channels_last(tensor: Tensor) -> Tensor:
    """Return the tensor with the memory layout that convolutions over images train fastest in; others as they are."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def straight_through(rounded: Tensor, latent: Tensor) -> Tensor:
    """Return `rounded` with the gradient of `latent`."""
    return latent + (rounded - latent).detach()


def quantise_activation(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Quantise a tensor as `quantise_tensor` does; the gradient is that of clipping to the range."""
    clipped = torch.clamp(x, -zero_point * scale, (255 - zero_point) * scale)
    return straight_through(quantise_tensor(x.detach(), scale, zero_point), clipped)


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
    """

    part: Part
    weight: Tensor
    bias: Tensor | None
    weight_unit: Tensor
    bias_unit: Tensor

    @classmethod
    def of(cls, part: Part) -> LatentPart:
        """The latent tensors of a part; a weight that is quantised starts at its grid points."""
        weight = part.weight.detach().clone()
        rows = weight.reshape(len(weight), -1).square().mean(dim=1).sqrt()
        overall = weight.square().mean().sqrt().clamp_min(torch.finfo(weight.dtype).tiny)
        rows = torch.where(rows > 1e-3 * overall, rows, overall)
        unit = rows.reshape(-1, *(1,) * (weight.ndim - 1))
        bias = None if part.bias is None else part.bias.detach().clone()
        bias_unit = overall if bias is None else torch.maximum(bias.square().mean().sqrt(), overall)
        return cls(
            part, channels_last(weight / unit).requires_grad_(True),
            None if bias is None else (bias / bias_unit).requires_grad_(True), unit, bias_unit,
        )

    def trained(self) -> Iterator[Tensor]:
        """The tensors that are trained."""
        yield self.weight
        if self.bias is not None:
            yield self.bias

    def current(self) -> Part:
        """The part to compute with now, differentiable in the latent tensors."""
        weight = self.weight * self.weight_unit
        bias = None if self.bias is None else self.bias * self.bias_unit
        if self.part.integers is None or self.part.scales is None:
            return replace(self.part, weight=weight, bias=bias)
        scales = self.part.scales.detach().reshape(self.weight_unit.shape)
        level = largest_level(self.part.bits)
        levels = torch.clamp(weight / scales, -level, level)
        return replace(self.part, weight=straight_through(levels.round(), levels) * scales, bias=bias)

    @torch.no_grad()
    def finished(self) -> Part:
        """The part to store: rounded to its integers where it is quantised."""
        weight = (self.weight * self.weight_unit).contiguous()
        bias = None if self.bias is None else self.bias * self.bias_unit
        if self.part.integers is None or self.part.scales is None:
            return replace(self.part, weight=weight, bias=bias)
        scales = self.part.scales.clone()
        integers = round_to_nearest(weight.reshape(len(weight), -1), scales, self.part.bits)
        weight = dequantise(integers, scales).reshape(weight.shape)
        return replace(self.part, weight=weight, bias=bias, integers=integers, scales=scales)


def latent_parts(network: Network) -> dict[str, tuple[LatentPart, ...]]:
    """The latent parts of every layer of a network that is not frozen, by its node.

    Embeddings stay: a batch shows few of their rows, and the others would only decay.
    """
    return {
        layer.layer.node: tuple(LatentPart.of(part) for part in network.parts[layer.layer.node])
        for layer in network.plan.layers
        if not layer.layer.frozen and layer.layer.kind is not LayerKind.EMBEDDING
    }
