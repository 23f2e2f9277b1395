"""A whole search: problem → calibration → table → seeds → exploration → finalists → verified front."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn

from paretopress.compressors.calibration import calibrate
from paretopress.compressors.entries import IMPORTANCES, Entries
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.data import Data
from paretopress.evaluators.sensitivity import SensitivityTable, measure_sensitivity
from paretopress.search.executors import Executor, SerialExecutor, torch_threads
from paretopress.search.exploration import ExplorationSettings, explore
from paretopress.search.ledger import Run, package_versions
from paretopress.search.problem import (
    Problem,
    SearchSettings,
    calibration_inputs,
    check_feasible,
    default_run_path,
    prepare_problem,
    reachable,
)
from paretopress.search.records import TrialRecord
from paretopress.search.seeds import exact_seeds
from paretopress.search.verified import verify_finalists
from paretopress.spaces.documents import read_document, write_json
from paretopress.spaces.errors import ConfigError, InterruptedSearch, unknown_name

if TYPE_CHECKING:
    from paretopress.compressors.entries import Importance

__all__ = ["Observer", "SearchSettings", "run_search"]

CALIBRATION_SAMPLES = 1024
TUNING_SAMPLES = 256
SEARCH_SAMPLES = 1000     # candidates and finalists are scored on the first of them
SEEDS = 40
EXPLORATION_SHARE = 0.5   # of the time that is left after the table: the rest builds and verifies finalists
SENSITIVITY = "sensitivity.json"
THREADS = 1               # results must not depend on how many cores happen to be there


class Observer(Protocol):
    """Hears how a run goes on."""

    def stage(self, name: str, total: int | None) -> None:
        """Begin a stage of `total` steps."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Finish `n` steps of the stage."""

    def message(self, text: str) -> None:
        """Show one line."""

    def warning(self, text: str) -> None:
        """Show one line that the user should read."""


