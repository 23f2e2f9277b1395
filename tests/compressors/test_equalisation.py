"""Cross-layer equalisation: the function stays, ranges meet, and what cannot be equalised is named."""

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from artefact_models import MODELS, build, prepared
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from paretopress.compressors import distillation
from paretopress.compressors.calibration import base_network, calibrate
from paretopress.compressors.compressed_model import load, network_of
from paretopress.compressors.distillation import DistillationSettings, Student
from paretopress.compressors.entries import Entries
from paretopress.compressors.equalisation import equalised, equalising_factors, find_pairs
from paretopress.compressors.network import forward
from paretopress.compressors.program import build_program
from paretopress.compressors.realise import realise
from paretopress.compressors.refit import refit
from paretopress.compressors.tuning import tune
from paretopress.spaces.choices import Weights
from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

sys.path.append(str(Path(__file__).parents[1]))  # the zoo is a package beside the tests' folders

from zoo import registry

FEWEST_PAIRS = {   # by hand: layers whose channels only go to other layers, through ReLU, pooling and views
    "mobilenet_v1": 27, "vgg16_bn": 15, "resnet20_cifar": 9, "resnet18": 8, "mobilenet_v3": 0, "squeezenet": 8,
    "shufflenet_v2": 16, "densenet": 20,
}
FLOAT_CONSTANTS = ("lstm_tagger", "gru_tagger")   # their captured code makes initial states of 32 bits
QUICK = ("resnet20_cifar", "mobilenet_v1", "mobilenet_v2", "vgg16_bn", "squeezenet", "shufflenet_v2", "regnet_y")


def in_doubles(network):
    """The network in float64, so that nothing but a wrong factor can change an output."""
    def wide(tensor):
        return tensor.double() if tensor.is_floating_point() else tensor

    parts = {node: tuple(replace(part, weight=wide(part.weight), bias=wide(part.bias)) for part in parts)
             for node, parts in network.parts.items()}
    return replace(network, parts=parts, state={name: wide(tensor) for name, tensor in network.state.items()})


def outputs(program, network, inputs, *, wide=True):
    with torch.inference_mode():
        found = forward(program, network, [x.double() if wide and x.is_floating_point() else x for x in inputs])
    return [leaf for leaf in torch.utils._pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in registry.ZOO
])
def test_the_float_function_stays(name):
    example = registry.build(name)
    program = build_program(example.model, example.args)
    wide = name not in FLOAT_CONSTANTS
    base = in_doubles(base_network(program)) if wide else base_network(program)
    found = equalised(base)
    pairs, left = find_pairs(program.structure)
    assert found.equalised == len(pairs) >= FEWEST_PAIRS.get(name, 0)
    assert len(pairs) + len(left) == len(program.structure.layers)
    assert all(left.values())
    computed = [outputs(program, one, example.args, wide=wide) for one in (base, found)]
    for wanted, got in zip(*computed, strict=True):
        tolerance = 1e-9 if wide else 1e-5
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))
    changed = {node for node, parts in found.parts.items()
               if not torch.equal(parts[0].weight, base.parts[node][0].weight)}
    members = {layer.node for pair in pairs for layer in (pair.producer, *(one for one, _ in pair.readers))}
    assert changed <= members
    assert bool(changed) == bool(members)


@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_layout_compute_the_same_in_floats(name):
    item = prepared(name)
    with torch.inference_mode():
        wanted, found = (
            torch.utils._pytree.tree_leaves(forward(item.program, base_network(item.program, equalise=equalise),
                                                    [x[: item.program.graph.batch] for x in item.inputs]))
            for equalise in (False, True)
        )
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


class Chain(nn.Module):
    """Layers of every kind in a row, with whatever passes factors on between them."""

    def __init__(self, activation=None):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=4)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.wide = nn.Linear(6 * 16, 10)
        self.head = nn.Linear(10, 4)
        self.activation = activation or nn.ReLU()

    def forward(self, x):
        x = F.max_pool2d(F.leaky_relu(self.norm(self.first(x)), 0.1), 2)
        x = self.grouped(F.pad(self.activation(self.depthwise(x)), (1, 0, 0, 1)))
        x = F.adaptive_avg_pool2d(F.relu(self.up(F.dropout(x, 0.2, self.training))), 4)
        return self.head(F.relu(self.wide(torch.flatten(x.permute(0, 1, 3, 2), 1))))


