"""A prior of a model's sensitivity table from the tables of other models: a Gaussian process over units and choices.

The logarithm of a loss is a level, plus a curve for each family of choices, plus what a unit like this one adds, plus
what this model, and this very unit, add: independent Gaussian terms whose variances add up (Rasmussen and Williams,
"Gaussian Processes for Machine Learning", 2006, sections 2.2 and 4.2.4). Units are alike as far as their features are
(`spaces.unit_mapping.distances`), so that one model of the losses serves models of one family, whose units have the
same names and places, and of different ones. A few losses measured on the model itself correct all the others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from paretopress.evaluators.sensitivity import (
    USUAL_EXPONENT,
    Cell,
    SensitivityTable,
    amount,
    monotone,
)
from paretopress.spaces.choice_families import Family, kind_of
from paretopress.spaces.choices import Choice, Factorised, Weights
from paretopress.spaces.recipe import Recipe
from paretopress.spaces.unit_features import UnitFeatures, subject_of
from paretopress.spaces.unit_mapping import distances

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
LEAST, MOST = 1e-6, 30.0   # nats: what lies outside is as good as dense, or as bad as anything
MOST_KNOWN = 1600          # losses of other models that are used
MOST_SOURCES = 4           # models
MOST_CANDIDATES = 1200     # choices that the next ones to measure are picked from


@dataclass(frozen=True)
class Scales:
    """Standard deviations of the terms of the logarithm of a loss, in nats.

    Attributes:
        level: Of all losses.
        family: Of a family of choices, and `family_slope` of its growth with the strength.
        alike: Of units that are alike, over all families; `alike_family` of one; `alike_slope` of its growth.
        model: Of a model; `model_family` of one family there; `model_slope` of its growth.
        unit: Of one unit; `unit_family` of one family there.
        noise: Of a single loss.
        reach: Distance of features at which units have little in common.
    """

    level: float = 2.0
    family: float = 1.5
    family_slope: float = 0.7
    alike: float = 1.0
    alike_family: float = 0.7
    alike_slope: float = 0.3
    model: float = 0.7
    model_family: float = 0.5
    model_slope: float = 0.15
    unit: float = 0.5
    unit_family: float = 0.35
    noise: float = 0.3
    reach: float = 1.0


@dataclass(frozen=True)
class Cells:
    """Choices of units of several models, one entry each.

    Attributes:
        models: Number of the model.
        subjects: Number of the subject, over all models.
        families: Number of the family.
        strengths: Logarithm of how much is removed, about its mean over families.
    """

    models: IntArray
    subjects: IntArray
    families: IntArray
    strengths: Array

    def take(self, rows: IntArray) -> Cells:
        """Some of the entries."""
        return Cells(self.models[rows], self.subjects[rows], self.families[rows], self.strengths[rows])

    def __len__(self) -> int:
        return len(self.models)


class SensitivityPrior:
    """Predicts the losses of a model's choices from other models' tables and its own losses so far."""

    def __init__(
        self,
        sources: Sequence[Recipe],
        features: Mapping[str, UnitFeatures],
        options: Mapping[str, Sequence[Choice | None]],
        scales: Scales | None = None,
    ) -> None:
        """Learn the sources.

        Args:
            sources: What is known of other models; those without a table teach nothing.
            features: Of the model's layers and groups.
            options: Its choices per unit.
            scales: Of the terms.
        """
        self._scales = scales or Scales()
        self._options = options
        chosen = _nearest_sources([one for one in sources if one.losses and one.features], features)
        self.sources = tuple(one.name for one in chosen)
        index = _Index([*(one.features for one in chosen), features])
        known = [(number, unit, option, loss) for number, one in enumerate(chosen)
                 for unit, row in one.losses.items() if subject_of(unit) in one.features
                 for option, loss in enumerate(row)
                 if one.options[unit][option] is not None and (unit, option) not in one.estimated]
        step = max(1, math.ceil(len(known) / MOST_KNOWN))
        known = known[::step]
        own = len(chosen)
        self.cells: list[Cell] = [(unit, option) for unit, choices in options.items() if subject_of(unit) in features
                                  for option, choice in enumerate(choices) if choice is not None]
        self._place = {cell: row for row, cell in enumerate(self.cells)}
        theirs = [(number, unit, chosen[number].options[unit][option]) for number, unit, option, _ in known]
        ours = [(own, unit, options[unit][option]) for unit, option in self.cells]
        self._all = index.cells([*theirs, *ours])
        self._known = np.arange(len(known))
        self._values = np.array([_log(loss) for *_, loss in known])
        self._own = np.arange(len(known), len(known) + len(self.cells))
        self._alike = np.exp(-0.5 * (index.apart / self._scales.reach) ** 2)
        self._mean = float((self._values - self._trend(self._known)).mean()) if len(known) else math.log(0.01)
        self._measured: dict[int, float] = {}
        self._fit: tuple[IntArray, Array, tuple[Array, bool], Array] | None = None

    @property
    def measured(self) -> dict[Cell, float]:
        """The model's own losses so far."""
        return {self.cells[row]: math.exp(value) for row, value in self._measured.items()}

    def learn(self, measured: Mapping[Cell, float]) -> None:
        """Take note of losses of the model itself."""
        for cell, loss in measured.items():
            if cell in self._place:
                self._measured[self._place[cell]] = _log(loss)
        self._fit = None

    def predict(self, cells: Sequence[Cell] | None = None) -> tuple[Array, Array]:
        """Logarithms of the losses to be expected, shape (cells,), and their standard deviations."""
        rows = self._own if cells is None else self._own[[self._place[cell] for cell in cells]]
        known, _, factor, solved = self._fitted()
        means = self._trend(rows) + self._mean
        variances = self._variance(rows)
        if len(known):
            cross = self._covariance(rows, known)
            means = means + cross @ solved
            variances = variances - (solve_triangular(factor[0], cross.T, lower=True) ** 2).sum(axis=0)
        return means, np.sqrt(np.maximum(variances, 1e-12))

    def next_cells(self, count: int, among: Collection[Cell]) -> list[Cell]:
        """The choices whose losses would say most about all others: the most uncertain, one after the other.

        Each time the one of the largest variance is taken as measured, which is what the next one is uncertain given
        (greedy maximisation of the entropy, Krause, Singh and Guestrin 2008, section 3.1).

        Args:
            count: How many.
            among: What may be picked.
        """
        rows = np.array([row for row, cell in enumerate(self.cells) if cell in among and row not in self._measured],
                        dtype=np.int64)
        if len(rows) > MOST_CANDIDATES:
            rows = rows[np.linspace(0, len(rows) - 1, MOST_CANDIDATES).astype(int)]
        if not len(rows):
            return []
        own = self._own[rows]
        left = self._covariance(own, own)
        known, _, factor, _ = self._fitted()
        if len(known):
            half = solve_triangular(factor[0], self._covariance(own, known).T, lower=True)
            left = left - half.T @ half
        noise = self._scales.noise**2
        found: list[int] = []
        for _ in range(min(count, len(rows))):
            variances = np.diag(left).copy()
            variances[found] = -math.inf
            best = int(np.argmax(variances))
            found.append(best)
            left = left - np.outer(left[best], left[best]) / (left[best, best] + noise)
        return [self.cells[rows[one]] for one in found]

    def table(self, together: float | None = None) -> SensitivityTable:
        """The table: what was measured, and the medians of the rest, marked as estimated.

        Args:
            together: The measured loss of all layers in 8 bits at once: the losses of single layers add up to it.
        """
        means, _ = self.predict()
        losses = {unit: [0.0] * len(choices) for unit, choices in self._options.items()}
        for row, (unit, option) in enumerate(self.cells):
            losses[unit][option] = math.exp(self._measured.get(row, float(means[row])))
        if together is not None:
            self._scale_together(losses, together)
        measured = {self.cells[row] for row in self._measured}
        estimated = frozenset((unit, option) for unit, choices in self._options.items()
                              for option, choice in enumerate(choices)
                              if choice is not None and (unit, option) not in measured)
        table = {unit: monotone(tuple(self._options[unit]), row) for unit, row in losses.items()}
        return SensitivityTable(table, estimated)

    def _scale_together(self, losses: Mapping[str, list[float]], together: float) -> None:
        """Bring the 8-bit losses to a sum; what narrower weights lose on top stays."""
        base = {unit: choices.index(Weights(8)) for unit, choices in
                ((unit, list(choices)) for unit, choices in self._options.items()) if Weights(8) in choices}
        alone = sum(losses[unit][option] for unit, option in base.items())
        if alone <= 0.0:
            return
        for unit, option in base.items():
            change = losses[unit][option] * (together / alone - 1.0)
            for other, choice in enumerate(self._options[unit]):
                if isinstance(choice, Weights) and choice.activations == 8:
                    losses[unit][other] = max(0.0, losses[unit][other] + change)

    def _fitted(self) -> tuple[IntArray, Array, tuple[Array, bool], Array]:
        if self._fit is None:
            own = np.array(sorted(self._measured), dtype=np.int64)
            known = np.concatenate([self._known, self._own[own]])
            values = np.concatenate([self._values, np.array([self._measured[int(row)] for row in own])])
            if not len(known):
                empty = np.zeros(0)
                return known, values, (np.zeros((0, 0)), True), empty
            covariance = self._covariance(known, known)
            covariance[np.diag_indices_from(covariance)] += self._scales.noise**2 + 1e-9
            factor = cho_factor(covariance, lower=True)
            solved = cho_solve(factor, values - self._mean - self._trend(known))
            self._fit = known, values, (np.tril(factor[0]), True), np.asarray(solved, dtype=np.float64)
        return self._fit

    def _trend(self, rows: IntArray) -> Array:
        """A loss grows with the square of what is removed."""
        found: Array = USUAL_EXPONENT * self._all.strengths[rows]
        return found

    def _variance(self, rows: IntArray) -> Array:
        s, a2 = self._scales, self._all.strengths[rows] ** 2
        found: Array = (
            s.level**2 + s.family**2 + s.alike**2 + s.alike_family**2 + s.model**2 + s.model_family**2 + s.unit**2
            + s.unit_family**2 + (s.family_slope**2 + s.alike_slope**2 + s.model_slope**2) * a2
        )
        return found

    def _covariance(self, rows: IntArray, columns: IntArray) -> Array:
        s, one, other = self._scales, self._all.take(rows), self._all.take(columns)
        family = one.families[:, None] == other.families[None, :]
        model = one.models[:, None] == other.models[None, :]
        unit = one.subjects[:, None] == other.subjects[None, :]
        product = np.outer(one.strengths, other.strengths)
        alike = self._alike[np.ix_(one.subjects, other.subjects)]
        found: Array = s.level**2 + family * (s.family**2 + s.family_slope**2 * product)
        found = found + alike * (s.alike**2 + family * (s.alike_family**2 + s.alike_slope**2 * product))
        found = found + model * (s.model**2 + family * (s.model_family**2 + s.model_slope**2 * product))
        found += unit * (s.unit**2 + family * s.unit_family**2)
        return found


