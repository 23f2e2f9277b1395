"""Gradual compression: every step is really smaller, and what it trained is what the next one is made of."""

import pytest
import torch
from artefact_models import prepared
from torch import nn

from paretopress.compressors.calibration import base_network, calibrate
from paretopress.compressors.distillation import DistillationSettings, Student
from paretopress.compressors.entries import Entries
from paretopress.compressors.gradual import gradual_units, in_dense_shapes, on_the_way, removed_blocks
from paretopress.compressors.lasso import ShrunkChannels, ShrunkWeights, blocks_along, trained_to_zero
from paretopress.compressors.network import forward
from paretopress.compressors.program import build_program
from paretopress.evaluators.gradual_construction import stands_for_removal
from paretopress.spaces.choices import Keep, Sparse, Weights
from paretopress.spaces.coupling_groups import Segment
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

MODELS = ("resnet", "depthwise", "mlp", "conv1d", "tied", "activated")


def free_groups(program):
    return [group for group in program.structure.coupling.groups if not group.frozen and group.size > 1]


def test_the_way_to_a_policy_removes_more_and_more_and_leaves_the_rest_for_the_end():
    policy = Policy.of({
        "a/channels": Keep(0.4), "b/channels": Keep(0.0), "a/sparsity": Sparse(0.25), "c/sparsity": Sparse(0.5, "2:4"),
        "d/sparsity": Sparse(0.5, "4x1"), "a/weights": Weights(4, 32),
    })
    steps = [on_the_way(policy, step, 4) for step in range(1, 5)]
    assert [set(step.choices) for step in steps] == [{"a/channels", "a/sparsity", "d/sparsity"}] * 4
    ratios = [step.choices["a/channels"].ratio for step in steps]
    densities = [step.choices["a/sparsity"].density for step in steps]
    assert ratios == sorted(ratios, reverse=True)
    assert densities == sorted(densities, reverse=True)
    assert (ratios[-1], densities[-1]) == (0.4, 0.25)
    assert ratios[0] == pytest.approx(1.0 - 0.6 * (1.0 - 0.75**3))   # Zhu, Gupta 2017, equation 1


