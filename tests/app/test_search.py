"""`search` and `compress` end to end on a small network, for a device that cannot run here."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import paretopress
from paretopress.spaces.errors import InfeasibleError

FACTORIES = ("--model", "small:model", "--data", "small:data", "--target", "cortex-a76-tflite")
FEW = ("--set", "search.finalists=2")
# So many that the search is still under way when it is interrupted.
SHARES = [round(0.01 * step, 2) for step in range(5, 100)]
MANY_CHOICES = ("--set", "space.end_bits=2", "--set", f"space.keep={SHARES}")


def test_compress_gives_a_front_of_models_that_load(project, tmp_path, monkeypatch, capfd):
    import small

    monkeypatch.chdir(tmp_path)
    model = small.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = paretopress.compress(
        model,
        data=small.data(),
        target="cortex-a76-tflite",
        max_drop="90%",
        trials=8,
        progress=False,
        settings={"search": {"finalists": 3}},
    )
    assert result.run.parent.name == "runs"
    assert result.run.name.startswith("small-")
    front = result.front
    assert len(front) >= 2
    assert front.baseline.policy.is_dense
    assert all(point.measured["latency_ms"] is None for point in front)
    knee = result.knee()
    assert knee.value("latency") == knee.predicted["latency_upper@cortex-a76-tflite"]
    assert "predicted" in front.table()
    result.save_pretrained("out", pick="smallest")
    loaded = paretopress.load("out", small.model)
    smallest = result.select(minimize="size")
    assert torch.equal(loaded(small.images(4, 9)), smallest.load(small.model)(small.images(4, 9)))
    assert smallest.value("size") < front.baseline.value("size")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_same_command_continues_and_prints_the_same_front(cli, tmp_path):
    arguments = (
        "search",
        *FACTORIES,
        "--max-drop",
        "90%",
        "--trials",
        "6",
        "--run",
        tmp_path / "a",
        "--json",
    )
    code, first, err = cli(*arguments)
    assert code == 0
    assert "error" not in err
    trials = (tmp_path / "a" / "trials.jsonl").read_bytes()
    code, second, _ = cli(*arguments)
    assert code == 0
    assert (tmp_path / "a" / "trials.jsonl").read_bytes() == trials
    points = [[point["policy_hash"] for point in json.loads(text)["points"]] for text in (first, second)]
    assert points[0] == points[1]
    code, out, _ = cli("front", tmp_path / "a", "--json")
    assert out == second


@pytest.mark.parametrize(
    ("extra", "code", "text"),
    [
        (("--max", "size=10B"), 3, "best reachable"),
        (("--target", "h200-sxm", "--max", "latency@h200-sxm=1ms"), 2, "h200-sxm"),
        (("--target", "cortex-a77"), 2, "did you mean 'cortex-a76-tflite'?"),
        (("--set", 'space.exclude=["fisrt"]'), 2, "first"),
    ],
)
def test_what_cannot_be_searched_is_one_line(cli, tmp_path, extra, code, text):
    ended = cli("search", *FACTORIES, "--trials", "2", "--run", tmp_path / "a", *extra)
    assert ended[:2] == (code, "")
    assert text in ended[2]
    assert ended[2].startswith("error: ")
    assert ended[2].count("\n") == 1
    assert not (tmp_path / "a").exists()


FAULTS = """
import dataclasses
import torch
from torch import nn
import paretopress
from small import Small, data, images, model


