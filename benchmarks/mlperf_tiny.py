"""The four MLPerf Tiny reference networks (Banbury et al., NeurIPS 2021) as int8 cost views."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from paretopress.spaces.kernels import CostView, Family, Kernel, Lifetime, product


@dataclass
class _Chain:
    """Collects kernels and buffers of a network with batch normalisation and ReLU absorbed."""

    kernels: list[Kernel] = field(default_factory=list)
    last_reader: dict[int, int] = field(default_factory=dict)
    weight_bytes: int = 0

    def convolution(
        self,
        cin: int,
        cout: int,
        window: tuple[int, int],
        size: tuple[int, int],
        stride: int = 1,
        depthwise: bool = False,
    ) -> tuple[int, int]:
        out = (-(-size[0] // stride), -(-size[1] // stride))
        groups = cin if depthwise else 1
        self._add(
            Kernel(
                f"k{len(self.kernels)}",
                Family.DEPTHWISE if depthwise else Family.CONV,
                layer=f"k{len(self.kernels)}",
                weight_bits=8,
                activation_bits=8,
                cin=cin,
                cout=cout,
                window=window,
                stride=(stride, stride),
                groups=groups,
                input_size=size,
                output_size=out,
                fused=("relu",),
                input_elements=cin * product(size),
                output_elements=cout * product(out),
            )
        )
        return out

    def linear(self, cin: int, cout: int) -> None:
        self._add(
            Kernel(
                f"k{len(self.kernels)}",
                Family.LINEAR,
                layer=f"k{len(self.kernels)}",
                weight_bits=8,
                activation_bits=8,
                cin=cin,
                cout=cout,
                input_elements=cin,
                output_elements=cout,
            )
        )

    def add(self, channels: int, size: tuple[int, int]) -> None:
        elements = channels * product(size)
        self._add(
            Kernel(
                f"k{len(self.kernels)}",
                Family.ADD,
                activation_bits=8,
                cin=channels,
                cout=channels,
                input_size=size,
                output_size=size,
                fused=("relu",),
                input_elements=2 * elements,
                output_elements=elements,
            )
        )

    def pool(self, channels: int, size: tuple[int, int]) -> None:
        self._add(
            Kernel(
                f"k{len(self.kernels)}",
                Family.GLOBAL_POOL,
                activation_bits=8,
                cin=channels,
                cout=channels,
                input_size=size,
                input_elements=channels * product(size),
                output_elements=channels,
            )
        )

    def _add(self, kernel: Kernel) -> None:
        self.weight_bytes += kernel.weight_elements + (4 * kernel.cout if kernel.weight_elements else 0)
        self.kernels.append(kernel)

    def view(self) -> CostView:
        """Buffers: a kernel's output lives until the next kernel, or its `last_reader`, has read it."""
        lifetimes = [Lifetime("input", self.kernels[0].input_elements, -1, 0)]
        for index, kernel in enumerate(self.kernels):
            last = self.last_reader.get(index, index + 1)
            lifetimes.append(Lifetime(kernel.name, kernel.output_elements, index, last))
        return CostView(tuple(self.kernels), (), tuple(lifetimes), self.weight_bytes)


def resnet8() -> CostView:
    """Image classification, CIFAR-10, 12.5 M multiply-accumulates."""
    chain = _Chain()
    size = chain.convolution(3, 16, (3, 3), (32, 32))
    cin = 16
    for cout, stride in ((16, 1), (32, 2), (64, 2)):
        block_input = len(chain.kernels) - 1
        outer = chain.convolution(cin, cout, (3, 3), size, stride)
        chain.convolution(cout, cout, (3, 3), outer)
        chain.last_reader[block_input] = len(chain.kernels)
        if stride == 2:
            chain.last_reader[len(chain.kernels) - 1] = len(chain.kernels) + 1
            chain.convolution(cin, cout, (1, 1), size, stride)
        chain.add(cout, outer)
        cin, size = cout, outer
    chain.pool(64, size)
    chain.linear(64, 10)
    return chain.view()


def mobilenet_quarter() -> CostView:
    """Visual wake words: MobileNetV1 x0.25 at 96 x 96, 7.5 M multiply-accumulates."""
    chain = _Chain()
    size = chain.convolution(3, 8, (3, 3), (96, 96), 2)
    cin = 8
    for cout, stride in (
        (16, 1),
        (32, 2),
        (32, 1),
        (64, 2),
        (64, 1),
        (128, 2),
        *((128, 1),) * 5,
        (256, 2),
        (256, 1),
    ):
        size = chain.convolution(cin, cin, (3, 3), size, stride, depthwise=True)
        chain.convolution(cin, cout, (1, 1), size)
        cin = cout
    chain.pool(256, size)
    chain.linear(256, 2)
    return chain.view()


def ds_cnn() -> CostView:
    """Keyword spotting: DS-CNN on 49 x 10 features, 2.7 M multiply-accumulates."""
    chain = _Chain()
    size = chain.convolution(1, 64, (10, 4), (49, 10), 2)
    for _ in range(4):
        chain.convolution(64, 64, (3, 3), size, depthwise=True)
        chain.convolution(64, 64, (1, 1), size)
    chain.pool(64, size)
    chain.linear(64, 12)
    return chain.view()


def autoencoder() -> CostView:
    """Anomaly detection: dense autoencoder 640-128x4-8-128x4-640, 0.26 M multiply-accumulates."""
    chain = _Chain()
    widths = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)
    for cin, cout in pairwise(widths):
        chain.linear(cin, cout)
    return chain.view()


NETWORKS = {"ic": resnet8, "vww": mobilenet_quarter, "kws": ds_cnn, "ad": autoencoder}
# What the Vela compiler reports for the reference models.
PUBLISHED_MACS = {"ic": 12_505_748, "vww": 7_491_972, "kws": 2_664_792, "ad": 264_192}
