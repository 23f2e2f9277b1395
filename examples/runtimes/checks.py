"""What the conversions beside this file share: opening a .pt2 file, comparing outputs, timing."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TOLERANCE = 1e-3   # of the largest output: other runtimes sum in another order
RUNS = 50


def options(description: str, suffix: str) -> argparse.Namespace:
    """The command line: a .pt2 file and the file to write."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("program", type=Path, help="a .pt2 file of 'paretopress export --format pt2', not --packed")
    parser.add_argument("-o", "--output", type=Path, required=True, help=f"the {suffix} file to write")
    return parser.parse_args()


def opened(path: Path) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The program as a module, and example inputs at batch 1: drawn where they are floats, else those of the file."""
    program = torch.export.load(path)
    args, kwargs = program.example_inputs
    if kwargs:
        sys.exit(f"error: {path}: this runtime takes positional inputs; the model has keyword inputs")
    torch.manual_seed(0)
    single = [one[:1].clone() for one in args]
    return program.module(), tuple(torch.randn_like(one) if one.is_floating_point() else one for one in single)


def finish(output: Path, module: torch.nn.Module, args: tuple[torch.Tensor, ...], run: Callable[[], Any]) -> None:
    """Compare what a converted file computes with the program, time it, and remove it where it is wrong."""
    with torch.no_grad():
        expected = leaves(module(*args))
    largest = max(float(one.abs().max()) for one in expected)
    gaps = [float((one - other).abs().max()) for one, other in zip(expected, leaves(run()), strict=True)]
    difference = max(gaps) / largest
    if not difference <= TOLERANCE:
        output.unlink()
        sys.exit(f"error: the outputs differ by {difference:.2g}; {output} was removed")
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    size = output.stat().st_size
    print(f"{output}: {size} bytes, differs by {difference:.2g}, {statistics.median(times):.3f} ms per inference here")


def leaves(outputs: object) -> list[torch.Tensor]:
    """The tensors of an output of any structure."""
    return [torch.as_tensor(one) for one in torch.utils._pytree.tree_leaves(outputs)]