@pytest.mark.parametrize("name", MODELS)
def test_a_smaller_network_computes_the_same_in_dense_shapes(name):
    item = prepared(name)
    entries = Entries(item.program, item.calibration)
    names = [group.name for group in free_groups(item.program) if stands_for_removal(entries, group.name)]
    assert names
    network = entries.stitch(plan(item.program.structure, Policy.of({f"{one}/channels": Keep(0.5) for one in names})))
    base = base_network(item.program)
    dense = in_dense_shapes(item.program, network, base)
    inputs = list(item.calibration.inputs)
    with torch.inference_mode():
        small, large = (torch.cat([one.flatten() for one in _tensors(forward(item.program, net, inputs))])
                        for net in (network, dense))
    assert float((small - large).abs().max()) <= 1e-4 * float(large.std())
    for node, parts in dense.parts.items():
        assert parts[0].weight.shape == base.parts[node][0].weight.shape
    gone = removed_blocks(item.program, network.selection)
    for group in free_groups(item.program):
        if group.name in names:
            kept = network.selection[group.name]
            assert sorted([*gone[group.name].tolist(), *(kept // group.step).unique().tolist()]) == list(
                range(group.size // group.step))


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [one for item in (value.values() if isinstance(value, dict) else value) for one in _tensors(item)]


class Normed(nn.Module):
    """The mean of a layer norm runs over the channels that the first layer makes."""

    def __init__(self):
        super().__init__()
        self.widen, self.norm, self.inner, self.out = (
            nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 12), nn.Linear(12, 5))

    def forward(self, x):
        return self.out(torch.relu(self.inner(self.norm(self.widen(x)))))


def test_zeros_do_not_stand_for_channels_that_a_normalisation_runs_over():
    torch.manual_seed(0)
    x = torch.randn(128, 6)
    program = build_program(Normed().eval(), (x[:4],))
    entries = Entries(program, calibrate(program, [(x,)]))
    same = {name: stands_for_removal(entries, name) for name in ("widen", "inner")}
    assert same == {"widen": False, "inner": True}
    policy = Policy.of({f"{name}/channels": Keep(0.5) for name in same})
    assert set(gradual_units(program, policy, same).choices) == {"inner/channels"}


def test_blocks_follow_the_segments_of_an_axis():
    group = type("Group", (), {"name": "b", "step": 2})()
    axis = (Segment("a", 2), Segment("b", 4, inner=3))
    assert blocks_along(axis, group).tolist() == [-1, -1, *[0] * 6, *[1] * 6]
    assert blocks_along((Segment("a", 2),), group) is None
    assert blocks_along(None, group) is None


def test_a_proximal_step_shrinks_what_is_to_go_alike_and_zeros_stay_in_the_end():
    weight = torch.tensor([[4.0, -3.0], [-0.8, 0.1]])
    shrunk = ShrunkWeights(2, latent=weight)
    shrunk.shrink(0.3)   # half of the way: the larger of the two smallest is half of what it was
    assert weight.flatten().tolist() == pytest.approx([4.0, -3.0, -0.4, 0.0])
    weight[0, 1] = -0.2   # training made another one smaller: it goes instead
    shrunk.shrink(0.45)
    assert weight.flatten().tolist() == pytest.approx([4.0, -0.1, -0.4, 0.0])
    shrunk.shrink(0.6)
    assert (weight == 0.0).flatten().tolist() == [False, True, False, True]
    weight += 1.0   # what training would give back
    shrunk.shrink(0.9)
    assert (weight == 0.0).flatten().tolist() == [False, True, False, True]


def test_channels_are_measured_over_all_layers_that_read_them():
    first, second = torch.ones(3, 2, 2), torch.ones(5, 4)
    first[:, 1] = 3.0
    blocks = torch.tensor([0, 1]), torch.tensor([0, 0, 1, -1])
    shrunk = ShrunkChannels(1, latents=[(first, blocks[0]), (second, blocks[1])], blocks=2)
    squares = torch.tensor([1.0 / 5 + 2.0, 9.0 / 5 + 1.0])   # each layer over its mean square: 5 and 1
    assert torch.allclose(shrunk.magnitudes(), squares.sqrt())
    shrunk.multiply(torch.tensor([0.0, 2.0]))
    assert first[:, 0].abs().max() == 0.0
    assert (second[:, :2].abs().max(), float(second[0, 2]), float(second[0, 3])) == (0.0, 2.0, 1.0)


@pytest.mark.parametrize("name", ["resnet", "tied"])
def test_training_ends_with_exactly_the_zeros_that_were_asked_for(name):
    item = prepared(name)
    entries = Entries(item.program, item.calibration)
    groups = [group for group in free_groups(item.program) if stands_for_removal(entries, group.name)]
    sparse = next(layer for layer in item.program.structure.layers if not layer.frozen)
    policy = Policy.of({f"{group.name}/channels": Keep(0.5) for group in groups} | {
        f"{sparse.name}/sparsity": Sparse(0.5)})
    before = {node: parts[0].weight.clone() for node, parts in item.calibration.base.parts.items()}
    base, gone = trained_to_zero(item.program, item.calibration.base, policy, item.calibration.inputs,
                                 DistillationSettings(steps=20, batch_size=8))
    kept = plan(item.program.structure, policy).kept
    for group in groups:
        assert len(gone[group.name]) * group.step == group.size - kept[group.name]
    weight = base.parts[sparse.node][0].weight
    assert int((weight == 0.0).sum()) >= weight.numel() - round(0.5 * weight.numel())
    assert any(not torch.equal(base.parts[node][0].weight, weight) for node, weight in before.items())
    assert all(torch.equal(item.calibration.base.parts[node][0].weight, weight) for node, weight in before.items())
    pruned = Entries(item.program, calibrate(item.program, [tuple(item.calibration.inputs)], base=base), gone=gone)
    only = Policy.of({unit: choice for unit, choice in policy if isinstance(choice, Keep)})
    network = pruned.stitch(plan(item.program.structure, only))
    inputs = list(item.calibration.inputs)
    with torch.inference_mode():
        found, wanted = (torch.cat([one.flatten() for one in _tensors(forward(item.program, net, inputs))])
                         for net in (network, base))
    assert float((found - wanted).abs().max()) <= 1e-2 * float(wanted.std())   # removing zeros changes nothing


def test_a_layer_without_a_place_for_a_bias_gets_none_from_training():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.out = nn.Parameter(torch.randn(8, 12)), nn.Linear(12, 3)

        def forward(self, x):
            return self.out(torch.relu(x @ self.weight))

    torch.manual_seed(0)
    x = torch.randn(64, 8)
    program = build_program(Product().eval(), (x[:4],))
    entries = Entries(program, calibrate(program, [(x,)]))
    (group,) = free_groups(program)
    student = Student(program, entries.calibration.base, DistillationSettings())
    assert student.trained
    base, _ = trained_to_zero(program, entries.calibration.base, Policy.of({f"{group.name}/channels": Keep(0.5)}), (x,),
                              DistillationSettings(steps=5, batch_size=8))
    (layer,) = [one for one in program.structure.layers if not one.takes_bias]
    assert float(base.parts[layer.node][0].bias.abs().max()) == 0.0