class Branching(nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def branching():
    return Branching()


def changed(**sets):
    return lambda: dataclasses.replace(data(), **sets)


empty = changed(calibration=images(0, 3))
nan = changed(calibration=images(8, 3) * float("nan"))
narrow = changed(calibration=torch.zeros(8, 1, 8))
overlap = changed(holdout=data().search)
labels = changed(search=(images(8, 1), torch.zeros(7, dtype=torch.long)))
"""


@pytest.mark.parametrize(
    ("option", "factory", "text"),
    [
        ("--model", "branching", "faults.py"),
        ("--data", "empty", "calibration"),
        ("--data", "nan", "calibration"),
        ("--data", "narrow", "calibration"),
        ("--data", "overlap", "holdout samples also stand in search"),
        ("--data", "labels", "search"),
    ],
)
def test_unusable_models_and_data_are_one_line(cli, project, tmp_path, option, factory, text):
    (project / "faults.py").write_text(FAULTS)
    ended = cli("search", *FACTORIES, option, f"faults:{factory}", "--trials", "2", "--run", tmp_path / "a")
    assert ended[:2] == (2, "")
    assert text in ended[2]
    assert ended[2].startswith("error: ")
    assert ended[2].count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_a_front_without_feasible_point_is_printed_and_exits_3(cli, tmp_path, monkeypatch):
    """The dense model of this data scores 100 %, and nothing small does, so that the budgets contradict."""
    ended = cli(
        "search",
        *FACTORIES,
        "--trials",
        "3",
        "--run",
        tmp_path / "a",
        "--max-drop",
        "0pp",
        "--max",
        "size=450B",
        "--json",
    )
    points = json.loads(ended[1])["points"]
    assert not any(point["feasible"] and point["why_not"] is None for point in points)
    assert ended[0] == 3
    assert ended[2].splitlines()[-1].startswith("error: no verified point meets all budgets")


@pytest.mark.slow
def test_an_export_is_verified_where_it_lands(cli, run, tmp_path):
    assert cli("export", run, "--pick", "id:1", "-o", tmp_path / "out")[0] == 0
    verify = ("verify", tmp_path / "out", "--model", "small:model", "--data", "small:data", "--runs", "20")
    code, out, _ = cli(*verify, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["policy_hash"] == paretopress.Result.load(run).knee().policy_hash
    assert found["measured"]["size_bytes"] == paretopress.Result.load(run).knee().value("size")
    assert found["measured"]["runs"] == 20
    (tmp_path / "out" / "model.onnx").write_bytes(b"")
    code, out, err = cli(*verify)
    assert (code, out) == (2, "")
    assert "model.onnx" in err.splitlines()[-1]


@pytest.mark.parametrize(("model", "data", "text"), [(3, None, "Module, got int"), (None, 3, "got int")])
def test_compress_checks_what_it_gets(project, model, data, text):
    import small

    with pytest.raises(paretopress.spaces.errors.ConfigError, match=text):
        paretopress.compress(model or small.model(), data=data or small.data(), trials=1, progress=False)


def test_compress_raises_what_the_command_line_prints(project, tmp_path):
    import small

    with pytest.raises(InfeasibleError, match="best reachable"):
        paretopress.compress(
            small.model(),
            data=small.data(),
            target="cortex-a76-tflite",
            max_size="10B",
            trials=2,
            run=tmp_path / "a",
            progress=False,
        )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_search_still_writes_the_front(project, tmp_path, number, code):
    run = tmp_path / "a"
    search = ("--max-drop", "90%", "--trials", "100000", "--run", str(run), *FEW, *MANY_CHOICES)
    command = [sys.executable, "-m", "paretopress.cli", "search", *FACTORIES, *search]
    running = subprocess.Popen(
        command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in running.stderr:
        if line.startswith("explore: "):
            break
    running.send_signal(number)
    _, err = running.communicate(timeout=120)
    assert running.returncode == code, err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    assert len(paretopress.Result.load(run).front) >= 1


@pytest.mark.parametrize(("effort", "further"), [(("--time", "90s"), True), (("--trials", "4"), False)])
def test_repeating_a_finished_search_says_what_it_does(cli, run, monkeypatch, effort, further):
    """With a time, every start searches for all of it: nobody should find that out by waiting."""
    monkeypatch.setattr("paretopress.search.session.run_search", lambda *_, **__: run)
    code, _, err = cli("search", *FACTORIES, *effort, "--run", run)
    assert code == 0
    assert (f"{run} has a front already: it is searched for 1m30s more\n" in err) == further
    assert f"run: {run} (paretopress front prints it again" in err
    assert ("the same command searches it for 1m30s more)" in err) == further
    _, _, err = cli("search", *FACTORIES, *effort, "--run", run, "--fresh")
    assert "has a front already" not in err


def alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_second_signal_ends_a_search_at_once_with_its_workers(project, tmp_path):
    search = ("--trials", "100000", "--workers", "2", "--run", str(tmp_path / "a"), *FEW, *MANY_CHOICES)
    command = [sys.executable, "-m", "paretopress.cli", "search", *FACTORIES, *search]
    running = subprocess.Popen(
        command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in running.stderr:
        if line.startswith("explore: "):
            break
    workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    assert len(workers) >= 2
    running.send_signal(signal.SIGINT)
    for line in running.stderr:
        if "once more stops at once" in line:
            break
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert err.splitlines()[-1].startswith("error: interrupted; the same command continues")
    assert "Traceback" not in err
    end = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(alive, workers))
    assert not (tmp_path / "a" / "front.json").exists()
