"""A whole search: problem → calibration → table → seeds → exploration → finalists → verified front."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paretopress.compressors.entries import IMPORTANCES
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.construction import CALIBRATION_SAMPLES
from paretopress.evaluators.data import Data
from paretopress.evaluators.runtime_versions import device_notes
from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.search.anatomy import shown_policies, write_anatomy
from paretopress.search.events import tell_front, tell_started, tell_trial
from paretopress.search.executors import Executor, SerialExecutor, torch_threads
from paretopress.search.exploration import explore
from paretopress.search.guidance import guide_of
from paretopress.search.ledger import ANATOMY, Run, package_versions
from paretopress.search.live import ExplorationStatus, ExplorationWatch
from paretopress.search.observer import Observer, Silent
from paretopress.search.policy_library import write_units
from paretopress.search.preparation import prepare_evaluator
from paretopress.search.problem import Problem, SearchSettings, default_run_path, prepare_problem
from paretopress.search.process_executor import ProcessExecutor
from paretopress.search.proxy_tables import AUTO, CHECKED, DIVERGENCE, proxy_reports, proxy_table, trusted_table
from paretopress.search.reachability import check_feasible, reachable
from paretopress.search.records import TrialRecord
from paretopress.search.rivalry import Rivalry
from paretopress.search.samplers import ExplorationSettings
from paretopress.search.seeds import exact_seeds
from paretopress.search.shared_search import Coordination, Mirroring, Sharing, coordinated, exploring
from paretopress.search.table import SENSITIVITY, images_of, measure_table, read_table, write_table
from paretopress.search.verified import verify_finalists
from paretopress.search.warm_start import features_of, warm_table_and_seeds
from paretopress.search.width_patterns import finer_formats, scattered_widths
from paretopress.search.workload import Workload
from paretopress.spaces.errors import ConfigError, InterruptedSearch, unknown_name
from paretopress.spaces.policy import Policy

__all__ = ["SearchSettings", "run_search"]

SEEDS = 40
TABLE_SHARE = 0.25        # of the time: what is not measured by then is estimated
CHECK_SHARE = 0.1         # of the time that is left then: other proxies are measured where the first does badly
EXPLORATION_SHARE = 0.5   # of the time that is left after the table: the rest builds and verifies finalists
SHARE_WITH_DISTILLATION = 0.25   # the same where finalists are distilled, which gains more than more candidates do
DISTIL = ("auto", "train", "calibration", "off")
EXECUTORS = ("serial", "process", "ray", "tune")
OTHER_NODES = ("ray", "tune")
THREADS = 1               # results must not depend on how many cores happen to be there


def run_search(
    model: nn.Module,
    data: Data,
    settings: SearchSettings,
    run_path: Path | None = None,
    *,
    fresh: bool = False,
    observer: Observer | None = None,
    model_name: str = "",
    data_name: str = "",
    sharing: Sharing | None = None,
) -> Path:
    """Search, verify, and write a run directory. The same call continues an interrupted run.

    Args:
        model: The dense model; it is not changed.
        data: Calibration, search and holdout sets.
        settings: What to search for and how long.
        run_path: The run directory, by default `runs/NAME-FINGERPRINT`.
        fresh: Start anew, moving an earlier run's files aside.
        observer: Hears about progress; `should_stop()` of it, where it has one, ends the search early. Where it has
            them, `started(SearchStarted)`, `trial(TrialRecord)` for every new trial and `searched_front(SearchedFront)`
            where the front has changed, about once a second, are called too.
        model_name: Where the model came from, for the record.
        data_name: Where the data came from, for the record.
        sharing: The storage that other processes and hosts join the search in; None: this one searches alone.

    Returns:
        The run directory; `front.json` there is the result.

    Raises:
        ParetopressError: One of `spaces.errors`, with a one-line message and an exit code.
    """
    watcher: Observer = observer or Silent()
    started = time.monotonic()
    _check_settings(settings)
    watcher.stage("capture", None)
    problem = prepare_problem(model, data, settings)
    lowest = reachable(problem)
    check_feasible(problem, lowest)
    for note in device_notes(problem.costs.devices):
        watcher.warning(note)
    for device in problem.costs.devices:
        if device.anchors:
            watcher.message(f"{device.id}: {device.anchors}")
    path = run_path or default_run_path(problem)
    config = {"seed": settings.seed, "settings": settings.to_plain(), "model": model_name, "data": data_name}
    fingerprints = {**problem.fingerprints(), "versions": version_fingerprint()}
    deadline = None if settings.seconds is None else started + settings.seconds
    with (
        coordinated(sharing, path, fingerprints, problem.objectives, settings.to_plain(), watcher,
                    fresh=fresh) as together,
        Run.open(path, fingerprints, config, fresh=fresh) as run,
        torch_threads(THREADS),
        torch.random.fork_rng(devices=[]),
    ):
        tell_started(problem, run, watcher)
        evaluator = prepare_evaluator(problem, watcher)
        if sharing is not None or settings.executor == "tune":   # these hand out policies alone
            evaluator = replace(evaluator, dense_scores=None)
        with _executor(evaluator, problem, run.path, sharing) as executor:
            table, records, reports, images = _searched(problem, evaluator, executor, together, run, watcher, deadline)
            if settings.executor not in OTHER_NODES:
                shown = verify_finalists(problem, evaluator, executor, run.path, records, lowest, watcher, deadline,
                                         reports, images)
        if settings.executor in OTHER_NODES:   # they cannot write to the run directory
            with ProcessExecutor(Workload.of(problem, evaluator), _cores()) as builders:
                shown = verify_finalists(problem, evaluator, builders, run.path, records, lowest, watcher, deadline,
                                         reports, images)
        write_anatomy(run.path, problem, table, shown_policies(problem, shown, records))
    _raise_if_stopped(watcher, path)
    return path


def _searched(
    problem: Problem, evaluator: CandidateEvaluator, executor: Executor, together: Coordination | None, run: Run,
    observer: Observer, deadline: float | None,
) -> tuple[SensitivityTable, list[TrialRecord], list[dict[str, Any]], dict[str, int]]:
    """Measure the table, solve it, and explore: the table, all trials, reports on proxies, samples forwarded before."""
    if problem.library:
        table, seeds = _warm(problem, evaluator, executor, together, run, observer, deadline)
    else:
        table = _table(problem, evaluator, executor, run.path, observer, deadline)
        seeds = _seeds(problem, table)
    if not (run.path / ANATOMY).exists():
        write_anatomy(run.path, problem, table)
    images = {"calibration": problem.data.fitted.first(CALIBRATION_SAMPLES).count}
    if problem.settings.proxy in (AUTO, DIVERGENCE):
        images["table"] = images_of(table, problem.space, len(evaluator.entries.calibration.inputs[0]))
    write_units(run.path, problem.model_fingerprint, features_of(problem))
    with exploring(together, executor, run, problem, evaluator.constraints) as where:
        if problem.settings.proxy == AUTO:
            first = _explore(problem, evaluator, table, seeds, where, run, observer, deadline, CHECKED,
                             "first candidates")
            trusted = _trusted(problem, evaluator, table, first, run.path, observer, deadline)
            if trusted is not table:
                table, seeds = trusted, _seeds(problem, trusted)
        records = _explore(problem, evaluator, table, seeds, where, run, observer, deadline)
        finer = finer_formats(problem, records) if problem.settings.trials is None else []
        if finer:
            most = len(records) + len(finer)
            records = _explore(problem, evaluator, table, (*seeds, *finer), where, run, observer, deadline, most,
                               "finer formats")
    return table, records, proxy_reports(problem, table, records, run.path), images


def exploration_settings(settings: SearchSettings, seconds: float | None) -> ExplorationSettings:
    """How to explore. Raises `ConfigError` where settings do not go together."""
    return ExplorationSettings(
        settings.sampler, settings.trials, seconds, settings.seed, encoding=settings.encoding
    )


def version_fingerprint() -> str:
    """Packages and versions that results depend on, as one text."""
    return " ".join(f"{name}={version}" for name, version in sorted(package_versions().items()))


def _check_settings(settings: SearchSettings) -> None:
    if settings.importance not in IMPORTANCES:
        raise ConfigError(unknown_name("importance", settings.importance, IMPORTANCES))
    if settings.distil not in DISTIL:
        raise ConfigError(unknown_name("distil", settings.distil, DISTIL))
    if settings.executor not in EXECUTORS:
        raise ConfigError(unknown_name("executor", settings.executor, EXECUTORS))
    if settings.seconds is None and settings.trials is None:
        raise ConfigError("a search needs a number of trials or a time")
    exploration_settings(settings, settings.seconds)


def _table(
    problem: Problem, evaluator: CandidateEvaluator, executor: Executor, path: Path, observer: Observer,
    deadline: float | None,
) -> SensitivityTable:
    """Read the sensitivity table back, or measure as much of it as a share of the time allows."""
    stored = path / SENSITIVITY
    key = {**problem.fingerprints(), "versions": version_fingerprint()}
    if (table := read_table(stored, key, problem.space)) is not None:
        return table
    seconds = None if deadline is None else TABLE_SHARE * (deadline - time.monotonic())
    table = _measured_table(problem, evaluator, executor, observer, seconds)
    stop: Callable[[], bool] | None = getattr(observer, "should_stop", None)
    if stop is None or not stop():
        write_table(stored, key, table, problem.space)
    return table


def _warm(
    problem: Problem, evaluator: CandidateEvaluator, executor: Executor, together: Coordination | None, run: Run,
    observer: Observer, deadline: float | None,
) -> tuple[SensitivityTable, tuple[Policy, ...]]:
    """The table and the seeds of a search that starts from other models' runs, as its first trials judge both."""
    key = {**problem.fingerprints(), "versions": version_fingerprint()}

    def seconds_left() -> float | None:
        return None if deadline is None else TABLE_SHARE * (deadline - time.monotonic())

    def explore_some(guess: SensitivityTable, policies: Sequence[Policy], most: int) -> list[TrialRecord]:
        with exploring(together, executor, run, problem, evaluator.constraints) as where:
            return _explore(problem, evaluator, guess, policies, where, run, observer, deadline, most=most)

    return warm_table_and_seeds(problem, executor, run.path, key, observer, seconds_left, explore_some)