class Silent:
    """An observer that shows nothing."""

    def stage(self, name: str, total: int | None) -> None:
        """Show nothing."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Show nothing."""

    def warning(self, text: str) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class Prepared:
    """A problem with its calibrated entries and its evaluator."""

    problem: Problem
    evaluator: CandidateEvaluator
    table: SensitivityTable


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
) -> Path:
    """Search, verify, and write a run directory. The same call continues an interrupted run.

    Args:
        model: The dense model; it is not changed.
        data: Calibration, search and holdout sets.
        settings: What to search for and how long.
        run_path: The run directory, by default `runs/NAME-FINGERPRINT`.
        fresh: Start anew, moving an earlier run's files aside.
        observer: Hears about progress; `should_stop()` of it, where it has one, ends the search early.
        model_name: Where the model came from, for the record.
        data_name: Where the data came from, for the record.

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
    for device in problem.costs.devices:
        warning = device.host_warning()
        if warning:
            watcher.warning(warning)
    path = run_path or default_run_path(problem)
    config = {"seed": settings.seed, "settings": settings.to_plain(), "model": model_name, "data": data_name}
    fingerprints = {**problem.fingerprints(), "versions": _versions()}
    with (
        Run.open(path, fingerprints, config, fresh=fresh) as run,
        torch_threads(THREADS),
        torch.random.fork_rng(devices=[]),
    ):
        prepared = prepare_search(problem, run.path, watcher)
        deadline = None if settings.seconds is None else started + settings.seconds
        records = _explore(prepared, run, watcher, deadline)
        left = None if deadline is None else deadline - time.monotonic()
        verify_finalists(prepared.problem, prepared.evaluator, run.path, records, lowest, watcher, left)
    _raise_if_stopped(watcher, path)
    return path


def _versions() -> str:
    return " ".join(f"{name}={version}" for name, version in sorted(package_versions().items()))


def _check_settings(settings: SearchSettings) -> None:
    if settings.importance not in IMPORTANCES:
        raise ConfigError(unknown_name("importance", settings.importance, IMPORTANCES))
    if settings.executor not in ("serial", "process", "ray"):
        raise ConfigError(unknown_name("executor", settings.executor, ("serial", "process", "ray")))
    if settings.seconds is None and settings.trials is None:
        raise ConfigError("a search needs a number of trials or a time")


def prepare_search(problem: Problem, path: Path, observer: Observer) -> Prepared:
    """Calibrate the model, score it, and measure (or read back) the sensitivity table."""
    torch.manual_seed(problem.settings.seed)
    batches = calibration_inputs(problem, CALIBRATION_SAMPLES)
    observer.stage("calibrate", len(batches))
    calibration = calibrate(
        problem.program, batches, tuning_samples=TUNING_SAMPLES, seed=problem.settings.seed,
        progress=lambda _done, _total: observer.advance(),
    )
    importance = cast("Importance", problem.settings.importance)   # `_check_settings` refuses others
    entries = Entries(problem.program, calibration, importance)
    samples = problem.data.search.first(SEARCH_SAMPLES)
    limits = problem.limits_without_accuracy()
    open_ended = CandidateEvaluator(
        entries, problem.costs, samples, problem.data.metrics, limits, problem.cost_objectives
    )
    evaluator = open_ended.ready(problem.limits)
    return Prepared(problem, evaluator, _table(problem, entries, path, observer))


def _table(problem: Problem, entries: Entries, path: Path, observer: Observer) -> SensitivityTable:
    stored = path / SENSITIVITY
    key = {**problem.fingerprints(), "versions": _versions()}
    if (losses := _stored_losses(stored, key, problem)) is not None:
        return SensitivityTable(losses)
    total = sum(len(options) - 1 for options in problem.space.options.values())
    observer.stage("sensitivity", total)
    table = measure_sensitivity(entries, problem.space, lambda _done, _total: observer.advance())
    plain = {"key": key, "losses": {unit: list(row) for unit, row in table.losses.items()},
             "options": table.to_plain(problem.space)}
    write_json(stored, plain)
    return table


def _stored_losses(path: Path, key: Mapping[str, str], problem: Problem) -> dict[str, tuple[float, ...]] | None:
    """The losses that an earlier start measured, None where there are none of exactly this problem.

    The file may outlive the run it was made for (`--fresh` starts anew in the same folder), and a table that
    cannot be read is measured again.
    """
    if not path.exists():
        return None
    try:
        plain = read_document(path)
    except ConfigError:
        return None
    if not isinstance(plain, dict) or plain.get("key") != key:
        return None
    losses = {unit: tuple(row) for unit, row in plain["losses"].items()}
    sizes = {unit: len(row) for unit, row in losses.items()}
    return losses if sizes == {unit: len(options) for unit, options in problem.space.options.items()} else None


def _explore(prepared: Prepared, run: Run, observer: Observer, deadline: float | None) -> list[TrialRecord]:
    problem, settings = prepared.problem, prepared.problem.settings
    seeds = exact_seeds(problem.program.structure, problem.space, prepared.table, problem.costs, SEEDS)
    first = seeds.policies[:1]
    policies = (*first, *problem.comparisons().values(), *seeds.policies[1:])
    seconds = None
    if deadline is not None:
        seconds = max(1.0, (deadline - time.monotonic()) * EXPLORATION_SHARE)
    exploration = ExplorationSettings(
        sampler=settings.sampler, trials=settings.trials, seconds=seconds, seed=settings.seed
    )
    observer.stage("explore", settings.trials)
    for _ in run.records():
        observer.advance()
    stop: Callable[[], bool] | None = getattr(observer, "should_stop", None)

    def on_record(record: TrialRecord) -> None:
        observer.advance(1, _note(record))

    if not problem.space.options:
        observer.warning("nothing in this model can be compressed on these devices; the front is the dense model")
    with _executor(prepared.evaluator, settings) as executor:
        return explore(
            problem.space.options, problem.objectives, policies, executor, run, exploration,
            prepared.evaluator.limits.names, on_record, stop,
        )


def _note(record: TrialRecord) -> str:
    accuracy = record.values.get("accuracy")
    return "" if accuracy is None else f"accuracy {accuracy:.4f}"


def _executor(evaluator: CandidateEvaluator, settings: SearchSettings) -> Executor:
    if settings.executor == "process":
        from paretopress.search.process_executor import ProcessExecutor

        return ProcessExecutor(evaluator, settings.workers)
    if settings.executor == "ray":
        from paretopress.search.ray_executor import RayExecutor

        address = None if settings.ray in (None, "local") else settings.ray
        return RayExecutor(evaluator, settings.workers, address)
    return SerialExecutor(evaluator)


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


def verify_artifact(
    folder: Path, model: nn.Module, data: Data, observer: Observer | None = None, timing_runs: int = 200
) -> dict[str, Any]:
    """Measure an exported artefact in a clean process: accuracy on holdout, bytes, parity, time."""
    from paretopress.search.verified import verify_one

    return verify_one(folder, model, data, observer or Silent(), timing_runs)
