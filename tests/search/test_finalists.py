"""Which candidates are built and verified: what is expected of them, and what a round of builds teaches."""

import math
import random
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.evaluators.candidate import Limits
from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search import building
from paretopress.search.building import LEAST_BUILT, BuildSettings, Workshop, build_finalists
from paretopress.search.executors import SerialExecutor
from paretopress.search.finalists import CHEAPER, MARGINS, choose, next_builds, surest, widest_gaps
from paretopress.search.outlook import AccuracyCurve, expected_after_refit, outlook
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.tasks import Construction
from paretopress.search.workload import Built
from paretopress.spaces.choices import Keep
from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.policy import Policy

OBJECTIVES = {"accuracy": "max", "size": "min"}
WORST = 0.92
LIMITS = Limits((), WORST, "max")


def accuracy_of(divergence):
    return 0.95 - divergence / 4


def trial(number, size, divergence):
    policy = Policy.of({f"layer{number}/channels": Keep(0.5)})
    values = {"accuracy": accuracy_of(divergence), "size": size, "divergence": divergence}
    return TrialRecord(number, TrialState.COMPLETE, policy, values)


def trials(count, seed=0):
    rng = random.Random(seed)
    sizes = [rng.uniform(10.0, 100.0) for _ in range(count)]
    return [trial(number, size, rng.uniform(0.8, 2.0) * 2.0 / size) for number, size in enumerate(sizes)]


def gain(record):
    """What the refit leaves of the divergence: the more the larger the model."""
    return 0.2 + 0.6 * record.values["size"] / 100.0


class Builder:
    """Stands where a `Workload` does: writes the record of a build without building."""

    def __init__(self, records, broken=()):
        self.records, self.broken, self.order = {r.policy.hash: r for r in records}, broken, []

    def __call__(self, task):
        assert isinstance(task, Construction)
        self.order.append(task.policy.hash)
        if task.policy.hash in self.broken:
            raise RuntimeError("it\nbroke")
        record = self.records.get(task.policy.hash)
        before = record.values["divergence"] if record else 0.0
        after = before * gain(record) if record else 0.0
        folder = Path(task.folder)
        folder.mkdir()
        Built("refit", accuracy_of(before), accuracy_of(after), after, 1, "").save(folder)
        return Evaluation(State.COMPLETE, {"accuracy": accuracy_of(after)})


class Listener:
    def __init__(self):
        self.warnings = []

    stage = advance = message = lambda *_: None

    def warning(self, text):
        self.warnings.append(text)


def workshop(tmp_path, builder):
    return Workshop(tmp_path / "building", SerialExecutor(builder), Listener())


def settings_of(finalists=6, fewest=3, deadline=None):
    return BuildSettings(OBJECTIVES, LIMITS, 0, finalists, fewest, deadline)


DENSE = Policy.of({})


def prospects(records, built, limits, samples=0):
    return list(outlook(records, built, limits, samples=samples).prospects)


def true_front(records):
    """Trials that nothing dominates once the refit is done."""
    points = [(r.values["divergence"] * gain(r), r.values["size"], r) for r in records]
    points = [p for p in points if accuracy_of(p[0]) >= WORST]
    return {record.policy.hash for loss, size, record in points
            if not any(a <= loss and b <= size and (a, b) != (loss, size) for a, b, _ in points)}


def test_rounds_find_what_the_refit_makes_good(tmp_path):
    """The refit helps small models most, which before it look hopeless: the first round cannot know that."""
    found = at_once = of_all = 0
    for seed in range(6):
        records = trials(60, seed)
        shop = workshop(tmp_path / str(seed), Builder(records))
        chosen = build_finalists(shop, [DENSE], records, settings_of(finalists=10))
        front = true_front(records)
        before = choose(prospects(records, {}, LIMITS), OBJECTIVES, LIMITS, 10)
        found += sum(policy.hash in front for policy in chosen)
        at_once += sum(one.record.policy.hash in front for one in before)
        of_all += min(10, len(front))
        assert len(shop.built) <= 1 + 20
        assert all(policy.hash in shop.built for policy in chosen)
    assert found > at_once
    assert found >= 0.85 * of_all


