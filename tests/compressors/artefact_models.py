"""Small models, captured and calibrated once, that the artefact tests compress in many ways."""

import functools
from dataclasses import dataclass

import pytest
import torch
from layout_models import LAYOUTS, WORDS
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.utils import _pytree as pytree

from paretopress.compressors.calibration import Calibration, calibrate
from paretopress.compressors.entries import Entries
from paretopress.compressors.inputs import DynamicRange, InputGrid
from paretopress.compressors.network import Network
from paretopress.compressors.program import Program, build_program
from paretopress.compressors.tuning import tune
from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.choices import FACTORISATIONS, Binary, Choice, Clustered, Half, Sparse, Weights
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SpaceSettings, build_space

SAMPLES = 48
INTEGERS = tuple(Weights(bits, activations) for bits in (8, 4, 3, 2) for activations in (8, 32))
AFFINE = (Weights(4, 32, "asymmetric", 16), Weights(4, 32, "symmetric", 16), Weights(3, 32, "asymmetric"),
          Weights(8, 32, "tensor"))
OWN_INPUTS = (Weights(8, 16), Weights(4, 4), Weights(4, 16, "asymmetric", 16), Weights(8, ranges="dynamic"),
              Weights(4, ranges="dynamic"))
FORMATS = (*INTEGERS, *AFFINE, Half("fp16"), Half("bf16"), Clustered(2), Clustered(5), Binary(1), Binary(1, 8),
           Binary(1, 1), Binary(3), *OWN_INPUTS)
SPARSITIES = (Sparse(0.5), Sparse(0.03), Sparse(0.5, "2:4"), Sparse(0.4, "2x3"))


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.stride, self.extra = stride, cout - cin

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return F.relu(y + x)


class PadResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 12, 2))
        self.linear = nn.Linear(12, 5)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DepthwiseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.expand, self.bn1 = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.bn2 = nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.reduce = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu(self.bn2(self.depthwise(F.relu(self.bn1(self.expand(x))))))
        return self.head(torch.flatten(x + self.reduce(y), 1))


class NormMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.plain = nn.LayerNorm(16, elementwise_affine=False)
        self.up, self.down, self.head = nn.Linear(16, 24, bias=False), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(self.plain(x)[:, 0])


class GroupNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(4, 12)
        self.conv2, self.norm2 = nn.Conv2d(12, 12, 3, padding=1, padding_mode="circular"), nn.GroupNorm(6, 12)
        self.bn, self.head = nn.BatchNorm2d(12), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        x = x + F.relu(self.norm2(self.conv2(x)))
        return self.head(self.bn(x).mean((2, 3)))


class SequenceNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(2, 8, 5, stride=2, padding=2), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Conv1d(8, 8, 3, padding="same", groups=8), nn.Conv1d(8, 10, 1), nn.ReLU(),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(10, 5),
        )

    def forward(self, x):
        return self.net(x)


class TiedNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight, self.b.bias = self.a.weight, self.a.bias
        self.c, self.d = nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x):
        return self.d(F.relu(self.c(self.b(F.relu(self.a(x))))))


class ActivatedNorm(nn.BatchNorm2d):
    """A normalisation that does more than normalise."""

    def forward(self, x):
        return F.relu(super().forward(x))


class ActivatedNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3), ActivatedNorm(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 5, 3), ActivatedNorm(5)

    def forward(self, x):
        return self.norm2(self.conv2(self.norm1(self.conv1(x)))).mean((2, 3))


class KeywordNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(8, 5)

    def forward(self, first, *, second):
        hidden = torch.relu(self.left(first) + self.right(second))
        return {"logits": self.out(hidden), "norm": hidden.sum(-1)}


