"""The sensitivity table in any order and in part: what was not measured follows a power law."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.evaluators.sensitivity import (
    WORST_LOSS,
    amount,
    assemble,
    cells_in_order,
    first_cells,
    kind_of,
    power_law,
)
from paretopress.search.executors import SerialExecutor
from paretopress.search.table import measure_table, read_table, write_table
from paretopress.search.tasks import Substitution
from paretopress.spaces.choices import Factorised, Keep, Weights

KEEPS = (None, *(Keep(eighths / 8) for eighths in range(7, -1, -1)))
FORMATS = (None, Weights(8), Weights(8, 32), Weights(4), Weights(4, 32), Weights(3), Weights(2))
RANKS = (None, Factorised("svd", 24), Factorised("svd", 16), Factorised("svd", 8))
SPACE = SimpleNamespace(options={"a/channels": KEEPS, "a/weights": FORMATS, "b/rank": RANKS, "b/weights": FORMATS})
TOTAL = sum(len(options) - 1 for options in SPACE.options.values())


def loss_of(choice):
    """A power law of exponent 3 with a factor of its own per family; a dropped branch obeys none."""
    if kind_of(choice) == ("drop",):
        return 7.0
    return (2 if "8" in kind_of(choice) else 1) * amount(choice) ** 3


class Laws:
    """Answers substitutions from the law; counts them; may fail or be slow."""

    def __init__(self, fails=None):
        self.asked, self.fails = [], fails

    def __call__(self, task):
        assert isinstance(task, Substitution)
        self.asked.append(task.policy)
        choices = [choice for _, choice in task.policy]
        if self.fails in choices:
            raise RuntimeError("it\nbroke")
        return Evaluation(State.COMPLETE, {"loss": sum(map(loss_of, choices))})


def test_every_cell_is_measured_once_whatever_comes_first():
    laws = Laws()
    seen = []
    table, failures = measure_table(SPACE, SerialExecutor(laws), on_cell=lambda: seen.append(1))
    assert len(laws.asked) == len(set(laws.asked)) == len(seen) == TOTAL + 1   # and all layers in 8 bits
    assert failures == []
    assert table.estimated == frozenset()
    for unit, options in SPACE.options.items():
        for choice, loss in zip(options, table.losses[unit], strict=True):
            assert choice is None or loss == pytest.approx(loss_of(choice))


def test_the_first_cells_are_one_of_each_family():
    cells = cells_in_order(SPACE)
    first = [(unit, kind_of(SPACE.options[unit][index])) for unit, index in cells[: first_cells(SPACE)]]
    families = {(unit, kind_of(c)) for unit, options in SPACE.options.items() for c in options if c is not None}
    assert len(first) == len(families) == 7
    assert set(first) == families
    assert sorted(cells) == sorted((u, i) for u, o in SPACE.options.items() for i, c in enumerate(o) if c is not None)


def test_without_time_one_of_each_family_is_measured_and_the_rest_estimated():
    laws = Laws()
    table, _ = measure_table(SPACE, SerialExecutor(laws), seconds=0.0)
    assert len(laws.asked) == first_cells(SPACE) + 1
    assert len(table.estimated) == TOTAL - first_cells(SPACE)
    for row in table.losses.values():
        assert row[0] == 0.0
        assert all(loss > 0.0 for loss in row[1:])
    assert table.losses["a/channels"][-1] == pytest.approx(7.0)
    plain = table.to_plain(SPACE)
    marked = {(unit, index) for unit, row in plain.items() for index, cell in enumerate(row) if cell.get("estimated")}
    assert marked == table.estimated


@settings(max_examples=50, deadline=None)
@given(st.integers(first_cells(SPACE) + 6, TOTAL))
def test_a_law_is_found_again_from_the_cells_that_were_measured(count):
    """With two cells of a family the exponent is known, so every estimate is exact."""
    cells = cells_in_order(SPACE)[:count]
    measured = {(unit, index): loss_of(SPACE.options[unit][index]) for unit, index in cells}
    table = assemble(SPACE, measured, None)
    families = [(unit, kind_of(SPACE.options[unit][index])) for unit, index in cells]
    for unit, index in table.estimated:
        choice = SPACE.options[unit][index]
        if families.count((unit, kind_of(choice))) > 1:
            assert table.losses[unit][index] == pytest.approx(loss_of(choice), rel=1e-6)


@pytest.mark.parametrize(
    ("points", "at", "loss"),
    [
        ([(0.5, 2.0)], 0.25, 0.5),                                # the usual exponent 2
        ([(0.25, 1.0), (0.5, 8.0)], 0.125, 1 / 8),                # exponent 3, below
        ([(0.25, 1.0), (0.5, 8.0), (1.0, 8.0)], 0.75, 8.0),       # between the last two
        ([(0.25, 0.0), (0.5, 0.0)], 0.4, 1e-9),                   # no loss stays hardly any
        ([(0.25, 1e-9), (0.26, 1e6)], 1.0, WORST_LOSS),           # finite however steep
        ([], 0.5, WORST_LOSS),
    ],
)
def test_power_law(points, at, loss):
    assert power_law(points, at) == pytest.approx(loss)


def test_a_cell_that_fails_is_the_worst_and_says_why():
    table, failures = measure_table(SPACE, SerialExecutor(Laws(fails=Keep(0.0))))
    assert table.losses["a/channels"][-1] == WORST_LOSS
    assert len(failures) == 1
    assert "a/channels" in failures[0]
    assert "RuntimeError: it broke" in failures[0]


def test_a_stored_table_is_read_back_only_for_its_own_problem(tmp_path):
    path, key = tmp_path / "sensitivity.json", {"model": "one"}
    table, _ = measure_table(SPACE, SerialExecutor(Laws()), seconds=0.0)
    write_table(path, key, table, SPACE)
    assert read_table(path, key, SPACE) == table
    assert read_table(path, {"model": "two"}, SPACE) is None
    assert read_table(path, key, SimpleNamespace(options={**SPACE.options, "b/rank": RANKS[:2]})) is None
    assert read_table(tmp_path / "none.json", key, SPACE) is None
    path.write_text(json.dumps(["not", "a", "table"]))
    assert read_table(path, key, SPACE) is None
