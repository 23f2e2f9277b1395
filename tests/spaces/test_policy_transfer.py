"""Carrying policies over: exact reports, all or nothing, and models that stay as they were."""

import hashlib
import random

import pytest
import torch
from family import MAKERS, member

from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.choices import Factorised, Keep, Weights
from paretopress.spaces.errors import ParetopressError, PolicyError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.policy_transfer import transfer_policy
from paretopress.spaces.recipe import Recipe
from paretopress.spaces.space import SpaceSettings, build_space

DEVICE = Capabilities("any", formats=((8, 8), (4, 8), (8, 32), (4, 32)))
MIXED = Policy.of({
    "layer1.0.conv1/channels": Keep(0.5), "layer1.1.conv1/channels": Keep(0.75),
    "layer2.1.conv2/rank": Factorised("svd", 8), "layer2.0.conv1/weights": Weights(4),
    "layer1.0.conv2/weights": Weights(8), "layer1.1.conv2/weights": Weights(8),
})


def carried(policy, source, target, **more):
    theirs, ours = member(source), member(target)
    return transfer_policy(policy, ours.structure, ours.features, theirs.features, **more)


def options(name):
    return build_space(member(name).structure, [DEVICE], SpaceSettings()).options


def test_on_its_own_model_a_policy_stays_what_it_is():
    found = carried(MIXED, "shallow", "shallow")
    assert found.policy == MIXED
    assert (found.coverage, found.left_out, found.unused) == (1.0, (), ())
    assert {one.how for one in found.units} == {"same"}


def test_a_deeper_model_gets_what_its_blocks_stand_for():
    found = carried(MIXED, "shallow", "deep")
    chosen = found.policy.choices
    assert chosen["layer1.0.conv1/channels"] == Keep(0.5)
    assert chosen["layer1.1.conv1/channels"] == Keep(0.625)      # between both
    assert chosen["layer1.2.conv1/channels"] == Keep(0.75)
    assert [chosen[f"layer1.{block}.conv2/weights"] for block in range(3)] == [Weights(8)] * 3
    assert chosen["layer2.2.conv2/rank"] == Factorised("svd", 8)
    plan(member("deep").structure, found.policy)
    row = next(one for one in found.units if one.unit == "layer1.1.conv1/channels")
    assert dict(row.sources) == {"layer1.0.conv1/channels": 0.5, "layer1.1.conv1/channels": 0.5}


def test_ranks_follow_the_size_of_the_layer():
    chosen = carried(MIXED, "shallow", "wide").policy.choices
    assert chosen["layer2.1.conv2/rank"] == Factorised("svd", 12)   # 8 of 16 outputs, of 24


def test_choices_become_the_nearest_that_the_space_offers():
    offered = options("deep")
    found = carried(MIXED, "shallow", "deep", options=offered, partial=True)
    for unit, choice in found.policy:
        assert choice in offered[unit]
    assert found.policy.choices["layer1.1.conv1/channels"] in (Keep(0.625), Keep(0.5), Keep(0.75))
    for unit, reason in found.left_out:
        assert unit in offered
        assert reason


def test_all_or_nothing_unless_partial():
    strict = {"layer1.0.conv1/rank": Factorised("svd", 40)}
    with pytest.raises(PolicyError, match="does not fit this model: none of its 1 units") as refusal:
        carried(Policy.of(strict), "shallow", "shallow")
    assert "not below full rank" in str(refusal.value)
    both = Policy.of({**strict, "layer1.1.conv1/channels": Keep(0.5)})
    with pytest.raises(PolicyError, match=r"unit 'layer1.0.conv1/rank': rank 40 .*--partial"):
        carried(both, "shallow", "shallow")
    found = carried(both, "shallow", "shallow", partial=True)
    assert dict(found.policy.items) == {"layer1.1.conv1/channels": Keep(0.5)}
    assert found.left_out[0][0] == "layer1.0.conv1/rank"
    assert "\n" not in str(refusal.value)


def test_a_bare_policy_is_carried_by_names_within_its_family():
    deep = member("deep")
    found = Policy.of({f"layer1.{block}.conv1/channels": Keep(share) for block, share in enumerate((0.25, 0.75))}
                      ).transfer(deep.model, deep.inputs, partial=True)
    assert found.policy.choices["layer1.1.conv1/channels"] == Keep(0.5)
    assert found.policy.model == deep.structure.fingerprint
    assert all(one.distance is None for one in found.units)
    whole = Policy.of({"layer1.2.conv1/channels": Keep(0.5)}).transfer(deep.model, deep.inputs)
    assert dict(whole.policy.items) == {"layer1.2.conv1/channels": Keep(0.5)}   # as long a list: the same names
    named = Policy.of({"layer1.2.conv1/channels": Keep(0.5), "layer9/weights": Weights(8)})
    with pytest.raises(PolicyError, match=r"'layer9/weights' of the policy stands for nothing here; --partial"):
        named.transfer(deep.model, deep.inputs)
    assert named.transfer(deep.model, deep.inputs, partial=True).unused == ("layer9/weights",)
    with pytest.raises(PolicyError, match="does not fit this model"):
        Policy.of({"blocks.0.mlp/weights": Weights(8)}).transfer(deep.model, deep.inputs)


def test_with_its_recipe_a_policy_is_carried_by_what_units_are():
    shallow, attention = member("shallow"), member("attention")
    recipe = Recipe("shallow", features=shallow.features)
    found = MIXED.transfer(attention.model, attention.inputs, source=recipe, partial=True)
    assert found.policy.choices
    plan(attention.structure, found.policy)


def digest(model):
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest(), model.training, [id(one) for one in model.modules()]


def test_many_random_policies_are_carried_exactly_or_refused_and_models_stay():
    before = {name: digest(member(name).model) for name in MAKERS}
    rng = random.Random(0)
    refused, reasons = 0, []
    for _ in range(300):
        source, target = rng.choice(list(MAKERS)), rng.choice(list(MAKERS))
        offered = options(source)
        units = rng.sample(list(offered), rng.randint(1, len(offered)))
        policy = Policy.of({unit: choice for unit in units if (choice := rng.choice(offered[unit])) is not None})
        partial = rng.random() < 0.5
        try:
            found = carried(policy, source, target, partial=partial)
        except ParetopressError as error:
            refused += 1
            reasons.append(str(error))
            continue
        kinds = {unit.rpartition("/")[2] for unit, _ in policy}
        told = {one.unit for one in found.units} | {unit for unit, _ in found.left_out}
        free = {unit for unit, frozen in member(target).structure.units.items()
                if not frozen and unit.rpartition("/")[2] in kinds}
        assert told <= free
        assert {unit for unit in free - told if not unit.endswith("/channels")} == set()
        assert {unit for unit, _ in found.policy} <= {one.unit for one in found.units}
        assert partial or not found.left_out
        plan(member(target).structure, found.policy)
    assert 0 < refused < 300
    assert all(len(reason.splitlines()) == 1 for reason in reasons)
    assert {name: digest(member(name).model) for name in MAKERS} == before


def test_a_refused_transfer_leaves_the_model_alone():
    deep = member("deep")
    deep.model.train()
    deep.model.conv1.weight.requires_grad_(False)
    before = digest(deep.model)
    with pytest.raises(PolicyError):
        Policy.of({"nothing/weights": Weights(8)}).transfer(deep.model, deep.inputs)
    assert digest(deep.model) == before
    assert deep.model.training
    assert not deep.model.conv1.weight.requires_grad
    assert torch.is_grad_enabled()
    deep.model.eval()
