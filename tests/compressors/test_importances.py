"""Every importance against brute force on networks small enough to work it out."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from paretopress.compressors import curvature
from paretopress.compressors.calibration import calibrate
from paretopress.compressors.channel_selection import (
    curvature_scores,
    fisher_scores,
    geometric_median_scores,
    l2_scores,
    scale_scores,
    taylor_scores,
)
from paretopress.compressors.curvature import random_signs, relative_curvature
from paretopress.compressors.entries import Entries
from paretopress.compressors.program import build_program
from paretopress.compressors.ranking import IMPORTANCES
from paretopress.spaces.errors import UnsupportedModelError


class Residual(nn.Module):
    """A stem and a block whose outputs are added: one group with two producers, one with one."""

    def __init__(self, affine=True):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5, affine=affine)
        self.inner = nn.Conv2d(5, 4, 3, padding=1)
        self.outer, self.bn2 = nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5, affine=affine)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.bn2(self.outer(functional.gelu(self.inner(x))))
        return self.fc(torch.relu(x).mean((2, 3)))


class Tower(nn.Module):
    """Linear layers so small that every vector of signs can be tried."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = (layer(x).reshape(x.shape[0], 5, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 5, 8)
        return self.fc(self.o(y).mean(1))


class Prototypes(nn.Module):
    """Distances to prototypes, of which PyTorch has the first derivative only."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.prototypes = nn.Linear(2, 4), nn.Linear(4, 3), nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        return -torch.cdist(self.two(torch.relu(self.one(x))), self.prototypes)


def prepared(model, shape, samples=16):
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                module.weight.data.normal_()
                module.bias.data.normal_()
    model.eval().requires_grad_(False)
    x = torch.randn(samples, *shape)
    program = build_program(model, (x[:2],))
    return model, program, calibrate(program, [(x,)]), x


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    return prepared(Residual(), (2, 6, 6))


def scores(program, calibration, importance, group, **options):
    entries = Entries(program, calibration, importance, **options)
    ranking = entries.ranking(program.structure.coupling.group(group))
    assert torch.equal(ranking.order, entries.order(program.structure.coupling.group(group)))
    return ranking.scores


def groups(program):
    return [group for group in program.structure.coupling.groups if not group.frozen]


def own_loss(logits):
    return functional.cross_entropy(logits, logits.argmax(1), reduction="sum")


def test_the_groups_are_those_of_the_golden_values(residual):
    found = {group.name: group.producers for group in groups(residual[1])}
    assert found == {"stem": ("stem", "outer"), "inner": ("inner",)}


def test_distances_to_the_other_filters_by_hand():
    W = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]])
    assert geometric_median_scores([W]).tolist() == pytest.approx([9.0, 8.0, 7.0])
    more = torch.tensor([[1.0], [1.0], [3.0]])
    assert geometric_median_scores([W, more]).tolist() == pytest.approx([11.0, 10.0, 11.0])
    assert geometric_median_scores([torch.tensor([[0.0], [1.0], [5.0], [6.0]])], block=2).tolist() == [22.0, 22.0]


@pytest.mark.parametrize("count", [3, 40])   # distances of many rows take another path in PyTorch
def test_distances_to_the_other_filters_are_those_of_a_loop_and_do_not_change_with_a_shift(count):
    torch.manual_seed(count)
    W = torch.randn(count, 7, dtype=torch.float64)
    W[1] = W[0]
    expected = [sum(float((one - other).norm()) for other in W) for one in W]
    for shift in (0.0, 1e4):
        assert geometric_median_scores([W + shift]).tolist() == pytest.approx(expected, rel=1e-6)


def test_scales_and_curvature_by_hand():
    assert scale_scores([torch.tensor([[-2.0], [1.0]]), torch.tensor([[0.5], [0.25]])]).tolist() == [2.5, 1.25]
    curved = torch.tensor([[1.0, 2.0], [-9.0, 0.0]])
    assert curvature_scores([curved]).tolist() == [3.0, -9.0]
    assert curvature_scores([curved, curved], block=2).tolist() == [-12.0]


def test_fisher_takes_producers_and_channels_of_a_block_as_independent_and_taylor_does_not():
    one, other = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[-1.0, 1.0], [-3.0, 2.0]])
    assert fisher_scores([one]).tolist() == taylor_scores(one).tolist() == [5.0, 2.0]
    assert fisher_scores([one, other]).tolist() == [10.0, 4.5]
    assert taylor_scores(one + other).tolist() == [0.0, 6.5]
    assert fisher_scores([one], block=2).tolist() == [7.0]


def gated(model, x, gates):
    """The model with a gate on every channel behind each normalised producer."""
    y = torch.relu(model.bn(model.stem(x)) * gates["stem"].reshape(-1, 1, 1))
    inner = functional.gelu(model.inner(y) * gates["inner"].reshape(-1, 1, 1))
    y = y + model.bn2(model.outer(inner)) * gates["outer"].reshape(-1, 1, 1)
    return model.fc(torch.relu(y).mean((2, 3)))


def gate_gradients(model, x):
    """Gradients of each sample's loss to the gates, `(samples, channels)` per producer, one sample at a time."""
    found = {"stem": [], "inner": [], "outer": []}
    for sample in x.split(1):
        gates = {name: torch.ones(4 if name == "inner" else 5, requires_grad=True) for name in found}
        loss = own_loss(gated(model, sample, gates))
        for name, gradient in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
            found[name].append(gradient)
    return {name: torch.stack(rows).double() for name, rows in found.items()}


