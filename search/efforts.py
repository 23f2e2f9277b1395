"""Presets of how much is spent on a search."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EFFORTS", "Effort"]


@dataclass(frozen=True)
class Effort:
    """What a preset stands for; whatever is set beside it wins.

    Attributes:
        time: For everything, verification included; as in settings. Not used where a number of trials is given.
        finalists: How many candidates are verified.
        timing_runs: Counted runs of each timing.
        steps: Of the distillation of each finalist, where they are distilled.
    """

    time: str
    finalists: int
    timing_runs: int
    steps: int


EFFORTS = {
    "quick": Effort("90s", 10, 100, 600),
    "balanced": Effort("5m", 22, 200, 1500),
    "thorough": Effort("30m", 40, 400, 4000),
}
