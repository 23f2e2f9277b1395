"""Inputs of layers in training: gradients through what a layer does to its own input, and what of that is trained.

What is trained is held in units of the scale that training starts from. Of signs that is their scale and thresholds; of
a grid its step, whose gradient is that of learned step sizes (Esser et al., "Learned Step Size Quantization", ICLR
2020, arXiv:1902.08153); of a range that is found at run time nothing.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from paretopress.compressors.inputs import DynamicRange, InputGrid, InputSigns, LayerInputs

LEAST_STEP = 1 / 16   # of the step that training starts from: a step of zero would be divided by


def straight_through(rounded: Tensor, latent: Tensor) -> Tensor:
    """Return `rounded` with the gradient of `latent`."""
    return latent + (rounded - latent).detach()


class TrainedSigns(InputSigns):
    """Signs of an input whose scale and thresholds are trained."""

    def of(self, x: Tensor, axis: int) -> Tensor:
        """The signs; the gradient is that of the distance to the threshold, clipped to twice the scale."""
        shape = [1] * x.ndim
        shape[axis] = -1
        distance = x - self.thresholds.reshape(shape)
        reach = 2.0 * self.scale.detach().abs()
        clipped = torch.clamp(distance, -reach, reach)
        signs = torch.where(distance.detach() >= 0.0, self.scale, -self.scale)
        return signs + clipped - clipped.detach()


class TrainedGrid(InputGrid):
    """A grid of an input whose step is trained."""

    def of(self, x: Tensor, axis: int) -> Tensor:  # noqa: ARG002 - all channels have one step
        """The levels; the gradient is that of clipping to the grid, and for the step that of its levels too."""
        clipped = torch.clamp(x / self.scale, *self.bounds)
        return straight_through(clipped.detach().round(), clipped) * self.scale


class PassedRange(DynamicRange):
    """A range that is found at run time, in training."""

    def of(self, x: Tensor, axis: int) -> Tensor:
        """The levels; the gradient passes: nothing is beyond the range."""
        return straight_through(super().of(x.detach(), axis), x)


def latent_inputs(inputs: LayerInputs | None) -> tuple[Tensor, ...]:
    """What is trained of a layer's input, in units of its scale."""
    match inputs:
        case InputSigns(scale, thresholds):
            relative = (thresholds / scale).detach().clone()
            return torch.ones(1, requires_grad=True), relative.requires_grad_(True)
        case InputGrid():
            return (torch.ones(1, requires_grad=True),)
    return ()


def with_latent(inputs: LayerInputs | None, latent: tuple[Tensor, ...]) -> LayerInputs | None:
    """The inputs with what has been trained of them."""
    match inputs:
        case InputSigns(scale):
            return InputSigns(latent[0] * scale, latent[1] * scale)
        case InputGrid(scale):
            return replace(inputs, scale=latent[0].clamp_min(LEAST_STEP) * scale)
    return inputs


def in_training(inputs: LayerInputs | None) -> LayerInputs | None:
    """The inputs with gradients."""
    match inputs:
        case InputSigns(scale, thresholds):
            return TrainedSigns(scale, thresholds)
        case InputGrid(scale, zero_point, bits):
            return TrainedGrid(scale, zero_point, bits)
        case DynamicRange():
            return PassedRange()
    return None
