"""The exact solver against brute force, integer programming, and its own certificates."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paretopress.search import bounds, pareto_sets
from paretopress.search.exact import (
    CostTerm,
    ExactProblem,
    cheapest,
    evaluate,
    exchange_rates,
    solve_budget,
    solve_front,
)
from paretopress.search.pareto import hypervolume, non_dominated
from paretopress.spaces.errors import ConfigError

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def random_problem(seed, *, integers=True, coupled=True, units=None, most_options=4):
    """A small factor graph with a shared hub, ties, and cost terms with negative entries."""
    rng = np.random.default_rng(seed)
    count = units or int(rng.integers(1, 7))
    options = {f"u{i}": int(rng.integers(1, most_options + 1)) for i in range(count)}
    names = list(options)

    def table(scope, low, high):
        shape = tuple(options[name] for name in scope)
        return (rng.integers(low, high, shape) if integers else rng.uniform(low, high, shape)).astype(float)

    losses = {name: table((name,), 0, 6) for name in names if rng.random() < 0.8}
    costs = []
    loss_terms = []
    for _ in range(int(rng.integers(1, 2 * count + 1))):
        size = int(rng.integers(1, min(4, count) + 1))
        scope = tuple(rng.permutation(names)[:size].tolist())
        if names[0] not in scope and rng.random() < 0.6 and size > 1:
            scope = (names[0], *scope[1:])
        costs.append(CostTerm(scope, table(scope, -3, 9)))
    if coupled and count > 1 and rng.random() < 0.5:
        loss_terms.append(CostTerm((names[0], names[-1]), table((names[0], names[-1]), 0, 5)))
    return ExactProblem(options, losses, tuple(costs), tuple(loss_terms), constant_cost=200.0)


def everything(problem):
    rows = np.array(list(itertools.product(*(range(n) for n in problem.options.values()))), dtype=np.int64)
    return np.stack(evaluate(problem, rows), axis=1)


def brute_front(problem):
    values = everything(problem)
    return sorted(map(tuple, values[non_dominated(values)].tolist()))


def assert_consistent(problem, front):
    """Points are real assignments, by rising cost and strictly falling loss."""
    rows = np.array([[p.assignment[u] for u in problem.options] for p in front.points], dtype=np.int64)
    costs, losses = evaluate(problem, rows)
    assert [p.cost for p in front.points] == pytest.approx(costs)
    assert [p.loss for p in front.points] == pytest.approx(losses)
    assert (np.diff([p.cost for p in front.points]) > 0).all()
    assert (np.diff([p.loss for p in front.points]) < 0).all()


def assert_certified(problem, front):
    """Every assignment has a returned point with no more loss and at most (1 + gap) times its cost."""
    points = np.array([(p.cost, p.loss) for p in front.points])
    for cost, loss in everything(problem):
        covering = points[points[:, 1] <= loss + 1e-9]
        assert len(covering)
        assert covering[:, 0].min() <= cost * (1 + front.gap) + 1e-9


def test_evaluate_adds_the_tables_by_hand():
    problem = ExactProblem(
        {"a": 2, "b": 2},
        {"a": np.array([3.0, 0.0])},
        (CostTerm(("b", "a"), np.array([[1.0, 2.0], [4.0, 8.0]])), CostTerm(("a",), np.array([0.0, 16.0]))),
        (CostTerm(("a", "b"), np.array([[0.0, 5.0], [7.0, 0.0]])),),
        constant_cost=100.0,
    )
    costs, losses = evaluate(problem, np.array([[0, 0], [0, 1], [1, 0], [1, 1]]))
    assert costs.tolist() == [101.0, 104.0, 118.0, 124.0]
    assert losses.tolist() == [3.0, 8.0, 7.0, 0.0]


@relaxed
@given(st.integers(0, 10**9))
def test_front_is_brute_force(seed):
    problem = random_problem(seed)
    front = solve_front(problem)
    assert [(p.cost, p.loss) for p in front.points] == brute_front(problem)
    assert (front.gap, front.method, front.buckets) == (0.0, "elimination", None)
    assert_consistent(problem, front)


@relaxed
@given(st.integers(0, 10**9))
def test_front_is_brute_force_when_every_cell_is_merged_on_its_own(seed):
    """The routes for large sets (thinning, the grid recursion) on sets small enough to enumerate."""
    problem = random_problem(seed, units=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pareto_sets, "HEAVY", 1)
        patch.setattr(pareto_sets, "CROWDED", 2)
        front = solve_front(problem)
    assert [(p.cost, p.loss) for p in front.points] == brute_front(problem)
    assert front.gap == 0.0


@relaxed
@given(st.integers(0, 10**9), st.booleans())
def test_bound_sets_drop_nothing_that_matters(seed, integers):
    """Every table is pruned by Lagrangian bounds, however small, and the front stays brute force."""
    problem = random_problem(seed, integers=integers, units=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "WORTHWHILE", 0)
        front = solve_front(problem)
    assert np.array([(p.cost, p.loss) for p in front.points]) == pytest.approx(np.array(brute_front(problem)))
    assert front.gap == 0.0


@relaxed
@given(st.integers(0, 10**9))
def test_real_costs_are_solved_exactly_while_sets_are_small(seed):
    problem = random_problem(seed, integers=False)
    front = solve_front(problem)
    assert np.array([(p.cost, p.loss) for p in front.points]) == pytest.approx(np.array(brute_front(problem)))
    assert front.gap == 0.0


@relaxed
@given(st.integers(0, 10**9), st.sampled_from([1, 2, 5, 12]), st.sampled_from([1, 512]))
def test_gap_is_a_certificate_with_few_buckets(seed, buckets, heavy):
    problem = random_problem(seed, integers=False, units=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pareto_sets, "HEAVY", heavy)
        patch.setattr(pareto_sets, "EXACT_PAIRS", 4)
        patch.setattr(bounds, "WORTHWHILE", heavy - 1)
        front = solve_front(problem, buckets=buckets)
    assert math.isfinite(front.gap)
    assert_certified(problem, front)
    assert_consistent(problem, front)


def test_few_buckets_really_round():
    problem = layered_problem(layers=6)
    exact, coarse = solve_front(problem), solve_front(problem, buckets=2)
    assert exact.gap == 0.0 < coarse.gap
    assert coarse.buckets == 2
    assert len(coarse.points) < len(exact.points)


@relaxed
@given(st.integers(0, 10**9), st.booleans())
def test_lagrangian_bound_is_valid(seed, integers):
    problem = random_problem(seed, integers=integers, units=6)
    front = solve_front(problem, max_table=6)
    assert_consistent(problem, front)
    if math.isfinite(front.gap):
        assert_certified(problem, front)


def test_lagrangian_fallback_gives_a_useful_front():
    """With tables too small for any coupled term, most of the exact front is found, with a finite gap."""
    problem = layered_problem(layers=12)
    exact, front = solve_front(problem), solve_front(problem, max_table=40)
    assert (exact.method, front.method) == ("elimination", "lagrangian")
    assert math.isfinite(front.gap)
    assert front.points[-1].loss == pytest.approx(exact.points[-1].loss)
    ours, truth = (np.array([(p.cost, p.loss) for p in f.points]) for f in (front, exact))
    corner = truth.max(axis=0) * 1.01
    assert hypervolume(ours, corner) > 0.95 * hypervolume(truth, corner)
    for cost, loss in truth:
        assert ours[ours[:, 1] <= loss + 1e-9, 0].min() <= cost * (1 + front.gap) * (1 + exact.gap) + 1e-9


@relaxed
@given(st.integers(0, 10**9))
def test_cheapest_and_budgets_are_brute_force(seed):
    problem = random_problem(seed)
    truth = brute_front(problem)
    least = cheapest(problem)
    assert (least.cost, least.loss) == truth[0]
    assert solve_budget(problem, truth[0][0] - 1) is None
    for budget in (truth[0][0], truth[len(truth) // 2][0], truth[-1][0] + 0.5):
        point = solve_budget(problem, budget)
        assert point is not None
        assert (point.cost, point.loss) == max(p for p in truth if p[0] <= budget)


def layered_problem(layers=28, levels=6, formats=4, seed=0):
    """A chain of channel groups with two layers between neighbours and real-valued costs."""
    rng = np.random.default_rng(seed)
    groups = [f"g{i}" for i in range(layers // 2)]
    options = dict.fromkeys(groups, levels)
    losses = {g: np.sort(rng.random(levels))[::-1] for g in groups}
    width = np.linspace(0.25, 1, levels)
    costs = []
    for layer in range(layers):
        ends = (groups[layer // 2], groups[min(layer // 2 + 1, len(groups) - 1)])
        ends = ends if ends[0] != ends[1] else ends[:1]
        options[f"f{layer}"] = formats
        losses[f"f{layer}"] = np.sort(rng.random(formats)) * 0.3
        size = np.multiply.outer(width, width) if len(ends) == 2 else width
        table = np.multiply.outer(size, np.linspace(1, 0.3, formats)) * rng.uniform(50, 200)
        costs.append(CostTerm((*ends, f"f{layer}"), table + rng.uniform(0, 5, table.shape)))
    return ExactProblem(options, losses, tuple(costs), constant_cost=100.0)


def integer_programme(problem, budget):
    """Lowest loss under a cost budget by HiGHS: one binary per cell of every table, tied to the units."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_matrix

    start = {}
    size = 0
    for unit, count in problem.options.items():
        start[unit] = size
        size += count
    cells = []
    for term in problem.costs:
        cells.append(size)
        size += term.table.size
    loss, cost = np.zeros(size), np.zeros(size)
    for unit, values in problem.losses.items():
        loss[start[unit] : start[unit] + len(values)] = values
    rows = []
    for unit, count in problem.options.items():
        rows.append(({start[unit] + k: 1.0 for k in range(count)}, 1.0))
    for first, term in zip(cells, problem.costs, strict=True):
        cost[first : first + term.table.size] = term.table.ravel()
        numbers = np.arange(term.table.size).reshape(term.table.shape)
        for axis, unit in enumerate(term.units):
            for k in range(problem.options[unit]):
                row = {int(first + c): 1.0 for c in np.take(numbers, k, axis=axis).ravel()}
                row[start[unit] + k] = -1.0
                rows.append((row, 0.0))
    matrix = lil_matrix((len(rows), size))
    for number, (row, _) in enumerate(rows):
        for column, value in row.items():
            matrix[number, column] = value
    right = [value for _, value in rows]
    integral = np.zeros(size)
    integral[: cells[0]] = 1
    result = milp(
        loss,
        integrality=integral,
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(matrix.tocsr(), right, right),
            LinearConstraint(cost[None], -np.inf, budget - problem.constant_cost),
        ],
        options={"time_limit": 20.0},
    )
    assert result.x is not None
    return result.fun, result.mip_dual_bound


