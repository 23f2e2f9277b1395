"""The option space: every unit's legal choices in order, and policies as tuples of option indices."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from paretopress.spaces.choices import Choice, Keep, choice_to_plain, conflict
from paretopress.spaces.documents import canonical_json
from paretopress.spaces.errors import ConfigError, PolicyError, unknown_name
from paretopress.spaces.policy import Policy

Genome = tuple[int, ...]
"""One option index per unit, in the order of `OptionSpace.units`; all zeros is the dense policy."""


@dataclass(frozen=True)
class OptionSpace:
    """Units and their options.

    Attributes:
        units: Unit names, sorted.
        options: Per unit the legal choices in order of strength, first None (dense).
        model: Fingerprint that the policies carry, `""` where none is claimed.
        space: Fingerprint of the search space that the policies carry.
        inside: Units that decide nothing once another unit drops the branch they are inside of, by that unit.
    """

    units: tuple[str, ...]
    options: tuple[tuple[Choice | None, ...], ...]
    model: str = ""
    space: str = ""
    inside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        options: Mapping[str, Sequence[Choice | None]],
        *,
        model: str = "",
        space: str = "",
        inside: Mapping[str, tuple[str, ...]] | None = None,
    ) -> OptionSpace:
        """Return the space of a mapping of unit names to options.

        Raises:
            ConfigError: A unit's options do not start with dense, or repeat.
        """
        for unit, choices in options.items():
            if not choices or (choices[0] is not None and len(choices) > 1):   # a pinned unit has one choice
                raise ConfigError(f"unit {unit!r}: the first option must be dense (None)")
            if len(set(choices)) != len(choices):
                raise ConfigError(f"unit {unit!r}: an option occurs twice")
        units = tuple(sorted(options))
        return cls(units, tuple(tuple(options[unit]) for unit in units), model, space, inside or {})

    @property
    def size(self) -> int:
        """How many genomes there are; some of them may mean the same, see `canonical`."""
        return math.prod(len(choices) for choices in self.options)

    @property
    def dense(self) -> Genome:
        """The genome of the dense policy."""
        return (0,) * len(self.units)

    @cached_property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Per unit the options as canonical JSON, `null` for dense."""
        def label(choice: Choice | None) -> str:
            return "null" if choice is None else canonical_json(choice_to_plain(choice))

        return {
            unit: tuple(map(label, choices)) for unit, choices in zip(self.units, self.options, strict=True)
        }

    @cached_property
    def _movable(self) -> tuple[int, ...]:
        return tuple(index for index, choices in enumerate(self.options) if len(choices) > 1)

    @cached_property
    def _droppers(self) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
        """Position of each unit that can drop a branch, the option that does, the positions inside."""
        position = {unit: index for index, unit in enumerate(self.units)}
        found = []
        for unit, inside in self.inside.items():
            if unit in position and Keep(0.0) in self.options[position[unit]]:
                drops = self.options[position[unit]].index(Keep(0.0))
                found.append((position[unit], drops, tuple(position[one] for one in inside if one in position)))
        return tuple(found)

    @cached_property
    def _conflicts(self) -> tuple[tuple[int, int, frozenset[int]], ...]:
        """Positions of sparsity and format of a layer, and the options of the latter that exclude the former."""
        position = {unit: index for index, unit in enumerate(self.units)}
        found = []
        for unit, index in position.items():
            subject, _, kind = unit.rpartition("/")
            other = position.get(f"{subject}/weights")
            if kind == "sparsity" and other is not None:
                clashing = [number for number, choice in enumerate(self.options[other])
                            if conflict(self.options[index][-1], choice)]
                found.append((index, other, frozenset(clashing)))
        return tuple(found)

    @cached_property
    def _clashes(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """`_conflicts` as arrays: the two positions, shape (n,), and which options exclude, shape (n, options)."""
        places = np.array([(one, other) for one, other, _ in self._conflicts], dtype=np.int64).reshape(-1, 2)
        clashes = np.zeros((len(places), max(map(len, self.options), default=1)), dtype=bool)
        for row, (_, _, clashing) in zip(clashes, self._conflicts, strict=True):
            row[list(clashing)] = True
        return places[:, 0], places[:, 1], clashes

    def canonical(self, genome: Genome) -> Genome:
        """Return the genome of a network that can be built, whose units inside dropped branches are dense.

        Of two choices for a layer that do not go together the format of its weights stays.
        """
        result = list(genome)
        for position, drops, inside in self._droppers:
            if genome[position] == drops:
                for index in inside:
                    result[index] = 0
        for sparsity, weights, clashing in self._conflicts:
            if result[weights] in clashing:
                result[sparsity] = 0
        return tuple(result)

    def canonical_rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """`canonical` for all rows of an array, shape (n, units), at once; the array itself is changed."""
        for position, drops, inside in self._droppers:
            rows[np.ix_(rows[:, position] == drops, inside)] = 0
        sparsity, weights, clashes = self._clashes
        rows[:, sparsity] *= ~clashes[np.arange(len(weights)), rows[:, weights]]
        return rows

    def policy(self, genome: Genome) -> Policy:
        """Return the policy of a genome."""
        chosen = (choices[index] for choices, index in zip(self.options, genome, strict=True))
        kept = {unit: choice for unit, choice in zip(self.units, chosen, strict=True) if choice is not None}
        return Policy.of(kept, model=self.model, space=self.space)

    def genome(self, policy: Policy) -> Genome:
        """Return the genome of a policy.

        Raises:
            PolicyError: The policy names a unit or a choice that this space does not have.
        """
        genome = list(self.dense)
        positions = {unit: position for position, unit in enumerate(self.units)}
        for unit, choice in policy:
            if unit not in positions:
                raise PolicyError(f"policy {policy.hash}: {unknown_name('unit', unit, self.units)}")
            position = positions[unit]
            if choice not in self.options[position]:
                raise PolicyError(f"policy {policy.hash}: {choice} is not an option of unit {unit!r}")
            genome[position] = self.options[position].index(choice)
        return tuple(genome)

    def genome_of_labels(self, labels: Mapping[str, str]) -> Genome:
        """Return the genome of one label per unit."""
        return tuple(self.labels[unit].index(labels[unit]) for unit in self.units)

    def genome_at(self, index: int) -> Genome:
        """Return genome number `index` modulo `size`, counting like an odometer."""
        genome = []
        for choices in reversed(self.options):
            index, digit = divmod(index, len(choices))
            genome.append(digit)
        return tuple(reversed(genome))

    def stepped(self, genome: Genome, units: int, rng: random.Random) -> Genome:
        """Return `genome` with up to `units` random units moved one step along their options."""
        result = list(genome)
        for position in rng.sample(self._movable, min(units, len(self._movable))):
            last = len(self.options[position]) - 1
            steps = [step for step in (-1, 1) if 0 <= result[position] + step <= last]
            result[position] += rng.choice(steps)
        return tuple(result)

    def scattered(self, genome: Genome, rng: random.Random) -> Genome:
        """Return `genome` with a random share of its units set to random options.

        The share is log-uniform between one unit and all of them, so that near and far are both visited.
        """
        rate = len(self._movable) ** -rng.random() if self._movable else 0.0
        return tuple(
            rng.randrange(len(choices)) if len(choices) > 1 and rng.random() < rate else index
            for choices, index in zip(self.options, genome, strict=True)
        )
