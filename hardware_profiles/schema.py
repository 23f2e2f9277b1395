"""The YAML schema of a device profile (`hwprofile/1`): strict, and every number with a basis and a source."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from paretopress.hardware_profiles.features import BOUNDARY_FEATURES, FEATURES
from paretopress.spaces.errors import ProfileError
from paretopress.spaces.kernels import Family

SCHEMA = "hwprofile/1"
Text = Annotated[str, Field(min_length=1)]
Executes = Literal["float32", "int8", "float16", "bfloat16"]
Basis = Literal["measured", "published", "datasheet", "derived", "fitted"]


class Strict(BaseModel):
    """No unknown keys, no coercion, finite numbers, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Number(Strict):
    """One figure with where it comes from."""

    value: float
    basis: Basis
    source: Text


class Positive(Number):
    """A figure that must be greater than zero."""

    value: Annotated[float, Field(gt=0)]


class NotNegative(Number):
    """A figure that must not be negative."""

    value: Annotated[float, Field(ge=0)]


class Runtime(Strict):
    """The software whose time is predicted."""

    name: Text
    version: Text
    threads: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    removes_dead_branches: bool = False


class Host(Strict):
    """Which CPUs the profile stands for: all `flags` must be present, the model must contain `cpu_model`."""

    cpu_model: Text
    machine: Text
    flags: list[Text] = []
    cpu_family: int | None = None


class Format(Strict):
    """What one pair of stored widths executes as."""

    weights: Annotated[int, Field(ge=1, le=32)]
    activations: Annotated[int, Field(ge=1, le=32)]
    status: Literal["fast", "legal", "size_only", "refused"]
    executes: Executes | None = None
    reason: str = ""

    @model_validator(mode="after")
    def _complete(self) -> Format:
        if (self.status == "refused") == (self.executes is not None):
            raise ValueError("a format names what it executes as, unless it is refused")
        if self.status in ("size_only", "refused") and not self.reason:
            raise ValueError("size_only and refused formats need a reason")
        return self


class Align(Strict):
    """Hard steps of channels and ranks: what the search may propose."""

    channel_step: Positive
    rank_step: Positive


class Blocks(Strict):
    """How kernels of one executed type round channels up inside; `odd` counts pay for copies."""

    input_channels: Positive
    output_channels: Positive
    odd: Positive


class Peak(Strict):
    """Peak multiply-accumulates per second of one executed type."""

    executes: Executes
    macs_s: Positive


class InPlace(Strict):
    """Families whose kernels may write over an input that nothing reads after them."""

    families: Annotated[list[Annotated[Family, Field(strict=False)]], Field(min_length=1)]
    basis: Basis
    source: Text

    @model_validator(mode="after")
    def _elementwise(self) -> InPlace:
        wrong = [family.value for family in self.families if family not in (Family.ADD, Family.ELEMENTWISE)]
        if wrong:
            raise ValueError(f"{wrong[0]} kernels would read what they have written over (allowed: add, elementwise)")
        return self


class Memory(Strict):
    """Capacities and bandwidth; what is unknown is left out.

    Attributes:
        bandwidth_bytes_s: Of the memory that holds weights and activations.
        sram_bytes: Capacity for activations and the runtime's own data.
        flash_bytes: Capacity for weights.
        runtime_bytes: What the runtime needs beside activations, whatever the network.
        runtime_bytes_per_kernel: What it needs on top for every kernel.
        in_place: Which kernels write over their input.
    """

    bandwidth_bytes_s: Positive | None = None
    sram_bytes: Positive | None = None
    flash_bytes: Positive | None = None
    runtime_bytes: NotNegative | None = None
    runtime_bytes_per_kernel: NotNegative | None = None
    in_place: InPlace | None = None


class Correction(Strict):
    """Boosted regression trees on measured / roofline - 1, as numbers in text (never a pickle).

    `features`, `thresholds` and `leaves` are whitespace-separated, trees one after another; every tree is
    complete with `depth` levels: 2**depth - 1 splits in heap order, then 2**depth leaves.
    """

    depth: Annotated[int, Field(ge=1, le=8)]
    features: str
    thresholds: str
    leaves: str
    lower: str
    upper: str
    basis: Basis
    source: Text


class Predictor(Strict):
    """The aligned roofline of one family in one executed type: microseconds per unit of each feature."""

    family: Annotated[Family, Field(strict=False)]
    executes: Executes
    terms: Annotated[dict[str, NotNegative], Field(min_length=1)]
    correction: Correction | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:  # noqa: ANN401 - unvalidated document
        if isinstance(data, dict):
            _known_keys(data.get("terms"), list(FEATURES), "feature")
        return data


