"""The policy library: folders, files, runs and shipped recipes as sources; the index is a convenience."""

import json
import os
import shutil

import pytest
from known_models import recipe

from paretopress.search.policy_library import (
    INDEX,
    UNITS,
    add_to_library,
    read_index,
    read_source,
    recipe_of_run,
    shipped_recipes,
)
from paretopress.spaces.errors import ArtifactError, ConfigError, PolicyError
from paretopress.spaces.policy import Policy
from paretopress.spaces.recipe import SUFFIX, Recipe


def test_a_library_is_a_folder_with_an_index(tmp_path):
    first = add_to_library(tmp_path / "library", recipe("short", 3))
    add_to_library(tmp_path / "library", recipe("long net", 5))
    rows = read_index(first.parent)
    assert [row["name"] for row in rows] == ["long net", "short"]
    assert rows[1]["choices"] == sum(len(row) - 1 for row in recipe("short", 3).losses.values())
    assert json.loads((first.parent / INDEX).read_text())["recipes"] == rows
    assert [one.name for one in read_source(first.parent)] == ["long net", "short"]


def test_an_index_that_is_stale_or_gone_is_not_believed(tmp_path):
    path = add_to_library(tmp_path, recipe("short", 3))
    recipe("short", 4).save(path)
    os.utime(path, ns=(2**62, 2**62))
    assert read_index(tmp_path)[0]["layers"] == 4
    (tmp_path / INDEX).unlink()
    assert read_index(tmp_path)[0]["layers"] == 4
    (tmp_path / INDEX).write_text('{"schema": "paretopress-policy-library/2", "recipes": []}')
    with pytest.raises(PolicyError, match="newer than this version reads"):
        read_index(tmp_path)


def test_what_is_no_source_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no file or folder digts; .*digits"):
        read_source("digts")
    with pytest.raises(ConfigError, match="neither a run directory nor a folder with recipes"):
        read_source(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        read_index(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["digits", "ds_cnn"])
def test_shipped_recipes_are_small_and_whole(name):
    path = shipped_recipes()[name]
    assert path.stat().st_size < 60_000
    (found,) = read_source(name)
    assert found.policies
    assert all(one.verified for one in found.policies)
    assert all({"accuracy", "size_bytes", "latency_ms"} <= one.values.keys() for one in found.policies)
    assert set(found.losses) == set(found.options)
    assert found.provenance["baseline"]["accuracy"] > 0.5
    assert found.provenance["devices"]


def test_a_run_becomes_a_recipe(tiny_run, tmp_path):
    found = recipe_of_run(tiny_run.path)
    assert found.provenance["model_name"] == "tiny:model"
    assert found.policies
    assert all(one.verified for one in found.policies)
    measured = json.loads((tiny_run.path / "sensitivity.json").read_text())["losses"]
    assert {unit: list(row) for unit, row in found.losses.items()} == measured
    assert set(found.features) >= {"first/layer", "first/channels", "last/layer"}
    found.save(tmp_path / f"tiny{SUFFIX}")
    assert Recipe.load(tmp_path / f"tiny{SUFFIX}").policies[0].policy.hash == found.policies[0].policy.hash
    assert read_source(tiny_run.path)[0].fingerprint == found.fingerprint


def test_a_run_that_did_not_describe_its_units_is_named(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run.path, run)
    (run / UNITS).unlink()
    with pytest.raises(ArtifactError, match="--model and --data"):
        recipe_of_run(run)
    features = recipe_of_run(tiny_run.path).features
    assert recipe_of_run(run, features).features == features
    (run / UNITS).write_text('{"schema": "paretopress-units/1", "columns": [], "features": [[1]]}')
    with pytest.raises(ArtifactError, match="damaged"):
        recipe_of_run(run)


def test_a_policy_file_is_a_source(tmp_path):
    Policy.of({}).save(tmp_path / "dense.yaml")
    (found,) = read_source(tmp_path / "dense.yaml")
    assert (found.name, found.cells) == ("dense", 0)
