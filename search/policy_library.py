"""The policy library: a folder of recipes with an index, and everything else that a search can start from.

A source is a run directory, a recipe or policy file, a folder of recipes, or the name of a recipe that comes with the
package. The index is a convenience for people and listings: recipes are the truth, and a stale index is made anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paretopress.search.ledger import DOCUMENT, read_run
from paretopress.search.pareto import spread_order
from paretopress.search.records import TrialRecord
from paretopress.spaces.choices import Choice, choice_from_plain
from paretopress.spaces.documents import check_schema, disk_error, read_document, write_json
from paretopress.spaces.errors import ArtifactError, ConfigError, PolicyError, unknown_name
from paretopress.spaces.policy import Policy
from paretopress.spaces.recipe import SUFFIX, Recipe, RecipePolicy, load_recipe
from paretopress.spaces.unit_features import COLUMNS, UnitFeatures

INDEX = "index.json"
INDEX_SCHEMA = "paretopress-policy-library/1"
UNITS = "units.json"
UNITS_SCHEMA = "paretopress-units/1"
SHIPPED = Path(__file__).parent / "recipes"
MOST_POLICIES = 6   # of a run, spread over its front
_LOSS = ("accuracy", "accuracy_drop", "size_bytes", "latency_ms", "speedup", "macs")


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.name.removesuffix(SUFFIX): path for path in sorted(SHIPPED.glob(f"*{SUFFIX}"))}


def read_source(source: str | Path) -> tuple[Recipe, ...]:
    """Read what a search can start from.

    Args:
        source: A run directory, a recipe or policy file, a folder of recipes, or a shipped recipe's name.

    Raises:
        ConfigError: There is no such thing, with the nearest name.
        PolicyError: A file is malformed or of a newer schema.
        ArtifactError: A run is damaged, or was made before its units were described.
    """
    path = Path(source)
    if (path / DOCUMENT).exists():
        return (recipe_of_run(path),)
    if path.is_dir():
        recipes = tuple(Recipe.load(file) for file in sorted(path.glob(f"*{SUFFIX}")))
        if not recipes:
            raise ConfigError(f"{path}: neither a run directory nor a folder with recipes (*{SUFFIX})")
        return recipes
    if path.exists():
        return (load_recipe(path),)
    shipped = shipped_recipes()
    if str(source) in shipped:
        return (Recipe.load(shipped[str(source)]),)
    raise ConfigError(f"no file or folder {source}; {unknown_name('recipe', str(source), shipped)}")


def add_to_library(folder: Path, recipe: Recipe) -> Path:
    """Store a recipe in a library and renew the index. Raises `DiskError`."""
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in recipe.name) or "recipe"
    path = folder / f"{name}{SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from None
    recipe.save(path)
    write_index(folder)
    return path


def write_index(folder: Path) -> dict[str, Any]:
    """Write the index of a library's recipes and return it. Raises `DiskError`, or as reading a recipe does."""
    plain = {"schema": INDEX_SCHEMA, "recipes": [
        {"file": path.name, "bytes": path.stat().st_size, **summary(Recipe.load(path))}
        for path in sorted(folder.glob(f"*{SUFFIX}"))
    ]}
    write_json(folder / INDEX, plain)
    return plain


def read_index(folder: Path) -> list[dict[str, Any]]:
    """What a library holds, from its index where that is up to date, else from the recipes themselves.

    Raises:
        ConfigError: No such folder.
        PolicyError: A recipe is malformed, or the index is of a newer schema.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    files = {path.name: path.stat().st_size for path in sorted(folder.glob(f"*{SUFFIX}"))}
    index = folder / INDEX
    if index.exists():
        plain = read_document(index)
        check_schema(plain.get("schema") if isinstance(plain, dict) else None, INDEX_SCHEMA, str(index))
        rows = plain.get("recipes")
        newer = index.stat().st_mtime_ns >= max((path.stat().st_mtime_ns for path in folder.glob(f"*{SUFFIX}")),
                                                default=0)
        if newer and isinstance(rows, list) and {row.get("file"): row.get("bytes") for row in rows} == files:
            return [dict(row) for row in rows]
    return [{"file": name, "bytes": size, **summary(Recipe.load(folder / name))} for name, size in files.items()]


def summary(recipe: Recipe) -> dict[str, Any]:
    """What a listing shows of a recipe."""
    told = recipe.provenance
    return {
        "name": recipe.name, "fingerprint": recipe.fingerprint, "model": told.get("model", ""),
        "model_name": told.get("model_name", ""), "devices": list(told.get("devices", ())),
        "metric": told.get("metric"), "baseline": told.get("baseline"),
        "layers": sum(name.endswith("/layer") for name in recipe.features),
        "groups": sum(name.endswith("/channels") for name in recipe.features),
        "choices": recipe.cells, "policies": [one.name for one in recipe.policies],
    }


def write_units(folder: Path, model: str, features: Mapping[str, UnitFeatures]) -> None:
    """Describe the units of a run's model beside its table. Raises `DiskError`."""
    write_json(folder / UNITS, {
        "schema": UNITS_SCHEMA, "model": model, "columns": list(COLUMNS),
        "features": [[name, *one.to_plain()] for name, one in features.items()],
    })


