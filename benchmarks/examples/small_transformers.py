"""What the transformer examples become: sentence embeddings and a small GPT, against onnxruntime's own quantiser.

    python benchmarks/examples/small_transformers.py minilm --record minilm   # plain methods and the baseline, minutes
    python benchmarks/examples/small_transformers.py gpt --record gpt
    python benchmarks/examples/small_transformers.py minilm --search 30m        # and a search

Every network is scored on the holdout set through ONNX Runtime and timed in turn with the dense one: one thread, batch
1, 64 tokens. The baseline is `onnxruntime.quantization.quantize_dynamic` (8-bit weights, a scale per output) on the
dense file. Bytes are those of the ONNX file, and of the stored tensors where an artefact has them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import paretopress
from paretopress.compressors.compressed_model import CompressedModel
from paretopress.compressors.export_onnx import run_session, session
from paretopress.evaluators.data import PreparedData, prepare
from paretopress.evaluators.timing import time_steadily
from paretopress.spaces.policy import DENSE

ROOT = Path(__file__).resolve().parents[2]
BATCH = 50
WORDS = "encoder.embeddings.word_embeddings"   # by its name: a glob would leave the first layer at 8 bits
Build = Callable[[nn.Module, paretopress.Data], CompressedModel]


def eight(model: nn.Module, data: paretopress.Data) -> CompressedModel:
    return paretopress.quantize(model, data, 8)


def dynamic(model: nn.Module, data: paretopress.Data) -> CompressedModel:
    return paretopress.quantize(model, data, 8, activations="dynamic")


def small_table(model: nn.Module, data: paretopress.Data) -> CompressedModel:
    return paretopress.quantize(model, data, {"*": 8, WORDS: 4}, activations="dynamic")


def narrow_feed_forward(model: nn.Module, data: paretopress.Data) -> CompressedModel:
    """Dynamic 8 bits, words of 4 bits, and three quarters of the feed-forward widths."""
    formats = paretopress.quantize(model, data, {"*": 8, WORDS: 4}, activations="dynamic", refit=False)
    widths = paretopress.prune(model, data, {"*intermediate.dense": 0.75}, refit=False)
    return paretopress.apply(model, data, widths.policy.replace(formats.policy.choices))


def mixed(model: nn.Module, data: paretopress.Data) -> CompressedModel:
    """4 bits in the feed-forward layers, 8 elsewhere."""
    return paretopress.quantize(model, data, {"*": 8, "*.wide": 4, "*.narrow": 4})


def four(model: nn.Module, data: paretopress.Data) -> CompressedModel:
    return paretopress.quantize(model, data, {"*": 4, "head": 8, "characters": 8, "places": 8})


METHODS: Mapping[str, Mapping[str, Build]] = {
    "minilm": {
        "8 bits": eight,
        "8 bits, dynamic": dynamic,
        "8 bits dynamic, words of 4": small_table,
        "8 bits dynamic, words of 4, 3/4 of the feed-forward widths": narrow_feed_forward,
    },
    "gpt": {
        "8 bits": eight,
        "8 bits, dynamic": dynamic,
        "feed-forward of 4 bits, else 8": mixed,
        "4 bits, ends of 8": four,
    },
}
SEARCH: Mapping[str, Mapping[str, Any]] = {
    "minilm": {
        "budgets": {"latency": "-53%", "size": "-71.5%"},   # half the time is wanted: predictions are some percent off
        "max_drop": "1pp",
        "search": {"sampler": "pareto", "distil": "off", "finalists": 12},
        "space": {"keep": [0.75, 0.875], "rank": [], "bits": [8, 4]},
    },
    "gpt": {
        "budgets": {"size": "-75%"},
        "max_drop": "2%",
        "search": {"sampler": "pareto"},
        "space": {"rank": [], "bits": [8, 4, 3]},
    },
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("example", choices=METHODS)
    arguments.add_argument("--only", help="the methods with this in their names")
    arguments.add_argument("--search", metavar="TIME", help="also search, for so long")
    arguments.add_argument("--record", help="write the figures to this name beside the script")
    arguments.add_argument("--folder", type=Path, default=Path("runs") / "transformers", help="for files")
    given = arguments.parse_args()
    sys.path.insert(0, str(ROOT / "examples" / given.example))
    example = importlib.import_module(given.example)
    torch.set_num_threads(1)
    model, data = example.model(), example.data()
    given.folder.mkdir(parents=True, exist_ok=True)
    rows = compare(model, data, METHODS[given.example], given.folder, given.only or "")
    if given.search:
        rows += searched(model, data, SEARCH[given.example], given.search, given.folder / given.example)
    record = {"example": given.example, "machine": machine(), "rows": rows}
    print(table(record))
    if given.record:
        target = Path(__file__).parent / given.record
        target.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
        target.with_suffix(".txt").write_text(table(record) + "\n")


def compare(
    model: nn.Module, data: paretopress.Data, methods: Mapping[str, Build], folder: Path, only: str
) -> list[dict[str, Any]]:
    """Rows of the dense network, of onnxruntime's quantiser and of the methods."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared = prepare(data)
    dense = folder / "dense.onnx"
    whole = paretopress.apply(model, data, DENSE, refit=False)
    whole.export_onnx(dense)
    rows = [measured("dense", dense, dense, prepared, whole.size_bytes, 0.0)]
    begin = time.perf_counter()
    quantize_dynamic(dense, folder / "baseline.onnx", weight_type=QuantType.QInt8, per_channel=True)
    seconds = time.perf_counter() - begin
    rows.append(measured("onnxruntime quantize_dynamic", folder / "baseline.onnx", dense, prepared, None, seconds))
    for number, (name, build) in enumerate(methods.items()):
        if only not in name:
            continue
        begin = time.perf_counter()
        small = build(model, data)
        seconds = time.perf_counter() - begin
        path = small.export_onnx(folder / f"{number}.onnx")
        rows.append(measured(name, path, dense, prepared, small.size_bytes, seconds))
    return rows