def test_fisher_and_taylor_are_the_gradients_of_gates_sample_by_sample(residual):
    model, program, calibration, x = residual
    slopes = gate_gradients(model, x)
    fisher = {name: rows.square().mean(0) for name, rows in slopes.items()}
    close = {"rtol": 1e-4, "atol": 1e-7}
    torch.testing.assert_close(scores(program, calibration, "fisher", "inner"), fisher["inner"], **close)
    torch.testing.assert_close(scores(program, calibration, "taylor", "inner"), fisher["inner"], **close)
    both = fisher["stem"] + fisher["outer"]
    torch.testing.assert_close(scores(program, calibration, "fisher", "stem"), both, **close)
    shared = (slopes["stem"] + slopes["outer"]).square().mean(0)
    torch.testing.assert_close(scores(program, calibration, "taylor", "stem"), shared, **close)
    assert (both - shared).abs().max() > 1e-3


def test_scales_are_those_of_the_folded_normalisations_and_l2_where_there_are_none(residual):
    model, program, calibration, _ = residual
    expected = model.bn.weight.double().abs() + model.bn2.weight.double().abs()
    torch.testing.assert_close(scores(program, calibration, "bn_scale", "stem"), expected)
    plain = l2_scores([model.inner.weight.flatten(1)])
    torch.testing.assert_close(scores(program, calibration, "bn_scale", "inner"), plain)
    _, program, calibration, _ = prepared(Residual(affine=False), (2, 6, 6))
    assert torch.equal(
        scores(program, calibration, "bn_scale", "stem"), scores(program, calibration, "l2", "stem")
    )


def test_distances_of_a_group_are_summed_over_its_folded_producers(residual):
    _, program, calibration, _ = residual
    folded = [calibration.folded[program.structure.layer(name).node][0].flatten(1) for name in ("stem", "outer")]
    expected = sum(geometric_median_scores([weight]) for weight in folded)
    torch.testing.assert_close(scores(program, calibration, "fpgm", "stem"), expected)


def test_over_all_vectors_of_signs_the_estimate_is_the_diagonal_of_the_hessian():
    torch.manual_seed(1)
    model, program, calibration, x = prepared(Tower(), (2,))
    shapes = {"a": (2, 2), "b": (3, 2)}
    nodes = {name: program.structure.layer(name).node for name in shapes}

    def loss(a, b):
        return own_loss(model.c(torch.tanh(functional.linear(
            torch.tanh(functional.linear(x, a, model.a.bias)), b, model.b.bias))))

    weights = (model.a.weight.clone(), model.b.weight.clone())
    blocks = torch.autograd.functional.hessian(loss, weights)
    exact = {name: blocks[i][i].reshape(weights[i].numel(), -1).diagonal().reshape(shapes[name]) * weights[i] ** 2
             for i, name in enumerate(shapes)}
    vectors = []
    for signs in itertools.product((-1.0, 1.0), repeat=10):
        row = torch.tensor(signs)
        vectors.append({nodes["a"]: row[:4].reshape(2, 2), nodes["b"]: row[4:].reshape(3, 2)})
    found = relative_curvature(program, calibration, vectors=vectors)
    for name in shapes:
        torch.testing.assert_close(found[nodes[name]], exact[name].double(), rtol=1e-4, atol=1e-5)
    many = relative_curvature(program, calibration, probes=400)
    spread = max(float(value.abs().max()) for value in exact.values())
    for name in shapes:
        assert (many[nodes[name]] - exact[name]).abs().max() < 0.25 * spread
    few = scores(program, calibration, "hessian", "b", seed=5)
    torch.testing.assert_close(few, relative_curvature(program, calibration, seed=5)[nodes["b"]].sum(1))


