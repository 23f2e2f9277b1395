"""Small models with every wiring that the analysis must understand or freeze."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.utils import _pytree as pytree

from paretopress.spaces.capture import Capture, capture
from paretopress.spaces.graph import Node, Ref
from paretopress.spaces.structure import Structure, analyse


class OptionABlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.stride, self.extra = stride, cout - cin

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(OptionABlock(8, 8, 1), OptionABlock(8, 8, 1))
        self.layer2 = nn.Sequential(OptionABlock(8, 16, 2), OptionABlock(16, 16, 1))
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        x = F.avg_pool2d(x, x.size(3))
        return self.fc(x.view(x.size(0), -1))


class ProjectionNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 10, 3, 1, 1, bias=False), nn.BatchNorm2d(10)
        self.project, self.bn3 = nn.Conv2d(8, 10, 1, 2), nn.BatchNorm2d(10)
        self.fc = nn.Linear(10, 4)

    def forward(self, x):
        x = self.stem(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        y += self.bn3(self.project(x))
        return self.fc(F.adaptive_avg_pool2d(F.relu(y, inplace=True), 1).flatten(1))


class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6(True))
        self.depthwise = nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False)
        self.bn = nn.BatchNorm2d(24)
        self.reduce = nn.Conv2d(24, 8, 1)
        self.multiply = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = F.hardswish(self.stem(x))
        y = x + self.reduce(F.relu6(self.bn(self.depthwise(self.expand(x)))))
        return self.head(self.multiply(y).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 4, 1)
        self.squeeze, self.excite = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 12, 1)

    def forward(self, x):
        x = F.silu(self.conv(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.out(x * gate).mean((2, 3))


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(12 * 2 * 2, 20), nn.BatchNorm1d(20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, 4)
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(14), nn.Conv2d(14, 6, 3, padding=1)
        self.bn3, self.fc = nn.BatchNorm2d(23), nn.Linear(23 * 4 * 4, 3)

    def forward(self, x):
        y = self.stem(x)
        y = torch.cat([y, self.conv1(F.relu(self.bn1(y)))], 1)
        y = torch.cat([y, self.conv2(F.relu(self.bn2(y))), x], 1)
        return self.fc(F.avg_pool2d(F.relu(self.bn3(y)), 2).reshape(x.shape[0], -1))


class GroupNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.gn1 = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(4, 12)
        self.conv2, self.gn2 = nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(6, 12)
        self.conv3, self.fc = nn.Conv2d(12, 8, 1), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.gn1(self.conv1(x)))
        x = x + F.relu(self.gn2(self.conv2(x)))
        return self.fc(F.relu(self.conv3(x)).amax((2, 3)))


class LayerNormMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.up, self.down, self.head = nn.Linear(16, 32, bias=False), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x)


class Conv1dNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(2, 8, 5, stride=2, padding=2),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Conv1d(8, 8, 3, padding="same", groups=8),
            nn.Conv1d(8, 10, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(10, 3),
        )

    def forward(self, x):
        return self.net(x)


class GroupedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.grouped = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.conv2, self.conv3 = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.conv3(F.leaky_relu(self.conv2(self.grouped(F.relu(self.conv1(x)))))).sum((2, 3))


class TiedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 8)
        self.b.weight = self.a.weight
        self.d = nn.Linear(8, 2)

    def forward(self, x):
        return self.d(F.relu(self.c(self.b(F.relu(self.a(x))))))


class TwiceNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.wide, self.last = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = F.relu(self.shared(F.relu(self.shared(F.relu(self.first(x))))))
        return self.last(F.relu(self.wide(x))).mean((2, 3))


class LayerScaleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mid, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.gamma = nn.Parameter(torch.linspace(0.1, 0.8, 8).view(8, 1, 1))
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.out(F.relu(self.mid(x) * self.gamma) * self.scale).mean((2, 3))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.project, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, tokens, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.project(y)
        return (x + self.down(F.gelu(self.up(x))))[:, 0]


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens_up, self.tokens_down = nn.Linear(5, 10), nn.Linear(10, 5)
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x):
        x = x + self.tokens_down(F.gelu(self.tokens_up(x.transpose(1, 2)))).transpose(1, 2)
        return self.down(F.gelu(self.up(x)))


class FixedView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(F.relu(self.conv(x)).mean((2, 3)).view(-1, 8))


class InPlaceNet(nn.Module):
    """Reads a value after it was changed: `x` below is the rectified and then the doubled one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.a(x)
        y = F.relu(x, inplace=True)
        z = self.b(x)
        x.mul_(2.0)
        z += y
        return self.c(F.dropout(z + x, 0.5, self.training, inplace=True)).mean((2, 3))


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, first, *, second):
        hidden = torch.relu(self.left(first) + self.right(second))
        return {"logits": self.out(hidden), "norm": (hidden.sum(-1), None)}


