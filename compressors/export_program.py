"""A compressed model as a `.pt2` file of `torch.export`: it loads without the user's class and without Paretopress."""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paretopress.compressors.compressed_model import CompressedModel, network_of
from paretopress.compressors.network import Network, forward
from paretopress.compressors.program import Program
from paretopress.spaces.documents import write_atomic
from paretopress.spaces.errors import UnsupportedModelError

Inputs = tuple[tuple[Tensor, ...], Mapping[str, Tensor]]


def export_program(compressed: CompressedModel, path: Path, inputs: Inputs, *, packed: bool = False) -> None:
    """Write a compressed model as a `.pt2` file, which replaces what is there.

    Args:
        compressed: The model.
        path: The file.
        inputs: Positional and keyword inputs, at least two samples where the batch is dynamic.
        packed: Whether integer weights are stored packed and unpacked by every call; otherwise as the floats they
            stand for, which is faster and larger.

    Raises:
        UnsupportedModelError: `torch.export` refuses it, with its first line.
        DiskError: The file cannot be written.
    """
    if packed:
        from paretopress.compressors.packed_memory import keep_packed  # it knows this module's neighbours

        compressed = keep_packed(_copy(compressed))
    program = compressed.program
    names = [f"input_{place}" for place in range(len(inputs[0]))]
    module = _executable(names, list(inputs[1]))(program, network_of(compressed))
    # What the graph was captured with is the only batch that it is sure to run with, where that is fixed.
    rows = 2 if program.graph.dynamic_batch else program.graph.batch
    args, kwargs = example_rows(inputs, rows)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = {0: torch.export.Dim.DYNAMIC}
            shapes = dict.fromkeys((*names, *kwargs), batch) if program.graph.dynamic_batch else None
            exported = torch.export.export(module, args, kwargs, strict=False, dynamic_shapes=shapes)
            content = io.BytesIO()
            torch.export.save(exported, content)
    except Exception as error:  # noqa: BLE001 - torch.export raises what it likes
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UnsupportedModelError(f"torch.export refuses the compressed model: {first.strip()}") from None
    write_atomic(path, lambda stream: stream.write(content.getvalue()))


def open_program(path: Path) -> Callable[[tuple[Tensor, ...], Mapping[str, Tensor]], Any]:
    """Load a `.pt2` file and return the function that runs it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(path).module()
    return lambda args, kwargs: module(*args, **kwargs)


def example_rows(inputs: Inputs, count: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The first rows of inputs, the last one repeated where there are too few; tensors of their own."""

    def rows(tensor: Tensor) -> Tensor:
        first = tensor[:count]
        missing = count - len(first)
        return torch.cat([first, first[-1:].expand(missing, *first.shape[1:])]) if missing else first.clone()

    args, kwargs = inputs
    return tuple(map(rows, args)), {name: rows(tensor) for name, tensor in kwargs.items()}


def _copy(compressed: CompressedModel) -> CompressedModel:
    """A copy whose network may be changed; the captured dense model is shared."""
    ranges = dict(zip(compressed.delta.ranges, zip(
        compressed.activation_scale.tolist(), compressed.activation_zero_point.tolist(), strict=True), strict=True))
    return CompressedModel(copy.deepcopy(compressed.network), compressed.delta, ranges, compressed.program)


class _Executable(nn.Module):
    """The compressed graph alone."""

    def __init__(self, program: Program, network: Network) -> None:
        super().__init__()
        self._program, self._network = program, network

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:  # noqa: ANN401 - whatever the user's model returns
        """Run it; outputs of a library's own class become plain dictionaries, so that the file needs no library."""
        outputs = forward(self._program, self._network, self._program.flatten_inputs(args, kwargs))
        return dict(outputs) if isinstance(outputs, Mapping) else outputs


def _executable(positional: Sequence[str], keywords: Sequence[str]) -> type[_Executable]:
    """The module's class with the inputs in its signature: torch.export finds none of a `**kwargs` in its shapes."""

    def run(self: _Executable, *args: Tensor, **kwargs: Tensor) -> Any:  # noqa: ANN401
        return _Executable.forward(self, *args, **kwargs)

    own = inspect.Parameter
    parameters = [own(name, own.POSITIONAL_OR_KEYWORD) for name in ("self", *positional)]
    parameters += [own(name, own.KEYWORD_ONLY) for name in keywords]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return type("Executable", (_Executable,), {"forward": run})
