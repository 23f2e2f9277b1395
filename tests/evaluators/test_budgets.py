"""Budgets: every unit, every refusal, and agreement of limit and violation."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretopress.evaluators.budgets import UNITS, parse_budget
from paretopress.spaces.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "objective", "limit"),
    [
        ("<=5ms", "latency", 5.0),
        ("5ms", "latency@cortex-a76-tflite", 5.0),
        (" <= 800 us ", "latency", 0.8),
        ("≤1.5s", "latency", 1500.0),
        ("2e3ns", "latency", 0.002),
        ("<=1MB", "size", 1_000_000),
        ("200KB", "size@stm32-h7a3", 200_000),
        ("1MiB", "size", 1_048_576),
        ("256KiB", "peak_memory@stm32-h7a3", 262_144),
        (".5kB", "size", 500),
        ("<=10M", "macs", 10_000_000),
        ("1200000", "macs", 1_200_000),
        ("3mJ", "energy@stm32-h7a3", 3000.0),
        ("500uJ", "energy", 500.0),
    ],
)
def test_absolute_costs_are_read_in_the_objectives_unit(text, objective, limit):
    budget = parse_budget(text, objective)
    assert budget.kind == "absolute"
    assert budget.resolve(math.nan) == pytest.approx(limit, rel=1e-12)
    assert (budget.objective, budget.text) == (objective, text)


@pytest.mark.parametrize("objective", sorted(UNITS))
def test_a_relative_cost_is_a_share_of_the_baseline(objective):
    budget = parse_budget("-75%", objective)
    assert budget.kind == "relative"
    assert budget.resolve(80.0) == pytest.approx(20.0)
    assert budget.violation(21.0, 80.0) == pytest.approx(1.0)
    assert budget.violation(20.0, 80.0) <= 0.0


def test_a_drop_in_points_and_a_relative_drop_differ():
    points, relative = parse_budget("1pp", "accuracy"), parse_budget("<=2%", "accuracy")
    assert (points.kind, relative.kind) == ("drop", "relative")
    assert points.resolve(0.5) == pytest.approx(0.49)
    assert relative.resolve(0.5) == pytest.approx(0.49)
    assert points.resolve(0.9) == pytest.approx(0.89)
    assert relative.resolve(0.9) == pytest.approx(0.882)


def test_exactly_the_allowed_drop_is_met_despite_rounding():
    for total in (244, 400, 500, 1000, 2500):
        for lost in range(1, 12):
            budget = parse_budget(f"{100 * lost / total!r}pp", "accuracy")
            for right in range(lost, total + 1, 7):
                assert budget.violation((right - lost) / total, right / total) <= 0.0
                if right > lost:
                    assert budget.violation((right - lost - 1) / total, right / total) > 0.0


def test_a_minimised_metric_may_rise_by_a_share_only():
    budget = parse_budget("2%", "perplexity", direction="min")
    assert budget.resolve(10.0) == pytest.approx(10.2)
    assert budget.violation(10.3, 10.0) == pytest.approx(0.1)
    assert budget.violation(9.0, 10.0) < 0.0
    with pytest.raises(ConfigError, match="percentage points belong to metrics that are maximised"):
        parse_budget("1pp", "perplexity", direction="min")


def test_a_negative_maximised_metric_may_fall_further_below_zero():
    assert parse_budget("2%", "log_likelihood").resolve(-3.0) == pytest.approx(-3.06)


@pytest.mark.parametrize("baseline", [-0.1, 1.1, 91.3])
def test_points_are_refused_for_a_metric_that_is_not_between_0_and_1(baseline):
    with pytest.raises(ConfigError, match=r"percentage points need a metric from 0 to 1.*'2%'"):
        parse_budget("1pp", "accuracy").resolve(baseline)


@pytest.mark.parametrize(
    ("text", "objective", "says"),
    [
        ("5", "latency", "the unit is missing"),
        ("50%", "latency", "write '-50%'"),
        ("-0%", "latency", "between 0% and 100%"),
        ("-100%", "latency", "between 0% and 100%"),
        ("-5ms", "latency", "only percentages are relative"),
        ("0ms", "latency", "above 0"),
        (">=5ms", "latency", "got '>=5ms'"),
        ("5mss", "latency", "did you mean 'ms'"),
        ("1mB", "size", "did you mean 'MB'"),
        ("5ms", "size", "unknown unit 'ms'"),
        ("1pp", "size", "unknown unit 'pp'"),
        ("3MJ", "energy", "did you mean 'mJ'"),
        ("1e999ms", "latency", "too large"),
        ("nanms", "latency", "got 'nanms'"),
        ("", "latency", "got ''"),
        ("0.9", "accuracy", "the unit is missing"),
        ("-1pp", "accuracy", "without a sign"),
        ("101pp", "accuracy", "more than 100"),
        ("5ms", "latncy", "did you mean the objective 'latency'"),
    ],
)
def test_refusals_are_one_line_that_shows_what_was_got_and_what_is_allowed(text, objective, says):
    with pytest.raises(ConfigError) as caught:
        parse_budget(text, objective)
    message = str(caught.value)
    assert says in message
    assert repr(text) in message
    assert "allowed: " in message
    assert objective in message
    assert "\n" not in message


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_never_judged(bad):
    with pytest.raises(ConfigError, match="cannot judge"):
        parse_budget("5ms", "latency").violation(bad, 1.0)
    with pytest.raises(ConfigError, match="finite baseline"):
        parse_budget("-50%", "latency").violation(1.0, bad)


@given(
    st.sampled_from(["<=5ms", "-50%", "-12.5%"]),
    st.floats(1e-3, 1e6),
    st.floats(1e-3, 1e6),
)
def test_the_violation_is_positive_exactly_above_the_limit(text, value, baseline):
    budget = parse_budget(text, "latency")
    limit = budget.resolve(baseline)
    if abs(value - limit) > 1e-8 * max(limit, value):
        assert (budget.violation(value, baseline) > 0.0) == (value > limit)


@given(st.text(max_size=12), st.sampled_from([*UNITS, "accuracy"]))
def test_any_text_is_read_or_refused(text, objective):
    try:
        budget = parse_budget(text, objective)
    except ConfigError:
        return
    assert math.isfinite(budget.resolve(0.5))
