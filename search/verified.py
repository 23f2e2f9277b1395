"""From finalists to the verified front: build, store, verify in a clean process, judge, write."""

from __future__ import annotations

import os
import shutil
import statistics
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from paretopress.compressors.compressed_model import load
from paretopress.compressors.network import dense_network
from paretopress.compressors.realise import realise
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.data import Data, prepare
from paretopress.evaluators.timing import Timing, host_description
from paretopress.evaluators.verification import (
    ONNX,
    Task,
    Verified,
    add_onnx,
    measured_plain,
    output_digest,
    time_artifacts,
    verify_artifacts,
)
from paretopress.search.clean_process import call_in_clean_process
from paretopress.search.finalists import Finalist, build, choose
from paretopress.search.judgement import Candidate, judge
from paretopress.search.problem import Problem
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.run_files import write_front
from paretopress.spaces.documents import disk_error, read_document
from paretopress.spaces.errors import ArtifactError, ConfigError, DiskError, StorageError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE, Policy

if TYPE_CHECKING:
    from paretopress.search.session import Observer

REFIT_SAMPLES = 512
REFIT_EVALUATIONS = 8.0    # a refit with its scoring takes about as long as this many evaluations
CHECK_SECONDS = 1.0        # reloading, exporting and timing one artefact, at the least
FEWEST = 8                 # finalists that are verified however short the time


def verify_finalists(
    problem: Problem,
    evaluator: CandidateEvaluator,
    path: Path,
    records: Sequence[TrialRecord],
    lowest: Mapping[str, float],
    observer: Observer,
    seconds: float | None = None,
) -> None:
    """Build, store and verify the finalists of a run, and write its front.

    Args:
        problem: The run's problem.
        evaluator: Scores networks on the search set.
        path: The run directory.
        records: Its trials.
        lowest: Best reachable predicted costs.
        observer: Hears about progress.
        seconds: Time left, None for no limit: fewer finalists are picked where it is short.

    Raises:
        DiskError: A file cannot be written.
        ArtifactError: The verifying process died.
    """
    named = {"dense": problem.policy({}), **problem.comparisons()}
    count = finalists_in_time(records, problem.settings.finalists, seconds)
    samples = evaluator.samples.count
    chosen = choose(records, problem.objectives, evaluator.limits, count, tuple(named.values()), samples)
    wanted: list[tuple[str | None, Policy]] = [*named.items(), *((None, record.policy) for record in chosen)]
    _prepare_folders(path, [policy for _, policy in wanted])
    observer.stage("refit", len(wanted))
    inputs = _refit_inputs(problem)
    finalists: list[Finalist] = []
    stored: list[Task | str] = []
    for number, (name, policy) in enumerate(wanted):
        finalist, task = _store(problem, evaluator, path, Finalist(number, policy, name), inputs)
        finalists.append(finalist)
        stored.append(task)
        if isinstance(task, str):
            observer.warning(f"finalist {name or f'#{number}'} could not be built: {task}")
        observer.advance(1, name or f"#{number}")
    verified = iter(_verify(problem, [task for task in stored if isinstance(task, Task)],
                            path / "models" / "0" / ONNX, observer))
    candidates = [
        Candidate(finalist, problem.costs.predict(problem.plan(finalist.policy)),
                  problem.costs.interval(problem.plan(finalist.policy)),
                  next(verified) if isinstance(task, Task) else task)
        for finalist, task in zip(finalists, stored, strict=True)
    ]
    write_front(path, problem, judge(problem, candidates), lowest, records)


def finalists_in_time(records: Sequence[TrialRecord], wanted: int, seconds: float | None) -> int:
    """How many finalists can be built and verified in the time that is left, by the time evaluations took."""
    times = [record.seconds for record in records if record.state is TrialState.COMPLETE]
    if seconds is None or not times:
        return wanted
    each = REFIT_EVALUATIONS * statistics.median(times) + CHECK_SECONDS
    return min(wanted, max(FEWEST, int(seconds / each)))


