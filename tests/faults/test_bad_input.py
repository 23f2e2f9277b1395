"""What a user can get wrong: one line, the right exit code, nothing lost."""

import json
import shutil

import pytest

TARGET = "x86-zen4-vnni-onnxruntime"


@pytest.mark.parametrize(
    ("model", "data", "texts"),
    [
        ("tiny:nothing", "tiny:data", ("unknown function 'nothing'",)),
        ("tinny:model", "tiny:data", ("module 'tinny' not found", "did you mean 'tiny'?")),
        ("broken_factories:branching", "tiny:data", ("broken_factories.py:16",)),
        ("tiny:model", "broken_factories:empty", ("calibration", "empty")),
        ("tiny:model", "broken_factories:nan", ("calibration: input 0 holds NaN", "row 5")),
        ("tiny:model", "broken_factories:wrong_shape", ("calibration", "(3, 8, 8)", "(1, 8, 8)")),
        ("tiny:model", "broken_factories:other_model_s_shape", ("expected", "tiny.py:18")),
        ("tiny:model", "broken_factories:overlapping", ("2 of 202 holdout samples also stand in search", "row 200")),
        ("tiny:model", "broken_factories:nan_metric", ("metric", "nan")),
    ],
)
def test_factories(command, assert_refused, search_tiny, tmp_path, model, data, texts):
    assert_refused(command(*search_tiny(tmp_path / "run", model=model, data=data)), 2, *texts)
    assert not (tmp_path / "run" / "trials.jsonl").exists() or data == "broken_factories:nan_metric"


@pytest.mark.parametrize(
    ("arguments", "code", "texts"),
    [
        (("--target", "cortex-a77"), 2, ("unknown device 'cortex-a77'", "did you mean 'cortex-a76-tflite'?")),
        (("--max", "size=100B"), 3, ("size 100B", "cannot be met", "best reachable is", "bytes")),
        (("--max", "latency=1ns"), 3, (f"latency@{TARGET} 1ns", "best reachable is", "ms predicted")),
        (("--max", "macs=10"), 3, ("best reachable is", "MACs")),
        (("--max", "peak_memory=16B"), 3, ("best reachable is", "bytes")),
        (("--target", "h200-sxm", "--max", "latency=5ms"), 2, ("h200-sxm is a T0 profile", "-50%")),
        (("--set", "space.pin={other/weights: {weights: 8, activations: 8}}"), 2, ("other/weights",)),
        (("--set", "space.exclude=[nothing*]"), 2, ("nothing*",)),
    ],
)
def test_settings(command, assert_refused, search_tiny, tmp_path, arguments, code, texts):
    assert_refused(command(*search_tiny(tmp_path / "run", *arguments)), code, *texts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("unknown_key.yaml", ("search.trails", "unknown key", "did you mean 'trials'?")),
        ("wrong_type.yaml", ("search.trials", "expected a whole number, got 'many'")),
        ("unknown_section.yaml", ("targetz", "did you mean 'targets'?")),
        ("tagged.yaml", ("tagged.yaml:1:", "tag")),
        ("code.yaml", ("model", "names no code")),
        ("absent.yaml", ("No such file",)),
    ],
)
def test_settings_files(command, assert_refused, tmp_path, name, texts):
    result = command("search", name, "--model", "tiny:model", "--data", "tiny:data", "--run", tmp_path / "run")
    assert_refused(result, 2, name, *texts)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def copied_run(tiny_run, tmp_path):
    shutil.copytree(tiny_run.path, tmp_path / "run")
    return tmp_path / "run"


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("--seed", "1"), "seed"),
        (("--max-drop", "2pp"), "evaluator"),
        (("--set", "space.bits=[8]"), "space"),
        (("--target", "cortex-a76-tflite"), "profile"),
        ({"data": "tiny:changed_data"}, "data"),
        ({"model": "tiny:changed_model"}, "model"),
    ],
)
def test_a_run_of_something_else_is_not_continued(
    command, assert_refused, search_tiny, copied_run, change, key
):
    before = contents(copied_run)
    more, factories = ((), change) if isinstance(change, dict) else (change, {})
    result = command(*search_tiny(copied_run, *more, **factories))
    assert_refused(result, 2, "made with a different", key, "--fresh")
    named = result[2].splitlines()[-1].partition("made with a different ")[2].partition(";")[0]
    assert key in [one.partition(" (")[0] for one in named.split(", ")]
    assert contents(copied_run) == before


def test_two_drivers_do_not_share_a_run(command, assert_refused, search_tiny, copied_run):
    import fcntl

    before = contents(copied_run)
    with (copied_run / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert_refused(command(*search_tiny(copied_run)), 75, "another process is working on this run")
    assert contents(copied_run) == before


def test_artefacts_of_another_model_are_refused(command, assert_refused, tiny_run):
    folder = tiny_run.path / "models" / "1"
    result = command("verify", folder, "--model", "broken_factories:other", "--data", "tiny:data")
    assert_refused(result, 2, "another model")


def test_policies_of_another_model_name_the_unknown_units(tiny_run, tiny, tiny_settings):
    from paretopress.search.problem import prepare_problem
    from paretopress.spaces.errors import PolicyError
    from paretopress.spaces.policy import Policy

    problem = prepare_problem(tiny.module.model(), tiny.module.data(), tiny_settings)
    stored = Policy.load(tiny_run.path / "policies" / "1.yaml")
    assert problem.plan(stored).stored_bytes > 0
    strange = Policy.of({unit.replace("second", "secnd"): choice for unit, choice in stored})
    with pytest.raises(PolicyError, match=r"secnd/weights.*second/weights"):
        problem.plan(strange)


def test_a_corrupt_ledger_is_refused_and_named(command, assert_refused, search_tiny, copied_run):
    trials = copied_run / "trials.jsonl"
    lines = trials.read_text().splitlines(keepends=True)
    changed = json.loads(lines[3])
    changed["policy"] = {}
    trials.write_text("".join([*lines[:3], json.dumps(changed) + "\n", *lines[4:]]))
    before = contents(copied_run)
    assert_refused(command(*search_tiny(copied_run)), 2, "trials.jsonl:4", "does not match its hash")
    assert contents(copied_run) == before
