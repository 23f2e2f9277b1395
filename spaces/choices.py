"""Choices: what may be decided about one unit. A tagged union of small frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paretopress.spaces.errors import PolicyError, unknown_name

WEIGHT_BITS = (2, 3, 4, 8)


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep a fraction of a channel group's channels; the rest are really removed.

    Attributes:
        ratio: Fraction kept, in [0, 1]. The number of channels is `round(ratio * size)`, rounded to
            the group's granularity and never below one step; 0 drops the residual branch that the
            group is the inside of.
    """

    ratio: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.ratio <= 1.0:
            raise PolicyError(f"keep ratio {self.ratio} is outside [0, 1]")


@dataclass(frozen=True, slots=True)
class Factorised:
    """Replace a layer by two smaller ones.

    Attributes:
        kind: `"svd"`: activation-whitened singular value decomposition.
        rank: Inner width, at least 1.
    """

    kind: str
    rank: int

    def __post_init__(self) -> None:
        if self.kind != "svd":
            raise PolicyError(unknown_name("factorisation", self.kind, ["svd"]))
        if self.rank < 1:
            raise PolicyError(f"rank {self.rank} is below 1")


@dataclass(frozen=True, slots=True)
class Weights:
    """Store a layer's weights as packed integers.

    Attributes:
        bits: 2, 3, 4 or 8: width of the stored integers.
        activations: 8 where the layer also computes in 8-bit integers (its input and output tensors
            are quantised), 32 where it computes in floating point on dequantised weights.
        scheme: `"symmetric"`: one scale per output channel, no zero point.
    """

    bits: int
    activations: int = 8
    scheme: str = "symmetric"

    def __post_init__(self) -> None:
        if self.bits not in WEIGHT_BITS:
            allowed = ", ".join(map(str, WEIGHT_BITS))
            raise PolicyError(f"{self.bits} weight bits are not offered (allowed: {allowed})")
        if self.activations not in (8, 32):
            raise PolicyError(f"{self.activations} activation bits are not offered (allowed: 8, 32)")
        if self.scheme != "symmetric":
            raise PolicyError(unknown_name("weight scheme", self.scheme, ["symmetric"]))


Choice = Keep | Factorised | Weights

KINDS: Mapping[str, type[Keep] | type[Factorised] | type[Weights]] = {
    "channels": Keep,
    "rank": Factorised,
    "weights": Weights,
}


def describe(choice: Choice) -> str:
    """Return a choice in a few words, such as `keep 0.5` or `4-bit weights, 8-bit activations`."""
    match choice:
        case Keep(0.0):
            return "drop the branch"
        case Keep(ratio):
            return f"keep {ratio:g}"
        case Factorised(_, rank):
            return f"rank {rank}"
        case Weights(bits, activations):
            return f"{bits}-bit weights" + (f", {activations}-bit activations" if activations != 32 else "")


def choice_to_plain(choice: Choice) -> dict[str, Any]:
    """Return a choice as plain data for YAML and JSON."""
    match choice:
        case Keep(ratio):
            return {"keep": ratio}
        case Factorised(kind, rank):
            return {"factorised": kind, "rank": rank}
        case Weights(bits, activations, scheme):
            return {"weights": bits, "activations": activations, "scheme": scheme}


def choice_from_plain(value: object, where: str) -> Choice:
    """Read a choice written by `choice_to_plain`.

    Args:
        value: The plain mapping.
        where: Place for the error message, such as `policy.yaml: units.fc/rank`.

    Raises:
        PolicyError: Unknown tag or field, or a value outside its range.
    """
    if not isinstance(value, Mapping):
        raise PolicyError(f"{where}: a choice is a mapping such as {{keep: 0.5}}, got {value!r}")
    fields = {
        "keep": {"keep"},
        "factorised": {"factorised", "rank"},
        "weights": {"weights", "activations", "scheme"},
    }
    tag = next((name for name in fields if name in value), None)
    if tag is None:
        raise PolicyError(f"{where}: {unknown_name('choice', next(iter(map(str, value)), ''), fields)}")
    for name in value:
        if name not in fields[tag]:
            raise PolicyError(f"{where}: {unknown_name('field', str(name), fields[tag])}")
    try:
        if tag == "keep":
            return Keep(_number(value["keep"], where))
        if tag == "factorised":
            return Factorised(str(value["factorised"]), _integer(value.get("rank"), where))
        return Weights(
            _integer(value["weights"], where),
            _integer(value.get("activations", 8), where),
            str(value.get("scheme", "symmetric")),
        )
    except PolicyError as error:
        raise PolicyError(f"{where}: {error}" if where not in str(error) else str(error)) from None


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PolicyError(f"{where}: expected a number, got {value!r}")
    return float(value)


def _integer(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PolicyError(f"{where}: expected an integer, got {value!r}")
    return value
