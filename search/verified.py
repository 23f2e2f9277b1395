"""From finalists to the verified front: build, store, verify in a clean process, judge, write."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from paretopress.compressors.compressed_model import load
from paretopress.compressors.network import dense_network
from paretopress.compressors.realise import realise
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.data import Data, prepare
from paretopress.evaluators.primary_metric import PrimaryMetric
from paretopress.evaluators.timing import Timing, at_one_speed, host_description
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
from paretopress.search.building import BuildSettings, Workshop, build_finalists, drain
from paretopress.search.clean_process import call_in_clean_process
from paretopress.search.executors import Executor
from paretopress.search.finalists import Finalist
from paretopress.search.judgement import Candidate, judge
from paretopress.search.problem import Problem
from paretopress.search.records import TrialRecord
from paretopress.search.rehearsal import STEPS
from paretopress.search.run_files import write_front
from paretopress.search.trial_times import time_trials, timer_of, times_here
from paretopress.search.width_patterns import scattered_widths
from paretopress.spaces.documents import disk_error
from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import DENSE, Policy

if TYPE_CHECKING:
    from paretopress.search.observer import Observer

FEWEST = 8            # finalists that are built and verified however short the time,
OVERRUN = 0.25        # unless that takes longer by this share of the time that was given: `LEAST_BUILT` are enough then
BUILD_SHARE = 0.7     # at least, of the time that is left after the exploration: the rest verifies
# What a distillation should see at least: 100 steps of 64 samples, each some five forward passes of the dense model.
TRAINED_SAMPLES = 100 * 64 * 5
WORTH_REHEARSING = 4   # times as long as a rehearsal has the whole training to be
CLEAN_PROCESS_SECONDS = 10.0   # to start one and to import what it needs
VERIFYING_RESERVE = 1.3        # times what verification should take
SHORT_SECONDS = 1.0            # of passes that may be repeated: a disturbance counts for much in them
BUILDING = "building"


def verify_finalists(
    problem: Problem,
    evaluator: CandidateEvaluator,
    executor: Executor,
    path: Path,
    records: Sequence[TrialRecord],
    lowest: Mapping[str, float],
    observer: Observer,
    deadline: float | None = None,
    proxies: Sequence[Mapping[str, Any]] = (),
    images: Mapping[str, int] | None = None,
) -> list[Policy]:
    """Build, store and verify the finalists of a run, and write its front.

    Args:
        problem: The run's problem.
        evaluator: Scores networks on the search set.
        executor: Builds finalists, on a file system that is this one's, and is closed then.
        path: The run directory.
        records: Its trials.
        lowest: Best reachable predicted costs.
        observer: Hears about progress.
        deadline: Of `time.monotonic()`, None for no limit: fewer finalists are verified where it is near.
        proxies: Reports on the proxies, for the front.
        images: Samples that were forwarded before the first trial, by what for.

    Returns:
        The policies of the verified points.

    Raises:
        DiskError: A file cannot be written.
        ArtifactError: The baseline cannot be built, or the verifying process died.
    """
    named = {"dense": problem.policy({}), **problem.comparisons()}
    stop = getattr(observer, "should_stop", None)
    if stop is not None and stop():   # who interrupts a search waits for a few finalists, not for all
        deadline = time.monotonic()
    build_until, sample_seconds = None, 0.0
    if deadline is not None:
        sample_seconds = dense_seconds(evaluator)
        left = max(0.0, deadline - time.monotonic())
        verifying = verification_seconds(problem, sample_seconds, len(named))
        build_until = deadline - min((1.0 - BUILD_SHARE) * left, verifying)
    distilled = problem.distillation_samples() is not None
    settings = BuildSettings(
        problem.objectives, evaluator.limits, evaluator.samples.count, problem.settings.finalists, FEWEST,
        build_until, distilled, TRAINED_SAMPLES * sample_seconds,
        distilled and problem.settings.distillation.steps >= WORTH_REHEARSING * STEPS,
        None if deadline is None else deadline + OVERRUN * (problem.settings.seconds or 0.0),
        frozenset(policy.hash for policy in scattered_widths(problem)) if distilled else frozenset(),
    )
    workshop = Workshop(path / BUILDING, executor, observer)
    promised = _timed(problem, evaluator, executor, list(named.values()), records, settings, observer)
    others = build_finalists(workshop, list(named.values()), promised, settings)
    executor.close()   # the machine is quiet while times are measured
    wanted = list(named.items()) + [(None, policy) for policy in others]
    finalists = [_finalist(workshop, number, *pair) for number, pair in enumerate(wanted)]
    _place(path, workshop, finalists)
    tasks = {one.number: Task(str(path / "models" / str(one.number)), workshop.built[one.policy.hash].digest)
             for one in finalists if one.policy.hash in workshop.built}
    fewest = len(named) + FEWEST
    verified = dict(zip(tasks, _verify(problem, list(tasks.values()), path / "models" / "0" / ONNX, observer,
                                       deadline, fewest), strict=True))
    candidates = [
        Candidate(finalist, problem.costs.predict(problem.plan(finalist.policy)),
                  problem.costs.interval(problem.plan(finalist.policy)), result)
        for finalist in finalists
        if (result := verified.get(finalist.number, workshop.failed.get(finalist.policy.hash))) is not None
    ]
    _drop_unverified(path, candidates)
    write_front(path, problem, judge(problem, candidates), lowest, records, proxies, images)
    return [candidate.finalist.policy for candidate in candidates]


def _timed(
    problem: Problem, evaluator: CandidateEvaluator, executor: Executor, named: Sequence[Policy],
    records: Sequence[TrialRecord], settings: BuildSettings, observer: Observer,
) -> Sequence[TrialRecord]:
    """The trials with times as this machine shows them, where it is a target and there is a limit on the time."""
    names = times_here(problem.costs, problem.objectives)
    if settings.deadline is None or not settings.in_time() or not names:
        return records
    drain(executor)   # nothing else is at work meanwhile
    with torch.inference_mode():
        return time_trials(records, named, problem.objectives, evaluator.limits, names, timer_of(evaluator),
                           settings.deadline, observer, settings.samples)


def dense_seconds(evaluator: CandidateEvaluator) -> float:
    """Seconds that the dense model takes here for one sample: the best of three passes where these are short."""
    seconds: list[float] = []
    while len(seconds) < 3 and sum(seconds) < SHORT_SECONDS:
        start = time.perf_counter()
        evaluator.score(evaluator.entries.calibration.base)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / max(1, evaluator.samples.count)


def verification_seconds(problem: Problem, sample_seconds: float, named: int) -> float:
    """How long verifying all finalists may take at most.

    Each is scored on holdout by PyTorch, as it was stored and reloaded, and by ONNX Runtime, on as many processes as
    there are cores; then all are timed in turn with the dense model, one by one.

    Args:
        problem: The run's problem.
        sample_seconds: What the dense model takes for one sample.
        named: How many finalists there are besides the candidates.
    """
    count = named + problem.settings.finalists
    checked = count * (0.4 + 3.0 * sample_seconds * problem.data.holdout.count) / len(os.sched_getaffinity(0))
    timed = count * (0.2 + 2.5 * sample_seconds * problem.settings.timing_runs)
    return VERIFYING_RESERVE * (CLEAN_PROCESS_SECONDS + checked + timed)


def _finalist(workshop: Workshop, number: int, name: str | None, policy: Policy) -> Finalist:
    built = workshop.built.get(policy.hash)
    if built is None:
        return Finalist(number, policy, name)
    return Finalist(number, policy, name, built.stitched, built.refitted, built.tier)


def _place(path: Path, workshop: Workshop, finalists: Sequence[Finalist]) -> None:
    """Move what was built to the run's folders, under its number; everything else is dropped.

    A front never stands beside models that are not its own: a run that was given more trials may be
    interrupted before its new front is written.
    """
    try:
        for name in ("report.html", "front.json", "front.csv", "measured.csv", "finalists.csv"):
            (path / name).unlink(missing_ok=True)
        for name in ("models", "policies"):
            shutil.rmtree(path / name, ignore_errors=True)
            (path / name).mkdir(exist_ok=True)
        for finalist in finalists:
            if finalist.policy.hash in workshop.built:
                workshop.place(finalist.policy).rename(path / "models" / str(finalist.number))
                finalist.policy.save(path / "policies" / f"{finalist.number}.yaml")
        shutil.rmtree(workshop.folder)
    except OSError as error:
        raise disk_error(path, error) from None


def _drop_unverified(path: Path, candidates: Sequence[Candidate]) -> None:
    """Drop the artefacts that there was no time to verify: a run directory holds only what its front shows."""
    shown = {str(candidate.finalist.number) for candidate in candidates}
    try:
        for entry in (path / "models").iterdir():
            if entry.name not in shown:
                shutil.rmtree(entry)
                (path / "policies" / f"{entry.name}.yaml").unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(path, error) from None


def _verify(
    problem: Problem, tasks: Sequence[Task], baseline: Path, observer: Observer, deadline: float | None, fewest: int
) -> list[Verified | str | None]:
    """Check artefacts in as many clean processes as there are cores, then time them one by one in another.

    Returns:
        Per task what was measured, one line where that failed, None where there was no time for it.
    """
    observer.stage("verify", len(tasks))
    processes = max(1, min(len(tasks), len(os.sched_getaffinity(0))))
    lock = threading.Lock()

    def on_report(folder: str) -> None:
        with lock:
            observer.advance(1, f"#{Path(folder).name}")

    def check(part: Sequence[Task]) -> list[Verified | str]:
        seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
        arguments = (problem.model, list(part), str(baseline), problem.data.holdout, problem.data.metrics, 0, False,
                     seconds, -(-fewest // processes))
        found: list[Verified | str] = call_in_clean_process(verify_artifacts, arguments, on_report=on_report)
        return found

    with ThreadPoolExecutor(processes) as pool:
        parts = list(pool.map(check, [tasks[start::processes] for start in range(processes)]))
    results: list[Verified | str | None] = [None] * len(tasks)
    for start, part in enumerate(parts):
        for place, result in enumerate(part):
            results[start + place * processes] = result
    if any(device.runs_here() for device in problem.costs.devices):
        _time(problem, tasks, results, baseline, observer)
    return results


def _time(
    problem: Problem, tasks: Sequence[Task], results: list[Verified | str | None], baseline: Path, observer: Observer
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
    for index, timing in zip(sound, at_one_speed(timings), strict=True):
        result = results[index]
        if isinstance(result, Verified):
            results[index] = timing if isinstance(timing, str) else replace(result, timing=timing)


def verify_one(folder: Path, model: nn.Module, data: Data, observer: Observer, runs: int) -> dict[str, Any]:
    """Verify one stored artefact against the dense model, both measured here.

    Args:
        folder: The artefact.
        model: The dense model.
        data: Its holdout set and metrics are used.
        observer: Hears about progress.
        runs: Timed runs of each, 0 for no times.

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
            (model, tasks, str(dense_folder / ONNX), prepared.holdout, prepared.metrics, runs, runs > 0),
            on_report=lambda _: observer.advance(),
        )
    first, second = results
    if isinstance(first, str) or isinstance(second, str):
        raise ArtifactError(f"{folder}: {second if isinstance(second, str) else first}")
    measured = measured_plain(second)
    dense_score, found = first.scores["accuracy"], second.scores["accuracy"]
    metric = PrimaryMetric.of(prepared.metrics[0], (dense_score, found))
    return {
        "artefact": str(folder), "policy_hash": compressed.policy.hash, "parity_problem": second.parity.problem or None,
        "measured": {**measured, "accuracy_baseline": dense_score, "accuracy_drop": metric.drop(found, dense_score),
                     "size_bytes_baseline": first.size_bytes, "host": host_description()},
    }
