"""The outbox: where a worker commits what it evaluated before it tells anybody.

    RUN/outbox/NUMBER-TOKEN/    policy.json, evaluation.json; then result.json with their SHA-256: the commit point
    RUN/trials/NUMBER-TOKEN/    the same, once the storage has it
    RUN/quarantine/             what does not match its own hashes

A folder without `result.json` is nothing. One with it is a result that no crash and no outage of the storage loses:
whoever finds it tells it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretopress.search.fault_points import fault_point
from paretopress.search.storages.result_text import read_result
from paretopress.search.storages.trial_store import Claim, Result
from paretopress.spaces.documents import (
    canonical_json,
    disk_error,
    read_document,
    sha256_file,
    sync_folder,
    temporary_sibling,
    write_atomic,
)
from paretopress.spaces.errors import ArtifactError, ParetopressError

MANIFEST = "result.json"
EVALUATION = "evaluation.json"
POLICY = "policy.json"
_NAME = re.compile(r"(\d{1,9})-(\d{1,9})")
_TEMPORARY = re.compile(r"\.paretopress-[0-9a-f]{16}\.tmp")
_STALE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed result and the folder that holds it."""

    folder: Path
    policy_hash: str
    result: Result


class Outbox:
    """The committed results below a run directory, for all workers that share it."""

    def __init__(self, run: Path) -> None:
        """Make the folders, and sweep what crashed writers left an hour ago. Raises `DiskError`."""
        self._waiting, self._told, self._quarantine = run / "outbox", run / "trials", run / "quarantine"
        try:
            for folder in (self._waiting, self._told):
                folder.mkdir(parents=True, exist_ok=True)
            self._sweep_temporaries()
        except OSError as error:
            raise disk_error(self._waiting, error) from None

    def commit(self, claim: Claim, text: str, *, failed: bool) -> Committed:
        """Store a result; once this returns, no crash loses it.

        Raises:
            DiskError: It could not be stored; nothing half-written is left.
        """
        folder = self._waiting / f"{claim.number}-{claim.token}"
        contents = {POLICY: claim.policy, EVALUATION: text}
        temporary = temporary_sibling(folder)
        try:
            temporary.mkdir()
            for name, content in contents.items():
                _write_synced(temporary / name, content)
            sync_folder(temporary)
            fault_point("inside artefacts")
            hashes = {name: sha256_file(temporary / name) for name in contents}
            if folder.exists():   # an uncommitted rest of the same claim
                shutil.rmtree(folder)
            temporary.rename(folder)
            sync_folder(self._waiting)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise disk_error(folder, error) from None
        fault_point("after artefacts")
        manifest = {"schema": 1, "number": claim.number, "token": claim.token, "policy_hash": claim.policy_hash,
                    "failed": failed, "files": hashes}
        fault_point("before commit")
        write_atomic(folder / MANIFEST, lambda stream: stream.write(canonical_json(manifest).encode()))
        fault_point("after commit")
        return Committed(folder, claim.policy_hash, Result(claim.number, claim.token, text, failed))

    def waiting(self, older_than: float = 0.0) -> Iterator[Committed]:
        """Committed results that the storage may not have yet, sound ones only.

        Args:
            older_than: Seconds since the commit: younger ones are left to the worker that wrote them.
        """
        for folder in sorted(_numbered(self._waiting)):
            with contextlib.suppress(FileNotFoundError):   # another worker was faster
                manifest = folder / MANIFEST
                if manifest.exists() and time.time() - manifest.stat().st_mtime >= older_than:
                    committed = self._read(folder)
                    if committed is not None:
                        yield committed

    def of_trial(self, number: int) -> Iterator[Committed]:
        """Committed results of one trial, told or not."""
        for parent in (self._waiting, self._told):
            for folder in sorted(parent.glob(f"{number}-*")):
                if _NAME.fullmatch(folder.name) and (folder / MANIFEST).exists():
                    committed = self._read(folder)
                    if committed is not None and not committed.result.failed:
                        yield committed

    def _read(self, folder: Path) -> Committed | None:
        """A committed result; one that does not match its hashes is put into quarantine."""
        try:
            return read_committed(folder)
        except ParetopressError:
            if not folder.exists():
                return None
            with contextlib.suppress(OSError):
                self._quarantine.mkdir(exist_ok=True)
                folder.rename(self._quarantine / f"{folder.name}-{time.time_ns()}")
            return None

    def file(self, committed: Committed) -> None:
        """Note that the storage has a result, and has it from this folder."""
        fault_point("before filing")
        with contextlib.suppress(FileNotFoundError):   # another worker was faster
            try:
                committed.folder.rename(self._told / committed.folder.name)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise disk_error(committed.folder, error) from None
        fault_point("after filing")

    def drop(self, committed: Committed) -> None:
        """Remove a result that the storage has from elsewhere."""
        shutil.rmtree(committed.folder, ignore_errors=True)

    def _sweep_temporaries(self) -> None:
        """Remove what crashed writers left, in an hour's time, and nothing else."""
        for path in [*self._waiting.iterdir(), *self._waiting.glob("*/.paretopress-*.tmp")]:
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.lstat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def read_committed(folder: Path) -> Committed:
    """Read a committed result and check everything in it.

    Raises:
        ArtifactError: A file is missing, or differs from its SHA-256, or the folder is another trial's.
        ConfigError: The manifest is malformed.
    """
    manifest: Any = read_document(folder / MANIFEST)
    match = _NAME.fullmatch(folder.name)
    keys = {"schema", "number", "token", "policy_hash", "failed", "files"}
    if not isinstance(manifest, dict) or set(manifest) != keys or match is None:
        raise ArtifactError(f"{folder}: not a committed result")
    number, token = int(match[1]), int(match[2])
    if (manifest["number"], manifest["token"]) != (number, token) or set(manifest["files"]) != {POLICY, EVALUATION}:
        raise ArtifactError(f"{folder}: its manifest is another trial's")
    for name, digest in manifest["files"].items():
        try:
            found = sha256_file(folder / name)
        except OSError as error:
            raise ArtifactError(f"{folder / name}: {error.strerror or error}") from None
        if found != digest:
            raise ArtifactError(f"{folder / name}: does not match its SHA-256")
    text = (folder / EVALUATION).read_text(encoding="utf-8")
    read_result(text, str(folder / EVALUATION))
    return Committed(folder, str(manifest["policy_hash"]), Result(number, token, text, bool(manifest["failed"])))


def _numbered(parent: Path) -> Iterator[Path]:
    return (folder for folder in parent.iterdir() if _NAME.fullmatch(folder.name))


def _write_synced(path: Path, content: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content.encode())
        stream.flush()
        os.fsync(stream.fileno())