def test_large_front_agrees_with_integer_programming():
    problem = layered_problem()
    front = solve_front(problem)
    assert front.gap == 0.0
    costs = np.array([p.cost for p in front.points])
    for share in (0.1, 0.4, 0.7):
        budget = costs[0] + share * (costs[-1] - costs[0])
        found, bound = integer_programme(problem, budget)
        ours = solve_budget(problem, budget)
        assert ours.cost <= budget
        # Nothing beats a proven bound, and integer programming finds nothing better.
        assert bound - 1e-6 <= ours.loss <= found + 1e-6
        assert ours.loss == pytest.approx(min(p.loss for p in front.points if p.cost <= budget))


def test_a_rounded_large_front_keeps_its_certificate():
    """Against the exact front of the same problem, at resolutions that force every rounding route."""
    problem = layered_problem()
    truth = np.array([(p.cost, p.loss) for p in solve_front(problem).points])
    for buckets in (40, 200):
        front = solve_front(problem, buckets=buckets)
        assert 0.0 < front.gap < math.inf
        assert front.buckets == buckets
        points = np.array([(p.cost, p.loss) for p in front.points])
        for cost, loss in truth:
            covering = points[points[:, 1] <= loss + 1e-9, 0]
            assert covering.min() <= cost * (1 + front.gap) + 1e-9


