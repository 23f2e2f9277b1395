"""The n-th operation on a file fails, n = 1, 2, 3, ... until one attempt comes through: old or new, never a part.

As SQLite is tested: every write path is a function of a folder; after each failure what was there before must be there,
readable and unchanged, and nothing else.
"""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from paretopress.spaces.errors import ArtifactError, DiskError, PolicyError

MOST = 400


class Faulty:
    """Lets the n-th call of the watched kind fail; `for_ever` also all that follow."""

    def __init__(self, number, code, for_ever):
        self.number, self.code, self.for_ever, self.count, self.failed = number, code, for_ever, 0, False

    def due(self):
        self.count += 1
        if self.count == self.number or (self.for_ever and self.failed):
            self.failed = True
            return True
        return False

    def error(self):
        return OSError(self.code, os.strerror(self.code))


class Stream:
    """A binary stream whose writes count, and may be short before they fail."""

    def __init__(self, stream, faulty):
        self._stream, self._faulty = stream, faulty

    def write(self, data):
        if self._faulty.due():
            self._stream.write(bytes(data)[: len(data) // 2])
            self._stream.flush()
            raise self._faulty.error()
        return self._stream.write(data)

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __enter__(self):
        self._stream.__enter__()
        return self

    def __exit__(self, *exception):
        return self._stream.__exit__(*exception)


@pytest.fixture
def failing():
    """Returns a function that makes the n-th write, fsync, rename, open or mkdir of this process fail."""

    def arm(number, code, for_ever=False):
        faulty = Faulty(number, code, for_ever)
        patch = pytest.MonkeyPatch()

        def wrapped(function):
            def call(*arguments, **options):
                if faulty.due():
                    raise faulty.error()
                return function(*arguments, **options)

            return call

        real_open, real_fdopen, real_write = os.open, os.fdopen, os.write

        def opened(path, flags, *more, **options):
            if flags & (os.O_WRONLY | os.O_RDWR) and faulty.due():
                raise faulty.error()
            return real_open(path, flags, *more, **options)

        def written(descriptor, data):
            if faulty.due():
                real_write(descriptor, bytes(data)[: len(data) // 2])
                raise faulty.error()
            return real_write(descriptor, bytes(data)[: max(1, len(data) // 2)])   # short writes that succeed

        def wrapped_stream(descriptor, mode="r", *more, **options):
            stream = real_fdopen(descriptor, mode, *more, **options)
            return Stream(stream, faulty) if "w" in mode else stream

        patch.setattr(os, "open", opened)
        patch.setattr(os, "write", written)
        patch.setattr(os, "fdopen", wrapped_stream)
        patch.setattr(os, "fsync", wrapped(os.fsync))
        from paretopress.compressors import artefact_folder

        patch.setattr(artefact_folder, "exchange", wrapped(artefact_folder.exchange))
        for name in ("replace", "rename", "mkdir"):
            patch.setattr(Path, name, wrapped(getattr(Path, name)))
        return SimpleNamespace(faulty=faulty, disarm=patch.undo)

    return arm


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"
    }


def policy_file(folder, number):
    from paretopress.spaces.choices import Keep
    from paretopress.spaces.policy import Policy

    Policy.of({"a/channels": Keep(number / 10)}).save(folder / "policy.yaml")


def json_file(folder, number):
    from paretopress.spaces.documents import write_json

    write_json(folder / "value.json", {"number": number, "filling": "x" * 20_000})


def onnx_file(folder, number):
    from paretopress.spaces.documents import write_atomic

    write_atomic(folder / "model.onnx", lambda stream: [stream.write(bytes([number]) * 1000) for _ in range(5)])


def profile_file(folder, number):
    from paretopress.hardware_profiles.catalogue import shipped_document
    from paretopress.hardware_profiles.writing import profile_text
    from paretopress.spaces.documents import write_text

    write_text(folder / "profile.yaml", profile_text({**shipped_document("stm32-h7a3"), "notes": str(number)}))


@pytest.fixture(scope="module")
def artefact(tiny, tiny_run):
    """A loaded artefact to be saved again."""
    from paretopress.compressors.compressed_model import load

    source = sorted(path for path in (tiny_run.path / "models").iterdir() if path.is_dir())[-1]
    return load(source, tiny.module.model)


@pytest.fixture
def paths(artefact):
    """Every write path by name: a function that writes content number `n` into a folder."""

    def artefact_folder(folder, number):
        extra = {"notes.bin": lambda path: write_through(path, bytes([number]) * 500)}
        artefact.save(folder / "artefact", overwrite=True, extra=extra)

    def front_files(folder, number):
        from paretopress.spaces.documents import write_json, write_text

        write_text(folder / "front.csv", f"id\n{number}\n")
        write_json(folder / "sensitivity.json", {"number": number})

    return {"policy": policy_file, "json": json_file, "onnx": onnx_file, "profile": profile_file,
            "artefact": artefact_folder, "front": front_files}


def write_through(path, data):
    from paretopress.spaces.documents import write_atomic

    write_atomic(path, lambda stream: stream.write(data))


@pytest.mark.parametrize("for_ever", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("name", ["policy", "json", "onnx", "profile", "artefact", "front"])
def test_a_file_is_old_or_new_and_never_a_part(paths, failing, tmp_path, name, code, for_ever):
    write = paths[name]
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    write(tmp_path / "old", 1)
    write(tmp_path / "new", 2)
    before, after = contents(tmp_path / "old"), contents(tmp_path / "new")
    assert before != after
    for number in range(1, MOST):
        folder = tmp_path / "folder"
        shutil.copytree(tmp_path / "old", folder)
        armed = failing(number, code, for_ever)
        refused = None
        try:
            write(folder, 2)
        except DiskError as error:
            refused = error
        finally:
            armed.disarm()
        found = contents(folder)
        for path, content in found.items():
            assert content in (before.get(path), after.get(path)), (number, path)
        assert found.keys() == before.keys()
        if name != "front":   # two files, each by itself
            assert found in (before, after), number
        if refused is None:
            assert found == after
            if not armed.faulty.failed:
                return
        else:
            assert len(str(refused).splitlines()) == 1
        shutil.rmtree(folder)
    pytest.fail("no attempt came through")


def test_an_artefact_is_put_back_where_folders_cannot_change_places(paths, failing, tmp_path, monkeypatch):
    """The file system of the test can; others need two renames, and the second one may fail."""
    from paretopress.compressors import artefact_folder

    monkeypatch.setattr(artefact_folder, "exchange", lambda *_: False)
    paths["artefact"](tmp_path, 1)
    before = contents(tmp_path)
    for number in range(1, MOST):
        armed = failing(number, errno.EIO)
        try:
            paths["artefact"](tmp_path, 2)
        except DiskError:
            pass
        finally:
            armed.disarm()
        found = contents(tmp_path)
        assert found.keys() == before.keys()
        if not armed.faulty.failed:
            assert found != before
            return
        if found != before:   # only the last flush failed
            paths["artefact"](tmp_path, 1)
            assert contents(tmp_path) == before
    pytest.fail("no attempt came through")


@pytest.mark.parametrize("for_ever", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_ledger_keeps_what_it_acknowledged(failing, tmp_path, code, for_ever):
    """Appends fail in turn; what returned is there, what failed is not, and the file can be appended to again."""
    from paretopress.evaluators.evaluation import Evaluation, State
    from paretopress.search.ledger import Run, read_run
    from paretopress.search.records import TrialRecord
    from paretopress.spaces.choices import Keep
    from paretopress.spaces.policy import Policy

    def record(number):
        evaluation = Evaluation(State.COMPLETE, {"accuracy": number / 100})
        return TrialRecord.of(number, Policy.of({"a/channels": Keep(number / 100)}), evaluation, 0.5)

    prints = {"model": "m", "space": "s"}
    for number in range(1, 40):
        folder = tmp_path / str(number)
        with Run.open(folder, prints, {}) as run:
            run.append(record(0))
        acknowledged = [0]
        armed = failing(number, code, for_ever)
        try:
            with Run.open(folder, prints, {}) as run:
                for trial in (1, 2, 3):
                    try:
                        run.append(record(trial))
                        acknowledged.append(trial)
                    except DiskError:
                        continue
        except DiskError:
            pass
        finally:
            armed.disarm()
        assert [one.number for one in read_run(folder)[1]] == acknowledged
        with Run.open(folder, prints, {}) as run:
            run.append(record(9))
        assert [one.number for one in read_run(folder)[1]] == [*acknowledged, 9]
        if not armed.faulty.failed:
            return
    pytest.fail("no attempt came through")


def test_what_is_half_written_is_never_read(paths, tmp_path):
    """Every prefix of a file, as a writer without rename would leave it, is refused."""
    from paretopress.compressors.artefact_folder import read_folder
    from paretopress.spaces.policy import Policy

    paths["artefact"](tmp_path, 1)
    folder = tmp_path / "artefact"
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for size in range(0, len(whole), max(1, len(whole) // 15)):
            path.write_bytes(whole[:size])
            with pytest.raises(ArtifactError):
                read_folder(folder, ("model.safetensors", "delta.json", "policy.yaml"))
        path.write_bytes(whole)
    policy_file(tmp_path, 4)
    text = (tmp_path / "policy.yaml").read_bytes()
    (tmp_path / "policy.yaml").write_bytes(text[: len(text) - 8])
    with pytest.raises(PolicyError):
        Policy.load(tmp_path / "policy.yaml")
