"""The captured graph computes what the model computes, whatever the model's code looks like."""

import copy

import pytest
import torch
from space_zoo import ZOO, randomised, run_graph, specimen
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils import _pytree as pytree

from paretopress.spaces.capture import capture
from paretopress.spaces.errors import DataError, UnsupportedModelError
from paretopress.spaces.graph import Node, Ref
from paretopress.spaces.layers import Holder, LayerKind, find_layers
from paretopress.spaces.mutation import without_mutation


@pytest.mark.parametrize("name", ZOO)
def test_graph_computes_what_the_model_computes(name):
    example = specimen(name)
    values = run_graph(example.captured, example.model, [*example.args, *example.kwargs.values()])
    flat = [values[output] for output in example.captured.graph.outputs]
    for mine, expected in zip(flat, example.outputs(), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_recorded_shapes_are_the_real_ones(name):
    example = specimen(name)
    graph = example.captured.graph
    values = run_graph(example.captured, example.model, [*example.args, *example.kwargs.values()])
    for node in graph.nodes:
        if node.dtype:
            assert node.shape == tuple(values[node.name].shape), node.name
            assert node.dtype == str(values[node.name].dtype).removeprefix("torch.")
    assert graph.dynamic_batch, graph.notes


@pytest.mark.parametrize("name", ["cifar_resnet", "twice", "in_place"])
def test_model_is_not_changed(name):
    example = ZOO[name]
    model = example.build().train()
    before = copy.deepcopy(model.state_dict())
    inputs = tuple(torch.randn(shape) for shape in example.shapes)
    originals = [tensor.clone() for tensor in inputs]
    capture(model, inputs)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(map(torch.equal, inputs, originals))


def test_capture_is_repeatable():
    assert specimen("attention").captured.graph == specimen("attention").captured.graph


def test_in_place_operators_become_functional_and_later_readers_follow():
    graph = specimen("in_place").captured.graph
    assert not [node.op for node in graph.operators() if node.short_op.endswith("_")]
    convolutions = [node for node in graph.operators() if node.short_op == "conv2d"]
    assert [graph.by_name[node.inputs[0]].short_op for node in convolutions] == ["input", "relu", "dropout"]
    doubled = next(node for node in graph.operators() if node.short_op == "mul")
    total = next(node for node in graph.operators() if node.short_op == "add")
    assert total.inputs == (convolutions[1].name, doubled.name)  # z += y reads y after it was doubled


def test_operators_that_nothing_reads_are_dropped():
    class Dead(nn.Module):
        def forward(self, x):
            torch.sigmoid(x)
            first, _ = x.chunk(2, 1)
            return first * 2

    graph = capture(Dead(), (torch.randn(2, 4),)).graph
    assert [node.short_op for node in graph.operators()] == ["chunk", "python.operator.getitem", "mul"]


def test_nested_outputs_and_keyword_inputs_are_named():
    example = specimen("keywords")
    assert example.captured.keywords == ("second",)
    assert example.captured.graph.inputs == ("first", "second")
    flat = [example.args[0] @ torch.ones(4, 1)] * 2
    assert set(pytree.tree_unflatten([*flat, None], example.captured.output_spec)) == {"logits", "norm"}


def test_tied_weights_have_one_name():
    example = specimen("tied")
    assert example.captured.aliases["b.weight"] == "a.weight"
    targets = {node.target for node in example.captured.graph.nodes if node.op == "parameter"}
    assert "a.weight" in targets
    assert "b.weight" not in targets


class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # the line that the message must name
            return x + 1
        return x - 1


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class WritesInput(nn.Module):
    def forward(self, x):
        return F.relu(x, inplace=True) + 1


class WritesView(nn.Module):
    def forward(self, x):
        y = x * 2
        y[:, 0] = 0.0
        return y


class WritesViewReadBefore(nn.Module):
    def forward(self, x):
        y = x * 2
        z = y.flatten(1)
        total = y + 1
        z.relu_()
        return z, total


def _line_of(model: type, text: str) -> int:
    from pathlib import Path

    lines = Path(__file__).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"class {model.__name__}("))
    return next(i for i in range(start, len(lines)) if text in lines[i]) + 1


@pytest.mark.parametrize(
    ("model", "text", "reason"),
    [
        (Branches, "if x.sum()", "cannot be captured"),
        (Counts, "self.calls += 1", "changes its own inputs or state"),
        (WritesInput, "F.relu(x", "changes its own inputs or state"),
        (WritesView, "y[:, 0] = 0.0", "another view of it is read later"),
    ],
)
def test_unsupported_code_is_one_line_that_names_file_and_line(model, text, reason):
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        capture(model(), (torch.randn(2, 4),))
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(f"at {__file__}:{_line_of(model, text)}")


def test_changed_view_is_fine_when_only_the_view_is_read_later():
    model, x = WritesViewReadBefore(), torch.randn(2, 3, 2)
    captured = capture(model, (x,))
    values = run_graph(captured, model, [x])
    for name, expected in zip(captured.graph.outputs, model(x), strict=True):
        torch.testing.assert_close(values[name], expected)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ((), "no inputs"),
        ((torch.tensor(1.0),), "batch dimension"),
        ((torch.randn(1, 4),), "at least 2 samples"),
    ],
)
def test_examples_without_a_batch_are_refused(inputs, reason):
    with pytest.raises(DataError, match=reason):
        capture(nn.Linear(4, 2), inputs)


