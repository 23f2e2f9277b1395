"""Transferred seeds are never alone, and lose their place where they lose."""

import pytest

from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.seed_mix import DROPPED, FIRST, FULL, SeedMix, judged, volumes
from paretopress.spaces.choices import Keep
from paretopress.spaces.policy import Policy

OBJECTIVES = {"accuracy": "max", "size": "min"}
DENSE = Policy.of({})


def policies(prefix, count):
    return tuple(Policy.of({f"{prefix}{index}/channels": Keep(0.5)}) for index in range(count))


WARM, COLD = policies("w", 12), policies("c", 12)
MIX = SeedMix((DENSE,), WARM, COLD, FULL)


def record(number, policy, accuracy, size, state=TrialState.COMPLETE):
    values = {"accuracy": accuracy, "size": size} if state is TrialState.COMPLETE else {"size": size}
    reason = None if state is TrialState.COMPLETE else "screened by proxy"
    return TrialRecord(number, state, policy, values, {}, 0.0, reason)


def test_every_prefix_holds_seeds_of_both_origins_in_their_order():
    order = MIX.order()
    assert order[0] == DENSE
    assert sorted(map(hash, order)) == sorted(map(hash, {DENSE, *WARM, *COLD}))
    assert [one for one in order if one in WARM] == list(WARM)
    assert [one for one in order if one in COLD] == list(COLD)
    for end in range(4, 16, 4):
        assert sum(one in COLD for one in order[1:end + 1]) == end // 4


def test_nobody_is_believed_before_a_trial():
    order = SeedMix((DENSE,), WARM, COLD).order()
    assert [one in WARM for one in order[1:9]].count(True) == 4
    assert judged_by(0.89, 0.85, SeedMix((DENSE,), WARM, COLD)).share == pytest.approx(FIRST * 1.5) == FULL


def test_a_prior_that_loses_clearly_is_dropped_at_once():
    mix = SeedMix((DENSE,), WARM, COLD)
    assert judged_by(0.805, 0.89, mix).dropped
    assert judged_by(0.86, 0.89, mix).share == FIRST / 2   # a third less: it gets another round
    assert not judged_by(0.86, 0.89, mix).dropped


def test_a_smaller_share_means_fewer_of_them():
    order = SeedMix((DENSE,), WARM, COLD, 0.375).order()
    assert sum(one in WARM for one in order[1:9]) == 3
    assert SeedMix((), (), COLD).order() == COLD
    assert SeedMix((), WARM, ()).order() == WARM
    assert len(SeedMix((), WARM, WARM).order()) == len(WARM)


def test_seeds_of_both_origins_judge_nothing():
    mix = SeedMix((DENSE,), (WARM[0], COLD[0]), (COLD[0], COLD[1]))
    assert [mix.origin(one) for one in (WARM[0], COLD[0], COLD[1], DENSE)] == ["transferred", None, "cold", None]


def judged_by(warm_accuracy, cold_accuracy, mix=MIX):
    records = [record(0, DENSE, 0.9, 100.0)]
    records += [record(1 + index, one, warm_accuracy, 50.0) for index, one in enumerate(WARM[:3])]
    records += [record(4 + index, one, cold_accuracy, 50.0) for index, one in enumerate(COLD[:3])]
    return judged(mix, volumes(mix, records, OBJECTIVES))


def test_a_prior_that_loses_decays_until_it_is_dropped():
    once = judged_by(0.86, 0.89)
    assert once.share == FULL / 2
    assert not once.dropped
    twice = judged_by(0.86, 0.89, once)
    assert twice.dropped
    assert twice.share < DROPPED


def test_a_prior_that_wins_keeps_its_place_and_a_tie_is_no_loss():
    assert judged_by(0.89, 0.85).share == FULL
    assert judged_by(0.89, 0.89).share == FULL
    assert judged_by(0.89, 0.85, SeedMix((DENSE,), WARM, COLD, FULL / 2)).share == pytest.approx(FULL * 0.75)


def test_as_many_of_each_are_compared_and_screened_ones_count_for_nothing():
    records = [record(0, DENSE, 0.9, 100.0), record(1, WARM[0], 0.0, 10.0, TrialState.PRUNED),
               record(2, WARM[1], 0.9, 10.0), record(3, COLD[0], 0.88, 60.0)]
    warm, cold, count = volumes(MIX, records, OBJECTIVES)
    assert (warm, count) == (0.0, 1)   # the second transferred seed has no cold one to stand against
    assert cold == pytest.approx(0.8 * 0.4)


def test_without_both_kinds_or_the_dense_model_nothing_is_judged():
    assert volumes(MIX, [record(0, DENSE, 0.9, 100.0), record(1, WARM[0], 0.9, 10.0)], OBJECTIVES) is None
    assert volumes(MIX, [record(1, WARM[0], 0.9, 10.0), record(2, COLD[0], 0.9, 10.0)], OBJECTIVES) is None
    assert judged(MIX, None) is MIX
    assert judged(MIX, (0.1, 0.9, 2)) is MIX   # too few to say
