"""Every rule of legality on a model where it bites: the choice is not offered, and the reason says why."""

from dataclasses import replace

import pytest
from space_zoo import ZOO, specimen

from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.choices import Binary, Clustered, Factorised, Keep, Sparse, Weights, describe
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.legality import weight_choices
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SpaceSettings, build_space

ANY = tuple((bits, activations) for bits in (8, 4, 3, 2) for activations in (8, 32))
FREE = Capabilities("free", ANY)
FOURS = Capabilities("fours", ANY, channel_step=4)
EIGHTS = Capabilities("eights", ANY, rank_step=8)
NARROW = Capabilities("narrow", ((8, 8),), refused={(4, 32): "no 4-bit kernel"})

RULES = {
    "rank without gain": (
        "projection", FREE, {"rank": (1.0, 0.5)}, "fc/rank", "rank 3", "3 x (4 + 10) weights are no fewer than 4 x 10",
    ),
    "rank without any gain": (
        "projection", EIGHTS, {}, "fc/rank", "*", "no rank that is a multiple of 8 has fewer weights",
    ),
    "rank below one step": (
        "vgg", EIGHTS, {}, "classifier.0/rank", "rank at 0.25", "0.25 of the break-even rank 14.1 rounds to none",
    ),
    "off the alignment": (
        "vgg", FOURS, {}, "features.3/channels", "keep 0.5", "not a whole number of steps of 4 channels (fours: 4)",
    ),
    "less than one aligned step": (
        "group_norm", FOURS, {}, "conv1/channels", "*", "12 channels are not more than one step of 12",
    ),
    "rounds to all": ("projection", FOURS, {}, "stem.0/channels", "keep 0.875", "rounds to all channels (fours: 4)"),
    "no channel left": (
        "keywords", FREE, {"keep": (0.5, 0.05)}, "left/channels", "keep 0.05", "no channel would be left",
    ),
    "nothing but a branch goes whole": (
        "vgg", FREE, {}, "features.0/channels", "drop the branch", "only channels inside a residual branch",
    ),
    "depth switched off": ("cifar_resnet", FREE, {"depth": False}, "layer1.0.conv1/channels", "drop the branch",
                           "space.depth is off"),
    "a layer of the branch is excluded": (
        "cifar_resnet", FREE, {"exclude": ("layer1.0.conv2",)}, "layer1.0.conv1/channels", "drop the branch",
        "layer1.0.conv2 in the branch is excluded by 'layer1.0.conv2'",
    ),
    "outputs": ("vgg", FREE, {}, "classifier.4/channels", "*", "it reaches the model's output"),
    "depthwise has no rank": (
        "inverted_residual", FREE, {}, "depthwise/rank", "*", "a depthwise convolution has no low rank",
    ),
    "grouped has no rank": ("grouped", FREE, {}, "grouped/rank", "*", "a grouped convolution has no low rank"),
    "unknown format": ("vgg", NARROW, {}, "features.3/weights", "2-bit weights", "narrow: no kernel for this format"),
    "refused format": ("vgg", NARROW, {}, "features.3/weights", "4-bit weights", "narrow: no 4-bit kernel"),
    "first layer": (
        "vgg", FREE, {}, "features.0/weights", "4-bit weights",
        "the first layer keeps at least 8 bits (space.end_bits)",
    ),
    "last layer": (
        "vgg", FREE, {"end_bits": 4}, "classifier.4/weights", "2-bit weights, 8-bit activations",
        "the last layer keeps at least 4 bits (space.end_bits)",
    ),
    "no keeps wanted": ("vgg", FREE, {"keep": ()}, "features.0/channels", "*", "space.keep is empty"),
    "no bits wanted": ("vgg", FREE, {"bits": ()}, "features.0/weights", "*", "space.bits is empty"),
    "no ranks wanted": ("vgg", FREE, {"rank": ()}, "features.0/rank", "*", "space.rank is empty"),
    "excluded": ("vgg", FREE, {"exclude": ("features.0",)}, "features.0/rank", "*", "excluded by 'features.0'"),
}


