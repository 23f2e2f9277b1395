"""Sizes, stored bytes and the placement of integer arithmetic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from space_zoo import ZOO, specimen
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from paretopress.spaces.arithmetic import FIRST, moves_data
from paretopress.spaces.capture import capture
from paretopress.spaces.choices import Factorised, Keep, Weights
from paretopress.spaces.coupling import ChannelGroup
from paretopress.spaces.errors import PolicyError
from paretopress.spaces.layers import LayerKind
from paretopress.spaces.plan import kept_channels, plan
from paretopress.spaces.policy import DENSE, Policy
from paretopress.spaces.structure import analyse


@pytest.mark.parametrize("name", ZOO)
def test_dense_plan_stores_the_models_state(name):
    example = specimen(name)
    tensors = {tensor.data_ptr(): tensor for tensor in example.model.state_dict().values()}
    assert plan(example.structure, DENSE).stored_bytes == sum(t.nbytes for t in tensors.values())


# Any change gives every free layer a bias: the outputs of all layers behind it are corrected.
# LayerNormMlp has Linear 6-16, LayerNorm 16, Linear 16-32 without bias, Linear 32-16, Linear 16-3.
@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"up/channels": Keep(0.5)}, 4 * (112 + 32 + (16 * 16 + 16) + (16 * 16 + 16) + 51)),
        ({"embed/channels": Keep(0.25)}, 4 * (28 + 8 + (4 * 32 + 32) + (32 * 4 + 4) + 15)),
        ({"head/weights": Weights(8, 32)}, 4 * (112 + 32 + 544 + 528 + 3) + 3 * 16 + 3 * 4),
        ({"head/weights": Weights(3, 32)}, 4 * (112 + 32 + 544 + 528 + 3) + 18 + 3 * 4),
        # integer input: one scale and one zero point
        ({"head/weights": Weights(8, 8)}, 4 * (112 + 32 + 544 + 528 + 3) + 3 * 16 + 3 * 4 + 5),
        ({"down/rank": Factorised("svd", 4)}, 4 * (112 + 32 + 544 + (4 * 32 + 16 * 4 + 16) + 51)),
        (
            {"down/rank": Factorised("svd", 4), "down/weights": Weights(4, 32)},
            4 * (112 + 32 + 544 + 16 + 51) + (4 * 32 + 16 * 4) // 2 + 4 * (4 + 16),
        ),
    ],
)
def test_stored_bytes_by_hand(choices, expected):
    assert plan(specimen("layer_norm_mlp").structure, Policy.of(choices)).stored_bytes == expected


def test_folded_batch_normalisation_leaves_a_bias():
    # stem 3-8 k3 with bias, conv1 8-6 k3 and conv2 6-10 k3 without, projection 8-10 k1, fc 10-4; all folded.
    expected = 4 * (3 * 8 * 9 + 8 + 8 * 6 * 9 + 6 + 6 * 10 * 9 + 10 + 8 * 10 + 10 + 10 * 4 + 4)
    policy = Policy.of({"conv1/channels": Keep(0.5)})
    assert plan(specimen("projection").structure, policy).stored_bytes == expected


def test_normalisation_that_does_not_follow_a_layer_stays():
    structure = specimen("dense_block").structure
    assert structure.folded_state == frozenset()
    assert specimen("projection").structure.folded_layers == {"stem.0", "conv1", "conv2", "project"}
    assert "bn3.num_batches_tracked" in specimen("projection").structure.folded_state


def test_depthwise_layers_follow_their_input():
    planned = plan(specimen("inverted_residual").structure, Policy.of({"expand.0/channels": Keep(0.25)}))
    layers = {layer.layer.name: layer for layer in planned.layers}
    assert layers["depthwise"].shape == (6, 1, 3, 3)
    assert layers["depthwise"].groups == 6
    assert layers["reduce"].shape == (8, 6, 1, 1)
    assert layers["multiply"].groups == 8  # 16 outputs from 8 groups: not one group per output
    assert not layers["stem"].touched


@given(st.integers(1, 40), st.integers(1, 8), st.floats(0, 1, exclude_min=True))
def test_kept_channels_are_whole_steps(blocks, step, ratio):
    kept = kept_channels(ChannelGroup("g", blocks * step, step, (), ()), ratio)
    assert kept % step == 0
    assert step <= kept <= blocks * step
    assert kept == step or abs(kept - ratio * blocks * step) <= step / 2


def test_rank_never_exceeds_what_pruning_leaves():
    choices = {"up/channels": Keep(0.125), "down/rank": Factorised("svd", 8)}
    planned = plan(specimen("layer_norm_mlp").structure, Policy.of(choices))
    down = next(layer for layer in planned.layers if layer.layer.name == "down")
    assert down.rank == 4
    assert down.parts == (("down.0", (4, 4)), ("down.1", (16, 4)))


@pytest.mark.parametrize(
    ("name", "unit", "choice", "message"),
    [
        ("MLP", "upp/weights", Weights(8), "unknown unit 'upp/weights'; did you mean 'up/weights'"),
        ("MLP", "head/channels", Keep(0.5), "'head/channels' is frozen: it reaches the model's output"),
        ("MLP", "up/rank", Factorised("svd", 16), "rank 16 is not below full rank (allowed: 1 to 15)"),
        (
            "inverted_residual",
            "depthwise/rank",
            Factorised("svd", 2),
            "depthwise convolution has no low rank",
        ),
        ("twice", "shared/weights", Weights(8), "its weight is used 2 times"),
    ],
)
def test_policies_of_other_models_are_refused(name, unit, choice, message):
    with pytest.raises(PolicyError) as caught:
        plan(specimen(name.replace("MLP", "layer_norm_mlp")).structure, Policy.of({unit: choice}))
    assert message in str(caught.value)


@st.composite
def integer_policies(draw):
    structure = specimen(draw(st.sampled_from(sorted(ZOO)))).structure
    free = [unit for unit, reason in structure.units.items() if unit.endswith("/weights") and not reason]
    chosen = draw(st.sets(st.sampled_from(free))) if draw(st.booleans()) else set(free)
    choices = {unit: Weights(8, 8) for unit in chosen}
    ranks = [unit for unit, reason in structure.units.items() if unit.endswith("/rank") and not reason]
    for unit in draw(st.sets(st.sampled_from(ranks), max_size=2)):
        layer = structure.layer(unit.removesuffix("/rank"))
        if min(layer.out_channels, layer.columns) > 1:
            choices[unit] = Factorised("svd", 1)
    return structure, Policy.of(choices)


def leads_to_integers(planned, value):
    """Whether an integer kernel reads a value, directly or after it was moved."""
    graph = planned.structure.graph
    main = {n: k.main for k in planned.structure.fusion.kernels for n in (k.main, *k.absorbed)}
    for name in graph.users[value]:
        if main.get(name, name) in planned.arithmetic.integer_kernels and (
            not moves_data(graph.by_name[name]) or leads_to_integers(planned, name)
        ):
            return True
    return False


@given(integer_policies())
@settings(max_examples=150, deadline=None)
def test_integer_placement(case):
    structure, policy = case
    planned = plan(structure, policy)
    arithmetic, graph = planned.arithmetic, structure.graph
    kernels = {kernel.main: kernel for kernel in structure.fusion.kernels}
    layers = {layer.layer.node for layer in planned.layers if layer.activation_bits == 8}
    assert layers <= arithmetic.integer_kernels
    assert len(set(arithmetic.ranges)) == len(arithmetic.ranges)
    assert arithmetic.sources <= set(arithmetic.ranges)
    assert not set(arithmetic.shared) & set(arithmetic.ranges)
    assert all(arithmetic.range_of(tensor) in arithmetic.ranges for tensor in arithmetic.shared)
    produced = {kernels[name].output if name in kernels else name for name in arithmetic.integer_kernels}
    assert not arithmetic.sources & produced - {k.output for m, k in kernels.items() if m in layers}
    for name in arithmetic.integer_kernels:
        node = graph.by_name[name]
        sources = [graph.by_name[source] for source in node.inputs]
        inputs = [
            source.name for source in sources if source.op not in ("parameter", "constant") and source.dtype
        ]
        assert all(arithmetic.is_quantised(tensor) for tensor in inputs), name
        output = kernels[name].output if name in kernels else name
        is_linear = name in layers and kernels[name].layer.kind is LayerKind.LINEAR
        if not is_linear:
            assert arithmetic.is_quantised(output)
        if name in kernels and name not in layers and not moves_data(node):
            assert leads_to_integers(planned, output), name  # floats serve other readers better
        if output in arithmetic.shared:
            assert arithmetic.range_of(output) == arithmetic.range_of(inputs[0])
    for node in graph.operators():
        if moves_data(node) and node.inputs[0] in produced and arithmetic.is_quantised(node.inputs[0]):
            assert node.name in arithmetic.integer_kernels, node.name
    firsts = {tensor for tensor in arithmetic.ranges if tensor.endswith(FIRST)}
    assert firsts == {x.layer.node + FIRST for x in planned.layers if x.rank and x.activation_bits == 8}
    if not layers:
        assert not arithmetic.ranges
        assert not arithmetic.integer_kernels


def test_residual_sum_is_integer_only_between_integers():
    structure = specimen("projection").structure
    everything = {f"{layer.name}/weights": Weights(8, 8) for layer in structure.layers}
    full = plan(structure, Policy.of(everything)).arithmetic
    assert {"add_", "adaptive_avg_pool2d"} <= full.integer_kernels
    assert full.sources == {"x"}
    assert full.range_of("flatten") == "adaptive_avg_pool2d"
    del everything["project/weights"]
    partial = plan(structure, Policy.of(everything)).arithmetic
    assert "add_" not in partial.integer_kernels
    assert partial.sources == {"x", "adaptive_avg_pool2d"}   # what is read through `flatten`
    assert partial.range_of("flatten") == "adaptive_avg_pool2d"


def arithmetic_of(model, *shape):
    """Where a model computes in integers when every layer may."""
    structure = analyse(capture(model, (torch.zeros(2, *shape),)), model)
    free = [unit for unit, reason in structure.units.items() if unit.endswith("/weights") and not reason]
    return plan(structure, Policy.of({unit: Weights(8, 8) for unit in free})).arithmetic


def test_what_is_moved_behind_an_integer_kernel_is_integers_for_floats_too():
    class Outputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return F.max_pool2d(self.conv(x), 2).permute(0, 2, 3, 1)

    arithmetic = arithmetic_of(Outputs(), 3, 8, 8)
    assert arithmetic.integer_kernels == {"conv2d", "max_pool2d", "permute"}
    assert dict(arithmetic.shared) == {"max_pool2d": "conv2d", "permute": "conv2d"}


MOVES = {
    "slice": lambda x: x[:, :, 1:, 1:],
    "permute": lambda x: x.permute(0, 1, 3, 2),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "pad": lambda x: F.pad(x, (1, 0, 0, 0)),
    "chain": lambda x: F.pad(F.max_pool2d(F.pad(x, (1, 1)).transpose(2, 3), 2), (1, 1, 1, 1)),
}


class Moved(nn.Module):
    """An input that is moved in front of a layer; something else may read it too."""

    def __init__(self, move, also):
        super().__init__()
        self.conv, self.move, self.also = nn.Conv2d(3, 8, 3), move, also

    def forward(self, x):
        y = self.move(x)
        return (self.conv(y), self.also(x, y)) if self.also else self.conv(y)


@pytest.mark.parametrize("move", MOVES.values(), ids=list(MOVES))
def test_floats_are_quantised_before_they_are_moved_to_integer_kernels(move):
    arithmetic = arithmetic_of(Moved(move, None), 3, 8, 8)
    assert arithmetic.sources == {"x"}
    assert arithmetic.ranges == ("x", "conv2d")
    assert {arithmetic.range_of(name) for name in arithmetic.shared} == {"x"}
    assert arithmetic.integer_kernels == {"conv2d", *arithmetic.shared}
    beside = arithmetic_of(Moved(move, lambda x, _: torch.sigmoid(x)), 3, 8, 8)
    assert beside == arithmetic   # another reader takes the floats from in front of it
    behind = arithmetic_of(Moved(move, lambda _, y: torch.sigmoid(y)), 3, 8, 8)
    assert behind.integer_kernels == {"conv2d"}   # one that wants the moved floats
    assert behind.sources.isdisjoint({"x"})


class Joined(nn.Module):
    """An input joined with a layer's output and with others, in front of a layer."""

    def __init__(self, others):
        super().__init__()
        self.first, self.second, self.others = nn.Conv2d(3, 8, 1), nn.LazyConv2d(4, 1), others
        self(torch.zeros(1, 3, 4, 4))

    def forward(self, x):
        y = torch.cat([self.first(torch.tanh(x)), x], 1)
        return self.second(torch.cat([y, *self.others(x)], 1) if self.others else y)


def test_an_input_is_joined_in_integers_only_where_the_result_is_read_so():
    arithmetic = arithmetic_of(Joined(None), 3, 4, 4)
    assert "cat" in arithmetic.integer_kernels
    assert arithmetic.sources == {"tanh", "x"}
    arithmetic = arithmetic_of(Joined(lambda x: [torch.sigmoid(x)]), 3, 4, 4)
    assert not {"cat", "cat_1"} & arithmetic.integer_kernels
    assert arithmetic.sources == {"tanh", "cat_1"}  # nothing reads the input in integers
    assert "x" not in arithmetic.ranges


def test_structure_knows_its_layers_and_has_a_fingerprint_of_its_shape():
    structure = specimen("vgg").structure
    with pytest.raises(PolicyError, match=r"did you mean 'features\.3'"):
        structure.layer("feature.3")
    assert structure.fingerprint == specimen.__wrapped__("vgg").structure.fingerprint
    assert structure.fingerprint != specimen("conv1d").structure.fingerprint
