"""Exports of a compressed model: written, run beside the model that they were made from, and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from paretopress.compressors.delta import LayerEdit
from paretopress.compressors.export_onnx import run_session, session
from paretopress.spaces.documents import disk_error, temporary_sibling
from paretopress.spaces.errors import ArtifactError, ConfigError, unknown_name
from paretopress.spaces.layer_formats import own_input

if TYPE_CHECKING:
    from paretopress.compressors.compressed_model import CompressedModel

FORMATS = ("safetensors", "onnx", "pt2", "openvino")
SUFFIXES = {".onnx": "onnx", ".pt2": "pt2", ".xml": "openvino"}
RUNTIMES = {"onnx": "onnxruntime", "pt2": "torch", "openvino": "openvino"}
FLOAT_TOLERANCE = 1e-4      # of the largest output
INTEGER_AGREEMENT = 0.99    # share of samples with the same output first, where activations are rounded on the way
NEAR = 0.02                 # of the length of a sample's outputs: integers that end a step apart here and there
ROUNDED = 0.25              # the same for embeddings and values, where many rounded layers have carried a step on
SYNTHETIC = 256             # samples that are drawn where none are given
WARM_UP = 10

Inputs = tuple[tuple[Tensor, ...], Mapping[str, Tensor]]
Run = Callable[[tuple[Tensor, ...], Mapping[str, Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Exported:
    """An export that was checked.

    Attributes:
        path: The file or folder.
        format: One of `FORMATS`.
        runtime: What ran it, with its version; `""` for `safetensors`, which is read back instead.
        bytes: Of all its files.
        samples: Samples that it was compared on.
        difference: Largest absolute difference of outputs over the largest absolute output of the model.
        agreement: Share of samples on which both put the same output first.
        latency_ms: Median milliseconds of one inference, batch 1 (or the fixed batch), one thread; None where it was
            not timed.
        quartiles: First and third quartile of that.
        runs: Counted runs.
    """

    path: Path
    format: str
    runtime: str = ""
    bytes: int = 0
    samples: int = 0
    difference: float = 0.0
    agreement: float = 1.0
    latency_ms: float | None = None
    quartiles: tuple[float, float] | None = None
    runs: int = 0


def format_of(path: Path, form: str | None) -> str:
    """Return the format of an export: what is asked for, else what the file's suffix says.

    Raises:
        ConfigError: Unknown, or a file whose suffix is another format's.
    """
    if form is None:
        return SUFFIXES.get(path.suffix, "safetensors")
    if form not in FORMATS:
        raise ConfigError(f"export: {unknown_name('format', form, FORMATS)}")
    suffix = next((suffix for suffix, name in SUFFIXES.items() if name == form), "")
    if suffix and path.suffix != suffix:
        raise ConfigError(f"export: {path}: a file of format {form} ends in {suffix}")
    return form


def export_checked(
    compressed: CompressedModel, path: Path, form: str | None = None, inputs: Inputs | None = None, *, runs: int = 50,
    overwrite: bool = False, packed: bool = False, values: bool = False,
) -> Exported:
    """Write a compressed model in a format, run what was written, compare and time it.

    Args:
        compressed: The model.
        path: A new file, or a new folder for `safetensors`.
        form: One of `FORMATS`; by default what the suffix says, and a folder without one.
        inputs: Positional and keyword inputs to compare and time on; by default drawn: standard normal floats, and
            integers that are 0 or 1.
        runs: Counted runs of the timing, 0 for none.
        overwrite: Whether an earlier export there is replaced.
        packed: For `pt2`: see `export_program.export_program`.
        values: Whether the outputs are embeddings or values, so that none comes first; see `agreeing`.

    Raises:
        ArtifactError: What was written does not compute what the model computes; nothing is left of it.
        ConfigError: An unknown format, a path that is in use, or a package that is not installed.
        UnsupportedModelError: The format cannot express the model.
        DiskError: Writing failed.
    """
    form = format_of(path, form)
    if form == "safetensors":
        return _stored(compressed, path, overwrite=overwrite)
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConfigError(f"{path} exists; choose another path or overwrite it")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist")
    given = synthetic_inputs(compressed) if inputs is None else inputs
    temporary = temporary_sibling(path).with_suffix(path.suffix)
    try:
        write(compressed, temporary, form, given, packed=packed)
        found = checked(compressed, temporary, form, given, runs=runs, values=values)
        for source, target in zip(files_of(temporary, form), files_of(path, form), strict=True):
            source.replace(target)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; nothing was written") from None
    except OSError as error:
        raise disk_error(path, error) from None
    finally:
        for source in files_of(temporary, form):
            source.unlink(missing_ok=True)
    return replace(found, path=path)


def write(compressed: CompressedModel, path: Path, form: str, inputs: Inputs, *, packed: bool = False) -> None:
    """Write one file, without looking at what it computes. Raises as `export_checked`."""
    if form == "onnx":
        compressed.export_onnx(path)
    elif form == "pt2":
        from paretopress.compressors.export_program import export_program

        export_program(compressed, path, inputs, packed=packed)
    else:
        import tempfile

        from paretopress.compressors.export_openvino import export_openvino

        with tempfile.TemporaryDirectory(prefix="paretopress-") as folder:
            export_openvino(compressed.export_onnx(Path(folder) / "model.onnx"), path)


def checked(
    compressed: CompressedModel, path: Path, form: str, inputs: Inputs, *, runs: int, values: bool = False
) -> Exported:
    """Compare what is in a file with the model that it was made from, and time it.

    Raises:
        ArtifactError: They differ.
    """
    with _one_thread():
        run = opened(compressed, path, form)
        difference, agreement, samples = _compared(compressed, run, inputs, ROUNDED if values else NEAR)
        problem = _problem(compressed, difference, agreement)
        if problem:
            raise ArtifactError(problem)
        times = _times(compressed, run, inputs, runs)
    low, middle, high = (None, None, None) if times is None else (float(value) for value in times)
    quartiles = None if low is None or high is None else (low, high)
    return Exported(path, form, runtime_name(form), sum(one.stat().st_size for one in files_of(path, form)), samples,
                    difference, agreement, middle, quartiles, runs)


def runtime_name(form: str) -> str:
    """Return the runtime of a format with its version."""
    from importlib.metadata import version

    name = RUNTIMES[form]
    return f"{name} {version(name)}"


def files_of(path: Path, form: str) -> list[Path]:
    """Return the files of an export."""
    return [path, path.with_suffix(".bin")] if form == "openvino" else [path]


def opened(compressed: CompressedModel, path: Path, form: str) -> Run:
    """Open an exported file and return the function that runs it on positional and keyword inputs."""
    program = compressed.program
    if form == "pt2":
        from paretopress.compressors.export_program import open_program

        module = open_program(path)
        return lambda args, kwargs: _flat(module(args, kwargs))
    if form == "openvino":
        from paretopress.compressors.export_openvino import open_ir

        request = open_ir(path)
        return lambda args, kwargs: request(program.flatten_inputs(args, kwargs))
    onnx = session(path)
    return lambda args, kwargs: run_session(onnx, program.flatten_inputs(args, kwargs))


def as_inputs(value: Any) -> Inputs:  # noqa: ANN401 - a tensor, a tuple or a mapping of them
    """Return what a user gives as positional and keyword inputs. Raises `ConfigError` where it is neither."""
    try:
        if isinstance(value, Mapping):
            return (), {str(name): torch.as_tensor(one) for name, one in value.items()}
        return tuple(torch.as_tensor(one) for one in (value if isinstance(value, tuple | list) else (value,))), {}
    except (TypeError, ValueError, RuntimeError):
        kind = type(value).__name__
        raise ConfigError(f"export: inputs: expected a tensor, a tuple or a mapping of tensors, got {kind}") from None


def synthetic_inputs(compressed: CompressedModel, seed: int = 0) -> Inputs:
    """Draw inputs of the model's shapes and types: floats standard normal, integers 0 or 1, truth values true."""
    generator = torch.Generator().manual_seed(seed)
    count = SYNTHETIC if compressed.program.graph.dynamic_batch else compressed.program.graph.batch
    drawn = []
    for entry in compressed.delta.inputs:
        shape, dtype = (count, *entry.shape[1:]), getattr(torch, entry.dtype)
        if dtype is torch.bool:
            value = torch.ones(shape, dtype=dtype)
        elif dtype.is_floating_point:
            value = torch.randn(shape, generator=generator).to(dtype)
        else:
            value = torch.randint(0, 2, shape, generator=generator).to(dtype)
        drawn.append((entry.keyword, value))
    return tuple(value for keyword, value in drawn if not keyword), {key: value for key, value in drawn if key}


