"""Batches: one set of the user's data, checked and cut into batches of one size."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from paretopress.spaces.errors import DataError

LABELS = ("labels", "label")   # keys of a mapping that hold targets, as Hugging Face's collators name them
Array = Tensor | np.ndarray[Any, Any]
Inputs = Array | tuple[Array, ...] | Mapping[str, Array]
Set = tuple[Inputs, Array] | Iterable[Any] | Inputs


@dataclass(frozen=True)
class Batch:
    """Some consecutive samples: `model(*args, **kwargs)` scores them.

    Attributes:
        args: Positional inputs, each `(n, ...)`.
        kwargs: Keyword inputs, each `(n, ...)`.
        targets: `(n, ...)`, None where the set has inputs only.
    """

    args: tuple[Tensor, ...]
    kwargs: Mapping[str, Tensor] = field(default_factory=dict)
    targets: Tensor | None = None

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.args[0] if self.args else next(iter(self.kwargs.values())))

    def inputs(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every input with the name that messages use."""
        yield from ((f"input {index}", tensor) for index, tensor in enumerate(self.args))
        yield from ((f"input {name!r}", tensor) for name, tensor in sorted(self.kwargs.items()))

    def rows(self, start: int, stop: int, *, copy: bool = False) -> Batch:
        """Return samples `start` to `stop`; a copy where the receiver may write into the inputs."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor[start:stop].clone() if copy else tensor[start:stop]

        targets = None if self.targets is None else self.targets[start:stop]
        kwargs = {name: cut(tensor) for name, tensor in self.kwargs.items()}
        return Batch(tuple(map(cut, self.args)), kwargs, targets)


@dataclass(frozen=True)
class Batches:
    """A set as a sequence of batches of one size (the last may be smaller), however the user batched it.

    Every access copies the inputs, so that a model with in-place operations cannot change the data.

    Attributes:
        whole: All samples as one batch; read it, never write into it.
        batch_size: Samples per batch.
        name: `calibration`, `search`, `holdout` or `train`, for messages.
    """

    whole: Batch
    batch_size: int
    name: str

    @property
    def count(self) -> int:
        """The number of samples."""
        return self.whole.count

    @property
    def targets(self) -> Tensor:
        """All targets `(count, ...)`. Raises `DataError` where the set has inputs only."""
        if self.whole.targets is None:
            raise DataError(f"{self.name}: this set has inputs only, targets are needed here")
        return self.whole.targets

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch_size)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        """Return one batch, or a list of batches for a slice."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(index)
        start = position * self.batch_size
        return self.whole.rows(start, start + self.batch_size, copy=True)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    def first(self, count: int) -> Batches:
        """Return the first `count` samples, all where there are fewer; a copy does not drag the rest along."""
        return replace(self, whole=self.whole.rows(0, count, copy=count < self.count))

    def take(self, rows: Sequence[int]) -> Batches:
        """Return copies of some samples, in the order given."""
        index = torch.as_tensor(list(rows), dtype=torch.int64)
        args = tuple(tensor[index] for tensor in self.whole.args)
        kwargs = {name: tensor[index] for name, tensor in self.whole.kwargs.items()}
        targets = None if self.whole.targets is None else self.whole.targets[index]
        return replace(self, whole=Batch(args, kwargs, targets))

    def row_hashes(self) -> list[bytes]:
        """Return 16 bytes per sample that depend on all its inputs, not on its target."""
        columns = [(name.encode(), _bytes_per_row(tensor)) for name, tensor in self.whole.inputs()]
        hashes = []
        for row in range(self.count):
            digest = hashlib.blake2b(digest_size=16)
            for name, column in columns:
                digest.update(name)
                digest.update(column[row].data)
            hashes.append(digest.digest())
        return hashes

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of names, types, shapes and values; independent of the batch size."""
        digest = hashlib.blake2b(digest_size=8)
        named = [*self.whole.inputs()]
        if self.whole.targets is not None:
            named.append(("targets", self.whole.targets))
        for name, tensor in named:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(_bytes_per_row(tensor).data)
        return digest.hexdigest()


def _bytes_per_row(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return `(n, bytes)` of any dtype, also those that numpy does not know, such as bfloat16."""
    flat = tensor.flatten(1) if tensor.ndim > 1 else tensor.unsqueeze(1)
    return np.ascontiguousarray(flat.contiguous().view(torch.uint8).numpy())


def normalise_set(value: Set, name: str, batch_size: int, needs_targets: bool) -> Batches:
    """Return a set as batches of `batch_size`; concatenated first, so the user's batching does not matter.

    Args:
        value: See `Data`.
        name: The set's name in messages.
        batch_size: Samples per batch, at least 1.
        needs_targets: Whether a set of inputs only is refused.

    Raises:
        DataError: One line naming the set and the user's batch.
    """
    if batch_size < 1:
        raise DataError(f"batch size must be at least 1, got {batch_size}")
    parts = [_read_batch(item, place, needs_targets) for place, item in _items(value, name, batch_size)]
    if not parts:
        raise DataError(f"{name} is empty: the iterable yielded nothing (a generator can be read only once)")
    first = parts[0]
    for index, part in enumerate(parts[1:], start=1):
        difference = sample_difference(first, part) or target_difference(first, part)
        if difference:
            raise DataError(f"{name} batch {index} differs from batch 0: {difference}")
    return Batches(_join(parts), batch_size, name)