class FixedBatchNet(nn.Module):
    """The capture of its loop over samples only fits one batch size."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        hidden = torch.stack([F.relu(self.hidden(row)) for row in x.unbind(0)])
        return self.out(hidden)


class WindowNet(nn.Module):
    """Windows, strides, paddings and dilations that differ between rows and columns."""

    def __init__(self):
        super().__init__()
        self.wide, self.bn1 = nn.Conv2d(3, 10, (3, 5), (1, 2), (1, 2), bias=False), nn.BatchNorm2d(10)
        self.apart = nn.Conv2d(10, 8, (3, 2), (2, 1), (2, 0), (2, 1))
        self.same = nn.Conv2d(8, 8, 3, padding="same")
        self.mirrored = nn.Conv2d(8, 8, 3, padding=(1, 2), padding_mode="reflect")
        self.row, self.head = nn.Conv2d(8, 6, (1, 3)), nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.apart(F.relu(self.bn1(self.wide(x)))))
        x = x + F.relu(self.same(x))
        return self.head(F.relu(self.row(self.mirrored(F.pad(x, (1, 1, 0, 1))))).mean((2, 3)))


IMAGE = (3, 8, 8)
MODELS = {
    "resnet": (PadResNet, {"x": IMAGE}),
    "depthwise": (DepthwiseNet, {"x": IMAGE}),
    "mlp": (NormMlp, {"x": (3, 6)}),
    "group_norm": (GroupNet, {"x": IMAGE}),
    "conv1d": (SequenceNet, {"x": (2, 16)}),
    "tied": (TiedNet, {"x": (6,)}),
    "activated": (ActivatedNet, {"x": IMAGE}),
    "keyword": (KeywordNet, {"first": (4,), "second": (5,)}),
    "fixed_batch": (FixedBatchNet, {"x": (6,)}),
    **LAYOUTS,
}
BESIDE = {"windows": (WindowNet, {"x": (3, 9, 11)})}   # for tests of their own, not under every policy
PLAIN = ("resnet", "depthwise", "mlp", "group_norm", "conv1d", *LAYOUTS)


@dataclass(frozen=True)
class Prepared:
    """A model with everything that compressing it needs."""

    model: nn.Module
    args: tuple[torch.Tensor, ...]
    kwargs: dict[str, torch.Tensor]
    program: Program
    calibration: Calibration
    entries: Entries
    options: dict[str, tuple[Choice | None, ...]]

    @property
    def inputs(self):
        return self.program.flatten_inputs(self.args, self.kwargs)

    def network(self, choices) -> Network:
        stitched = self.entries.stitch(plan(self.program.structure, Policy.of(choices)))
        return tune(self.program, stitched, self.calibration)[0]


def build(name):
    """A model with random weights and statistics that are not trivial, in eval mode."""
    torch.manual_seed(0)
    model = {**MODELS, **BESIDE}[name][0]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        if getattr(module, "weight", None) is not None and module.weight.ndim == 1:
            for parameter in module.parameters(recurse=False):
                nn.init.uniform_(parameter, 0.3, 1.5)
    return model.eval()


@functools.cache
def prepared(name) -> Prepared:
    model = build(name)
    shapes = {**MODELS, **BESIDE}[name][1]
    samples = {
        key: torch.randint(WORDS[name], (SAMPLES, *shape)) if name in WORDS else torch.randn(SAMPLES, *shape)
        for key, shape in shapes.items()
    }
    if name == "fixed_batch":
        samples = {key: tensor[:6] for key, tensor in samples.items()}
    kwargs = {key: samples.pop(key) for key in ("second",) if key in samples}
    args = tuple(samples.values())
    size = 6 if name == "fixed_batch" else 2
    examples = {key: tensor[:size] for key, tensor in kwargs.items()}
    program = build_program(model, tuple(tensor[:size] for tensor in args), examples)
    calibration = calibrate(program, [program.flatten_inputs(args, kwargs)])
    device = Capabilities("any", formats=tuple((choice.bits, choice.activations) for choice in INTEGERS))
    options = dict(build_space(program.structure, [device], SpaceSettings(rank_kinds=FACTORISATIONS)).options)
    # The space drops formats that do not pay; an artefact can hold them all the same.
    takers = {choice: program.structure.takers(choice) for choice in FORMATS}
    options |= {
        unit: (None, *(choice for choice in FORMATS if unit in takers[choice]))
        for unit in list(options) if unit.endswith("/weights")
    }
    options |= {unit.replace("/weights", "/sparsity"): (None, *SPARSITIES)
                for unit in list(options) if unit.endswith("/weights")}
    return Prepared(model, args, kwargs, program, calibration, Entries(program, calibration), options)


def choices_of(item: Prepared, *, keep=False, rank=False, bits=None, activations=32, form=None, sparse=None):
    """The policy that does the same to every free unit."""
    form = Weights(bits, activations) if bits is not None else form
    chosen = {}
    for unit, options in item.options.items():
        kind = unit.rpartition("/")[2]
        wanted = {"channels": keep, "rank": rank, "sparsity": sparse is not None, "weights": form is not None}[kind]
        legal = [option for option in options if option is not None]
        if kind == "rank":
            legal = [option for option in legal if option.kind == (rank if isinstance(rank, str) else "svd")]
        if kind in ("weights", "sparsity"):
            legal = [option for option in legal if option == (form if kind == "weights" else sparse)]
        if wanted and legal:
            chosen[unit] = legal[len(legal) // 2]
    return without_conflicts(chosen)


def without_conflicts(choices):
    """The choices without the sparsity and the ranks that the formats of the layers exclude."""
    excluded = {
        f"{unit.rpartition('/')[0]}/{kind}" for unit, choice in choices.items() if isinstance(choice, Binary)
        for kind in (("sparsity", "rank") if choice.activations == 1 else ("sparsity",))
    }
    return {unit: choice for unit, choice in choices.items() if unit not in excluded}


POLICIES = {
    "dense": {},
    "prune": {"keep": True},
    "rank": {"rank": True},
    "w8a8": {"bits": 8, "activations": 8},
    "w4a8": {"bits": 4, "activations": 8},
    "w3": {"bits": 3},
    "w2": {"bits": 2},
    "mixed": {"keep": True, "rank": True, "bits": 4, "activations": 8},
    "fp16": {"form": Half("fp16")},
    "bf16": {"form": Half("bf16"), "keep": True},
    "w4 in groups": {"form": AFFINE[0], "rank": True},
    "w4 in centred groups": {"form": AFFINE[1], "keep": True},
    "w3 with zero points": {"form": AFFINE[2], "keep": True},
    "w8 with one scale": {"form": AFFINE[3]},
    "clustered": {"form": Clustered(5), "keep": True, "rank": True},
    "signs": {"form": Binary(1), "rank": True},
    "signs a8": {"form": Binary(1, 8), "keep": True},
    "signs a1": {"form": Binary(1, 1)},
    "bases": {"form": Binary(3), "keep": True},
    "sparse": {"sparse": Sparse(0.5), "keep": True},
    "sparse w8a8": {"sparse": Sparse(0.03), "bits": 8, "activations": 8},
    "2:4 w4": {"sparse": Sparse(0.5, "2:4"), "bits": 4, "keep": True, "rank": True},
    "blocks fp16": {"sparse": Sparse(0.4, "2x3"), "form": Half("fp16")},
    "sparse clustered": {"sparse": Sparse(0.5), "form": Clustered(2), "keep": True},
    "w8a16": {"form": OWN_INPUTS[0], "rank": True},
    "w4a4": {"form": OWN_INPUTS[1], "keep": True},
    "w4a16 in groups": {"form": OWN_INPUTS[2]},
    "w8 dynamic": {"form": OWN_INPUTS[3], "keep": True},
    "2:4 w4 dynamic": {"sparse": Sparse(0.5, "2:4"), "form": OWN_INPUTS[4], "rank": True},
}


FACTORS = {
    "nmf w4": {"rank": "nmf", "bits": 4, "keep": True},
    "spatial": {"rank": "spatial", "keep": True},
    "spatial w8a8": {"rank": "spatial", "bits": 8, "activations": 8},
    "tucker": {"rank": "tucker"},
    "tucker w4a8": {"rank": "tucker", "bits": 4, "activations": 8, "keep": True},
    "tucker sparse fp16": {"rank": "tucker", "form": Half("fp16"), "sparse": Sparse(0.5)},
}
FACTORED = ("resnet", "group_norm", "windows")   # models with convolutions that have all kinds of factors


def rounds(network):
    """Whether a network rounds tensors on the way, so that where sums of floats differ a step may be another."""
    own = (part.inputs for parts in network.parts.values() for part in parts)
    return bool(network.ranges) or any(isinstance(inputs, InputGrid | DynamicRange) for inputs in own)


def same(one, other):
    """Whether two outputs are equal, bit for bit."""
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def cases(models):
    """Every model under every policy; formats beside integers on all but a few models are slow tests."""
    for name in models:
        for index, policy in enumerate(POLICIES):
            slow = index >= 8 and name not in ("resnet", "depthwise")
            yield pytest.param(name, policy, marks=[pytest.mark.slow] if slow else [], id=f"{name}-{policy}")
