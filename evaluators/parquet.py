"""Sets of data from parquet files, as Hugging Face stores them: columns of numbers, lists, and pictures."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paretopress.spaces.errors import ConfigError, DataError, unknown_name

Columns = Mapping[str, Sequence[Any]]
Transform = Callable[[Columns], Any]


def parquet_set(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], inputs: str | Sequence[str],
    targets: str | None = None, *, transform: Transform | None = None, limit: int | None = None,
) -> Any:  # noqa: ANN401 - a set, as `Data` takes it
    """Read a set from parquet files.

    Numbers become `(n,)`, lists of one length `(n, length, ...)`, pictures (`{"bytes": ..., "path": ...}`, as Hugging
    Face stores them) float32 `(n, channels, height, width)` from 0 to 1.

    Args:
        files: A file, a pattern such as `train-*.parquet`, or several; read in the order of their names.
        inputs: A column, or several, which become keyword inputs by their names.
        targets: The column of targets; None for inputs only.
        transform: Turns the input columns (name to values) into inputs in place of the above, such as a tokenizer:
            `lambda columns: dict(tokenizer(list(columns["text"]), padding="max_length", return_tensors="pt"))`.
        limit: Read at most so many samples.

    Returns:
        `(inputs, targets)`, or inputs alone, for `paretopress.Data`.

    Raises:
        ConfigError: pyarrow (or Pillow, for pictures) is not installed, no such file, or no such column.
        DataError: A file is damaged, a column holds nulls, lists of differing lengths, or what is no number.
    """
    names = [inputs] if isinstance(inputs, str) else list(inputs)
    wanted = [*names, *([] if targets is None else [targets])]
    columns = _read(_paths(files), wanted, limit)
    given = {name: columns[name] for name in names}
    if transform is not None:
        read = transform(given)
    elif isinstance(inputs, str):
        read = _tensor(columns[inputs], inputs)
    else:
        read = {name: _tensor(column, name) for name, column in given.items()}
    return read if targets is None else (read, _tensor(columns[targets], targets))


def _paths(files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    given = [files] if isinstance(files, str | os.PathLike) else list(files)
    found: list[Path] = []
    for one in given:
        matching = sorted(glob.glob(str(one)))   # noqa: PTH207 - patterns may be absolute
        if not matching:
            raise ConfigError(f"parquet: no file {one}")
        found += map(Path, matching)
    return found


def _read(paths: Sequence[Path], wanted: Sequence[str], limit: int | None) -> dict[str, list[Any]]:
    """The wanted columns of all files as Python values."""
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    for path in paths:
        for rows in _batches(path, wanted):
            for name in wanted:
                columns[name] += rows[name]
            if limit is not None and len(columns[wanted[0]]) >= limit:
                return {name: values[:limit] for name, values in columns.items()}
    return columns


def _batches(path: Path, wanted: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError("the package pyarrow is not installed: pip install 'paretopress[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as opened:
            present = list(opened.schema_arrow.names)
            for name in wanted:
                if name not in present:
                    raise ConfigError(f"{path}: {unknown_name('column', name, present)}")
            for batch in opened.iter_batches(columns=list(wanted)):
                yield batch.to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None


def _tensor(values: Sequence[Any], name: str) -> Tensor:
    """A column as a tensor with samples on dimension 0."""
    missing = next((row for row, value in enumerate(values) if value is None), None)
    if missing is not None:
        raise DataError(f"parquet: column {name!r}: row {missing} holds null")
    if values and isinstance(values[0], Mapping):
        values = [_picture(value, name, row) for row, value in enumerate(values)]
    try:
        array = np.asarray(values)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(array))
    except (TypeError, ValueError):
        kind = type(values[0]).__name__ if values else "nothing"
        raise DataError(f"parquet: column {name!r}: expected numbers, lists of one length or pictures of one size, got "
                        f"{kind}; give transform= to read it") from None


def _picture(value: Mapping[str, Any], name: str, row: int) -> np.ndarray[Any, Any]:
    """A picture `(channels, height, width)` from 0 to 1."""
    content = value.get("bytes")
    if not isinstance(content, bytes):
        raise DataError(f"parquet: column {name!r}: row {row} holds no picture (a mapping with 'bytes')")
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ConfigError("the package pillow is not installed: pip install 'paretopress[parquet]'") from None
    try:
        with Image.open(io.BytesIO(content)) as opened:
            picture = np.asarray(opened, dtype=np.float32) / 255.0
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"parquet: column {name!r}: row {row}: {error}") from None
    return picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)