def _measured_table(
    problem: Problem, evaluator: CandidateEvaluator, executor: Executor, observer: Observer, seconds: float | None
) -> SensitivityTable:
    """Measure the sensitivity table, or as much of it as the seconds allow, and say what is missing."""
    cells = sum(len(options) - 1 for options in problem.space.options.values())
    observer.stage("sensitivity", cells)
    stop: Callable[[], bool] | None = getattr(observer, "should_stop", None)
    if problem.settings.proxy in (AUTO, DIVERGENCE):
        table, failures = measure_table(problem.space, executor, seconds, observer.advance, stop)
        for failure in failures:
            observer.warning(failure)
    else:
        table = proxy_table(problem, evaluator, problem.settings.proxy, observer, seconds)
    if table.estimated and not (stop is not None and stop()):
        observer.message(f"{len(table.estimated)} of {cells} losses are estimated from their neighbours: time was up")
    return table


def _trusted(
    problem: Problem, evaluator: CandidateEvaluator, table: SensitivityTable, records: Sequence[TrialRecord],
    path: Path, observer: Observer, deadline: float | None,
) -> SensitivityTable:
    """The table to go on with, once the first candidates are scored."""
    key = {**problem.fingerprints(), "versions": version_fingerprint()}
    seconds = None if deadline is None else CHECK_SHARE * (deadline - time.monotonic())
    return trusted_table(problem, evaluator, table, records, path, key, observer, seconds)