def _items(value: Any, name: str, batch_size: int) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yield the user's batches, each with its place for messages; a whole set is one batch."""
    if isinstance(value, tuple | Tensor | np.ndarray | Mapping):
        yield name, value
        return
    if isinstance(value, Dataset):
        value = DataLoader(value, batch_size=batch_size)
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise DataError(
            f"{name}: expected (inputs, targets), an iterable of such pairs, or inputs, "
            f"got {type(value).__name__}"
        )
    for index, item in enumerate(value):
        yield f"{name} batch {index}", item


def _read_batch(item: Any, place: str, needs_targets: bool) -> Batch:  # noqa: ANN401
    """Split one batch into inputs and targets and check it."""
    inputs, targets = item, None
    if isinstance(item, tuple | list) and len(item) == 2:  # a DataLoader yields lists
        inputs, targets = item
    elif isinstance(item, Mapping) and len(item) > 1 and (named := [key for key in LABELS if key in item]):
        inputs = {key: value for key, value in item.items() if key not in named}
        targets = item[named[0]]
    if targets is None and needs_targets:
        raise DataError(f"{place}: targets are needed: expected (inputs, targets), got {_describe(item)}")
    args: tuple[Tensor, ...] = ()
    kwargs: dict[str, Tensor] = {}
    if isinstance(inputs, Mapping):
        kwargs = {str(key): _tensor(member, f"{place}: input {key!r}") for key, member in inputs.items()}
    elif isinstance(inputs, tuple | list):
        args = tuple(_tensor(member, f"{place}: input {index}") for index, member in enumerate(inputs))
    else:
        args = (_tensor(inputs, f"{place}: input 0"),)
    if not args and not kwargs:
        raise DataError(f"{place} is empty: no inputs")
    batch = Batch(args, kwargs, None if targets is None else _tensor(targets, f"{place}: targets"))
    _check_counts(batch, place)
    return batch


def _describe(item: Any) -> str:  # noqa: ANN401
    kind = type(item).__name__
    return f"a {kind} of {len(item)}" if isinstance(item, tuple | list | Mapping) else f"a {kind}"


def _tensor(value: Any, place: str) -> Tensor:  # noqa: ANN401
    """Return a finite CPU tensor with a sample dimension."""
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        value = value.copy()  # torch has no read-only tensors
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{place}: expected a tensor or array, got {_describe(value)}") from None
    if tensor.ndim == 0:
        raise DataError(f"{place}: expected samples on dimension 0, got a single number")
    if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
        bad = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(dim=1)
        raise DataError(
            f"{place} holds NaN or infinities in {int(bad.sum())} of {len(tensor)} samples "
            f"(first: row {int(bad.nonzero()[0])})"
        )
    return tensor


def _check_counts(batch: Batch, place: str) -> None:
    first_name, first = next(batch.inputs())
    if len(first) == 0:
        raise DataError(f"{place} is empty: 0 samples")
    for name, tensor in batch.inputs():
        if len(tensor) != len(first):
            raise DataError(f"{place}: {name} has {len(tensor)} samples, {first_name} has {len(first)}")
    if batch.targets is not None and len(batch.targets) != len(first):
        raise DataError(f"{place}: {len(first)} samples in the inputs, {len(batch.targets)} in the targets")


def sample_difference(expected: Batch, got: Batch) -> str:
    """Return how the samples of two batches differ in names, shape or type; "" where they do not."""
    left, right = dict(expected.inputs()), dict(got.inputs())
    if list(left) != list(right):
        return f"it has {', '.join(right)}, expected {', '.join(left)}"
    for name, tensor in right.items():
        if tensor.shape[1:] != left[name].shape[1:]:
            return f"{name} has {_per_sample(tensor)}, expected {_per_sample(left[name])}"
        if tensor.dtype != left[name].dtype:
            return f"{name} is {tensor.dtype}, expected {left[name].dtype}"
    return ""


def target_difference(expected: Batch, got: Batch) -> str:
    """Return how the targets of two batches differ in presence or shape; "" where they do not."""
    if expected.targets is None and got.targets is None:
        return ""
    if expected.targets is None or got.targets is None:
        return "one has targets, the other has none"
    if expected.targets.shape[1:] != got.targets.shape[1:]:
        return f"targets have {_per_sample(got.targets)}, expected {_per_sample(expected.targets)}"
    return ""


def _per_sample(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape[1:])} per sample"


def _join(parts: Sequence[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    args = tuple(torch.cat([part.args[index] for part in parts]) for index in range(len(first.args)))
    kwargs = {name: torch.cat([part.kwargs[name] for part in parts]) for name in first.kwargs}
    targets = [part.targets for part in parts if part.targets is not None]
    return Batch(args, kwargs, torch.cat(targets) if targets else None)