def _store(
    problem: Problem, evaluator: CandidateEvaluator, path: Path, finalist: Finalist, inputs: Sequence[Tensor]
) -> tuple[Finalist, Task | str]:
    """Build and store a finalist; one that fails comes back with one line that says why."""
    policy, folder = finalist.policy, path / "models" / str(finalist.number)
    try:
        network, tier, stitched, score = build(evaluator, policy, inputs, problem.settings.seed)
        if policy.is_dense:
            network = dense_network(problem.program, problem.plan(policy))
        compressed = realise(problem.model, problem.program, network)
        compressed.save(folder, overwrite=True)
        policy.save(path / "policies" / f"{finalist.number}.yaml")
        if finalist.number == 0:
            add_onnx(compressed, folder)
        task = Task(str(folder), output_digest(compressed, problem.data.holdout))
    except (DiskError, StorageError):   # of this machine, not of the candidate
        raise
    except Exception as error:
        if finalist.number == 0:   # without the baseline there is nothing to compare with
            raise
        return finalist, f"{type(error).__name__}: {' '.join(str(error).split())}"
    return replace(finalist, stitched=stitched, refitted=score, tier=tier), task


def _refit_inputs(problem: Problem) -> tuple[Tensor, ...]:
    batch = problem.data.calibration.first(REFIT_SAMPLES).whole
    return tuple(problem.program.flatten_inputs(batch.args, batch.kwargs))


def _prepare_folders(path: Path, policies: Sequence[Policy]) -> None:
    """Make the folders of the finalists; drop what an earlier, other choice of finalists left in them.

    A front never stands beside models that are not its own: a run that was given more trials may be
    interrupted before its new front is written.
    """
    kept = {str(number) for number in range(len(policies))}
    try:
        if _policies_of_front(path / "front.json") != [policy.hash for policy in policies]:
            for name in ("front.json", "front.csv", "measured.csv", "finalists.csv"):
                (path / name).unlink(missing_ok=True)
        for folder in (path / "models", path / "policies"):
            folder.mkdir(exist_ok=True)
            for entry in folder.iterdir():
                if entry.is_dir() and entry.name not in kept:
                    shutil.rmtree(entry)
                elif not entry.is_dir() and entry.stem not in kept:
                    entry.unlink()
    except OSError as error:
        raise disk_error(path, error) from None


def _policies_of_front(path: Path) -> list[str] | None:
    """Policy hashes of a stored front in order, None where there is none that can be read."""
    if not path.exists():
        return None
    try:
        return [str(point["policy_hash"]) for point in read_document(path)["points"]]
    except (ConfigError, KeyError, TypeError):
        return None


def _verify(problem: Problem, tasks: Sequence[Task], baseline: Path, observer: Observer) -> list[Verified | str]:
    """Check artefacts in as many clean processes as there are cores, then time them one by one in another."""
    observer.stage("verify", len(tasks))
    processes = max(1, min(len(tasks), len(os.sched_getaffinity(0))))
    lock = threading.Lock()

    def on_report(folder: str) -> None:
        with lock:
            observer.advance(1, f"#{Path(folder).name}")

    def check(part: Sequence[Task]) -> list[Verified | str]:
        arguments = (problem.model, list(part), str(baseline), problem.data.holdout, problem.data.metrics, 0, False)
        found: list[Verified | str] = call_in_clean_process(verify_artifacts, arguments, on_report=on_report)
        return found

    with ThreadPoolExecutor(processes) as pool:
        parts = list(pool.map(check, [tasks[start::processes] for start in range(processes)]))
    results: list[Verified | str] = ["not verified"] * len(tasks)
    for start, part in enumerate(parts):
        results[start::processes] = part
    if any(device.runs_here() for device in problem.costs.devices):
        _time(problem, tasks, results, baseline, observer)
    return results


def _time(
    problem: Problem, tasks: Sequence[Task], results: list[Verified | str], baseline: Path, observer: Observer
) -> None:
    """Add times to the results. Nothing else of this run is at work meanwhile."""
    graph = problem.program.graph
    batch = problem.data.holdout.first(1 if graph.dynamic_batch else graph.batch)[0]
    inputs = problem.program.flatten_inputs(batch.args, batch.kwargs)
    sound = [index for index, result in enumerate(results) if isinstance(result, Verified)]
    observer.stage("time", len(sound))
    timings: list[Timing | str] = call_in_clean_process(
        time_artifacts,
        ([tasks[index].folder for index in sound], str(baseline), inputs, problem.settings.timing_runs),
        on_report=lambda folder: observer.advance(1, f"#{Path(folder).name}"),
    )
    for index, timing in zip(sound, timings, strict=True):
        result = results[index]
        if isinstance(result, Verified):
            results[index] = timing if isinstance(timing, str) else replace(result, timing=timing)


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
