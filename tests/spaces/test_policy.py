"""A policy travels: through YAML and JSON, unchanged, and nothing else is read as one."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretopress.spaces.choices import (
    ACTIVATIONS,
    FACTORISATIONS,
    WEIGHT_BITS,
    Factorised,
    Keep,
    Weights,
    choice_from_plain,
    choice_to_plain,
)
from paretopress.spaces.errors import ConfigError, PolicyError
from paretopress.spaces.policy import DENSE, SCHEMA, Policy

CHOICES = {
    "channels": st.floats(0, 1, exclude_min=True).map(Keep),
    "rank": st.one_of(
        st.builds(Factorised, st.sampled_from(FACTORISATIONS), st.integers(1, 10**6)),
        st.builds(Factorised, st.just("tucker"), st.integers(1, 10**6), st.integers(0, 10**6)),
    ),
    "weights": st.one_of(
        st.builds(Weights, st.sampled_from(WEIGHT_BITS), st.sampled_from(ACTIVATIONS)),
        st.builds(Weights, st.sampled_from(WEIGHT_BITS), st.sampled_from([16, 32]), st.just("asymmetric"), st.just(32)),
        st.builds(Weights, st.sampled_from(WEIGHT_BITS), ranges=st.just("dynamic")),
    ),
}
SUBJECTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"]), max_size=12)
FINGERPRINTS = st.one_of(
    st.text("0123456789abcdef", min_size=16, max_size=16),
    st.from_regex(r"[0-9]{7}e[0-9]{8}", fullmatch=True),
    st.just(""),
)
UNITS = st.tuples(SUBJECTS, st.sampled_from(sorted(CHOICES))).flatmap(
    lambda unit: st.tuples(st.just("/".join(unit)), CHOICES[unit[1]])
)
POLICIES = st.builds(
    lambda units, model, space: Policy.of(dict(units), model=model, space=space),
    st.lists(UNITS, max_size=6),
    FINGERPRINTS,
    FINGERPRINTS,
)
EXAMPLE = {"conv1/channels": Keep(0.5), "fc/rank": Factorised("svd", 8), "fc/weights": Weights(4, 32)}


@given(POLICIES)
def test_plain_data_round_trip(policy):
    assert Policy.from_plain(policy.to_plain()) == policy


@given(POLICIES, st.sampled_from(["p.yaml", "p.json"]))
@settings(max_examples=150, deadline=None)
def test_file_round_trip(tmp_path_factory, policy, name):
    path = tmp_path_factory.mktemp("policy") / name
    policy.save(path)
    loaded = Policy.load(path)
    assert loaded == policy
    assert loaded.hash == policy.hash


def test_hash_is_the_same_on_every_machine():
    assert Policy.of(EXAMPLE).hash == "31a9d42ca9ef0ec9"
    assert DENSE.hash == "4f53cda18c2baa0c"


@given(POLICIES)
def test_hash_depends_on_the_choices_alone(policy):
    assert Policy(policy.items).hash == policy.hash
    assert len(policy.hash) == 16
    assert policy.replace({"new/channels": Keep(0.123)}).hash != policy.hash
    assert Policy.of(dict(reversed(policy.items))).hash == policy.hash


def test_different_choices_have_different_hashes():
    every = [Keep(0.5), Keep(0.25), Factorised("svd", 1), Factorised("svd", 2)]
    every += [Weights(bits, activations) for bits, activations in itertools.product(WEIGHT_BITS, ACTIVATIONS)]
    every.append(Weights(8, ranges="dynamic"))
    kinds = {Keep: "channels", Factorised: "rank", Weights: "weights"}
    assert len({Policy.of({f"a/{kinds[type(choice)]}": choice}).hash for choice in every}) == len(every)


def test_replace_and_dense():
    policy = Policy.of(EXAMPLE, model="m", space="s")
    changed = policy.replace({"fc/rank": None, "conv1/channels": Keep(0.25)})
    assert changed.choices == {"conv1/channels": Keep(0.25), "fc/weights": Weights(4, 32)}
    assert (changed.model, changed.space) == ("m", "s")
    assert policy.choices == EXAMPLE
    assert DENSE.is_dense
    assert policy.replace(dict.fromkeys(EXAMPLE)).is_dense
    assert {policy, Policy.of(EXAMPLE, model="m", space="s")} == {policy}


@given(CHOICES["rank"] | CHOICES["weights"] | CHOICES["channels"])
def test_choice_round_trip(choice):
    assert choice_from_plain(choice_to_plain(choice), "here") == choice


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Keep(-0.01), "outside [0, 1]"),
        (lambda: Keep(1.01), "outside [0, 1]"),
        (lambda: Keep(float("nan")), "outside [0, 1]"),
        (lambda: Factorised("svd", 0), "rank 0 is below 1"),
        (lambda: Factorised("sdv", 2), "did you mean 'svd'"),
        (lambda: Factorised("tucker", 2, -1), "inner rank -1 is below 1"),
        (lambda: Factorised("spatial", 2, 3), "spatial factors have one rank, no inner one (allowed: tucker)"),
        (lambda: Weights(5), "5 weight bits are not offered (allowed: 2, 3, 4, 8)"),
        (lambda: Weights(8, 5), "5 activation bits are not offered (allowed: 4, 8, 16, 32)"),
        (lambda: Weights(8, 32, ranges="dynamic"), "dynamic ranges go with 8-bit activations, not with 32"),
        (lambda: Weights(8, ranges="dynamc"), "did you mean 'dynamic'"),
        (lambda: Weights(4, ranges="dynamic", group=32), "8-bit activations go with symmetric weights"),
        (lambda: Weights(8, 8, "symetric"), "did you mean 'symmetric'"),
        (lambda: Policy.of({"fc/rank": Keep(0.5)}), "'fc/rank' takes Factorised"),
        (lambda: Policy.of({"fc/weigths": Weights(8)}), "did you mean 'weights'"),
        (
            lambda: Policy((("b/rank", Factorised("svd", 1)), ("a/rank", Factorised("svd", 1)))),
            "sorted and unique",
        ),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(PolicyError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ([], "a policy is a mapping"),
        (None, "a policy is a mapping"),
        ({"unit": {}}, "unknown key 'unit'; did you mean 'units'"),
        ({"schema": "paretopress-policy/2"}, "paretopress-policy/2 is newer than this version reads"),
        ({"schema": "other/1"}, "schema 'other/1' is not supported"),
        ({"units": []}, "units: expected a mapping"),
        ({"units": 0}, "units: expected a mapping"),
        ({"model": 12}, "model: expected text, got 12"),
        ({"units": {"a/channels": 0.5}}, "units.a/channels: a choice is a mapping"),
        ({"units": {"a/channels": {}}}, "units.a/channels: unknown choice"),
        ({"units": {"a/channels": {"kep": 0.5}}}, "did you mean 'keep'"),
        ({"units": {"a/channels": {"keep": "half"}}}, "units.a/channels: expected a number, got 'half'"),
        ({"units": {"a/channels": {"keep": True}}}, "expected a number, got True"),
        ({"units": {"a/channels": {"keep": 2}}}, "units.a/channels: keep ratio 2.0 is outside"),
        ({"units": {"a/channels": {"keep": 0.5, "rank": 2}}}, "unknown field 'rank'"),
        ({"units": {"a/rank": {"factorised": "svd"}}}, "expected an integer, got None"),
        ({"units": {"a/rank": {"factorised": "svd", "rank": 2.0}}}, "expected an integer, got 2.0"),
        ({"units": {"a/rank": {"factorised": "tucker", "rank": 2, "inner": 1.5}}}, "expected an integer, got 1.5"),
        ({"units": {"a/rank": {"factorised": "svd", "rank": 2, "inner": 1}}}, "svd factors have one rank"),
        ({"units": {"a/weights": {"weights": 8, "activation": 8}}}, "did you mean 'activations'"),
        ({"units": {"a/weights": {"weights": 8, "activations": "dynamic"}}}, "(write activations: 8, ranges: dynamic)"),
        ({"units": {"a/weights": {"weights": 8, "ranges": "sometimes"}}}, "kind of activation ranges 'sometimes'"),
        ({"units": {"a/weights": {"keep": 0.5}}}, "'a/weights' takes Weights"),
    ],
)
def test_what_is_no_policy_is_refused_with_its_place(plain, message):
    with pytest.raises(PolicyError) as caught:
        Policy.from_plain(plain, "file.yaml")
    assert str(caught.value).startswith("file.yaml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dense_policy_may_be_written_by_hand(tmp_path):
    path = tmp_path / "dense.yaml"
    path.write_text(f"schema: {SCHEMA}\nunits:\n")
    assert Policy.load(path) == DENSE
    with pytest.raises(ConfigError, match=r"missing\.yaml: No such file"):
        Policy.load(tmp_path / "missing.yaml")
