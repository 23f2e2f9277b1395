"""Reading `front.json`, the one document that `demo`, `search` and `front` print: checked, never trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from paretopress.result import FRONT_FILE, Front, Point
from paretopress.spaces.errors import ArtifactError, PolicyError
from paretopress.spaces.policy import Policy


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
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ArtifactError(f"{source}: predicted.{name}: expected a number or null, got {value!r}")
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
