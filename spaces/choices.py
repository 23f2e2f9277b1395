"""Choices: what may be decided about one unit. A tagged union of small frozen values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from paretopress.spaces.errors import PolicyError, unknown_name

WEIGHT_BITS = (2, 3, 4, 8)
CLUSTER_BITS = (2, 3, 4, 5, 6, 7, 8)
BASES = (1, 2, 3)
HALVES = ("fp16", "bf16")
FACTORISATIONS = ("svd", "nmf", "spatial", "tucker")
UNSTRUCTURED = "unstructured"
SCHEMES = ("symmetric", "asymmetric", "tensor")
ACTIVATIONS = (4, 8, 16, 32)
GRIDS = (4, 16)   # bits of inputs that a layer rounds for itself; no runtime here computes in them
RANGES = STATIC, DYNAMIC = "static", "dynamic"
BYTE_LEVEL = 127    # the highest integer of 8 bits that has a negative one
INTEGER_LEVEL = 64  # the highest that every kernel of 8-bit integers computes with rightly


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
    """Replace a layer by two or three smaller ones (`spaces/factor_forms.py` has their shapes).

    Attributes:
        kind: `"svd"`: activation-whitened singular value decomposition. `"nmf"`: non-negative factors, a pair for the
            positive and one for the negative weights. `"spatial"`: a convolution along the rows, then one along the
            columns. `"tucker"`: 1x1, the window on fewer channels, 1x1.
        rank: Inner width, at least 1: of `"nmf"` that of each pair, of `"tucker"` the channels that the window makes.
        inner: Of `"tucker"` the channels that the window reads; 0: `rank` times inputs / outputs of the dense layer,
            rounded, at least 1. Else 0.
    """

    kind: str
    rank: int
    inner: int = 0

    def __post_init__(self) -> None:
        if self.kind not in FACTORISATIONS:
            raise PolicyError(unknown_name("factorisation", self.kind, FACTORISATIONS))
        if self.rank < 1:
            raise PolicyError(f"rank {self.rank} is below 1")
        if self.inner < 0:
            raise PolicyError(f"inner rank {self.inner} is below 1 (0: in proportion to the rank)")
        if self.inner and self.kind != "tucker":
            raise PolicyError(f"{self.kind} factors have one rank, no inner one (allowed: tucker)")


@dataclass(frozen=True, slots=True)
class Weights:
    """Store a layer's weights as packed integers.

    Attributes:
        bits: 2, 3, 4 or 8: width of the stored integers.
        activations: 8 where the layer also computes in 8-bit integers (its input and output tensors
            are quantised), 32 where it computes in floating point on dequantised weights, 16 or 4 where it does so on
            its own input rounded to as many bits.
        scheme: `"symmetric"`: zero is the integer 0; `"asymmetric"`: every scale has a zero point of its own;
            `"tensor"`: symmetric, with one scale for the whole matrix.
        group: Neighbouring inputs that share a scale, a power of two from 16; 0 for all inputs of an output.
        ranges: Of 8-bit activations: `"static"`: chosen by calibration, shared with the layers around; `"dynamic"`: the
            layer rounds its own input by the least and the largest value that it finds there, anew on every call.
    """

    bits: int
    activations: int = 8
    scheme: str = "symmetric"
    group: int = 0
    ranges: str = STATIC

    def __post_init__(self) -> None:
        if self.bits not in WEIGHT_BITS:
            allowed = ", ".join(map(str, WEIGHT_BITS))
            raise PolicyError(f"{self.bits} weight bits are not offered (allowed: {allowed})")
        if self.activations not in ACTIVATIONS:
            allowed = ", ".join(map(str, ACTIVATIONS))
            raise PolicyError(f"{self.activations} activation bits are not offered (allowed: {allowed})")
        if self.ranges not in RANGES:
            raise PolicyError(unknown_name("kind of activation ranges", self.ranges, RANGES))
        if self.ranges == DYNAMIC and self.activations != 8:
            raise PolicyError(f"dynamic ranges go with 8-bit activations, not with {self.activations} (allowed: 8)")
        if self.scheme not in SCHEMES:
            raise PolicyError(unknown_name("weight scheme", self.scheme, SCHEMES))
        if self.group and (self.group < 16 or self.group & (self.group - 1) or self.scheme == "tensor"):
            allowed = "0, or a power of two from 16 with a scale of its own"
            raise PolicyError(f"groups of {self.group} inputs are not offered (allowed: {allowed})")
        if self.activations == 8 and not self.is_plain:
            raise PolicyError("8-bit activations go with symmetric weights that have one scale per output")

    @property
    def is_plain(self) -> bool:
        """Whether there is one scale per output and no zero point."""
        return self.scheme == "symmetric" and not self.group

    @property
    def highest(self) -> int:
        """No integer of plain weights is larger: 64 where the layer computes in 8-bit integers, otherwise 127.

        x86 processors without VNNI add two products of an unsigned and a signed 8-bit number in 16 bits. That holds
        `255 * (64 + 64)` but not `255 * (127 + 127)`, which becomes 32767 without a word (onnxruntime: `reduce_range`).
        So a stored network means the same on all of them.
        """
        return INTEGER_LEVEL if self.activations == 8 else BYTE_LEVEL

    @property
    def is_dynamic(self) -> bool:
        """Whether the layer computes in 8-bit integers on an input whose range it finds itself."""
        return self.ranges == DYNAMIC

    @property
    def grid_bits(self) -> int:
        """Bits of the grid that the layer rounds its own input to, 0 where it does not."""
        return self.activations if self.activations in GRIDS else 0


@dataclass(frozen=True, slots=True)
class Half:
    """Store a layer's weights as 16-bit floats; it computes in 32-bit floats on them.

    Attributes:
        kind: `"fp16"` (IEEE half precision) or `"bf16"` (brain float: the exponent of float32, 8 bits of precision).
    """

    kind: str = "fp16"

    def __post_init__(self) -> None:
        if self.kind not in HALVES:
            raise PolicyError(unknown_name("16-bit float", self.kind, HALVES))


@dataclass(frozen=True, slots=True)
class Clustered:
    """Share a few values among a layer's weights; it computes in floats.

    A weight is one of `2^bits` shared values times the scale of its row.

    Attributes:
        bits: 2 to 8: bits of the index that is stored per weight.
    """

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in CLUSTER_BITS:
            span = f"{CLUSTER_BITS[0]} to {CLUSTER_BITS[-1]}"
            raise PolicyError(f"weight sharing with {self.bits} bits is not offered (allowed: {span})")


@dataclass(frozen=True, slots=True)
class Binary:
    """Store a layer's weights as signs, with a scale per row and base.

    Attributes:
        bases: 1 to 3: every further one holds the signs of what those before leave.
        activations: 32 where the layer computes in floats, 8 where it computes in 8-bit integers (one base only), 1
            where its input is signs too: above or below a threshold per channel, times one scale.
    """

    bases: int = 1
    activations: int = 32

    def __post_init__(self) -> None:
        if self.bases not in BASES:
            raise PolicyError(f"{self.bases} binary bases are not offered (allowed: 1, 2, 3)")
        if self.activations not in (1, 8, 32):
            raise PolicyError(f"{self.activations} activation bits are not offered with signs (allowed: 1, 8, 32)")
        if self.activations == 8 and self.bases > 1:
            raise PolicyError("signs of several bases do not compute in 8-bit integers (allowed: 1 base)")


@dataclass(frozen=True, slots=True)
class Sparse:
    """Store only some of a layer's weights, and where they are.

    Attributes:
        density: Fraction kept, in (0, 1).
        pattern: `"unstructured"`; `"n:m"`, such as `"2:4"`: n of every m neighbours in a row; or `"RxC"`, such as
            `"4x1"`: whole blocks of R rows and C columns.
    """

    density: float
    pattern: str = UNSTRUCTURED

    def __post_init__(self) -> None:
        if not 0.0 < self.density < 1.0:
            raise PolicyError(f"density {self.density} is outside (0, 1)")
        if self.pattern == UNSTRUCTURED:
            return
        sizes = [int(size) for size in re.findall(r"[0-9]+", self.pattern)]
        if not re.fullmatch(r"[1-9][0-9]{0,2}[:x][1-9][0-9]{0,2}", self.pattern):
            raise PolicyError(f"sparsity pattern {self.pattern!r} is not one (allowed: unstructured, n:m, RxC)")
        if ":" in self.pattern and not (sizes[0] < sizes[1] and abs(self.density - sizes[0] / sizes[1]) < 1e-6):
            raise PolicyError(f"density {self.density:g} is not that of the pattern {self.pattern} (n:m with n < m)")

    @classmethod
    def of(cls, text: str | float) -> Sparse:
        """Read what a user writes: a density such as 0.5, `"2:4"`, or a density in blocks such as `"0.25 in 4x1"`."""
        words = str(text).split()
        try:
            if len(words) == 1 and ":" in words[0]:
                kept, of = (int(size) for size in words[0].split(":"))
                return cls(kept / of, words[0])
            if len(words) == 3 and words[1] == "in":
                return cls(float(words[0]), words[2])
            return cls(float(words[0]) if len(words) == 1 else float("nan"))
        except (ValueError, ZeroDivisionError):
            shown = "allowed: a density such as 0.5, 2:4, or a density in blocks such as 0.25 in 4x1"
            raise PolicyError(f"sparsity {text!r} is not one ({shown})") from None


WeightFormat = Weights | Half | Clustered | Binary
"""How the weights that are kept are stored."""

Choice = Keep | Factorised | Sparse | WeightFormat

KINDS: Mapping[str, tuple[type, ...]] = {
    "channels": (Keep,),
    "rank": (Factorised,),
    "sparsity": (Sparse,),
    "weights": (Weights, Half, Clustered, Binary),
}
"""Kinds of units with their choices, in the order in which they are applied to a layer."""

ILLEGAL: Mapping[tuple[type, type], str] = {
    (Sparse, Binary): "a sign is never zero: signs cannot be sparse",
}
"""Choices of one layer that do not go together, with the reason; all others do."""


def conflict(*choices: Choice | None) -> str:
    """Why choices of one layer do not go together, `""` where they do."""
    for (one, other), reason in ILLEGAL.items():
        if any(isinstance(c, one) for c in choices) and any(isinstance(c, other) for c in choices):
            return reason
    if any(isinstance(c, Factorised) for c in choices) and any(isinstance(c, Binary) and c.activations == 1
                                                               for c in choices):
        return "the input of a second factor cannot be signs"
    return ""


def compatible(choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """Choices by unit without those sparsities that the formats of their layers exclude."""
    return {
        unit: choice for unit, choice in choices.items()
        if not (isinstance(choice, Sparse) and conflict(choice, choices.get(f"{unit.rpartition('/')[0]}/weights")))
    }


def activation_bits(choice: Choice | None) -> int:
    """8 where a layer of this format computes in 8-bit integers on tensors that others read too, else 32.

    What a layer does to its own input (`own_input`) does not count: around it everything is in floats.
    """
    if isinstance(choice, Weights) and choice.is_dynamic:
        return 32
    return 8 if isinstance(choice, Weights | Binary) and choice.activations == 8 else 32


def describe(choice: Choice) -> str:
    """Return a choice in a few words, such as `keep 0.5` or `4-bit weights, 8-bit activations`."""
    match choice:
        case Keep(0.0):
            return "drop the branch"
        case Keep(ratio):
            return f"keep {ratio:g}"
        case Factorised(kind, rank, inner):
            shown = f"rank {rank}" if not inner else f"ranks {inner} and {rank}"
            return shown if kind == "svd" else f"{kind} {shown}"
        case Sparse(density, pattern):
            return f"sparse {pattern}" if ":" in pattern else f"sparse {density:g}" + (
                "" if pattern == UNSTRUCTURED else f" in blocks of {pattern}")
        case Weights(bits, activations, scheme, group, ranges):
            text = f"{bits}-bit weights" + (f", {activations}-bit activations" if activations != 32 else "")
            text += " (dynamic)" if ranges == DYNAMIC else ""
            text += {"asymmetric": ", zero points", "tensor": ", one scale"}.get(scheme, "")
            return text + (f", groups of {group}" if group else "")
        case Half(kind):
            return f"{kind} weights"
        case Clustered(bits):
            return f"{1 << bits} shared weights"
        case Binary(bases, activations):
            signs = "signs" if bases == 1 else f"signs of {bases} bases"
            return signs + (f", {activations}-bit activations" if activations != 32 else "")


def choice_to_plain(choice: Choice) -> dict[str, Any]:
    """Return a choice as plain data for YAML and JSON."""
    match choice:
        case Keep(ratio):
            return {"keep": ratio}
        case Factorised(kind, rank, inner):
            return {"factorised": kind, "rank": rank, **({"inner": inner} if inner else {})}
        case Sparse(density, pattern):
            return {"sparse": density, "pattern": pattern}
        case Weights(bits, activations, scheme, group, ranges):
            plain = {"weights": bits, "activations": activations, "scheme": scheme}
            dynamic = {"ranges": ranges} if ranges == DYNAMIC else {}
            return {**plain, **({"group": group} if group else {}), **dynamic}
        case Half(kind):
            return {"half": kind}
        case Clustered(bits):
            return {"clustered": bits}
        case Binary(bases, activations):
            return {"binary": bases, "activations": activations}


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
    tag = next((name for name in _READERS if name in value), None)
    if tag is None:
        raise PolicyError(f"{where}: {unknown_name('choice', next(iter(map(str, value)), ''), _READERS)}")
    fields, read = _READERS[tag]
    for name in value:
        if name not in fields:
            raise PolicyError(f"{where}: {unknown_name('field', str(name), fields)}")
    try:
        return read(value, where)
    except PolicyError as error:
        raise PolicyError(f"{where}: {error}" if where not in str(error) else str(error)) from None


_READERS: Mapping[str, tuple[tuple[str, ...], Callable[[Mapping[Any, Any], str], Choice]]] = {
    "keep": (("keep",), lambda value, where: Keep(_number(value["keep"], where))),
    "factorised": (
        ("factorised", "rank", "inner"),
        lambda value, where: Factorised(
            str(value["factorised"]), _integer(value.get("rank"), where), _integer(value.get("inner", 0), where)
        ),
    ),
    "sparse": (
        ("sparse", "pattern"),
        lambda value, where: Sparse(_number(value["sparse"], where), str(value.get("pattern", UNSTRUCTURED))),
    ),
    "weights": (
        ("weights", "activations", "scheme", "group", "ranges"),
        lambda value, where: Weights(
            _integer(value["weights"], where), _activations(value.get("activations", 8), where),
            str(value.get("scheme", "symmetric")), _integer(value.get("group", 0), where),
            str(value.get("ranges", STATIC)),
        ),
    ),
    "half": (("half",), lambda value, _: Half(str(value["half"]))),
    "clustered": (("clustered",), lambda value, where: Clustered(_integer(value["clustered"], where))),
    "binary": (
        ("binary", "activations"),
        lambda value, where: Binary(_integer(value["binary"], where), _integer(value.get("activations", 32), where)),
    ),
}
"""By its tag the fields of a choice and what reads them."""


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PolicyError(f"{where}: expected a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise PolicyError(f"{where}: {value!r:.40}... is too large") from None


def _activations(value: object, where: str) -> int:
    if value == DYNAMIC:
        raise PolicyError(f"{where}: activations are bits, got {value!r} (write activations: 8, ranges: {DYNAMIC})")
    return _integer(value, where)


def _integer(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PolicyError(f"{where}: expected an integer, got {value!r}")
    return value
