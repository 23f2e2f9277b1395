"""Networks that published measurements name, as cost views: MLPerf Tiny, ResNets, MobileNets, VGG and Inception."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from paretopress.spaces.errors import ProfileError, unknown_name
from paretopress.spaces.kernels import CostView, Family, Kernel, Lifetime, product

Size = tuple[int, int]
IMAGENET_CLASSES = 1000


@dataclass
class NetworkBuilder:
    """Collects kernels and buffers, with batch normalisation and activations absorbed; one width throughout.

    Attributes:
        bits: 8: integer weights and tensors; 32: floats.
    """

    bits: int = 8
    kernels: list[Kernel] = field(default_factory=list)
    last_reader: dict[int, int] = field(default_factory=dict)
    weight_bytes: int = 0

    def convolution(
        self, cin: int, cout: int, window: Size, size: Size, stride: int = 1, depthwise: bool = False
    ) -> Size:
        """Add a convolution with "same" padding; returns the size of its output."""
        out = (-(-size[0] // stride), -(-size[1] // stride))
        self._add(
            Family.DEPTHWISE if depthwise else Family.CONV, weighted=True, cin=cin, cout=cout, window=window,
            stride=(stride, stride), groups=cin if depthwise else 1, input_size=size, output_size=out,
            fused=("relu",), input_elements=cin * product(size), output_elements=cout * product(out),
        )
        return out

    def linear(self, cin: int, cout: int) -> None:
        """Add a fully connected layer."""
        self._add(Family.LINEAR, weighted=True, cin=cin, cout=cout, input_elements=cin, output_elements=cout)

    def add(self, channels: int, size: Size) -> None:
        """Add a residual sum."""
        elements = channels * product(size)
        self._add(
            Family.ADD, cin=channels, cout=channels, input_size=size, output_size=size, fused=("relu",),
            input_elements=2 * elements, output_elements=elements,
        )

    def pool(self, channels: int, size: Size, window: int, stride: int) -> Size:
        """Add a windowed maximum with "same" padding; returns the size of its output."""
        out = (-(-size[0] // stride), -(-size[1] // stride))
        self._add(
            Family.POOL, cin=channels, cout=channels, window=(window, window), stride=(stride, stride),
            input_size=size, output_size=out, input_elements=channels * product(size),
            output_elements=channels * product(out),
        )
        return out

    def global_pool(self, channels: int, size: Size) -> None:
        """Add the mean over space."""
        self._add(
            Family.GLOBAL_POOL, cin=channels, cout=channels, input_size=size,
            input_elements=channels * product(size), output_elements=channels,
        )

    def concat(self, channels: int, size: Size) -> None:
        """Add a concatenation of channels."""
        elements = channels * product(size)
        self._add(
            Family.CONCAT, cin=channels, cout=channels, input_size=size, output_size=size,
            input_elements=elements, output_elements=elements,
        )

    def move(self, channels: int, before: Size, after: Size) -> None:
        """Add an operator that only moves data, such as an upsampling."""
        self._add(
            Family.DATA, cin=channels, cout=channels, input_size=before, output_size=after,
            input_elements=channels * product(before), output_elements=channels * product(after),
        )

    def _add(self, family: Family, *, weighted: bool = False, **shape: Any) -> None:  # noqa: ANN401 - kernel fields
        name = f"k{len(self.kernels)}"
        layer = name if weighted else ""
        weight_bits = self.bits if weighted else 32
        kernel = Kernel(name, family, layer=layer, weight_bits=weight_bits, activation_bits=self.bits, **shape)
        self.weight_bytes += kernel.weight_elements * self.bits // 8 + (4 * kernel.cout if weighted else 0)
        self.kernels.append(kernel)

    def view(self) -> CostView:
        """Buffers: a kernel's output lives until the next kernel, or its `last_reader`, has read it."""
        width = self.bits // 8
        lifetimes = [Lifetime("input", self.kernels[0].input_elements * width, -1, 0)]
        for index, kernel in enumerate(self.kernels):
            last = self.last_reader.get(index, index + 1)
            lifetimes.append(Lifetime(kernel.name, kernel.output_elements * width, index, last))
        return CostView(tuple(self.kernels), (), tuple(lifetimes), self.weight_bytes)


