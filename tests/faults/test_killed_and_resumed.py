"""The same command gives the same files, whether it runs once, twice, or is killed in between."""

import json
import random
import shutil
import signal
import time

import pytest

TRIALS = 14


def trials_of(path):
    """Every line of `trials.jsonl` without the key that holds a time."""
    lines = (path / "trials.jsonl").read_text().splitlines()
    return [
        json.dumps({key: value for key, value in json.loads(line).items() if key != "seconds"}) for line in lines
    ]


def finished(path):
    trials = path / "trials.jsonl"
    return trials.read_bytes().count(b"\n") if trials.exists() else 0


def assert_same_results(path, reference):
    assert trials_of(path) == trials_of(reference)
    assert (path / "finalists.csv").read_bytes() == (reference / "finalists.csv").read_bytes()
    assert (path / "sensitivity.json").read_bytes() == (reference / "sensitivity.json").read_bytes()
    for folder in (reference / "models").iterdir():
        stored = (path / "models" / folder.name / "model.safetensors").read_bytes()
        assert stored == (folder / "model.safetensors").read_bytes()
    assert [entry.name for entry in (path / "models").iterdir() if entry.name.startswith(".")] == []


def kill_when(process, condition, seconds=60.0):
    """Kill with SIGKILL as soon as the condition holds; returns whether the process was still alive."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end and not condition():
        time.sleep(0.001)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return alive


def test_trials_are_numbered_and_unique(tiny_run):
    records = [json.loads(line) for line in trials_of(tiny_run.path)]
    assert [record["number"] for record in records] == list(range(TRIALS))
    assert len({record["policy_hash"] for record in records}) == TRIALS
    assert records[0]["policy"] == {}


@pytest.mark.slow
def test_the_same_command_again_gives_the_same_files(tiny_run, finish, search_tiny, tmp_path):
    """Another process, another folder, the command line instead of Python."""
    code, out, err = finish(*search_tiny(tmp_path / "again", "--json"))
    assert code == 0, err
    assert_same_results(tmp_path / "again", tiny_run.path)
    document = json.loads(out)
    assert document["run"] == str(tmp_path / "again")
    assert document["trials"]["total"] == TRIALS


@pytest.mark.slow
def test_killed_four_times_and_resumed_the_run_is_the_same(tiny_run, start, finish, search_tiny, tmp_path):
    """Twice at random moments of the exploration, while finalists are built, and while they are verified."""
    run = tmp_path / "killed"
    moments = sorted(random.Random(5).sample(range(1, TRIALS - 1), 2))
    for count in moments:
        process = start(*search_tiny(run))
        assert kill_when(process, lambda count=count: finished(run) >= count)
        before = trials_of(run)
        assert len(before) < TRIALS
        assert before == trials_of(tiny_run.path)[: len(before)]
    process = start(*search_tiny(run))
    assert kill_when(process, lambda: (run / "models" / "2" / "manifest.json").exists())
    assert finished(run) == TRIALS
    seconds = [json.loads(line)["seconds"] for line in (run / "trials.jsonl").read_text().splitlines()]
    # The process that verifies goes with its parent; what it left unfinished is written again.
    process = start(*search_tiny(run))
    assert kill_when(process, lambda: (run / "models" / "1" / "model.onnx").exists())
    assert not (run / "front.json").exists()
    code, _, err = finish(*search_tiny(run))
    assert code == 0, err
    assert_same_results(run, tiny_run.path)
    after = [json.loads(line)["seconds"] for line in (run / "trials.jsonl").read_text().splitlines()]
    assert after == seconds   # nothing was evaluated again


def test_a_torn_last_line_and_a_torn_table_cost_that_trial_alone(
    tiny, tiny_run, tiny_settings, tmp_path, monkeypatch
):
    from paretopress.search import session

    run = tmp_path / "torn"
    shutil.copytree(tiny_run.path, run)
    lines = (run / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (run / "trials.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][:40])
    (run / "sensitivity.json").write_text("{")   # measured again
    monkeypatch.setattr(session, "verify_finalists", lambda *_: [])
    session.run_search(tiny.module.model(), tiny.module.data(), tiny_settings, run)
    assert trials_of(run) == trials_of(tiny_run.path)
    assert (run / "trials.jsonl").read_bytes().splitlines(keepends=True)[:6] == lines[:6]
    assert (run / "trials.jsonl.torn").read_bytes().startswith(lines[6][:40])
    assert (run / "sensitivity.json").read_bytes() == (tiny_run.path / "sensitivity.json").read_bytes()


def test_a_table_of_other_data_is_not_taken_for_this_one_s(tiny, tiny_run, tiny_settings, tmp_path, monkeypatch):
    """`--fresh` starts anew in a folder where the table of an earlier, different run lies."""
    from paretopress.search import session

    run = tmp_path / "fresh"
    shutil.copytree(tiny_run.path, run)
    monkeypatch.setattr(session, "verify_finalists", lambda *_: [])
    session.run_search(tiny.module.model(), tiny.module.changed_data(), tiny_settings, run, fresh=True)
    earlier, later = (json.loads((path / "sensitivity.json").read_text()) for path in (tiny_run.path, run))
    assert later["key"]["data"] != earlier["key"]["data"]
    assert later["losses"] != earlier["losses"]
    assert (run / "previous-1" / "trials.jsonl").exists()
