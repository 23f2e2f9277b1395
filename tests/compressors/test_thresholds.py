"""What every group keeps: hand-worked cases, brute force and properties."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.compressors.thresholds import (
    SCHEDULES,
    above_threshold,
    at_step,
    cumulative_keep,
    given_ratios,
    global_ratio,
    normalised,
)
from paretopress.spaces.choices import Keep
from paretopress.spaces.coupling import ChannelGroup
from paretopress.spaces.errors import PolicyError
from paretopress.spaces.plan import kept_channels


def group(name, size, step=1, producers=None, frozen=""):
    return ChannelGroup(name, size, step, producers or (name,), (), frozen)


A, B = group("a", 4), group("b", 8, step=2, producers=("b", "shortcut"))
FROZEN = group("f", 6, frozen="it reaches the model's output")
GROUPS = (A, B, FROZEN)
SCORES = {"a": torch.tensor([4.0, 1.0, 2.0, 1.0]), "b": torch.tensor([30.0, 10.0, 50.0, 10.0])}


@st.composite
def problems(draw):
    groups, scores = [], {}
    for index in range(draw(st.integers(1, 4))):
        step, blocks = draw(st.sampled_from((1, 2, 8))), draw(st.integers(1, 12))
        groups.append(group(f"g{index}", step * blocks, step))
        values = draw(st.lists(st.floats(-1.0, 100.0), min_size=blocks, max_size=blocks))
        scores[f"g{index}"] = torch.tensor(values, dtype=torch.float64)
    return groups, scores


def kept(groups, keeps):
    """Channels of every group, as a plan rounds them."""
    return {g.name: kept_channels(g, keeps[g.name].ratio) if g.name in keeps else g.size for g in groups}


def test_one_ratio_holds_for_every_group_that_is_not_frozen():
    assert given_ratios(GROUPS, 0.5) == {"a": Keep(0.5), "b": Keep(0.5)}
    assert given_ratios(GROUPS, 0.3) == {"a": Keep(0.25), "b": Keep(0.25)}   # to the next block, at least one
    assert given_ratios(GROUPS, 1e-9) == {"a": Keep(0.25), "b": Keep(0.25)}
    assert given_ratios(GROUPS, 1.0) == {}


def test_ratios_go_by_group_or_by_layer_and_the_others_keep_all():
    assert given_ratios(GROUPS, {"a": 0.75}) == {"a": Keep(0.75)}
    assert given_ratios(GROUPS, {"shortcut": 0.5, "a": 1.0}) == {"b": Keep(0.5)}
    assert given_ratios(GROUPS, {"shortcut": 0.5, "b": 0.5}) == {"b": Keep(0.5)}


@pytest.mark.parametrize(
    ("ratios", "text"),
    [
        (0.0, "keep ratio 0 for all groups is out of range"),
        (1.5, "keep ratio 1.5 for all groups"),
        (float("nan"), "keep ratio nan"),
        ({"a": -1}, "keep ratio -1 for a"),
        ({"shortcu": 0.5}, "unknown group or layer 'shortcu'; did you mean 'shortcut'"),
        ({"f": 0.5}, "group 'f' is frozen: it reaches the model's output"),
        ({"b": 0.5, "shortcut": 0.25}, "group 'b' cannot keep 0.5 \\(by 'b'\\) and 0.25 \\(by 'shortcut'\\)"),
    ],
)
def test_impossible_ratios_are_refused_by_name(ratios, text):
    with pytest.raises(PolicyError, match=text):
        given_ratios(GROUPS, ratios)


def test_scores_over_their_mean_do_not_depend_on_the_unit():
    found = normalised({**SCORES, "zero": torch.zeros(3), "signed": torch.tensor([-4.0, 1.0, 3.0])})
    assert found["a"].tolist() == [2.0, 0.5, 1.0, 0.5]
    assert found["b"].tolist() == [1.2, 0.4, 2.0, 0.4]
    assert found["zero"].tolist() == [0.0, 0.0, 0.0]
    assert found["signed"].tolist() == pytest.approx([0.0, 0.75, 2.25])
    for scale in (1e-6, 1e6):
        scaled = {"a": SCORES["a"] * scale, "b": SCORES["b"]}
        assert global_ratio(GROUPS, scaled, 0.5) == global_ratio(GROUPS, SCORES, 0.5)


def test_one_ratio_for_all_groups_takes_the_least_important_wherever_they_are():
    # In order: b (0.4, 2 channels), b (0.4, 2), a (0.5, 1), a (0.5, 1), a (1.0, 1), b (1.2, 2).
    assert global_ratio(GROUPS, SCORES, 1.0) == {}
    assert global_ratio(GROUPS, SCORES, 10 / 12) == {"b": Keep(0.75)}
    assert global_ratio(GROUPS, SCORES, 7 / 12) == {"b": Keep(0.5), "a": Keep(0.75)}
    assert global_ratio(GROUPS, SCORES, 0.5) == {"b": Keep(0.5), "a": Keep(0.5)}
    assert global_ratio(GROUPS, SCORES, 0.25) == {"b": Keep(0.25), "a": Keep(0.25)}


def test_a_block_that_would_be_too_much_is_passed_over_for_a_smaller_one():
    assert global_ratio(GROUPS, SCORES, 11 / 12) == {"a": Keep(0.75)}


@settings(max_examples=200, deadline=None)
@given(problems(), st.floats(0.01, 1.0), st.sampled_from((0.5, 0.9, 1.0)))
def test_a_global_ratio_keeps_a_block_of_each_group_within_the_cap_and_removes_the_least(problem, ratio, most):
    groups, scores = problem
    total = sum(g.size for g in groups)
    limits = {g.name: min(g.size // g.step - 1, int(most * (g.size // g.step) + 1e-9)) for g in groups}
    out_of_reach = int((1 - ratio) * total + 1e-9) > sum(limits[g.name] * g.step for g in groups)
    if out_of_reach:
        with pytest.raises(PolicyError, match="out of reach"):
            global_ratio(groups, scores, ratio, most)
        return
    keeps = global_ratio(groups, scores, ratio, most)
    assert global_ratio(groups, scores, ratio, most) == keeps
    left = kept(groups, keeps)
    removed = {g.name: (g.size - left[g.name]) // g.step for g in groups}
    assert all(left[g.name] >= g.step and left[g.name] % g.step == 0 for g in groups)
    assert all(removed[name] <= limits[name] for name in removed)
    gone = total - sum(left.values())
    assert gone <= (1 - ratio) * total + 1e-6
    assert (1 - ratio) * total - gone < max(g.step for g in groups) + 1
    ranks = {name: values.sort().values for name, values in normalised(scores).items()}
    for one, other in itertools.permutations(groups, 2):   # equal steps: what went is no more important than what stays
        if one.step == other.step and removed[one.name] and removed[other.name] < limits[other.name]:
            assert ranks[one.name][removed[one.name] - 1] <= ranks[other.name][removed[other.name]]


def test_a_threshold_keeps_what_reaches_it():
    assert above_threshold(GROUPS, SCORES, 2.0) == {"a": Keep(0.5)}
    assert above_threshold(GROUPS, SCORES, 20.0) == {"a": Keep(0.25), "b": Keep(0.5)}
    assert above_threshold(GROUPS, SCORES, 1.0) == {}
    assert above_threshold(GROUPS, normalised(SCORES), 1.0) == {"a": Keep(0.5), "b": Keep(0.5)}
    assert above_threshold(GROUPS, SCORES, 1e9, most_removed=0.5) == {"a": Keep(0.5), "b": Keep(0.5)}
    assert above_threshold((group("one", 8, step=8),), {"one": torch.tensor([0.0])}, 1.0, 1.0) == {}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: global_ratio(GROUPS, SCORES, 0.05), r"keeping 0.05 .* out of reach .* \(allowed: 0.25 to 1\)"),
        (lambda: global_ratio(GROUPS, SCORES, 0), "keep ratio 0 for all groups"),
        (lambda: global_ratio(GROUPS, {"a": SCORES["a"]}, 0.5), "group 'b' has no importances"),
        (lambda: above_threshold(GROUPS, {**SCORES, "b": SCORES["b"][:3]}, 1.0), r"shape \(3,\) \(allowed: \(4,\)\)"),
        (lambda: above_threshold(GROUPS, {**SCORES, "a": SCORES["a"] * float("nan")}, 1.0), "'a'.* not finite"),
        (lambda: global_ratio(GROUPS, {**SCORES, "a": SCORES["a"] * float("inf")}, 0.5), "'a'.* not finite"),
        (lambda: above_threshold(GROUPS, SCORES, float("inf")), "threshold inf is not finite"),
        (lambda: above_threshold(GROUPS, SCORES, 1.0, 1.5), "at most 1.5 of a group"),
        (lambda: cumulative_keep(3, 2, 0.5), "step 3 of 2"),
        (lambda: cumulative_keep(0, 0, 0.5), "step 0 of 0"),
        (lambda: cumulative_keep(1, 2, 0.0), "keep ratio 0 for the schedule"),
        (lambda: cumulative_keep(1, 2, 0.5, "cubical"), "unknown schedule 'cubical'; did you mean 'cubic'"),
        (lambda: at_step(GROUPS, {"c": Keep(0.5)}, 1, 2), "unknown group 'c'"),
    ],
)
def test_impossible_requests_are_refused(call, text):
    with pytest.raises(PolicyError, match=text):
        call()


def test_schedules_on_worked_examples():
    assert [cumulative_keep(i, 4, 0.2, "linear") for i in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    removed = [0.0, *(0.8 * (1 - (1 - i / 4) ** 3) for i in (1, 2, 3)), 0.8]   # Zhu, Gupta 2017, equation 1
    assert [cumulative_keep(i, 4, 0.2) for i in range(5)] == pytest.approx([1 - s for s in removed])
    assert at_step(GROUPS, {"a": Keep(0.25), "b": Keep(0.5)}, 1, 2, "linear") == {"a": Keep(0.5), "b": Keep(0.75)}
    assert at_step(GROUPS, {"a": Keep(0.25)}, 0, 2) == {}


@given(st.integers(1, 12), st.floats(0.01, 1.0), st.sampled_from(SCHEDULES), st.sampled_from((1, 2, 8)))
def test_schedules_fall_from_dense_to_the_end_and_cubic_ones_are_ahead(steps, final, schedule, step):
    one = group("g", 8 * step, step)
    ratios = [cumulative_keep(i, steps, final, schedule) for i in range(steps + 1)]
    assert ratios[0] == 1.0
    assert ratios[-1] == final
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(ratios))
    if schedule == "cubic":
        assert all(ratios[i] <= cumulative_keep(i, steps, final, "linear") + 1e-12 for i in range(steps + 1))
    sizes = [kept([one], at_step([one], {"g": Keep(final)}, i, steps, schedule))["g"] for i in range(steps + 1)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == one.size
    assert sizes[-1] == kept_channels(one, final)
