"""The prior of a table: right order without a measurement, right level with a few, honest about what it knows."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "search"))
from known_models import INTEGERS, features, loss_of, options, recipe

from paretopress.evaluators.sensitivity_prior import SensitivityPrior
from paretopress.search.correlation import spearman
from paretopress.spaces.choices import Weights

TARGET = features(9)
OFFERED = options(TARGET)


def truth(cells):
    return np.log([loss_of(unit, OFFERED[unit][option], TARGET) for unit, option in cells])


@pytest.fixture(scope="module")
def prior():
    return SensitivityPrior([recipe("short", 6)], TARGET, OFFERED)


def test_a_sibling_orders_the_choices_of_a_deeper_model(prior):
    means, errors = prior.predict()
    assert len(prior.cells) == sum(len(choices) - 1 for choices in OFFERED.values())
    assert spearman(list(means), list(truth(prior.cells))) > 0.95
    assert (errors > 0.0).all()


def test_another_family_is_less_certain_and_measurements_make_up_for_it():
    far = SensitivityPrior([recipe("other", 6, pattern="stage.*.mix", operator="linear")], TARGET, OFFERED)
    near = SensitivityPrior([recipe("short", 6)], TARGET, OFFERED)
    assert far.predict()[1].mean() > near.predict()[1].mean()
    before = np.abs(far.predict()[0] - truth(far.cells)).mean()
    uncertain = far.predict()[1].mean()
    cells = far.next_cells(16, set(far.cells))
    assert len(set(cells)) == 16
    far.learn({cell: math.exp(value) for cell, value in zip(cells, truth(cells), strict=True)})
    assert np.abs(far.predict()[0] - truth(far.cells)).mean() < before
    assert far.predict()[1].mean() < uncertain
    assert not set(far.next_cells(16, set(far.cells))) & set(cells)


def test_a_level_that_differs_is_learnt_from_few():
    shifted = recipe("short", 6)
    louder = type(shifted)("short", {}, shifted.features, shifted.options,
                           {unit: tuple(5.0 * loss for loss in row) for unit, row in shifted.losses.items()})
    found = SensitivityPrior([louder], TARGET, OFFERED)
    cells = found.next_cells(10, set(found.cells))
    found.learn({cell: math.exp(value) for cell, value in zip(cells, truth(cells), strict=True)})
    rest = [cell for cell in found.cells if cell not in cells]
    assert np.median(np.abs(found.predict(rest)[0] - truth(rest))) < 0.5


def test_the_table_keeps_what_was_measured_and_marks_the_rest(prior):
    own = SensitivityPrior([recipe("short", 6)], TARGET, OFFERED)
    cell = ("block.4.conv/channels", 3)
    own.learn({cell: 0.123})
    table = own.table()
    assert table.losses[cell[0]][0] == 0.0
    assert cell not in table.estimated
    assert len(table.estimated) == len(own.cells) - 1
    for unit, row in table.losses.items():
        assert list(row) == sorted(row) or not unit.endswith("/channels")   # removing more never loses less
    assert own.measured[cell] == pytest.approx(0.123)


def test_eight_bit_losses_add_up_to_the_loss_of_all_layers_at_once():
    offered = options(TARGET, INTEGERS)
    found = SensitivityPrior([recipe("short", 6)], TARGET, offered).table(together=0.04)
    units = [unit for unit in offered if unit.endswith("/weights")]
    assert sum(found.losses[unit][offered[unit].index(Weights(8))] for unit in units) == pytest.approx(0.04, rel=1e-6)


def test_without_a_table_nothing_is_claimed():
    found = SensitivityPrior([], TARGET, OFFERED)
    assert found.sources == ()
    assert len(found.next_cells(4, set(found.cells))) == 4
    assert np.isfinite(found.predict()[0]).all()


def test_estimated_losses_of_a_source_teach_nothing():
    known = recipe("short", 6)
    wrong = {unit: tuple(loss and 9.0 for loss in row) for unit, row in known.losses.items()}
    cells = frozenset((unit, option) for unit, row in wrong.items() for option in range(1, len(row)))
    found = SensitivityPrior([type(known)("x", {}, known.features, known.options, wrong, cells)], TARGET, OFFERED)
    empty = SensitivityPrior([], TARGET, OFFERED)
    assert found.predict()[0] == pytest.approx(empty.predict()[0])
