"""Whole fronts by merging sets of units: brute force, variable elimination and integer programming agree."""

from __future__ import annotations

import numpy as np
import pytest
from exact_problems import all_rows, front_of, layers_by_choices, separable_problem

from paretopress.search import merging
from paretopress.search.bounds import bound_set
from paretopress.search.elimination import eliminate_sets, elimination_order
from paretopress.search.exact import CostTerm, ExactProblem, evaluate, solve_budget, solve_front
from paretopress.search.factors import factors_of
from paretopress.search.merging import merged_front
from paretopress.search.pareto_sets import Grid


def values(problem, rows):
    return list(zip(*(one.tolist() for one in evaluate(problem, rows)), strict=True))


@pytest.fixture(params=[(256, 32, 64), (3, 2, 2), (1, 1, 1)], ids=lambda sizes: f"{sizes[0]}-multipliers")
def windows(request, monkeypatch):
    """Many narrow windows, few wide ones, and a single one."""
    for name, size in zip(("MULTIPLIERS", "FEWEST", "CELLS"), request.param, strict=True):
        monkeypatch.setattr(merging, name, size)


@pytest.mark.usefixtures("windows")
def test_two_hundred_small_problems_equal_brute_force_with_ties():
    tied = 0
    for seed in range(200):
        problem = separable_problem(seed, units=2 + seed % 5)
        rows = all_rows(problem)
        assert values(problem, merged_front(problem, 1000)) == front_of(problem, rows), seed
        every = np.stack(evaluate(problem, rows), axis=1)
        tied += len(np.unique(every, axis=0)) < len(every)
    assert tied > 120


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("seed", range(12))
def test_real_tables_of_very_different_sizes_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    options = {f"u{number}": 4 for number in range(7)}
    losses = {unit: 10.0 ** rng.uniform(-6, 2) * rng.random(4) for unit in options}
    costs = tuple(CostTerm((unit,), 10.0 ** rng.uniform(-3, 6) * rng.random(4) - 5.0) for unit in options)
    problem = ExactProblem(options, losses, costs, constant_cost=-3.0)
    found = np.array(values(problem, merged_front(problem, 1 << 20)))
    wanted = np.array(front_of(problem, all_rows(problem)))
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1.0 / 3.0, 1e-7, 123456.789])
def test_costs_that_are_multiples_of_one_unit_tie_whatever_their_scale(scale):
    """Sums of such costs differ in their last digits: without rounding to multiples none of them would be a tie."""
    for seed in range(30):
        whole = separable_problem(seed, units=6, most_options=4)
        scaled = ExactProblem(whole.options, whole.losses, tuple(
            CostTerm(term.units, scale * term.table) for term in whole.costs))
        assert len(merged_front(scaled, 1000)) == len(merged_front(whole, 1000)), seed


def eliminated(problem):
    """Cost and loss of the front by variable elimination, without rounding and without bounds."""
    order, _ = elimination_order(problem.options, [scope for scope, _, _ in factors_of(problem)])
    whole = eliminate_sets(problem, order, Grid(1e-9, False, 1 << 20, np.inf), None)
    assert not whole.rounded
    return list(zip((whole.cost + whole.base).tolist(), whole.loss.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_eighteen_units_of_integer_and_real_costs_agree_with_variable_elimination(seed):
    problem = layers_by_choices(seed, layers=18, choices=9)
    if seed % 2:
        problem = ExactProblem(problem.options, {unit: np.rint(2000 * loss) for unit, loss in problem.losses.items()},
                               tuple(CostTerm(term.units, np.rint(300 * term.table)) for term in problem.costs))
    found = np.array(values(problem, merged_front(problem, 1 << 20)))
    assert len(found) > 100
    assert found == pytest.approx(np.array(eliminated(problem)), rel=1e-9)


def test_a_large_front_holds_all_that_bounds_and_integer_programming_say():
    problem = layers_by_choices(2)
    front = solve_front(problem)
    assert (front.gap, front.buckets) == (0.0, None)
    assert len(front.points) > 10_000
    costs, losses = front.points.costs, front.points.losses
    again = evaluate(problem, front.points.assignments)
    assert (costs.tolist(), losses.tolist()) == (again[0].tolist(), again[1].tolist())
    assert (np.diff(costs) > 0).all()
    assert (np.diff(losses) < 0).all()
    order, cells = elimination_order(problem.options, [scope for scope, _, _ in factors_of(problem)])
    bounds = bound_set(problem, order, front.points.assignments[[0, -1]], sum(cells))
    supported = np.stack(evaluate(problem, bounds.known), axis=1)
    for cost, loss in supported:
        assert losses[np.searchsorted(costs, cost + 1e-9, side="right") - 1] <= loss + 1e-12
    coarse = solve_front(problem, tolerance=1.0)
    assert coarse.gap > 0.0
    for point in coarse.points[::50]:
        best = solve_budget(problem, point.cost)
        assert best.loss <= point.loss
        assert best.loss == losses[np.searchsorted(costs, point.cost, side="right") - 1]


def test_units_with_one_choice_worth_taking_and_sets_that_grow_too_long():
    problem = ExactProblem(
        {"a": 2, "b": 3, "c": 1}, {"a": np.array([1.0, 2.0]), "b": np.array([4.0, 0.0, 9.0])},
        (CostTerm(("a",), np.array([1.0, 2.0])), CostTerm(("b",), np.array([1.0, 5.0, 7.0]))), constant_cost=1.0)
    assert merged_front(problem, 10).tolist() == [[0, 0, 0], [0, 1, 0]]
    alone = ExactProblem({"a": 2}, {"a": np.array([1.0, 2.0])}, (CostTerm(("a",), np.array([1.0, 2.0])),))
    assert merged_front(alone, 10).tolist() == [[0]]
    long = layers_by_choices(0, layers=12)
    assert merged_front(long, 20) is None


def test_too_many_pairs_are_not_looked_at(monkeypatch):
    problem = layers_by_choices(0, layers=12)
    exact = solve_front(problem)
    monkeypatch.setattr(merging, "MOST_PAIRS", 1000)
    assert merged_front(problem, 1 << 20) is None
    assert solve_front(problem).gap <= 0.01
    assert exact.gap == 0.0
