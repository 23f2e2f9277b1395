"""A compressed model as OpenVINO IR, converted from its ONNX file: the same integers, scales and float weights."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paretopress.spaces.documents import disk_error, temporary_sibling
from paretopress.spaces.errors import ConfigError, UnsupportedModelError


def import_openvino() -> Any:  # noqa: ANN401 - a module without types
    """Import OpenVINO with its telemetry switched off first. Raises `ConfigError` where it is not installed."""
    os.environ.setdefault("OPENVINO_TELEMETRY_DISABLE", "1")
    try:
        import openvino
    except ImportError:
        raise ConfigError("the package openvino is not installed: pip install 'paretopress[openvino]'") from None
    return openvino


def export_openvino(onnx: Path, path: Path) -> None:
    """Convert an ONNX file to IR: `path` and, beside it, `.bin` with the weights, which replace what is there.

    Weights keep their types: OpenVINO's own default would round float weights to 16 bits.

    Args:
        onnx: The ONNX file.
        path: The `.xml` file.

    Raises:
        ConfigError: OpenVINO is not installed.
        UnsupportedModelError: It does not read the ONNX file.
        DiskError: A file cannot be written; nothing half-written is left.
    """
    openvino = import_openvino()
    temporary = temporary_sibling(path).with_suffix(".xml")
    try:
        # OpenVINO maps external weights lazily: the file must be its own copy while it converts.
        with tempfile.TemporaryDirectory(prefix="paretopress-") as folder:
            copied = Path(folder) / "model.onnx"
            shutil.copyfile(onnx, copied)
            openvino.save_model(openvino.Core().read_model(copied), str(temporary), compress_to_fp16=False)
        temporary.with_suffix(".bin").replace(path.with_suffix(".bin"))
        temporary.replace(path)
    except OSError as error:
        raise disk_error(path, error) from None
    except RuntimeError as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UnsupportedModelError(f"OpenVINO does not read the model's ONNX file: {first.strip()}") from None
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_suffix(".bin").unlink(missing_ok=True)


def open_ir(path: Path, threads: int = 1) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Load IR on the CPU, floats 32 bits wide, and return the function that runs it on inputs in the graph's order."""
    openvino = import_openvino()
    settings = {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",          # some CPUs would take bfloat16 by themselves
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",     # the inputs of 4-bit layers would be rounded to 8 bits
    }
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        found = request.infer([tensor.contiguous().numpy() for tensor in inputs])
        return [torch.from_numpy(found[index].copy()) for index in range(len(found))]

    return run
