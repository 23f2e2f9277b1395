"""What workers are asked to do: evaluate a candidate, measure a substitution, rehearse or build a finalist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from paretopress.evaluators.subset_test import Rivals
from paretopress.spaces.policy import Policy


@dataclass(frozen=True, slots=True)
class Substitution:
    """Measure a cell of the sensitivity table: the divergence under a policy, on the tuning samples.

    Attributes:
        policy: What is substituted in the dense model.
    """

    policy: Policy


@dataclass(frozen=True, slots=True)
class Challenge:
    """Evaluate a candidate, on as many samples as it takes to know that it is worse than its rivals.

    Attributes:
        policy: What to evaluate.
        rivals: What others have reached.
    """

    policy: Policy
    rivals: Rivals


@dataclass(frozen=True, slots=True)
class Construction:
    """Build a finalist by the refit pass, distil it where the run does that, and store it.

    Attributes:
        policy: What to build.
        folder: Where the artefact is stored; the worker's file system must be the driver's.
        seconds: Time for its distillation, None for no limit.
        evaluated: `(accuracy, divergence)` that the candidate had as a trial, None where it was none.
    """

    policy: Policy
    folder: str
    seconds: float | None = None
    evaluated: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Train a candidate for a few steps, and tell its divergence then; nothing is stored.

    Attributes:
        policy: What to train.
        steps: How many steps at most.
        seconds: Time for them, None for no limit.
    """

    policy: Policy
    steps: int
    seconds: float | None = None


Task: TypeAlias = Policy | Challenge | Substitution | Construction | Rehearsal
