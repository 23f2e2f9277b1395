"""Every coupling rule, alone: which groups it frees, and that removing them is exact in float64."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

sys.path.append(str(Path(__file__).parents[1]))  # the zoo is a package beside the tests' folders

from zoo import parity
from zoo.registry import randomise

from paretopress.compressors.probe import own_code_failures
from paretopress.compressors.program import build_program

IMAGE, TOKENS = (2, 3, 8, 8), (2, 5, 12)


class Images(nn.Module):
    """Convolutions around a middle that a test gives, with other layers that it uses."""

    def __init__(self, middle, channels=16, width=None, **layers):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.last = nn.Conv2d(width or channels, 4, 1)
        self.layers, self.middle = nn.ModuleDict(layers), middle

    def forward(self, x):
        x = F.silu(self.second(F.silu(self.first(x))))
        return self.last(self.middle(x, self.layers)).mean((2, 3))


class Tokens(nn.Module):
    """Linear layers around a middle that a test gives."""

    def __init__(self, middle, width=12, hidden=16, out=None, **layers):
        super().__init__()
        self.first, self.last = nn.Linear(width, hidden), nn.Linear(out or hidden, 4)
        self.layers, self.middle = nn.ModuleDict(layers), middle

    def forward(self, x):
        return self.last(self.middle(F.silu(self.first(x)), self.layers))


def shuffle(x, _):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def two_parts(x, layers):
    first, second = x.chunk(2, 1)
    return torch.cat([second, layers["a"](first)], 1)


def uneven_parts(x, layers):
    first, second = x.split((6, 10), 1)
    return torch.cat([layers["a"](first), second], 1)


def overlapping(x, layers):
    return layers["a"](x[:, :10]) + layers["b"](x[:, 6:])


def excited(x, layers):
    gate = torch.sigmoid(layers["b"](F.relu(layers["a"](F.adaptive_avg_pool2d(x, 1)))))
    return x * gate


def heads(x, layers, *, causal=False):
    n, t, _ = x.shape
    q, k, v = (layers[name](x).view(n, t, -1, 4).transpose(1, 2) for name in "qkv")
    repeats = q.shape[1] // k.shape[1]
    k, v = (one[:, :, None].expand(n, one.shape[1], repeats, t, 4).reshape(n, -1, t, 4) for one in (k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return layers["o"](y.transpose(1, 2).reshape(n, t, -1))


def by_hand(x, layers):
    """Softmax of products, all three from one layer, the batch merged with the heads."""
    n, t, width = x.shape
    q, k, v = layers["qkv"](x).chunk(3, -1)
    q, k, v = (one.view(n, t, 4, 4).permute(0, 2, 1, 3).reshape(n * 4, t, 4) for one in (q, k, v))
    y = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) / math.sqrt(4), -1), v)
    return layers["o"](y.view(n, 4, t, 4).transpose(1, 2).reshape(n, t, width))


def five_dimensions(x, layers):
    n, t, _ = x.shape
    q, k, v = layers["qkv"](x).reshape(n, t, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
    y = torch.einsum("nhts,nhsd->nthd", torch.softmax(torch.einsum("nhtd,nhsd->nhts", q, k) / 2.0, -1), v)
    return layers["o"](y.reshape(n, t, 16))


def crossed(x, layers):
    n, t, _ = x.shape
    memory = layers["memory"](x)
    q = layers["q"](x).view(n, t, 4, 4).transpose(1, 2)
    k, v = (layers[name](memory).view(n, t, 4, 4).transpose(1, 2) for name in "kv")
    return layers["o"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, 16))


def shuffled_units(x, layers):
    """Units of ShuffleNetV2: what passes a unit is interleaved with what it makes, then divided again."""
    n, channels, height, width = x.shape
    for name in "abc":
        passed, read = x.chunk(2, 1)
        x = torch.cat([passed, layers[name](read)], 1)
        x = x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)
    return x


def gated(x, layers):
    signal, gate = layers["up"](x).split(10, -1)
    return layers["down"](signal * torch.sigmoid(gate))


def root_mean_square(x, layers):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * layers["norm"].weight


class Positions(nn.Module):
    """A table of words tied to the head, positions, a class token, a Conv1D layer, normalisation."""

    def __init__(self):
        super().__init__()
        self.words, self.positions = nn.Embedding(11, 12), nn.Parameter(torch.randn(1, 6, 12))
        self.token, self.norm = nn.Parameter(torch.randn(1, 1, 12)), nn.LayerNorm(12)
        self.weight, self.bias = nn.Parameter(torch.randn(12, 20)), nn.Parameter(torch.randn(20))
        self.down, self.head = nn.Linear(20, 12), nn.Linear(12, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.words(x)], 1) + self.positions
        y = self.norm(x)
        y = torch.addmm(self.bias, y.view(-1, y.size(-1)), self.weight).view(*y.shape[:-1], -1)
        return self.head(x + self.down(F.gelu(y)))


def conv(*args, **kwargs):
    return nn.Conv2d(*args, **kwargs)


def linears(**sizes):
    return {name: nn.Linear(*size) for name, size in sizes.items()}


ATTENTION = linears(q=(16, 16), k=(16, 16), v=(16, 16), o=(16, 16))
# The model, its input, and the channels (size, features of each) of every group that must be free.
MODELS = {
    "chunk": (lambda: Images(two_parts, a=conv(8, 8, 1)), IMAGE, {"second": (8, 1), "a": (8, 1)}),
    "split": (lambda: Images(uneven_parts, a=conv(6, 6, 1)), IMAGE, {"second:0": (6, 1), "second:6": (10, 1)}),
    "slices": (
        lambda: Images(overlapping, a=conv(10, 16, 1), b=conv(10, 16, 1)), IMAGE,
        {"second:0": (6, 1), "second:6": (4, 1), "second:10": (6, 1), "a": (16, 1)},
    ),
    "narrow": (
        lambda: Images(lambda x, m: x.narrow(1, 4, 8) + m["a"](x), width=8, a=conv(16, 8, 1)), IMAGE,
        {"second:4": (8, 1)},
    ),
    "shuffle": (lambda: Images(shuffle), IMAGE, {"second": (8, 1)}),
    "shuffled_units": (
        lambda: Images(shuffled_units, **{name: conv(8, 8, 1) for name in "abc"}), IMAGE, {"second:0": (2, 1)},
    ),
    "native_shuffle": (lambda: Images(lambda x, _: F.channel_shuffle(x, 4)), IMAGE, {"second": (4, 1)}),
    "pad": (lambda: Images(lambda x, _: F.pad(x, (0, 0, 0, 0, 2, 3)), width=21), IMAGE, {"second": (16, 1)}),
    "widened": (
        lambda: Images(lambda x, m: F.pad(x, (0, 0, 0, 0, 2, 3)) + m["a"](x), width=21, a=conv(16, 21, 1)), IMAGE,
        {"second": (16, 1), "a:0": (2, 1), "a:18": (3, 1)},
    ),
    "cropped": (
        lambda: Images(lambda x, m: F.pad(x, (0, 0, 0, 0, -2, 3)) + m["a"](x), width=17, a=conv(16, 17, 1)), IMAGE,
        {"second:0": (2, 1), "second:2": (14, 1), "a:14": (3, 1)},
    ),
    "every_second": (lambda: Images(lambda x, _: x[:, 1::2] - x[:, ::2], width=8), IMAGE, {"second": (8, 2)}),
    "grouped": (lambda: Images(lambda x, m: m["a"](x), a=conv(16, 16, 3, groups=4)), IMAGE, {"second": (4, 1)}),
    "many_groups": (
        lambda: Images(lambda x, m: m["a"](x), a=conv(16, 16, 3, groups=8)), IMAGE, {"second": (8, 2), "a": None},
    ),
    "multiplied": (
        lambda: Images(lambda x, m: m["a"](x), width=32, a=conv(16, 32, 3, groups=16)), IMAGE, {"second": (16, 1)},
    ),
    "transposed": (
        lambda: Images(lambda x, m: m["a"](x), width=6, a=nn.ConvTranspose2d(16, 6, 2, 2)), IMAGE,
        {"second": (16, 1), "a": (6, 1)},
    ),
    "transposed_groups": (
        lambda: Images(lambda x, m: m["a"](x), width=8, a=nn.ConvTranspose2d(16, 8, 2, 2, groups=4)), IMAGE, {},
    ),
    "transposed_depthwise": (
        lambda: Images(lambda x, m: m["a"](x), a=nn.ConvTranspose2d(16, 16, 2, 2, groups=16)), IMAGE,
        {"second": (16, 1)},
    ),
    "excite": (lambda: Images(excited, a=conv(16, 6, 1), b=conv(6, 16, 1)), IMAGE, {"second": (16, 1), "a": (6, 1)}),
    "upsample": (lambda: Images(lambda x, _: F.interpolate(x, scale_factor=2)), IMAGE, {"second": (16, 1)}),
    "pixel_shuffle": (lambda: Images(lambda x, _: F.pixel_shuffle(x, 2), width=4), IMAGE, {"second": (4, 4)}),
    "pixel_unshuffle": (lambda: Images(lambda x, _: F.pixel_unshuffle(x, 2), width=64), IMAGE, {"second": (16, 1)}),
    "stack": (lambda: Images(lambda x, m: torch.stack([x, m["a"](x)]).sum(0), a=conv(16, 16, 1)), IMAGE,
              {"second": (16, 1)}),
    "strided": (lambda: Images(lambda x, _: x[:, :, ::2, 1::2]), IMAGE, {"second": (16, 1)}),
    "group_norm": (lambda: Images(lambda x, m: m["a"](x), a=nn.GroupNorm(4, 16)), IMAGE, {"second": (4, 4)}),
    "softmax": (lambda: Images(lambda x, _: x * x.softmax(1)), IMAGE, {"second": (16, 1)}),
    "mean": (lambda: Images(lambda x, _: x - x.mean(1, keepdim=True)), IMAGE, {"second": (16, 1)}),
    "prelu": (lambda: Images(lambda x, m: m["a"](x), a=nn.PReLU(16)), IMAGE, {"second": (16, 1)}),
    "twice": (lambda: Images(lambda x, m: m["a"](m["a"](x)), a=conv(16, 16, 1)), IMAGE, {"second": (16, 1)}),
    "heads": (lambda: Tokens(heads, **ATTENTION), TOKENS, {"first": (16, 1), "q": (4, 4), "o": (16, 1)}),
    "grouped_queries": (
        lambda: Tokens(heads, **linears(q=(16, 24), k=(16, 12), v=(16, 12), o=(24, 16))), TOKENS,
        {"q": (3, 4), "first": (16, 1)},
    ),
    "heads_by_hand": (lambda: Tokens(by_hand, **linears(qkv=(16, 48), o=(16, 16))), TOKENS, {"qkv": (4, 4)}),
    "five_dimensions": (
        lambda: Tokens(five_dimensions, **linears(qkv=(16, 48), o=(16, 16))), TOKENS, {"qkv": (4, 4)},
    ),
    "crossed": (lambda: Tokens(crossed, memory=nn.Linear(16, 10),
                               **linears(q=(16, 16), k=(10, 16), v=(10, 16), o=(16, 16))), TOKENS,
                {"memory": (10, 1), "q": (4, 4)}),
    "module": (
        lambda: Tokens(lambda x, m: m["a"](x, x, x)[0], a=nn.MultiheadAttention(16, 4, batch_first=True)), TOKENS,
        {"first": (16, 1), "a.in_proj_weight": (4, 4), "a.out_proj": (16, 1)},
    ),
    "glu": (lambda: Tokens(gated, **linears(up=(16, 20), down=(10, 16))), TOKENS, {"up": (10, 1)}),
    "rms": (lambda: Tokens(root_mean_square, norm=nn.RMSNorm(16)), TOKENS, {"first": (16, 1)}),
    "rms_norm": (lambda: Tokens(lambda x, m: m["norm"](x), norm=nn.RMSNorm(16)), TOKENS, {"first": (16, 1)}),
    "layer_norm": (lambda: Tokens(lambda x, m: m["norm"](x), norm=nn.LayerNorm(16)), TOKENS, {"first": (16, 1)}),
    "flat": (lambda: Tokens(lambda x, _: x.flatten(1), out=80), TOKENS, {"first": (16, 1)}),
    "repeat": (lambda: Tokens(lambda x, _: x.repeat(1, 1, 3), out=48), TOKENS, {"first": (16, 1)}),
    "interleave": (lambda: Tokens(lambda x, _: x.repeat_interleave(3, 2), out=48), TOKENS, {"first": (16, 1)}),
    "matmul": (
        lambda: Tokens(lambda x, m: x @ m["a"].weight.t() + m["a"].bias, a=nn.Linear(16, 16)), TOKENS,
        {"first": (16, 1), "layers.a": None},
    ),
    "lstm": (
        lambda: Tokens(
            lambda x, m: m["a"](x)[0], out=14, a=nn.LSTM(16, 7, 2, batch_first=True, bidirectional=True)
        ), TOKENS, {"first": (16, 1), "a": (7, 1)},
    ),
    "gru": (lambda: Tokens(lambda x, m: m["a"](x)[0], out=9, a=nn.GRU(16, 9, batch_first=True)), TOKENS,
            {"first": (16, 1), "a": (9, 1)}),
    "weight_norm": (
        lambda: Tokens(lambda x, m: m["a"](x), a=nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))), TOKENS,
        {"first": (16, 1), "layers.a": None},
    ),
    "weight_norm_of_windows": (
        lambda: Images(
            lambda x, m: m["a"](x), a=nn.utils.parametrizations.weight_norm(conv(16, 16, 3, groups=2), dim=2)
        ), IMAGE, {"second": (8, 1)},
    ),
}


def subject(name):
    torch.manual_seed(len(name))
    factory, shape, _ = MODELS[name]
    model = factory()
    randomise(model)
    return prepared(name, model.eval().requires_grad_(False), torch.randn(shape))


def prepared(name, model, x):
    model = model.double()
    x = x.double() if x.is_floating_point() else x
    with parity.double():
        return parity.Subject(name, model, (x,), build_program(model, (x,)))


def free_groups(item):
    return {group.name.removeprefix("layers."): (group.size, group.inner) for group in item.free}


def verdicts(item):
    return [*parity.single_checks(item), *parity.joint_checks(item)]


@pytest.mark.parametrize("name", MODELS)
def test_a_rule_frees_what_it_must_and_removing_it_is_exact(name):
    item = subject(name)
    found = free_groups(item)
    wanted = {group: size for group, size in MODELS[name][2].items() if size is not None}
    assert found.items() >= wanted.items(), item.program.structure.coupling.groups
    assert [verdict for verdict in verdicts(item) if verdict.problem] == []


def test_tables_positions_tokens_and_tied_heads():
    torch.manual_seed(0)
    model = Positions()
    item = prepared("positions", model.eval().requires_grad_(False), torch.randint(11, (2, 5)))
    assert {group.size for group in item.free} == {12, 20}
    assert [verdict for verdict in verdicts(item) if verdict.problem] == []


def test_what_the_users_code_cannot_do_is_run_as_it_was_captured():
    item = subject("five_dimensions")
    with parity.double():
        failures = own_code_failures(item.model, item.program)
    assert set(failures) == {"layers.qkv"}
    assert "does not run with smaller layers" in failures["layers.qkv"]
    assert own_code_failures(subject("heads").model, subject("heads").program) == {}
    with parity.double():
        strict = build_program(item.model, item.args, own_code=True).structure
    assert {name for name, why in strict.units.items() if "does not run with smaller layers" in why} == {
        "layers.qkv/channels"
    }


def test_a_group_that_the_graph_cannot_do_without_is_frozen_by_the_probe(monkeypatch):
    from paretopress.spaces import coupling_rules

    def half_fixed(builder, node):
        batch, axis, *rest = builder.first_axes(node)
        return (batch, (*axis, builder.table.new(16, "a rule that is wrong")), *rest)

    monkeypatch.setitem(coupling_rules._RULES, "repeat_interleave", half_fixed)
    model = Images(lambda x, _: x.repeat_interleave(2, 1).sum(1, keepdim=True), width=1)
    program = build_program(model, (torch.randn(IMAGE),))
    reasons = {group.name: group.frozen for group in program.structure.coupling.groups}
    assert reasons["first"] == ""
    assert "captured graph does not run" in reasons["second"]


def test_both_halves_of_a_gated_linear_unit_keep_the_same_channels():
    model = Tokens(lambda x, m: m["down"](F.glu(m["up"](x), -1)), **linears(up=(16, 20), down=(10, 16)))
    program = build_program(model, (torch.randn(TOKENS),))
    axes = program.structure.coupling.parameters
    assert [(segment.group, segment.size) for segment in axes["layers.up.weight"][0]] == [("layers.up", 10)] * 2
    assert [(segment.group, segment.size) for segment in axes["layers.down.weight"][1]] == [("layers.up", 10)]
    assert own_code_failures(model.eval(), program) == {}


def test_the_analysis_is_linear_in_the_graph():
    """Twice as many blocks, twice as many steps of the union-find: counted, not timed."""
    from paretopress.spaces.capture import capture
    from paretopress.spaces.coupling import analyse_coupling
    from paretopress.spaces.coupling_groups import GroupTable

    def steps(depth):
        layers = [nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(depth)]

        class Chain(nn.Module):
            def __init__(self):
                super().__init__()
                self.blocks = nn.ModuleList(layers)

            def forward(self, x):
                for block in self.blocks:
                    x = x + block(x)
                return x.mean()

        graph = capture(Chain().eval(), (torch.randn(2, 8, 4, 4),)).graph
        counted, original = [0], GroupTable.resolve

        def resolve(self, axis):
            counted[0] += 1
            return original(self, axis)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GroupTable, "resolve", resolve)
            analyse_coupling(graph)
        return counted[0]

    few, many = steps(10), steps(40)
    assert many < 4.5 * few
