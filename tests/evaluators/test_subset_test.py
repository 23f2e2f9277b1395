"""The sequential test is wrong as seldom as it says, sees clear cases early, and estimates what it did not score."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paretopress.evaluators.data import prepare
from paretopress.evaluators.metrics import Metric, right_first, top1
from paretopress.evaluators.subset_test import (
    RUNG,
    Bar,
    Rivals,
    below,
    halted_at,
    in_random_order,
    log_capital,
)
from paretopress.spaces.errors import DataError

TOTAL = 1000


def stopped_at(differences, bar):
    """The look, in samples, at which a candidate is stopped, None where it is not."""
    looks = range(RUNG, TOTAL, RUNG)
    return next((count for count in looks if below(differences[:count], TOTAL, bar)), None)


def drawn(rng, lost, won):
    """A random order of a set on which the candidate loses and wins some samples against the dense model."""
    return rng.permutation(np.repeat([-1.0, 1.0, 0.0], [lost, won, TOTAL - lost - won]))


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (20, 0), (60, 20), (150, 140), (500, 100)])
def test_a_candidate_that_reaches_the_bar_is_stopped_in_no_more_than_one_of_a_hundred(lost, won):
    rng = np.random.default_rng(lost)
    bar = (won - lost) / TOTAL
    wrong = sum(below(drawn(rng, lost, won)[:-1], TOTAL, bar) for _ in range(600))   # at whatever sample one looks
    assert wrong / 600 <= 0.01 + 2.0 * math.sqrt(0.01 * 0.99 / 600)


def test_clear_cases_end_early_and_close_ones_late():
    rng = np.random.default_rng(0)

    def looks(lost, won, bar):
        found = [stopped_at(drawn(rng, lost, won), bar) or TOTAL for _ in range(50)]
        return float(np.median(found))

    assert looks(600, 0, -0.02) == RUNG
    assert looks(150, 10, -0.02) <= 3 * RUNG
    assert 3 * RUNG < looks(60, 10, -0.02) <= TOTAL
    assert looks(20, 10, -0.02) == TOTAL


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=60), st.floats(-1.0, 1.0), st.randoms())
def test_once_every_sample_is_seen_the_test_never_contradicts_the_mean(values, bar, random):
    random.shuffle(values)
    capital = log_capital(np.array(values), len(values), bar)
    assert not np.isnan(capital).any()
    if math.isinf(capital[-1]):
        assert np.mean(values) < bar


def test_only_rivals_that_cost_no_more_and_diverge_no_more_count():
    rivals = Rivals(("time", "size"), ((0.9, 0.1, 2.0, 5.0), (0.8, 0.3, 1.0, 4.0)))
    assert rivals.no_dearer([2.0, 5.0]) == ((0.9, 0.1), (0.8, 0.3))
    assert rivals.no_dearer([1.5, 5.0]) == ((0.8, 0.3),)
    assert rivals.no_dearer([0.5, 5.0]) == ()
    dense, own = np.ones(TOTAL), np.zeros(RUNG)
    bars = [Bar(0.9, 0.1, "a"), Bar(0.8, 0.05, "b")]
    bar, expected = halted_at(own, dense, 1.0, bars, 0.2)
    assert (bar.reason, expected) == ("a", 0.0)
    assert halted_at(own, dense, 1.0, bars, 0.07)[0].reason == "b"
    assert halted_at(own, dense, 1.0, bars, 0.01) is None
    assert halted_at(np.ones(RUNG), dense, 1.0, bars, 0.2) is None
    worse, best = np.ones(RUNG), np.zeros(TOTAL)   # a metric of which less is better
    assert halted_at(worse, best, -1.0, [Bar(0.1, 0.0, "a"), Bar(0.3, 0.0, "b")], 1.0)[0].value == 0.1


def test_samples_come_in_a_random_order_that_the_seed_decides():
    inputs = torch.arange(200.0)[:, None]
    samples = prepare(SimpleNamespace(calibration=inputs + 500, search=(inputs, torch.arange(200)),
                                      holdout=(inputs + 1000, torch.arange(200)), metric=top1, train=None)).scored
    mixed = in_random_order(samples, 3)
    assert mixed.batch_size == RUNG
    assert sorted(mixed.targets.tolist()) == list(range(200))
    assert mixed.targets.tolist() != list(range(200))
    assert torch.equal(mixed.whole.args[0][:, 0].long(), mixed.targets)
    assert torch.equal(in_random_order(samples, 3).targets, mixed.targets)
    assert not torch.equal(in_random_order(samples, 4).targets, mixed.targets)


def test_top1_and_metrics_that_say_so_have_one_value_per_sample():
    outputs, targets = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(7, 2).long()
    found = Metric(top1).sample_scores(outputs, targets)
    assert found.shape == (7,)
    assert found.mean() == pytest.approx(top1(outputs, targets))
    assert Metric(lambda *_: 1.0).sample_scores(outputs, targets) is None
    own = Metric(lambda *_: 1.0, samples=right_first).sample_scores(outputs, targets)
    assert np.array_equal(own, found)


@pytest.mark.parametrize(("samples", "message"), [
    (lambda *_: 0.5, "one value per sample"),
    (lambda *_: torch.zeros(6), "one value per sample"),
    (lambda *_: torch.full((7,), 1.5), "values from 0 to 1"),
    (lambda *_: torch.full((7,), math.nan), "values from 0 to 1"),
])
def test_values_that_are_none_are_refused_with_the_metric_s_name(samples, message):
    with pytest.raises(DataError, match=r"metric 'mine': samples returned") as error:
        Metric(top1, label="mine", samples=samples).sample_scores(torch.zeros(7, 3), torch.zeros(7).long())
    assert message in str(error.value)
