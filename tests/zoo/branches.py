"""Networks that concatenate: VGG for contrast, DenseNet, GoogLeNet, SqueezeNet, U-Net, YOLO."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class Vgg(nn.Module):
    """VGG-16 with batch normalisation (Simonyan and Zisserman 2015)."""

    def __init__(self, share=1, hidden=4096, positions=7, classes=1000):
        super().__init__()
        layers, cin = [], 3
        for entry in VGG16:
            if entry == "M":
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers += [
                nn.Conv2d(cin, entry // share, 3, padding=1),
                nn.BatchNorm2d(entry // share),
                nn.ReLU(inplace=True),
            ]
            cin = entry // share
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d((positions, positions))
        self.classifier = nn.Sequential(
            nn.Linear(cin * positions * positions, hidden),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class DenseLayer(nn.Module):
    def __init__(self, cin, growth, bottleneck=4):
        super().__init__()
        inner = bottleneck * growth
        self.norm1, self.conv1 = nn.BatchNorm2d(cin), nn.Conv2d(cin, inner, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, features):
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseBlock(nn.Module):
    def __init__(self, cin, growth, count):
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(cin + index * growth, growth) for index in range(count))

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Huang et al. 2017; the defaults are DenseNet-121."""

    def __init__(self, growth=32, depths=(6, 12, 24, 16), stem=64, classes=1000):
        super().__init__()
        layers = [nn.Conv2d(3, stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)]
        channels = stem
        for index, depth in enumerate(depths):
            layers.append(DenseBlock(channels, growth, depth))
            channels += depth * growth
            if index < len(depths) - 1:
                layers += [nn.BatchNorm2d(channels), nn.ReLU(True), nn.Conv2d(channels, channels // 2, 1, bias=False)]
                layers.append(nn.AvgPool2d(2, 2))
                channels //= 2
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x):
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class ConvBn(nn.Module):
    def __init__(self, cin, cout, **options):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(cin, cout, bias=False, **options), nn.BatchNorm2d(cout, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    def __init__(self, cin, one, reduce3, three, reduce5, five, pool):
        super().__init__()
        self.branch1 = ConvBn(cin, one, kernel_size=1)
        self.branch2 = nn.Sequential(
            ConvBn(cin, reduce3, kernel_size=1), ConvBn(reduce3, three, kernel_size=3, padding=1)
        )
        self.branch3 = nn.Sequential(
            ConvBn(cin, reduce5, kernel_size=1), ConvBn(reduce5, five, kernel_size=3, padding=1)
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), ConvBn(cin, pool, kernel_size=1))
        self.channels = one + three + five + pool

    def forward(self, x):
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """Szegedy et al. 2015 with batch normalisation, without the auxiliary classifiers."""

    widths = (
        (64, 96, 128, 16, 32, 32),
        (128, 128, 192, 32, 96, 64),
        None,
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
        None,
        (256, 160, 320, 32, 128, 128),
        (384, 192, 384, 48, 128, 128),
    )

    def __init__(self, share=1, classes=1000):
        super().__init__()
        self.conv1 = ConvBn(3, 64 // share, kernel_size=7, stride=2, padding=3)
        self.conv2 = ConvBn(64 // share, 64 // share, kernel_size=1)
        self.conv3 = ConvBn(64 // share, 192 // share, kernel_size=3, padding=1)
        blocks, channels = [], 192 // share
        for widths in self.widths:
            if widths is None:
                blocks.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
                continue
            blocks.append(Inception(channels, *(width // share for width in widths)))
            channels = blocks[-1].channels
        self.blocks, self.dropout, self.fc = nn.Sequential(*blocks), nn.Dropout(0.2), nn.Linear(channels, classes)

    def forward(self, x):
        x = F.max_pool2d(self.conv1(x), 3, stride=2, ceil_mode=True)
        x = F.max_pool2d(self.conv3(self.conv2(x)), 3, stride=2, ceil_mode=True)
        x = torch.flatten(F.adaptive_avg_pool2d(self.blocks(x), (1, 1)), 1)
        return self.fc(self.dropout(x))


class Fire(nn.Module):
    def __init__(self, cin, squeezed, expanded):
        super().__init__()
        self.squeeze = nn.Conv2d(cin, squeezed, 1)
        self.expand1x1, self.expand3x3 = nn.Conv2d(squeezed, expanded, 1), nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x), inplace=True)
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """Iandola et al. 2016, version 1.1; its classifier is a convolution that is averaged."""

    def __init__(self, share=1, classes=1000):
        super().__init__()
        layers = [nn.Conv2d(3, 64 // share, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)]
        cin = 64 // share
        for entry in ((16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256)):
            if entry is None:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
                continue
            squeezed, expanded = (size // share for size in entry)
            layers.append(Fire(cin, squeezed, expanded))
            cin = 2 * expanded
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(cin, classes, 1), nn.ReLU(True), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x):
        return torch.flatten(self.classifier(self.features(x)), 1)


class DeepLab(nn.Module):
    """Atrous spatial pyramid pooling behind a small backbone, low-level features joined (Chen et al. 2018)."""

    def __init__(self, width=64, pooled=256, classes=21):
        super().__init__()
        self.low = nn.Sequential(
            ConvBn(3, width, kernel_size=3, stride=2, padding=1), ConvBn(width, width, kernel_size=3, padding=1)
        )
        self.high = nn.Sequential(
            ConvBn(width, 2 * width, kernel_size=3, stride=2, padding=1),
            ConvBn(2 * width, 4 * width, kernel_size=3, padding=2, dilation=2),
        )
        wide = [ConvBn(4 * width, pooled, kernel_size=3, padding=rate, dilation=rate) for rate in (6, 12, 18)]
        self.pyramid = nn.ModuleList([ConvBn(4 * width, pooled, kernel_size=1), *wide])
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBn(4 * width, pooled, kernel_size=1))
        self.project = nn.Sequential(ConvBn(5 * pooled, pooled, kernel_size=1), nn.Dropout(0.5))
        self.reduce = ConvBn(width, width // 2, kernel_size=1)
        self.head = nn.Sequential(
            ConvBn(pooled + width // 2, pooled, kernel_size=3, padding=1),
            nn.Conv2d(pooled, classes, 1),
        )

    def forward(self, x):
        low = self.low(x)
        high = self.high(low)
        image = F.interpolate(self.image(high), size=high.shape[-2:], mode="bilinear", align_corners=False)
        high = self.project(torch.cat([*(branch(high) for branch in self.pyramid), image], dim=1))
        high = F.interpolate(high, size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.head(torch.cat([self.reduce(low), high], dim=1))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Generator(nn.Module):
    """Vector to image with transposed convolutions (DCGAN, Radford et al. 2016) behind a linear layer."""

    def __init__(self, width=64, latent=100):
        super().__init__()
        self.width = width
        self.project = nn.Linear(latent, 8 * width * 4 * 4)
        layers = [nn.BatchNorm2d(8 * width), nn.ReLU(True)]
        for factor in (8, 4, 2):
            cin, cout = factor * width, factor * width // 2
            layers += [nn.ConvTranspose2d(cin, cout, 4, 2, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(True)]
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z):
        return self.main(self.project(z).view(-1, 8 * self.width, 4, 4))


class DoubleConv(nn.Sequential):
    def __init__(self, cin, cout):
        layers = []
        for source in (cin, cout):
            layers += [nn.Conv2d(source, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class Up(nn.Module):
    """Transposed convolution, padded to the skip's size as common implementations do."""

    def __init__(self, cin, cout):
        super().__init__()
        self.up, self.conv = nn.ConvTranspose2d(cin, cin // 2, 2, stride=2), DoubleConv(cin, cout)

    def forward(self, x, skip):
        x = self.up(x)
        high, wide = skip.size()[2] - x.size()[2], skip.size()[3] - x.size()[3]
        x = F.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    """Ronneberger et al. 2015."""

    def __init__(self, width=64, depth=4, classes=2):
        super().__init__()
        self.inc = DoubleConv(3, width)
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), DoubleConv(width << index, width << index + 1)) for index in range(depth)
        )
        self.up = nn.ModuleList(Up(width << index + 1, width << index) for index in reversed(range(depth)))
        self.outc = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        skips = [self.inc(x)]
        for down in self.down:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up in self.up:
            x = up(x, skips.pop())
        return self.outc(x)


class ConvSilu(nn.Module):
    def __init__(self, cin, cout, kernel=1, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
        self.bn, self.act = nn.BatchNorm2d(cout, eps=0.001), nn.SiLU(inplace=True)

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class YoloBottleneck(nn.Module):
    def __init__(self, channels, shortcut):
        super().__init__()
        self.cv1, self.cv2, self.add = ConvSilu(channels, channels, 3), ConvSilu(channels, channels, 3), shortcut

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Cross-stage partial bottleneck with two convolutions: split, bottlenecks in a row, all concatenated."""

    def __init__(self, cin, cout, count=1, shortcut=False):
        super().__init__()
        self.c = cout // 2
        self.cv1, self.cv2 = ConvSilu(cin, 2 * self.c), ConvSilu((2 + count) * self.c, cout)
        self.m = nn.ModuleList(YoloBottleneck(self.c, shortcut) for _ in range(count))

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Sppf(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.cv1, self.cv2 = ConvSilu(cin, cin // 2), ConvSilu(2 * cin, cout)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Detect(nn.Module):
    """Heads of YOLOv8 for three scales: boxes as distributions, classes."""

    def __init__(self, classes, channels, bins=16):
        super().__init__()
        self.outputs = classes + 4 * bins
        box, score = max(16, channels[0] // 4, bins * 4), max(channels[0], min(classes, 100))
        self.cv2 = nn.ModuleList(self._head(c, box, 4 * bins) for c in channels)
        self.cv3 = nn.ModuleList(self._head(c, score, classes) for c in channels)

    @staticmethod
    def _head(cin, inner, cout):
        return nn.Sequential(ConvSilu(cin, inner, 3), ConvSilu(inner, inner, 3), nn.Conv2d(inner, cout, 1))

    def forward(self, features):
        maps = [torch.cat((box(x), score(x)), 1) for x, box, score in zip(features, self.cv2, self.cv3, strict=True)]
        flat = torch.cat([x.view(x.shape[0], self.outputs, -1) for x in maps], 2)
        return flat, maps


class Yolo(nn.Module):
    """YOLOv8 (Jocher et al. 2023); the defaults are the nano network."""

    def __init__(self, width=16, classes=80, bins=16):
        super().__init__()
        w = [width << index for index in range(5)]
        self.stem, self.p2 = (
            ConvSilu(3, w[0], 3, 2),
            nn.Sequential(ConvSilu(w[0], w[1], 3, 2), C2f(w[1], w[1], 1, True)),
        )
        self.p3 = nn.Sequential(ConvSilu(w[1], w[2], 3, 2), C2f(w[2], w[2], 2, True))
        self.p4 = nn.Sequential(ConvSilu(w[2], w[3], 3, 2), C2f(w[3], w[3], 2, True))
        self.p5 = nn.Sequential(ConvSilu(w[3], w[4], 3, 2), C2f(w[4], w[4], 1, True), Sppf(w[4], w[4]))
        self.upsample = nn.Upsample(None, 2, "nearest")
        self.n4, self.n3 = C2f(w[4] + w[3], w[3]), C2f(w[3] + w[2], w[2])
        self.d4, self.m4 = ConvSilu(w[2], w[2], 3, 2), C2f(w[2] + w[3], w[3])
        self.d5, self.m5 = ConvSilu(w[3], w[3], 3, 2), C2f(w[3] + w[4], w[4])
        self.detect = Detect(classes, (w[2], w[3], w[4]), bins)

    def forward(self, x):
        p3 = self.p3(self.p2(self.stem(x)))
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        n4 = self.n4(torch.cat([self.upsample(p5), p4], 1))
        n3 = self.n3(torch.cat([self.upsample(n4), p3], 1))
        m4 = self.m4(torch.cat([self.d4(n3), n4], 1))
        m5 = self.m5(torch.cat([self.d5(m4), p5], 1))
        return self.detect([n3, m4, m5])
