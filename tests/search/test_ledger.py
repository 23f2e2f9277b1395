import json
import os
import subprocess
import sys

import pytest

from paretopress.search.ledger import Run, package_versions, read_run
from paretopress.search.records import TrialRecord, TrialState
from paretopress.spaces.choices import Weights
from paretopress.spaces.errors import ArtifactError, ConfigError, DiskError, StorageError
from paretopress.spaces.policy import Policy

PRINTS = {
    "model": "m1", "data": "d1", "space": "s1", "profile": "p1",
    "evaluator": "e1", "seed": "0", "versions": "v1",
}
CONFIG = {"seed": 0, "trials": 5}


def record(number):
    policy = Policy.of({"fc/weights": Weights(4)}, model="m1", space="s1")
    return TrialRecord(number, TrialState.COMPLETE, policy, {"accuracy": number / 7}, {}, 0.1)


@pytest.fixture
def three(tmp_path):
    with Run.open(tmp_path / "run", PRINTS, CONFIG) as run:
        for number in range(3):
            run.append(record(number))
    return tmp_path / "run"


def test_records_come_back_with_the_fingerprints_of_the_run(three):
    with Run.open(three, PRINTS, CONFIG) as run:
        assert run.records() == [record(0), record(1), record(2)]
        run.append(record(3))
    document, records = read_run(three)
    assert [found.number for found in records] == [0, 1, 2, 3]
    assert document["config"] == CONFIG
    assert document["versions"] == package_versions()
    assert document["fingerprints"] == PRINTS


@pytest.mark.parametrize("key", sorted(PRINTS))
def test_a_changed_fingerprint_is_refused_by_name(three, key):
    with pytest.raises(ConfigError) as error:
        Run.open(three, {**PRINTS, key: "other"}, CONFIG)
    named = str(error.value).partition("made with a different ")[2].partition(";")[0]
    assert named == key
    with Run.open(three, PRINTS, CONFIG) as run:
        assert len(run.records()) == 3


def test_changed_versions_name_the_package(three):
    text = (three / "run.yaml").read_text()
    (three / "run.yaml").write_text(text.replace(f"optuna: {package_versions()['optuna']}", "optuna: 0.0.1"))
    with pytest.raises(ConfigError, match=r"different versions \(optuna 0\.0\.1 -> "):
        Run.open(three, {**PRINTS, "versions": "v2"}, CONFIG)


def test_the_configuration_may_change_and_is_kept_up_to_date(three):
    Run.open(three, PRINTS, {"seed": 0, "trials": 50}).close()
    assert read_run(three)[0]["config"]["trials"] == 50


@pytest.mark.parametrize("tail", [
    b'{"number": 3, "sta', b'{"number": 3, "sta\n', b"\0" * 40, b"\0" * 40 + b"\n", b"\xff\xfe\n",
])
def test_a_torn_tail_is_moved_aside_and_nothing_else_changes(three, tail):
    before = (three / "trials.jsonl").read_bytes()
    (three / "trials.jsonl").write_bytes(before + tail)
    assert len(read_run(three)[1]) == 3
    assert (three / "trials.jsonl").read_bytes() == before + tail
    with Run.open(three, PRINTS, CONFIG) as run:
        assert len(run.records()) == 3
        run.append(record(3))
    assert (three / "trials.jsonl.torn").read_bytes() == tail + b"\n"
    assert (three / "trials.jsonl").read_bytes() == before + record(3).to_line().encode() + b"\n"


def test_every_cut_of_the_last_line_keeps_the_lines_before_it(three):
    content = (three / "trials.jsonl").read_bytes()
    last = content.rfind(b"\n", 0, -1) + 1
    for end in range(last, len(content)):
        (three / "trials.jsonl").write_bytes(content[:end])
        with Run.open(three, PRINTS, CONFIG) as run:
            assert [found.number for found in run.records()] == [0, 1]


@pytest.mark.parametrize(("damage", "message"), [
    (lambda lines: [lines[0], lines[1][:20], lines[2]], r"trials\.jsonl:2"),
    (lambda lines: [lines[0], lines[0], lines[2]], r"trials\.jsonl:2: trial 0 is recorded twice"),
    (lambda lines: [lines[0], b"\xff", lines[2]], r"trials\.jsonl:2: not UTF-8"),
    (lambda lines: [lines[0], lines[1], b"{}"], r"trials\.jsonl:3: a trial has exactly the keys"),
])
def test_a_corrupt_line_is_refused_with_its_number_and_left_as_it_is(three, damage, message):
    lines = damage((three / "trials.jsonl").read_bytes().splitlines())
    content = b"\n".join(lines) + b"\n"
    (three / "trials.jsonl").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        Run.open(three, PRINTS, CONFIG)
    assert (three / "trials.jsonl").read_bytes() == content


