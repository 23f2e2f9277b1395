"""Costs under the names users see, budgets, and choices that do not pay."""

import math

import pytest
import torch
from torch import nn

from paretopress.evaluators.candidate import Limits
from paretopress.evaluators.costs import (
    CostModel,
    drop_slower_ranks,
    drop_slower_twins,
    drop_what_does_not_pay,
    integer_policy,
    runs_everywhere,
    violations,
)
from paretopress.hardware_profiles.catalogue import load_profile
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.spaces.capture import capture
from paretopress.spaces.choices import Factorised, Keep, Weights
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE, Policy
from paretopress.spaces.space import SpaceSettings, build_space
from paretopress.spaces.structure import analyse

ZEN, PHONE, BOARD, GPU = "x86-zen4-vnni-onnxruntime", "cortex-a76-tflite", "stm32-h7a3", "h200-sxm"


@pytest.fixture(scope="module")
def several():
    return CostModel(tuple(load_profile(name) for name in (ZEN, BOARD, GPU)))


def test_names_say_whether_they_are_milliseconds(several):
    assert several.latency_names == (f"latency@{ZEN}", f"latency@{BOARD}", f"relative@{GPU}")


@pytest.mark.parametrize(
    ("objective", "names"),
    [
        ("size", ("size",)),
        ("macs", ("macs",)),
        ("latency", (f"latency@{ZEN}", f"latency@{BOARD}", f"relative@{GPU}")),
        (f"latency@{ZEN}", (f"latency@{ZEN}",)),
        (f"latency@{GPU}", (f"relative@{GPU}",)),
        ("peak_memory", (f"peak_memory@{GPU}", f"peak_memory@{BOARD}", f"peak_memory@{ZEN}")),
        ("energy", (f"energy@{BOARD}",)),
        (f"peak_memory@{BOARD}", (f"peak_memory@{BOARD}",)),
    ],
)
def test_an_objective_stands_for_every_target(several, objective, names):
    assert several.resolve(objective) == names


@pytest.mark.parametrize(
    ("objective", "nearest"),
    [("latncy", "latency"), (f"latency@{BOARD}x", f"latency@{BOARD}"), (f"energy@{ZEN}", ZEN), ("sizes", "size")],
)
def test_unknown_objectives_name_the_nearest(several, objective, nearest):
    with pytest.raises(ConfigError, match=f"did you mean '.*{nearest}'"):
        several.resolve(objective)


def test_every_resolved_name_is_predicted(small):
    """Energy is known where the profile knows the power: active power times latency."""
    powered = DeviceProfile.from_plain(
        {**load_profile(PHONE).plain, "active_power_mw": load_profile(BOARD).plain["active_power_mw"]}, "test"
    )
    model = CostModel((load_profile(ZEN), powered, load_profile(GPU)))
    planned = plan(small.structure, DENSE)
    costs = model.predict(planned)
    for objective in ("size", "macs", "latency", "peak_memory", "energy"):
        for name in model.resolve(objective):
            assert costs[name] > 0.0
    assert costs[f"energy@{PHONE}"] == pytest.approx(122.44 * costs[f"latency@{PHONE}"])   # mW x ms = uJ
    low_high = model.interval(planned)
    assert set(low_high) == {f"latency@{ZEN}", f"latency@{PHONE}"}   # what only ranks has no milliseconds
    for name, (low, high) in low_high.items():
        assert low <= costs[name] <= high


class Padded(nn.Module):
    """Begins as MLPerf Tiny's keyword spotting does: zeros around the input; ends in a mean over all positions."""

    def __init__(self):
        super().__init__()
        self.pad, self.conv = nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, 16, (10, 4), 2)
        self.depthwise, self.fc = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Linear(16, 12)

    def forward(self, x):
        x = torch.relu(self.depthwise(torch.relu(self.conv(self.pad(x)))))
        return self.fc(x.mean((2, 3)))


def test_an_integer_only_device_runs_a_network_of_8_bit_layers_that_pads_its_input():
    model = Padded()
    structure = analyse(capture(model, (torch.zeros(2, 1, 49, 10),)), model)
    board = CostModel((load_profile(BOARD),))
    units = [unit for unit, frozen in structure.units.items() if unit.endswith("/weights") and not frozen]
    everything = dict.fromkeys(units, Weights(8, 8))
    assert board.refusals(plan(structure, Policy.of(everything))) == {}
    for unit in units:
        all_but_one = Policy.of({name: choice for name, choice in everything.items() if name != unit})
        assert set(board.refusals(plan(structure, all_but_one))) == {BOARD}


