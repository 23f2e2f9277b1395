"""Truncated and bit-flipped artefacts and state files: every one is detected, none is loaded in silence."""

import json
import random
import shutil

import pytest

from paretopress.compressors.artefact_folder import read_folder
from paretopress.spaces.errors import ParetopressError

WANTED = ("model.safetensors", "delta.json", "policy.yaml")
FAST, SLOW = 500, 10_000


def damaged(content, source):
    """Cut, or flip one bit, or both; never what it was."""
    kind = source.randrange(3)
    result = bytearray(content)
    if kind != 0:
        at = source.randrange(len(result))
        result[at] ^= 1 << source.randrange(8)
    if kind != 1:
        del result[source.randrange(len(result)) :]
    return bytes(result)


@pytest.fixture
def folder(tiny_run, tmp_path):
    source = sorted(path for path in (tiny_run.path / "models").iterdir() if path.is_dir())[-1]
    shutil.copytree(source, tmp_path / "artefact")
    return tmp_path / "artefact"


def refusal(folder):
    try:
        read_folder(folder, WANTED)
    except ParetopressError as error:
        return str(error)
    return None


def undetected(folder, numbers):
    """Numbers of the damages that were read as if nothing were wrong."""
    files = sorted(folder.iterdir())
    whole = {path: path.read_bytes() for path in files}
    missed = []
    for number in numbers:
        source = random.Random(f"damage/{number}")
        path = files[number % len(files)]
        path.write_bytes(damaged(whole[path], source))
        line = refusal(folder)
        if line is None:
            missed.append((number, path.name))
        else:
            assert len(line.splitlines()) == 1
        path.write_bytes(whole[path])
    assert read_folder(folder, WANTED)
    return missed


def test_every_damage_of_an_artefact_is_detected(folder):
    assert undetected(folder, range(FAST)) == []


@pytest.mark.slow
def test_ten_thousand_damages_are_detected(folder):
    assert undetected(folder, range(SLOW)) == []


def test_a_damaged_ledger_is_refused_or_loses_only_its_torn_end(tiny_run, tmp_path):
    """A trial's line holds a hash of its policy; a flipped digit of a value is the one thing that nothing covers."""
    from paretopress.search.ledger import read_run

    whole = (tiny_run.path / "trials.jsonl").read_bytes()
    shutil.copy(tiny_run.path / "run.yaml", tmp_path)
    expected = read_run(tiny_run.path)[1]
    for number in range(200):
        source = random.Random(f"ledger/{number}")
        at = source.randrange(len(whole))
        (tmp_path / "trials.jsonl").write_bytes(whole[:at])
        found = read_run(tmp_path)[1]
        assert found == expected[: len(found)]
        assert len(found) >= whole[:at].count(b"\n") - 1


@pytest.mark.parametrize("name", ["sensitivity.json", "front.json", "run.yaml"])
def test_cut_state_files_are_refused(tiny_run, tmp_path, name):
    from paretopress.spaces.documents import read_document

    whole = (tiny_run.path / name).read_bytes()
    for size in range(1, len(whole) - 2, max(1, len(whole) // 40)):
        (tmp_path / name).write_bytes(whole[:size])
        if name.endswith(".json"):
            with pytest.raises(ParetopressError):
                read_document(tmp_path / name)
            continue
        try:   # a YAML document that ends early may be one; then something that a run needs is missing
            plain = read_document(tmp_path / name)
        except ParetopressError:
            continue
        assert plain != read_document(tiny_run.path / name)


def test_a_damaged_table_is_measured_again(tiny_run, tmp_path):
    """What cannot be read back is no reason to stop: it is made anew."""
    from paretopress.search.table import read_table

    class Space:
        options = json.loads((tiny_run.path / "sensitivity.json").read_text())["losses"]

    plain = json.loads((tiny_run.path / "sensitivity.json").read_text())
    path = tmp_path / "sensitivity.json"
    path.write_text(json.dumps(plain))
    assert read_table(path, plain["key"], Space) is not None
    unit = next(iter(plain["losses"]))
    changes = [
        {"losses": None}, {"losses": []}, {"losses": {**plain["losses"], unit: None}}, {"estimated": 5},
        {"losses": {**plain["losses"], unit: ["x"] * len(plain["losses"][unit])}}, {"estimated": [[unit]]},
        {"estimated": [[{}, 1]]}, {"key": {}}, {"losses": {unit: plain["losses"][unit]}},
    ]
    for change in changes:
        path.write_text(json.dumps({**plain, **change}))
        assert read_table(path, plain["key"], Space) is None, change
