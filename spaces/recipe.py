"""Recipes: what a run learnt of a model, in one file that others can read, share and start from.

A recipe holds the features of a model's units, the losses of their choices, the policies that a run ended with, and
where all of that comes from. It is plain JSON with one unit per line; it names no code and holds no weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from paretopress.spaces.choices import Choice, choice_from_plain, choice_to_plain, describe
from paretopress.spaces.documents import canonical_json, check_schema, fingerprint, read_document, write_text
from paretopress.spaces.errors import ArtifactError, PolicyError, unknown_name
from paretopress.spaces.policy import Policy
from paretopress.spaces.unit_features import COLUMNS, UnitFeatures

SCHEMA = "paretopress-recipe/1"
SUFFIX = ".recipe.json"
DENSE_TEXT = "dense"
_KEYS = ("schema", "name", "provenance", "columns", "features", "options", "table", "policies")

Options = tuple[Choice | None, ...]


@dataclass(frozen=True)
class RecipePolicy:
    """A policy with what came of it.

    Attributes:
        name: Such as `"knee"` or the number of a finalist.
        policy: What was done to each unit.
        values: Objectives and other figures by name.
        verified: Whether they were measured on data that the search never saw.
    """

    name: str
    policy: Policy
    values: Mapping[str, float]
    verified: bool


@dataclass(frozen=True)
class Recipe:
    """What is known of one model.

    Attributes:
        name: A short name, such as `resnet20`.
        provenance: Where it comes from: model and data fingerprints, devices, metric, versions, seed, samples.
        features: Of the model's layers and channel groups, by the keys of `unit_features`; empty of a bare policy.
        options: Choices per unit, None for dense.
        losses: The loss of every option alone, in the order of `options`.
        estimated: `(unit, option)` that were not measured.
        policies: The policies, the best first.
    """

    name: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, UnitFeatures] = field(default_factory=dict)
    options: Mapping[str, Options] = field(default_factory=dict)
    losses: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    estimated: frozenset[tuple[str, int]] = frozenset()
    policies: tuple[RecipePolicy, ...] = ()

    @classmethod
    def of_policy(cls, policy: Policy, name: str) -> Recipe:
        """Return a recipe that knows one policy and nothing of the model it was made for.

        Args:
            policy: The policy.
            name: Of the recipe and of the policy in it.
        """
        provenance = {"model": policy.model} if policy.model else {}
        return cls(name, provenance, policies=(RecipePolicy(name, policy, {}, verified=False),))

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the content, the name apart."""
        return fingerprint({**self.to_plain(), "name": ""})

    @property
    def cells(self) -> int:
        """How many choices its table holds."""
        return sum(len(row) - 1 for row in self.losses.values())

    def to_plain(self) -> dict[str, Any]:
        """Return the recipe as plain data; losses have four significant digits."""
        lists: dict[str, str] = {}
        table = []
        for unit, options in self.options.items():
            text = canonical_json([None if one is None else choice_to_plain(one) for one in options])
            key = lists.setdefault(text, f"o{len(lists)}")
            row = [unit, key, [float(f"{loss:.4g}") for loss in self.losses[unit]]]
            missing = sorted(index for one, index in self.estimated if one == unit)
            table.append([*row, missing] if missing else row)
        return {
            "schema": SCHEMA, "name": self.name, "provenance": dict(self.provenance), "columns": list(COLUMNS),
            "features": [[subject, *one.to_plain()] for subject, one in self.features.items()],
            "options": {key: json.loads(text) for text, key in lists.items()},
            "table": table,
            "policies": [{
                "name": one.name, "verified": one.verified, "values": dict(one.values),
                "units": {unit: self._shown(unit, choice) for unit, choice in one.policy},
            } for one in self.policies],
        }

    def _shown(self, unit: str, choice: Choice) -> object:
        """A choice in words where the unit's options have it under these words alone, else as plain data."""
        words = [DENSE_TEXT if one is None else describe(one) for one in self.options.get(unit, ())]
        known = choice in self.options.get(unit, ()) and words.count(describe(choice)) == 1
        return describe(choice) if known else choice_to_plain(choice)

    @classmethod
    def from_plain(cls, value: object, source: str = "recipe") -> Recipe:
        """Return the recipe that plain data describe, as `to_plain` writes them.

        Args:
            value: A mapping with the key `schema`.
            source: What error messages start with, such as the name of a file.

        Raises:
            PolicyError: Another schema, an unknown key, or a value that makes no sense; the message starts with
                `source`.
        """
        if not isinstance(value, Mapping):
            raise PolicyError(f"{source}: a recipe is a mapping with the key 'schema'")
        check_schema(value.get("schema"), SCHEMA, source)
        for key in value:
            if key not in _KEYS:
                raise PolicyError(f"{source}: {unknown_name('key', str(key), _KEYS)}")
        try:
            columns = [str(name) for name in value.get("columns", COLUMNS)]
            features = {str(row[0]): UnitFeatures.from_plain(columns, row[1:], f"{source}: features.{row[0]}")
                        for row in value.get("features", ())}
            lists = {str(key): _options(row, f"{source}: options.{key}")
                     for key, row in value.get("options", {}).items()}
            recipe = cls(str(value.get("name", "")), dict(value.get("provenance", {})), features)
            recipe = replace(recipe, **_table(value.get("table", ()), lists, source))
            policies = tuple(_policy(one, recipe, f"{source}: policies[{index}]")
                             for index, one in enumerate(value.get("policies", ())))
        except (TypeError, AttributeError, IndexError, KeyError, ValueError) as error:
            if isinstance(error, PolicyError):
                raise
            raise PolicyError(f"{source}: damaged: {type(error).__name__}: {error}") from None
        return replace(recipe, policies=policies)

    def save(self, path: Path) -> None:
        """Write the recipe atomically, one unit per line. Raises `DiskError`."""
        write_text(path, recipe_text(self))

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Return the recipe in a file. Raises `ConfigError` or `PolicyError` with the file's name."""
        return cls.from_plain(read_document(Path(path)), str(path))


