"""Trial records: what the ledger holds about one finished evaluation, one JSON line each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.spaces.choices import choice_to_plain
from paretopress.spaces.documents import parse_json
from paretopress.spaces.errors import ArtifactError, ConfigError, PolicyError
from paretopress.spaces.policy import Policy

KEYS = ("number", "state", "policy", "policy_hash", "values", "constraints", "images", "seconds", "reason")
SINCE = frozenset({"images"})   # keys that lines of earlier versions lack
TRACE = "traceback"   # a further key of trials that failed with one


class TrialState(StrEnum):
    """How a trial ended, in Optuna's words."""

    COMPLETE = "COMPLETE"   # the true metric was measured
    PRUNED = "PRUNED"       # screened out before the true metric; `reason` says by what
    FAIL = "FAIL"           # an error, a dead worker or a value that is not finite; `reason` says which


_STATES = {
    State.COMPLETE: TrialState.COMPLETE,
    State.SCREENED: TrialState.PRUNED,
    State.FAILED: TrialState.FAIL,
}


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial.

    Attributes:
        number: Trial number in the run, from 0.
        state: How the trial ended.
        policy: The policy that was evaluated.
        values: Objective values by name; those known so far for a screened trial, empty for a failed one.
        constraints: Violations by name in the objective's unit; at most 0 where the budget is met.
        seconds: Wall-clock time of the evaluation in seconds.
        images: Samples that were forwarded for it.
        reason: One line that says why the trial was screened or failed, None when complete.
        traceback: Of a failure, where there is one, else `""`.
    """

    number: int
    state: TrialState
    policy: Policy
    values: Mapping[str, float] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str | None = None
    images: int = 0
    traceback: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", {name: float(self.values[name]) for name in sorted(self.values)})
        object.__setattr__(
            self, "constraints", {name: float(self.constraints[name]) for name in sorted(self.constraints)}
        )
        for name, value in (*self.values.items(), *self.constraints.items(), ("seconds", self.seconds)):
            if not math.isfinite(value):
                raise ValueError(f"trial {self.number}: {name} is {value!r}, not a finite number")

    @property
    def feasible(self) -> bool:
        """Whether the trial is complete and meets every budget."""
        return self.state is TrialState.COMPLETE and all(value <= 0.0 for value in self.constraints.values())

    @classmethod
    def of(cls, number: int, policy: Policy, evaluation: Evaluation, seconds: float) -> TrialRecord:
        """Return the record of a finished evaluation; values that are not finite become a failure."""
        checked = evaluation.checked()
        reason = " ".join(checked.reason.split()) or None
        if checked.state is not State.COMPLETE and reason is None:
            reason = "no reason given"
        return cls(
            number,
            _STATES[checked.state],
            policy,
            checked.values,
            checked.constraints,
            seconds,
            None if checked.state is State.COMPLETE else reason,
            evaluation.images,
            checked.trace if checked.state is State.FAILED else "",
        )

    def evaluation(self) -> Evaluation:
        """The evaluation that `of` made the record from."""
        state = next(state for state, recorded in _STATES.items() if recorded is self.state)
        return Evaluation(state, self.values, self.constraints, self.reason or "", self.traceback, self.images)

    def to_line(self) -> str:
        """Return the record as one line of JSON: the keys `KEYS` in that order, then the traceback; no newline."""
        plain: dict[str, Any] = {
            "number": self.number,
            "state": self.state.value,
            "policy": {name: choice_to_plain(choice) for name, choice in self.policy},
            "policy_hash": self.policy.hash,
            "values": dict(self.values),
            "constraints": dict(self.constraints),
            "images": self.images,
            "seconds": float(self.seconds),
            "reason": self.reason,
            **({TRACE: self.traceback} if self.traceback else {}),
        }
        return json.dumps(plain, separators=(", ", ": "), allow_nan=False)

    @classmethod
    def from_line(cls, line: str, source: str = "trial", *, model: str = "", space: str = "") -> TrialRecord:
        """Read a line written by `to_line`.

        Args:
            line: The text, with or without its newline.
            source: Place for the error message, such as `runs/a/trials.jsonl:3`.
            model: Fingerprint of the model that the policy gets (the line holds the choices alone).
            space: Fingerprint of the search space that the policy gets.

        Raises:
            ArtifactError: Not JSON, a key missing or unknown, a value of the wrong type or not finite,
                or a policy that does not match its hash.
        """
        try:
            return _read(parse_json(line, source), source, model, space)
        except (ConfigError, PolicyError) as error:
            raise ArtifactError(str(error)) from None


def _read(plain: object, source: str, model: str, space: str) -> TrialRecord:
    if not isinstance(plain, dict) or (set(plain) - {TRACE}) | SINCE != set(KEYS):
        raise ArtifactError(f"{source}: a trial has exactly the keys {', '.join(KEYS)}")
    number, state, reason = plain["number"], plain["state"], plain["reason"]
    images = plain.get("images", 0)
    for name, value in (("number", number), ("images", images)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ArtifactError(f"{source}: {name}: expected an integer from 0, got {value!r}")
    if state not in list(TrialState):
        raise ArtifactError(f"{source}: state: {state!r} is not one of {', '.join(TrialState)}")
    if reason is not None and not isinstance(reason, str):
        raise ArtifactError(f"{source}: reason: expected text or null, got {reason!r}")
    policy = Policy.from_plain({"units": plain["policy"], "model": model, "space": space}, source)
    if policy.hash != plain["policy_hash"]:
        raise ArtifactError(f"{source}: the policy does not match its hash {plain['policy_hash']!r}")
    return TrialRecord(
        number,
        TrialState(state),
        policy,
        _floats(plain["values"], f"{source}: values"),
        _floats(plain["constraints"], f"{source}: constraints"),
        _float(plain["seconds"], f"{source}: seconds"),
        reason,
        images,
        _text(plain.get(TRACE, ""), f"{source}: {TRACE}"),
    )


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ArtifactError(f"{where}: expected text, got {str(value)[:40]!r}")
    return value


def _floats(value: object, where: str) -> dict[str, float]:
    if not isinstance(value, dict):
        raise ArtifactError(f"{where}: expected a mapping of names to numbers")
    return {name: _float(number, f"{where}.{name}") for name, number in value.items()}


def _float(value: object, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:
        number = math.nan
    if not math.isfinite(number):
        raise ArtifactError(f"{where}: expected a finite number, got {str(value)[:40]!r}")
    return number
