"""Several budgets at once against brute force and integer programming."""

from __future__ import annotations

import math

import numpy as np
import pytest
from exact_problems import all_rows, layers_by_choices, separable_problem

from paretopress.search.exact import CostTerm, ExactProblem, evaluate
from paretopress.search.several_budgets import Resource, solve_within
from paretopress.spaces.errors import ConfigError


def with_second_cost(problem, seed):
    rng = np.random.default_rng([7, seed])
    return ExactProblem(problem.options, problem.losses, tuple(
        CostTerm((unit,), rng.uniform(0, 5, count)) for unit, count in problem.options.items()
    ))


def test_two_budgets_against_brute_force():
    """The bound always holds, and nearly every answer is the best there is."""
    best = feasible = 0
    for seed in range(40):
        one = separable_problem(seed, integers=seed % 2 == 0)
        two = with_second_cost(one, seed)
        rows = all_rows(one)
        (first, losses), (second, _) = evaluate(one, rows), evaluate(two, rows)
        limits = np.quantile(first, 0.3 + seed / 100), np.quantile(second, 0.7 - seed / 100)
        found = solve_within(one.options, one.losses, [
            Resource("ms", one.costs, limits[0], one.constant_cost), Resource("bytes", two.costs, limits[1]),
        ], buckets=256)
        inside = (first <= limits[0]) & (second <= limits[1])
        if not inside.any():
            assert found.assignment is None
            continue
        optimum = losses[inside].min()
        feasible += 1
        assert found.bound <= optimum + 1e-9
        assert found.loss >= optimum - 1e-9
        assert found.costs["ms"] <= limits[0]
        assert found.costs["bytes"] <= limits[1]
        assert found.gap >= found.loss - optimum - 1e-9
        best += found.loss <= optimum + 1e-9
    assert feasible > 25
    assert best >= 0.95 * feasible


def test_a_large_problem_with_two_budgets_comes_close_to_integer_programming():
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_diag

    one = layers_by_choices(2, 20, 12)
    two = with_second_cost(one, 2)
    first = np.concatenate([term.table for term in one.costs])
    second = np.concatenate([term.table for term in two.costs])
    loss = np.concatenate(list(one.losses.values()))
    limits = 0.4 * sum(term.table.max() for term in one.costs), 0.4 * sum(t.table.max() for t in two.costs)
    one_each = block_diag([np.ones((1, count)) for count in one.options.values()])
    truth = milp(loss, integrality=np.ones(len(loss)), bounds=Bounds(0, 1), options={"time_limit": 2.0}, constraints=[
        LinearConstraint(one_each, 1, 1), LinearConstraint(np.stack([first, second]), -np.inf, limits),
    ])
    found = solve_within(one.options, one.losses,
                         [Resource("a", one.costs, limits[0]), Resource("b", two.costs, limits[1])])
    assert found.bound <= truth.fun * (1 + 1e-6)
    assert truth.mip_dual_bound - 1e-9 <= found.loss <= 1.02 * truth.fun
    assert found.gap <= 0.02 * found.loss


def test_budgets_that_nothing_meets_are_proven_to_be_out_of_reach():
    one = separable_problem(1)
    found = solve_within(one.options, one.losses, [Resource("a", one.costs, 9.0, one.constant_cost)])
    assert (found.assignment, found.loss, found.bound, found.gap) == (None, math.inf, math.inf, 0.0)


def test_no_budget_is_refused():
    with pytest.raises(ConfigError, match="at least one budget"):
        solve_within({"a": 2}, {}, [])
