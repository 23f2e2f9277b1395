"""Layers of every kind have units, or a reason that names what they are."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.capture import capture
from paretopress.spaces.choices import Weights
from paretopress.spaces.layers import LayerKind
from paretopress.spaces.space import build_space
from paretopress.spaces.structure import analyse

DEVICE = Capabilities("any", formats=((8, 8), (8, 32), (4, 32)))


class Around(nn.Module):
    """Something between two linear layers, with tensors of its own."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function, self.own = function, nn.ModuleDict(modules)
        self.table = nn.Parameter(torch.randn(4, 4))
        self.batched = nn.Parameter(torch.randn(3, 4, 4))
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self.function(self, self.first(x)))


def space_of(function, **modules):
    model = Around(function, **modules).eval().requires_grad_(False)
    x = torch.randn(2, 3, 4)
    structure = analyse(capture(model, (x,)), model)
    return structure, build_space(structure, [DEVICE])


LEFT = {
    "conv3d": (lambda m, x: m.own["a"](x[:, None, None]).mean((1, 2)), {"a": nn.Conv3d(1, 4, 1)}, "3-d convolutions"),
    "lstm": (lambda m, x: m.own["a"](x)[0], {"a": nn.LSTM(4, 4, batch_first=True)}, r"\(lstm\) holds its gates"),
    "gru": (lambda m, x: m.own["a"](x)[0], {"a": nn.GRU(4, 4, batch_first=True)}, r"\(gru\) holds its gates"),
    "bilinear": (lambda m, x: m.own["a"](x, x), {"a": nn.Bilinear(4, 4, 4)}, r"products of two inputs \(bilinear\)"),
    "weight_norm": (
        lambda m, x: m.own["a"](x), {"a": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))}, "computed from it"),
    "summand": (lambda m, x: x[:, :1] + m.table, {}, r"combined element by element \(add\)"),
    "left side": (lambda m, x: m.table @ x.transpose(1, 2), {}, r"in a product \(matmul\) that is no linear layer"),
    "batched": (lambda m, x: x[:, :, None] @ m.batched, {}, r"in a product \(matmul\) that is no linear layer"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_dense_says_why(name):
    function, modules, reason = LEFT[name]

    def flat(m, x):
        y = function(m, x)
        return y.flatten(1)[:, :4]

    structure, space = space_of(flat, **modules)
    units = [unit for unit, choice, _ in space.dropped if choice == "*" and unit not in structure.units]
    assert units, space.dropped
    for unit in units:
        (found,) = (why for other, _, why in space.dropped if other == unit)
        assert re.search(reason, found), found


FORMS = {
    "matmul": (lambda m, x: x @ m.table, True),
    "matmul of a view": (lambda m, x: x @ m.table.t(), False),
    "twice turned": (lambda m, x: F.linear(x, m.table.t().transpose(0, 1)), False),
    "linear": (lambda m, x: F.linear(x, m.table), False),
    "linear of a view": (lambda m, x: F.linear(x, m.table.permute(1, 0)), True),
    "mm": (lambda m, x: torch.mm(x.flatten(0, 1), m.table).view(-1, 3, 4), True),
    "addmm": (lambda m, x: torch.addmm(m.first.bias * 1.0, x.flatten(0, 1), m.table).view(-1, 3, 4), None),
    "einsum": (lambda m, x: torch.einsum("nti,io->nto", x, m.table), True),
    "einsum by rows": (lambda m, x: torch.einsum("nti,oi->nto", x, m.table), False),
    "einsum of another dimension": (lambda m, x: torch.einsum("nit,io->not", x.transpose(1, 2), m.table).mT, None),
    "twice": (lambda m, x: (x @ m.table) @ m.table, None),
}


@pytest.mark.parametrize("name", FORMS)
def test_products_with_a_matrix_are_linear_layers_in_either_layout(name):
    function, flipped = FORMS[name]
    structure, space = space_of(function)
    layers = {layer.name: layer for layer in structure.layers}
    if flipped is None:   # something that is no linear layer, or one that stays as it is, each with its reason
        frozen = layers["table"].frozen if "table" in layers else ""
        assert frozen or any(unit == "table/weights" for unit, _, _ in space.dropped)
        return
    assert (layers["table"].kind, layers["table"].flipped, layers["table"].frozen) == (LayerKind.LINEAR, flipped, "")
    assert Weights(8, 8) in space.options["table/weights"]


def test_kinds_without_integer_kernels_are_offered_storage_only():
    structure, space = space_of(
        lambda m, x: m.own["words"](x[..., 0].argmax(1))[:, None] + m.own["up"](x)[:, :, :4],
        up=nn.ConvTranspose1d(3, 3, 3, padding=1, groups=3), words=nn.Embedding(3, 4),
    )
    kinds = {layer.name: layer.kind for layer in structure.layers}
    assert (kinds["own.up"], kinds["own.words"]) == (LayerKind.TRANSPOSED, LayerKind.EMBEDDING)
    for name in ("own.up", "own.words"):
        assert {choice.activations for choice in space.options[f"{name}/weights"] if choice} == {32}
        assert f"{name}/rank" not in space.options
    reasons = {unit: why for unit, choice, why in space.dropped if choice == "*"}
    assert reasons["own.words/rank"].startswith("an embedding is looked up")
    assert reasons["own.up/rank"] == "a grouped transposed convolution has no low rank"
