"""A sensitivity table that other models' tables shorten: predicted, corrected by a few measurements, or measured whole.

A few choices are measured at a time, those that the prediction is least sure of. Before each is entered, what was
predicted for it is compared with what it is: the measurements end when the predictions are good, and where they do not
become good, the whole table is measured, with nothing lost but the predictions. While candidates are evaluated a few
more are measured at a time (`Refinement`): those that the policies rest on which the table takes for the best. Such
policies are picked for low losses, so that predictions that are too low are found among their choices first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from paretopress.evaluators.sensitivity import Cell, SensitivityTable, integer_choices
from paretopress.evaluators.sensitivity_prior import SensitivityPrior
from paretopress.search.correlation import kendall
from paretopress.search.executors import Executor
from paretopress.search.table import TableRun, measure_cells, measure_table
from paretopress.spaces.choices import Weights
from paretopress.spaces.policy import Policy
from paretopress.spaces.recipe import Recipe
from paretopress.spaces.space import SearchSpace
from paretopress.spaces.unit_features import UnitFeatures

if TYPE_CHECKING:
    from paretopress.search.observer import Observer

FEWEST = 8          # choices per round
ROUND_SHARE = 0.03  # of all choices, per round
GOOD_ERROR = 1.2    # of a logarithm, the median of a round, whose choices are the least certain of all
GOOD_ORDER = 0.6    # Kendall's tau of a round
BAD_ORDER = 0.0     # of the first round: such a library knows the opposite
MOST_SHARE = 0.3    # of all choices: where predictions are not good by then, everything is measured
REFINED_SHARE = 0.5   # of all choices, until which a predicted table goes on being corrected


@dataclass(frozen=True)
class Round:
    """What a round of measurements said of the predictions before it.

    Attributes:
        measured: Choices.
        order: Kendall's tau of predicted and measured losses, None where there is none.
        error: Median absolute error of the logarithms, a common factor apart in the first round.
        relied_on: Whether these were choices of the policies that the table took for the best.
    """

    measured: int
    order: float | None
    error: float
    relied_on: bool = False


@dataclass(frozen=True)
class WarmTable:
    """A table and how it came about.

    Attributes:
        table: Losses of all choices.
        run: What was measured.
        rounds: How predictions did.
        predicted: Whether the table rests on predictions; False where everything was measured.
        sources: Names of the recipes that predicted.
        failures: One line per choice that could not be measured.
    """

    table: SensitivityTable
    run: TableRun
    rounds: tuple[Round, ...]
    predicted: bool
    sources: tuple[str, ...]
    failures: tuple[str, ...] = field(default=())

    def to_plain(self) -> dict[str, Any]:
        """Return how it came about as plain data."""
        return {"predicted": self.predicted, "sources": list(self.sources), "measured": len(self.run.measured),
                "rounds": [asdict(one) for one in self.rounds]}


def warm_table(
    space: SearchSpace,
    features: dict[str, UnitFeatures],
    recipes: Sequence[Recipe],
    executor: Executor,
    observer: Observer,
    seconds: float | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> WarmTable:
    """Predict a table and measure as much of it as the predictions need.

    Args:
        space: The choices.
        features: Of the model's layers and groups.
        recipes: What is known of other models.
        executor: Does `Substitution` tasks.
        observer: Hears about progress.
        seconds: When to stop measuring.
        should_stop: Ends the measurement early.
    """
    run = TableRun(space)
    prior = SensitivityPrior(recipes, features, space.options)
    rounds: list[Round] = []
    good = False
    if prior.sources:
        good = _corrected(space, prior, run, rounds, executor, observer, should_stop)
    if good:
        table = prior.table(run.together)
        return WarmTable(table, run, tuple(rounds), True, prior.sources, tuple(run.failures))
    return measured_whole(space, run, tuple(rounds), executor, observer, seconds, should_stop, prior.sources)


def measured_whole(
    space: SearchSpace, run: TableRun, rounds: tuple[Round, ...], executor: Executor, observer: Observer,
    seconds: float | None, should_stop: Callable[[], bool] | None, sources: tuple[str, ...],
) -> WarmTable:
    """Measure what is left of a table: the predictions are not used."""
    table, failures = measure_table(space, executor, seconds, observer.advance, should_stop, run)
    return WarmTable(table, run, rounds, False, sources, tuple(failures))


def _corrected(
    space: SearchSpace, prior: SensitivityPrior, run: TableRun, rounds: list[Round], executor: Executor,
    observer: Observer, should_stop: Callable[[], bool] | None,
) -> bool:
    """Measure rounds of choices until predictions are good, which is returned, or clearly are not."""
    among = measurable(space)
    size = round_size(prior)
    most = max(2 * size, math.ceil(MOST_SHARE * len(prior.cells)))
    first: list[Cell | None] = [None] if integer_choices(space) else []
    while len(run.measured) < most and not (should_stop is not None and should_stop()):
        cells = prior.next_cells(size, among)
        if not cells:
            return bool(rounds) and _is_good(rounds[-1])
        predicted, _ = prior.predict(cells)
        measure_cells(run, [*first, *cells], executor, len(cells) + len(first), None, observer.advance, should_stop)
        first = []
        known = {cell: run.measured[cell] for cell in cells if cell in run.measured}
        if len(known) < len(cells):
            return False
        rounds.append(_round(predicted, [known[cell] for cell in cells], levelled=not rounds))
        prior.learn(known)
        if len(rounds) == 1 and (rounds[0].order or 0.0) <= BAD_ORDER:
            return False
        if _is_good(rounds[-1]):
            return True
    return False


def round_size(prior: SensitivityPrior) -> int:
    """How many choices are measured per round."""
    return max(FEWEST, math.ceil(ROUND_SHARE * len(prior.cells)))


@dataclass
class Refinement:
    """A predicted table that goes on being corrected.

    Attributes:
        space: The choices.
        prior: The predictions, which know what was measured before.
        run: What is measured.
        known: Losses that an earlier start of the run measured at this stage.
        rounds: How predictions did.
    """

    space: SearchSpace
    prior: SensitivityPrior
    run: TableRun
    known: dict[Cell, float] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)

    def table(self) -> SensitivityTable:
        """The table as far as it is corrected."""
        return self.prior.table(self.run.together)

    def step(
        self, best: Sequence[Policy], executor: Executor, observer: Observer, seconds: float | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> bool:
        """Measure the next choices that policies rest on; False where there is none, or enough is measured.

        Args:
            best: The policies that the table takes for the best.
            executor: Does `Substitution` tasks.
            observer: Hears about progress.
            seconds: When to stop measuring.
            should_stop: Ends the measurement early.
        """
        cells = decisive(self.space, self.prior, best, measurable(self.space))[: round_size(self.prior)]
        if not cells or len(self.run.measured) >= REFINED_SHARE * len(self.prior.cells):
            return False
        self.run.measured.update({cell: self.known[cell] for cell in cells if cell in self.known})
        missing = [cell for cell in cells if cell not in self.run.measured]
        measure_cells(self.run, missing, executor, 0, seconds, observer.advance, should_stop)
        found = {cell: self.run.measured[cell] for cell in cells if cell in self.run.measured}
        if not found:
            return False
        predicted, _ = self.prior.predict(list(found))
        self.rounds.append(replace(_round(predicted, list(found.values()), levelled=False), relied_on=True))
        self.known.update(found)
        self.prior.learn(found)
        return True


def decisive(
    space: SearchSpace, prior: SensitivityPrior, policies: Sequence[Policy], among: Collection[Cell]
) -> list[Cell]:
    """Choices of policies that are not measured, those first whose errors would change their losses most.

    What the error of a choice does to the logarithm of a policy's loss is its standard deviation times its share of
    that loss; these are added up over the policies.

    Args:
        space: The choices.
        prior: The predictions.
        policies: What rests on them.
        among: What may be picked.
    """
    (means, deviations), measured = prior.predict(), prior.measured
    at = {cell: row for row, cell in enumerate(prior.cells)}
    weights: dict[Cell, float] = {}
    for policy in policies:
        cells = [(unit, space.options[unit].index(choice)) for unit, choice in policy]
        known = [cell for cell in cells if cell in at]
        losses = np.exp(means[[at[cell] for cell in known]])
        for cell, share in zip(known, losses / max(float(losses.sum()), 1e-12), strict=True):
            if cell in among and cell not in measured:
                weights[cell] = weights.get(cell, 0.0) + float(share * deviations[at[cell]])
    return sorted(weights, key=lambda cell: (-weights[cell], cell))


def _round(predicted: np.ndarray, losses: Sequence[float], *, levelled: bool) -> Round:
    measured = np.log(np.clip(losses, 1e-6, 30.0))
    apart = measured - predicted
    if levelled:
        apart = apart - np.median(apart)
    return Round(len(losses), kendall(list(predicted), list(measured)), float(np.median(np.abs(apart))))


def _is_good(one: Round) -> bool:
    return one.error <= GOOD_ERROR and (one.order or 0.0) >= GOOD_ORDER


def measurable(space: SearchSpace) -> set[Cell]:
    """Choices whose loss alone says what the table holds.

    8-bit activations are left out where a layer has other formats: the loss of one layer counts tensors that its
    neighbours share, and is scaled by the loss of all layers at once.
    """
    found = set()
    for unit, options in space.options.items():
        cells = {(unit, option) for option, choice in enumerate(options) if choice is not None}
        shared = {(unit, option) for option, choice in enumerate(options)
                  if isinstance(choice, Weights) and choice.activations == 8}
        found |= cells - shared if unit.endswith("/weights") and cells != shared else cells
    return found
