"""Settings: a YAML file, `--set` overrides and flags become one checked `SearchSettings`.

A settings file is data: factories are named on the command line or in Python, never in a file.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paretopress.evaluators.budgets import UNITS, Budget, parse_budget
from paretopress.spaces.choices import BASES, CLUSTER_BITS, Sparse, choice_from_plain
from paretopress.spaces.documents import parse_yaml, read_document
from paretopress.spaces.errors import ConfigError, PolicyError, nearest, unknown_name
from paretopress.spaces.space import SpaceSettings

if TYPE_CHECKING:
    from paretopress.compressors.distillation import DistillationSettings
    from paretopress.search.problem import SearchSettings

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s)?")
_FACTORY_KEYS = ("model", "data")
Fraction = Annotated[float, Field(gt=0, le=1)]


class _Strict(BaseModel):
    """No unknown keys, no coercion, finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SearchSection(_Strict):
    """How the space is searched."""

    effort: Literal["quick", "balanced", "thorough"] = "balanced"
    trials: Annotated[int, Field(ge=1, le=10**9)] | None = None
    time: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    sampler: Literal["pareto", "nsga2", "nsga3", "tpe", "gp", "random", "evolution", "ddpg"] = "pareto"
    encoding: Literal["auto", "reweighted", "full"] = "auto"
    importance: Literal["obs", "taylor", "fisher", "hessian", "fpgm", "bn_scale", "l2", "l1"] = "obs"
    ranges: Literal["mse", "minmax", "percentile"] = "mse"
    proxy: Literal[
        "auto", "divergence", "output_error", "snr", "taylor", "fisher", "hessian", "interactions"
    ] = "auto"
    subsets: bool = True
    distil: Literal["auto", "train", "calibration", "off"] = "auto"
    finalists: Annotated[int, Field(ge=1)] | None = None   # the effort's
    workers: Annotated[int, Field(ge=1)] | None = None
    executor: Literal["serial", "processes", "ray", "tune"] | None = None   # by workers and ray
    ray: str | None = None
    warm_start: str | None = None
    worker_resources: str | None = None
    scheduler: Literal["fifo", "asha"] = "fifo"
    storage_path: str | None = None


class SpaceSection(_Strict):
    """What may be chosen."""

    keep: list[Fraction] = list(SpaceSettings().keep)
    rank: list[Fraction] = list(SpaceSettings().rank)
    rank_kinds: list[Literal["svd", "nmf", "spatial", "tucker"]] = ["svd"]
    bits: list[Literal[2, 3, 4, 8]] = list(SpaceSettings().bits)  # type: ignore[arg-type]
    end_bits: Literal[2, 3, 4, 8] = SpaceSettings().end_bits  # type: ignore[assignment]
    schemes: list[Literal["symmetric", "asymmetric", "tensor"]] = ["symmetric"]
    groups: list[Literal[0, 16, 32, 64, 128, 256]] = [0]
    halves: list[Literal["fp16", "bf16"]] = []
    clusters: list[Annotated[int, Field(ge=CLUSTER_BITS[0], le=CLUSTER_BITS[-1])]] = []
    binary: list[Annotated[int, Field(ge=BASES[0], le=BASES[-1])]] = []
    sparsity: list[float | str] = []
    depth: bool = SpaceSettings().depth
    exclude: list[str] = []
    pin: dict[str, dict[str, Any]] = {}


class AugmentationSection(_Strict):
    """How the inputs of distillation are varied; a key that is left out keeps its default."""

    mixup: float | None = None
    noise: float | None = None
    difference: float | None = None
    shift: float | None = None
    mirror: float | None = None


class DistillationSection(_Strict):
    """How finalists are distilled; a key that is left out keeps its default."""

    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    temperature: float | None = None
    features: float | None = None
    narrowed: bool | None = None
    held_out: float | None = None
    blocks: float | None = None
    bfloat16: bool | None = None
    augmentation: AugmentationSection = AugmentationSection()


class TimingSection(_Strict):
    """How finalists are timed."""

    runs: Annotated[int, Field(ge=1)] | None = None   # the effort's


class Document(_Strict):
    """A whole settings file."""

    version: Literal[1] = 1
    targets: Annotated[list[str], Field(min_length=1)] = ["local"]
    budgets: dict[str, str] = {}
    max_drop: str | None = None
    search: SearchSection = SearchSection()
    space: SpaceSection = SpaceSection()
    distillation: DistillationSection = DistillationSection()
    timing: TimingSection = TimingSection()


def read_settings(path: Path) -> dict[str, Any]:
    """Read a settings file and check it.

    Returns:
        The plain document; keys that the file leaves out are absent.

    Raises:
        ConfigError: `path: key: what is wrong`, with the nearest key.
    """
    content = read_document(path)
    plain = {} if content is None else content
    _validate(plain, str(path))
    return dict(plain)


