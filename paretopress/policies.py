"""Policies as users name them: listing, showing, comparing, exporting, carrying over, building."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretopress.search.policy_library import (
    add_to_library,
    read_index,
    read_source,
    recipe_of_run,
    shipped_recipes,
    summary,
)
from paretopress.spaces.choices import Choice, describe
from paretopress.spaces.documents import disk_error, write_json
from paretopress.spaces.errors import ConfigError, PolicyError, unknown_name
from paretopress.spaces.policy import Policy
from paretopress.spaces.recipe import SUFFIX, Recipe

if TYPE_CHECKING:
    from torch import nn

    from paretopress.evaluators.data import Data
    from paretopress.search.policy_reuse import Reused

DENSE = "dense"


def listed(library: Path | None) -> list[dict[str, Any]]:
    """The recipes of a folder, or those that come with the package.

    Raises:
        ConfigError: No such folder.
        PolicyError: A recipe is malformed.
    """
    if library is not None:
        return read_index(library)
    return [{"file": path.name, "bytes": path.stat().st_size, **summary(Recipe.load(path))}
            for path in shipped_recipes().values()]


def picked(source: str) -> tuple[Recipe, Policy]:
    """One policy of a source: `SOURCE` (its first) or `SOURCE:NAME`.

    Raises:
        ConfigError: No such source, several recipes, or no policy of that name.
    """
    where, name = source, ""
    if not Path(source).exists() and ":" in source:
        where, _, name = source.rpartition(":")
    recipe = single(where)
    names = [one.name for one in recipe.policies]
    if not names:
        raise ConfigError(f"{where} holds no policy")
    if name and name not in names:
        raise ConfigError(f"{where}: {unknown_name('policy', name, names)}")
    return recipe, recipe.policies[names.index(name) if name else 0].policy


def single(source: str | Path) -> Recipe:
    """The one recipe of a source. Raises `ConfigError` where it has several."""
    recipes = read_source(source)
    if len(recipes) > 1:
        raise ConfigError(f"{source} holds {len(recipes)} recipes: name one of its files, such as "
                          f"{Path(source) / (recipes[0].name + SUFFIX)}")
    return recipes[0]


def shown(recipe: Recipe) -> dict[str, Any]:
    """A recipe for reading: where it comes from, and its policies in words."""
    return {
        **summary(recipe), "provenance": dict(recipe.provenance),
        "contents": [{
            "name": one.name, "verified": one.verified, "values": dict(one.values), "policy_hash": one.policy.hash,
            "units": {unit: describe(choice) for unit, choice in one.policy},
        } for one in recipe.policies],
    }


def difference(first: Policy, second: Policy) -> list[dict[str, Any]]:
    """The units that two policies decide differently, in the order of their names."""
    units = sorted({*first.choices, *second.choices})

    def text(choice: Choice | None) -> str:
        return DENSE if choice is None else describe(choice)

    pairs = [(unit, first.choices.get(unit), second.choices.get(unit)) for unit in units]
    return [{"unit": unit, "first": text(one), "second": text(other)} for unit, one, other in pairs if one != other]


def exported(
    run: Path, output: Path | None, library: Path | None, name: str, model: nn.Module | None, data: Data | None
) -> tuple[Path, Recipe]:
    """Write what a run learnt as one recipe file, or into a library.

    Raises:
        ConfigError: No run, or the destination exists.
        ArtifactError: The run is damaged, or did not describe its units and no model is given.
        DiskError: It cannot be written.
    """
    features = None
    if model is not None and data is not None:
        features = _features(model, data)
    recipe = recipe_of_run(run, features, name)
    if library is not None:
        return add_to_library(library, recipe), recipe
    assert output is not None
    if output.exists():
        raise ConfigError(f"-o {output} exists; choose another file")
    if not output.name.endswith(".json"):
        raise ConfigError(f"-o {output}: a recipe is JSON (allowed: a name that ends in {SUFFIX} or .json)")
    recipe.save(output)
    return output, recipe


def _features(model: nn.Module, data: Data) -> Mapping[str, Any]:
    from paretopress.evaluators.construction import captured
    from paretopress.evaluators.data import prepare
    from paretopress.spaces.unit_features import unit_features

    program = captured(model, prepare(data).calibration)
    return unit_features(program.structure, program.state)


def write_reused(found: Reused, folder: Path) -> None:
    """Write carried policies as `NAME.yaml`, the predicted front as `front-N.yaml`, and what stands for what.

    Raises:
        DiskError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from None
    for name, one in found.transfers:
        one.policy.save(folder / f"{_file_name(name)}.yaml")
    if found.resolved is not None:
        for number, point in enumerate(found.resolved.points, 1):
            point.policy.save(folder / f"front-{number}.yaml")
        found.resolved.best.policy.save(folder / "best.yaml")
    plain = found.to_plain()
    write_json(folder / "transfer.json", {key: plain[key] for key in ("kind", "mapping", "policies", "refused")})


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name) or "policy"


def fitted_policy(source: str, model: nn.Module, data: Data, *, partial: bool) -> tuple[Policy, dict[str, Any] | None]:
    """The policy of a source for a model: as it is where it was made for it, else carried over.

    Returns:
        The policy, and what was carried from where, None where nothing had to be.

    Raises:
        PolicyError: It does not fit.
    """
    from paretopress.evaluators.construction import captured
    from paretopress.evaluators.data import prepare
    from paretopress.search.problem import state_hash
    from paretopress.spaces.documents import fingerprint
    from paretopress.spaces.plan import check_units
    from paretopress.spaces.policy_transfer import transfer_policy
    from paretopress.spaces.unit_features import unit_features

    recipe, policy = picked(source)
    program = captured(model, prepare(data).calibration)
    structure = program.structure
    own = fingerprint([structure.fingerprint, state_hash(program.state)])
    if policy.model in (own, structure.fingerprint):
        check_units(structure, policy)
        return policy, None
    if not policy.model and not recipe.features:
        check_units(structure, policy)
        return policy, None
    if not recipe.features and not partial:
        raise PolicyError(
            f"{source} was made for another model (fingerprint {policy.model}, this one's is {own}): carry it over "
            "with 'paretopress policy transfer', or apply what fits with --partial"
        )
    transfer = transfer_policy(
        policy, structure, unit_features(structure, program.state), recipe.features, partial=partial, model=own
    )
    return replace(transfer.policy, model=own), transfer.to_plain()