@pytest.mark.parametrize(("model", "device", "settings", "unit", "choice", "reason"), RULES.values(), ids=RULES)
def test_a_rule_drops_its_choice_with_the_reason(model, device, settings, unit, choice, reason):
    built = build_space(specimen(model).structure, (device,), SpaceSettings(**settings))
    found = [why for name, what, why in built.dropped if (name, what) == (unit, choice)]
    assert len(found) == 1
    assert found[0].startswith(reason)
    if choice == "*":
        assert unit not in built.options


@pytest.mark.parametrize("name", ZOO)
def test_only_droppable_branches_may_lose_all_channels(name):
    structure = specimen(name).structure
    built = build_space(structure, (FREE,))
    whole = {unit.removesuffix("/channels") for unit, options in built.options.items() if Keep(0.0) in options}
    assert whole == set(structure.branches)
    for unit, options in built.options.items():
        for choice in options:
            if isinstance(choice, Keep) and choice.ratio > 0.0:
                assert plan(structure, Policy.of({unit: choice})).kept[unit.removesuffix("/channels")] > 0


@pytest.mark.parametrize("device", [FREE, FOURS], ids=["free", "aligned"])
@pytest.mark.parametrize("name", ZOO)
def test_every_wanted_choice_is_offered_or_has_a_reason(name, device):
    """Nothing disappears silently: per unit, what was asked for is offered, dropped, or the neighbour of both."""
    built = build_space(specimen(name).structure, (device,))
    wanted = SpaceSettings()
    for unit, options in built.options.items():
        dropped = {choice for one, choice, _ in built.dropped if one == unit}
        subject, _, kind = unit.rpartition("/")
        if kind == "channels":
            group = specimen(name).structure.group(subject)
            counts = {round(choice.ratio * group.size) for choice in options if isinstance(choice, Keep)}
            for ratio in wanted.keep:
                assert round(ratio * group.size) in counts or f"keep {ratio:g}" in dropped
        elif kind == "weights":
            assert len(options) - 1 + len(dropped) == 2 * len(wanted.bits)


EVERY = SpaceSettings(
    bits=(8, 4), schemes=("symmetric", "asymmetric", "tensor"), groups=(0, 32), halves=("fp16", "bf16"),
    clusters=(4, 2), binary=(1, 2), sparsity=(0.5, "2:4", "0.25 in 4x1"),
)


def test_every_format_that_is_asked_for_is_offered():
    built = build_space(specimen("vgg").structure, (FREE,), EVERY)
    formats = [describe(choice) for choice in built.options["features.3/weights"] if choice]
    assert formats == [
        "8-bit weights, 8-bit activations", "8-bit weights", "4-bit weights, 8-bit activations", "4-bit weights",
        "8-bit weights, groups of 32", "8-bit weights, zero points", "8-bit weights, zero points, groups of 32",
        "8-bit weights, one scale", "4-bit weights, groups of 32", "4-bit weights, zero points",
        "4-bit weights, zero points, groups of 32", "4-bit weights, one scale", "fp16 weights", "bf16 weights",
        "16 shared weights", "4 shared weights", "signs, 8-bit activations", "signs", "signs of 2 bases",
    ]
    kept = [describe(choice) for choice in built.options["features.3/sparsity"] if choice]
    assert kept == ["sparse 0.5", "sparse 2:4", "sparse 0.25 in blocks of 4x1"]
    first = [describe(choice) for choice in built.options["features.0/weights"] if choice]
    assert "16 shared weights" not in first
    assert ("features.0/weights", "signs", "the first layer keeps at least 8 bits (space.end_bits)") in built.dropped


def test_other_formats_need_no_integers():
    built = build_space(specimen("vgg").structure, (FREE,), SpaceSettings(bits=(), clusters=(4,), end_bits=8))
    assert built.options["features.3/weights"] == (None, Clustered(4))
    assert not [drop for drop in built.dropped if drop[0] == "features.3/weights"]


