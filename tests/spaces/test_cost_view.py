"""What a device prices: operations against torch's own counter, buffers against brute force."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from space_zoo import ZOO, specimen
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from paretopress.spaces.arithmetic import INNER
from paretopress.spaces.capture import capture
from paretopress.spaces.choices import FACTORISATIONS, Factorised, Keep, Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.factor_forms import why_not_factorised
from paretopress.spaces.kernels import Family
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE, Policy
from paretopress.spaces.structure import analyse


def counted_macs(model, args, kwargs):
    """Multiply-accumulates of one sample by torch's counter, which counts two operations each."""
    math = sdpa_kernel(SDPBackend.MATH)  # the fused attention of CPUs is not counted
    with FlopCounterMode(display=False) as counter, torch.no_grad(), math:
        model(*(a[:1] for a in args), **{key: value[:1] for key, value in kwargs.items()})
    return counter.get_total_flops() // 2


def view_of(name, choices):
    return cost_view(plan(specimen(name).structure, Policy.of(choices)))


@pytest.mark.parametrize("name", ZOO)
def test_dense_operations_are_what_torch_counts(name):
    example = specimen(name)
    view = cost_view(plan(example.structure, DENSE))
    assert view.macs == counted_macs(example.model, example.args, example.kwargs)


def test_factorised_layer_is_two_kernels():
    view = view_of("projection", {"conv1/rank": Factorised("svd", 5)})
    first, second = (kernel for kernel in view.kernels if kernel.layer == "conv1")
    assert first.name == "conv1:first"
    assert (first.cin, first.cout, first.window, first.stride) == (8, 5, (3, 3), (2, 2))
    assert (second.cin, second.cout, second.window, second.stride) == (5, 12, (1, 1), (1, 1))
    assert (first.fused, second.fused) == ((), ("relu",))
    assert first.output_elements == second.input_elements == 5 * 4 * 4
    two = nn.Sequential(nn.Conv2d(8, 5, 3, 2, 1), nn.Conv2d(5, 12, 1))
    assert first.macs + second.macs == counted_macs(two, (torch.randn(1, 8, 8, 8),), {})


def test_pruned_operations_by_hand():
    view = view_of("inverted_residual", {"expand.0/channels": Keep(0.5)})
    macs = {kernel.layer: kernel.macs for kernel in view.kernels if kernel.layer}
    assert macs["expand.0"] == 16 * 8 * 12
    assert macs["depthwise"] == 16 * 12 * 9
    assert macs["reduce"] == 16 * 12 * 8
    assert {kernel.family for kernel in view.kernels if kernel.layer == "depthwise"} == {Family.DEPTHWISE}


def test_float_convolution_absorbs_the_residual_sum():
    example = specimen("projection")
    kernels = cost_view(plan(example.structure, DENSE)).kernels
    assert [(str(k.family), k.layer, k.fused) for k in kernels] == [
        ("conv", "stem.0", ("relu",)),
        ("conv", "conv1", ("relu",)),
        ("conv", "project", ()),
        ("conv", "conv2", ("add", "relu")),
        ("global_pool", "", ()),
        ("linear", "fc", ()),
    ]
    assert kernels[3].input_elements == 12 * 16 + 10 * 16  # its own input and the other operand


def test_integer_residual_sum_is_a_kernel_of_its_own():
    layers = specimen("projection").structure.layers
    view = view_of("projection", {f"{layer.name}/weights": Weights(8, 8) for layer in layers})
    addition = next(kernel for kernel in view.kernels if kernel.family is Family.ADD)
    assert (addition.activation_bits, addition.fused) == (8, ("relu",))
    assert [(b.tensor, b.kind, b.elements, b.rank) for b in view.boundaries] == [("x", "quantize", 192, 4)]
    assert view.weight_bytes == sum(x.shape[0] * x.columns + 8 * x.shape[0] for x in layers)


def test_tensor_read_by_integers_and_floats_pays_the_boundary():
    view = view_of("projection", {"conv1/weights": Weights(8, 8)})
    assert [(b.tensor, b.kind) for b in view.boundaries] == [("relu_", "quantize"), ("relu__1", "dequantize")]
    bits = {kernel.layer: (kernel.weight_bits, kernel.activation_bits) for kernel in view.kernels}
    assert bits["conv1"] == (8, 8)
    assert bits["conv2"] == (32, 32)