def test_few_builds_where_time_is_short_and_the_named_ones_anyway(tmp_path):
    records = trials(40)
    builder = Builder(records)
    named = [DENSE, records[0].policy]
    chosen = build_finalists(workshop(tmp_path, builder), named, records, settings_of(deadline=0.0))
    assert builder.order[:2] == [policy.hash for policy in named]
    assert len(builder.order) == 2 + 3
    assert len(chosen) == 3


@pytest.mark.parametrize(("latest", "count"), [(None, 6), (math.inf, 6), (0.0, LEAST_BUILT)])
def test_fewer_are_enough_where_even_the_fewest_take_far_too_long(tmp_path, latest, count):
    records = trials(40)
    late = replace(settings_of(fewest=6, deadline=0.0), latest=latest)
    chosen = build_finalists(workshop(tmp_path, Builder(records)), [DENSE, records[0].policy], records, late)
    assert len(chosen) == count
    assert replace(late, fewest=2).wanted(0) == 2
    assert late.wanted(7) == 0


def test_a_build_that_fails_is_reported_and_stays_among_the_finalists(tmp_path):
    records = trials(12)
    first = choose(prospects(records, {}, LIMITS), OBJECTIVES, LIMITS, 6)[0].record.policy
    shop = workshop(tmp_path, Builder(records, broken=(first.hash,)))
    chosen = build_finalists(shop, [DENSE], records, settings_of())
    assert first in chosen
    assert first.hash not in shop.built
    assert shop.failed == {first.hash: "RuntimeError: it broke"}
    assert any("it broke" in text for text in shop.observer.warnings)


def test_builds_that_fail_after_the_time_are_not_waited_for(tmp_path):
    """The search hung here: failures left fewer built than wanted, and there was no time to build others."""
    records = trials(40)
    first = choose(prospects(records, {}, LIMITS), OBJECTIVES, LIMITS, 6)[0].record.policy
    builder = Builder(records, broken=(first.hash,))
    chosen = build_finalists(workshop(tmp_path, builder), [DENSE], records, settings_of(deadline=0.0))
    assert len(builder.order) == 1 + 3
    assert len(chosen) == 3   # two that were built, and the one that failed


def test_without_a_baseline_there_is_nothing_to_verify(tmp_path):
    records = trials(3)
    with pytest.raises(ArtifactError, match="dense baseline cannot be built: RuntimeError: it broke"):
        build_finalists(workshop(tmp_path, Builder(records, broken=(DENSE.hash,))), [DENSE], records, settings_of())


def test_what_an_interrupted_run_left_is_dropped(tmp_path):
    (tmp_path / "building" / "old").mkdir(parents=True)
    shop = workshop(tmp_path, Builder([]))
    assert build_finalists(shop, [DENSE], [], settings_of()) == []
    assert {entry.name for entry in shop.folder.iterdir()} == {DENSE.hash, f"{DENSE.hash}.json"}


def test_where_nothing_is_allowed_the_nearest_are_taken(tmp_path):
    records = [trial(number, 50.0, 1.0 + number) for number in range(4)]
    chosen = build_finalists(workshop(tmp_path, Builder(records)), [DENSE], records, settings_of(finalists=2))
    assert len(chosen) == 2


def test_the_nearest_are_cheap_enough_first_then_little_divergent():
    """None meets the accuracy: of those within the budget on size the least divergent, and those nearly as good."""
    limits = Limits((("size <=60", "size", 60.0),), WORST, "max")
    sizes, divergences = (90.0, 50.0, 40.0, 30.0, 20.0, 10.0), (0.5, 1.0, 1.1, 1.2, 1.4, 3.9)
    records = [replace(trial(number, size, loss), constraints={"size <=60": size - 60.0})
               for number, (size, loss) in enumerate(zip(sizes, divergences, strict=True))]
    known = prospects(records, {}, limits)
    assert not any(one.allowed for one in known)
    assert {one.record.number for one in choose(known, OBJECTIVES, limits, 2)} <= {1, 2, 3, 4}
    assert {one.record.number for one in choose(known, OBJECTIVES, limits, 6)} == {1, 2, 3, 4, 5}
    dear = [one for one in known if one.record.number == 0]
    assert choose(dear, OBJECTIVES, limits, 2) == dear
    assert choose([], OBJECTIVES, limits, 2) == []


