"""Copies a stored point out of a run, every byte checked: the whole folder, or its ONNX file."""

from __future__ import annotations

import shutil
from pathlib import Path

from paretopress.compressors.artefact_folder import MANIFEST, new_folder, read_folder
from paretopress.compressors.compressed_model import DELTA, TENSORS
from paretopress.compressors.recoding import huffman_coded
from paretopress.result import Point
from paretopress.spaces.documents import disk_error, write_atomic
from paretopress.spaces.errors import ConfigError

ONNX = "model.onnx"


def export_folder(point: Point, destination: Path, *, force: bool = False, huffman: bool = False) -> Path:
    """Copy a point's stored model to a new folder: all of it or nothing.

    Args:
        point: The point.
        destination: Must not exist or be empty.
        force: Replace an earlier export there; nothing else is ever replaced.
        huffman: Code packed tensors where that takes fewer bytes; loading decodes them.

    Raises:
        ArtifactError: The stored model is missing, truncated or altered.
        ConfigError: The destination is in use.
        DiskError: Writing failed; nothing half-written is left.
    """
    source = point.stored()
    contents = read_folder(source, (DELTA, TENSORS) if huffman else ())
    if huffman:
        contents[DELTA], contents[TENSORS] = huffman_coded(contents[DELTA], contents[TENSORS], str(source))
    with new_folder(destination, overwrite=force) as temporary:
        for path in source.iterdir():
            if path.name in contents:
                write_atomic(temporary / path.name, lambda stream: stream.write(contents[path.name]))  # noqa: B023
            elif path.name != MANIFEST:
                shutil.copyfile(path, temporary / path.name)
    return destination


def export_onnx_file(point: Point, destination: Path, *, force: bool = False) -> Path:
    """Copy a point's ONNX file.

    Args:
        point: The point.
        destination: A file, or a folder that exists, which gets `model.onnx`.
        force: Replace an existing file.

    Raises:
        ArtifactError: The stored model is missing or altered, or has no ONNX file.
        ConfigError: The destination exists.
        DiskError: Writing failed; nothing half-written is left.
    """
    content = read_folder(point.stored(), (ONNX,))[ONNX]
    path = destination / ONNX if destination.is_dir() else destination
    if path.is_dir() or (path.exists() and not force):
        raise ConfigError(f"{path} exists; choose another path or replace it with --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path.parent, error) from None
    write_atomic(path, lambda stream: stream.write(content))
    return path