class BoundaryCost(Strict):
    """Cost of one kind of conversion."""

    kind: Literal["quantize", "dequantize"]
    terms: Annotated[dict[str, NotNegative], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:  # noqa: ANN401 - unvalidated document
        if isinstance(data, dict):
            _known_keys(data.get("terms"), list(BOUNDARY_FEATURES), "feature")
        return data


class Latency(Strict):
    """Everything that turns a cost view into milliseconds.

    `anchors` says what networks of a model the figures were corrected by, and how.
    """

    anchors: str = ""
    session_us: NotNegative
    alignment: dict[Executes, Blocks]
    predictors: Annotated[list[Predictor], Field(min_length=1)]
    boundaries: list[BoundaryCost] = []
    calibration: dict[Executes, Positive] = {}
    interval_low: Positive
    interval_high: Positive

    @model_validator(mode="after")
    def _around_the_prediction(self) -> Latency:
        if not self.interval_low.value <= 1.0 <= self.interval_high.value:
            raise ValueError("interval_low is at most 1 and interval_high at least 1: they multiply the prediction")
        return self


class Validation(Strict):
    """How far predictions were from measurements that no coefficient has seen.

    `calibrated_on` counts the measurements that the coefficients of this check rest on; `unknown` the rows that the
    profile has no figures for, which are not among the `n`.
    """

    set: Text
    n: Annotated[int, Field(ge=1)]
    mape: Annotated[float, Field(ge=0)]
    within10: Annotated[float, Field(ge=0, le=1)]
    within5: Annotated[float, Field(ge=0, le=1)] | None = None
    bias: float | None = None
    spearman: Annotated[float, Field(ge=-1, le=1)] | None = None
    calibrated_on: Annotated[int, Field(ge=0)] | None = None
    unknown: Annotated[int, Field(ge=0)] | None = None
    source: Text


class ProfileDocument(Strict):
    """A whole profile."""

    schema_: Annotated[Literal["hwprofile/1"], Field(alias="schema")]
    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    kind: Literal["cpu", "gpu", "npu", "mcu"]
    tier: Literal["T0", "T1", "T2"]
    notes: str = ""
    runtime: Runtime
    host: Host | None = None
    formats: list[Format]
    float_families: dict[Annotated[Family, Field(strict=False)], Text] = {}
    align: Align
    peaks: list[Peak] = []
    memory: Memory = Memory()
    latency: Latency | None = None
    active_power_mw: Positive | None = None
    validation: list[Validation] = []

    @model_validator(mode="after")
    def _tier_rules(self) -> ProfileDocument:
        if self.tier == "T0":
            if self.latency is not None:
                raise ValueError("a T0 profile ranks only: it must not have a latency section")
            if not self.peaks or self.memory.bandwidth_bytes_s is None:
                raise ValueError("a T0 profile needs peaks and memory.bandwidth_bytes_s")
            return self
        if self.latency is None:
            raise ValueError(f"a {self.tier} profile needs a latency section")
        if not self.validation:
            raise ValueError(f"a {self.tier} profile needs at least one validation entry")
        return self


def _known_keys(terms: Any, allowed: list[str], kind: str) -> None:  # noqa: ANN401 - unvalidated document
    for name in terms if isinstance(terms, dict) else ():
        if name not in allowed:
            close = difflib.get_close_matches(str(name), allowed, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown {kind} {name!r}{hint}")


def parse_profile(document: Any, source: str) -> ProfileDocument:  # noqa: ANN401 - unvalidated document
    """Check a parsed document.

    Raises:
        ProfileError: One line with the file, the path inside it, what is wrong, and the nearest key.
    """
    try:
        return ProfileDocument.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ProfileError(f"{source}: {_describe(dict(first))}") from None


def _describe(error: dict[str, Any]) -> str:
    location = list(error["loc"])
    path = ".".join(str(part) for part in location) or "document"
    if error["type"] != "extra_forbidden":
        message = str(error["msg"]).removeprefix("Value error, ")
        return f"{path}: {message[0].lower()}{message[1:]}"
    allowed = _keys_at(location[:-1])
    close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{path}: unknown key{hint} (allowed: {', '.join(allowed)})"


def _keys_at(location: list[Any]) -> list[str]:
    """The keys that the schema allows at a path."""
    model: Any = ProfileDocument
    for part in location:
        if isinstance(part, int) or not hasattr(model, "model_fields"):
            continue
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if part in fields:
            model = _model_inside(fields[part].annotation)
    return [field.alias or name for name, field in getattr(model, "model_fields", {}).items()]


def _model_inside(annotation: Any) -> Any:  # noqa: ANN401 - a type expression
    """The first model named inside a type such as `list[Model] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_inside(inner)
        if found is not None:
            return found
    return None