@pytest.mark.parametrize(("divergence", "longer"), [(0.01, False), (0.4, True)])
def test_what_short_training_leaves_far_off_is_trained_longer(tmp_path, divergence, longer):
    """Two probes get the short time; where they stay far off they are built anew with all the others.

    Nothing takes time here, so that all are built, also those that no time was set aside for.
    """
    records = [trial(number, 50.0 + number, divergence + 0.001 * number) for number in range(30)]
    seconds = {}

    class Timed(Builder):
        def __call__(self, task):
            seconds.setdefault(task.policy.hash, []).append(task.seconds)
            return super().__call__(task)

    plan = replace(settings_of(finalists=20, deadline=time.monotonic() + 1010.0), distilled=True, enough=20.0)
    build_finalists(workshop(tmp_path, Timed(records)), [DENSE], records, plan)
    (last,) = {times[-1] for policy, times in seconds.items() if policy != DENSE.hash}
    assert last == pytest.approx(0.8 * 1010.0 / (14 if longer else 21), rel=0.02)
    assert sum(len(times) == 2 for times in seconds.values()) == int(longer)
    assert len(seconds) == 1 + 20


def test_a_distillation_begins_only_where_it_can_end_in_time(tmp_path, monkeypatch):
    """By a clock that only distillations move: a fifth of the time is left when those that were planned are done."""
    records = [trial(number, 50.0 + number, 0.01 + 0.001 * number) for number in range(30)]
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(building, "time", clock)

    class Slow(Builder):
        def __call__(self, task):
            clock.now += task.seconds or 0.0
            return super().__call__(task)

    plan = replace(settings_of(finalists=20, deadline=200.0), distilled=True, enough=10.0)
    shop = workshop(tmp_path, Slow(records))
    build_finalists(shop, [DENSE], records, plan)
    assert shop.seconds == pytest.approx(80.0 / 14)
    assert shop.tried([DENSE]) == 17   # 97.1 of 100 seconds: one more would not have ended in time
    assert clock.now == pytest.approx(100.0 + 17 * 80.0 / 14)


def test_what_the_samples_cannot_tell_from_the_budget_may_be_verified():
    """At 0.93 half a standard error of 100 samples is 1.3 points, of 10,000 samples 0.13."""
    records = [trial(0, 50.0, 0.0), trial(1, 40.0, 0.16), trial(2, 30.0, 1.0)]   # accuracies 0.95, 0.91, 0.70
    allowed = {samples: [one.allowed for one in prospects(records, {}, LIMITS, samples=samples)]
               for samples in (0, 100, 10_000)}
    assert allowed == {0: [True, False, False], 100: [True, True, False], 10_000: [True, False, False]}


def test_an_error_between_0_and_1_is_no_share_of_samples():
    errors = [replace(trial(index, 50.0, 0.1 * index), values={"accuracy": 0.1 + 0.01 * index, "size": 50.0 - index,
                                                               "divergence": 0.1 * index}) for index in range(3)]
    limits = Limits((), 0.105, "min")
    assert [one.allowed for one in prospects(errors, {}, limits, samples=100)] == [True, False, False]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-6, 2.0), st.floats(0.0, 1.0)), min_size=1, max_size=30),
       st.sampled_from(["max", "min"]))
def test_the_curve_is_the_best_monotone_one(points, direction):
    """Never rising (falling) with divergence, and its mean is the mean of what was measured."""
    divergences, accuracies = zip(*points, strict=True)
    curve = AccuracyCurve.fit(divergences, accuracies, direction)
    steps = np.diff(curve.accuracies)
    assert (steps <= 1e-12).all() if direction == "max" else (steps >= -1e-12).all()
    assert curve.accuracies.mean() == pytest.approx(np.mean(accuracies))


