"""Reusing what is known of a model without searching: on another device, or on another model.

On the same model another device is a matter of new costs: its losses are known, choices that it offers and the recipe's
device did not are measured, and the front is solved exactly. On another model the policies are carried over unit by
unit, the table is predicted, and the front is solved for that. Nothing is built: `applying` builds, and verifies.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from paretopress.evaluators.budgets import Budget
from paretopress.evaluators.data import Data
from paretopress.evaluators.sensitivity_prior import SensitivityPrior
from paretopress.search.problem import Problem, SearchSettings, prepare_problem
from paretopress.search.reachability import check_feasible, reachable
from paretopress.search.resolving import Resolved, covered_table, settings_of, solved_again
from paretopress.search.warm_start import features_of
from paretopress.spaces.choices import choice_to_plain
from paretopress.spaces.documents import canonical_json
from paretopress.spaces.errors import PolicyError
from paretopress.spaces.policy_transfer import PolicyTransfer, transfer_policy
from paretopress.spaces.recipe import Recipe
from paretopress.spaces.unit_mapping import UnitMapping, map_units

if TYPE_CHECKING:
    from paretopress.search.observer import Observer

DEVICE, MODEL = "device", "model"


@dataclass(frozen=True)
class Reused:
    """What became of a recipe on a model and its devices.

    Attributes:
        kind: `"device"`: the same model, its own losses; `"model"`: another one, predicted losses.
        resolved: The predicted front, None where the source has no table.
        mapping: Which units stand for which, None where only names are known.
        transfers: Carried policies by name.
        refused: Policies that do not fit, with the reason.
        seconds: For all of it.
    """

    kind: str
    resolved: Resolved | None
    mapping: UnitMapping | None
    transfers: tuple[tuple[str, PolicyTransfer], ...]
    refused: tuple[tuple[str, str], ...]
    seconds: float

    def to_plain(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "schema": 1, "kind": self.kind, "seconds": self.seconds,
            "mapping": None if self.mapping is None else self.mapping.to_plain(),
            "policies": [{"name": name, **one.to_plain()} for name, one in self.transfers],
            "refused": [{"name": name, "reason": reason} for name, reason in self.refused],
            "front": None if self.resolved is None else self.resolved.to_plain(),
        }


def reuse(
    recipe: Recipe, model: nn.Module, data: Data, *, targets: Sequence[str] = (), budgets: Sequence[Budget] = (),
    partial: bool = False, observer: Observer,
) -> Reused:
    """Carry what is known of a model to another device or model.

    Args:
        recipe: What is known.
        model: The model to carry it to; it is not changed.
        data: Its data; only calibration samples are used, and only where a device offers what is not measured.
        targets: Devices, by default the recipe's.
        budgets: Budgets on costs.
        partial: Whether policies are carried where only some of their units fit.
        observer: Hears about progress.

    Raises:
        PolicyError: No policy fits and there is no table.
        ConfigError: No device is named and the recipe names none, or a budget makes no sense.
        InfeasibleError: The budgets are out of reach.
    """
    start = time.perf_counter()
    observer.stage("capture", None)
    settings = replace(_settings(recipe), budgets=tuple(budgets))
    if targets:
        settings = replace(settings, targets=tuple(targets))
    problem = prepare_problem(model, data, settings)
    same = recipe.provenance.get("model") in (problem.model_fingerprint, problem.program.structure.fingerprint)
    transfers, refused = _carried(problem, recipe, partial=partial)
    resolved = None
    if recipe.losses:
        check_feasible(problem, reachable(problem))
        resolved = _solved(problem, recipe, observer, start, same=same)
    elif not transfers:
        raise PolicyError(f"{recipe.name}: {refused[0][1] if refused else 'it holds no policy and no table'}")
    mapping = map_units(recipe.features, features_of(problem)) if recipe.features else None
    return Reused(DEVICE if same else MODEL, resolved, mapping, transfers, refused, time.perf_counter() - start)


def _settings(recipe: Recipe) -> SearchSettings:
    """The settings that the recipe's table was measured with, as far as it tells."""
    plain = recipe.provenance.get("settings")
    if plain:
        return settings_of({"config": {"settings": plain}}, recipe.name)
    devices = tuple(recipe.provenance.get("devices", ())) or ("local",)
    return SearchSettings(targets=devices, trials=1, distil="off")


def _solved(problem: Problem, recipe: Recipe, observer: Observer, start: float, *, same: bool) -> Resolved:
    if same:
        known = {(unit, _key(choice)): loss for unit, row in recipe.losses.items()
                 for option, (choice, loss) in enumerate(zip(recipe.options[unit], row, strict=True))
                 if choice is not None and (unit, option) not in recipe.estimated}
        table, computed = covered_table(problem, known, observer)
    else:
        prior = SensitivityPrior([recipe], features_of(problem), problem.space.options)
        table, computed = prior.table(), 0
    return solved_again(problem, table, computed, start, (), observer)


def _key(choice: Any) -> str:  # noqa: ANN401 - one of the choices
    return canonical_json(choice_to_plain(choice))


def _carried(
    problem: Problem, recipe: Recipe, *, partial: bool
) -> tuple[tuple[tuple[str, PolicyTransfer], ...], tuple[tuple[str, str], ...]]:
    features = features_of(problem)
    found: list[tuple[str, PolicyTransfer]] = []
    refused: list[tuple[str, str]] = []
    for one in recipe.policies:
        try:
            found.append((one.name, transfer_policy(
                one.policy, problem.program.structure, features, recipe.features, options=problem.space.options,
                partial=partial, model=problem.model_fingerprint, space=problem.space.fingerprint,
            )))
        except PolicyError as error:
            refused.append((one.name, str(error)))
    return tuple(found), tuple(refused)
