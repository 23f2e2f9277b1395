"""Pins and units that choose alike: how they are read, and that every solved point keeps to them."""

import itertools

import numpy as np
import pytest

from paretopress.evaluators.budgets import parse_budget
from paretopress.search.conditions import Conditions
from paretopress.search.exact import CostTerm, ExactProblem, solve_front
from paretopress.search.observer import Silent
from paretopress.search.resolving import resolve
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.errors import ConfigError, InfeasibleError, PolicyError
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SearchSpace

EIGHT, FOUR = Weights(8, 32), Weights(4, 32)
SPACE = SearchSpace(
    {"a/weights": (None, EIGHT, FOUR), "b/weights": (None, FOUR), "c/weights": (None, FOUR, EIGHT),
     "d/channels": (None, Keep(0.5))},
    (("b/weights", "8-bit weights", "does not pay"), ("e/weights", "*", "this layer is used twice")), "",
)


def test_choices_are_read_in_words_and_as_plain_data():
    found = Conditions.parse(
        ["a/weights=8-bit weights", "b/weights={weights: 4, activations: 32}", "d/channels = dense"], [], SPACE
    )
    assert found.pins == {"a/weights": EIGHT, "b/weights": FOUR, "d/channels": None}
    assert found.met_by(Policy.of({"a/weights": EIGHT, "b/weights": FOUR, "c/weights": FOUR}))
    assert not found.met_by(Policy.of({"a/weights": EIGHT, "b/weights": FOUR, "d/channels": Keep(0.5)}))
    shown = {"a/weights": "8-bit weights", "b/weights": "4-bit weights", "d/channels": "dense"}
    assert found.to_plain()["pins"] == shown


def test_units_that_share_keep_the_choices_they_have_in_common_in_one_order():
    found = Conditions.parse([], ["a/weights,c/weights", "c/weights,b/weights"], SPACE)
    assert found.shared == (("a/weights", "c/weights", "b/weights"),)
    everything = {unit: range(len(options)) for unit, options in SPACE.options.items()}
    offered = found.offered(SPACE, everything)
    assert offered == {"a/weights": (0, 2), "b/weights": (0, 1), "c/weights": (0, 1), "d/channels": (0, 1)}
    pinned = Conditions.parse(["a/weights=4-bit weights"], ["a/weights,c/weights"], SPACE).offered(SPACE, everything)
    assert (pinned["a/weights"], pinned["c/weights"]) == ((2,), (1,))


def test_the_exact_front_under_conditions_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    losses = {unit: np.array([0.0, *np.sort(rng.random(len(row) - 1))]) for unit, row in SPACE.options.items()}
    costs = tuple(CostTerm((unit,), rng.integers(1, 30, len(row)).astype(float)) for unit, row in SPACE.options.items())
    conditions = Conditions.parse(["d/channels=keep 0.5"], ["a/weights,c/weights"], SPACE)
    everything = {unit: range(len(options)) for unit, options in SPACE.options.items()}
    offered = conditions.offered(SPACE, everything)
    problem = ExactProblem(
        {unit: len(numbers) for unit, numbers in offered.items()},
        {unit: losses[unit][list(numbers)] for unit, numbers in offered.items()},
        tuple(CostTerm(one.units, one.table[list(offered[one.units[0]])]) for one in costs),
    )
    found = {(point.cost, round(point.loss, 9)) for point in solve_front(problem, equal=conditions.shared).points}
    every = []
    for row in itertools.product(*everything.values()):
        chosen = {unit: SPACE.options[unit][place] for unit, place in zip(everything, row, strict=True)}
        if conditions.met_by(Policy.of({unit: choice for unit, choice in chosen.items() if choice is not None})):
            every.append((sum(float(one.table[row[place]]) for place, one in enumerate(costs)),
                          sum(float(losses[unit][row[place]]) for place, unit in enumerate(everything))))
    best = {(cost, round(loss, 9)) for cost, loss in every
            if not any(c <= cost and other <= loss and (c, other) != (cost, loss) for c, other in every)}
    assert found == best


@pytest.mark.parametrize(("pins", "shares", "message"), [
    (["a/weights"], [], "write UNIT=CHOICE"),
    (["a/weights="], [], "write UNIT=CHOICE"),
    (["a/weihts=dense"], [], "unknown unit 'a/weihts'; did you mean 'a/weights'?"),
    (["e/weights=dense"], [], "unit 'e/weights' is not offered: this layer is used twice"),
    (["a/weights=8-bit weight"], [], "did you mean '8-bit weights'? (allowed: dense; 8-bit weights; 4-bit weights)"),
    (["b/weights=8-bit weights"], [], "'8-bit weights' is not offered: does not pay"),
    (["a/weights={weights: 2, activations: 32}"], [], "unknown choice '2-bit weights'"),
    (["a/weights={weight: 8}"], [], "--pin a/weights={weight: 8}"),
    (["a/weights=dense", "a/weights=dense"], [], "is pinned twice"),
    ([], ["a/weights"], "two units or more"),
    ([], ["a/weights,,b/weights"], "two units or more"),
    ([], ["a/weights,x"], "unknown unit 'x'"),
    ([], ["a/weights,d/channels"], "no choice in common besides dense"),
    (["a/weights=8-bit weights"], ["a/weights,b/weights"], "no choice in common"),
])
def test_what_cannot_be_is_refused_in_one_line(pins, shares, message):
    with pytest.raises((ConfigError, PolicyError)) as error:
        Conditions.parse(pins, shares, SPACE)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_no_target_executes_is_refused():
    conditions = Conditions.parse(["a/weights=4-bit weights"], [], SPACE)
    with pytest.raises(ConfigError, match="'a/weights': no choice is left"):
        conditions.offered(SPACE, {unit: [0] for unit in SPACE.options})


def test_a_run_solved_again_keeps_to_pins_and_shared_units(tiny, tiny_run):
    def solved(**conditions):
        return resolve(tiny_run.path, tiny.module.model(), tiny.module.data(), observer=Silent(),
                       budgets=(parse_budget("-50%", "size"),), **conditions)

    free = solved()
    channels = [unit for unit in free.problem.space.options if unit.endswith("/channels")]
    weights = [unit for unit, options in free.problem.space.options.items() if Weights(8) in options][:2]
    found = solved(pins=[f"{channels[0]}=keep 0.5"], shares=[",".join(weights)])
    assert len(found.points) > 2
    for point in found.points:
        chosen = point.policy.choices
        assert chosen[channels[0]] == Keep(0.5)
        assert chosen.get(weights[0]) == chosen.get(weights[1])
    assert found.best.loss >= free.best.loss
    assert found.to_plain()["pins"] == {channels[0]: "keep 0.5"}
    assert found.to_plain()["shared"] == [weights]
    along = found.rates_along()
    assert [one["point"] for one in along] == list(range(1, len(found.points) + 1))
    single = {one["unit"]: one for one in found.exchange(found.best)}
    best = along[found.points.index(found.best)]["layers"]
    assert {layer for layer, rates in best.items() if "size" in rates} <= {unit.rpartition("/")[0] for unit in single}
    pins = [f"{unit}=dense" for unit in free.problem.space.options if unit.endswith(("/weights", "/channels"))]
    with pytest.raises(InfeasibleError, match="keeps to the pins"):
        solved(pins=pins)
