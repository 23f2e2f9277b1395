"""Networks for small devices: inverted residuals, squeeze-excite, channel shuffle, depthwise separable."""

from __future__ import annotations

import torch
from torch import nn
from zoo.residual import SqueezeExcite


def divisible(value, divisor=8):
    """Round to a multiple of the divisor, never below 90% of the value (the MobileNet rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def conv_bn(cin, cout, kernel, stride=1, groups=1, activation=nn.ReLU6):
    layers = [
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class MobileNetV1(nn.Module):
    """Howard et al. 2017: depthwise separable convolutions in a row."""

    widths = (64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)
    halved = (2, 4, 6, 12)  # places whose width is the double of the one before: stride 2

    def __init__(self, width=1.0, classes=1000):
        super().__init__()
        cin = divisible(32 * width)
        layers = [conv_bn(3, cin, 3, 2, activation=nn.ReLU)]
        for place, channels in enumerate(self.widths, 1):
            cout, stride = divisible(channels * width), 2 if place in self.halved else 1
            layers += [conv_bn(cin, cin, 3, stride, cin, nn.ReLU), conv_bn(cin, cout, 1, activation=nn.ReLU)]
            cin = cout
        self.model, self.fc = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), nn.Linear(cin, classes)
        self.features = cin

    def forward(self, x):
        return self.fc(self.model(x).view(-1, self.features))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-excite where asked, projection."""

    def __init__(self, cin, inner, cout, kernel, stride, activation, squeeze=None):
        super().__init__()
        layers = [conv_bn(cin, inner, 1, activation=activation)] if inner != cin else []
        layers.append(conv_bn(inner, inner, kernel, stride, inner, activation))
        layers += [squeeze(inner)] if squeeze else []
        self.block = nn.Sequential(*layers, conv_bn(inner, cout, 1, activation=None))
        self.residual = stride == 1 and cin == cout

    def forward(self, x):
        return x + self.block(x) if self.residual else self.block(x)


class MobileNetV2(nn.Module):
    """Sandler et al. 2018."""

    settings = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, width=1.0, classes=1000):
        super().__init__()
        cin = divisible(32 * width)
        features = [conv_bn(3, cin, 3, 2)]
        for expansion, channels, count, stride in self.settings:
            cout = divisible(channels * width)
            for place in range(count):
                step = stride if place == 0 else 1
                features.append(InvertedResidual(cin, cin * expansion, cout, 3, step, nn.ReLU6))
                cin = cout
        last = divisible(1280 * min(1.0, width))
        self.features = nn.Sequential(*features, conv_bn(cin, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class MobileNetV3(nn.Module):
    """Howard et al. 2019, the small network."""

    settings = (
        (3, 16, 16, True, "RE", 2),
        (3, 72, 24, False, "RE", 2),
        (3, 88, 24, False, "RE", 1),
        (5, 96, 40, True, "HS", 2),
        (5, 240, 40, True, "HS", 1),
        (5, 240, 40, True, "HS", 1),
        (5, 120, 48, True, "HS", 1),
        (5, 144, 48, True, "HS", 1),
        (5, 288, 96, True, "HS", 2),
        (5, 576, 96, True, "HS", 1),
        (5, 576, 96, True, "HS", 1),
    )

    def __init__(self, width=1.0, classes=1000):
        super().__init__()
        cin = divisible(16 * width)
        features = [conv_bn(3, cin, 3, 2, activation=nn.Hardswish)]
        for kernel, expanded, channels, squeezed, activation, stride in self.settings:
            inner, cout = divisible(expanded * width), divisible(channels * width)
            act = nn.ReLU if activation == "RE" else nn.Hardswish
            squeeze = (lambda c: SqueezeExcite(c, divisible(c // 4), gate=nn.Hardsigmoid)) if squeezed else None
            features.append(InvertedResidual(cin, inner, cout, kernel, stride, act, squeeze))
            cin = cout
        last, hidden = 6 * cin, divisible(1024 * width)
        self.features = nn.Sequential(*features, conv_bn(cin, last, 1, activation=nn.Hardswish))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(last, hidden),
            nn.Hardswish(inplace=True),
            nn.Dropout(0.2, inplace=True),
            nn.Linear(hidden, classes),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class EfficientNet(nn.Module):
    """Tan and Le 2019, B0."""

    settings = (
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )

    def __init__(self, width=1.0, classes=1000):
        super().__init__()
        cin = divisible(32 * width)
        features = [conv_bn(3, cin, 3, 2, activation=nn.SiLU)]
        for expansion, kernel, stride, channels, count in self.settings:
            cout = divisible(channels * width)
            for place in range(count):
                step, squeezed = stride if place == 0 else 1, max(1, cin // 4)
                squeeze = lambda c, s=squeezed: SqueezeExcite(c, s, nn.SiLU)  # noqa: E731 - bound to this stage
                features.append(InvertedResidual(cin, cin * expansion, cout, kernel, step, nn.SiLU, squeeze))
                cin = cout
        self.features = nn.Sequential(*features, conv_bn(cin, 4 * cin, 1, activation=nn.SiLU))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(4 * cin, classes))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def channel_shuffle(x, groups):
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half are convolved, then both are shuffled."""

    def __init__(self, cin, cout, stride):
        super().__init__()
        self.stride, half = stride, cout // 2
        if stride > 1:
            self.branch1 = nn.Sequential(
                nn.Conv2d(cin, cin, 3, stride, 1, groups=cin, bias=False),
                nn.BatchNorm2d(cin),
                nn.Conv2d(cin, half, 1, bias=False),
                nn.BatchNorm2d(half),
                nn.ReLU(inplace=True),
            )
        self.branch2 = nn.Sequential(
            nn.Conv2d(cin if stride > 1 else half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    """Ma et al. 2018; the defaults are the 1.0x network."""

    def __init__(self, repeats=(4, 8, 4), widths=(24, 116, 232, 464, 1024), classes=1000):
        super().__init__()
        self.conv1 = conv_bn(3, widths[0], 3, 2, activation=nn.ReLU)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, cin = [], widths[0]
        for count, cout in zip(repeats, widths[1:4], strict=True):
            units = [ShuffleUnit(cin if place == 0 else cout, cout, 2 if place == 0 else 1) for place in range(count)]
            stages.append(nn.Sequential(*units))
            cin = cout
        self.stage2, self.stage3, self.stage4 = stages
        self.conv5 = conv_bn(cin, widths[4], 1, activation=nn.ReLU)
        self.fc = nn.Linear(widths[4], classes)

    def forward(self, x):
        x = self.stage4(self.stage3(self.stage2(self.maxpool(self.conv1(x)))))
        return self.fc(self.conv5(x).mean([2, 3]))


class DepthwiseSeparable(nn.Module):
    """DS-CNN for keyword spotting (Zhang et al. 2017), as in MLPerf Tiny."""

    def __init__(self, width=64, blocks=4, classes=12):
        super().__init__()
        layers = [
            nn.Conv2d(1, width, (10, 4), 2, (4, 1), bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.2),
        ]
        for _ in range(blocks):
            layers += [conv_bn(width, width, 3, groups=width, activation=nn.ReLU)]
            layers += [conv_bn(width, width, 1, activation=nn.ReLU)]
        self.features, self.dropout = nn.Sequential(*layers), nn.Dropout(0.4)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        x = self.dropout(self.features(x))
        x = nn.functional.avg_pool2d(x, x.shape[2:])
        return self.fc(x.flatten(1))