def override(plain: Mapping[str, Any], assignment: str) -> dict[str, Any]:
    """Return a document with one `--set key=value` applied.

    Args:
        plain: The document.
        assignment: `search.trials=50`: a dotted key and a YAML value.

    Raises:
        ConfigError: No `=`, an unknown key, or a value of the wrong type.
    """
    source = f"--set {assignment}"
    key, equals, text = assignment.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"{source}: write key=value, such as search.trials=50")
    changed = replaced(plain, path, parse_yaml(text, source))
    _validate(changed, source)
    return changed


def replaced(plain: Mapping[str, Any], path: Sequence[str], value: object) -> dict[str, Any]:
    """Return a document with the value at `path` replaced; missing levels are made."""
    head, *rest = path
    if not rest:
        return {**plain, head: value}
    inner = plain.get(head)
    return {**plain, head: replaced(inner if isinstance(inner, Mapping) else {}, rest, value)}


def with_arguments(
    plain: Mapping[str, Any],
    targets: Sequence[str] = (),
    limits: Mapping[str, str | None] | None = None,
    max_drop: str | None = None,
    search: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a document with flags or keyword arguments applied; None means that one was not given.

    `time` and `trials` are two ways to say how long: giving one takes the place of the document's other.
    """
    given = {name: value for name, value in (search or {}).items() if value is not None}
    section = dict(plain.get("search") or {})
    for one, other in (("time", "trials"), ("trials", "time")):
        if one in given:
            section.pop(other, None)
    limited = {name: text for name, text in (limits or {}).items() if text is not None}
    changed = {
        **plain,
        "search": {**section, **given},
        "budgets": {**(plain.get("budgets") or {}), **limited},
    }
    if targets:
        changed["targets"] = list(targets)
    if max_drop is not None:
        changed["max_drop"] = max_drop
    return changed


def search_settings(
    plain: Mapping[str, Any], source: str = "settings", name: str = "search"
) -> SearchSettings:
    """Turn a checked document into the search's settings.

    Args:
        plain: The document, flags applied.
        source: For messages.
        name: Of the run; part of the default run directory.

    Raises:
        ConfigError: A value is outside its range, or a budget is malformed or names no target.
    """
    from paretopress.search.efforts import EFFORTS
    from paretopress.search.problem import SearchSettings
    from paretopress.search.worker_resources import parse_worker_resources

    document = _validate(plain, source)
    search = document.search
    effort = EFFORTS[search.effort]
    seconds = None if search.time is None else parse_duration(search.time, f"{source}: search.time")
    if seconds is None and search.trials is None:
        seconds = parse_duration(effort.time, "effort")
    workers = search.workers or (1 if search.executor == "serial" else default_workers(search.trials))
    return SearchSettings(
        targets=tuple(document.targets),
        budgets=parse_budgets(document.budgets, document.max_drop, document.targets),
        seconds=seconds,
        trials=search.trials,
        seed=search.seed,
        workers=workers,
        ray=search.ray,
        executor=_executor(search, workers, source),
        resources=parse_worker_resources(search.worker_resources or "cpu=1"),
        scheduler=search.scheduler,
        storage_path=_storage_path(search.storage_path),
        sampler=search.sampler,
        encoding=search.encoding,
        importance=search.importance,
        ranges=search.ranges,
        proxy=search.proxy,
        subsets=search.subsets,
        distil=search.distil,
        distillation=_distillation(document.distillation, source, effort.steps),
        finalists=search.finalists or effort.finalists,
        space=_space(document.space, source),
        timing_runs=document.timing.runs or effort.timing_runs,
        warm_start=search.warm_start or "",
        name=name,
    )


def check_settings(plain: Mapping[str, Any], source: str) -> None:
    """Check a document as `search_settings` does, without importing what a search needs.

    Raises:
        ConfigError: As `search_settings`.
    """
    document = _validate(plain, source)
    parse_budgets(document.budgets, document.max_drop, document.targets)
    if document.search.time is not None:
        parse_duration(document.search.time, f"{source}: search.time")


def _executor(search: SearchSection, workers: int, source: str) -> str:
    """Return the executor's name inside; refuse keys that only another one would read. Raises `ConfigError`."""
    chosen = search.executor or ("ray" if search.ray else "processes" if workers > 1 else "serial")
    others = {"ray": search.ray is not None, "worker_resources": search.worker_resources is not None}
    if chosen in ("serial", "processes") and any(others.values()):
        key = next(key for key, given in others.items() if given)
        raise ConfigError(f"{source}: search.{key}: executor {chosen} has no cluster (allowed: executor ray or tune)")
    if chosen != "tune" and (search.scheduler != "fifo" or search.storage_path is not None):
        key = "storage_path" if search.scheduler == "fifo" else "scheduler"
        raise ConfigError(f"{source}: search.{key} is for executor tune, not {chosen}")
    if chosen == "serial" and workers > 1:
        raise ConfigError(f"{source}: search.workers: executor serial has one, not {workers} (allowed: processes)")
    return "process" if chosen == "processes" else chosen


def _storage_path(text: str | None) -> str | None:
    """Make a folder absolute, because other processes have other working folders; a URI stays."""
    return text if text is None or "://" in text else str(Path(text).resolve())


def default_workers(trials: int | None) -> int:
    """One worker for a number of trials, which makes the run repeatable; else one per core, at most 8."""
    return 1 if trials is not None else max(1, min(8, len(os.sched_getaffinity(0))))


def parse_budgets(
    limits: Mapping[str, str], max_drop: str | None, targets: Sequence[str]
) -> tuple[Budget, ...]:
    """Parse limits on costs and the allowed loss of accuracy.

    Raises:
        ConfigError: An unknown objective or target, or a malformed limit.
    """
    budgets = []
    for objective, text in limits.items():
        base, at, target = objective.partition("@")
        if base not in UNITS:
            hint = " (the loss of accuracy is limited with max_drop)" if base in ("accuracy", "drop") else ""
            raise ConfigError(f"budget {objective}: {unknown_name('objective', base, UNITS)}{hint}")
        if at and target not in targets:
            raise ConfigError(f"budget {objective}: {unknown_name('target', target, targets)}")
        budgets.append(parse_budget(text, objective))
    if max_drop is not None:
        budgets.append(parse_budget(max_drop, "accuracy"))
    return tuple(budgets)


def parse_duration(text: str, where: str) -> float:
    """Return seconds from `90s`, `5m`, `1h` or `1h30m`.

    Raises:
        ConfigError: Not a duration, or not above zero.
    """
    match = _DURATION.fullmatch(text.strip().replace(" ", ""))
    seconds = 0.0
    if match is not None:
        hours, minutes, rest = (float(part or 0) for part in match.groups())
        seconds = 3600 * hours + 60 * minutes + rest
    if not 0 < seconds < math.inf:
        raise ConfigError(
            f"{where}: got {text!r} (allowed: a duration above 0 such as '90s', '5m' or '1h30m')"
        )
    return seconds


def _distillation(section: DistillationSection, source: str, steps: int | None = None) -> DistillationSettings:
    from paretopress.compressors.augmentation import Augmentation
    from paretopress.compressors.distillation import DistillationSettings

    given = {**({} if steps is None else {"steps": steps}), **section.model_dump(exclude_none=True)}
    try:
        return DistillationSettings(**given | {"augmentation": Augmentation(**given["augmentation"])})
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _space(section: SpaceSection, source: str) -> SpaceSettings:
    pins = {
        unit: choice_from_plain(choice, f"{source}: space.pin.{unit}") for unit, choice in section.pin.items()
    }
    return SpaceSettings(
        keep=tuple(section.keep),
        rank=tuple(section.rank),
        rank_kinds=tuple(section.rank_kinds),
        bits=tuple(section.bits),
        end_bits=section.end_bits,
        schemes=tuple(section.schemes),
        groups=tuple(section.groups),
        halves=tuple(section.halves),
        clusters=tuple(section.clusters),
        binary=tuple(section.binary),
        sparsity=tuple(section.sparsity),
        depth=section.depth,
        exclude=tuple(section.exclude),
        pin=pins,
    )


def _validate(plain: object, source: str) -> Document:
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{source}: expected keys such as targets and search, got {_shown(plain)}")
    for key in _FACTORY_KEYS:
        if key in plain:
            raise ConfigError(
                f"{source}: {key}: a settings file is data and names no code; "
                f"pass --{key} package.module:function on the command line"
            )
    try:
        document = Document.model_validate(dict(plain))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error)}") from None
    for index, text in enumerate(document.space.sparsity):
        try:
            Sparse.of(text)
        except PolicyError as error:
            raise ConfigError(f"{source}: space.sparsity[{index}]: {error}") from None
    if "distillation" in plain:   # its ranges are checked where torch is imported: not for every file
        _distillation(document.distillation, source)
    return document


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
}


_EXAMPLES = {
    "budgets": " such as '-50%', '<=5ms' or '<=200kB'", "max_drop": " such as '1pp' or '2%'", "time": " such as '5m'",
}


def _first_problem(error: ValidationError) -> str:
    """Return `path: what` of the first problem; unknown keys come first, they often explain the others."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{path}: {_unknown_key(problem['loc'])}"
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        allowed = (
            problem.get("ctx", {}).get("expected", "").replace(" or ", ", ").replace("'", "").split(", ")
        )
        return f"{path}: {unknown_name('value', problem['input'], allowed)}"
    expected = _EXPECTED.get(problem["type"])
    text = f"expected {expected}" if expected else problem["msg"].lower().removeprefix("input ")
    if problem["type"] == "string_type":
        text += _EXAMPLES.get(str(problem["loc"][0 if problem["loc"][0] == "budgets" else -1]), "")
    return f"{path}: {text}, got {_shown(problem['input'])}"


def _unknown_key(path: Sequence[int | str]) -> str:
    model: type[BaseModel] = Document
    for part in path[:-1]:
        annotation = model.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    close = nearest(str(path[-1]), model.model_fields)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown key{hint} (allowed: {', '.join(model.model_fields)})"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