def test_a_second_driver_is_refused_in_one_line_until_the_first_is_gone(three):
    with Run.open(three, PRINTS, CONFIG):
        with pytest.raises(StorageError, match="another process is working on this run"):
            Run.open(three, PRINTS, CONFIG)
        with pytest.raises(StorageError):
            Run.open(three, PRINTS, CONFIG, fresh=True)
        assert len(read_run(three)[1]) == 3
    Run.open(three, PRINTS, CONFIG).close()


def test_the_lock_of_a_killed_driver_is_free(three):
    code = (
        "import sys, os, signal\nfrom paretopress.search.ledger import Run\n"
        f"run = Run.open({str(three)!r}, {PRINTS!r}, {CONFIG!r})\n"
        "print('open', flush=True)\nsys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as driver:
        assert driver.stdout.readline() == b"open\n"
        with pytest.raises(StorageError):
            Run.open(three, PRINTS, CONFIG)
        driver.kill()
    Run.open(three, PRINTS, CONFIG).close()


def test_fresh_moves_the_runs_own_files_aside_and_no_others(three):
    (three / "front.csv").write_text("old")
    (three / "notes.txt").write_text("mine")
    before = (three / "trials.jsonl").read_bytes()
    with Run.open(three, {**PRINTS, "model": "m2"}, CONFIG, fresh=True) as run:
        assert run.records() == []
        run.append(record(0))
    assert (three / "previous-1" / "trials.jsonl").read_bytes() == before
    assert (three / "previous-1" / "front.csv").read_text() == "old"
    assert (three / "notes.txt").read_text() == "mine"
    assert not (three / "front.csv").exists()
    Run.open(three, PRINTS, CONFIG, fresh=True).close()
    assert read_run(three / "previous-2")[1] != []


def test_trials_without_a_document_are_refused(three):
    (three / "run.yaml").unlink()
    with pytest.raises(ArtifactError, match=r"no run\.yaml"):
        Run.open(three, PRINTS, CONFIG)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="not a folder"):
        Run.open(tmp_path / "run", PRINTS, CONFIG)


def test_a_number_is_recorded_once(three):
    with Run.open(three, PRINTS, CONFIG) as run, pytest.raises(ValueError, match="recorded already"):
        run.append(record(2))


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    """RLIMIT_FSIZE makes the kernel write a part of the line and then refuse, as a full disk does."""
    script = f"""
import resource, sys
from paretopress.search.ledger import Run
from paretopress.search.records import TrialRecord, TrialState
from paretopress.spaces.errors import ParetopressError
from paretopress.spaces.policy import Policy
run = Run.open({str(tmp_path / 'run')!r}, {PRINTS!r}, {CONFIG!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
number = 0
try:
    while True:
        run.append(TrialRecord(number, TrialState.COMPLETE, Policy(), {{"accuracy": number / 7}}))
        number += 1
except ParetopressError as error:
    print(number)
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 74
    assert done.stderr == f"cannot write {tmp_path / 'run' / 'trials.jsonl'}: the disk is full\n"
    content = (tmp_path / "run" / "trials.jsonl").read_bytes()
    assert content.endswith(b"\n")
    assert len(content) <= 2000
    written = [json.loads(line)["number"] for line in content.splitlines()]
    assert written == list(range(int(done.stdout)))
    assert len(written) > 3
    with Run.open(tmp_path / "run", PRINTS, CONFIG) as run:
        assert len(run.records()) == len(written)
        run.append(TrialRecord(len(written), TrialState.COMPLETE, Policy()))
    assert not (tmp_path / "run" / "trials.jsonl.torn").exists()


def test_a_failed_flush_takes_the_line_back(three, monkeypatch):
    before = (three / "trials.jsonl").read_bytes()

    def broken(descriptor):
        raise OSError(5, "Input/output error")

    with Run.open(three, PRINTS, CONFIG) as run:
        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(DiskError, match="Input/output error"):
            run.append(record(3))
        monkeypatch.undo()
        assert (three / "trials.jsonl").read_bytes() == before
        run.append(record(3))
        assert len(run.records()) == 4