def test_the_curve_pools_adjacent_violators():
    curve = AccuracyCurve.fit([0.1, 0.2, 0.3, 0.4], [0.9, 0.7, 0.8, 0.5], "max")
    assert curve.at([0.1, 0.2, 0.3, 0.35, 0.4, 9.0]).tolist() == pytest.approx([0.9, 0.75, 0.75, 0.625, 0.5, 0.5])


def test_what_the_refit_gains_is_expected_of_others():
    pairs = [(x, 0.4 * x**0.9) for x in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)]
    found, errors = expected_after_refit(pairs, [0.03, 0.3, 1e-4])
    assert found[:2] == pytest.approx([0.4 * 0.03**0.9, 0.4 * 0.3**0.9])
    assert max(errors[:2]) < errors[2]   # less is known where nothing was built
    assert expected_after_refit([], [0.03])[0] == pytest.approx([0.03])
    assert expected_after_refit([(0.1, 0.05), (0.2, 0.1)], [0.4])[0] == pytest.approx([0.2])   # too few for a slope
    assert expected_after_refit([(0.1, 0.3)], [0.4])[0] == pytest.approx([0.4])                # it is never worse


def test_of_two_that_diverge_alike_the_larger_one_is_expected_to_regain_more():
    """As with 8, 4 and 3 bits of one network: training regains less where weights are coarser."""
    pairs, sizes = [], []
    for loss in (0.1, 0.2, 0.4):
        for size in (5e3, 1e4, 2e4):
            pairs.append((loss, 0.4 * loss * (1e4 / size) ** 0.7))
            sizes.append(size)
    found, _ = expected_after_refit(pairs, [0.3, 0.3, 0.15], sizes, [6e3, 1.8e4, 1e4])
    assert found == pytest.approx([0.12 * (1e4 / 6e3) ** 0.7, 0.12 * (1e4 / 1.8e4) ** 0.7, 0.06], rel=0.15)
    unaware, _ = expected_after_refit(pairs, [0.3, 0.3])
    assert unaware[0] == unaware[1]


def test_what_failed_far_out_is_not_tried_there_again():
    """Training regains most of small losses and little of large ones: one build there tells of the others."""
    near = [(x, 0.4 * x) for x in (0.02, 0.04, 0.08)]
    blind, _ = expected_after_refit(near, [0.7, 0.05])
    taught, errors = expected_after_refit([*near, (0.68, 0.6)], [0.7, 0.05])
    assert blind[0] == pytest.approx(0.28)
    assert taught[0] > 1.3 * blind[0]
    assert taught[1] == pytest.approx(blind[1], rel=0.1)
    assert errors[0] < 0.35


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12))
def test_the_choice_is_without_repetition_and_every_prefix_starts_on_the_front(seed, count):
    records = trials(25, seed)
    known = prospects(records, {}, LIMITS)
    picked = choose(known, OBJECTIVES, LIMITS, count)
    assert len({one.record.number for one in picked}) == len(picked) <= count
    allowed = [one for one in known if one.allowed]
    if allowed:
        first = picked[0]
        assert first.allowed
        assert not any(
            one.accuracy >= first.accuracy and one.record.values["size"] <= first.record.values["size"] and one != first
            and math.isfinite(one.divergence) for one in allowed
        )


def test_a_build_that_computes_nothing_finite_teaches_nothing():
    """It diverges infinitely: what is expected of the others stays finite."""
    records = trials(20)
    built = {record.policy.hash: Built("refit", 0.9, 0.9, 0.5 * record.values["divergence"], 1, "")
             for record in records[:8]}
    built[records[0].policy.hash] = Built("refit", 0.1, 0.1, math.inf, 1, "")
    view = outlook(records, built, LIMITS)
    assert [one.record for one in view.prospects if not math.isfinite(one.divergence)] == [records[0]]
    picked = next_builds(view, OBJECTIVES, LIMITS, 3)
    assert len(picked) == 3
    assert not any(one.built for one in picked)


