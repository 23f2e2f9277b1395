"""Proxies against what they stand for: whole runs, closed forms, and their order on real candidates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from paretopress.compressors.network import runner
from paretopress.compressors.tuning import tune
from paretopress.evaluators.divergence import divergence
from paretopress.evaluators.perturbations import changes, output_curvatures, output_gradients
from paretopress.evaluators.proxies import (
    LOCAL,
    PROXIES,
    ProxyTable,
    _OutputMetric,
    cells_of,
    check_proxy,
    interactions,
    local_tables,
)
from paretopress.evaluators.sensitivity import SensitivityTable, is_weaker, substitution_loss
from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


@pytest.fixture(scope="module")
def found(small):
    return local_tables(small.entries, small.space), interactions(small.entries, small.space)


def test_a_changed_layer_s_output_is_that_of_the_whole_candidate(small):
    """Everything before it is dense in both: each choice of weights, against a run of the tuned network."""
    compared = 0
    for unit, options in small.space.options.items():
        layers = [layer for layer in small.structure.layers if unit == f"{layer.name}/weights"]
        for choice in options[1:] if layers else ():
            node, policy = layers[0].node, Policy.of({unit: choice})
            (change,) = changes(small.entries, policy)
            network, _ = tune(small.program, small.entries.stitch(plan(small.structure, policy)), small.calibration)
            with torch.inference_mode():
                values = small.program.run(small.calibration.inputs, runner(small.program, network),
                                           keep=frozenset([node]))
            expected = values[node] - small.calibration.values[node]
            # Integer biases are rounded to their grid in the finished network.
            tolerance = 2e-2 * float(small.calibration.values[node].std())
            torch.testing.assert_close(change.difference, expected, rtol=0, atol=tolerance)
            assert change.node == node
            compared += 1
    assert compared > 5


def test_pruned_channels_show_in_the_layers_that_read_them(small):
    group = next(unit for unit in small.space.options if unit.endswith("/channels"))
    choice = next(option for option in small.space.options[group][1:] if isinstance(option, Keep))
    touched = {change.node: change for change in changes(small.entries, Policy.of({group: choice}))}
    readers = [small.structure.layer(name).node for name in small.structure.group(group.rpartition("/")[0]).consumers]
    assert set(readers) <= touched.keys()
    assert any(float(touched[node].difference.abs().max()) > 0.0 for node in readers)
    for change in touched.values():
        assert change.difference.shape == change.dense.shape


def test_gradients_of_the_last_layer_are_probabilities_less_the_prediction(small):
    last = small.structure.layers[-1].node
    (output,) = (small.calibration.values[name] for name in small.program.graph.outputs)
    expected = torch.softmax(output, dim=1) - torch.nn.functional.one_hot(output.argmax(dim=1), output.shape[1])
    torch.testing.assert_close(output_gradients(small.entries)[last], expected, rtol=1e-4, atol=1e-6)


def test_the_curvature_of_the_last_layer_is_half_the_trace_of_the_fisher_metric(small):
    last = small.structure.layers[-1].node
    (output,) = (small.calibration.values[name] for name in small.program.graph.outputs)
    chances = torch.softmax(output.double(), dim=1)
    expected = 0.5 * float((chances * (1 - chances)).sum(dim=1).mean())
    estimates = [output_curvatures(small.entries, seed)[last] for seed in range(6)]
    assert np.mean(estimates) == pytest.approx(expected, rel=0.15)


def test_every_local_proxy_is_finite_monotone_and_the_same_twice(small, found):
    tables = found[0]
    assert tuple(tables) == LOCAL
    again = local_tables(small.entries, small.space)
    for name, one in tables.items():
        assert one.table == again[name].table
        assert one.seconds > 0.0
        for unit, options in small.space.options.items():
            row = one.table.losses[unit]
            assert row[0] == 0.0
            assert all(math.isfinite(loss) and loss >= 0.0 for loss in row)
            for first, a in zip(options, row, strict=True):
                assert all(a <= b for other, b in zip(options, row, strict=True) if is_weaker(first, other))
        assert any(row[-1] > 0.0 for row in one.table.losses.values())


def test_the_output_metric_is_the_divergence_to_second_order():
    """By hand: two even classes, scores e apart from each other either way: KL is e^2 / 2."""
    dense = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    change = torch.tensor([[0.01, -0.01], [0.02, 0.0]])
    features = _OutputMetric([dense]).features([dense + change])
    assert float(np.square(features).sum()) == pytest.approx(0.5 * (0.5 * 0.01**2 + 0.5 * 0.01**2), rel=1e-3)
    assert float(np.square(features).sum()) == pytest.approx(divergence([dense], [dense + change]), rel=5e-3)
    image = torch.randn(3, 2, 4, 4)
    features = _OutputMetric([image]).features([1.1 * image])
    assert float(np.square(features).sum()) == pytest.approx(divergence([image], [1.1 * image]), rel=1e-4)


def test_interactions_of_one_choice_are_its_divergence(small, found):
    pairs = found[1]
    for unit, options in small.space.options.items():
        for index, choice in enumerate(options[1:], 1):
            policy = Policy.of({unit: choice})
            assert pairs.divergences[unit, index] == substitution_loss(small.entries, policy)
            assert pairs.scores(small.space, [policy]) == pytest.approx([pairs.divergences[unit, index]], rel=1e-4)


def test_interactions_of_two_choices_are_their_outputs_added_up(small, found):
    """Each at its own measured size, at the angle between the changes in the Fisher metric."""
    pairs = found[1]
    names = [unit for unit, options in small.space.options.items() if len(options) > 1][:2]
    (dense,) = (small.calibration.values[name].double() for name in small.program.graph.outputs)
    chances = torch.softmax(dense, dim=1)
    changes, alone = [], []
    for unit in names:
        one = Policy.of({unit: small.space.options[unit][-1]})
        _, values = tune(small.program, small.entries.stitch(plan(small.structure, one)), small.calibration)
        changes.append(values[small.program.graph.outputs[0]].double() - dense)
        alone.append(substitution_loss(small.entries, one))

    def inner(a, b):
        return float(((chances * a * b).sum(dim=1) - (chances * a).sum(dim=1) * (chances * b).sum(dim=1)).mean())

    a, b = changes
    cosine = inner(a, b) / math.sqrt(inner(a, a) * inner(b, b))
    expected = alone[0] + alone[1] + 2 * cosine * math.sqrt(alone[0] * alone[1])
    policy = Policy.of({unit: small.space.options[unit][-1] for unit in names})
    assert pairs.scores(small.space, [policy]) == pytest.approx([expected], rel=1e-3)
    rows = [pairs.place[cell] for cell in cells_of(small.space, policy)]
    assert float(pairs.pairs()[np.ix_(rows, rows)].sum()) == pytest.approx(expected, rel=1e-3)


def test_the_additive_table_around_a_policy_adds_up_to_its_interactions(small, found):
    """Where no entry is repaired or cut at 0: alone plus the pairs with the others, summed, is the whole form."""
    pairs, names = found[1], [unit for unit, options in small.space.options.items() if len(options) > 1][:3]
    policy = Policy.of({unit: small.space.options[unit][1] for unit in names})
    table = pairs.table_around(small.space, policy)
    gram = pairs.pairs()
    for unit, index in cells_of(small.space, policy):
        row = pairs.place[unit, index]
        others = [pairs.place[cell] for cell in cells_of(small.space, policy) if cell[0] != unit]
        assert table.losses[unit][index] >= max(0.0, gram[row, row] + gram[row, others].sum()) - 1e-9


def test_all_proxies_order_candidates_like_their_divergence(small, found):
    """Candidates from mild to strong: every proxy must say which lose more."""
    from paretopress.search.correlation import kendall

    rng = np.random.default_rng(0)
    policies = []
    for share in np.linspace(0.1, 1.0, 24):
        chosen = {unit: options[int(rng.integers(1, len(options)))] for unit, options in small.space.options.items()
                  if len(options) > 1 and rng.random() < share}
        policies.append(Policy.of(chosen))
    truth = [substitution_loss(small.entries, policy) for policy in policies]
    tables = {**found[0], "interactions": found[1]}
    for name, one in tables.items():
        # Errors that are not relative to their layer say least.
        least = 0.2 if name == "output_error" else 0.4
        assert kendall(one.scores(small.space, policies), truth) > least, name


def test_little_time_measures_one_choice_of_every_family_and_estimates_the_rest(small):
    tables = local_tables(small.entries, small.space, ("snr",), seconds=0.0)
    assert tables["snr"].table.estimated
    assert set(tables["snr"].table.losses) == set(small.space.options)
    few = interactions(small.entries, small.space, seconds=0.0)
    assert 0 < len(few.place) < sum(len(options) - 1 for options in small.space.options.values())


def test_scores_add_up_the_table(small):
    table = SensitivityTable({unit: tuple(float(10**place * index) for index in range(len(options)))
                              for place, (unit, options) in enumerate(small.space.options.items())})
    first, second = list(small.space.options)[:2]
    policy = Policy.of({first: small.space.options[first][2], second: small.space.options[second][1]})
    assert ProxyTable("divergence", table, 0.0).scores(small.space, [policy, Policy.of({})]) == [12.0, 0.0]


def test_unknown_names_and_choices_are_refused(small):
    with pytest.raises(ConfigError, match=r"unknown proxy 'fischer'.*fisher"):
        check_proxy("fischer")
    with pytest.raises(ConfigError, match="unknown proxy"):
        local_tables(small.entries, small.space, ("divergence",))
    with pytest.raises(ConfigError, match="not among the options"):
        list(cells_of(small.space, Policy.of({"last/weights": Weights(8, 32, group=16)})))
    assert len(set(PROXIES)) == 7


def test_the_divergence_is_the_reference(small):
    """0 for the dense model, and of a candidate what its outputs give."""
    dense = [small.calibration.values[name] for name in small.program.graph.outputs]
    assert divergence(dense, dense) == 0.0
    assert substitution_loss(small.entries, Policy.of({})) == 0.0