class Rectified(nn.Module):
    """A rectification that no layer stands in front of; something else may read it."""

    def __init__(self, also):
        super().__init__()
        self.conv, self.also = nn.Conv2d(3, 8, 3), also

    def forward(self, x):
        y = F.relu(x)
        return (self.conv(y), self.also(y)) if self.also else self.conv(y)


@pytest.mark.parametrize(("also", "choice", "families"), [
    (None, Weights(8, 8), ["conv"]),
    (None, Weights(8, 32), ["elementwise", "conv"]),
    (torch.sigmoid, Weights(8, 8), ["elementwise", "conv", "elementwise"]),
])
def test_quantisation_rectifies_what_only_integer_kernels_read(also, choice, families):
    model = Rectified(also)
    structure = analyse(capture(model, (torch.zeros(2, 3, 8, 8),)), model)
    view = cost_view(plan(structure, Policy.of({"conv/weights": choice})))
    assert [str(kernel.family) for kernel in view.kernels] == families
    if families == ["conv"]:
        assert [(boundary.kind, boundary.tensor) for boundary in view.boundaries] == [
            ("quantize", "relu"), ("dequantize", "conv2d"),
        ]
        found = {lifetime.tensor: (lifetime.first, lifetime.last) for lifetime in view.lifetimes}
        assert found == {"x": (-1, 0), "conv2d": (0, 1)}


class Padded(nn.Module):
    """A convolution behind any padding."""

    def __init__(self, pad):
        super().__init__()
        self.conv, self.pad = nn.Conv2d(3, 8, 3), pad

    def forward(self, x):
        return self.conv(self.pad(x)).mean((2, 3))


def padded_and_read_twice(x):
    padded = F.pad(x, (1, 1))
    return padded + padded.amax()


def kernels_behind(pad, choices):
    model = Padded(pad)
    structure = analyse(capture(model, (torch.zeros(2, 3, 8, 8),)), model)
    return cost_view(plan(structure, Policy.of(choices)))


@pytest.mark.parametrize("choices", [{}, {"conv/weights": Weights(8, 8)}], ids=["dense", "int8"])
@pytest.mark.parametrize("pad", [nn.ZeroPad2d((1, 0, 2, 3)), nn.ConstantPad2d(1, 0.0)])
def test_a_convolution_pads_with_zeros_itself(pad, choices):
    view = kernels_behind(pad, choices)
    assert [kernel.family for kernel in view.kernels] == [Family.CONV, Family.GLOBAL_POOL]
    assert view.kernels[0].input_elements == 3 * 8 * 8
    assert view.kernels[0].input_size == (8, 8)
    assert view.kernels[0].output_size == pad(torch.zeros(1, 1, 6, 6)).shape[2:]
    assert [(life.first, life.last) for life in view.lifetimes] == [(-1, 0), (0, 1), (1, 2)]
    converted = [boundary.elements for boundary in view.boundaries if boundary.kind == "quantize"]
    assert converted == ([3 * 8 * 8] if choices else [])


@pytest.mark.parametrize(
    "pad",
    [
        nn.ConstantPad2d(1, 0.5),
        nn.ReflectionPad2d(1),
        nn.ZeroPad2d((2, 2, -1, 0)),
        padded_and_read_twice,
        lambda x: F.pad(x[:, :2], (0, 0, 0, 0, 0, 1)),
    ],
    ids=["other value", "reflection", "crops", "read twice", "channels"],
)
def test_other_paddings_are_kernels(pad):
    families = [kernel.family for kernel in kernels_behind(pad, {}).kernels]
    assert families.index(Family.CONV) > 0


def brute_force_reads(view, planned):
    """For every kernel the buffers it reads: walk back from what it produces to the nearest buffers."""
    graph = planned.structure.graph
    buffers = {kernel.name for kernel in view.kernels} | set(graph.inputs)
    inner = {x.layer.node: [x.layer.name + suffix for suffix in INNER[: len(x.parts) - 1]] for x in planned.layers}
    factorised = {node: names[-1] for node, names in inner.items() if names}
    before = {name: other for names in inner.values() for other, name in itertools.pairwise(names)}

    def walk(start):
        found, todo = set(), list(start)
        while todo:
            node = graph.by_name[todo.pop()]
            if node.name in buffers:
                found.add(node.name)
            elif node.name in factorised:
                found.add(factorised[node.name])
            elif node.short_op != "sym_size":
                todo += node.inputs
        return found

    main_of = {names[0]: main for main, names in inner.items() if names}
    reads = []
    for kernel in view.kernels:
        if kernel.name in main_of:
            reads.append(walk(graph.by_name[main_of[kernel.name]].inputs))
        elif kernel.name in before:
            reads.append({before[kernel.name]})
        elif kernel.name in factorised:
            reads.append({factorised[kernel.name]})
        else:
            reads.append(walk(graph.by_name[kernel.name].inputs))
    return reads, walk(graph.outputs)