def test_the_estimate_is_the_same_for_a_seed_and_in_pieces(residual, monkeypatch):
    _, program, calibration, _ = residual
    whole = relative_curvature(program, calibration, seed=2)
    again, other = relative_curvature(program, calibration, seed=2), relative_curvature(program, calibration, seed=3)
    assert all(torch.equal(whole[node], again[node]) for node in whole)
    assert any(not torch.equal(whole[node], other[node]) for node in whole)
    signs = [random_signs(whole, torch.Generator().manual_seed(0))]
    signs = [{node: sign.float() for node, sign in signs[0].items()}]
    found = []
    for samples in (16, 5):
        monkeypatch.setattr(curvature, "_SAMPLES_AT_ONCE", samples)
        found.append(relative_curvature(program, calibration, vectors=signs))
    for node, value in found[0].items():
        torch.testing.assert_close(value, found[1][node], rtol=1e-3, atol=1e-4 * float(value.abs().max()))


def test_vectors_hold_signs_alone():
    generator = torch.Generator().manual_seed(0)
    first, second = (random_signs({"a": torch.zeros(50, 3), "b": torch.zeros(7)}, generator) for _ in range(2))
    for vector in (first, second):
        assert {node: tuple(v.shape) for node, v in vector.items()} == {"a": (50, 3), "b": (7,)}
        assert set(torch.cat([v.flatten() for v in vector.values()]).tolist()) == {-1.0, 1.0}
    assert not torch.equal(first["a"], second["a"])


def test_curvature_goes_through_attention():
    torch.manual_seed(0)
    _, program, calibration, _ = prepared(Attention(), (5, 8))
    found = relative_curvature(program, calibration)
    assert {layer.name for layer in program.structure.layers if layer.node in found} >= {"q", "k", "v"}
    assert all(bool(value.isfinite().all()) and bool(value.any()) for value in found.values())


def test_an_operator_without_second_derivative_is_named_with_what_to_do():
    torch.manual_seed(0)
    _, program, calibration, _ = prepared(Prototypes(), (2,))
    group = next(group for group in groups(program) if group.name == "one")
    with pytest.raises(UnsupportedModelError, match=r"'hessian' needs second .*_cdist_backward.*any other"):
        Entries(program, calibration, "hessian").order(group)
    assert len(Entries(program, calibration, "fisher").order(group)) == 4


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_rankings_are_deterministic_whole_and_the_same_inside_inference_mode(residual, importance):
    _, program, calibration, _ = residual
    for group in groups(program):
        first = Entries(program, calibration, importance).ranking(group)
        assert first.order.sort().values.tolist() == list(range(group.size))
        assert first.scores.shape == (group.size,)
        assert first.scores.dtype == torch.float64
        assert bool(first.scores.isfinite().all())
        if importance != "obs":
            assert bool((first.scores[first.order].diff() >= 0).all())
        with torch.inference_mode():
            again = Entries(program, calibration, importance).ranking(group)
        assert torch.equal(first.order, again.order)
        assert torch.equal(first.scores, again.scores)


def test_what_obs_removes_first_costs_what_compensation_leaves(residual):
    _, program, calibration, _ = residual
    costs = scores(program, calibration, "obs", "inner")
    order = Entries(program, calibration, "obs").order(program.structure.coupling.group("inner"))
    assert int(costs.argmin()) == int(order[0])
    assert bool((costs > 0).all())
