"""Removing channels of any group of any model of the zoo is exact: it equals the dense graph without them."""

import functools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))  # the zoo is a package beside the tests' folders

from zoo import parity
from zoo.reference import ConflictError, NoRuleError, Partial, evaluate
from zoo.registry import ZOO

from paretopress.compressors.program import build_program

FAST = (
    "resnet20_cifar",
    "resnet18",
    "mobilenet_v3",
    "shufflenet_v2",
    "unet",
    "generator",
    "convnext",
    "vit",
    "vit_encoder_layers",
    "mlp_mixer",
    "bert",
    "gpt2",
    "llama",
    "whisper",
    "gru_tagger",
    "ds_cnn",
    "wavenet",
    "siamnet",
    "mlp",
)
EXPECTED_GROUPS = 800


def failures(verdicts):
    return [f"{', '.join(one.groups[:3])} at {one.ratio}: {one.problem}" for one in verdicts if one.problem]


@functools.cache
def everything(name):
    item = parity.subject(name)
    verdicts = (*parity.single_checks(item), *parity.joint_checks(item))
    parity.subject.cache_clear()
    return verdicts


@pytest.mark.parametrize("name", FAST)
def test_all_groups_at_once_and_two_alone(name):
    item = parity.subject(name)
    assert item.free
    picked = torch.randperm(len(item.free), generator=torch.Generator().manual_seed(3))[:2].tolist()
    verdicts = [parity.check(item, item.free, 0.5, 1)]
    verdicts += [parity.check(item, [item.free[index]], 0.5, 2 + index) for index in picked]
    assert verdicts[0].groups
    assert failures(verdicts) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ZOO)
def test_every_group(name):
    verdicts = everything(name)
    assert any(verdict.groups for verdict in verdicts)
    assert failures(verdicts) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_enough_groups_were_tested():
    tested = {(name, one.groups) for name in ZOO for one in everything(name) if len(one.groups) == 1}
    assert len(ZOO) >= 28
    assert len(tested) > EXPECTED_GROUPS


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3", "llama", "t5", "lstm_tagger", "swin"])
def test_the_reference_without_removal_is_the_model(name):
    item = parity.subject(name)
    with parity.double(item.casts):
        wanted = [one for one in parity.pytree.tree_leaves(item.model(*item.args)) if isinstance(one, torch.Tensor)]
        found = evaluate(item.program, item.args, {})
        nothing = {name: torch.ones_like(t) for name, t in item.program.state.items() if t.is_floating_point()}
        also = evaluate(item.program, item.args, nothing)
    for one, other, third in zip(wanted, found, also, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(third, one, rtol=1e-12, atol=1e-12)


class Normed(nn.Module):
    """Statistics, a softmax and a mean over the dimension that loses channels."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, x):
        y = self.norm(self.first(x))
        return self.last(y.softmax(-1)) + y.mean(-1, keepdim=True)


class Attends(nn.Module):
    """One head whose size goes from 6 to 4: the scale must stay that of 6."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 3)

    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), is_causal=True)


KEPT = torch.tensor([0, 2, 3, 5])


def small(kind, *shape):
    torch.manual_seed(1)
    model = kind().double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.uniform_(-1, 1)
    x = torch.randn(shape, dtype=torch.float64)
    return model, x, build_program(model, (x,))


def rows(program, *names, axis=0):
    masks = {}
    for name in names:
        masks[name] = torch.zeros_like(program.state[name]).index_fill_(axis, KEPT, 1.0)
    return masks


def test_the_reference_runs_statistics_over_kept_entries_only():
    model, x, program = small(Normed, 3, 4)
    masks = rows(program, "first.weight", "first.bias", "norm.weight", "norm.bias") | rows(
        program, "last.weight", axis=1
    )
    y = (x @ model.first.weight[KEPT].T) + model.first.bias[KEPT]
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    y = y * model.norm.weight[KEPT] + model.norm.bias[KEPT]
    wanted = y.softmax(-1) @ model.last.weight[:, KEPT].T + model.last.bias + y.mean(-1, keepdim=True)
    torch.testing.assert_close(evaluate(program, [x], masks)[0], wanted, rtol=1e-12, atol=1e-12)


def test_the_reference_keeps_the_dense_scale_of_attention():
    model, x, program = small(Attends, 2, 5, 4)
    masks = rows(program, "q.weight", "q.bias", "k.weight", "k.bias")
    q, k = (x @ layer.weight[KEPT].T + layer.bias[KEPT] for layer in (model.q, model.k))
    scores = (q @ k.mT) / 6**0.5
    scores = scores.masked_fill(~torch.ones(5, 5).tril().bool(), -torch.inf)
    torch.testing.assert_close(evaluate(program, [x], masks)[0], scores.softmax(-1) @ model.v(x))


def test_the_reference_refuses_what_does_not_fit_together():
    _, x, program = small(Normed, 3, 4)
    first = rows(program, "first.weight", "first.bias", "norm.weight", "norm.bias")
    with pytest.raises(ConflictError, match=r"^linear_1 in last: "):  # the consumer keeps its columns
        evaluate(program, [x], first)
    _, x, program = small(Attends, 2, 5, 4)
    with pytest.raises(ConflictError):  # queries lose what keys keep
        evaluate(program, [x], rows(program, "q.weight", "q.bias"))
    masks = {name: torch.ones_like(program.state[name]) for name in ("v.weight", "v.bias")}
    masks["v.weight"][1], masks["v.bias"][1] = 0, 0
    (output,) = evaluate(program, [x], masks)  # the model's own output loses a channel
    assert isinstance(output, Partial)
    assert output.present[..., 1].sum() == 0


def test_the_reference_does_not_guess():
    class Sorts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.last(torch.sort(self.first(x), -1).values)

    _, x, program = small(Sorts, 3, 4)
    with pytest.raises(NoRuleError, match="sort"):
        evaluate(program, [x], rows(program, "first.weight", "first.bias") | rows(program, "last.weight", axis=1))


def test_the_harness_notices_a_dead_group():
    model, x, _ = small(Normed, 3, 4)
    model.first = nn.Sequential(model.first, nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)).double()
    model.first[1].bias.data.fill_(-1e6)   # a ReLU that never lets anything pass
    item = parity.Subject("dead", model.requires_grad_(False), (x,), build_program(model, (x,)))
    groups = {group.name: group for group in item.free}
    assert parity.check(item, [groups["first.0"]], 0.5, 1).problem.startswith("no kept channel changes the output")
    model.first[1].bias.data.fill_(1.0)
    item = parity.Subject("alive", model, (x,), build_program(model, (x,)))
    assert parity.check(item, [groups["first.1"]], 0.5, 1).problem == ""


@pytest.mark.parametrize("name", ["resnet18", "bert"])
def test_the_harness_notices_a_wrong_channel(name, monkeypatch):
    item = parity.subject(name)
    group = next(g for g in item.free if g.size // g.step > 4)
    assert parity.check(item, [group], 0.5, 5).problem == ""
    rightly = parity.presence

    def one_other(program, selection):
        kept = selection[group.name]
        lost = next(c for c in range(0, group.size, group.step) if c not in kept)
        return rightly(
            program, {group.name: torch.cat([kept[group.step :], torch.arange(lost, lost + group.step)]).sort().values}
        )

    monkeypatch.setattr(parity, "presence", one_other)
    assert "of the output's standard deviation" in parity.check(item, [group], 0.5, 5).problem
