"""What a running search tells whoever listens: the hooks of an observer that callbacks hang on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretopress.search.ledger import Run
from paretopress.search.live import ExplorationStatus, ExplorationWatch
from paretopress.search.problem import Problem
from paretopress.search.records import TrialRecord
from paretopress.spaces.documents import finite


@dataclass(frozen=True)
class SearchStarted:
    """A search that is about to explore, for callbacks.

    Attributes:
        run: The run directory.
        settings: The resolved settings as plain data.
        objectives: Objectives with their directions, `max` or `min`; the first is the metric, `accuracy`.
        baseline: Predicted costs of the dense model by name; None where a target cannot execute it.
        units: Units that something may be decided about.
        space_log10: Decimal logarithm of the number of policies.
        earlier: Trials of earlier starts of the run.
    """

    run: Path
    settings: Mapping[str, Any]
    objectives: Mapping[str, str]
    baseline: Mapping[str, float | None]
    units: int
    space_log10: float
    earlier: int


@dataclass(frozen=True)
class SearchedFront:
    """The front of an exploration at one moment, for callbacks: searched and predicted values, nothing verified.

    Attributes:
        status: The exploration in figures.
        records: Feasible trials that no other one dominates, by number.
    """

    status: ExplorationStatus
    records: tuple[TrialRecord, ...]


def tell_started(problem: Problem, run: Run, observer: object) -> None:
    """Call `started` of an observer that has it."""
    hear: Callable[[SearchStarted], None] | None = getattr(observer, "started", None)
    if hear is not None:
        baseline = {name: finite(value) for name, value in problem.baseline.items()}
        hear(SearchStarted(run.path, problem.settings.to_plain(), problem.objectives, baseline,
                           len(problem.space.options), problem.space.log10_size, len(run.records())))


def tell_trial(record: TrialRecord, observer: object) -> None:
    """Call `trial` of an observer that has it."""
    hear: Callable[[TrialRecord], None] | None = getattr(observer, "trial", None)
    if hear is not None:
        hear(record)


def tell_front(watch: ExplorationWatch, observer: object) -> None:
    """Call `searched_front` of an observer that has it, where the front has changed."""
    hear: Callable[[SearchedFront], None] | None = getattr(observer, "searched_front", None)
    if hear is not None and (records := watch.changed_front()) is not None:
        hear(SearchedFront(watch.status(), records))