def test_doubles_as_numpy_makes_them_are_named():
    with pytest.raises(UnsupportedModelError, match=r" \(the model's tensors are float32, its inputs float64\)$"):
        capture(nn.Conv1d(4, 2, 1), (torch.zeros(4, 4, 5, dtype=torch.float64),))


def test_a_model_that_converts_its_inputs_takes_doubles():
    class Converting(nn.Linear):
        def forward(self, x):
            return super().forward(x.float())

    assert capture(Converting(4, 2), (torch.zeros(4, 4, dtype=torch.float64),)).graph.nodes


def test_fixed_batch_is_stated():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.view(2, -1) + torch.zeros(2, 12)

    graph = capture(Fixed(), (torch.randn(2, 3, 4),)).graph
    assert not graph.dynamic_batch
    assert "batch dimension is fixed at 2" in graph.notes[0]


def test_layers_say_what_they_are_and_why_they_are_frozen():
    kinds = {layer.name: layer.kind for layer in specimen("inverted_residual").structure.layers}
    assert kinds["depthwise"] == kinds["multiply"] == LayerKind.DEPTHWISE
    assert kinds["expand.0"] == LayerKind.CONV
    assert kinds["head"] == LayerKind.LINEAR
    assert {x.name: x.kind for x in specimen("grouped").structure.layers}["grouped"] == LayerKind.GROUPED
    twice = {layer.name: layer.frozen for layer in specimen("twice").structure.layers}
    assert list(twice) == ["first", "shared", "wide", "last"]
    assert twice["shared"] == "its weight is used 2 times in one forward pass"
    assert twice["wide"] == ""
    assert "used 2 times" in specimen("tied").structure.layer("a").frozen
    strided = specimen("conv1d").structure.layer("net.0")
    assert (strided.window, strided.stride, strided.padding, strided.columns) == ((5,), (2,), (2,), 10)
    assert specimen("conv1d").structure.layer("net.3").padding == (1,)  # "same"


def test_weights_that_are_not_a_modules_own_are_parameters_of_the_users_code():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.free = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return F.linear(F.linear(x, self.inner.weight), self.free)

    captured = capture(Odd(), (torch.randn(2, 4),))
    found = {layer.name: (layer.holder, layer.frozen) for layer in find_layers(captured.graph)}
    assert found == {"inner": (Holder.CODE, ""), "free": (Holder.CODE, "")}


def test_three_hundred_layers_need_no_recursion():
    from paretopress.spaces.plan import plan
    from paretopress.spaces.policy import DENSE
    from paretopress.spaces.structure import analyse

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(300))

        def forward(self, x):
            x = self.layers[0](x)
            for layer in self.layers[1:]:
                x = x + F.relu(layer(x), inplace=True)
            return x.sum(1)

    model = randomised(Chain())
    structure = analyse(capture(model, (torch.randn(2, 4),)), model)
    assert len(structure.layers) == 300
    assert len(structure.coupling.groups) == 1  # one residual stream
    assert plan(structure, DENSE).stored_bytes == 300 * 20 * 4


def test_readers_of_a_changed_value_read_the_operator_that_changed_it():
    relu, double = "aten.relu_.default", "aten.mul_.Tensor"
    nodes = (
        Node("x", "input"),
        Node("a", "aten.neg.default", ("x",), {"self": Ref("x")}),
        Node("b", relu, ("a",), {"self": Ref("a")}),
        Node("c", double, ("a",), {"self": Ref("a"), "other": 2.0}),
        Node("d", "aten.cat.default", ("a", "b", "c"), {"tensors": [Ref("a"), Ref("b"), Ref("c")], "dim": 0}),
        Node("output", "output", ("d",)),
    )
    result = {node.name: node for node in without_mutation(nodes, dict.fromkeys("abcd", ""))}
    assert (result["b"].op, result["c"].op) == ("aten.relu.default", "aten.mul.Tensor")
    assert (result["b"].inputs, result["c"].inputs, result["d"].inputs) == (("a",), ("b",), ("c",))
    assert result["d"].arguments["tensors"] == [Ref("c")] * 3


@pytest.mark.parametrize(("kind", "count"), [(nn.LSTM, 3), (nn.GRU, 2), (nn.RNN, 2)])
def test_recurrent_layers_are_traced_by_their_shapes_alone(kind, count, monkeypatch):
    """Steps are not traced one by one, results have the shapes of real ones, and PyTorch is left as it was."""
    model = kind(5, 6, 2, batch_first=True, bidirectional=True)
    x = torch.randn(2, 7, 5)
    before = {name: dict(getattr(torch.ops.aten, name).input.py_kernels) for name in ("lstm", "gru", "rnn_tanh")}
    monkeypatch.setattr(torch._decomp.decompositions, "one_layer_rnn", None)   # what goes through the steps
    graph = capture(model, (x,)).graph
    assert {n: dict(getattr(torch.ops.aten, n).input.py_kernels) for n in before} == before
    output, states = model(x)
    states = states if isinstance(states, tuple) else (states,)
    (node,) = (node for node in graph.operators() if node.short_op in before)
    results = [n for n in graph.operators() if node.name in n.inputs]
    shapes = {n.arguments["arg1"]: n.shape for n in results}
    real = [tuple(one.shape) for one in (output, *states)]
    assert shapes == {index: real[index] for index in shapes}
    assert len(shapes) == count
    assert graph.dynamic_batch
