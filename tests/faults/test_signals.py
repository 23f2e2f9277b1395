"""A signal in the middle of a search ends it with the front that it has reached."""

import json
import os
import signal
import time

import pytest

MANY = ("--set", "search.trials=100000")


def finished(path):
    trials = path / "trials.jsonl"
    return trials.read_bytes().count(b"\n") if trials.exists() else 0


def wait_for(process, condition, seconds=60.0):
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end and not condition():
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[1]
    assert condition()


def one_error(err):
    lines = err.splitlines()
    assert "Traceback" not in err
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], err
    return lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_search_with_its_front(start, search_tiny, tmp_path, number, code):
    run = tmp_path / "run"
    process = start(*search_tiny(run, *MANY), start_new_session=True)
    wait_for(process, lambda: finished(run) >= 20)
    os.killpg(process.pid, number)   # as a terminal does: the whole group
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "the same command continues" in one_error(err)
    assert out == ""
    document = json.loads((run / "front.json").read_text())
    assert document["trials"]["total"] == finished(run) >= 20
    assert all(point["measured"] for point in document["points"])
    assert any(point["why_not"] is None for point in document["points"])


@pytest.mark.slow
def test_ctrl_c_while_finalists_are_verified_shows_no_traceback(start, search_tiny, tmp_path):
    """The verifying process shares the terminal: it must leave the decision to its parent."""
    run = tmp_path / "run"
    process = start(*search_tiny(run), start_new_session=True)
    wait_for(process, lambda: (run / "models" / "0" / "model.onnx").exists() and (run / "models" / "3").exists())
    time.sleep(2.0)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    one_error(err)
    assert out == ""