def test_a_pinned_choice_drops_what_does_not_go_with_it():
    def with_pins(**pins):
        names = {f"features.3/{kind}": choice for kind, choice in pins.items()}
        return build_space(specimen("vgg").structure, (FREE,), replace(EVERY, pin=names))

    pinned = with_pins(sparsity=Sparse(0.5))
    assert not [choice for choice in pinned.options["features.3/weights"] if isinstance(choice, Binary)]
    reason = "a sign is never zero: signs cannot be sparse"
    assert ("features.3/weights", "signs", reason) in pinned.dropped
    assert "features.3/sparsity" not in with_pins(weights=Binary(1)).options
    with pytest.raises(ConfigError, match="signs cannot be sparse"):
        with_pins(weights=Binary(1), sparsity=Sparse(0.5))


def test_ends_of_models():
    ends = {name: specimen(name).structure.ends for name in ZOO}
    assert ends["vgg"] == {"features.0": "first", "classifier.4": "last"}
    assert ends["cifar_resnet"] == {"conv1": "first", "fc": "last"}
    assert ends["keywords"] == {"left": "first", "right": "first", "out": "last"}   # two inputs
    assert ends["dense_block"] == {"stem": "first", "fc": "last"}   # fc reads the input too, beside other layers
    assert ends["squeeze_excite"] == {"conv": "first", "out": "last"}


def test_ends_keep_8_bits_unless_told_otherwise():
    def widths(**settings):
        built = build_space(specimen("vgg").structure, (FREE,), SpaceSettings(**settings))
        names = ("features.0", "features.3", "classifier.4")
        return [sorted({choice.bits for choice in built.options[f"{name}/weights"] if choice}) for name in names]

    every = [2, 3, 4, 8]
    assert widths() == [[8], every, [8]]
    assert widths(end_bits=4) == [[4, 8], every, [4, 8]]
    assert widths(end_bits=2) == [every, every, every]
    assert widths(bits=(4, 2)) == [[4], [2, 4], [4]]   # the widest of what was asked for


def test_a_pin_goes_before_the_rule_of_the_ends():
    pinned = build_space(specimen("vgg").structure, (FREE,), SpaceSettings(pin={"classifier.4/weights": Weights(4)}))
    assert pinned.options["classifier.4/weights"] == (Weights(4),)
    assert pinned.options["features.0/weights"] == (None, Weights(8, 8), Weights(8, 32))


def test_ends_lose_channels_and_rank_as_other_layers_do():
    built = build_space(specimen("vgg").structure, (FREE,))
    assert Keep(0.5) in built.options["features.0/channels"]
    assert any(isinstance(choice, Factorised) for choice in built.options["features.0/rank"])


OWN_INPUTS = {
    Weights(8, 16): "no device computes in so many bits",
    Weights(4, 4): "no device computes in so many bits",
    Weights(8, ranges="dynamic"): "what it costs to find ranges at run time is in no device profile",
}


@pytest.mark.parametrize(("choice", "reason"), OWN_INPUTS.items(), ids=map(describe, OWN_INPUTS))
def test_inputs_that_layers_round_for_themselves_are_for_policies_only(choice, reason):
    structure = specimen("vgg").structure
    generous = Capabilities("any", (*ANY, (8, 16), (4, 4)))
    assert choice not in build_space(structure, (generous,), EVERY).options["features.3/weights"]
    legal, refused = weight_choices(structure.layer("features.3"), [generous], [choice])
    assert legal == []
    assert [(what, why.startswith(reason)) for what, why in refused] == [(describe(choice), True)]
    with pytest.raises(ConfigError, match=f"'features.3/weights' does not offer .*: {reason}"):
        build_space(structure, (generous,), replace(EVERY, pin={"features.3/weights": choice}))
    planned = plan(structure, Policy.of({"features.3/weights": choice}))
    twin = replace(choice, activations=32, ranges="static")
    assert cost_view(planned) == cost_view(plan(structure, Policy.of({"features.3/weights": twin})))
