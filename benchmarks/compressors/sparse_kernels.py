"""From which density on a sparse product is faster than a dense one: the break-even of the kernels that there are.

    python benchmarks/compressors/sparse_kernels.py [--runs 30] [--out FOLDER]

One thread. A weight `(out, in)` times activations `(in, n)`: dense in PyTorch, compressed rows (CSR) in PyTorch and in
SciPy. Both sides are timed alternately, medians are compared; the break-even is the largest density at which the sparse
product takes no longer. ONNX Runtime has no kernel that computes on sparse weights: it fills in the zeros.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHAPES = ((256, 256), (1024, 1024), (3072, 768))
COLUMNS = (1, 16, 128)
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def main() -> None:
    """Print the ratios and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    rows = [measured(shape, columns, arguments.runs) for shape in SHAPES for columns in COLUMNS]
    found = {"machine": platform.machine(), "torch": torch.__version__, "rows": rows}
    (arguments.out / "sparse_kernels.json").write_text(json.dumps(found, indent=1) + "\n")


def measured(shape: tuple[int, int], columns: int, runs: int) -> dict[str, Any]:
    """Time of the dense product over that of each sparse one, by density, and the break-even densities."""
    from scipy.sparse import csr_matrix

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape[1], columns, generator=generator)
    ratios: dict[str, dict[str, float]] = {"torch": {}, "scipy": {}}
    for density in DENSITIES:
        weight = torch.randn(shape, generator=generator)
        weight *= torch.rand(shape, generator=generator) < density
        rows, compressed, values = weight.to_sparse_csr(), csr_matrix(weight.numpy()), np.ascontiguousarray(x.numpy())
        torch.testing.assert_close(rows @ x, weight @ x, rtol=1e-3, atol=1e-3)
        dense, one, two = alternated(
            [lambda w=weight: w @ x, lambda w=rows: w @ x, lambda w=compressed, v=values: w @ v], runs)
        ratios["torch"][str(density)], ratios["scipy"][str(density)] = dense / one, dense / two
    even = {kernel: max((float(density) for density, ratio in found.items() if ratio >= 1.0), default=None)
            for kernel, found in ratios.items()}
    print(f"{shape[0]}x{shape[1]} times {columns:3d} columns: break-even density torch {even['torch']}, scipy "
          f"{even['scipy']}; dense / sparse time at 0.1: {ratios['torch']['0.1']:.2f}, {ratios['scipy']['0.1']:.2f}",
          flush=True)
    return {"shape": list(shape), "columns": columns, "dense_over_sparse": ratios, "break_even": even}


def alternated(calls: list[Callable[[], object]], runs: int) -> list[float]:
    """Median seconds of each call, timed in turn."""
    found: list[list[float]] = [[] for _ in calls]
    for run in range(runs + 3):
        for call, times in zip(calls, found, strict=True):
            begin = time.perf_counter()
            call()
            if run >= 3:
                times.append(time.perf_counter() - begin)
    return [statistics.median(times) for times in found]


if __name__ == "__main__":
    main()
