"""A problem with its calibration and its sensitivity table: what a search of one's own needs before the first trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import nn

from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.data import Data
from paretopress.evaluators.evaluation import Evaluation
from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.search.executors import SerialExecutor
from paretopress.search.guidance import guide_of
from paretopress.search.option_space import OptionSpace
from paretopress.search.problem import Problem, SearchSettings, prepare_problem
from paretopress.search.reachability import check_feasible, reachable
from paretopress.search.seeds import exact_seeds
from paretopress.search.surrogate import Guide
from paretopress.search.table import measure_table
from paretopress.search.workload import Workload
from paretopress.spaces.policy import Policy

if TYPE_CHECKING:
    from paretopress.search.observer import Observer

SEEDS = 40


@dataclass(frozen=True)
class MeasuredProblem:
    """A problem that policies can be proposed for and evaluated on.

    Attributes:
        problem: Model, devices, space and budgets.
        evaluator: Evaluates policies.
        table: The loss of every single choice.
    """

    problem: Problem
    evaluator: CandidateEvaluator
    table: SensitivityTable

    @property
    def objectives(self) -> dict[str, str]:
        """Objective names and directions, `"max"` or `"min"`: the metric first."""
        return self.problem.objectives

    @cached_property
    def space(self) -> OptionSpace:
        """Every unit's choices."""
        problem = self.problem
        return OptionSpace.of(problem.space.options, model=problem.model_fingerprint, space=problem.space.fingerprint,
                              inside=problem.units_inside_branches())

    @cached_property
    def guide(self) -> Guide:
        """What proposals may know."""
        return guide_of(self.problem, self.table, (self.evaluator.held_to or self.evaluator.limits).accuracy)

    @cached_property
    def seeds(self) -> Sequence[Policy]:
        """The dense model, what people would try by hand, and a spread over the exact fronts of the table."""
        problem, limits = self.problem, self.problem.limits_without_accuracy().costs
        found = exact_seeds(problem.program.structure, problem.space, self.table, problem.costs, SEEDS, limits).policies
        return tuple(dict.fromkeys((*found[:1], *problem.comparisons().values(), *found[1:])))

    def evaluate(self, policy: Policy) -> Evaluation:
        """Price and score a policy. `Evaluation.state` says whether it was screened, and `reason` why."""
        return self.evaluator(policy)


def measured_problem(
    model: nn.Module, data: Data, settings: SearchSettings, observer: Observer | None = None
) -> MeasuredProblem:
    """Capture and calibrate a model and measure its sensitivity table.

    Args:
        model: The dense model; it is not changed.
        data: Calibration, search and holdout sets.
        settings: Targets, budgets, space, importance and seed; time and trials play no part.
        observer: Hears about progress.

    Raises:
        ParetopressError: One of `spaces.errors`, with a one-line message.
    """
    from paretopress.search.observer import Silent
    from paretopress.search.preparation import prepare_evaluator

    watcher: Observer = observer or Silent()
    watcher.stage("capture", None)
    problem = prepare_problem(model, data, settings)
    check_feasible(problem, reachable(problem))
    evaluator = prepare_evaluator(problem, watcher)
    watcher.stage("sensitivity", sum(len(options) - 1 for options in problem.space.options.values()))
    with SerialExecutor(Workload.of(problem, evaluator)) as executor:
        table, failures = measure_table(problem.space, executor, on_cell=watcher.advance)
    for failure in failures:
        watcher.warning(failure)
    return MeasuredProblem(problem, evaluator, table)
