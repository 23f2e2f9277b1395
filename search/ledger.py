"""The run's ledger: a directory that one driver owns, and an append-only file of finished trials.

A trial is finished once its line has been written and flushed to disk (fsync). A line that a crash cut
short is moved aside and its trial counts as not finished; everything before it stays as it was.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from paretopress.search.fault_points import fault_point
from paretopress.search.records import TrialRecord
from paretopress.spaces.documents import (
    canonical_json,
    disk_error,
    parse_json,
    read_document,
    sync_folder,
    write_yaml,
)
from paretopress.spaces.errors import ArtifactError, ConfigError, StorageError

SCHEMA = "paretopress-run/1"
DOCUMENT = "run.yaml"
TRIALS = "trials.jsonl"
TORN = "trials.jsonl.torn"
ANATOMY, ANATOMY_SCHEMA = "anatomy.json", "paretopress-anatomy/1"   # written by `anatomy.py`, read without torch
LOCK = ".lock"

# What belongs to one run and is moved aside when it starts anew. `memo/` stays: its keys hold fingerprints.
OWNED = (
    TRIALS, TORN, "finalists.csv", "measured.csv", "front.csv", "front.json", "sensitivity.json", "units.json",
    "transfer.json", ANATOMY, "report.html", "tensorboard", "policies", "models", "building", "outbox", "trials",
    "quarantine", "ledger.sqlite3", "ledger.sqlite3-wal", "ledger.sqlite3-shm", "ledger.journal",
    "ledger.journal.clock", "ledger.journal.optuna", DOCUMENT,
)


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that a result depends on."""
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str] = {}
    for name in ("paretopress", "torch", "numpy", "optuna", "onnx", "onnxscript", "onnxruntime"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


class Run:
    """An open run directory, owned by this process until it is closed. Made by `Run.open`."""

    def __init__(self, path: Path, fingerprints: Mapping[str, str], lock: int) -> None:
        self.path = path
        self.fingerprints = dict(fingerprints)
        self._lock = lock
        self._stream = -1
        self._size = 0
        self._records: list[TrialRecord] = []
        self._numbers: set[int] = set()

    @classmethod
    def open(
        cls,
        path: str | Path,
        fingerprints: Mapping[str, str],
        config: Mapping[str, Any],
        fresh: bool = False,
    ) -> Run:
        """Open a run directory, making it where it is missing, and repair what a crash left.

        Args:
            path: The directory.
            fingerprints: What the results depend on: `model`, `data`, `space`, `profile`, `evaluator`,
                `seed`, `versions`. They must equal those that the run was made with.
            config: The resolved configuration as plain data; written to `run.yaml`, not compared.
            fresh: Move an earlier run's files to `previous-N/` and start anew.

        Raises:
            StorageError: Another process holds the run.
            ConfigError: A fingerprint differs; the message names the keys. Or `run.yaml` is malformed.
            ArtifactError: A line before the last one is corrupt, or there are trials without `run.yaml`.
            DiskError: The directory cannot be written.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise ConfigError(f"{path}: not a folder") from None
        except OSError as error:
            raise disk_error(path, error) from None
        run = cls(path, fingerprints, _acquire(path / LOCK))
        try:
            if fresh:
                _move_aside(path)
            run._check_document(config)
            run._open_trials()
        except BaseException:
            run.close()
            raise
        return run

    def _check_document(self, config: Mapping[str, Any]) -> None:
        document = self.path / DOCUMENT
        versions = package_versions()
        if document.exists():
            earlier = _read_document(document)
            _compare(self.path, earlier, self.fingerprints, versions, config)
            versions = earlier.get("versions") or versions
            if canonical_json(earlier.get("config")) == canonical_json(dict(config)):
                return
        elif (self.path / TRIALS).exists():
            raise ArtifactError(f"{self.path}: holds {TRIALS} but no {DOCUMENT}; --fresh moves it aside")
        write_yaml(document, {
            "schema": SCHEMA,
            "seed": config.get("seed"),
            "fingerprints": self.fingerprints,
            "versions": versions,
            "config": dict(config),
        })

    def _open_trials(self) -> None:
        trials = self.path / TRIALS
        try:
            self._stream = os.open(trials, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            sync_folder(self.path)
            content = trials.read_bytes()
            self._size = _sound_size(content)
            if self._size < len(content):
                self._cut(content[self._size:])
        except OSError as error:
            raise disk_error(trials, error) from None
        self._records = _parse(content[: self._size], trials, self.fingerprints)
        self._numbers = {record.number for record in self._records}

    def _cut(self, tail: bytes) -> None:
        with (self.path / TORN).open("ab") as stream:
            stream.write(tail + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.ftruncate(self._stream, self._size)
        os.fsync(self._stream)

    def append(self, record: TrialRecord) -> None:
        """Write one finished trial durably; once this returns, no crash loses it.

        Raises:
            DiskError: The line could not be written; the file is as it was before.
            ValueError: The number is recorded already, or the run is closed.
        """
        if record.number in self._numbers:
            raise ValueError(f"trial {record.number} is recorded already")
        if self._stream < 0:
            raise ValueError(f"{self.path}: the run is closed")
        line = (record.to_line() + "\n").encode()
        fault_point("before record")
        try:
            _write_all(self._stream, line)
            os.fsync(self._stream)
        except OSError as error:
            os.ftruncate(self._stream, self._size)
            raise disk_error(self.path / TRIALS, error) from None
        except BaseException:
            os.ftruncate(self._stream, self._size)
            raise
        self._size += len(line)
        self._records.append(record)
        self._numbers.add(record.number)
        fault_point("after record")

    def records(self) -> list[TrialRecord]:
        """Return the finished trials in the order in which they were written."""
        return list(self._records)

    def close(self) -> None:
        """Give the run free; harmless when called again."""
        for descriptor in (self._stream, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._stream = self._lock = -1

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_run(path: str | Path) -> tuple[dict[str, Any], list[TrialRecord]]:
    """Read a run without owning or changing it; a torn last line is left out.

    Returns:
        The content of `run.yaml` and the finished trials in the order in which they were written.

    Raises:
        ConfigError: `run.yaml` is missing or malformed.
        ArtifactError: A line of `trials.jsonl` before the last one is corrupt.
    """
    path = Path(path)
    document = _read_document(path / DOCUMENT)
    trials = path / TRIALS
    try:
        content = trials.read_bytes() if trials.exists() else b""
    except OSError as error:
        raise ArtifactError(f"{trials}: {error.strerror or error}") from None
    return document, _parse(content[: _sound_size(content)], trials, document["fingerprints"])


def _acquire(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise disk_error(path, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        busy = isinstance(error, BlockingIOError)
        reason = "another process is working on this run" if busy else f"cannot lock it: {error.strerror}"
        raise StorageError(f"{path.parent}: {reason}") from None
    return descriptor


def _move_aside(path: Path) -> None:
    present = [path / name for name in OWNED if os.path.lexists(path / name)]
    if not present:
        return
    number = 1
    while os.path.lexists(path / f"previous-{number}"):
        number += 1
    target = path / f"previous-{number}"
    try:
        target.mkdir()
        for source in present:  # trials first: a crash in between leaves an empty run, never foreign trials
            source.rename(target / source.name)
        sync_folder(target)
        sync_folder(path)
    except OSError as error:
        raise disk_error(target, error) from None


def _read_document(path: Path) -> dict[str, Any]:
    document = read_document(path)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ConfigError(f"{path}: not a run of this version (expected schema {SCHEMA})")
    if not isinstance(document.get("fingerprints"), dict):
        raise ConfigError(f"{path}: fingerprints: expected a mapping")
    return document


def _compare(
    path: Path, earlier: Mapping[str, Any], fingerprints: Mapping[str, str], versions: Mapping[str, str],
    config: Mapping[str, Any],
) -> None:
    before = earlier["fingerprints"]
    names = sorted({*before, *fingerprints})
    changed = [name for name in names if str(before.get(name)) != str(fingerprints.get(name))]
    if not changed:
        return
    detail = ""
    if "versions" in changed:
        old = earlier.get("versions") or {}
        moved = [f"{name} {old.get(name)} -> {new}" for name, new in versions.items() if old.get(name) != new]
        detail = f" ({', '.join(moved)})" if moved else ""
    elif "evaluator" in changed:   # many settings in one; which of them is it?
        names = _changed_settings(earlier.get("config"), config)
        detail = f" (settings: {', '.join(names)})" if names else ""
    raise ConfigError(
        f"{path}: made with a different {', '.join(changed)}{detail}; "
        "choose another run directory or start anew with --fresh"
    )


def _changed_settings(before: object, after: Mapping[str, Any]) -> list[str]:
    """The names of settings that differ."""
    pair = [config.get("settings") if isinstance(config, Mapping) else None for config in (before, after)]
    old, new = (section if isinstance(section, Mapping) else {} for section in pair)
    return [name for name in sorted({*old, *new})
            if canonical_json(old.get(name)) != canonical_json(new.get(name))]


def _sound_size(content: bytes) -> int:
    """Return the length of the part that ends with a complete last line."""
    end = content.rfind(b"\n") + 1
    if end == 0:
        return 0
    start = content.rfind(b"\n", 0, end - 1) + 1
    try:
        parse_json(content[start:end].decode(), TRIALS)
    except (ConfigError, UnicodeDecodeError):
        return start if end == len(content) else end
    return end


def _parse(content: bytes, trials: Path, fingerprints: Mapping[str, str]) -> list[TrialRecord]:
    model, space = str(fingerprints.get("model", "")), str(fingerprints.get("space", ""))
    records: list[TrialRecord] = []
    seen: set[int] = set()
    lines: Sequence[bytes] = content.split(b"\n")[:-1]
    for index, line in enumerate(lines, start=1):
        source = f"{trials}:{index}"
        try:
            record = TrialRecord.from_line(line.decode(), source, model=model, space=space)
        except UnicodeDecodeError:
            raise ArtifactError(f"{source}: not UTF-8 text") from None
        if record.number in seen:
            raise ArtifactError(f"{source}: trial {record.number} is recorded twice")
        seen.add(record.number)
        records.append(record)
    return records


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view):]