def test_what_a_device_cannot_execute_is_infinite_there_and_nowhere_else(several, small):
    planned = plan(small.structure, DENSE)
    costs = several.predict(planned)
    assert {name for name, value in costs.items() if value == math.inf} == {f"latency@{BOARD}", f"energy@{BOARD}"}
    assert all(value > 0.0 for value in costs.values())
    assert not runs_everywhere(costs)
    assert set(several.interval(planned)) == {f"latency@{ZEN}"}
    refusals = several.refusals(planned)
    assert set(refusals) == {BOARD}
    assert refusals[BOARD].startswith(f"{BOARD} cannot run it: kernel ")
    assert "int8" in refusals[BOARD]


def test_violations_are_in_the_cost_s_unit_and_skip_what_is_not_known():
    budgets = (("a", "size", 100.0), ("b", "latency@x", 2.0), ("c", "unknown", 1.0))
    assert violations(budgets, {"size": 150.0, "latency@x": 1.5}) == {"a": 50.0, "b": -0.5}


def test_limits_forgive_rounding_and_know_the_direction():
    falling = Limits((("size <=1KB", "size", 1000.0),), 0.93, "max")
    assert falling.names == ("size <=1KB", "max_drop")
    assert falling.check({"size": 900.0}, 0.95)["max_drop"] == pytest.approx(-0.02)
    assert falling.check({"size": 900.0}, 0.93 - 1e-12) == {"size <=1KB": -100.0, "max_drop": 0.0}
    assert falling.check({"size": 900.0}, 0.90)["max_drop"] == pytest.approx(0.03)
    assert falling.check({"size": 900.0}, None) == {"size <=1KB": -100.0}
    rising = Limits((), 2.0, "min")
    assert rising.check({}, 2.5)["max_drop"] == pytest.approx(0.5)
    assert rising.check({}, 1.5)["max_drop"] == pytest.approx(-0.5)


def gains(small, unit, choice):
    dense = small.costs.predict(plan(small.structure, DENSE))
    alone = small.costs.predict(plan(small.structure, Policy.of({unit: choice})))
    return {name: 1.0 - alone[name] / dense[name] for name in (f"latency@{ZEN}", "size")}


def test_what_saves_only_bytes_is_kept_with_a_label_or_dropped_with_a_reason(small):
    kept, size_only = drop_what_does_not_pay(small.structure, small.space, small.costs)
    faster, nothing = drop_what_does_not_pay(small.structure, small.space, small.costs, size_matters=False)
    assert size_only
    assert nothing == {}
    assert faster.log10_size < kept.log10_size
    dropped = {
        (unit, choice) for unit, options in kept.options.items() for choice in options
        if choice is not None and choice not in faster.options.get(unit, ())
    }
    assert len(dropped) == len(size_only)
    for unit, choice in dropped:
        gain = gains(small, unit, choice)
        assert gain[f"latency@{ZEN}"] < 0.0025
        assert gain["size"] > 0.0
        assert (unit, "saves only bytes, and size is not asked for") in {
            (name, reason) for name, _, reason in faster.dropped
        }
    for unit, options in faster.options.items():   # what stays saves time, alone or among its like
        for choice in options[1:]:
            assert gains(small, unit, choice)[f"latency@{ZEN}"] > 0.0015 or isinstance(choice, Weights)


def test_an_integer_layer_pays_among_integer_neighbours_or_not_at_all(small):
    """8 bits in the depthwise layer: judged among float and among 8-bit neighbours, priced here by hand."""
    faster, _ = drop_what_does_not_pay(small.structure, small.space, small.costs, size_matters=False)
    units = small.structure.units
    every = {name: Weights(8) for name, frozen in units.items() if name.endswith("/weights") and not frozen}
    for unit in every:
        rest = {name: choice for name, choice in every.items() if name != unit}
        with_it, without = (
            small.costs.predict(plan(small.structure, Policy.of(chosen)))[f"latency@{ZEN}"] for chosen in (every, rest)
        )
        alone = gains(small, unit, Weights(8))[f"latency@{ZEN}"] > 0.002
        pays = alone or with_it < without * 0.998
        assert (Weights(8) in faster.options.get(unit, ())) == pays
    assert any(Weights(8) in faster.options.get(unit, ()) for unit in every)
    assert any(Weights(8) not in faster.options.get(unit, ()) for unit in every)


