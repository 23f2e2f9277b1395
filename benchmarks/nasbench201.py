"""The networks of NAS-Bench-201 as cost views (Dong and Yang, ICLR 2020, figure 1), dead branches removed."""

from __future__ import annotations

import re

from paretopress.spaces.kernels import CostView, Family, Kernel

CELLS_PER_STAGE = 5
STAGES = ((16, 32), (32, 16), (64, 8))  # channels, width of the square map
_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def live_operations(architecture: str) -> list[tuple[str, int, int]]:
    """Return (operation, from, to) of the edges between the cell's input (0) and output (3) that carry data.

    TFLite removes what does not reach the output or is not fed from the input.
    """
    names = re.findall(r"\|?([a-z_0-9]+)~\d\|", architecture)
    assert len(names) == len(_EDGES), architecture
    edges = [(name, start, end) for name, (start, end) in zip(names, _EDGES, strict=True) if name != "none"]
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


def cost_view(architecture: str, classes: int = 10) -> CostView:
    """Return the fused float32 kernels of a network on 32 x 32 images."""
    operations = live_operations(architecture)
    kernels = [convolution("stem", 3, 16, 3, 32)]
    for stage, (channels, width) in enumerate(STAGES):
        if stage:
            kernels += _reduction(f"reduction{stage}", channels // 2, channels, width * 2)
        for cell in range(CELLS_PER_STAGE):
            kernels += _cell(f"stage{stage}.{cell}", operations, channels, width)
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


def _cell(name: str, operations: list[tuple[str, int, int]], channels: int, width: int) -> list[Kernel]:
    kernels = []
    for operation, start, end in operations:
        label = f"{name}.{start}-{end}"
        if operation.startswith("nor_conv"):
            # The ReLU before it is absorbed by what wrote its input: it always comes with a convolution, so
            # the data could not tell its cost apart anyway.
            kernels.append(convolution(label, channels, channels, int(operation[-1]), width))
        elif operation.startswith("avg_pool"):
            kernels.append(plain(label, Family.POOL, channels, width, window=3))
    for node in (1, 2, 3):
        arriving = sum(end == node for _, _, end in operations)
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