def _basic_block(net: NetworkBuilder, cin: int, cout: int, size: Size, stride: int) -> Size:
    """Two 3x3 convolutions and the shortcut, a 1x1 convolution where the shape changes."""
    before = len(net.kernels) - 1
    out = net.convolution(cin, cout, (3, 3), size, stride)
    net.convolution(cout, cout, (3, 3), out)
    _shortcut(net, before, cin, cout, size, stride)
    net.add(cout, out)
    return out


def _bottleneck(net: NetworkBuilder, cin: int, inner: int, cout: int, size: Size, stride: int) -> Size:
    """1x1, 3x3 (with the stride) and 1x1 convolutions and the shortcut."""
    before = len(net.kernels) - 1
    net.convolution(cin, inner, (1, 1), size)
    out = net.convolution(inner, inner, (3, 3), size, stride)
    net.convolution(inner, cout, (1, 1), out)
    _shortcut(net, before, cin, cout, size, stride)
    net.add(cout, out)
    return out


def _shortcut(net: NetworkBuilder, before: int, cin: int, cout: int, size: Size, stride: int) -> None:
    net.last_reader[before] = len(net.kernels)
    if stride > 1 or cin != cout:
        net.last_reader[len(net.kernels) - 1] = len(net.kernels) + 1
        net.convolution(cin, cout, (1, 1), size, stride)


