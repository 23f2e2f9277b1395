"""A journal file: one record a line with a checksum and a stamp, appended under a lock, synced before it counts.

The lock is the kernel's, which frees it when its holder dies, however that dies. Whoever appends looks at the tail
first: what a crash or a full disk cut short is moved aside, so that nothing is ever written behind a torn record. The
clock is the file system's, which is one for all hosts that share the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paretopress.search.storages.log_store import Stamped
from paretopress.search.storages.trial_store import StorageUnavailable
from paretopress.spaces.documents import disk_error, sync_folder
from paretopress.spaces.errors import ArtifactError

_TAIL = 1 << 20    # bytes of the end of the file that a torn record may take


class JournalFile:
    """A `Log` in a file, for the processes of one host or of hosts that share a file system with locks."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()   # a working directory may change, what a journal is must not
        self.where = str(path)
        self._offset = 0
        self._clock = 0.0

    def read(self) -> list[Stamped]:
        """The records since the last call. See `Log.read`.

        Raises:
            StorageUnavailable: The file is gone.
            ArtifactError: A record in the middle is damaged; the message has its place.
        """
        with self._locked(fcntl.LOCK_SH) as descriptor:
            return self._unread(descriptor)

    def append(self, record: Mapping[str, Any]) -> list[Stamped]:
        """Append a record durably. See `Log.append`.

        Raises:
            DiskError: It could not be written; the file is as it was before.
            StorageUnavailable, ArtifactError: See `read`.
        """
        with self._locked(fcntl.LOCK_EX) as descriptor:
            self._cut_torn_tail(descriptor)
            unread = self._unread(descriptor)
            stamp = self._touch()
            text = json.dumps([stamp, record], separators=(",", ":"), allow_nan=False).encode()
            line = b"%08x %s\n" % (zlib.crc32(text), text)
            end = os.lseek(descriptor, 0, os.SEEK_END)
            try:
                if os.write(descriptor, line) != len(line):   # a full disk takes what still fits
                    raise OSError(28, os.strerror(28))
                os.fsync(descriptor)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, end)
                raise disk_error(self._path, error) from None
            self._offset = end + len(line)
            return [*unread, (record, stamp)]

    def now(self) -> float:
        """The file system's clock."""
        try:
            return self._touch()
        except OSError as error:
            raise StorageUnavailable(f"{self.where}: {error.strerror or error}") from None

    def _touch(self) -> float:
        clock = self._path.with_name(self._path.name + ".clock")
        descriptor = os.open(clock, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.utime(descriptor)
            self._clock = max(self._clock, os.fstat(descriptor).st_mtime)
        finally:
            os.close(descriptor)
        return self._clock

    def names(self) -> list[str]:
        """A journal holds one study."""
        reader = JournalFile(self._path)
        return [record["study"]["name"] for record, _ in reader.read() if record["op"] == "study"][:1]

    def close(self) -> None:
        """Nothing stays open between two calls."""

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[int]:
        try:
            created = not self._path.exists()
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if created:
                sync_folder(self._path.parent)
        except OSError as error:
            raise StorageUnavailable(f"{self.where}: {error.strerror or error}") from None
        try:
            fcntl.flock(descriptor, kind)
            yield descriptor
        finally:
            os.close(descriptor)   # frees the lock

    def _unread(self, descriptor: int) -> list[Stamped]:
        size = os.fstat(descriptor).st_size
        if size < self._offset:
            raise ArtifactError(f"{self.where}: shorter than it was: {size} bytes after {self._offset}")
        content = os.pread(descriptor, size - self._offset, self._offset)
        found: list[Stamped] = []
        start = 0
        while (end := content.find(b"\n", start)) >= 0:
            parsed = _parse(content[start:end])
            if parsed is None:
                if not content[end + 1:].strip():   # a torn tail: whoever appends next moves it aside
                    break
                raise ArtifactError(f"{self.where}: the record at byte {self._offset + start} is damaged")
            found.append(parsed)
            start = end + 1
        self._offset += start
        return found

    def _cut_torn_tail(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        start = max(0, size - _TAIL)
        tail = os.pread(descriptor, size - start, start)
        last = tail.rfind(b"\n", 0, len(tail) - 1) + 1
        if not tail or (tail.endswith(b"\n") and _parse(tail[last:-1]) is not None):
            return
        sound = start + (last if tail.endswith(b"\n") else tail.rfind(b"\n") + 1)
        kept = self._path.with_name(self._path.name + ".torn")
        copy = os.open(kept, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(copy, os.pread(descriptor, size - sound, sound) + b"\n")
            os.fsync(copy)
        finally:
            os.close(copy)
        os.ftruncate(descriptor, sound)
        os.fsync(descriptor)


def _parse(line: bytes) -> Stamped | None:
    """A line's record and stamp, None where it is damaged."""
    checksum, _, text = line.partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(text):
            return None
        stamp, record = json.loads(text)
    except ValueError:
        return None
    return record, float(stamp)
