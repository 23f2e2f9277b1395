"""Evaluations as text: what workers tell, checked again by whoever reads it."""

from __future__ import annotations

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.spaces.documents import canonical_json, parse_json
from paretopress.spaces.errors import ArtifactError, ConfigError

_KEYS = {"state", "values", "constraints", "reason", "trace", "images", "seconds"}


def result_text(evaluation: Evaluation, seconds: float) -> str:
    """Return canonical JSON of an evaluation and its wall-clock time in seconds."""
    checked = evaluation.checked()
    return canonical_json({
        "state": checked.state.value,
        "values": {name: float(value) for name, value in checked.values.items()},
        "constraints": {name: float(value) for name, value in checked.constraints.items()},
        "reason": checked.reason,
        "trace": checked.trace,
        "images": int(checked.images),
        "seconds": float(seconds),
    })


def lost_text(count: int) -> str:
    """The result of a trial that is given up because its workers vanished, `count` times."""
    return result_text(Evaluation(State.FAILED, reason=f"quarantined: {count} workers vanished over it"), 0.0)


def read_result(text: str, source: str) -> tuple[Evaluation, float]:
    """Read the text of `result_text`; whatever wrote it is not trusted.

    Raises:
        ArtifactError: Not such a text, or a number in it is not finite.
    """
    try:
        plain = parse_json(text, source)
    except ConfigError as error:
        raise ArtifactError(str(error)) from None
    if not isinstance(plain, dict) or set(plain) != _KEYS or plain["state"] not in list(State):
        raise ArtifactError(f"{source}: not the result of a trial")
    numbers = [plain["seconds"], plain["images"]]
    for name in ("values", "constraints"):
        if not isinstance(plain[name], dict):
            raise ArtifactError(f"{source}: {name}: expected a mapping of names to numbers")
        numbers += plain[name].values()
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        raise ArtifactError(f"{source}: expected numbers")
    if not isinstance(plain["reason"], str) or not isinstance(plain["trace"], str):
        raise ArtifactError(f"{source}: reason: expected text")
    evaluation = Evaluation(
        State(plain["state"]), plain["values"], plain["constraints"], plain["reason"], plain["trace"],
        int(plain["images"]),
    )
    return evaluation.checked(), float(plain["seconds"])
