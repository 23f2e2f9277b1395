"""What stands in the user's code where a layer of a dropped residual branch was."""

from __future__ import annotations

from torch import Tensor, nn


class Zeros(nn.Module):
    """Returns zeros of the shape that a layer's output would have, so that any code around it still runs.

    Args:
        layer: The layer that is dropped; its tensors are not kept.
        channels: Channels (features) of the zeros.
    """

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.Linear, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.steps: tuple[tuple[int, int, int], ...] = ()   # window extent, padding and stride per dimension
        self.is_convolution = not isinstance(layer, nn.Linear)
        if not isinstance(layer, nn.Linear):
            extents = [d * (size - 1) + 1 for d, size in zip(layer.dilation, layer.kernel_size, strict=True)]
            padding = layer.padding
            if isinstance(padding, str):
                both = [extent - 1 if padding == "same" else 0 for extent in extents]
            else:
                both = [2 * amount for amount in padding]
            self.steps = tuple(zip(extents, both, layer.stride, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros: `(n, channels, *space)` for a convolution, `(..., channels)` for a linear layer."""
        if not self.is_convolution:
            return x.new_zeros((*x.shape[:-1], self.channels))
        spatial = x.shape[x.ndim - len(self.steps) :]
        space = [
            (size + both - extent) // stride + 1
            for size, (extent, both, stride) in zip(spatial, self.steps, strict=True)
        ]
        return x.new_zeros((*x.shape[: x.ndim - len(space) - 1], self.channels, *space))

    def extra_repr(self) -> str:
        """The number of channels."""
        return f"{self.channels}"
