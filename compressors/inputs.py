"""What a layer does to its own input before it computes: signs, the levels of a grid, or 8 bits by the range at hand.

The layers around it know nothing of that: they read and write floats. (8-bit tensors that several integer kernels
share are another thing: `spaces/arithmetic.py`.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paretopress.compressors.quantisation import TOP, RangeMethod, tensor_range
from paretopress.spaces.choices import Binary, WeightFormat, Weights
from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.stored_weights import packed_size


@dataclass(frozen=True)
class InputSigns:
    """A layer's input as signs: `scale` where it is at least its channel's threshold, else `-scale`.

    Attributes:
        scale: `(1,)` float32.
        thresholds: `(channels,)` float32.
    """

    scale: Tensor
    thresholds: Tensor

    def of(self, x: Tensor, axis: int) -> Tensor:
        """The signs of a tensor whose channels are at dimension `axis`, times the scale."""
        shape = [1] * x.ndim
        shape[axis] = -1
        return torch.where(x >= self.thresholds.reshape(shape), self.scale, -self.scale)

    def each(self, change: Callable[[Tensor], Tensor]) -> InputSigns:
        """The same with every tensor changed."""
        return InputSigns(change(self.scale), change(self.thresholds))

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by the suffix of its name."""
        return {"input_scale": self.scale, "input_threshold": self.thresholds}


@dataclass(frozen=True)
class InputGrid:
    """A layer's input on `2^bits` levels: codes from 0, less the one that stands for zero, times a step.

    Attributes:
        scale: `(1,)` float32, the step.
        zero_point: Code of zero.
        bits: Of a code.
    """

    scale: Tensor
    zero_point: int
    bits: int

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest level, in steps."""
        return -self.zero_point, (1 << self.bits) - 1 - self.zero_point

    def of(self, x: Tensor, axis: int) -> Tensor:  # noqa: ARG002 - all channels have one step
        """The nearest level of every value, ties to even levels; values beyond the grid become its ends."""
        return (x / self.scale).round_().clamp_(*self.bounds).mul_(self.scale)

    def each(self, change: Callable[[Tensor], Tensor]) -> InputGrid:
        """The same with every tensor changed."""
        return replace(self, scale=change(self.scale))

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by the suffix of its name; the code of zero as bytes, the lowest first."""
        code = self.zero_point.to_bytes(packed_size(1, self.bits), "little")
        return {"input_scale": self.scale, "input_zero_point": torch.tensor(list(code), dtype=torch.uint8)}


@dataclass(frozen=True)
class DynamicRange:
    """A layer's input on 256 levels between its least and its largest value, zero included: ONNX DynamicQuantizeLinear.

    Every tensor has one range: what one sample of a batch is rounded to depends on the others.
    """

    def of(self, x: Tensor, axis: int) -> Tensor:  # noqa: ARG002 - all channels have one range
        """The nearest level of every value."""
        if not x.numel():
            return x
        scale, zero_point = dynamic_range(x)
        return (x / scale).round_().clamp_(-zero_point, TOP - zero_point).mul_(scale)

    def each(self, change: Callable[[Tensor], Tensor]) -> DynamicRange:  # noqa: ARG002 - it has none
        """The same with every tensor changed."""
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Nothing is stored."""
        return {}


LayerInputs = InputSigns | InputGrid | DynamicRange


def dynamic_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the uint8 grid over a tensor's values and zero, `()` float32 each.

    Bit for bit those of ONNX Runtime's DynamicQuantizeLinear, where the scale of a tensor of zeros is 1. Where the
    range is so small that its step would be zero, which runtimes divide by, it is 1 as well.
    """
    low, high = x.detach().aminmax()
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = (high - low) / TOP
    scale = torch.where(scale > 0.0, scale, torch.ones_like(scale))
    return scale, (-low / scale).clamp(0.0, float(TOP)).round()


def input_grid(x: Tensor, bits: int, method: RangeMethod) -> InputGrid:
    """Choose the grid of a layer's input by values that calibration shows."""
    scale, zero_point = tensor_range(x, method, top=(1 << bits) - 1)
    return InputGrid(torch.tensor([scale], dtype=torch.float32), zero_point, bits)


def read_inputs(form: WeightFormat | None, tensor_of: Callable[[str], Tensor]) -> LayerInputs | None:
    """Read back what a format stores of its layer's input.

    Args:
        form: The format.
        tensor_of: Gives the stored tensor of a suffix.

    Raises:
        ArtifactError: A code of zero that the grid does not have.
    """
    match form:
        case Binary(_, 1):
            return InputSigns(tensor_of("input_scale"), tensor_of("input_threshold"))
        case Weights() if form.is_dynamic:
            return DynamicRange()
        case Weights() if form.grid_bits:
            code = int.from_bytes(bytes(tensor_of("input_zero_point").tolist()), "little")
            if code >> form.grid_bits:
                raise ArtifactError(f"an input of {form.grid_bits} bits: {code} is no code of zero")
            return InputGrid(tensor_of("input_scale"), code, form.grid_bits)
    return None
