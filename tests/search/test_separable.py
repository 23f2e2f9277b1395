"""Problems without coupling: the plain recursion, its certificate, and restrictions of choices."""

from __future__ import annotations

import numpy as np
import pytest
from exact_problems import all_rows, front_of, layers_by_choices, separable_problem

from paretopress.search import exact
from paretopress.search.exact import CostTerm, ExactProblem, evaluate, solve_budget, solve_front
from paretopress.search.separable import separable_front
from paretopress.spaces.errors import ConfigError


def values_of(front):
    return [(point.cost, point.loss) for point in front.points]


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_two_hundred_small_problems_equal_brute_force_with_ties(tolerance):
    """By merging sets, and by the recursion over a grid of all costs, which a tolerance tries first."""
    tied = 0
    for seed in range(200):
        problem = separable_problem(seed)
        rows = all_rows(problem)
        front = solve_front(problem, tolerance=tolerance)
        assert values_of(front) == front_of(problem, rows), seed
        assert (front.gap, front.buckets) == (0.0, None)
        values = np.stack(evaluate(problem, rows), axis=1)
        tied += len(np.unique(values, axis=0)) < len(values)
    assert tied > 150   # the small integers really make ties


@pytest.mark.parametrize("buckets", [3, 17, 64])
def test_the_certificate_of_a_rounded_recursion_holds(buckets):
    rounded = 0
    for seed in range(25):
        problem = separable_problem(seed, integers=False)
        front = solve_front(problem, buckets=buckets, tolerance=10.0)
        points = np.array(values_of(front))
        for cost, loss in front_of(problem, all_rows(problem)):
            covering = points[points[:, 1] <= loss + 1e-9, 0]
            assert covering.min() <= cost * (1 + front.gap) + 1e-9
        rounded += front.gap > 0.0
    assert rounded


def test_every_floor_is_a_bound_on_its_own():
    bounded = 0
    for seed in range(25):
        problem = separable_problem(seed, integers=False)
        _, floors, whole = separable_front(problem, 40)
        costs, losses = evaluate(problem, all_rows(problem))
        assert whole == (not floors)
        for floor in floors:
            assert (floor.below(losses + 1e-9) <= costs + 1e-9).all()
            bounded += 1
    assert bounded > 60


def test_real_costs_become_exact_without_tolerance():
    for seed in range(25):
        problem = separable_problem(seed, integers=False)
        front = solve_front(problem)
        assert front.gap == 0.0
        assert np.array(values_of(front)) == pytest.approx(np.array(front_of(problem, all_rows(problem))))


def test_a_large_front_is_certified_tightly_and_a_finer_one_lies_within_its_gap():
    problem = layers_by_choices(0)
    quick, fine = solve_front(problem, tolerance=0.05), solve_front(problem)
    assert 0.0 == fine.gap < quick.gap < 0.02
    points = np.array(values_of(quick))
    assert points[[0, -1]] == pytest.approx(np.array(values_of(fine))[[0, -1]])
    for cost, loss in values_of(fine):
        assert points[points[:, 1] <= loss + 1e-12, 0].min() <= cost * (1 + quick.gap)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
def test_large_budgets_agree_with_integer_programming(share):
    """HiGHS proves what is best to a hundredth of a percent; the answer at a budget is as good."""
    problem = layers_by_choices(1)
    ends = solve_front(problem, buckets=64, tolerance=10.0).points
    budget = ends[0].cost + share * (ends[-1].cost - ends[0].cost)
    found = solve_budget(problem, budget)
    loss, bound = highs(problem, budget)
    assert found is not None
    assert found.cost <= budget
    assert bound - 1e-9 <= found.loss <= loss * (1 + 1e-3) + 1e-9


def highs(problem, budget):
    """Least loss within a budget by HiGHS, and its proven bound: one binary per option."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_diag

    cost = np.concatenate([term.table for term in problem.costs])
    loss = np.concatenate([problem.losses[unit] for unit in problem.options])
    one_each = block_diag([np.ones((1, count)) for count in problem.options.values()])
    found = milp(
        loss, integrality=np.ones(len(loss)), bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(cost[None], -np.inf, budget)],
        options={"time_limit": 10.0, "mip_rel_gap": 1e-4},
    )
    return found.fun, found.mip_dual_bound


@pytest.mark.parametrize("seed", range(40))
def test_pins_and_units_that_choose_alike_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    options = {"a": 3, "b": 3, "c": 2, "d": 3}
    table = lambda *units: rng.integers(0, 9, [options[unit] for unit in units]).astype(float)  # noqa: E731
    problem = ExactProblem(
        options, {unit: table(unit) for unit in options},
        tuple(CostTerm(units, table(*units)) for units in (("a", "c"), ("b", "a"), ("d",), ("d", "b", "c"))),
        (CostTerm(("d", "a"), table("d", "a")),), constant_cost=3.0,
    )
    rows = all_rows(problem)
    rows = rows[(rows[:, 0] == rows[:, 3]) & (rows[:, 2] == 1)]
    front = solve_front(problem, pins={"c": 1}, equal=[("d", "a")])
    assert values_of(front) == front_of(problem, rows)
    for point in front.points:
        assert point.assignment["a"] == point.assignment["d"]
        assert point.assignment["c"] == 1
        again = evaluate(problem, np.array([[point.assignment[unit] for unit in options]]))
        assert (again[0][0], again[1][0]) == (point.cost, point.loss)
    middle = front.points[len(front.points) // 2]
    assert solve_budget(problem, middle.cost, pins={"c": 1}, equal=[("d", "a")]).loss == middle.loss


def test_groups_with_a_unit_in_common_choose_alike():
    problem = separable_problem(3, units=4, most_options=1)
    problem = ExactProblem(dict.fromkeys(problem.options, 2), {}, tuple(
        CostTerm((unit,), np.array([0.0, 2.0**place])) for place, unit in enumerate(problem.options)
    ), tuple(CostTerm((unit,), np.array([1.0, 0.0])) for unit in problem.options))
    front = solve_front(problem, equal=[("u0", "u1"), ("u3", "u1")])
    assert values_of(front) == [(0.0, 4.0), (4.0, 3.0), (11.0, 1.0), (15.0, 0.0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pins": {"x": 0}}, "unknown unit 'x'"),
        ({"pins": {"u0": 9}}, "unit 'u0' has options"),
        ({"equal": [("u0", "x")]}, "unknown unit 'x'"),
        ({"pins": {"a": 0, "b": 1}, "equal": [("a", "b")]}, "no option is left"),
        ({"equal": [("a", "c")]}, "same number of options, got 'a' 2, 'c' 3"),
        ({"tolerance": -0.1}, "tolerance"),
    ],
)
def test_restrictions_that_make_no_sense_are_refused(arguments, message):
    problem = ExactProblem({"u0": 2, "a": 2, "b": 2, "c": 3}, {}, ())
    with pytest.raises(ConfigError, match=message):
        solve_front(problem, **arguments)


def test_a_tolerance_saves_the_finer_solve(monkeypatch):
    problem = layers_by_choices(0, layers=8)
    coarse = solve_front(problem, buckets=256, tolerance=1.0)
    monkeypatch.setattr(exact, "eliminate_sets", lambda *_: pytest.fail("not needed"))
    assert values_of(solve_front(problem, buckets=256, tolerance=1.0)) == values_of(coarse)
