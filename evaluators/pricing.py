"""Predicted costs of many policies at once: the same numbers as `CostModel.predict`, thousands of times a second.

A network's cost is a sum over its kernels, and a kernel's cost depends on little: how many channels its inputs and
outputs keep, its own rank and format, whether it computes in integers, what it absorbs. `spaces/batch_view.py` finds
these facts for n policies side by side; here they are keys into a table per kernel. A key that a table lacks is priced
by the same code that prices single plans (`spaces/cost_view.py`, `DeviceProfile.kernel_cost`), once.

Which option of a unit a policy takes is an index: policies are rows of shape `(n, units)`, int64, in the order of
`PolicyPricer.units`, option 0 being the first of the unit's options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paretopress.evaluators.price_batch import PriceBatch
from paretopress.evaluators.price_tables import Array, Integers
from paretopress.evaluators.priced_space import PricedSpace
from paretopress.spaces.choices import Choice
from paretopress.spaces.errors import ConfigError, PolicyError, unknown_name
from paretopress.spaces.plan import check_units, plan
from paretopress.spaces.policy import DENSE, Policy
from paretopress.spaces.structure import Structure

if TYPE_CHECKING:
    from paretopress.evaluators.costs import CostModel

Bools = NDArray[np.bool_]
CHUNK = 4096   # policies side by side: their arrays fit into the cache


class PolicyPricer:
    """Prices policies of one model in one space.

    Tables grow with what is priced, so that an instance is worth keeping. It is not safe for threads.

    Attributes:
        units: Units in the order of a row's columns.
    """

    def __init__(
        self, structure: Structure, options: Mapping[str, Sequence[Choice | None]], costs: CostModel
    ) -> None:
        """Args are the model, every unit's options, and the target devices."""
        self.units, self._costs = tuple(options), costs
        self._space = PricedSpace(structure, options, costs.devices)
        self._options = self._space.options

    @property
    def entries(self) -> int:
        """How many rows the tables hold."""
        return self._space.entries

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the costs, as `CostModel.predict` has them."""
        return tuple(self._dense)

    def predict(self, rows: Integers) -> dict[str, Array]:
        """Return all predicted costs of policies.

        Args:
            rows: Option numbers, shape `(n, units)`; what does not go together must not stand in one row.

        Returns:
            By the names of `CostModel.predict` arrays of shape `(n,)`, equal to its numbers up to rounding.

        Raises:
            ConfigError: Another number of units, or an option that a unit does not have.
        """
        rows = self._checked(rows)
        chunks = [self._predict(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]
        return {name: np.concatenate([np.empty(0), *(chunk[name] for chunk in chunks)]) for name in self.names}

    def rows(self, policies: Sequence[Policy]) -> Integers:
        """Return policies as rows. Raises `PolicyError` where the space does not have a unit or a choice."""
        found = np.zeros((len(policies), len(self.units)), dtype=np.int64)
        for place, choices in enumerate(self._options):
            found[:, place] = choices.index(None) if None in choices else 0
        for row, policy in zip(found, policies, strict=True):
            for unit, choice in policy:
                column = self._space.column(unit)
                if column is None:
                    raise PolicyError(f"policy {policy.hash}: {unknown_name('unit', unit, self.units)}")
                if choice not in self._options[column]:
                    raise PolicyError(f"policy {policy.hash}: {choice} is not an option of unit {unit!r}")
                row[column] = self._options[column].index(choice)
        return found

    def _checked(self, rows: Integers) -> Integers:
        rows = np.asarray(rows, dtype=np.int64)
        if rows.ndim != 2 or rows.shape[1] != len(self.units):
            raise ConfigError(f"rows of option numbers have shape (n, {len(self.units)}), got {rows.shape}")
        counts = np.array([len(choices) for choices in self._options], dtype=np.int64)
        wrong = np.argwhere((rows < 0) | (rows >= counts))
        if len(wrong):
            row, column = wrong[0]
            raise ConfigError(
                f"row {row}: unit {self.units[column]!r} has options 0..{counts[column] - 1}, got {rows[row, column]}"
            )
        return rows

    @cached_property
    def _dense(self) -> dict[str, float]:
        return self._costs.predict(plan(self._space.structure, DENSE))

    def _predict(self, rows: Integers) -> dict[str, Array]:
        found = PriceBatch(self._space, rows).costs(self._costs.latency_names)
        if self._costs.dense:
            found["robust"] = self._costs.robust(found)
        for row in np.flatnonzero(self._is_dense(rows)):   # batch normalisation is not folded there
            for name, value in self._dense.items():
                found[name][row] = value
        return found

    def _is_dense(self, rows: Integers) -> Bools:
        dense = np.ones(len(rows), dtype=bool)
        for column, choices in enumerate(self._options):
            dense &= np.array([choice is None for choice in choices])[rows[:, column]]
        return dense


def price_policies(structure: Structure, costs: CostModel, policies: Sequence[Policy]) -> dict[str, Array]:
    """Return the predicted costs of any policies of a model, by name, arrays of shape `(n,)`.

    For a few hundred policies and more; those that are priced again and again are rows of a `PolicyPricer`.

    Raises:
        PolicyError: A policy has a unit that the model lacks, or a choice that the unit cannot take.
    """
    options: dict[str, dict[Choice | None, None]] = {}
    for policy in policies:
        for unit, choice in policy:
            options.setdefault(unit, {None: None}).setdefault(choice)
    for unit, choices in options.items():
        for one in choices:
            check_units(structure, Policy.of({} if one is None else {unit: one}))
    pricer = PolicyPricer(structure, {unit: tuple(choices) for unit, choices in options.items()}, costs)
    return pricer.predict(pricer.rows(policies))
