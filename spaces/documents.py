"""Reading and writing plain documents safely: hardened YAML, JSON, and atomic files.

Files from outside are data only: no tags, aliases, merge keys or duplicate keys, at most 1 MiB and
32 levels, and every failure of the parser becomes a one-line `ConfigError` with file, line and column.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from paretopress.spaces.errors import ConfigError, DiskError, PolicyError

MAX_BYTES = 1 << 20
RUN_BYTES = 1 << 26   # of the JSON files that a run holds: they grow with layers times finalists
MAX_DEPTH = 32
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2   # of fcntl.h and linux/fs.h

# YAML 1.2 core-schema numbers: PyYAML's own rules read `1e3` as text and `3:25` as 205.
_INTEGER = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_NOT_FINITE = re.compile(r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$")


class _Loader(yaml.SafeLoader):
    """PyYAML's pure-Python safe loader without tags, aliases, merge keys and duplicate keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        if self.check_event(yaml.AliasEvent):
            raise self._refusal("aliases are not allowed")
        tag = getattr(self.peek_event(), "tag", None)  # type: ignore[no-untyped-call]
        if tag is not None:
            raise self._refusal(f"tag {tag!r} is not allowed")
        self.depth = getattr(self, "depth", 0) + 1
        if self.depth > MAX_DEPTH:
            raise self._refusal(f"nested deeper than {MAX_DEPTH}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _refusal(self, problem: str) -> yaml.MarkedYAMLError:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: ARG002
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {name!r}", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep=True)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper that quotes every text which `parse_yaml` would not read back as that text."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    plain = text not in ("", "~", "null", "true", "false") and not any(
        pattern.match(text) for pattern in (_INTEGER, _FLOAT, _NOT_FINITE)
    )
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


_Dumper.add_representer(str, _represent_text)


def _construct_scalar(_loader: _Loader, node: yaml.ScalarNode) -> Any:  # noqa: ANN401
    text = node.value
    if node.style is not None:
        return text
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.match(text):
        return int(text)
    if _FLOAT.match(text) and math.isfinite(float(text)):
        return float(text)
    if _FLOAT.match(text) or _NOT_FINITE.match(text):
        raise yaml.MarkedYAMLError(problem=f"{text} is not a finite number", problem_mark=node.start_mark)
    return text


_Loader.add_constructor("tag:yaml.org,2002:str", _construct_scalar)


def parse_yaml(text: str, source: str) -> Any:  # noqa: ANN401 - a document has any shape
    """Parse one YAML document into dicts, lists, strings, numbers, booleans and None.

    Args:
        text: The document.
        source: The name that errors show, normally the file's path.

    Raises:
        ConfigError: With `source:line:column` for anything that is not plain, small, tag-free YAML.
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise ConfigError(f"{source}: larger than {MAX_BYTES} bytes")
    try:
        return yaml.load(text.removeprefix("\ufeff"), Loader=_Loader)  # noqa: S506 - the hardened loader above
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: {error.problem or 'not valid YAML'}") from None
    except (yaml.YAMLError, RecursionError, ValueError, KeyError, AttributeError, TypeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{source}: not valid YAML: {first}") from None


def read_document(path: Path, max_bytes: int = MAX_BYTES) -> Any:  # noqa: ANN401
    """Read a YAML or JSON file (JSON is read by the YAML parser's rules of depth).

    Args:
        path: The file.
        max_bytes: How large a JSON file may be; YAML never exceeds `MAX_BYTES`.

    Raises:
        ConfigError: The file is missing, unreadable, too large, not UTF-8, or malformed.
    """
    try:
        text = read_regular(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except ConfigError:
        raise
    except ValueError as error:   # a NUL in the name
        raise ConfigError(f"{str(path)!r}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    if path.suffix == ".json":
        return parse_json(text, str(path), max_bytes)
    return parse_yaml(text, str(path))


def read_regular(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """Return the content of a regular file: pipes and devices could wait or last for ever.

    Args:
        path: The file.
        limit: Most bytes that are read.
        follow: Whether it may be a symbolic link.

    Raises:
        ConfigError: It is larger than `limit`, or no regular file.
        OSError: It cannot be read; a symbolic link that may not be followed is one too.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: not a regular file")
        if status.st_size <= limit:
            content = stream.read(limit + 1)
            if len(content) <= limit:
                return content
    raise ConfigError(f"{path}: larger than {limit} bytes")


def _finite_float(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is not a finite number")
    return float(text)


def _check_depth(value: object, source: str) -> None:
    level, layer = 0, [value]
    while layer:
        level += 1
        if level > MAX_DEPTH:
            raise ConfigError(f"{source}: nested deeper than {MAX_DEPTH}")
        layer = [
            item for parent in layer if isinstance(parent, dict | list)
            for item in (parent.values() if isinstance(parent, dict) else parent)
        ]


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {key!r}")
        result[key] = value
    return result


def parse_json(text: str, source: str, max_bytes: int = MAX_BYTES) -> Any:  # noqa: ANN401
    """Parse strict JSON: finite numbers and unique keys only, at most 32 levels.

    Args:
        text: The document.
        source: The name that errors show.
        max_bytes: How large it may be.

    Raises:
        ConfigError: With `source:line:column`.
    """
    if len(text.encode("utf-8", "replace")) > max_bytes:
        raise ConfigError(f"{source}: larger than {max_bytes} bytes")
    try:
        value = json.loads(
            text, parse_constant=_finite_float, parse_float=_finite_float, object_pairs_hook=_unique_pairs
        )
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source}:{error.lineno}:{error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: {error}") from None
    _check_depth(value, source)
    return value


def check_schema(found: object, known: str, source: str) -> None:
    """Check the schema of a document.

    Raises:
        PolicyError: It is another one, or a newer one, which the message says.
    """
    if found == known:
        return
    name, _, version = known.rpartition("/")
    match = re.fullmatch(rf"{re.escape(name)}/([0-9]+)", str(found))
    if match is not None and int(match.group(1)) > int(version):
        raise PolicyError(f"{source}: schema {found} is newer than this version reads (allowed: {known})")
    raise PolicyError(f"{source}: schema {found!r} is not supported (allowed: {known})")


def canonical_json(value: Any) -> str:  # noqa: ANN401
    """Return the one JSON text of a plain value: sorted keys, no spaces, finite numbers only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(value: Any) -> str:  # noqa: ANN401
    """Return the first 16 hexadecimal digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def finite(value: float | None) -> float | None:
    """Return `value` as a float, or None where it is None, NaN or infinite (JSON has no such numbers)."""
    return None if value is None or not math.isfinite(value) else float(value)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def disk_error(path: Path, error: OSError) -> DiskError:
    """Return the one-line error for a failed write to `path`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    reason = "the disk is full" if full else str(error.strerror or error)
    return DiskError(f"cannot write {path}: {reason}")


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that readers see the old content or the whole new content, never a part.

    Temporary file in the same folder, fsync, rename, fsync of the folder.

    Args:
        path: The destination; its folder must exist.
        write: Called with the open binary stream.

    Raises:
        DiskError: Nothing half-written is left behind.
    """
    temporary: Path | None = None
    try:
        temporary = temporary_sibling(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = os.open(temporary, flags, 0o666)   # the umask decides, as for any file
        with os.fdopen(descriptor, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from None
    except BaseException:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise


def temporary_sibling(path: Path) -> Path:
    """Return a new hidden name in the folder of `path`, for writing first and renaming then."""
    return path.parent / f".paretopress-{secrets.token_hex(8)}.tmp"


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> bool:
    """Let two files or folders of one file system change places in one step (Linux, `renameat2`).

    Returns:
        Whether they did; False where this system or file system has no such step.

    Raises:
        OSError: It failed for another reason; both are where they were.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(other))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically. Raises `DiskError`."""
    write_atomic(path, lambda stream: stream.write(text.encode()))


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Write indented JSON with sorted keys atomically. Raises `DiskError`."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write block-style YAML in the given key order atomically. Raises `DiskError`."""
    text = yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=110)
    write_text(path, text)