def captured(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.weight, 0.2, 2.0)
    return build_program(model.eval(), (torch.randn(4, 3, 8, 8),))


def test_pairs_are_followed_through_everything_that_passes_factors_on():
    program = captured(Chain())
    pairs, left = find_pairs(program.structure)
    names = {pair.producer.name: [reader.name for reader, _ in pair.readers] for pair in pairs}
    row = ["first", "depthwise", "grouped", "up", "wide", "head"]
    assert names == {name: [reader] for name, reader in itertools.pairwise(row)}
    assert left == {"head": "it reaches the model's output"}
    flattened = pairs[3].readers[0][1]
    assert flattened.tolist() == [channel for channel in range(6) for _ in range(16)]
    base = in_doubles(base_network(program))
    x = [torch.randn(4, 3, 8, 8)]
    wanted, found = (outputs(program, one, x)[0] for one in (base, equalised(base)))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_what_makes_a_channel_becomes_as_large_as_what_reads_it():
    program = captured(Chain())
    pairs, _ = find_pairs(program.structure)
    found = equalised(base_network(program))
    for pair in pairs:
        made = found.parts[pair.producer.node][0].weight.abs().flatten(1).amax(dim=1)
        sizes = torch.zeros(pair.count).scatter_reduce_(0, pair.made, made, "amax")
        (reader, numbers), = pair.readers
        weight = found.parts[reader.node][0].weight.abs()
        inputs = weight.reshape(reader.groups, -1, weight.shape[1], weight[0, 0].numel()).amax(dim=(1, 3)).flatten()
        read = torch.zeros(pair.count).scatter_reduce_(0, numbers, inputs, "amax")
        torch.testing.assert_close(sizes, read, rtol=1e-3, atol=0.0)
    again = equalising_factors(pairs, {node: parts[0].weight for node, parts in found.parts.items()})
    assert all(bool(((factors - 1.0).abs() < 1e-2).all()) for factors in again)


@pytest.mark.parametrize(("activation", "reason"), [
    (nn.ReLU6(), "hardtanh in activation reads it"), (nn.GELU(), "gelu in activation reads it"),
    (nn.Sigmoid(), "sigmoid in activation reads it"), (nn.LayerNorm(4), "layer_norm in activation reads it"),
])
def test_operators_that_are_not_positively_homogeneous_stop_it(activation, reason):
    program = captured(Chain(activation))
    pairs, left = find_pairs(program.structure)
    assert "depthwise" not in {pair.producer.name for pair in pairs}
    assert reason in left["depthwise"].replace("relu6", "hardtanh")
    assert len(pairs) == 4