def recipe_text(recipe: Recipe) -> str:
    """The JSON of a recipe with one layer, unit and choice per line."""
    plain = recipe.to_plain()
    parts = []
    for key, value in plain.items():
        if key in ("features", "table") and value:
            rows = ",\n    ".join(json.dumps(row, allow_nan=False) for row in value)
            parts.append(f'  "{key}": [\n    {rows}\n  ]')
        elif key == "policies" and value:
            rows = ",\n    ".join(_policy_text(row) for row in value)
            parts.append(f'  "{key}": [\n    {rows}\n  ]')
        elif key == "options" and value:
            rows = ",\n    ".join(f'"{name}": {json.dumps(row, allow_nan=False)}' for name, row in value.items())
            parts.append(f'  "{key}": {{\n    {rows}\n  }}')
        else:
            parts.append(f'  "{key}": {json.dumps(value, sort_keys=True, allow_nan=False)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _policy_text(row: Mapping[str, Any]) -> str:
    head = json.dumps({key: value for key, value in row.items() if key != "units"}, allow_nan=False)
    units = ",\n      ".join(f"{json.dumps(unit)}: {json.dumps(choice)}" for unit, choice in row["units"].items())
    return f'{head[:-1]}, "units": {{\n      {units}}}}}'


def _options(rows: object, where: str) -> Options:
    if not isinstance(rows, list) or not rows:
        raise PolicyError(f"{where}: expected a list of choices, null for dense")
    return tuple(None if row is None else choice_from_plain(row, where) for row in rows)


def _table(rows: Any, lists: Mapping[str, Options], source: str) -> dict[str, Any]:  # noqa: ANN401
    options: dict[str, Options] = {}
    losses: dict[str, tuple[float, ...]] = {}
    estimated: set[tuple[str, int]] = set()
    for row in rows:
        unit, where = str(row[0]), f"{source}: table.{row[0]}"
        if row[1] not in lists:
            raise PolicyError(f"{where}: {unknown_name('list of options', str(row[1]), lists)}")
        options[unit], values = lists[row[1]], row[2]
        if len(values) != len(options[unit]):
            raise PolicyError(f"{where}: {len(values)} losses for {len(options[unit])} options")
        for loss in values:
            if isinstance(loss, bool) or not isinstance(loss, int | float) or not 0.0 <= loss < math.inf:
                raise PolicyError(f"{where}: a loss is a number from 0, got {loss!r}")
        losses[unit] = tuple(float(loss) for loss in values)
        estimated |= {(unit, int(index)) for index in (row[3] if len(row) > 3 else ())}
    return {"options": options, "losses": losses, "estimated": frozenset(estimated)}


def _policy(plain: Mapping[str, Any], recipe: Recipe, where: str) -> RecipePolicy:
    units: dict[str, Choice] = {}
    for unit, shown in plain["units"].items():
        if isinstance(shown, str):
            words = {describe(one): one for one in recipe.options.get(unit, ()) if one is not None}
            if shown not in words:
                raise PolicyError(f"{where}: units.{unit}: {unknown_name('choice', shown, words)}")
            units[unit] = words[shown]
        else:
            units[unit] = choice_from_plain(shown, f"{where}: units.{unit}")
    values = {str(name): float(value) for name, value in plain.get("values", {}).items()}
    if not all(map(math.isfinite, values.values())):
        raise PolicyError(f"{where}: values are finite numbers")
    policy = Policy.of(units, model=str(recipe.provenance.get("model", "")))
    return RecipePolicy(str(plain.get("name", "")), policy, values, bool(plain.get("verified", False)))


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file, or a policy file as a recipe of that policy alone.

    Raises:
        ConfigError: The file cannot be read.
        PolicyError: It is neither, or of a newer schema.
        ArtifactError: It is a folder.
    """
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder: expected a recipe or policy file")
    plain = read_document(path)
    schema = plain.get("schema", "") if isinstance(plain, Mapping) else ""
    if str(schema).startswith("paretopress-recipe/"):
        return Recipe.from_plain(plain, str(path))
    policy = Policy.from_plain(plain, str(path))
    return Recipe.of_policy(policy, path.name.partition(".")[0])