def _seeds(problem: Problem, table: SensitivityTable) -> tuple[Policy, ...]:
    """What an exploration begins with: the dense model, what people would try by hand, the exact front of the table."""
    limits = problem.limits_without_accuracy().costs
    found = exact_seeds(problem.program.structure, problem.space, table, problem.costs, SEEDS, limits).policies
    policies = (*found[:1], *problem.comparisons().values(), *found[1:])
    if problem.distillation_samples() is None:
        return policies
    return tuple(dict.fromkeys((*policies, *problem.even_widths(), *scattered_widths(problem))))


def _explore(
    problem: Problem,
    evaluator: CandidateEvaluator,
    table: SensitivityTable,
    policies: Sequence[Policy],
    where: tuple[Executor, Mirroring],
    run: Run,
    observer: Observer,
    deadline: float | None,
    most: int | None = None,
    stage: str = "explore",
) -> list[TrialRecord]:
    """Explore from some policies, or make only the first `most` trials of that."""
    settings, (executor, mirror) = problem.settings, where
    trials = settings.trials if most is None else min(most, settings.trials or most)
    seconds = None
    if deadline is not None:
        share = EXPLORATION_SHARE if problem.distillation_samples() is None else SHARE_WITH_DISTILLATION
        seconds = max(1.0, (deadline - time.monotonic()) * share)
    exploration = replace(exploration_settings(settings, seconds), trials=trials)
    observer.stage(stage, trials)
    watch = ExplorationWatch(problem.objectives, trials, seconds)
    for record in run.records():
        watch.add(record, earlier=True)
        observer.advance()
    stop: Callable[[], bool] | None = getattr(observer, "should_stop", None)
    show: Callable[[ExplorationStatus], None] | None = getattr(observer, "exploration", None)

    def on_record(record: TrialRecord) -> None:
        watch.add(record)
        mirror.catch_up(run.records())
        tell_trial(record, observer)
        if watch.due():
            if show is not None:
                show(watch.status())
            tell_front(watch, observer)
        observer.advance(1, _note(record))

    if not problem.space.options:
        observer.warning("nothing in this model can be compressed on these devices; the front is the dense model")
    guide = guide_of(problem, table, (evaluator.held_to or evaluator.limits).accuracy)
    rivalry = Rivalry(problem.objectives) if evaluator.dense_scores is not None else None
    records = explore(
        problem.space.options, problem.objectives, policies, executor, run, exploration,
        evaluator.constraints, on_record, stop, problem.units_inside_branches(), guide, rivalry,
    )
    tell_front(watch, observer)
    return records


