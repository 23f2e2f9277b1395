"""Recipes: one file, human-readable, versioned, and checked when it is read."""

import json

import pytest
from family import member

from paretopress.spaces.choices import Keep, Weights
from paretopress.spaces.errors import ConfigError, ParetopressError, PolicyError
from paretopress.spaces.policy import Policy
from paretopress.spaces.recipe import Recipe, RecipePolicy, load_recipe

OPTIONS = {"conv1/weights": (None, Weights(8), Weights(8, 32)), "layer1.0.conv1/channels": (None, Keep(0.5))}
LOSSES = {"conv1/weights": (0.0, 0.012345678, 0.001), "layer1.0.conv1/channels": (0.0, 0.3)}
POLICY = Policy.of({"conv1/weights": Weights(8), "layer1.0.conv1/channels": Keep(0.25)}, model="abc")
RECIPE = Recipe(
    "shallow", {"model": "abc", "devices": ["any"]}, member("shallow").features, OPTIONS, LOSSES,
    frozenset({("conv1/weights", 2)}), (RecipePolicy("knee", POLICY, {"accuracy": 0.9}, verified=True),),
)


def test_a_recipe_survives_writing_and_reads_well(tmp_path):
    path = tmp_path / "shallow.recipe.json"
    RECIPE.save(path)
    again = Recipe.load(path)
    assert again.to_plain() == RECIPE.to_plain()
    assert again.fingerprint == RECIPE.fingerprint
    assert again.losses["conv1/weights"] == (0.0, 0.01235, 0.001)
    assert again.estimated == RECIPE.estimated
    assert again.policies[0].policy == POLICY
    text = path.read_text()
    assert '"conv1/weights": "8-bit weights, 8-bit activations"' in text   # in words where the table has them
    assert '"layer1.0.conv1/channels": {"keep": 0.25}' in text             # in full where it has not
    assert len(text.splitlines()) > len(RECIPE.features) + len(OPTIONS)


def test_the_fingerprint_is_of_the_content_alone():
    named = Recipe.from_plain({**RECIPE.to_plain(), "name": "other"})
    assert named.fingerprint == RECIPE.fingerprint
    assert Recipe.from_plain({**RECIPE.to_plain(), "policies": []}).fingerprint != RECIPE.fingerprint


def changed(**parts):
    return {**json.loads(json.dumps(RECIPE.to_plain())), **parts}


@pytest.mark.parametrize(
    ("plain", "text"),
    [
        (changed(schema="paretopress-recipe/2"), "paretopress-recipe/2 is newer than this version reads"),
        (changed(schema="something/1"), "'something/1' is not supported"),
        (changed(weights=[]), "unknown key 'weights'"),
        (changed(table=[["conv1/weights", "o9", [0.0]]]), "unknown list of options 'o9'"),
        (changed(table=[["conv1/weights", "o0", [0.0]]]), "1 losses for 3 options"),
        (changed(table=[["conv1/weights", "o0", [0.0, -1.0, 0.0]]]), "a loss is a number from 0"),
        (changed(table=[["conv1/weights"]]), "damaged"),
        (changed(features=[["conv1/layer", 1]]), "one value for each"),
        (changed(options={"o0": [{"keep": 2.0}], "o1": [None]}), "outside"),
        (changed(policies=[{"name": "x", "units": {"conv1/weights": "9-bit"}}]), "unknown choice '9-bit'"),
        ([], "a recipe is a mapping"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(plain, text):
    with pytest.raises(PolicyError, match=r"^file: ") as refusal:
        Recipe.from_plain(plain, "file")
    assert text in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_policy_file_is_a_recipe_of_itself(tmp_path):
    POLICY.save(tmp_path / "small.yaml")
    found = load_recipe(tmp_path / "small.yaml")
    assert (found.name, found.policies[0].policy, found.features, found.cells) == ("small", POLICY, {}, 0)
    (tmp_path / "newer.yaml").write_text("schema: paretopress-policy/2\nunits: {}\n")
    with pytest.raises(PolicyError, match="paretopress-policy/2 is newer than this version reads"):
        load_recipe(tmp_path / "newer.yaml")
    with pytest.raises(ConfigError):
        load_recipe(tmp_path / "missing.json")
    with pytest.raises(ParetopressError, match="is a folder"):
        load_recipe(tmp_path)
