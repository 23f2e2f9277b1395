"""What evaluating one policy returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """How an evaluation ended."""

    COMPLETE = "complete"   # the true metric was measured
    SCREENED = "screened"   # predicted costs or a proxy already rule the candidate out; `reason` says which
    FAILED = "failed"       # an error or a value that is not finite; `reason` says which


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Objectives and constraints of one policy.

    Attributes:
        state: How the evaluation ended.
        values: Objective values by name, such as `accuracy`, `latency@local` (ms), `size` (bytes), `macs`.
            A screened evaluation holds the values known so far.
        constraints: Violations by name in the objective's unit; at most 0 where the budget is met.
        reason: Why the candidate was screened or failed, `""` when complete.
        trace: The traceback of a failure, where there is one.
        images: Samples that were forwarded for it: those that tune it, and those that it was scored on.
    """

    state: State
    values: Mapping[str, float] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    trace: str = ""
    images: int = 0

    @property
    def feasible(self) -> bool:
        """Whether the evaluation is complete and meets every budget."""
        return self.state is State.COMPLETE and all(value <= 0.0 for value in self.constraints.values())

    def checked(self) -> Evaluation:
        """Return the evaluation itself, or a failed one naming the first value that is not finite."""
        for name, value in (*self.values.items(), *self.constraints.items()):
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                return Evaluation(State.FAILED, {}, {}, f"bad value: {name}={value!r}", images=self.images)
        return self
