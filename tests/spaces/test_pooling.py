"""A mean over all positions is the same network as global average pooling, however it is written."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from paretopress.spaces.capture import capture
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.kernels import Family
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.structure import analyse


class Pooled(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 4)
        self.pool = pool

    def forward(self, x):
        return self.fc(self.pool(F.relu(self.conv(x))))


ADAPTIVE = Pooled(lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1))
MEANS = {
    "mean": lambda x: x.mean((2, 3)),
    "negative dimensions": lambda x: torch.mean(x, dim=(-1, -2)),
    "kept, then flattened": lambda x: x.mean((2, 3), keepdim=True).flatten(1),
}
POLICIES = {
    "dense": {},
    "pruned": {"conv/channels": Keep(0.5)},
    "int8": {"conv/weights": Weights(8, 8), "fc/weights": Weights(8, 8)},
    "int8 head": {"fc/weights": Weights(8, 8)},
}


def structure_of(model, *shape):
    return analyse(capture(model, (torch.zeros(2, *shape),)), model)


def priced(structure, choices):
    """What a device prices, without the names of the nodes."""
    view = cost_view(plan(structure, Policy.of(choices)))
    shapes = [
        (k.family, k.weight_bits, k.activation_bits, k.cin, k.cout, k.input_size, k.output_size, k.input_elements)
        for k in view.kernels
    ]
    lives = [(life.size, life.first, life.last) for life in view.lifetimes]
    return shapes, [(b.kind, b.elements, b.rank) for b in view.boundaries], lives


@pytest.mark.parametrize("choices", POLICIES.values(), ids=list(POLICIES))
@pytest.mark.parametrize("mean", MEANS.values(), ids=list(MEANS))
def test_every_way_to_write_it_is_priced_alike(mean, choices):
    expected = priced(structure_of(ADAPTIVE, 3, 8, 8), choices)
    assert priced(structure_of(Pooled(mean), 3, 8, 8), choices) == expected


def test_it_computes_in_integers_between_integer_layers():
    structure = structure_of(Pooled(MEANS["mean"]), 3, 8, 8)
    kernels = cost_view(plan(structure, Policy.of(POLICIES["int8"]))).kernels
    assert [(k.family, k.activation_bits) for k in kernels] == [
        (Family.CONV, 8),
        (Family.GLOBAL_POOL, 8),
        (Family.LINEAR, 8),
    ]


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda x: x.mean((1, 2)), (3, 8, 8)),
        (lambda x: x.mean((1, 2, 3)), (3, 8, 8)),
        (lambda x: x.mean((2, 3), dtype=torch.float64), (3, 8, 8)),
        (lambda x: x.mean(), (3, 8, 8)),
        (lambda x: x.mean(-1), (3, 8)),
        (lambda x: x.mean((2, 3)), (3, 8, 8, 2)),
    ],
)
def test_other_means_stay_as_they_are(model, shape):
    class Mean(nn.Module):
        def forward(self, x):
            return model(x)

    nodes = list(capture(Mean(), (torch.zeros(2, *shape),)).graph.operators())
    assert [node.short_op for node in nodes] == ["mean"]
    assert not nodes[0].arguments.get("keepdim")
