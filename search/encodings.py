"""Encodings: which parameters an Optuna sampler sees, and which genome they stand for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from paretopress.search.additive_model import method_of
from paretopress.search.option_space import Genome, OptionSpace
from paretopress.search.reweighting import Decoder
from paretopress.search.surrogate import Guide

if TYPE_CHECKING:
    import optuna

STRONGEST = math.log(8.0)   # factor by which a weight may scale the losses of a stage or method, either way
GRID = 12                   # prices at which the plain table is decoded, to know seeds again


class Encoding(Protocol):
    """Parameters of a genome."""

    space: OptionSpace

    @property
    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """The parameters: at most one per unit."""

    @property
    def replayed(self) -> bool:
        """Whether a resumed run has to ask again to know what earlier genomes were decoded from."""

    def genome(self, parameters: Mapping[str, Any]) -> Genome:
        """The canonical genome of parameters."""

    def parameters(self, genome: Genome) -> dict[str, Any] | None:
        """Parameters of a genome, None where none are known."""


class FullEncoding:
    """One categorical parameter per unit."""

    replayed = False

    def __init__(self, space: OptionSpace) -> None:
        import optuna

        self.space = space
        categorical = optuna.distributions.CategoricalDistribution
        self.distributions: dict[str, optuna.distributions.BaseDistribution] = {
            unit: categorical(labels) for unit, labels in space.labels.items()
        }

    def genome(self, parameters: Mapping[str, Any]) -> Genome:
        """The genome of one label per unit."""
        return self.space.canonical(self.space.genome_of_labels(parameters))

    def parameters(self, genome: Genome) -> dict[str, Any] | None:
        """One label per unit."""
        labels = self.space.labels
        return {unit: labels[unit][index] for unit, index in zip(self.space.units, genome, strict=True)}


class ReweightedEncoding:
    """Weights of the stages and methods of the table, the split of the budget between costs, and a price.

    Genomes that the plain table gives at some price are known again; of others nobody knows the weights.
    """

    replayed = True

    def __init__(self, space: OptionSpace, guide: Guide) -> None:
        import optuna

        self.space = space
        self._decoder = Decoder(space, guide.losses, guide.terms, guide.hopeless)
        stages = [guide.stages.get(unit, 0) for unit in space.units]
        methods = [method_of(unit) for unit in space.units]
        self._names = [(f"weight of stage {stage}", f"weight of {method}")
                       for stage, method in zip(stages, methods, strict=True)]
        weights = sorted({name for pair in self._names for name in pair})
        real = optuna.distributions.FloatDistribution
        self.distributions: dict[str, optuna.distributions.BaseDistribution] = {
            **{name: real(-STRONGEST, STRONGEST) for name in weights},
            **{f"share of {name}": real(0.0, 1.0) for name in self._decoder.costs[1:]},
            "price": real(0.0, 1.0),
        }
        self._known: dict[Genome, dict[str, Any]] | None = None

    def genome(self, parameters: Mapping[str, Any]) -> Genome:
        """What the solver decodes."""
        multipliers = np.exp([sum(parameters[name] for name in pair) for pair in self._names])
        mix, left = [], 1.0
        for name in self._decoder.costs[1:]:   # each takes its share of what the others leave
            mix.append(left * parameters[f"share of {name}"])
            left -= mix[-1]
        return self._decoder.decode(multipliers, np.array([left, *mix]), self._decoder.price_at(parameters["price"]))

    def parameters(self, genome: Genome) -> dict[str, Any] | None:
        """Parameters by which the plain table gives a genome, of the nearest one where it does not."""
        if self._known is None:
            self._known = {}
            shares = [name for name in self.distributions if name.startswith("share of ")]
            plain = dict.fromkeys(self.distributions, 0.0)
            for corner in itertools.product((0.0, 0.5, 1.0), repeat=len(shares)):
                for price in np.linspace(0.0, 1.0, GRID):
                    found = {**plain, **dict(zip(shares, corner, strict=True)), "price": float(price)}
                    self._known.setdefault(self.genome(found), found)
        nearest = min(self._known, key=lambda one: sum(a != b for a, b in zip(one, genome, strict=True)))
        return self._known[nearest]