def test_nothing_reaches_beyond_the_finite():
    curve = AccuracyCurve.fit([0.1, 0.2, math.inf], [0.9, 0.8, 0.1], "max")
    assert curve.reach(0.5, "max") == curve.reach(0.0, "max") == 0.2
    assert curve.reach(0.85, "max") == pytest.approx(0.15)


def test_the_least_divergent_that_beat_what_people_try_by_hand_are_built_first(tmp_path):
    """Beating a uniform precision in every objective is what a front is for; what adds most lies far beyond it."""
    records = trials(60)
    rival = next(one for one in sorted(records, key=lambda one: -one.values["size"])
                 if one.values["size"] < max(other.values["size"] for other in records))
    known = prospects([one for one in records if one != rival], {}, LIMITS)
    sure = surest(known, [rival], OBJECTIVES, LIMITS)
    beating = []
    for share in CHEAPER:
        cheaper = [one.record for one in known if one.record.values["size"] <= share * rival.values["size"]]
        beating.append(min((one for one in cheaper if one not in beating), key=lambda one: one.values["divergence"]))
    assert [one.record for one in sure] == beating
    builder = Builder(records)
    build_finalists(workshop(tmp_path, builder), [DENSE, rival.policy], records, settings_of())
    first = [DENSE.hash, rival.policy.hash, *(one.record.policy.hash for one in sure)]
    assert builder.order[:2 + len(CHEAPER)] == first


@pytest.mark.parametrize("each", [1, 2])
def test_a_budget_on_costs_is_answered_first_barely_and_with_margins(each):
    records, budget = trials(60), 60.0
    limits = Limits((("size", "size", budget),), WORST, "max")
    known = prospects(records, {}, limits)
    sure = [one.record for one in surest(known, [], OBJECTIVES, limits, each)]
    picked = []
    for margin in MARGINS:
        inside = [one for one in records if one.values["size"] <= margin * budget and one not in picked]
        picked += sorted(inside, key=lambda one: one.values["divergence"])[:each]
    assert sure == picked


def test_nothing_is_sure_where_nothing_is_cheaper_than_what_people_try():
    records = trials(20)
    known = prospects(records, {}, LIMITS)
    assert surest(known, [min(records, key=lambda one: one.values["size"])], OBJECTIVES, LIMITS) == []
    assert surest(known, [], OBJECTIVES, LIMITS) == []


def built_as(record, divergence):
    accuracy = accuracy_of(divergence)
    return Built("refit", accuracy, accuracy, divergence, 1, "")


def test_the_widest_gap_of_the_expected_front_is_filled_first():
    """Candidates on a line, its ends built: the middle is first, then the quarters; what is dominated never is."""
    line = [trial(number, 10.0 * 2.0**number, 0.01 * (9 - number) ** 2) for number in range(9)]
    worse = trial(9, 330.0, 0.3)
    built = {one.policy.hash: built_as(one, one.values["divergence"]) for one in (line[0], line[8])}
    records = [*line, worse]
    view = outlook(records, built, Limits((), 0.5, "max"))
    found = [one.record for one in widest_gaps(view, OBJECTIVES, 3)]
    assert found[0] == line[4]
    assert {line.index(one) for one in found[1:]} == {2, 6}
    assert worse not in [one.record for one in widest_gaps(view, OBJECTIVES, 20)]
    first = next(one for one in view.prospects if one.record == line[4])
    assert {line.index(one.record) for one in widest_gaps(view, OBJECTIVES, 2, [first])} == {2, 6}


def test_where_nothing_is_built_or_no_candidate_is_far_from_it_there_is_no_gap():
    records = trials(20)
    assert widest_gaps(outlook(records, {}, LIMITS), OBJECTIVES, 5) == []
    everything = {one.policy.hash: built_as(one, one.values["divergence"]) for one in records}
    assert widest_gaps(outlook(records, everything, LIMITS), OBJECTIVES, 5) == []