def recipe_of_run(run: Path, features: Mapping[str, UnitFeatures] | None = None, name: str = "") -> Recipe:
    """What a run learnt.

    Args:
        run: The run directory; it is not changed.
        features: Of the run's model, by default those that the run stored.
        name: Of the recipe, by default the run's.

    Raises:
        ConfigError: No run.
        ArtifactError: A file is damaged, or the run did not describe its units.
    """
    document, records = read_run(run)
    settings = dict(document.get("config", {}).get("settings", {}))
    options, losses, estimated = _table(run / "sensitivity.json")
    features = _units(run) if features is None else features
    front = _front(run)
    prints = document["fingerprints"]
    policies = _verified(front, run) or searched_policies(records)
    baseline = {key: value for key, value in (front.get("baseline") or {}).get("measured", {}).items()
                if key in _LOSS and isinstance(value, int | float) and math.isfinite(value)}
    provenance: dict[str, Any] = {
        "run": run.resolve().name, "model": prints.get("model", ""), "data": prints.get("data", ""),
        "model_name": document.get("config", {}).get("model", ""),
        "devices": list(settings.get("targets", ())),
        "settings": {key: settings.get(key) for key in ("targets", "seed", "importance", "ranges", "distil", "space")},
        "trials": len(records), "metric": front.get("metric"), "baseline": baseline,
        "host": front.get("host"), "versions": dict(document.get("versions") or {}),
    }
    return Recipe(name or run.resolve().name, provenance, dict(features), options, losses, estimated, policies)


def _units(run: Path) -> dict[str, UnitFeatures]:
    path = run / UNITS
    if not path.exists():
        raise ArtifactError(
            f"{run} does not describe its units ({UNITS} is missing): give its model and data with --model and --data"
        )
    plain = read_document(path)
    check_schema(plain.get("schema") if isinstance(plain, dict) else None, UNITS_SCHEMA, str(path))
    try:
        columns = [str(column) for column in plain["columns"]]
        rows = plain["features"]
        return {str(row[0]): UnitFeatures.from_plain(columns, row[1:], f"{path}: {row[0]}") for row in rows}
    except (KeyError, TypeError, IndexError, PolicyError) as error:
        raise ArtifactError(f"{path}: damaged: {error}") from None


def _table(path: Path) -> tuple[dict[str, tuple[Choice | None, ...]], dict[str, tuple[float, ...]],
                                frozenset[tuple[str, int]]]:
    if not path.exists():
        raise ArtifactError(f"{path.parent} holds no {path.name}: its table is not measured yet")
    plain = read_document(path)
    options: dict[str, tuple[Choice | None, ...]] = {}
    losses: dict[str, tuple[float, ...]] = {}
    estimated: set[tuple[str, int]] = set()
    try:
        for unit, rows in plain["options"].items():
            options[unit] = tuple(
                None if row["choice"] is None else choice_from_plain(row["choice"], f"{path}: {unit}") for row in rows
            )
            losses[unit] = tuple(float(row["loss"]) for row in rows)
            estimated |= {(unit, option) for option, row in enumerate(rows) if row.get("estimated")}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{path}: missing or damaged: {error}") from None
    return options, losses, frozenset(estimated)


def _front(run: Path) -> dict[str, Any]:
    path = run / "front.json"
    plain = read_document(path) if path.exists() else {}
    if not isinstance(plain, dict):
        raise ArtifactError(f"{path}: expected a mapping")
    return plain


def _verified(front: Mapping[str, Any], run: Path) -> tuple[RecipePolicy, ...]:
    """Policies of the verified front, spread over it, the knee first."""
    try:
        points = [one for one in front.get("points", ()) if one["why_not"] is None and one["policy"]]
        figures = [one["measured"] for one in points]
        rows = np.array([[-own["accuracy"], own["size_bytes"], own["latency_ms"] or own["macs"]] for own in figures])
        chosen = spread_order(rows.reshape(len(points), 3), MOST_POLICIES, relative_gap=0.02) if points else []
        chosen.sort(key=lambda index: not points[index]["knee"])
        return tuple(RecipePolicy(
            "knee" if points[index]["knee"] else str(points[index]["id"]),
            Policy.from_plain({"units": points[index]["policy"]}, str(run)),
            {name: float(value) for name, value in points[index]["measured"].items()
             if name in _LOSS and isinstance(value, int | float)}, verified=True,
        ) for index in chosen)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{run / 'front.json'}: missing or damaged: {error}") from None


def searched_policies(records: Sequence[TrialRecord]) -> tuple[RecipePolicy, ...]:
    """Policies of trials that nothing dominates, where nothing is verified yet."""
    kept = [record for record in records if record.feasible and not record.policy.is_dense]
    names = [name for name in (kept[0].values if kept else {}) if name not in ("accuracy", "divergence")
             and all(name in record.values for record in kept)]
    if not kept or any("divergence" not in record.values for record in kept):
        return ()
    rows = np.array([[record.values["divergence"], *(record.values[name] for name in names)] for record in kept])
    return tuple(RecipePolicy(f"trial {kept[index].number}", kept[index].policy, dict(kept[index].values),
                              verified=False)
                 for index in spread_order(rows, MOST_POLICIES, relative_gap=0.02))