def measured(
    name: str, path: Path, dense: Path, data: PreparedData, size: int | None, seconds: float
) -> dict[str, Any]:
    """Score on holdout, milliseconds beside the dense network's, and bytes."""
    opened, reference = session(path), session(dense)
    outputs = []
    for start in range(0, data.holdout.count, BATCH):
        batch = data.holdout.whole.rows(start, start + BATCH)
        outputs.append(run_session(opened, inputs_of(batch))[0])
    score = data.metrics[0](torch.cat(outputs), data.holdout.targets)
    timing = time_steadily(opened, reference, inputs_of(data.holdout.whole.rows(0, 1)), 100)
    row = {
        "name": name,
        "score": score,
        "ms": timing.median,
        "quartiles": list(timing.quartiles),
        "dense_ms": timing.baseline,
        "speedup": timing.baseline / timing.median,
        "onnx_bytes": path.stat().st_size,
        "size_bytes": size,
        "seconds": round(seconds, 1),
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def inputs_of(batch: Any) -> list[Tensor]:  # noqa: ANN401 - a Batch
    return [*batch.args, *batch.kwargs.values()]


def searched(
    model: nn.Module, data: paretopress.Data, settings: Mapping[str, Any], seconds: str, run: Path
) -> list[dict[str, Any]]:
    """Rows of the points that a search verified."""
    result = paretopress.compress(model, data=data, target="local", settings=dict(settings), time=seconds, run=run)
    print(result.front.table())
    return [
        {
            "name": f"search, #{point.id}{' ' + point.name if point.name else ''}",
            "score": point.measured["accuracy"],
            "ms": point.measured["latency_ms"],
            "speedup": point.measured["speedup"],
            "feasible": point.feasible,
            "dense_ms": point.measured["latency_ms_baseline"],
            "onnx_bytes": point.measured["onnx_bytes"],
            "size_bytes": point.measured["size_bytes"],
            "on_front": point.on_front,
        }
        for point in result.front.verified
    ]


def machine() -> dict[str, Any]:
    import os

    from paretopress.hardware_profiles.host import host_info

    return {
        "cpu": host_info().model,
        "load": round(os.getloadavg()[0], 1),
        "torch": str(torch.__version__),
        "onnxruntime": importlib.import_module("onnxruntime").__version__,
        "python": platform.python_version(),
    }


def table(record: Mapping[str, Any]) -> str:
    """The rows as text: score with its difference, times and bytes against the dense network."""
    dense = record["rows"][0]
    machine = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
    longest = 2 + max(len(row["name"]) for row in record["rows"])
    lines = [
        f"{record['example']}: {machine}; one thread, batch 1, 64 tokens",
        f"{'':{longest}}{'holdout':>9}{'change':>9}{'ms':>8}{'faster':>8}{'file':>8}{'tensors':>9}",
    ]
    for row in record["rows"]:
        tensors = f"{dense['size_bytes'] / row['size_bytes']:8.2f}x" if row["size_bytes"] else f"{'':>9}"
        lines.append(
            f"{row['name']:{longest}}{row['score']:9.4f}{row['score'] - dense['score']:+9.4f}{row['ms']:8.2f}"
            f"{row['speedup']:7.2f}x{dense['onnx_bytes'] / row['onnx_bytes']:7.2f}x{tensors}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
