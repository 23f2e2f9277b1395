"""What is made once, before candidates are evaluated: the calibrated model, and the samples to score them on."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from paretopress.compressors.entries import Entries
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.construction import CALIBRATION_SAMPLES, calibrated
from paretopress.evaluators.subset_test import in_random_order
from paretopress.search.observer import Observer
from paretopress.search.problem import Problem

if TYPE_CHECKING:
    from paretopress.compressors.entries import Importance

SEARCH_SAMPLES = 1000     # candidates and finalists are scored on so many at most
SCORED_MACS = 5e10        # and on as many as take the dense model this many multiply-accumulates,
FEWEST_SAMPLES = 512      # but not on fewer than these


def calibrated_entries(problem: Problem, observer: Observer) -> Entries:
    """Calibrate the model; its compressed layers are made on demand."""
    torch.manual_seed(problem.settings.seed)
    fitted, importance = problem.data.fitted, cast("Importance", problem.settings.importance)
    observer.stage("calibrate", len(fitted.first(CALIBRATION_SAMPLES)))
    entries = calibrated(
        problem.program, fitted, importance, seed=problem.settings.seed, ranges=problem.settings.ranges,
        progress=lambda _done, _total: observer.advance(),
    )
    if importance == "hessian":   # once, for all workers
        observer.stage("curvature", None)
        entries.curvature()
    return entries


def prepare_evaluator(problem: Problem, observer: Observer) -> CandidateEvaluator:
    """Calibrate the model and score it."""
    entries = calibrated_entries(problem, observer)
    samples = problem.data.scored.first(SEARCH_SAMPLES)
    subsets = problem.settings.subsets and problem.data.metrics[0].is_mean
    if subsets:
        samples = in_random_order(samples, problem.settings.seed).first(affordable_samples(problem.baseline["macs"]))
    limits = problem.limits_without_accuracy()
    open_ended = CandidateEvaluator(
        entries, problem.costs, samples, problem.data.metrics, limits, problem.cost_objectives
    )
    distilled = problem.distillation_samples() is not None
    return open_ended.ready(problem.limits, distilled=distilled, subsets=subsets)


def affordable_samples(macs: float) -> int:
    """How many samples candidates are scored on at most: many candidates tell more than many samples of few.

    Args:
        macs: Multiply-accumulates of the dense model for one sample.
    """
    return max(FEWEST_SAMPLES, int(SCORED_MACS / max(macs, 1.0)))