def test_exchange_rates_are_single_moves_in_order():
    problem = random_problem(5, units=5)
    point = solve_front(problem).points[0]
    rates = exchange_rates(problem, point)
    assert len(rates) == sum(n - 1 for n in problem.options.values())
    for unit, option, cost, loss in rates:
        moved = dict(point.assignment) | {unit: option}
        costs, losses = evaluate(problem, np.array([[moved[u] for u in problem.options]]))
        assert (costs[0] - point.cost, losses[0] - point.loss) == pytest.approx((cost, loss))
    saving = [loss / -cost for _, _, cost, loss in rates if cost < 0]
    assert saving == sorted(saving)
    assert all(cost < 0 for _, _, cost, _ in rates[: len(saving)])


def test_degenerate_problems():
    empty = solve_front(ExactProblem({}, {}, (), constant_cost=7.0))
    assert [(p.cost, p.loss, dict(p.assignment)) for p in empty.points] == [(7.0, 0.0, {})]
    free = solve_front(ExactProblem({"a": 3}, {"a": np.array([2.0, 1.0, 1.0])}, ()))
    assert [(p.cost, p.loss, dict(p.assignment)) for p in free.points] == [(0.0, 1.0, {"a": 1})]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"a": 0}, {}, ()), "at least 1"),
        (({"a": 2}, {"b": np.zeros(2)}, ()), "unknown unit 'b'"),
        (({"a": 2}, {"a": np.zeros(3)}, ()), "shape"),
        (({"a": 2}, {"a": np.array([0.0, -1.0])}, ()), ">= 0"),
        (({"a": 2}, {}, (CostTerm(("a",), np.array([0.0, np.nan])),)), "not finite"),
        (({"a": 2}, {}, (CostTerm(("a", "a"), np.zeros((2, 2))),)), "twice"),
    ],
)
def test_malformed_problems_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ExactProblem(*arguments)
