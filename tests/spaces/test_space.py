"""What is offered, on which device, and why the rest is not."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from space_zoo import ZOO, specimen

from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.choices import Factorised, Keep, Weights, describe
from paretopress.spaces.errors import ConfigError, PolicyError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE, Policy
from paretopress.spaces.space import SpaceSettings, build_space

FORMATS = ((8, 8), (8, 32), (4, 32))
CPU = Capabilities("cpu", FORMATS, refused={(4, 8): "no 4-bit kernel"})
ALIGNED = Capabilities("aligned", ((8, 8),), channel_step=4, rank_step=2)


def space(name, *devices, **settings_):
    return build_space(specimen(name).structure, devices or (CPU,), SpaceSettings(**settings_))


@pytest.mark.parametrize(
    "devices", [(), (CPU,), (ALIGNED,), (CPU, ALIGNED)], ids=["none", "cpu", "aligned", "both"]
)
@pytest.mark.parametrize("name", ZOO)
def test_everything_offered_is_legal_and_everything_else_has_a_reason(name, devices):
    structure = specimen(name).structure
    built = build_space(structure, devices)
    units = {unit for unit in structure.units if not unit.endswith("/sparsity")}   # not asked for
    assert set(built.options) | {unit for unit, _, _ in built.dropped} == units
    assert all(reason for _, _, reason in built.dropped)
    for unit, options in built.options.items():
        if unit.endswith("/weights"):
            refused = [choice for name, choice, _ in built.dropped if name == unit]
            assert len(options) - 1 + len(refused) == 4 * 2  # every width with both activations
    assert not set(built.options) & {unit for unit, choice, _ in built.dropped if choice == "*"}
    for unit, options in built.options.items():
        assert options[0] is None
        assert len(set(options)) == len(options) > 1
        assert not structure.units[unit]
        for choice in options[1:]:
            planned = plan(structure, Policy.of({unit: choice}))  # raises where it is not legal
            if isinstance(choice, Keep):
                group = structure.group(unit.removesuffix("/channels"))
                steps = [group.step, *(device.channel_step for device in devices)]
                assert planned.kept[group.name] * group.inner % math.lcm(*steps) == 0
                assert planned.kept[group.name] < group.size
            elif isinstance(choice, Weights):
                assert all((choice.bits, choice.activations) in device.formats for device in devices)
            else:
                assert all(choice.rank % device.rank_step == 0 for device in devices)
                layer = structure.layer(unit.removesuffix("/rank"))
                smaller = choice.rank * (layer.out_channels + layer.columns)
                assert smaller < layer.out_channels * layer.columns


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_combination_of_options_is_a_plan(data):
    name = data.draw(st.sampled_from(sorted(ZOO)))
    built = space(name)
    drawn = {unit: data.draw(st.sampled_from(options)) for unit, options in built.options.items()}
    policy = DENSE.replace(drawn)
    built.check(policy)
    assert plan(specimen(name).structure, policy).stored_bytes > 0


def test_options_by_hand():
    built = space("group_norm", CPU, ALIGNED)
    assert built.options["conv3/channels"] == (None, Keep(0.5))  # 8 channels in steps of 4
    assert (
        "conv1/channels",
        "*",
        "12 channels are not more than one step of 12",
    ) in built.dropped  # lcm(6, 4)
    assert built.options["conv2/weights"] == (None, Weights(8, 8))
    reasons = {choice: why for unit, choice, why in built.dropped if unit == "conv2/weights"}
    assert (
        reasons["4-bit weights, 8-bit activations"]
        == "cpu: no 4-bit kernel; aligned: no kernel for this format"
    )
    # 12 x 108 weights break even at rank 10.8; a quarter, half and three quarters of it in steps of 2
    assert built.options["conv2/rank"] == (
        None,
        Factorised("svd", 8),
        Factorised("svd", 6),
        Factorised("svd", 2),
    )


def test_size_counts_policies():
    built = space("vgg", bits=(8,), keep=(0.5,), rank=(0.5,))
    assert 10**built.log10_size == pytest.approx(
        math.prod(len(options) for options in built.options.values())
    )
    assert built.options["features.0/weights"] == (None, Weights(8, 8), Weights(8, 32))
    assert built.log10_size == pytest.approx(math.log10(2**3 * 2**4 * 3**4))


def test_units_come_in_execution_order():
    built = space("vgg")
    order = [layer.name for layer in specimen("vgg").structure.layers]
    places = [order.index(unit.rpartition("/")[0]) for unit in built.options]
    assert places == sorted(places)


def test_excluded_layers_stay_dense():
    built = space("projection", exclude=("proj*", "fc"))
    assert not [unit for unit in built.options if unit.startswith(("project/", "fc/"))]
    assert ("fc/weights", "*", "excluded by 'fc'") in built.dropped
    # `project` makes the channels of the group that is named after conv2
    assert ("conv2/channels", "*", "excluded by 'proj*'") in built.dropped
    assert "conv2/weights" in built.options


def test_pinned_units_have_one_choice():
    built = space("projection", pin={"*/weights": Weights(8, 8), "conv1/channels": Keep(0.5)})
    assert all(
        options == (Weights(8, 8),) for unit, options in built.options.items() if unit.endswith("/weights")
    )
    assert built.options["conv1/channels"] == (Keep(0.5),)
    assert built.options["conv2/channels"][0] is None


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"exclude": ("conv7",)}, "space.exclude: 'conv7' matches no layer; did you mean 'conv"),
        ({"exclude": ("?",)}, "space.exclude: '?' matches no layer"),
        (
            {"pin": {"conv1/weight": Weights(8)}},
            "'conv1/weight' matches no unit; did you mean 'conv1/weights'",
        ),
        ({"pin": {"conv1/weights": Weights(2)}}, "does not offer 2-bit weights, 8-bit activations"),
        (
            {"pin": {"fc/channels": Keep(0.5)}},
            "'fc/channels' cannot be pinned: it reaches the model's output",
        ),
        ({"pin": {"fc/*": Weights(8)}, "exclude": ("fc",)}, "cannot be pinned:"),
    ],
)
def test_wrong_patterns_and_pins_are_refused(settings_, message):
    with pytest.raises(ConfigError) as caught:
        space("projection", **settings_)
    assert message in str(caught.value)


def test_without_drops_choices_with_reasons():
    built = space("projection", pin={"conv2/weights": Weights(8, 8)})
    everything = [choice for choice in built.options["conv1/weights"] if choice is not None]
    removed = {"conv1/weights": everything, "fc/weights": [Weights(8, 8)], "conv2/weights": [Weights(8, 8)]}
    smaller = built.without(removed, dict.fromkeys(removed, "it does not pay"))
    assert "conv1/weights" not in smaller.options
    assert smaller.options["fc/weights"] == tuple(
        c for c in built.options["fc/weights"] if c != Weights(8, 8)
    )
    assert smaller.options["conv2/weights"] == (Weights(8, 8),)  # the user pinned it
    new = smaller.dropped[len(built.dropped) :]
    assert new == (
        *(("conv1/weights", describe(choice), "it does not pay") for choice in everything),
        ("fc/weights", "8-bit weights, 8-bit activations", "it does not pay"),
    )
    assert smaller.fingerprint != built.fingerprint
    assert built.options == space("projection", pin={"conv2/weights": Weights(8, 8)}).options
    with pytest.raises(PolicyError, match="did you mean 'conv1/weights'"):
        built.without({"conv1/weight": [Weights(8)]}, {"conv1/weight": "typing error"})


def test_check_names_what_is_offered():
    built = space("projection", keep=(0.5,))
    built.check(DENSE)
    built.check(Policy.of({"conv1/channels": Keep(0.5)}))
    with pytest.raises(PolicyError, match=r"does not offer keep 0\.25 \(allowed: dense, keep 0\.5, drop the branch\)"):
        built.check(Policy.of({"conv1/channels": Keep(0.25)}))
    with pytest.raises(PolicyError, match="did you mean 'conv1/channels'"):
        built.check(Policy.of({"conv11/channels": Keep(0.5)}))