class _Index:
    """Numbers for subjects and families of several models."""

    def __init__(self, models: Sequence[Mapping[str, UnitFeatures]]) -> None:
        self._models = models
        self._subjects = {(number, name): place for place, (number, name) in enumerate(
            (number, name) for number, one in enumerate(models) for name in one)}
        self._families: dict[Family, int] = {}
        size = len(self._subjects)
        self.apart = np.full((size, size), np.inf)
        for kind in ("layer", "channels"):
            names = [[name for name in one if name.endswith(f"/{kind}")] for one in models]
            for first, ours in enumerate(names):
                for second, theirs in enumerate(names):
                    if ours and theirs:
                        rows = [self._subjects[first, name] for name in ours]
                        columns = [self._subjects[second, name] for name in theirs]
                        self.apart[np.ix_(rows, columns)] = distances(models[first], ours, models[second], theirs)

    def cells(self, entries: Sequence[tuple[int, str, Choice | None]]) -> Cells:
        models, subjects, families, strengths = [], [], [], []
        for number, unit, choice in entries:
            assert choice is not None
            subject = subject_of(unit)
            models.append(number)
            subjects.append(self._subjects[number, subject])
            families.append(self._families.setdefault(kind_of(choice), len(self._families)))
            strengths.append(_strength(choice, self._models[number][subject].full_rank))
        return Cells(np.array(models, dtype=np.int64), np.array(subjects, dtype=np.int64),
                     np.array(families, dtype=np.int64), np.array(strengths, dtype=np.float64))


def _strength(choice: Choice, full_rank: int) -> float:
    """Logarithm of how much a choice removes, about zero in the middle of its family."""
    if isinstance(choice, Factorised):
        return math.log(amount(choice) * full_rank) - math.log(3.0)
    middle = -3.0 * math.log(2.0) if kind_of(choice)[0] in ("weights", "clustered", "binary") else math.log(0.5)
    return math.log(max(amount(choice), 1e-6)) - middle


def _log(loss: float) -> float:
    return math.log(min(max(loss, LEAST), MOST))


def _nearest_sources(sources: Sequence[Recipe], features: Mapping[str, UnitFeatures]) -> list[Recipe]:
    """The recipes whose units are most like the model's, the nearest first."""
    layers = [name for name in features if name.endswith("/layer")]

    def apart(one: Recipe) -> float:
        theirs = [name for name in one.features if name.endswith("/layer")]
        if not layers or not theirs:
            return math.inf
        return float(distances(features, layers, one.features, theirs).min(axis=1).mean())

    ranked = sorted(((apart(one), place) for place, one in enumerate(sources)), key=lambda pair: pair)
    return [sources[place] for distance, place in ranked[:MOST_SOURCES] if math.isfinite(distance)]