def test_weights_that_compute_in_floats_stay_where_conversions_cost_more_than_integers_save():
    """A layer of 4 channels gains nothing from integers among float layers; one of 64 pays its conversions."""

    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.thin = nn.Conv2d(3, 4, 1)
            self.wide = nn.Conv2d(4, 128, 3, padding=1)
            self.heavy = nn.Conv2d(128, 128, 3, padding=1)

        def forward(self, x):
            return self.heavy(self.wide(self.thin(x)).relu()).mean((2, 3))

    device = load_profile(ZEN)
    model = Three().eval()
    structure = analyse(capture(model, (torch.randn(2, 3, 16, 16),)), model)
    space = build_space(structure, [device.capabilities()], SpaceSettings(end_bits=2))
    assert all(Weights(bits, 32) in space.options["thin/weights"] for bits in (8, 4, 3, 2))
    kept = drop_slower_twins(structure, space, CostModel((device,)))
    assert Weights(8, 32) in kept.options["thin/weights"]
    assert not any(choice.activations == 32 for choice in kept.options["heavy/weights"] if choice)
    why = {reason for unit, choice, reason in kept.dropped if unit == "heavy/weights" and "bit weights" in choice}
    assert "the same bytes with 8-bit activations run faster" in why


@pytest.mark.parametrize(("channels", "size"), [(64, 8), (32, 25)])
def test_floats_stay_where_integers_pay_in_the_dense_model_only(channels, size):
    device = load_profile(ZEN)
    costs = CostModel((device,))
    first, last = nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 8, 3)
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU(), last, nn.Flatten()).eval()
    structure = analyse(capture(model, (torch.randn(2, 3, size + 2, size + 2),)), model)
    name = costs.latency_names[0]

    def time(**choices):
        policy = Policy.of({unit.replace("_", "/"): choice for unit, choice in choices.items()})
        return costs.predict(plan(structure, policy))[name]

    narrow = {"0_channels": Keep(0.5), "2_channels": Keep(0.5)}
    assert time(**{"2_weights": Weights(8, 8)}) < time(**{"2_weights": Weights(8, 32)})
    assert time(**narrow, **{"2_weights": Weights(8, 8)}) > time(**narrow, **{"2_weights": Weights(8, 32)})
    space = drop_slower_twins(structure, build_space(structure, [device.capabilities()], SpaceSettings()), costs)
    assert Weights(8, 32) in space.options["2/weights"]


@pytest.mark.parametrize("targets", [(ZEN,), (BOARD,), (ZEN, PHONE)])
def test_ranks_that_are_predicted_no_faster_are_not_offered(targets):
    """Few weights of a large image cost more in two kernels; many of a small one cost less."""
    costs = CostModel(tuple(load_profile(name) for name in targets))
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(16, 128, 3), nn.ReLU(), nn.Conv2d(128, 128, 3), nn.Flatten(), nn.Linear(128 * 16, 4),
    ).eval()
    structure = analyse(capture(model, (torch.randn(2, 3, 32, 32),)), model)
    space = build_space(structure, [device.capabilities() for device in costs.devices])
    kept = drop_slower_ranks(structure, space, costs)
    dropped = {(unit, choice): reason for unit, choice, reason in kept.dropped if choice.startswith("rank ")}
    contexts = [context for context in (DENSE, integer_policy(space))
                if not all(math.isinf(costs.predict(plan(structure, context))[name]) for name in costs.latency_names)]
    for unit, options in space.options.items():
        for choice in options:
            if not isinstance(choice, Factorised):
                assert choice is None or choice in kept.options[unit]
                continue
            gains = [new[name] < old[name] * 0.998 for context in contexts for name in costs.latency_names
                     for old in [costs.predict(plan(structure, context))]
                     for new in [costs.predict(plan(structure, context.replace({unit: choice})))]]
            assert (choice in kept.options.get(unit, ())) == any(gains)
            reason = f"predicted no faster than the layer in one piece on {', '.join(targets)}"
            assert any(gains) or dropped[unit, f"rank {choice.rank}"] == reason
    assert any(isinstance(choice, Factorised) for choice in kept.options["7/rank"])
    assert targets != (ZEN,) or "2/rank" not in kept.options


def test_ranks_stay_where_no_target_can_execute_the_model():
    """Times that are not known tell nothing about ranks."""

    class Cosine(nn.Module):
        def forward(self, x):
            return torch.cos(x)

    model = nn.Sequential(Cosine(), nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Flatten()).eval()
    costs = CostModel((load_profile(BOARD),))
    structure = analyse(capture(model, (torch.randn(2, 3, 8, 8),)), model)
    space = build_space(structure, [device.capabilities() for device in costs.devices])
    assert drop_slower_ranks(structure, space, costs).options == space.options
