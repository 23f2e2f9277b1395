"""What is committed is whole, is found again, and nothing else is taken for it."""

import json
import os
import time
from pathlib import Path

import pytest

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.outbox import EVALUATION, MANIFEST, Outbox, read_committed
from paretopress.search.storages.result_text import result_text
from paretopress.search.storages.trial_store import Claim
from paretopress.spaces.errors import ArtifactError, DiskError

CLAIM = Claim(7, 2, '{"units":{}}', "hash")
TEXT = result_text(Evaluation(State.COMPLETE, {"accuracy": 0.25}), 1.5)


@pytest.fixture
def outbox(tmp_path):
    return Outbox(tmp_path)


def test_a_committed_result_is_found_by_anyone_until_it_is_filed(outbox, tmp_path):
    committed = outbox.commit(CLAIM, TEXT, failed=False)
    assert list(Outbox(tmp_path).waiting()) == [committed]
    assert list(Outbox(tmp_path).waiting(older_than=60.0)) == []
    assert list(outbox.of_trial(7)) == [committed]
    outbox.file(committed)
    assert list(outbox.waiting()) == []
    assert (tmp_path / "trials" / "7-2" / MANIFEST).exists()
    assert [one.result for one in outbox.of_trial(7)] == [committed.result]
    outbox.file(committed)   # another worker was faster


@pytest.mark.parametrize("step", ["mkdir", "write", "rename", "manifest"])
def test_without_its_manifest_a_folder_is_nothing(outbox, tmp_path, monkeypatch, step):
    from paretopress.search import outbox as module

    class Killed(BaseException):
        pass

    def stop(*_args, **_options):
        raise Killed

    target, name = {
        "mkdir": (module, "_write_synced"), "write": (module, "sync_folder"),
        "rename": (module.Path, "rename"), "manifest": (module, "write_atomic"),
    }[step]
    monkeypatch.setattr(target, name, stop)
    with pytest.raises(Killed):
        outbox.commit(CLAIM, TEXT, failed=False)
    monkeypatch.undo()
    assert list(outbox.waiting()) == []
    assert list(outbox.of_trial(7)) == []
    assert outbox.commit(CLAIM, TEXT, failed=False).result.text == TEXT   # what is left does not block the next one
    assert len(list(outbox.waiting())) == 1


def test_contents_are_on_disk_before_the_manifest_says_so(outbox, monkeypatch):
    """The order of syncs and renames: contents, their folder, its name, and only then the manifest."""
    from paretopress.search import outbox as module
    from paretopress.spaces import documents

    steps = []
    real_sync, real_folder, real_replace = os.fsync, documents.sync_folder, os.rename
    monkeypatch.setattr(os, "fsync", lambda one: (steps.append("sync " + Path(
        f"/proc/self/fd/{one}").readlink().name.split("-")[0]), real_sync(one))[1])
    monkeypatch.setattr(module, "sync_folder", lambda one: (steps.append("folder"), real_folder(one))[1])
    monkeypatch.setattr(module.Path, "rename", lambda one, to: (steps.append("rename"), real_replace(one, to))[1])
    monkeypatch.setattr(module.Path, "replace", lambda one, to: (steps.append("replace"), real_replace(one, to))[1])
    outbox.commit(CLAIM, TEXT, failed=False)
    kept = [step for step in steps if step.startswith(("sync policy", "sync evaluation", "folder", "re"))]
    assert kept == ["sync policy.json", "sync evaluation.json", "folder", "rename", "folder", "replace"]
    before = steps.index("replace")
    assert steps[before - 1] == "sync .paretopress"   # the manifest's own content
    assert len(steps) > before + 1                    # and its name


@pytest.mark.parametrize("name", [EVALUATION, "policy.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_result_is_put_into_quarantine_and_evaluated_again(outbox, tmp_path, name, damage):
    folder = outbox.commit(CLAIM, TEXT, failed=False).folder
    content = bytearray((folder / name).read_bytes())
    match damage:
        case "flip":
            content[len(content) // 2] ^= 1
            (folder / name).write_bytes(content)
        case "cut":
            (folder / name).write_bytes(content[:-1])
        case "gone":
            (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        read_committed(folder)
    assert list(outbox.waiting()) == []
    assert not folder.exists()
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


@pytest.mark.parametrize("change", [
    {"number": 8}, {"token": 3}, {"files": {}}, {"schema": None, "extra": 1}, {"files": {"../../secret": "0"}},
])
def test_a_manifest_of_something_else_is_refused(outbox, change):
    folder = outbox.commit(CLAIM, TEXT, failed=False).folder
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **change}))
    assert list(outbox.waiting()) == []


def test_names_that_are_no_trials_are_left_alone(outbox, tmp_path):
    for name in ("..2", "1-2-3", "-1-2", "1", "x-1", "999999999999-1"):
        (tmp_path / "outbox" / name).mkdir()
        (tmp_path / "outbox" / name / MANIFEST).write_text("{}")
    assert list(outbox.waiting()) == []
    assert len(list((tmp_path / "outbox").iterdir())) == 6


def test_what_crashed_writers_left_is_swept_after_an_hour_and_nothing_else(outbox, tmp_path):
    waiting = tmp_path / "outbox"
    old, new, other = (waiting / name for name in (
        ".paretopress-0123456789abcdef.tmp", ".paretopress-fedcba9876543210.tmp", "notes.tmp"))
    for folder in (old, new, other):
        folder.mkdir()
        (folder / "file").write_text("")
    for folder in (old, other):
        os.utime(folder, (time.time() - 7200,) * 2)
    Outbox(tmp_path)
    assert not old.exists()
    assert new.exists()
    assert other.exists()


def test_a_full_disk_leaves_no_trace(outbox, tmp_path, monkeypatch):
    from paretopress.search import outbox as module

    def full(*_):
        raise OSError(28, os.strerror(28))

    for name in ("_write_synced", "sync_folder"):
        monkeypatch.setattr(module, name, full)
        with pytest.raises(DiskError, match="the disk is full"):
            outbox.commit(CLAIM, TEXT, failed=False)
        monkeypatch.undo()
        assert [one.name for one in (tmp_path / "outbox").iterdir() if not one.name.startswith("7-")] == []
        assert list(outbox.waiting()) == []
