"""Settings as plain data, read back: a worker on another host searches what the coordinator does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from paretopress.compressors.augmentation import Augmentation
from paretopress.compressors.distillation import DistillationSettings
from paretopress.evaluators.budgets import parse_budget
from paretopress.search.problem import SearchSettings
from paretopress.search.worker_resources import WorkerResources
from paretopress.spaces.choices import choice_from_plain
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.space import SpaceSettings


def settings_from_plain(plain: Mapping[str, Any], source: str) -> SearchSettings:
    """Read what `SearchSettings.to_plain` returned, without what only the coordinator uses.

    That is the library that its search starts from, and callbacks: evaluations do not depend on them.

    Args:
        plain: The data; a storage's content is not trusted.
        source: For messages.

    Raises:
        ConfigError: Not such data, or of another version.
    """
    known = {field.name for field in fields(SearchSettings)} - {"tune_callbacks"}
    if set(plain) != known:
        raise ConfigError(f"{source}: not the settings of a search of this version")
    values = {**plain, "library": (), "warm_start": ""}
    try:
        space = dict(values.pop("space"))
        pins = {unit: choice_from_plain(choice, f"{source}: pin.{unit}") for unit, choice in space.pop("pin").items()}
        lists: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                                 for name, value in space.items()}
        distillation = dict(values.pop("distillation"))
        augmentation = Augmentation(**distillation.pop("augmentation"))
        resources = WorkerResources(**values.pop("resources"))
        budgets = tuple(parse_budget(one["limit"], one["objective"]) for one in values.pop("budgets"))
        return SearchSettings(
            **{**values, "targets": tuple(values["targets"])},
            resources=resources,
            budgets=budgets,
            distillation=DistillationSettings(**distillation, augmentation=augmentation),
            space=SpaceSettings(**lists, pin=pins),
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{source}: not the settings of a search of this version: {error}") from None