def tiny_resnet(depth: int, bits: int = 8, classes: int = 10) -> CostView:
    """CIFAR ResNets with projection shortcuts: 8 layers as in MLPerf Tiny (one block of 16, 32 and 64 channels)."""
    net = NetworkBuilder(bits)
    size = net.convolution(3, 16, (3, 3), (32, 32))
    cin = 16
    for cout, first in ((16, 1), (32, 2), (64, 2)):
        for block in range((depth - 2) // 6):
            size = _basic_block(net, cin, cout, size, 1 if block else first)
            cin = cout
    net.global_pool(64, size)
    net.linear(64, classes)
    return net.view()


def ds_cnn(bits: int = 8) -> CostView:
    """Keyword spotting: DS-CNN on 49 x 10 features, 2.7 M multiply-accumulates."""
    net = NetworkBuilder(bits)
    size = net.convolution(1, 64, (10, 4), (49, 10), 2)
    for _ in range(4):
        net.convolution(64, 64, (3, 3), size, depthwise=True)
        net.convolution(64, 64, (1, 1), size)
    net.global_pool(64, size)
    net.linear(64, 12)
    return net.view()


def autoencoder(bits: int = 8) -> CostView:
    """Anomaly detection: dense autoencoder 640-128x4-8-128x4-640, 0.26 M multiply-accumulates."""
    net = NetworkBuilder(bits)
    for cin, cout in pairwise((640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)):
        net.linear(cin, cout)
    return net.view()


def resnet(depth: int, bits: int = 32) -> CostView:
    """ResNets on 224 x 224 images (He et al., CVPR 2016, table 1), the stride in the 3x3 convolution."""
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    net = NetworkBuilder(bits)
    size = net.convolution(3, 64, (7, 7), (224, 224), 2)
    size = net.pool(64, size, 3, 2)
    cin = 64
    for stage, count in enumerate(blocks):
        inner = 64 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            if depth < 50:
                size, cin = _basic_block(net, cin, inner, size, stride), inner
            else:
                size, cin = _bottleneck(net, cin, inner, 4 * inner, size, stride), 4 * inner
    net.global_pool(cin, size)
    net.linear(cin, IMAGENET_CLASSES)
    return net.view()


_V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def mobilenet_v1(
    width: float = 1.0, resolution: int = 224, bits: int = 32, classes: int = IMAGENET_CLASSES, channels: int = 3
) -> CostView:
    """MobileNetV1 (Howard et al., 2017, table 1)."""
    net = NetworkBuilder(bits)
    size = net.convolution(channels, int(32 * width), (3, 3), (resolution, resolution), 2)
    cin = int(32 * width)
    for cout, stride in _V1_BLOCKS:
        size = net.convolution(cin, cin, (3, 3), size, stride, depthwise=True)
        net.convolution(cin, int(cout * width), (1, 1), size)
        cin = int(cout * width)
    net.global_pool(cin, size)
    net.linear(cin, classes)
    return net.view()


_V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _eights(value: float) -> int:
    """The nearest multiple of 8 that is at least 90% of the value, as MobileNetV2's code rounds widths."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def mobilenet_v2(
    width: float = 1.0, resolution: int = 224, bits: int = 32, classes: int = IMAGENET_CLASSES
) -> CostView:
    """MobileNetV2 (Sandler et al., CVPR 2018, table 2)."""
    net = NetworkBuilder(bits)
    cin = _eights(32 * width)
    size = net.convolution(3, cin, (3, 3), (resolution, resolution), 2)
    for expansion, channels, count, first in _V2_STAGES:
        cout = _eights(channels * width)
        for block in range(count):
            size = _inverted(net, cin, expansion, cout, size, 1 if block else first)
            cin = cout
    last = _eights(1280 * max(1.0, width))
    net.convolution(cin, last, (1, 1), size)
    net.global_pool(last, size)
    net.linear(last, classes)
    return net.view()


def _inverted(net: NetworkBuilder, cin: int, expansion: int, cout: int, size: Size, stride: int) -> Size:
    before, inner = len(net.kernels) - 1, cin * expansion
    if expansion > 1:
        net.convolution(cin, inner, (1, 1), size)
    out = net.convolution(inner, inner, (3, 3), size, stride, depthwise=True)
    net.convolution(inner, cout, (1, 1), out)
    if stride == 1 and cin == cout:
        net.last_reader[before] = len(net.kernels)
        net.add(cout, out)
    return out


def vgg16(bits: int = 32) -> CostView:
    """VGG-16 (Simonyan and Zisserman, ICLR 2015, configuration D)."""
    net = NetworkBuilder(bits)
    size, cin = (224, 224), 3
    for cout, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            net.convolution(cin, cout, (3, 3), size)
            cin = cout
        size = net.pool(cout, size, 2, 2)
    for wide, narrow in pairwise((512 * product(size), 4096, 4096, IMAGENET_CLASSES)):
        net.linear(wide, narrow)
    return net.view()


# 1x1, 3x3 reduced, 3x3, 5x5 reduced, 5x5, pooled 1x1 of every module (Szegedy et al., CVPR 2015, table 1).
_INCEPTION = (
    (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
)
_POOLED_BEFORE = (2, 7)   # modules with a maximum of stride 2 in front


def inception_v1(bits: int = 32, five: int = 5) -> CostView:
    """GoogLeNet (Szegedy et al., CVPR 2015). TensorFlow's version has 3x3 windows where the paper has 5x5."""
    net = NetworkBuilder(bits)
    size = net.convolution(3, 64, (7, 7), (224, 224), 2)
    size = net.pool(64, size, 3, 2)
    net.convolution(64, 64, (1, 1), size)
    net.convolution(64, 192, (3, 3), size)
    size, cin = net.pool(192, size, 3, 2), 192
    for index, (one, three_in, three, five_in, five_out, pooled) in enumerate(_INCEPTION):
        if index in _POOLED_BEFORE:
            size = net.pool(cin, size, 3, 2)
        first = len(net.kernels) - 1
        net.convolution(cin, one, (1, 1), size)
        branches = [len(net.kernels) - 1]
        for inner, outer, window in ((three_in, three, 3), (five_in, five_out, five)):
            net.convolution(cin, inner, (1, 1), size)
            net.convolution(inner, outer, (window, window), size)
            branches.append(len(net.kernels) - 1)
        net.last_reader[first] = len(net.kernels)
        net.pool(cin, size, 3, 1)
        net.convolution(cin, pooled, (1, 1), size)
        cin = one + three + five_out + pooled
        net.last_reader.update(dict.fromkeys(branches, len(net.kernels)))
        net.concat(cin, size)
    net.global_pool(cin, size)
    net.linear(cin, IMAGENET_CLASSES)
    return net.view()


# Output channels of the extra convolutions and anchors per position of the six maps (Liu et al., ECCV 2016, as in
# TensorFlow's ssd_mobilenet_v1_coco).
_SSD_EXTRA = ((256, 512), (128, 256), (128, 256), (64, 128))
_SSD_MAPS = ((512, 19, 3), (1024, 10, 6), (512, 5, 6), (256, 3, 6), (256, 2, 6), (128, 1, 6))
COCO_CLASSES = 91


def ssd_mobilenet_v1(bits: int = 32) -> CostView:
    """SSD on MobileNetV1 at 300 x 300; decoding of boxes is not counted."""
    net = NetworkBuilder(bits)
    size, cin = net.convolution(3, 32, (3, 3), (300, 300), 2), 32
    for cout, stride in _V1_BLOCKS:
        size = net.convolution(cin, cin, (3, 3), size, stride, depthwise=True)
        net.convolution(cin, cout, (1, 1), size)
        cin = cout
    for inner, outer in _SSD_EXTRA:
        net.convolution(cin, inner, (1, 1), size)
        size, cin = net.convolution(inner, outer, (3, 3), size, 2), outer
    for channels, side, anchors in _SSD_MAPS:
        net.convolution(channels, 4 * anchors, (1, 1), (side, side))
        net.convolution(channels, COCO_CLASSES * anchors, (1, 1), (side, side))
    return net.view()


def yolo_v3_tiny(bits: int = 32) -> CostView:
    """YOLOv3-tiny at 416 x 416 (Redmon and Farhadi, 2018); decoding of boxes is not counted."""
    net = NetworkBuilder(bits)
    size, cin, fine_size, fine_kernel = (416, 416), 3, (0, 0), 0
    for index, cout in enumerate((16, 32, 64, 128, 256, 512)):
        net.convolution(cin, cout, (3, 3), size)
        if cout == 256:
            fine_size, fine_kernel = size, len(net.kernels) - 1
        cin, size = cout, net.pool(cout, size, 2, 1 if index == 5 else 2)
    net.convolution(512, 1024, (3, 3), size)
    net.convolution(1024, 256, (1, 1), size)
    shared = len(net.kernels) - 1
    net.convolution(256, 512, (3, 3), size)
    net.convolution(512, 255, (1, 1), size)
    net.last_reader[shared] = len(net.kernels)
    net.convolution(256, 128, (1, 1), size)
    net.move(128, size, fine_size)
    net.last_reader[fine_kernel] = len(net.kernels)
    net.concat(384, fine_size)
    net.convolution(384, 256, (3, 3), fine_size)
    net.convolution(256, 255, (1, 1), fine_size)
    return net.view()


# The short names of MLPerf Tiny (Banbury et al., NeurIPS 2021): image classification, visual wake words,
# keyword spotting, anomaly detection.
MLPERF_TINY: Mapping[str, Callable[[int], CostView]] = {
    "ic": lambda bits: tiny_resnet(8, bits),
    "vww": lambda bits: mobilenet_v1(0.25, 96, bits, 2),
    "kws": ds_cnn,
    "ad": autoencoder,
}
# What the Vela compiler reports for the reference models.
PUBLISHED_MACS = {"ic": 12_505_748, "vww": 7_491_972, "kws": 2_664_792, "ad": 264_192}

_NETWORKS: Mapping[str, Callable[[int], CostView]] = {
    **{f"mlperf-tiny-{name}": make for name, make in MLPERF_TINY.items()},
    "resnet-8": lambda bits: tiny_resnet(8, bits),
    "resnet-32": lambda bits: tiny_resnet(32, bits, 100),
    "ds-cnn": ds_cnn,
    **{f"resnet-{depth}": partial(resnet, depth) for depth in (18, 34, 50, 101)},
    "vgg-16": vgg16,
    "inception-v1": inception_v1,
    "inception-v1-tf": lambda bits: inception_v1(bits, 3),
    "ssd-mobilenet-v1": ssd_mobilenet_v1,
    "yolo-v3-tiny": yolo_v3_tiny,
}
_MOBILENET = re.compile(r"mobilenet-v(?P<version>[12])(-(?P<width>\d+(\.\d+)?)(-(?P<resolution>\d+))?)?")


def known_networks() -> tuple[str, ...]:
    """Return the names that `known_network` takes; MobileNets take a width and a resolution too."""
    return (*_NETWORKS, "mobilenet-v1", "mobilenet-v2")


def known_network(name: str, bits: int = 32) -> CostView:
    """Return the cost view of a network by its name, such as `resnet-50` or `mobilenet-v2-0.35-128`.

    Args:
        name: One of `known_networks()`.
        bits: 32 for floats, 8 for integers.

    Raises:
        ProfileError: Unknown name, with the nearest match.
    """
    if name in _NETWORKS:
        return _NETWORKS[name](bits)
    match = _MOBILENET.fullmatch(name)
    if match is None:
        raise ProfileError(unknown_name("network", name, list(known_networks())))
    make = mobilenet_v1 if match["version"] == "1" else mobilenet_v2
    return make(float(match["width"] or 1), int(match["resolution"] or 224), bits)