@dataclass(frozen=True)
class Example:
    """A model with its example inputs."""

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    keywords: tuple[tuple[str, tuple[int, ...]], ...] = ()


IMAGE = ((2, 3, 8, 8),)
ZOO: dict[str, Example] = {
    "cifar_resnet": Example(CifarResNet, IMAGE),
    "projection": Example(ProjectionNet, IMAGE),
    "inverted_residual": Example(InvertedResidual, IMAGE),
    "squeeze_excite": Example(SqueezeExcite, IMAGE),
    "vgg": Example(Vgg, IMAGE),
    "dense_block": Example(DenseBlock, IMAGE),
    "group_norm": Example(GroupNormNet, IMAGE),
    "layer_norm_mlp": Example(LayerNormMlp, ((2, 7, 6),)),
    "conv1d": Example(Conv1dNet, ((2, 2, 16),)),
    "grouped": Example(GroupedNet, IMAGE),
    "tied": Example(TiedNet, ((2, 6),)),
    "twice": Example(TwiceNet, IMAGE),
    "layer_scale": Example(LayerScaleNet, IMAGE),
    "attention": Example(Attention, ((2, 5, 16),)),
    "mixer": Example(Mixer, ((2, 5, 6),)),
    "fixed_view": Example(FixedView, IMAGE),
    "in_place": Example(InPlaceNet, IMAGE),
    "keywords": Example(Keywords, ((2, 4),), (("second", (2, 5)),)),
}


@dataclass(frozen=True)
class Specimen:
    """A model of the zoo, captured and analysed."""

    model: nn.Module
    args: tuple[torch.Tensor, ...]
    kwargs: dict[str, torch.Tensor]
    captured: Capture
    structure: Structure

    def outputs(self, model: nn.Module | None = None) -> list[torch.Tensor]:
        """Flat outputs of the model, or of another one on the same inputs."""
        with torch.no_grad():
            result = (model or self.model)(*self.args, **self.kwargs)
        return [leaf for leaf in pytree.tree_leaves(result) if leaf is not None]


@functools.cache
def specimen(name: str) -> Specimen:
    """Build, randomise and analyse a model of the zoo."""
    torch.manual_seed(0)
    example = ZOO[name]
    model = randomised(example.build())
    args = tuple(torch.randn(shape) for shape in example.shapes)
    kwargs = {key: torch.randn(shape) for key, shape in example.keywords}
    captured = capture(model, args, kwargs)
    return Specimen(model, args, kwargs, captured, analyse(captured, model))


def randomised(model: nn.Module) -> nn.Module:
    """Return the model in eval mode with normalisation parameters and statistics that are not trivial."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval().requires_grad_(False)


def run_graph(captured: Capture, model: nn.Module, inputs: list[torch.Tensor]) -> dict[str, Any]:
    """Execute a captured graph operator by operator and return every node's value."""
    state = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    values: dict[str, Any] = {}
    remaining = iter(inputs)
    for node in captured.graph.nodes:
        if node.op == "input":
            values[node.name] = next(remaining)
        elif node.op == "parameter":
            values[node.name] = state[node.target]
        elif node.op == "constant":
            values[node.name] = captured.constants[node.target]
        elif node.op != "output":
            values[node.name] = _run(node, values)
    return values


def _run(node: Node, values: dict[str, Any]) -> Any:
    def fill(value: Any) -> Any:
        if isinstance(value, Ref):
            return values[value.node]
        return [fill(item) for item in value] if isinstance(value, list) else value

    if node.op.startswith("python."):
        return getattr(operator, node.op.rpartition(".")[2])(*(fill(v) for v in node.arguments.values()))
    namespace, name, overload = node.op.split(".")
    target = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    positional = [a.name for a in target._schema.arguments if not a.kwarg_only]
    rest = {a.name: fill(node.arguments[a.name]) for a in target._schema.arguments if a.kwarg_only}
    with torch.no_grad():
        return target(*(fill(node.arguments[name]) for name in positional), **rest)
