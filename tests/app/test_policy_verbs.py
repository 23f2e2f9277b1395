"""`paretopress policy`: listing, showing, comparing and sharing, and refusals in one line."""

import json

import pytest

from paretopress.spaces.choices import Factorised, Keep, Weights
from paretopress.spaces.policy import Policy


@pytest.fixture
def policies(tmp_path):
    Policy.of({"first/channels": Keep(0.5), "last/weights": Weights(8)}).save(tmp_path / "one.yaml")
    Policy.of({"first/channels": Keep(0.25), "last/weights": Weights(8)}).save(tmp_path / "other.json")
    return tmp_path


def test_the_shipped_recipes_are_listed(cli):
    code, out, _ = cli("policy", "list", "--json")
    rows = json.loads(out)
    assert code == 0
    assert {"digits", "ds_cnn"} <= {row["name"] for row in rows}
    code, out, _ = cli("policy", "list")
    assert code == 0
    assert "ds_cnn" in out


def test_a_recipe_shows_where_it_comes_from(cli):
    code, out, _ = cli("policy", "show", "ds_cnn")
    assert code == 0
    assert "x86-zen4-vnni-onnxruntime" in out
    assert "policy " in out
    code, out, _ = cli("policy", "show", "ds_cnn", "--json")
    found = json.loads(out)
    assert found["contents"][0]["verified"]
    assert found["provenance"]["run"]


def test_two_policies_are_compared_unit_by_unit(cli, policies):
    code, out, _ = cli("policy", "diff", policies / "one.yaml", policies / "other.json", "--json")
    assert code == 0
    assert json.loads(out)["differences"] == [{"unit": "first/channels", "first": "keep 0.5", "second": "keep 0.25"}]
    code, out, _ = cli("policy", "diff", policies / "one.yaml", policies / "one.yaml")
    assert (code, out) == (0, "the policies are the same\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("sho", "digits"), "unknown policy command 'sho'; did you mean 'show'?"),
        (("show", "digts"), "unknown recipe 'digts'; did you mean 'digits'?"),
        (("diff", "digits:nothing", "digits"), "unknown policy 'nothing'"),
        (("list", "no-such-folder"), "no such folder"),
        (("export", "no-such-run", "-o", "x.json"), "no-such-run"),
        (("export", "no-such-run"), "give either -o FILE or --library FOLDER"),
    ],
)
def test_what_is_wrong_is_one_line(cli, arguments, text):
    code, out, err = cli("policy", *arguments)
    assert (code, out) == (2, "")
    assert text in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"schema": "paretopress-policy/7", "units": {}}, "paretopress-policy/7 is newer than this version reads"),
        ({"units": {"first/rank": {"factorised": "svd", "rank": 99}}}, "not below full rank"),
        ({"units": {"frist/weights": {"weights": 8}}}, "did you mean 'first/weights'"),
        ({"model": "0123", "units": {"first/weights": {"weights": 8}}}, "was made for another model"),
    ],
)
def test_policies_that_do_not_fit_are_refused_and_nothing_is_written(cli, tmp_path, content, text):
    (tmp_path / "p.json").write_text(json.dumps(content))
    code, out, err = cli("policy", "apply", tmp_path / "p.json", "--model", "small:model", "--data", "small:data",
                         "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert text in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_is_shared_as_one_file_and_carried_to_a_device(finish, tiny_run, tmp_path):
    file = tmp_path / "tiny.recipe.json"
    code, out, err = finish("policy", "export", tiny_run.path, "-o", file, "--json")
    assert code == 0, err
    assert json.loads(out)["choices"] > 0
    given = ("--model", "tiny:model", "--data", "tiny:data")
    code, out, err = finish("policy", "transfer", file, *given, "-o", tmp_path / "carried", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["kind"] == "device"
    assert found["front"]["choices_computed"] == 0
    assert Policy.load(tmp_path / "carried" / "best.yaml").choices
    assert json.loads((tmp_path / "carried" / "transfer.json").read_text())["policies"]


@pytest.mark.slow
def test_a_policy_of_a_recipe_is_built_and_measured(finish, tiny_run, tmp_path):
    given = ("--model", "tiny:changed_model", "--data", "tiny:data")
    code, out, err = finish("policy", "apply", tiny_run.path, *given, "-o", tmp_path / "out", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["transfer"]["coverage"] == 1.0
    assert found["parity_problem"] in (None, "")
    assert found["measured"]["accuracy"] > 0.5


def test_a_policy_in_memory_starts_a_search():
    from paretopress.searching import recipes_in_memory

    policy = Policy.of({"a/rank": Factorised("svd", 2)})
    assert recipes_in_memory(policy)[0].policies[0].policy == policy
    assert recipes_in_memory("resnet20") == ()
