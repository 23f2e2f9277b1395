"""Dropping residual branches: offered only where legal, and what is left computes, costs and stores what it should."""

import pickle

import pytest
import torch
from space_zoo import ZOO, run_graph, specimen

from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.errors import PolicyError
from paretopress.spaces.fusion import is_residual_sum
from paretopress.spaces.kernels import Family
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SpaceSettings, build_space

DEVICE = Capabilities("any", formats=((8, 8),))
DROPPABLE = [(name, group) for name in ZOO for group in specimen(name).structure.branches]


def dropped(name, *groups, **more):
    structure = specimen(name).structure
    return plan(structure, Policy.of({**{f"{group}/channels": Keep(0.0) for group in groups}, **more}))


def zeroed(name, branch):
    """The dense model's values where the branch adds zeros, computed operator by operator."""
    example = specimen(name)
    graph = example.structure.graph
    state = {n: t.clone() for n, t in example.model.state_dict().items()}
    model = pickle.loads(pickle.dumps(example.model))
    tail = graph.by_name[branch.tail]
    for argument in ("weight", "bias"):
        parameter = graph.parameter(tail, argument)
        if parameter is not None:
            state[parameter.target] = torch.zeros_like(state[parameter.target])
    model.load_state_dict(state)
    return run_graph(example.captured, model, [*example.args, *example.kwargs.values()])


def test_every_kind_of_residual_block_of_the_zoo_is_found():
    assert {name for name, _ in DROPPABLE} >= {"cifar_resnet", "projection", "inverted_residual", "layer_norm_mlp"}


@pytest.mark.parametrize(("name", "group"), DROPPABLE)
def test_what_is_left_computes_what_zeros_in_the_branch_give(name, group):
    example = specimen(name)
    branch = example.structure.branches[group]
    values = zeroed(name, branch)
    left = example.structure.without([group])
    graph = left.graph
    assert not set(branch.nodes) & graph.by_name.keys()
    for node in graph.operators():   # every reader of a shortcut finds there what the sum would have been
        for one, other in zip(node.inputs, example.structure.graph.by_name[node.name].inputs, strict=True):
            torch.testing.assert_close(values[one], values[other], rtol=0, atol=0)
    assert graph.outputs == example.structure.graph.outputs


@pytest.mark.parametrize(("name", "group"), DROPPABLE)
def test_the_plan_has_nothing_of_the_branch(name, group):
    structure = specimen(name).structure
    branch = structure.branches[group]
    planned = dropped(name, group)
    assert planned.kept[group] == 0
    assert {layer.layer.name for layer in planned.layers} == {x.name for x in structure.layers} - set(branch.layers)
    kernels = {kernel.name for kernel in cost_view(planned).kernels}
    assert not kernels & {*branch.nodes, branch.sum}
    assert not {kernel.layer for kernel in cost_view(planned).kernels} & set(branch.layers)


def test_a_relu_that_stays_is_a_kernel_and_one_that_does_nothing_is_none():
    identity = dropped("cifar_resnet", "layer1.0.conv1")    # relu(x) of a relu's output
    padded = dropped("cifar_resnet", "layer2.0.conv1")      # and of its pixels and channels of zeros
    for planned in (identity, padded):
        families = [kernel.family for kernel in cost_view(planned).kernels]
        assert Family.ELEMENTWISE not in families
        assert families.count(Family.ADD) + sum("add" in k.fused for k in cost_view(planned).kernels) == 3
    linear = dropped("projection", "conv1")                 # the projection takes the activation over
    assert [k.fused for k in cost_view(linear).kernels if k.layer == "project"] == [("relu",)]


def test_integers_flow_past_a_dropped_branch():
    structure = specimen("cifar_resnet").structure
    integers = {f"{layer.name}/weights": Weights(8) for layer in structure.layers}
    planned = dropped("cifar_resnet", "layer1.1.conv1", "layer2.0.conv1", **integers)
    assert planned.arithmetic.sources == {"x"}
    assert all(k.activation_bits == 8 for k in cost_view(planned).kernels)
    dense = plan(structure, Policy.of(integers))
    saved = sum(layer.stored_bytes for layer in dense.layers) - sum(layer.stored_bytes for layer in planned.layers)
    scales = 5 * (len(dense.arithmetic.ranges) - len(planned.arithmetic.ranges))
    assert dense.stored_bytes - planned.stored_bytes == saved + scales > 0


def test_all_branches_together_leave_the_stem_and_the_head():
    structure = specimen("cifar_resnet").structure
    planned = dropped("cifar_resnet", *structure.branches)
    assert [layer.layer.name for layer in planned.layers] == ["conv1", "fc"]
    assert not [n for n in planned.structure.graph.operators() if is_residual_sum(planned.structure.graph, n)]


def test_the_space_offers_it_last_and_only_where_it_is_legal():
    for name in ZOO:
        structure = specimen(name).structure
        space = build_space(structure, [DEVICE])
        offering = {u.rpartition("/")[0] for u, options in space.options.items() if Keep(0.0) in options}
        assert offering == set(structure.branches)
        assert all(space.options[f"{group}/channels"][-1] == Keep(0.0) for group in offering)
        without = build_space(structure, [DEVICE], SpaceSettings(depth=False))
        assert not [u for u, options in without.options.items() if Keep(0.0) in options]


def test_an_excluded_layer_keeps_its_branch():
    settings = SpaceSettings(exclude=("layer1.0.conv2",))
    space = build_space(specimen("cifar_resnet").structure, [DEVICE], settings)
    assert Keep(0.0) not in space.options["layer1.0.conv1/channels"]
    assert Keep(0.0) in space.options["layer1.1.conv1/channels"]


@pytest.mark.parametrize(
    ("name", "group"), [("projection", "stem.0"), ("squeeze_excite", "conv"), ("vgg", "features.0")]
)
def test_other_groups_cannot_keep_nothing(name, group):
    with pytest.raises(PolicyError, match="keep no channel"):
        plan(specimen(name).structure, Policy.of({f"{group}/channels": Keep(0.0)}))


def test_the_fingerprint_and_pickle_of_a_structure_do_not_change():
    structure = specimen("cifar_resnet").structure
    before = structure.fingerprint
    dropped("cifar_resnet", "layer1.0.conv1")
    copied = pickle.loads(pickle.dumps(structure))
    assert copied.fingerprint == structure.fingerprint == before
    assert copied == structure