def _note(record: TrialRecord) -> str:
    accuracy = record.values.get("accuracy")
    return "" if accuracy is None else f"accuracy {accuracy:.4f}"


def _executor(
    evaluator: CandidateEvaluator, problem: Problem, path: Path | None = None, sharing: Sharing | None = None
) -> Executor:
    settings, workload = problem.settings, Workload.of(problem, evaluator)
    address = None if settings.ray in (None, "local") else settings.ray
    if sharing is not None and settings.executor not in OTHER_NODES:
        return sharing.processes(workload, settings.workers)
    if settings.executor == "process":
        return ProcessExecutor(workload, settings.workers)
    if settings.executor == "ray":
        from paretopress.search.ray_executor import RayExecutor

        return RayExecutor(workload, settings.workers, address, resources=settings.resources)
    if settings.executor == "tune":
        from paretopress.search.tune_executor import TuneExecutor

        storage = settings.storage_path or (None if path is None else path.resolve() / "tune")
        return TuneExecutor(
            workload, settings.workers, address, settings.resources, storage, settings.scheduler,
            settings.tune_callbacks,
        )
    return SerialExecutor(workload)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _raise_if_stopped(observer: Observer, path: Path) -> None:
    stop = getattr(observer, "should_stop", None)
    if stop is not None and stop():
        code = getattr(observer, "exit_code", 130)
        raise InterruptedSearch(f"stopped; the front so far is in {path}, the same command continues", code)


def inspect_model(
    model: nn.Module, data: Data, settings: SearchSettings, observer: Observer | None = None
) -> dict[str, Any]:
    """Return layers, groups, options and reachable costs of a model, without searching."""
    from paretopress.search.inspection import inspection

    (observer or Silent()).stage("capture", None)
    return inspection(prepare_problem(model, data, settings))


def measure_sensitivity(
    model: nn.Module,
    data: Data,
    settings: SearchSettings,
    seconds: float | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Return what every choice of a model alone does to its outputs, without searching: see `docs/guide.md`.

    Args:
        model: The dense model; it is not changed.
        data: Calibration, search and holdout sets; losses are taken on calibration samples.
        settings: Targets, space, importance, seed and workers; budgets and time play no part.
        seconds: When to stop measuring; the rest is estimated. None: everything is measured.
        observer: Hears about progress; `should_stop()` of it, where it has one, gives up.

    Raises:
        ParetopressError: One of `spaces.errors`; `InterruptedSearch` where the observer wanted to stop.
    """
    from paretopress.evaluators.curves import LOSS, sensitivity_curves

    watcher: Observer = observer or Silent()
    _check_settings(settings)
    watcher.stage("capture", None)
    problem = prepare_problem(model, data, settings)
    with torch_threads(THREADS), torch.random.fork_rng(devices=[]):
        evaluator = prepare_evaluator(problem, watcher)
        with _executor(evaluator, problem) as executor:
            table = _measured_table(problem, evaluator, executor, watcher, seconds)
    stop = getattr(watcher, "should_stop", None)
    if stop is not None and stop():
        raise InterruptedSearch("stopped; nothing is stored", getattr(watcher, "exit_code", 130))
    curves = sensitivity_curves(problem.program.structure, problem.space, table)
    return {
        "schema": 1,
        "loss": LOSS,
        "samples": len(evaluator.entries.calibration.inputs[0]),
        "importance": settings.importance,
        "seed": settings.seed,
        "targets": [device.id for device in problem.costs.devices],
        "curves": [curve.to_plain() for curve in curves],
    }


def verify_artifact(
    folder: Path, model: nn.Module, data: Data, observer: Observer | None = None, timing_runs: int = 200
) -> dict[str, Any]:
    """Measure an exported artefact in a clean process: accuracy on holdout, bytes, parity, time."""
    from paretopress.search.verified import verify_one

    return verify_one(folder, model, data, observer or Silent(), timing_runs)