class Meeting(nn.Module):
    """Channels that meet others, a layer that is used twice, and a value that two layers read."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.outer = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
        self.shared = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        y = F.relu(F.relu(self.outer(x)))
        return self.shared(self.shared(F.relu(self.left(y)))), self.head(F.relu(self.right(y)).mean((2, 3)))


def test_channels_that_meet_others_and_layers_that_are_used_twice_are_left_alone():
    torch.manual_seed(0)
    program = build_program(Meeting().eval(), (torch.randn(2, 3, 8, 8),))
    pairs, left = find_pairs(program.structure)
    assert {pair.producer.name for pair in pairs} == {"right"}
    assert "add in the root module" in left["stem"]
    assert left["inner"].startswith("outer reads it: its weight is used 2 times")
    assert left["outer"] == "its weight is used 2 times in one forward pass"
    assert left["left"].startswith("shared reads it")


def test_channels_that_carry_nothing_keep_their_size():
    model = Chain()
    with torch.no_grad():
        model.depthwise.weight[2:4] = 0.0   # a whole group of the grouped layer behind it
        model.wide.weight[3] = 1e-12
        model.head.weight[:, 5] = 0.0
    program = captured(model)
    base, found = base_network(program), equalised(base_network(program))
    nodes = {layer.name: layer.node for layer in program.structure.layers}
    for name, row in (("depthwise", 2), ("wide", 3), ("wide", 5)):
        assert torch.equal(found.parts[nodes[name]][0].bias[row], base.parts[nodes[name]][0].bias[row])
    assert all(bool(torch.isfinite(part.weight).all()) for parts in found.parts.values() for part in parts)


def uneven(program, spread=30.0):
    """The base network with the channels of all pairs rescaled at random: the same function, far from equal."""
    generator = torch.Generator().manual_seed(5)
    base = base_network(program)
    pairs, _ = find_pairs(program.structure)
    weights = dict(base.parts)
    for pair in pairs:
        factors = spread ** (2.0 * torch.rand(pair.count, generator=generator) - 1.0)
        made, rows = weights[pair.producer.node][0], factors[pair.made]
        weights[pair.producer.node] = (made.scaled(rows, torch.zeros_like(rows)),)
        for reader, numbers in pair.readers:
            part = weights[reader.node][0]
            grouped = part.weight.reshape(reader.groups, -1, *part.weight.shape[1:])
            shape = (reader.groups, 1, part.weight.shape[1], *(1,) * len(reader.window))
            weight = grouped / factors[numbers].reshape(shape)
            weights[reader.node] = (replace(part, weight=weight.reshape(part.weight.shape)),)
    return replace(base, parts=weights)


def test_equalisation_undoes_uneven_channels():
    program = captured(Chain())
    first, second = equalised(base_network(program)), equalised(uneven(program))
    for node, parts in first.parts.items():
        torch.testing.assert_close(second.parts[node][0].weight, parts[0].weight, rtol=5e-3, atol=1e-5)


def quantised(item, *, equalise, form, rebuilt=False, seen=(), rounding="feedback"):
    calibration = calibrate(item.program, [item.inputs], equalise=equalise)
    entries = Entries(item.program, calibration, rounding=rounding)
    planned = plan(item.program.structure, Policy.of(item.program.structure.takers(form)))
    if rebuilt:
        return refit(item.program, entries, planned, item.inputs)
    return tune(item.program, entries.stitch(planned), calibration)[0]


@pytest.mark.parametrize("rebuilt", [False, True])
@pytest.mark.parametrize("form", [Weights(8, 8), Weights(4, 32), Weights(8, 32, "tensor")], ids=str)
def test_the_artefact_is_one_like_any_other(form, rebuilt, tmp_path):
    item = prepared("depthwise")
    network = quantised(item, equalise=True, form=form, rebuilt=rebuilt)
    plain = quantised(item, equalise=False, form=form, rebuilt=rebuilt)
    assert network.equalised == len(find_pairs(item.program.structure)[0]) > 0
    compressed, other = (realise(item.model, item.program, one) for one in (network, plain))
    assert (compressed.equalised, other.equalised) == (network.equalised, 0)
    assert compressed.size_bytes == other.size_bytes == compressed.plan.stored_bytes
    compressed.save(tmp_path / "small")
    other.save(tmp_path / "other")
    assert "equalised" not in json.loads((tmp_path / "other" / "delta.json").read_text())
    loaded = load(tmp_path / "small", item.model)
    assert loaded.equalised == network_of(loaded).equalised == network.equalised
    with torch.inference_mode():
        assert torch.equal(loaded(*item.args), compressed(*item.args))
        dense = item.model(*item.args)
        assert float((compressed(*item.args) - dense).abs().max()) < 0.5 * float(dense.abs().max())


def test_a_count_that_is_none_is_refused(tmp_path):
    item = prepared("depthwise")
    delta = realise(item.model, item.program, quantised(item, equalise=True, form=Weights(4, 32))).delta
    plain = {**delta.to_plain(), "equalised": "two"}
    with pytest.raises(ArtifactError, match="equalised"):
        type(delta).from_plain(plain, "delta.json")
    assert type(delta).from_plain(json.loads(json.dumps(delta.to_plain())), "delta.json") == delta


def test_the_teacher_of_an_equalised_student_has_its_values():
    """A student that is not compressed at all is not told to change: its layers' values are the teacher's."""
    item = prepared("depthwise")
    distances = []
    for equalise in (True, False):
        network = quantised(item, equalise=True, form=Weights(8, 32))
        student = Student(item.program, replace(network, equalised=int(equalise)), DistillationSettings())
        distances.append(student.distance([x[:16] for x in item.inputs]))
    assert distances[0] < 1e-3 < distances[1]
    assert distillation.base_network is base_network


def test_the_models_that_tests_build_are_not_changed():
    model = build("depthwise")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    program = build_program(model, (torch.randn(4, 3, 8, 8),))
    state = {name: tensor.clone() for name, tensor in program.state.items()}
    base_network(program, equalise=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, state[name]) for name, tensor in program.state.items())
