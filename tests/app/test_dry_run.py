"""`search --dry-run`: what would be searched, whether budgets can be met, and nothing written."""

import json

import pytest

import paretopress

FACTORIES = ("--model", "small:model", "--data", "small:data", "--target", "cortex-a76-tflite")


@pytest.fixture
def here(project, tmp_path):
    return tmp_path / "run"


def test_a_dry_run_tells_and_writes_nothing(cli, here):
    arguments = ("search", *FACTORIES, "--trials", "7", "--max", "size=-50%", "--run", here)
    code, out, err = cli(*arguments, "--dry-run")
    assert code == 0
    assert not here.exists()
    assert "7 trials" in out
    assert "can be met" in out
    assert "next: paretopress search --model small:model --data small:data --target cortex-a76-tflite --trials 7" in err
    assert "--dry-run" not in err
    code, out, _ = cli(*arguments, "--dry-run", "--json")
    found = json.loads(out)
    assert found["state"] == {"run": "new", "trials": 0, "differs": []}
    assert found["objectives"]["size"]["satisfiable"] is True
    assert found["trials"] == 7
    assert found["estimated_seconds"] == pytest.approx(sum(found["estimated_parts"].values()))
    assert set(found["estimated_parts"]) == {"calibrate", "sensitivity", "build", "verify", "explore"}
    assert found["samples"]["holdout"] == 32


def test_a_time_is_what_a_search_takes_and_impossible_budgets_exit_3(cli, here):
    arguments = ("search", *FACTORIES, "--time", "3m", "--run", here, "--dry-run", "--json")
    assert json.loads(cli(*arguments)[1])["estimated_seconds"] == 180.0
    code, out, err = cli(*arguments, "--max", "size=10B")
    assert code == 3
    assert json.loads(out)["objectives"]["size"]["satisfiable"] is False
    assert "error: a search would stop at once: size cannot be met" in err


def test_it_knows_an_earlier_run_and_what_differs(tiny, tiny_run):
    def state(**changes):
        search = paretopress.Search(
            tiny.module.model(), data=tiny.module.data(), target="x86-zen4-vnni-onnxruntime", max_drop="5pp",
            run=tiny_run.path, progress=False, **{"trials": 14, "finalists": 1, **changes},
        ).set("timing.runs=5")
        return search.dry_run()["state"]

    assert state() == {"run": "finished", "trials": 14, "differs": []}
    assert state(trials=20)["run"] == "finished"
    assert state(seed=3) == {"run": "refused", "trials": 14, "differs": ["seed"]}
