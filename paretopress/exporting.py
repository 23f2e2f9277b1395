"""Copies a stored point out of a run, every byte checked: the whole folder, or its ONNX file."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretopress.compressors.artefact_folder import MANIFEST, new_folder, read_folder
from paretopress.compressors.compressed_model import DELTA, TENSORS
from paretopress.compressors.model_card import CARD
from paretopress.compressors.recoding import huffman_coded
from paretopress.result import Front, Point
from paretopress.spaces.documents import disk_error, write_atomic, write_text
from paretopress.spaces.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from torch import nn

    from paretopress.compressors.exports import Exported
    from paretopress.evaluators.data import Data

ONNX = "model.onnx"
SAMPLES = 512   # of holdout that a conversion is compared on
CONVERTED = ("pt2", "openvino")


@dataclass(frozen=True)
class Conversion:
    """A point in another format, checked against the stored model.

    Attributes:
        exported: What was written, compared and timed.
        baseline_ms: Median milliseconds of the dense model in the same format.
    """

    exported: Exported
    baseline_ms: float | None


def refuse_without_parity(point: Point) -> None:
    """Refuse a point whose stored forms did not agree when it was verified. Raises `ArtifactError`."""
    from paretopress.evaluators.verification import Parity

    plain = point.measured.get("parity")
    if not isinstance(plain, dict):
        return
    known = {field.name: plain[field.name] for field in fields(Parity) if field.name in plain}
    if problem := Parity(**known).problem:
        raise ArtifactError(f"point {point.id} failed its verification: {problem}")


def convert_point(
    front: Front, point: Point, destination: Path, form: str, model: nn.Module, data: Data, *, runs: int = 100,
    force: bool = False, packed: bool = False,
) -> Conversion:
    """Write a point in a format that the run does not hold, and check and time it on holdout samples.

    Args:
        front: The run's front, for the dense model.
        point: The point.
        destination: The file.
        form: `pt2` or `openvino`.
        model: The dense model: its class holds the tensors.
        data: Its holdout inputs are compared and timed on.
        runs: Counted runs of each timing.
        force: Replace an earlier file.
        packed: For `pt2`: store integers packed.

    Raises:
        ArtifactError: The stored model is damaged, or the conversion computes something else; nothing is written.
        ConfigError: The destination exists, or a package is missing.
        UnsupportedModelError: The format cannot express the model.
        DiskError: Writing failed.
    """
    from paretopress.compressors.compressed_model import load
    from paretopress.compressors.exports import SUFFIXES, export_checked
    from paretopress.evaluators.data import prepare
    from paretopress.evaluators.metrics import top1

    refuse_without_parity(point)
    prepared = prepare(data)
    values = prepared.metrics[0].function is not top1
    whole = prepared.holdout.first(SAMPLES).whole
    inputs = (whole.args, dict(whole.kwargs))
    compressed = load(point.stored(), model)
    exported = export_checked(
        compressed, destination, form, inputs, runs=runs, overwrite=force, packed=packed, values=values
    )
    suffix = next(suffix for suffix, name in SUFFIXES.items() if name == form)
    with tempfile.TemporaryDirectory(prefix="paretopress-") as folder:
        dense = load(front.baseline.stored(), model, compressed.program)
        timed = export_checked(dense, Path(folder) / f"dense{suffix}", form, inputs, runs=runs)
    return Conversion(exported, timed.latency_ms)


def conversion_plain(conversion: Conversion) -> dict[str, Any]:
    """Return parity and timing of a conversion as `export --json` prints them."""
    found = conversion.exported
    return {
        "parity": {"source": "export", "difference": found.difference, "agreement": found.agreement,
                   "samples": found.samples},
        "timing": {"source": "export", "runtime": found.runtime, "latency_ms": found.latency_ms,
                   "latency_ms_iqr": None if found.quartiles is None else list(found.quartiles),
                   "latency_ms_baseline": conversion.baseline_ms},
    }


def stored_plain(point: Point) -> dict[str, Any]:
    """Return parity and timing of a stored point as its verification found them."""
    parity, measured = point.measured.get("parity") or {}, point.measured
    return {
        "parity": {"source": "verification", "difference": parity.get("onnx_difference"),
                   "agreement": parity.get("onnx_agreement"), "samples": None},
        "timing": {"source": "verification", "runtime": measured.get("host"), "latency_ms": measured.get("latency_ms"),
                   "latency_ms_iqr": measured.get("latency_ms_iqr"),
                   "latency_ms_baseline": measured.get("latency_ms_baseline")},
    }


def export_folder(
    point: Point, destination: Path, *, force: bool = False, huffman: bool = False, card: str | None = None
) -> Path:
    """Copy a point's stored model to a new folder: all of it or nothing.

    Args:
        point: The point.
        destination: Must not exist or be empty.
        force: Replace an earlier export there; nothing else is ever replaced.
        huffman: Code packed tensors where that takes fewer bytes; loading decodes them.
        card: Text of a model card, which becomes its `README.md`.

    Raises:
        ArtifactError: The stored model is missing, truncated or altered, or failed a check of parity.
        ConfigError: The destination is in use.
        DiskError: Writing failed; nothing half-written is left.
    """
    refuse_without_parity(point)
    source = point.stored()
    contents = read_folder(source, (DELTA, TENSORS) if huffman else ())
    if huffman:
        contents[DELTA], contents[TENSORS] = huffman_coded(contents[DELTA], contents[TENSORS], str(source))
    with new_folder(destination, overwrite=force) as temporary:
        for path in source.iterdir():
            if path.name in contents:
                write_atomic(temporary / path.name, lambda stream: stream.write(contents[path.name]))  # noqa: B023
            elif path.name not in (MANIFEST, CARD):
                shutil.copyfile(path, temporary / path.name)
        if card is not None:
            write_text(temporary / CARD, card)
    return destination


def export_onnx_file(point: Point, destination: Path, *, force: bool = False) -> Path:
    """Copy a point's ONNX file.

    Args:
        point: The point.
        destination: A file, or a folder that exists, which gets `model.onnx`.
        force: Replace an existing file.

    Raises:
        ArtifactError: The stored model is missing or altered, has no ONNX file, or failed a check of parity.
        ConfigError: The destination exists.
        DiskError: Writing failed; nothing half-written is left.
    """
    refuse_without_parity(point)
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
