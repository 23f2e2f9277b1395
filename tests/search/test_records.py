import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.records import KEYS, TrialRecord, TrialState
from paretopress.spaces.choices import Factorised, Keep, Weights
from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.policy import Policy

finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
units = st.one_of(
    st.tuples(names.map("{}/channels".format), st.floats(0.01, 1.0).map(Keep)),
    st.tuples(names.map("{}/rank".format), st.integers(1, 999).map(lambda rank: Factorised("svd", rank))),
    st.tuples(
        names.map("{}/weights".format),
        st.builds(Weights, st.sampled_from([2, 3, 4, 8]), st.sampled_from([8, 32])),
    ),
)
records = st.builds(
    TrialRecord,
    number=st.integers(0, 10**9),
    state=st.sampled_from(TrialState),
    policy=st.lists(units, max_size=6).map(lambda items: Policy.of(dict(items))),
    values=st.dictionaries(names, finite, max_size=4),
    constraints=st.dictionaries(names, finite, max_size=4),
    seconds=st.floats(0, 1e6),
    reason=st.none() | st.text(max_size=40),
    images=st.integers(0, 10**6),
)
LINE = TrialRecord(3, TrialState.COMPLETE, Policy.of({"fc/weights": Weights(4)}), {"accuracy": 0.5}).to_line()


@given(records)
def test_a_record_survives_its_line_unchanged(record):
    line = record.to_line()
    assert "\n" not in line
    assert TrialRecord.from_line(line) == record
    assert TrialRecord.from_line(line).to_line() == line
    assert tuple(json.loads(line)) == KEYS


@given(records)
def test_every_truncation_of_a_line_is_refused(record):
    line = record.to_line()
    for end in range(0, len(line), max(1, len(line) // 20)):
        with pytest.raises(ArtifactError):
            TrialRecord.from_line(line[:end])


def test_the_line_is_this_text():
    policy = Policy.of({"fc/weights": Weights(4), "a/channels": Keep(0.5)}, model="m", space="s")
    record = TrialRecord(7, TrialState.PRUNED, policy, {"size": 9, "macs": 0.1}, {"size": -2}, 0.25, "slow")
    assert record.to_line() == (
        '{"number": 7, "state": "PRUNED", "policy": {"a/channels": {"keep": 0.5}, '
        '"fc/weights": {"weights": 4, "activations": 8, "scheme": "symmetric"}}, '
        f'"policy_hash": "{policy.hash}", "values": {{"macs": 0.1, "size": 9.0}}, '
        '"constraints": {"size": -2.0}, "images": 0, "seconds": 0.25, "reason": "slow"}'
    )
    assert TrialRecord.from_line(record.to_line(), model="m", space="s") == record


def test_a_line_of_an_earlier_version_has_no_images():
    assert TrialRecord.from_line(LINE.replace('"images": 0, ', "")) == TrialRecord.from_line(LINE)


@pytest.mark.parametrize(("old", "new", "message"), [
    ('"number": 3', '"number": -1', "number: expected an integer from 0"),
    ('"number": 3', '"number": true', "number: expected an integer from 0"),
    ('"COMPLETE"', '"DONE"', "state: 'DONE' is not one of COMPLETE, PRUNED, FAIL"),
    ('"accuracy": 0.5', '"accuracy": NaN', "NaN is not a finite number"),
    ('"accuracy": 0.5', '"accuracy": 1e999', "finite number"),
    ('"accuracy": 0.5', '"accuracy": ' + "9" * 400, "values.accuracy: expected a finite number"),
    ('"weights": 4', '"weights": 8', "does not match its hash"),
    ('"weights": 4', '"weights": 5', "5 weight bits are not offered"),
    ('"reason": null', '"reason": 1', "reason: expected text or null"),
    ('"images": 0', '"images": -1', "images: expected an integer from 0"),
    ('"seconds": 0.0, ', "", "exactly the keys"),
    ('"seconds": 0.0', '"seconds": 0.0, "extra": 1', "exactly the keys"),
    ('"constraints": {}', '"constraints": []', "constraints: expected a mapping"),
])
def test_a_wrong_line_is_refused_in_one_line_with_its_place(old, new, message):
    assert old in LINE
    with pytest.raises(ArtifactError, match="here:1") as error:
        TrialRecord.from_line(LINE.replace(old, new), "here:1")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_become_a_failure_and_never_a_record(value):
    record = TrialRecord.of(0, Policy(), Evaluation(State.COMPLETE, {"accuracy": value}), 0.0)
    assert (record.state, record.values) == (TrialState.FAIL, {})
    assert "accuracy" in record.reason
    with pytest.raises(ValueError, match="not a finite number"):
        TrialRecord(0, TrialState.COMPLETE, Policy(), {"accuracy": value})


def test_states_and_reasons_follow_the_evaluation():
    evaluation = Evaluation(State.SCREENED, {"size": 1.0}, {"size": 2.0}, "size\nover")
    screened = TrialRecord.of(1, Policy(), evaluation, 0.5)
    assert (screened.state, screened.reason) == (TrialState.PRUNED, "size over")
    assert screened.values == {"size": 1.0}
    complete = TrialRecord.of(1, Policy(), Evaluation(State.COMPLETE, {"size": 1.0}, {"size": 0.0}), 0.5)
    assert (complete.state, complete.reason) == (TrialState.COMPLETE, None)
    assert complete.feasible
    assert not screened.feasible
