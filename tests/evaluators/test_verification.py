"""Verification's parts: parity with broken outputs, times in turn, intervals of a drop."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from paretopress.compressors.exports import agreeing
from paretopress.evaluators import timing
from paretopress.evaluators.timing import SERIES, WARM_UP, Timing, at_one_speed, time_alternately, time_steadily
from paretopress.evaluators.verification import Parity, _largest_difference, drop_interval, output_digest


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([1.0, math.inf], [1.0, math.inf], 0.0),
        ([1.0, math.nan], [1.0, math.nan], 0.0),
        ([1.0, -math.inf], [1.25, -math.inf], 0.25),
    ],
)
def test_differences(one, other, difference):
    assert _largest_difference(torch.tensor(one), torch.tensor(other)) == difference


@pytest.mark.parametrize(("one", "other"), [(1.0, math.nan), (math.nan, 1.0), (1.0, math.inf), (math.inf, -math.inf)])
def test_outputs_that_are_finite_on_one_side_only_are_out_of_tolerance(one, other):
    found = _largest_difference(torch.tensor([0.0, one]), torch.tensor([0.0, other]))
    assert found > 1e30
    assert "above 0.0001" in Parity(True, found, 1.0, False).problem


def test_an_unknown_origin_is_no_problem_and_a_difference_is():
    assert Parity(None, 0.0, 1.0, False).problem == ""
    assert Parity(True, 1e-4, 0.5, False).problem == ""      # floats: the outputs count
    assert Parity(True, 0.5, 0.99, True).problem == ""       # integers: the first place counts
    assert Parity(True, 0.0, 0.989, True).problem != ""


@pytest.mark.parametrize(
    ("agreement", "apart", "problem"),
    [
        (0.5, None, "agrees on 50.0% of the samples, below 99%"),
        (0.5, 0.02, "agrees on 50.0% of the samples, below 99%, and its score differs by 2.0%, above 0.5%"),
        (0.5, 0.009, "agrees on 50.0% of the samples, below 99%, and its score differs by 0.9%, above 0.5%"),
        (0.5, 0.005, ""),     # embeddings: rounding carried on, on average as good
        (0.99, 0.02, ""),     # a score of a few samples
    ],
)
def test_scores_decide_where_outputs_have_no_first_place(agreement, apart, problem):
    assert Parity(True, 0.2, agreement, True, apart).problem == (problem and f"ONNX {problem}")


def test_outputs_that_are_no_guesses_agree_where_they_are_near():
    one = torch.tensor([[3.0, 3.01, 0.0], [3.0, 3.01, 0.0], [0.0, 0.0, 5.0]])
    other = torch.tensor([[3.01, 3.0, 0.0], [4.0, 3.0, 0.0], [0.0, 4.0, 5.0]])   # near, far, the same one first
    assert agreeing(one, other, guesses=False).tolist() == [True, False, True]
    assert agreeing(one, other, guesses=True).tolist() == [False, False, True]


class Session:
    """Records in which order two sessions are run; a run takes a known time of a false clock."""

    def __init__(self, name, duration, log, clock):
        self.name, self.duration, self.log, self.clock = name, duration, log, clock

    def get_inputs(self):
        return [type("Input", (), {"name": "x"})()]

    def run(self, _, feed):
        assert set(feed) == {"x"}
        self.log.append(self.name)
        self.clock[0] += self.duration(len(self.log))


def test_sessions_are_timed_in_turn_after_a_warm_up(monkeypatch):
    log, clock = [], [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    # Both slow down to twice the time half way: the ratio of the medians does not notice.
    one, other = (
        Session(name, lambda n, s=seconds: s * (1.0 if n <= 2 * WARM_UP + 20 else 2.0), log, clock)
        for name, seconds in (("A", 0.001), ("B", 0.004))
    )
    found = time_alternately(one, other, [torch.zeros(1)], 21)
    assert log == ["A", "B"] * (WARM_UP + 21)
    assert found.runs == 21
    assert found.median == pytest.approx(2.0)
    assert found.quartiles == pytest.approx((1.0, 2.0))
    assert found.baseline / found.median == pytest.approx(4.0)
    assert found.baseline_quartiles == pytest.approx((4.0, 8.0))


def test_the_interval_of_a_drop_is_paired():
    """The same samples wrong in both models tell nothing about their difference."""
    dense = [index % 10 != 0 for index in range(200)]
    assert drop_interval(dense, dense) == (0.0, 0.0)
    worse = [right and index % 20 != 1 for index, right in enumerate(dense)]
    low, high = drop_interval(dense, worse)
    assert 0.0 < low < 0.05 < high < 0.1
    assert drop_interval(dense, worse) == (low, high)
    assert drop_interval([], []) is None
    assert drop_interval(dense, dense[1:]) is None


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        dense = rng.random(300) < 0.95
        candidate = np.where(rng.random(300) < 0.1, rng.random(300) < 0.6, dense)
        low, high = drop_interval(dense.tolist(), candidate.tolist())
        covered += low <= 0.1 * (0.95 - 0.6) <= high
    assert 86 <= covered <= 100   # 95 expected; 86 is four standard deviations below


def test_digests_tell_single_bits(tiny):
    from paretopress.evaluators.data import prepare

    samples = prepare(tiny.module.data()).holdout
    model = tiny.module.model()
    digest = output_digest(model, samples)
    assert output_digest(tiny.module.model(), samples) == digest
    with torch.no_grad():
        model.last.bias[0] = torch.nextafter(model.last.bias[0], torch.tensor(9.0))
        model.last.bias += 0.0
    assert output_digest(model, samples) != digest


@pytest.mark.parametrize(
    ("spreads", "chosen"), [((0.02, 0.01), 0), ((0.5, 0.05, 0.01), 1), ((0.5, 0.4, 0.3), 2), ((0.5, 0.2, 0.3), 1)]
)
def test_a_series_that_was_disturbed_is_taken_again_and_the_steadiest_counts(spreads, chosen, monkeypatch):
    from paretopress.evaluators import timing

    made = [Timing(10.0, (10.0, 10.0 + 10.0 * spread), 20.0, (20.0, 20.0), 5) for spread in spreads]
    waiting = iter(made)
    monkeypatch.setattr(timing, "time_alternately", lambda *_: next(waiting))
    assert time_steadily(None, None, (), 5) is made[chosen]
    assert len(list(waiting)) == len(spreads) - (1 if spreads[0] < 0.1 else 2 if spreads[1] < 0.1 else SERIES)


def test_series_that_a_machine_took_at_different_speeds_are_brought_to_the_usual_one():
    usual, slow = Timing(4.0, (3.0, 5.0), 10.0, (9.0, 11.0), 5), Timing(6.0, (5.4, 6.6), 15.0, (13.5, 18.0), 5)
    found = at_one_speed([usual, "it broke", slow, replace(usual, median=8.0)])
    assert found[:2] == [usual, "it broke"]
    assert found[2] == Timing(4.0, pytest.approx((3.6, 4.4)), 10.0, pytest.approx((9.0, 12.0)), 5, 1.5)
    assert (found[2].spread, slow.spread) == (pytest.approx(0.3), pytest.approx(0.3))
    assert found[3].median == 8.0
    assert at_one_speed([]) == []


def test_the_baseline_disturbs_a_series_too():
    assert Timing(10.0, (10.0, 10.1), 20.0, (20.0, 30.0), 5).spread == pytest.approx(0.5)
