"""Verification of stored artefacts: reload, re-score, export, compare, time. Runs in a clean process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paretopress.compressors.compressed_model import CompressedModel, load, network_of
from paretopress.compressors.delta import LayerEdit
from paretopress.compressors.export_onnx import export_onnx, run_session, session
from paretopress.compressors.exports import FLOAT_TOLERANCE, INTEGER_AGREEMENT, agreeing
from paretopress.compressors.program import Program
from paretopress.evaluators.batches import Batches
from paretopress.evaluators.metrics import Metric, concatenate_outputs, right_first, score, top1
from paretopress.evaluators.timing import Timing, time_steadily
from paretopress.spaces.errors import DiskError, StorageError
from paretopress.spaces.layer_formats import own_input

ONNX = "model.onnx"
PARITY_SAMPLES = 64
SCORE_TOLERANCE = 0.005  # of the metric: two ways to round leave 0.0007 on MiniLM; integers that saturate took 0.009
BOOTSTRAP = 2000


@dataclass(frozen=True)
class Parity:
    """How well the stored forms of a model agree.

    Attributes:
        reloaded_equal: Whether the reloaded model's outputs equal the in-memory model's bit for bit;
            None where there was no in-memory model to compare with.
        onnx_difference: Largest absolute output difference between ONNX Runtime and PyTorch over the
            largest absolute PyTorch output.
        onnx_agreement: Fraction of holdout samples on which both put the same output first; where the metric does not
            count first guesses, also of those whose outputs differ by less than 2% of their length.
        integer: Whether activations are rounded on the way, where agreement is the criterion: a sum of floats that
            differs in its last bit may end a step apart.
        score_difference: How far the first metric of both is apart, over the larger one; None where the metric counts
            first guesses. Embeddings and values have no first output, and many rounded layers carry one step on to
            all outputs, so that agreement of the scores is enough there.
    """

    reloaded_equal: bool | None
    onnx_difference: float
    onnx_agreement: float
    integer: bool
    score_difference: float | None = None

    @property
    def problem(self) -> str:
        """What is out of tolerance, `""` where nothing is."""
        if self.reloaded_equal is False:
            return "the reloaded model does not equal the one in memory"
        if self.integer and self.onnx_agreement < INTEGER_AGREEMENT:
            return self._disagreement()
        if not self.integer and self.onnx_difference > FLOAT_TOLERANCE:
            return f"ONNX outputs differ by {self.onnx_difference:.2g}, above {FLOAT_TOLERANCE:g}"
        return ""

    def _disagreement(self) -> str:
        agreed = f"ONNX agrees on {self.onnx_agreement:.1%} of the samples, below {INTEGER_AGREEMENT:.0%}"
        if self.score_difference is None:
            return agreed
        if self.score_difference <= SCORE_TOLERANCE:
            return ""
        return f"{agreed}, and its score differs by {self.score_difference:.1%}, above {SCORE_TOLERANCE:.1%}"


@dataclass(frozen=True)
class Verified:
    """Measured values of one artefact.

    Attributes:
        scores: Every metric on the holdout set.
        size_bytes: Tensor payload.
        disk_bytes: All files of the artefact without the ONNX file.
        onnx_bytes: The ONNX file.
        parity: Agreement of its forms.
        timing: Alternated times, None where the artefact was not timed.
        correct: Per holdout sample whether the first guess is right, for paired intervals; empty where the
            first metric is not `top1`, or there is more than one guess per sample.
    """

    scores: Mapping[str, float]
    size_bytes: int
    disk_bytes: int
    onnx_bytes: int
    parity: Parity
    timing: Timing | None
    correct: tuple[bool, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Task:
    """One artefact to verify.

    Attributes:
        folder: Where it is stored; the ONNX file is added to it.
        expected: Digest of the in-memory model's outputs on the first holdout samples, `""` where unknown.
    """

    folder: str
    expected: str = ""


def verify_artifacts(
    report: Callable[[str], None],
    model: nn.Module,
    tasks: Sequence[Task],
    baseline: str,
    holdout: Batches,
    metrics: Sequence[Metric],
    runs: int,
    timed: bool,
    seconds: float | None = None,
    fewest: int = 0,
) -> list[Verified | str]:
    """Verify artefacts one after the other, until the time is over.

    Args:
        report: Called with each folder when it is done.
        model: The dense model, for the user's class.
        tasks: Artefacts.
        baseline: ONNX file of the dense model that times are paired with.
        holdout: Samples the search never saw.
        metrics: Metrics to score.
        runs: Counted runs of each timing.
        timed: Whether to time at all (the target's runtime is this machine's).
        seconds: After which no other artefact is begun; None for no limit.
        fewest: Artefacts that are verified however long it takes.

    Returns:
        Per task that there was time for the measured values, or one line that says what failed.

    Raises:
        DiskError: The ONNX file of an artefact cannot be written.
    """
    reference = session(Path(baseline)) if timed else None
    results: list[Verified | str] = []
    program: Program | None = None   # the dense model's capture, the same for all artefacts of a run
    start = time.monotonic()
    for task in tasks:
        if seconds is not None and len(results) >= fewest and time.monotonic() - start >= seconds:
            break
        try:
            compressed = load(task.folder, model, program).eval()
            program = compressed.program
            results.append(_verify(compressed, task, reference, holdout, metrics, runs))
        except (DiskError, StorageError):   # of this machine, not of the artefact
            raise
        except Exception as error:  # noqa: BLE001 - one failing artefact must not lose the others
            results.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        report(task.folder)
    return results


def time_artifacts(
    report: Callable[[str], None], folders: Sequence[str], baseline: str, inputs: Sequence[Tensor], runs: int
) -> list[Timing | str]:
    """Time the ONNX files of artefacts one after the other, each in turn with the dense model.

    Args:
        report: Called with each folder when it is done.
        folders: Artefacts with their ONNX files.
        baseline: ONNX file of the dense model.
        inputs: One tensor per model input, batch 1 where the batch is dynamic.
        runs: Counted runs of each.

    Returns:
        Per folder the times, or one line that says what failed.
    """
    reference = session(Path(baseline))
    results: list[Timing | str] = []
    for folder in folders:
        try:
            results.append(time_steadily(session(Path(folder) / ONNX), reference, inputs, runs))
        except Exception as error:  # noqa: BLE001 - one failing artefact must not lose the others
            results.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        report(folder)
    return results


def _verify(
    compressed: CompressedModel,
    task: Task,
    reference: Any,  # noqa: ANN401
    holdout: Batches,
    metrics: Sequence[Metric],
    runs: int,
) -> Verified:
    folder = Path(task.folder)
    digest = output_digest(compressed, holdout)
    if not (folder / ONNX).exists():
        add_onnx(compressed, folder)
    opened = session(folder / ONNX)
    outputs, from_onnx = _outputs(compressed, opened, holdout, metrics[0])
    sizes = [path.stat().st_size for path in folder.iterdir() if path.name != ONNX]
    timing = None
    if reference is not None:
        count = 1 if compressed.program.graph.dynamic_batch else compressed.program.graph.batch
        single = _flat_inputs(compressed, holdout, count)
        timing = time_steadily(opened, reference, single, runs)
    return Verified(
        score(metrics, outputs, holdout.targets), compressed.size_bytes, sum(sizes), (folder / ONNX).stat().st_size,
        Parity(None if not task.expected else digest == task.expected, from_onnx.difference, from_onnx.agreement,
               _rounds(compressed), from_onnx.score_difference),
        timing, _correct(metrics[0], outputs, holdout.targets),
    )


def _rounds(compressed: CompressedModel) -> bool:
    """Whether tensors are rounded between layers, or by what a layer does to its own input."""
    edits = compressed.delta.edits
    return bool(compressed.delta.ranges) or any(isinstance(one, LayerEdit) and own_input(one.form) for one in edits)


def _correct(metric: Metric, outputs: Any, targets: Tensor) -> tuple[bool, ...]:  # noqa: ANN401
    """Which samples are right, empty where that is not what the metric counts."""
    if metric.function is not top1 or targets.ndim != 1:
        return ()
    return tuple(right_first(outputs, targets).tolist())


def add_onnx(compressed: CompressedModel, folder: Path) -> None:
    """Export a model and store the file with its artefact, covered by the manifest."""
    network = network_of(compressed)
    compressed.save(
        folder, overwrite=True, extra={ONNX: lambda path: export_onnx(compressed.program, network, path)}
    )


def _flat_inputs(compressed: CompressedModel, samples: Batches, count: int) -> list[Tensor]:
    batch = samples.first(count)[0]
    return compressed.program.flatten_inputs(batch.args, batch.kwargs)


def output_digest(model: nn.Module, samples: Batches) -> str:
    """Return a digest of a model's outputs on the first samples, bit for bit, on one thread."""
    import hashlib

    from torch.utils import _pytree as pytree

    batch = samples.first(min(PARITY_SAMPLES, samples.batch_size))[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            outputs = model(*batch.args, **batch.kwargs)
    finally:
        torch.set_num_threads(threads)
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            digest.update(leaf.contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Compared:
    """What ONNX Runtime returned, beside PyTorch. Attributes as of `Parity`."""

    difference: float
    agreement: float
    score_difference: float | None


def _outputs(
    compressed: CompressedModel, opened: Any, samples: Batches, metric: Metric  # noqa: ANN401
) -> tuple[Any, _Compared]:
    """All PyTorch outputs, and how ONNX Runtime's compare."""
    from torch.utils import _pytree as pytree

    guesses = metric.function is top1
    collected: list[Any] = []
    others: list[Any] = []
    difference, largest, same = 0.0, 0.0, 0
    for batch in samples:
        with torch.inference_mode():
            outputs = compressed(*batch.args, **batch.kwargs)
        collected.append(outputs)
        leaves, structure = pytree.tree_flatten(outputs)
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]     # others are None
        run = _run_onnx(compressed, opened, compressed.program.flatten_inputs(batch.args, batch.kwargs))
        found = dict(zip(places, run, strict=True))
        for place, other in found.items():
            difference = max(difference, _largest_difference(leaves[place], other))
            largest = max(largest, float(leaves[place].abs().max()))
        same += int(agreeing(leaves[places[0]], found[places[0]], guesses=guesses).sum())
        if not guesses:
            others.append(pytree.tree_unflatten([found.get(place) for place in range(len(leaves))], structure))
    outputs, agreement = concatenate_outputs(collected), same / samples.count
    apart = None
    if not guesses:
        own, run_score = metric(outputs, samples.targets), metric(concatenate_outputs(others), samples.targets)
        apart = abs(own - run_score) / max(abs(own), abs(run_score), 1e-12)
    return outputs, _Compared(difference / max(largest, 1e-12), agreement, apart)


def _largest_difference(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference; equal infinities do not differ, a NaN on one side only does infinitely."""
    same = (one == other) | (one.isnan() & other.isnan())
    return float(torch.where(same, 0.0, (one - other).abs()).nan_to_num(nan=float("inf")).max())


def _run_onnx(compressed: CompressedModel, opened: Any, inputs: Sequence[Tensor]) -> list[Tensor]:  # noqa: ANN401
    graph = compressed.program.graph
    if graph.dynamic_batch:
        return run_session(opened, inputs)
    pieces = []
    for start in range(0, len(inputs[0]), graph.batch):
        rows = [tensor[start : start + graph.batch] for tensor in inputs]
        missing = graph.batch - len(rows[0])
        rows = [torch.cat([row, row[-1:].expand(missing, *row.shape[1:])]) if missing else row for row in rows]
        pieces.append(run_session(opened, rows))
    return [torch.cat(column)[: len(inputs[0])] for column in zip(*pieces, strict=True)]


def drop_interval(dense: Sequence[bool], candidate: Sequence[bool], seed: int = 0) -> tuple[float, float] | None:
    """Return the 95% interval of `accuracy(dense) - accuracy(candidate)` by a paired bootstrap.

    Args:
        dense: Per sample whether the dense model is right.
        candidate: The same for the candidate.
        seed: Seed of the resampling.
    """
    if not dense or len(dense) != len(candidate):
        return None
    difference = np.asarray(dense, dtype=np.int8) - np.asarray(candidate, dtype=np.int8)
    generator = np.random.default_rng(seed)
    means = difference[generator.integers(0, len(difference), (BOOTSTRAP, len(difference)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def measured_plain(verified: Verified) -> dict[str, Any]:
    """Return measured values as plain data under the names of the JSON contract."""
    timing = verified.timing
    plain: dict[str, Any] = {
        **verified.scores,
        "size_bytes": verified.size_bytes,
        "disk_bytes": verified.disk_bytes,
        "onnx_bytes": verified.onnx_bytes,
        "latency_ms": timing.median if timing else None,
        "latency_ms_iqr": list(timing.quartiles) if timing else None,
        "latency_ms_baseline": timing.baseline if timing else None,
        "latency_ms_baseline_iqr": list(timing.baseline_quartiles) if timing else None,
        "slowdown": timing.slowdown if timing else None,
        "speedup": timing.baseline / timing.median if timing else None,
        "runs": timing.runs if timing else 0,
        "parity": asdict(verified.parity),
    }
    return plain

