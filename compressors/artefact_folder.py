"""The folder of an artefact: written all or nothing, and read only where every byte is as it was written.

`manifest.json` holds size and SHA-256 of every other file; a folder with a missing, further, truncated
or altered file is refused. The manifest itself must be in the one form that this module writes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretopress.spaces.documents import (
    MAX_BYTES,
    disk_error,
    exchange,
    parse_json,
    read_regular,
    sha256_file,
    sync_folder,
    temporary_sibling,
    write_text,
)
from paretopress.spaces.errors import ArtifactError, ConfigError, DiskError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = "paretopress-manifest/1"
MANIFEST = "manifest.json"
LARGEST_HEADER = 8 << 20  # bytes of a safetensors header: 100,000 tensors
LARGEST_FILE = 20 << 30   # bytes; a larger one is no compressed model
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@contextmanager
def new_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder to write files to; on leaving it gets its manifest and takes its place.

    Args:
        folder: The destination. It must not exist or be empty.
        overwrite: Whether the destination may also be an artefact, which is then replaced.

    Raises:
        ConfigError: The destination is in use.
        DiskError: Writing failed; nothing half-written is left and the destination is as it was.
    """
    folder = folder.resolve()
    refuse_in_use(folder, overwrite)
    temporary = temporary_sibling(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        _write_manifest(temporary)
        sync_folder(temporary)
        _move(temporary, folder)
        sync_folder(folder.parent)
    except DiskError as error:
        raise DiskError(str(error).replace(str(temporary), str(folder))) from None
    except OSError as error:
        raise disk_error(folder, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_in_use(folder: Path, overwrite: bool) -> None:
    """Refuse a destination that `new_folder` would refuse. Raises `ConfigError`."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose another folder")
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return
    if not overwrite:
        raise ConfigError(f"{folder} is not empty; choose another folder or overwrite it")
    try:
        known = {MANIFEST, *read_manifest(folder)}
    except ArtifactError:
        raise ConfigError(f"{folder} holds no artefact and stays; choose another folder") from None
    if strange := names - known:
        raise ConfigError(f"{folder} also holds {min(strange)!r} and stays; choose another folder")


def _write_manifest(folder: Path) -> None:
    files = sorted(folder.iterdir())
    entries = {path.name: {"size": path.stat().st_size, "sha256": sha256_file(path)} for path in files}
    write_text(folder / MANIFEST, _manifest_text({"schema": SCHEMA, "files": entries}))


def _manifest_text(manifest: Any) -> str:  # noqa: ANN401
    return json.dumps(manifest, indent=2, sort_keys=True) + "\n"


def _move(temporary: Path, folder: Path) -> None:
    """Put a finished folder in its place.

    Both change places in one step where the file system can do that: whoever is killed here leaves the old or the new
    one. Elsewhere the old one is moved away first, and put back if the new one cannot take its place.
    """
    if not folder.exists() or not any(folder.iterdir()):
        temporary.rename(folder)
        return
    if exchange(temporary, folder):
        shutil.rmtree(temporary, ignore_errors=True)
        return
    replaced = temporary_sibling(folder)
    folder.rename(replaced)
    try:
        temporary.rename(folder)
    except OSError:
        replaced.rename(folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def read_manifest(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Return the entries of a folder's manifest by file name.

    Raises:
        ArtifactError: It is missing or not as it was written.
    """
    path = folder / MANIFEST
    text = read_bytes(path, MAX_BYTES).decode(errors="replace")
    try:
        manifest = parse_json(text, str(path))
    except ConfigError as error:
        raise ArtifactError(f"altered: {error}") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest != {"schema": SCHEMA, "files": files}:
        raise ArtifactError(f"{path}: not a manifest of schema {SCHEMA}")
    for name, entry in files.items():
        if name == MANIFEST or not _NAME.fullmatch(name) or not _is_entry(entry):
            raise ArtifactError(f"{path}: the entry {name!r} is not a file with its size and sha256")
    if text != _manifest_text(manifest):
        raise ArtifactError(f"{path}: altered: not the text that was written")
    return files


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"size", "sha256"}:
        return False
    size, digest = entry["size"], entry["sha256"]
    whole = isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= LARGEST_FILE
    return whole and isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None


def check_folder(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Check that a folder holds exactly the files of its manifest, at their sizes; return the entries.

    Raises:
        ArtifactError: A file is missing, extra or of another size.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder")
    entries = read_manifest(folder)
    found = {entry.name: entry for entry in folder.iterdir() if entry.name != MANIFEST}
    for name in sorted(found.keys() | entries.keys()):
        path = folder / name
        if name in found and found[name].is_symlink():
            raise ArtifactError(f"{path}: a symbolic link: an artefact's files are its own")
        if name not in found or not found[name].is_file():
            raise ArtifactError(f"{path}: missing")
        if name not in entries:
            raise ArtifactError(f"{folder / _shown(name)}: not part of the artefact")
        size = path.stat().st_size
        if size != entries[name]["size"]:
            expected = entries[name]["size"]
            raise ArtifactError(f"{path}: truncated or altered: {size} bytes instead of {expected}")
    return entries


def read_folder(folder: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """Check every file of an artefact and return the content of those that are wanted.

    Args:
        folder: The artefact.
        wanted: Names of files that it must have.

    Raises:
        ArtifactError: A file is missing, extra, truncated or altered; the message names it.
    """
    entries = check_folder(folder)
    contents = {}
    for name in (*entries, *wanted):
        path = folder / name
        if name not in entries:
            raise ArtifactError(f"{path}: missing")
        if name in wanted:
            contents[name] = read_bytes(path, entries[name]["size"])
            digest = hashlib.sha256(contents[name]).hexdigest()
        else:
            digest = _digest(path)
        if digest != entries[name]["sha256"]:
            raise ArtifactError(f"{path}: altered: its SHA-256 is not the manifest's")
    return contents


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def read_tensors(content: bytes, where: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Args:
        content: The file.
        where: Its path, for errors.

    Raises:
        ArtifactError: Not a safetensors file, or its header is out of proportion.
    """
    import safetensors
    import safetensors.torch

    header = int.from_bytes(content[:8], "little")
    if len(content) < 8 or header > min(len(content) - 8, LARGEST_HEADER):
        raise ArtifactError(f"{where}: not a safetensors file: its header would have {header} bytes")
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{where}: {' '.join(str(error).split())[:200]}") from None


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a file of at most `limit` bytes. Raises `ArtifactError`."""
    try:
        return read_regular(path, limit, follow=False)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing") from None
    except ConfigError as error:
        raise ArtifactError(str(error)) from None
    except OSError as error:
        link = error.errno == errno.ELOOP
        reason = "a symbolic link: an artefact's files are its own" if link else error.strerror or error
        raise ArtifactError(f"{path}: {reason}") from None


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror or error}") from None
