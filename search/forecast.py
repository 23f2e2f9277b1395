"""What a search would do and roughly how long it would take, without searching: `search --dry-run`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from paretopress.compressors.program import dense_value
from paretopress.evaluators.construction import CALIBRATION_SAMPLES, REFIT_SAMPLES, TUNING_SAMPLES
from paretopress.evaluators.data import Data
from paretopress.evaluators.runtime_versions import device_notes
from paretopress.search.building import BUILDS_PER_FINALIST
from paretopress.search.executors import torch_threads
from paretopress.search.inspection import feasibility
from paretopress.search.ledger import DOCUMENT, package_versions, read_run
from paretopress.search.preparation import SEARCH_SAMPLES
from paretopress.search.problem import Problem, SearchSettings, default_run_path, prepare_problem
from paretopress.search.session import THREADS
from paretopress.search.verified import verification_seconds

if TYPE_CHECKING:
    from paretopress.search.observer import Observer

SCHEMA = 1
TIMED_SAMPLES = 128
TIMED_PASSES = 3
# What one sample costs in the parts of a search, in forward passes of the dense model, and what each step costs beside
# that, in seconds: as the digits network took them on one core. Rough by nature.
CALIBRATION_PASSES = 4.0
SUBSTITUTION_PASSES, SUBSTITUTION_SECONDS = 0.6, 0.004
TRIAL_PASSES, TRIAL_SECONDS = 1.6, 0.015
BUILD_PASSES, BUILD_SECONDS = 8.0, 0.2
DISTILLATION_PASSES = 5.0   # of one sample in one step: forward twice, backward


def forecast(
    model: nn.Module, data: Data, settings: SearchSettings, run: Path | None, observer: Observer
) -> dict[str, Any]:
    """Capture a model, price its space, and say what a search would do; nothing is written.

    Args:
        model: The dense model; it is not changed.
        data: Its data.
        settings: What would be searched for.
        run: The run directory, None for the default.
        observer: Hears about progress.

    Returns:
        The JSON of `search --dry-run`: see `docs/json.md`. Times are in seconds, costs as in `inspect`.

    Raises:
        ParetopressError: As a search before it begins, but not where budgets are out of reach.
    """
    observer.stage("capture", None)
    problem = prepare_problem(model, data, settings)
    path = run or default_run_path(problem)
    per_sample = dense_sample_seconds(problem)
    parts = _parts(problem, per_sample)
    needed = sum(parts.values())
    return {
        "schema": SCHEMA,
        "run": str(path),
        "state": _state(problem, path),
        "targets": [{"id": d.id, "tier": d.tier, "runs_here": d.runs_here()} for d in problem.costs.devices],
        "executor": settings.executor,
        "workers": settings.workers,
        "layers": len(problem.program.structure.layers),
        "groups": len(problem.program.structure.coupling.groups),
        "units": len(problem.space.options),
        "choices": sum(len(options) - 1 for options in problem.space.options.values()),
        "space_log10": problem.space.log10_size,
        "objectives": feasibility(problem),
        "max_drop": next((budget.text for budget in settings.budgets if not budget.on_cost), None),
        "samples": _samples(problem),
        "finalists": settings.finalists,
        "distilled": problem.distillation_samples() is not None,
        "trials": settings.trials,
        "time_limit": settings.seconds,
        "seconds_per_sample": per_sample,
        "estimated_parts": parts,
        "estimated_seconds": needed if settings.seconds is None else settings.seconds,
        "notes": [*problem.program.graph.notes, *device_notes(problem.costs.devices)],
    }


def dense_sample_seconds(problem: Problem) -> float:
    """Seconds of one sample through the captured dense model on one thread: the best of three passes."""
    batch = problem.data.scored.first(TIMED_SAMPLES)[0]
    program, seconds = problem.program, []
    rows = batch.count if program.graph.dynamic_batch else program.graph.batch
    inputs = [tensor[:rows] for tensor in program.flatten_inputs(batch.args, batch.kwargs)]
    with torch_threads(THREADS), torch.inference_mode():
        for _ in range(TIMED_PASSES):
            start = time.perf_counter()
            program.run(inputs, lambda node, known: dense_value(program, node, known))
            seconds.append(time.perf_counter() - start)
    return min(seconds) / max(1, len(inputs[0]))


def _parts(problem: Problem, per_sample: float) -> dict[str, float]:
    """Seconds that each part would take without a limit of time; a search with one cuts them."""
    settings = problem.settings
    parallel = max(1, min(settings.workers, len(os.sched_getaffinity(0)))) if settings.executor != "ray" else (
        settings.workers)
    cells = sum(len(options) - 1 for options in problem.space.options.values())
    samples = problem.data.scored.first(SEARCH_SAMPLES).count
    fitted = problem.data.fitted.count
    each = 1 if problem.distillation_samples() is not None else BUILDS_PER_FINALIST
    builds = settings.finalists * each + len(problem.comparisons())
    distilling = 0.0
    if problem.distillation_samples() is not None:
        distilling = settings.distillation.steps * settings.distillation.batch_size * DISTILLATION_PASSES * per_sample
    parts = {
        "calibrate": CALIBRATION_PASSES * min(fitted, CALIBRATION_SAMPLES) * per_sample,
        "sensitivity": cells / parallel * (
            SUBSTITUTION_PASSES * min(fitted, TUNING_SAMPLES) * per_sample + SUBSTITUTION_SECONDS),
        "build": builds / parallel * (
            BUILD_PASSES * min(fitted, REFIT_SAMPLES) * per_sample + BUILD_SECONDS + distilling),
        "verify": verification_seconds(problem, per_sample, len(problem.comparisons()) + 1),
    }
    if settings.trials is not None:
        parts["explore"] = settings.trials / parallel * (TRIAL_PASSES * samples * per_sample + TRIAL_SECONDS)
    return parts


def _samples(problem: Problem) -> dict[str, int]:
    data = problem.data
    return {"fitted": data.fitted.count, "scored": data.scored.count, "holdout": data.holdout.count,
            "train": 0 if data.train is None else data.train.count}


def _state(problem: Problem, path: Path) -> dict[str, Any]:
    """Whether a run would start, continue, or be refused, and with how many trials."""
    if not (path / DOCUMENT).exists():
        return {"run": "new", "trials": 0, "differs": []}
    document, records = read_run(path)
    versions = " ".join(f"{name}={version}" for name, version in sorted(package_versions().items()))
    now = {**problem.fingerprints(), "versions": versions}
    before: Mapping[str, Any] = document["fingerprints"]
    differs = sorted(name for name in {*before, *now} if str(before.get(name)) != str(now.get(name)))
    finished = (path / "front.json").exists()
    state = "refused" if differs else "finished" if finished else "interrupted"
    return {"run": state, "trials": len(records), "differs": differs}
