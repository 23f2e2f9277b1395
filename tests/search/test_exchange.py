"""What single changes cost and save, by hand."""

from __future__ import annotations

import math

import pytest

from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.search.exchange import (
    best_purchases,
    cheapest_rates,
    cheapest_savings,
    drop_per_nat,
    exchanges,
)
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SearchSpace

SPACE = SearchSpace({"a/weights": (None, Weights(8, 32), Weights(4, 32)), "b/channels": (None, Keep(0.5))}, (), "")
TABLE = SensitivityTable({"a/weights": (0.0, 0.01, 0.05), "b/channels": (0.0, 0.2)})
BYTES = {"a/weights": {None: 400.0, Weights(8, 32): 100.0, Weights(4, 32): 50.0},
         "b/channels": {None: 200.0, Keep(0.5): 100.0}}
TIME = {"a/weights": {None: 3.0, Weights(8, 32): 3.0, Weights(4, 32): 2.0},
        "b/channels": {None: 4.0, Keep(0.5): 1.0}}


def price(policies):
    return [price_of(policy) for policy in policies]


def price_of(policy):
    chosen = {unit: policy.choices.get(unit) for unit in SPACE.options}
    return {name: sum(table[unit][choice] for unit, choice in chosen.items())
            for name, table in (("size", BYTES), ("latency@x", TIME))}


def test_every_change_of_a_point_by_hand():
    point = Policy.of({"a/weights": Weights(8, 32)})
    found = {(one.unit, one.after): one for one in exchanges(SPACE, TABLE, point, price, drop_per_nat=0.5)}
    assert len(found) == 3
    dense, four = found["a/weights", "dense"], found["a/weights", "4-bit weights"]
    half = found["b/channels", "keep 0.5"]
    assert (dense.loss, dense.costs) == (-0.01, {"size": 300.0, "latency@x": 0.0})
    assert dense.rates == {"size": pytest.approx(0.01 / 300)}   # winning 0.01 nats back takes 300 bytes
    assert (four.before, four.choice["weights"]) == ("8-bit weights", 4)
    assert four.costs == {"size": -50.0, "latency@x": -1.0}
    assert four.rates == {"size": pytest.approx(0.04 / 50), "latency@x": pytest.approx(0.04)}
    assert four.drop == pytest.approx(0.02)
    assert half.rates == {"size": pytest.approx(0.2 / 100), "latency@x": pytest.approx(0.2 / 3)}
    every = list(found.values())
    assert [one.after for one in cheapest_savings(every, "latency@x", 5)] == ["4-bit weights", "keep 0.5"]
    assert [one.after for one in cheapest_savings(every, "size", 1)] == ["4-bit weights"]
    assert [one.after for one in best_purchases(every, "size", 5)] == ["dense"]


def test_the_cheapest_change_of_every_layer_by_hand():
    found = exchanges(SPACE, TABLE, Policy.of({}), price, drop_per_nat=0.5)
    rates = cheapest_rates(found)
    assert rates.keys() == {"a", "b"}
    assert rates["a"]["size"] == {"unit": "a/weights", "after": "8-bit weights", "saves": 300.0,
                                  "nats": pytest.approx(0.01 / 300), "drop": pytest.approx(0.005 / 300)}
    assert rates["a"]["latency@x"]["after"] == "4-bit weights"   # 8 bits save no time
    assert rates["a"]["latency@x"]["nats"] == pytest.approx(0.05)
    assert rates["b"]["latency@x"]["nats"] == pytest.approx(0.2 / 3)
    most = Policy.of({"a/weights": Weights(4, 32), "b/channels": Keep(0.5)})
    assert cheapest_rates(exchanges(SPACE, TABLE, most, price)) == {}   # nothing saves more
    one = cheapest_rates(exchanges(SPACE, TABLE, Policy.of({"b/channels": Keep(0.5)}), price))
    assert one.keys() == {"a"}
    assert one["a"]["size"]["drop"] is None


def test_what_no_target_executes_and_what_changes_no_cost_is_left_out():
    def partly(policies):
        return [price_of(policy) | {"latency@x": math.inf if policy.choices.get("b/channels") else 1.0}
                for policy in policies]

    assert {one.unit for one in exchanges(SPACE, TABLE, Policy.of({}), partly)} == {"a/weights"}
    assert exchanges(SPACE, TABLE, Policy.of({}), lambda policies: [{"size": 1.0}] * len(policies)) == []


def test_a_nat_is_worth_the_median_of_the_trials_nearby():
    losses, drops = [0.1, 0.1, 0.2, 0.05, 0.25, 9.0, 0.0], [0.01, 0.03, 0.02, 0.01, 0.1, 9.0, 0.0]
    assert drop_per_nat(losses, drops, 0.1) == pytest.approx(0.2)   # 0.1, 0.3, 0.1, 0.2, 0.4
    assert drop_per_nat([0.1, 0.1, 0.2, 0.2, 0.1, 0.1], [0.1, 0.1, 0.4, 0.4, 0.1, 0.4], 0.1) == pytest.approx(1.5)
    assert drop_per_nat(losses[:4], drops[:4], 0.1) is None