def rows_of(inputs: Inputs, start: int, stop: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Some rows of positional and keyword inputs."""
    args, kwargs = inputs
    return tuple(one[start:stop] for one in args), {name: one[start:stop] for name, one in kwargs.items()}


def _stored(compressed: CompressedModel, path: Path, *, overwrite: bool) -> Exported:
    compressed.save_pretrained(path, overwrite=overwrite)
    return Exported(path, "safetensors", bytes=sum(file.stat().st_size for file in path.iterdir()))


def _flat(outputs: Any) -> list[Tensor]:  # noqa: ANN401 - whatever a model returns
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _compared(compressed: CompressedModel, run: Run, inputs: Inputs, near: float) -> tuple[float, float, int]:
    """Largest difference over the largest output, share of the same first outputs, and samples."""
    graph = compressed.program.graph
    count = len(next(iter((*inputs[0], *inputs[1].values()))))
    step = 64 if graph.dynamic_batch else graph.batch
    whole = count if graph.dynamic_batch else count - count % step
    if not whole:
        raise ConfigError(f"export: this model runs on batches of {step}; give at least as many samples to compare on")
    difference, largest, same = 0.0, 0.0, 0
    for start in range(0, whole, step):
        args, kwargs = rows_of(inputs, start, min(start + step, whole))
        with torch.inference_mode():
            expected, found = _flat(compressed(*args, **kwargs)), run(args, kwargs)
        for one, other in zip(expected, found, strict=True):
            equal = (one == other) | (one.isnan() & other.isnan())
            gap = torch.where(equal, 0.0, (one.double() - other.double()).abs()).nan_to_num(nan=float("inf"))
            difference = max(difference, float(gap.max()))
            largest = max(largest, float(one.double().abs().max()))
        same += int(agreeing(expected[0], found[0], near=near).sum())
    return difference / max(largest, 1e-12), same / whole, whole


def agreeing(one: Tensor, other: Tensor, *, guesses: bool = False, near: float = NEAR) -> Tensor:
    """Return per sample whether both put the same output first, or are near each other.

    Args:
        one: Outputs `(n, ...)`.
        other: Outputs of the same shape.
        guesses: Whether only what comes first counts, as for scores of classes. Embeddings and values have no first.
        near: Of the length of a sample's outputs: what they may differ by.

    Returns:
        Booleans `(n,)`.
    """
    same = _leading(one) == _leading(other)
    if guesses:
        return same
    rows, difference = (tensor.reshape(len(one), -1).double() for tensor in (one, one - other))
    close: Tensor = difference.norm(dim=1) <= near * rows.norm(dim=1)
    return same | close


def _leading(output: Tensor) -> Tensor:
    """Index of the largest output per sample; the sign where there is one output only."""
    flat = output.reshape(len(output), -1)
    return flat.argmax(dim=1) if flat.shape[1] > 1 else (flat[:, 0] > 0).long()


def _problem(compressed: CompressedModel, difference: float, agreement: float) -> str:
    """What is out of tolerance, `""` where nothing is: rounded activations may end a step apart."""
    rounds = bool(compressed.delta.ranges) or any(
        isinstance(edit, LayerEdit) and own_input(edit.form) for edit in compressed.delta.edits
    )
    if rounds and agreement < INTEGER_AGREEMENT and difference > FLOAT_TOLERANCE:
        return f"the export agrees on {agreement:.1%} of the samples, below {INTEGER_AGREEMENT:.0%}"
    if not rounds and difference > FLOAT_TOLERANCE:
        return f"the export's outputs differ by {difference:.2g}, above {FLOAT_TOLERANCE:g}"
    return ""


def _times(compressed: CompressedModel, run: Run, inputs: Inputs, runs: int) -> Sequence[float] | None:
    """Quartiles of milliseconds per call."""
    if runs < 1:
        return None
    graph = compressed.program.graph
    args, kwargs = rows_of(inputs, 0, 1 if graph.dynamic_batch else graph.batch)
    times = np.empty(runs)
    with torch.inference_mode():
        for index in range(-WARM_UP, runs):
            start = time.perf_counter()
            run(args, kwargs)
            if index >= 0:
                times[index] = time.perf_counter() - start
    found: list[float] = np.percentile(times * 1e3, [25, 50, 75]).tolist()
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
