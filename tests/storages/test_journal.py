"""A journal survives torn tails, dead lock holders, full disks and changes of the working directory."""

import os
import resource
import signal

import pytest
import shared_driver as driver

from paretopress.search.storages.journal import JournalFile
from paretopress.spaces.errors import ArtifactError, DiskError


def records(journal):
    return [record["n"] for record, _ in journal.read()]


def five_records(path):
    journal = JournalFile(path)
    for number in range(5):
        journal.append({"n": number})
    return path


@pytest.fixture
def path(tmp_path):
    return five_records(tmp_path / "journal")


def test_all_readers_see_the_same_records_and_stamps(path):
    first, second = JournalFile(path), JournalFile(path)
    assert first.append({"n": 5})[-1][0] == {"n": 5}
    assert records(second) == [0, 1, 2, 3, 4, 5]
    assert second.append({"n": 6})[0][0] == {"n": 6}
    assert records(first) == [6]
    stamps = [stamp for _, stamp in JournalFile(path).read()]
    assert stamps == sorted(stamps)


@pytest.mark.parametrize("cut", [1, 2, 9, 10, 20])
def test_a_torn_tail_costs_that_record_alone(path, cut):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert records(JournalFile(path)) == [0, 1, 2, 3]
    assert [record["n"] for record, _ in JournalFile(path).append({"n": 9})] == [0, 1, 2, 3, 9]
    assert records(JournalFile(path)) == [0, 1, 2, 3, 9]
    assert path.with_name("journal.torn").read_bytes().rstrip(b"\n") in whole


def test_a_last_record_of_garbage_is_a_torn_tail_too(path):
    """A file system may keep the length and lose the content of what was not synced."""
    content = path.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(content[:last] + b"\0" * (len(content) - last - 1) + b"\n")
    assert [record["n"] for record, _ in JournalFile(path).append({"n": 9})] == [0, 1, 2, 3, 9]
    assert records(JournalFile(path)) == [0, 1, 2, 3, 9]


@pytest.mark.parametrize("where", [0, 5, 9, 15])
def test_damage_in_the_middle_is_refused_with_its_place(path, where):
    content = bytearray(path.read_bytes())
    start = content.find(b"\n") + 1
    content[start + where] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"record at byte {start} is damaged"):
        JournalFile(path).read()
    with pytest.raises(ArtifactError, match="damaged"):
        JournalFile(path).append({"n": 9})


def test_a_journal_that_becomes_shorter_is_refused(path):
    journal = JournalFile(path)
    journal.read()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    with pytest.raises(ArtifactError, match="shorter than it was"):
        journal.read()


def test_a_relative_path_means_the_same_file_wherever_the_process_goes(path, monkeypatch):
    monkeypatch.chdir(path.parent.parent)
    journal = JournalFile(path.relative_to(path.parent.parent))
    monkeypatch.chdir("/")
    assert records(journal) == [0, 1, 2, 3, 4]


def test_the_lock_of_a_dead_holder_is_free(path, tmp_path):
    def hold():
        with JournalFile(path)._locked(2):   # LOCK_EX
            (tmp_path / "held").touch()
            signal.pause()

    pid = driver.forked(hold)
    while not (tmp_path / "held").exists():
        pass
    os.kill(pid, signal.SIGKILL)
    assert driver.ended(pid) == -signal.SIGKILL
    assert JournalFile(path).append({"n": 5})[-1][0] == {"n": 5}


def test_a_full_disk_leaves_the_journal_as_it_was(path):
    before = path.read_bytes()

    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, len(before) + 20))
        with pytest.raises(DiskError, match="the disk is full"):
            JournalFile(path).append({"n": "x" * 100})

    assert driver.ended(driver.forked(fill)) == 0
    assert path.read_bytes() == before
    assert [record["n"] for record, _ in JournalFile(path).append({"n": 5})] == [0, 1, 2, 3, 4, 5]
