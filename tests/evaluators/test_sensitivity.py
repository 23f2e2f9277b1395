"""The sensitivity table: monotone repair, and the cached prefix against none."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.compressors.tuning import changed_nodes, tune
from paretopress.evaluators import construction
from paretopress.evaluators.divergence import divergence
from paretopress.evaluators.sensitivity import (
    WORST_LOSS,
    assemble,
    cells_in_order,
    integer_choices,
    is_weaker,
    monotone,
    substitution_loss,
)
from paretopress.spaces.choices import Binary, Clustered, Factorised, Half, Keep, Sparse, Weights
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

OPTIONS = st.one_of(
    st.lists(st.sampled_from([0.75, 0.5, 0.25, 0.125]), unique=True, max_size=4).map(
        lambda ratios: (None, *map(Keep, ratios))
    ),
    st.lists(st.tuples(st.sampled_from([8, 4, 3, 2]), st.sampled_from([32, 8])), unique=True, max_size=8).map(
        lambda pairs: (None, *(Weights(bits, activations) for bits, activations in pairs))
    ),
    st.lists(st.sampled_from([16, 8, 4, 2]), unique=True, max_size=4).map(
        lambda ranks: (None, *(Factorised("svd", rank) for rank in ranks))
    ),
    st.lists(st.sampled_from([Half("fp16"), Half("bf16"), Clustered(4), Clustered(2), Binary(1), Binary(3), Weights(8),
                              Binary(1, 8)]), unique=True, max_size=6).map(lambda formats: (None, *formats)),
    st.lists(st.sampled_from([Sparse(0.5), Sparse(0.25), Sparse(0.5, "2:4"), Sparse(0.25, "1:4")]), unique=True,
             max_size=4).map(lambda kept: (None, *kept)),
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_repair_gives_the_smallest_monotone_table_above_the_measured_one(data):
    options = data.draw(OPTIONS)
    losses = [0.0, *(data.draw(st.floats(0.0, 10.0)) for _ in options[1:])]
    repaired = monotone(options, losses)
    assert all(after >= before for before, after in zip(losses, repaired, strict=True))
    for (one, a), (other, b) in itertools.permutations(zip(options, repaired, strict=True), 2):
        if is_weaker(one, other):
            assert a <= b
    # The smallest: every value is one that was measured on a choice that is no stronger.
    for choice, value in zip(options, repaired, strict=True):
        assert value in [loss for other, loss in zip(options, losses, strict=True) if is_weaker(other, choice)]
    assert monotone(options, list(repaired)) == repaired


def test_bits_and_activations_are_compared_apart():
    options = (None, Weights(8, 32), Weights(4, 32), Weights(8, 8), Weights(4, 8))
    assert monotone(options, [0.0, 3.0, 1.0, 2.0, 0.5]) == (0.0, 3.0, 3.0, 3.0, 3.0)
    assert monotone(options, [0.0, 0.0, 4.0, 1.0, 2.0]) == (0.0, 0.0, 4.0, 1.0, 4.0)


def choices_of(space):
    return [(unit, choice) for unit, options in space.options.items() for choice in options if choice is not None]


def test_a_cached_prefix_changes_nothing(small):
    """One forward pass from the changed layer equals a whole one, for every single choice.

    The whole pass corrects the statistics of unchanged layers too, by factors that are 1 up to rounding.
    """
    outputs = small.program.graph.outputs
    skipped = 0
    for unit, choice in choices_of(small.space):
        network = small.entries.stitch(plan(small.structure, Policy.of({unit: choice})))
        skipped += len(list(small.program.graph.operators())) - len(changed_nodes(small.program, network))
        _, fast = tune(small.program, network, small.calibration)
        _, whole = tune(small.program, network, small.calibration, cached=False)
        for name in outputs:
            torch.testing.assert_close(fast[name], whole[name], rtol=1e-5, atol=1e-5)
        dense = [small.calibration.values[name] for name in outputs]
        expected = divergence(dense, [fast[name] for name in outputs])
        assert substitution_loss(small.entries, Policy.of({unit: choice})) == expected
    assert skipped > len(choices_of(small.space))   # the prefix is really left out


def test_the_cached_prefix_is_the_dense_model_s(small):
    """What a single choice leaves unchanged keeps the dense values bit for bit; what it changes is computed."""
    for unit, choice in choices_of(small.space):
        network = small.entries.stitch(plan(small.structure, Policy.of({unit: choice})))
        changed = changed_nodes(small.program, network)
        assert set(small.program.graph.outputs) <= changed
        assert small.structure.layer(unit.rpartition("/")[0]).node in changed
        _, values = tune(small.program, network, small.calibration)
        for node in small.program.graph.operators():
            if node.name in values and node.name not in changed:
                assert torch.equal(values[node.name], small.calibration.values[node.name])


def table_of(small):
    """The whole table, every cell by its own substitution."""
    measured = {
        (unit, index): substitution_loss(small.entries, Policy.of({unit: small.space.options[unit][index]}))
        for unit, index in cells_in_order(small.space)
    }
    return assemble(small.space, measured, substitution_loss(small.entries, Policy.of(integer_choices(small.space))))


def test_the_table_is_monotone_finite_and_the_same_twice(small):
    table = table_of(small)
    for unit, options in small.space.options.items():
        row = table.losses[unit]
        assert len(row) == len(options)
        assert row[0] == 0.0
        assert all(math.isfinite(loss) and loss >= 0.0 for loss in row)
        for (one, a), (other, b) in itertools.permutations(zip(options, row, strict=True), 2):
            if is_weaker(one, other):
                assert a <= b + 1e-12, (unit, one, other)
    assert table_of(small) == table
    assert any(row[-1] > row[1] > 0.0 for row in table.losses.values())


def test_a_dropped_branch_may_lose_less_than_a_thin_one():
    options = (None, Keep(0.5), Keep(0.125), Keep(0.0))
    assert monotone(options, [0.0, 0.3, 0.2, 0.1]) == (0.0, 0.3, 0.3, 0.1)


def test_single_8_bit_losses_are_scaled_to_what_all_layers_in_8_bits_lose(small):
    table = table_of(small)
    integer = {unit: Weights(8) for unit, options in small.space.options.items() if Weights(8) in options}
    together = substitution_loss(small.entries, Policy.of(integer))
    alone = sum(substitution_loss(small.entries, Policy.of({unit: choice})) for unit, choice in integer.items())
    added = sum(table.losses[unit][small.space.options[unit].index(choice)] for unit, choice in integer.items())
    assert added == pytest.approx(min(together, alone), rel=1e-6)


def test_a_choice_whose_outputs_are_not_finite_is_the_worst(small, monkeypatch):
    monkeypatch.setattr(construction, "divergence", lambda *_: math.inf)
    unit, choice = choices_of(small.space)[0]
    assert substitution_loss(small.entries, Policy.of({unit: choice})) == WORST_LOSS


def test_plain_data_names_every_choice_with_its_loss(small):
    table = table_of(small)
    plain = table.to_plain(small.space)
    assert {unit: [entry["loss"] for entry in row] for unit, row in plain.items()} == {
        unit: list(row) for unit, row in table.losses.items()
    }
    assert all(row[0]["choice"] is None for row in plain.values())
