"""The networks of NAS-Bench-201 as cost views (Dong and Yang, ICLR 2020, figure 1)."""

from __future__ import annotations

import re

from paretopress.spaces.errors import ProfileError, unknown_name
from paretopress.spaces.kernels import CostView, Family, Kernel

CELLS_PER_STAGE = 5
STAGES = ((16, 32), (32, 16), (64, 8))  # channels, width of the square map
OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def operations(architecture: str) -> list[tuple[str, int, int]]:
    """Return (operation, from, to) of all edges of the cell that are not `none`; node 0 is the input, 3 the output.

    Raises:
        ProfileError: Not an architecture string.
    """
    groups = [re.findall(r"([a-z_0-9]+)~(\d)\|", part) for part in architecture.split("+")]
    found = [(name, int(start), end) for end, group in enumerate(groups, 1) for name, start in group]
    if [(start, end) for _, start, end in found] != list(_EDGES):
        form = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
        raise ProfileError(f"NAS-Bench-201 architecture {architecture!r}: expected the form {form!r}")
    unknown = next((name for name, _, _ in found if name not in OPERATIONS), None)
    if unknown is not None:
        reason = unknown_name("operation", unknown, OPERATIONS)
        raise ProfileError(f"NAS-Bench-201 architecture {architecture!r}: {reason}")
    return [edge for edge in found if edge[0] != "none"]


def live_operations(architecture: str) -> list[tuple[str, int, int]]:
    """Return (operation, from, to) of the edges that carry data from the cell's input (0) to its output (3).

    TFLite removes what does not reach the output or is not fed from the input; PyTorch computes it.

    Raises:
        ProfileError: Not an architecture string.
    """
    edges = operations(architecture)
    fed, used = {0}, {3}
    for _ in range(3):
        fed |= {end for _, start, end in edges if start in fed}
        used |= {start for _, start, end in edges if end in used}
    return [(name, start, end) for name, start, end in edges if start in fed and end in used]


def convolution(name: str, cin: int, cout: int, window: int, width: int, stride: int = 1) -> Kernel:
    """A fused float32 convolution on a square map of the given input width."""
    out = width // stride
    return Kernel(
        name,
        Family.CONV,
        layer=name,
        cin=cin,
        cout=cout,
        window=(window, window),
        stride=(stride, stride),
        input_size=(width, width),
        output_size=(out, out),
        input_elements=cin * width * width,
        output_elements=cout * out * out,
    )


def plain(
    name: str, family: Family, channels: int, width: int, inputs: int = 1, window: int = 0, stride: int = 1
) -> Kernel:
    """A kernel without weights on a square map."""
    out = 1 if family == Family.GLOBAL_POOL else width // stride
    return Kernel(
        name,
        family,
        cin=channels,
        cout=channels,
        window=(window, window) if window else (),
        stride=(stride, stride) if window else (),
        input_size=(width, width),
        output_size=(out, out),
        input_elements=inputs * channels * width * width,
        output_elements=channels * out * out,
    )


def cost_view(architecture: str, classes: int = 10, dead_branches: bool = False) -> CostView:
    """Return the fused float32 kernels of a network on 32 x 32 images; buffers are not listed.

    Args:
        architecture: Such as `|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|`.
        classes: Outputs of the classifier.
        dead_branches: Whether the runtime computes what does not reach the output, as PyTorch does.

    Raises:
        ProfileError: Not an architecture string.
    """
    cell = operations(architecture) if dead_branches else live_operations(architecture)
    kernels = [convolution("stem", 3, 16, 3, 32)]
    for stage, (channels, width) in enumerate(STAGES):
        if stage:
            kernels += _reduction(f"reduction{stage}", channels // 2, channels, width * 2)
        for position in range(CELLS_PER_STAGE):
            kernels += _cell(f"stage{stage}.{position}", cell, channels, width)
    kernels.append(plain("pool", Family.GLOBAL_POOL, 64, 8))
    kernels.append(
        Kernel(
            "classifier",
            Family.LINEAR,
            layer="classifier",
            cin=64,
            cout=classes,
            input_elements=64,
            output_elements=classes,
        )
    )
    return CostView(tuple(kernels), (), (), 4 * sum(kernel.weight_elements for kernel in kernels))


def _cell(name: str, cell: list[tuple[str, int, int]], channels: int, width: int) -> list[Kernel]:
    kernels = []
    for operation, start, end in cell:
        label = f"{name}.{start}-{end}"
        if operation.startswith("nor_conv"):
            # The ReLU before it is absorbed by what wrote its input: it always comes with a convolution, so
            # the data could not tell its cost apart anyway.
            kernels.append(convolution(label, channels, channels, int(operation[-1]), width))
        elif operation.startswith("avg_pool"):
            kernels.append(plain(label, Family.POOL, channels, width, window=3))
    for node in (1, 2, 3):
        arriving = sum(end == node for _, _, end in cell)
        kernels += [
            plain(f"{name}.add{node}.{index}", Family.ADD, channels, width, inputs=2)
            for index in range(arriving - 1)
        ]
    return kernels


def _reduction(name: str, cin: int, cout: int, width: int) -> list[Kernel]:
    return [
        convolution(f"{name}.a", cin, cout, 3, width, 2),
        convolution(f"{name}.b", cout, cout, 3, width // 2),
        plain(f"{name}.pool", Family.POOL, cin, width, window=2, stride=2),
        convolution(f"{name}.shortcut", cin, cout, 1, width // 2),
        plain(f"{name}.add", Family.ADD, cout, width // 2, 2),
    ]