@st.composite
def policies(draw):
    name = draw(st.sampled_from(sorted(ZOO)))
    structure = specimen(name).structure
    choices = {}
    for unit, reason in structure.units.items():
        kind = unit.rpartition("/")[2]
        if reason or not draw(st.booleans()):
            continue
        if kind == "channels":
            choices[unit] = Keep(draw(st.sampled_from([0.25, 0.5, 0.75])))
        elif kind == "weights":
            choices[unit] = Weights(draw(st.sampled_from([8, 4])), draw(st.sampled_from([8, 32])))
        elif kind == "rank":
            layer = structure.layer(unit.removesuffix("/rank"))
            if min(layer.shape[:2]) > 1:
                kinds = [one for one in FACTORISATIONS if not why_not_factorised(layer, one)]
                choices[unit] = Factorised(draw(st.sampled_from(kinds)), 1)
    return plan(structure, Policy.of(choices))


@given(policies())
@settings(max_examples=200, deadline=None)
def test_buffers_live_from_their_writer_to_their_last_reader(planned):
    view = cost_view(planned)
    lifetimes = {life.tensor: life for life in view.lifetimes}
    names = [kernel.name for kernel in view.kernels]
    assert len(set(names)) == len(names)
    assert set(lifetimes) == {*names, *planned.structure.graph.inputs}
    reads, returned = brute_force_reads(view, planned)
    for index, read in enumerate(reads):  # the order can be executed
        assert all(lifetimes[tensor].first < index for tensor in read)
    for tensor, life in lifetimes.items():
        assert life.first == (names.index(tensor) if tensor in names else -1)
        readers = [index for index, read in enumerate(reads) if tensor in read]
        if tensor in returned:
            readers.append(len(names))
        assert life.last == max(readers, default=life.first), tensor


@given(policies())
@settings(max_examples=100, deadline=None)
def test_kernels_and_buffers_agree_with_the_plan(planned):
    view = cost_view(planned)
    by_layer = {}
    for kernel in view.kernels:
        by_layer.setdefault(kernel.layer, []).append(kernel)
    for layer in planned.layers:
        uses = sum(
            fused.layer is not None and fused.layer.name == layer.layer.name
            for fused in planned.structure.fusion.kernels
        )
        weights = [shape for _, shape in layer.parts] * uses
        counts = sorted(torch.Size(shape).numel() for shape in weights)
        assert sorted(kernel.weight_elements for kernel in by_layer[layer.layer.name]) == counts
    graph = planned.structure.graph
    for life in view.lifetimes:
        if life.tensor in graph.by_name:
            width = 1 if life.size == torch.Size(planned.shape(life.tensor)).numel() else 4
            integer = planned.arithmetic.is_quantised(life.tensor)
            assert width == (1 if integer and life.tensor not in planned.arithmetic.sources else 4)


@given(policies())
@settings(max_examples=100, deadline=None)
def test_boundaries_stand_where_arithmetic_changes(planned):
    arithmetic, graph = planned.arithmetic, planned.structure.graph
    boundaries = [(boundary.tensor, boundary.kind) for boundary in cost_view(planned).boundaries]
    assert len(set(boundaries)) == len(boundaries)
    assert {tensor for tensor, kind in boundaries if kind == "quantize"} == arithmetic.sources
    owner = {n: k.main for k in planned.structure.fusion.kernels for n in (k.main, *k.absorbed)}
    tensors = {*arithmetic.ranges, *arithmetic.shared} & set(graph.by_name) - arithmetic.sources
    expected = {
        tensor
        for tensor in tensors
        if any(owner.get(user, user) not in arithmetic.integer_kernels for user in graph.users[tensor])
    }
    assert {tensor for tensor, kind in boundaries if kind == "dequantize"} == expected
