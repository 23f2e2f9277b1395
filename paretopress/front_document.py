"""Reading `front.json`, the one document that `demo`, `search` and `front` print: checked, never trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from paretopress.result import FRONT_FILE, Front, Point
from paretopress.spaces.errors import ArtifactError, PolicyError
from paretopress.spaces.policy import Policy

LARGEST = 1e300   # no count of bytes or operations; larger whole numbers are no floats


def read_front(plain: object, folder: Path) -> Front:
    """Check the content of `front.json`.

    Raises:
        ArtifactError: A key is missing or of the wrong type.
    """
    source = str(folder / FRONT_FILE)
    if not isinstance(plain, Mapping):
        raise ArtifactError(f"{source}: expected a mapping with baseline and points")
    for key, kind in (("baseline", Mapping), ("points", list)):
        if not isinstance(plain.get(key), kind):
            raise ArtifactError(f"{source}: {key}: missing or damaged")
    points = tuple(
        read_point(item, folder, f"{source}: points[{i}]") for i, item in enumerate(plain["points"])
    )
    _check_metric(plain.get("metric"), source)
    _check_facts(plain, source)
    others = plain.get("comparisons") or []
    if not isinstance(others, list):
        raise ArtifactError(f"{source}: comparisons: expected a list")
    return Front(
        points,
        read_point(plain["baseline"], folder, f"{source}: baseline"),
        tuple(read_point(item, folder, f"{source}: comparisons[{i}]") for i, item in enumerate(others)),
        dict(plain),
    )


def _check_metric(plain: object, source: str) -> None:
    if plain is None:
        return
    if (
        not isinstance(plain, Mapping)
        or not isinstance(plain.get("name"), str)
        or plain.get("direction") not in ("max", "min")
    ):
        raise ArtifactError(f"{source}: metric: expected a name and a direction, max or min, got {plain!r:.60}")


def _check_facts(plain: Mapping[str, object], source: str) -> None:
    """Refuse what the lines under a table would stumble over."""
    error = plain.get("latency_error") or {}
    if not isinstance(error, Mapping) or not all(
        value is None or isinstance(value, str) or _is_number(value) for value in error.values()
    ):
        raise ArtifactError(f"{source}: latency_error: expected names with numbers, got {error!r:.60}")
    for key in ("median_abs_pct", "speedup_median_abs_pct", "spearman"):
        if isinstance(error.get(key), str):
            raise ArtifactError(f"{source}: latency_error.{key}: expected a number, got {error[key]!r:.60}")
    for key in ("target", "budgets"):
        value = plain.get(key)
        if value is not None and not isinstance(value, list | str):
            raise ArtifactError(f"{source}: {key}: expected a list, got {value!r:.60}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _is_measured(name: str, value: object) -> bool:
    """Whether a measured value is what its name says: a range, a text, what was compared, or a number."""
    if name.endswith(("_iqr", "_interval")):
        return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    if name in ("host", "device"):
        return isinstance(value, str)
    return isinstance(value, Mapping) if name == "parity" else _is_number(value)


def read_point(plain: object, folder: Path, source: str) -> Point:
    """Check one point of `front.json`. Raises `ArtifactError`."""
    if not isinstance(plain, Mapping):
        raise ArtifactError(f"{source}: expected a mapping")
    kinds: dict[str, tuple[type, ...]] = {
        "id": (int,),
        "policy": (Mapping,),
        "feasible": (bool,),
        "knee": (bool,),
        "predicted": (Mapping,),
        "measured": (Mapping,),
        "why_not": (str, type(None)),
        "name": (str, type(None)),
    }
    for key, allowed in kinds.items():
        if (key not in plain and key != "name") or not isinstance(plain.get(key), allowed):
            raise ArtifactError(f"{source}: {key}: missing or damaged")
    for name, value in plain["predicted"].items():
        if value is not None and not _is_number(value):
            raise ArtifactError(f"{source}: predicted.{name}: expected a number or null, got {value!r:.60}")
    for name, value in plain["measured"].items():
        if value is not None and not _is_measured(name, value):
            raise ArtifactError(f"{source}: measured.{name}: damaged: {value!r:.60}")
    units = plain["policy"]
    try:
        policy = Policy.from_plain(units if "units" in units else {"units": units}, f"{source}: policy")
    except PolicyError as error:
        raise ArtifactError(str(error)) from None
    if plain.get("policy_hash") != policy.hash:
        raise ArtifactError(
            f"{source}: the policy does not match its policy_hash {plain.get('policy_hash')!r}"
        )
    return Point(
        plain["id"],
        policy,
        plain["measured"],
        plain["predicted"],
        plain.get("name"),
        plain["feasible"],
        plain["knee"],
        plain["why_not"],
        folder / "models" / str(plain["id"]),
    )
