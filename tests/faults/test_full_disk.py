"""A full disk costs nothing that was finished, and the same command goes on once there is space."""

import functools
import json
import resource
import shutil
import subprocess
import sys

import pytest

from paretopress.spaces.choices import Half


def trials_of(path):
    records = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
def test_the_ledger_fills_the_disk(tiny_run, finish, search_tiny, assert_refused, tmp_path):
    """No file may grow beyond 3,000 bytes: the ledger fails in the middle of a line."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("sensitivity.json", "anatomy.json", "units.json"):   # they are larger, and stay as they are
        shutil.copy(tiny_run.path / name, run)
    result = finish(*search_tiny(run), preexec_fn=functools.partial(limit_files, 3000))
    assert_refused(result, 74, "trials.jsonl", "the disk is full")
    stored = trials_of(run)
    expected = trials_of(tiny_run.path)
    assert 2 <= len(stored) < len(expected)
    assert stored == expected[: len(stored)]
    assert (run / "trials.jsonl").read_bytes().endswith(b"\n")
    seconds = (run / "trials.jsonl").read_bytes()
    code, _, err = finish(*search_tiny(run))
    assert code == 0, err
    assert trials_of(run) == expected
    assert (run / "trials.jsonl").read_bytes().startswith(seconds)
    assert (run / "finalists.csv").read_bytes() == (tiny_run.path / "finalists.csv").read_bytes()


def test_an_artefact_that_cannot_be_stored_leaves_the_earlier_front_whole(
    tiny, tiny_run, tiny_settings, finish, search_tiny, assert_refused, tmp_path
):
    """The ONNX file of the baseline is the largest file, and one byte too large."""
    stored = tiny_run.path / "models" / "0"
    largest = (stored / "model.onnx").stat().st_size
    assert largest == max(path.stat().st_size for path in stored.iterdir())
    run = tmp_path / "run"
    shutil.copytree(tiny_run.path, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    result = finish(*search_tiny(run), preexec_fn=functools.partial(limit_files, largest - 1))
    assert_refused(result, 74, "model.onnx", "the disk is full")
    assert {path: path.read_bytes() for path in before} == before
    dense, = (entry for entry in (run / "building").iterdir() if entry.is_dir())
    assert sorted(entry.name for entry in dense.iterdir()) == [
        "delta.json", "manifest.json", "model.safetensors", "policy.yaml"
    ]


def test_a_model_that_cannot_replace_an_earlier_one_leaves_it_whole(tiny, finish, assert_refused, tmp_path):
    """The tensors of the second policy are larger than a file may become; the earlier artefact stays loadable."""
    import paretopress

    model, data = tiny.module.model(), tiny.module.data()
    earlier = paretopress.quantize(model, data, refit=False)
    earlier.save(tmp_path / "small")
    before = {path: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    paretopress.Policy.of({"last/weights": Half()}).save(tmp_path / "policy.yaml")
    arguments = ("apply", "--policy", tmp_path / "policy.yaml", "--model", "tiny:model", "--data", "tiny:data",
                 "-o", tmp_path / "small", "--force", "--no-refit")
    result = finish(*arguments, preexec_fn=functools.partial(limit_files, 4000))
    assert_refused(result, 74, "small/", "the disk is full")
    assert {path: path.read_bytes() for path in (tmp_path / "small").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.yaml", "small"]   # nothing half-written
    loaded = paretopress.load(tmp_path / "small", tiny.module.model)
    assert loaded.policy == earlier.policy


def test_a_full_disk_of_the_verifying_process_is_no_fault_of_the_candidate(tiny_run, tiny, tmp_path, monkeypatch):
    from paretopress.evaluators import verification
    from paretopress.evaluators.data import prepare
    from paretopress.spaces.errors import DiskError

    data = prepare(tiny.module.data())
    tasks = []
    for number in (0, 1):
        shutil.copytree(tiny_run.path / "models" / str(number), tmp_path / str(number))
        tasks.append(verification.Task(str(tmp_path / str(number))))
    manifest = tmp_path / "0" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("1", "2"))
    found = verification.verify_artifacts(
        lambda _: None, tiny.module.model(), tasks, "", data.holdout, data.metrics, 1, timed=False
    )
    assert isinstance(found[0], str)          # a damaged artefact is one line ...
    assert found[0].startswith("ArtifactError: ")
    assert found[1].scores["accuracy"] > 0.5  # ... and the others are verified all the same

    def full(*_args, **_options):
        raise DiskError("cannot write model.onnx: the disk is full")

    monkeypatch.setattr(verification, "_verify", full)
    with pytest.raises(DiskError):
        verification.verify_artifacts(
            lambda _: None, tiny.module.model(), tasks, "", data.holdout, data.metrics, 1, timed=False
        )


SCRIPT = """
mount -t tmpfs -o size={small} tmpfs {disk} || exit 99
"$@"; echo "first $?" > {log}
cp {disk}/run/trials.jsonl {kept} || exit 98
mount -o remount,size=16m {disk} || exit 97
"$@"; echo "second $?" >> {log}
cp -r {disk}/run {results}
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_file_system_that_is_full(tiny, tiny_run, search_tiny, tmp_path):
    """A tmpfs with space for the ledger but not for the models, then a larger one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", disk], check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    log, kept, results = (tmp_path / name for name in ("log", "kept.jsonl", "results"))
    script = SCRIPT.format(disk=disk, small="128k", log=log, kept=kept, results=results)
    command = [sys.executable, "-m", "paretopress.cli", *map(str, search_tiny(disk / "run"))]
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *command], cwd=tiny.folder, capture_output=True, text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert log.read_text().split("\n")[:2] == ["first 74", "second 0"], ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "the disk is full" in errors[0]
    assert "Traceback" not in ended.stderr
    assert (results / "trials.jsonl").read_bytes() == kept.read_bytes()   # all of them, with their times
    assert trials_of(results) == trials_of(tiny_run.path)
    assert (results / "finalists.csv").read_bytes() == (tiny_run.path / "finalists.csv").read_bytes()
