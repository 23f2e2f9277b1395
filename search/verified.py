"""From finalists to the verified front: build, store, verify in a clean process, judge, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from paretopress.compressors.compressed_model import load
from paretopress.compressors.network import dense_network
from paretopress.compressors.realise import realise
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.data import Data, prepare
from paretopress.evaluators.timing import host_description
from paretopress.evaluators.verification import (
    ONNX,
    Task,
    Verified,
    add_onnx,
    measured_plain,
    output_digest,
    verify_artifacts,
)
from paretopress.search.clean_process import call_in_clean_process
from paretopress.search.finalists import Finalist, build, choose
from paretopress.search.judgement import Candidate, judge
from paretopress.search.problem import Problem
from paretopress.search.records import TrialRecord
from paretopress.search.run_files import write_front
from paretopress.spaces.documents import disk_error
from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE, Policy

if TYPE_CHECKING:
    from paretopress.search.session import Observer

REFIT_SAMPLES = 1024


def verify_finalists(
    problem: Problem,
    evaluator: CandidateEvaluator,
    path: Path,
    records: Sequence[TrialRecord],
    lowest: Mapping[str, float],
    observer: Observer,
) -> None:
    """Build, store and verify the finalists of a run, and write its front.

    Args:
        problem: The run's problem.
        evaluator: Scores networks on the search set.
        path: The run directory.
        records: Its trials.
        lowest: Best reachable predicted costs.
        observer: Hears about progress.

    Raises:
        DiskError: A file cannot be written.
        ArtifactError: The verifying process died.
    """
    named = {"dense": problem.policy({}), **problem.comparisons()}
    chosen = choose(records, problem.objectives, problem.settings.finalists, tuple(named.values()))
    wanted: list[tuple[str | None, Policy]] = [*named.items(), *((None, record.policy) for record in chosen)]
    models = path / "models"
    _make_folders(models, path / "policies")
    observer.stage("refit", len(wanted))
    finalists, tasks = [], []
    inputs = _refit_inputs(problem)
    for number, (name, policy) in enumerate(wanted):
        network, tier, stitched, stored = build(evaluator, policy, inputs, problem.settings.seed)
        if policy.is_dense:
            network = dense_network(problem.program, problem.plan(policy))
        compressed = realise(problem.model, problem.program, network)
        folder = models / str(number)
        compressed.save(folder, overwrite=True)
        policy.save(path / "policies" / f"{number}.yaml")
        if number == 0:
            add_onnx(compressed, folder)
        finalists.append(Finalist(number, policy, name, stitched, stored, tier))
        tasks.append(Task(str(folder), output_digest(compressed, problem.data.holdout)))
        observer.advance(1, name or f"#{number}")
    results = _verify(problem, tasks, models / "0" / ONNX, observer)
    candidates = [
        Candidate(finalist, problem.costs.predict(problem.plan(finalist.policy)),
                  problem.costs.interval(problem.plan(finalist.policy)), result)
        for finalist, result in zip(finalists, results, strict=True)
    ]
    verdict = judge(problem, candidates)
    write_front(path, problem, verdict, lowest, records)


def _refit_inputs(problem: Problem) -> tuple[Tensor, ...]:
    batch = problem.data.calibration.first(REFIT_SAMPLES).whole
    return tuple(problem.program.flatten_inputs(batch.args, batch.kwargs))


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise disk_error(folder, error) from None


def _verify(problem: Problem, tasks: Sequence[Task], baseline: Path, observer: Observer) -> list[Verified | str]:
    observer.stage("verify", len(tasks))
    timed = any(device.runs_here() for device in problem.costs.devices)
    arguments = (
        problem.model, list(tasks), str(baseline), problem.data.holdout, problem.data.metrics,
        problem.settings.timing_runs, timed,
    )
    results: list[Verified | str] = call_in_clean_process(
        verify_artifacts, arguments, on_report=lambda folder: observer.advance(1, f"#{Path(folder).name}")
    )
    return results


def verify_one(folder: Path, model: nn.Module, data: Data, observer: Observer, runs: int) -> dict[str, Any]:
    """Verify one stored artefact against the dense model, both measured here.

    Raises:
        ArtifactError: The artefact is damaged, belongs to another model, or fails a parity check.
    """
    import tempfile

    prepared = prepare(data)
    observer.stage("verify", 2)
    with tempfile.TemporaryDirectory(prefix="paretopress-") as temporary:
        dense_folder, copy = Path(temporary) / "dense", Path(temporary) / "artefact"
        compressed = load(folder, model)
        program = compressed.program
        dense = realise(model, program, dense_network(program, plan(program.structure, DENSE)))
        dense.save(dense_folder)
        add_onnx(dense, dense_folder)
        compressed.save(copy)
        add_onnx(compressed, copy)
        tasks = [Task(str(dense_folder), output_digest(dense, prepared.holdout)),
                 Task(str(copy), output_digest(compressed, prepared.holdout))]
        results: list[Verified | str] = call_in_clean_process(
            verify_artifacts,
            (model, tasks, str(dense_folder / ONNX), prepared.holdout, prepared.metrics, runs, True),
            on_report=lambda _: observer.advance(),
        )
    first, second = results
    if isinstance(first, str) or isinstance(second, str):
        raise ArtifactError(f"{folder}: {second if isinstance(second, str) else first}")
    measured = measured_plain(second)
    baseline = first.scores["accuracy"]
    return {
        "artefact": str(folder), "policy_hash": compressed.policy.hash, "parity_problem": second.parity.problem or None,
        "measured": {**measured, "accuracy_baseline": baseline, "accuracy_drop": baseline - second.scores["accuracy"],
                     "size_bytes_baseline": first.size_bytes, "host": host_description()},
    }
