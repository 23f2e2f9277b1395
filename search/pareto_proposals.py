"""Proposals by expected hypervolume improvement: what to evaluate next, from the table and all trials so far.

Candidates are small changes of policies on the front, mixtures of two of them, and policies that the exact solver
decodes from the table as the trials so far reweight it, with weights drawn from their posterior. Their costs are looked
up, their losses predicted (`AdditiveModel`, `MetricLink`), and the unseen one of the largest expected improvement
(`Attained`) is proposed. Every proposal is a pure function of (seed, trial number, trials so far in their order, what
is pending), and takes the same time however many trials there are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretopress.search.additive_model import SMALLEST, AdditiveModel
from paretopress.search.cost_tables import CostTables, LearnedCosts
from paretopress.search.improvement import Attained
from paretopress.search.metric_link import MetricLink
from paretopress.search.option_space import Genome, OptionSpace
from paretopress.search.reweighting import Decoder
from paretopress.search.surrogate import Guide
from paretopress.spaces.errors import ConfigError

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
FEWEST = 8            # complete trials before anything is predicted
CHANGED, STEPPED, MIXED = 64, 32, 32   # candidates of each kind
REACHES = (3, 6, 12)  # units that a candidate may be away from the front: farther where all nearer ones are known
DECODED = 8           # policies that the solver decodes at a time
DECODED_EVERY = 32    # trials, and later every eighth part of all
WORST_LOSS = 0.2      # of a share, or of the dense model's value: the reference of the hypervolume
RESOLUTION = 0.01     # of the worst loss: differences of the metric below it are noise
LOWEST = 0.7          # of the lowest cost so far: how far the box of costs reaches down
WANDERING_EVERY = 16  # trials: one is a small change of a policy on the front whatever is predicted


@dataclass(frozen=True)
class Told:
    """What came of a trial.

    Attributes:
        genome: What was evaluated.
        values: Objectives by name, and `divergence` where it is known; of a screened trial what is known.
        complete: Whether all objectives are known.
        feasible: Whether every budget is met too.
    """

    genome: Genome
    values: Mapping[str, float]
    complete: bool
    feasible: bool


class ParetoProposals:
    """Learns from trials and proposes genomes."""

    def __init__(
        self, space: OptionSpace, objectives: Mapping[str, str], guide: Guide, seed: int = 0, *, decodes: bool = True
    ) -> None:
        """Start without trials.

        Args:
            space: The options.
            objectives: Names and directions (`"min"`, `"max"`). The first that the guide has no terms for is the
                metric, which is modelled; others without terms are predicted from the choices alone.
            guide: Losses, cost terms, stages and limits; all may be empty.
            seed: Seed of all draws.
            decodes: Whether the exact solver decodes reweighted tables; without it all candidates are small changes
                and mixtures.

        Raises:
            ConfigError: All objectives are priced, or one that is priced is to be maximised.
        """
        self._space, self._seed, self._guide, self._decodes = space, seed, guide, decodes
        self._signs = {name: -1.0 if direction == "max" else 1.0 for name, direction in objectives.items()}
        measured = [name for name in objectives if name not in guide.terms]
        if not measured:
            raise ConfigError("every objective has cost terms: there is nothing to measure")
        for name, sign in self._signs.items():
            if name in guide.terms and sign < 0.0:
                raise ConfigError(f"objective {name!r}: a cost with terms is minimised, not maximised")
        self._metric, *others = measured
        self._priced = [name for name in objectives if name in guide.terms]
        self._names = [*self._priced, *others]
        self._limits = np.array([guide.limits.get(name, math.inf) for name in self._names])
        self._tables = CostTables(space, {name: guide.terms[name] for name in self._priced})
        self._learned = LearnedCosts(space, len(others)) if others else None
        self._model = AdditiveModel(space, guide.losses, guide.stages)
        self._sizes = np.array([len(choices) for choices in space.options])
        self._movable = np.flatnonzero(self._sizes > 1)
        self._decoder: Decoder | None = None
        self._multipliers = (0, self._model.multipliers())
        self._decoded: tuple[int, list[Genome]] = (-1, [])
        self._front = _Front(len(space.units), len(self._names), len(self._priced))
        self._early: list[Told] = []
        self._link: MetricLink | None = None
        self._attained: Attained | None = None
        self._baseline = self._worst = 0.0
        self._open_ended = False
        self._low = self._high = np.zeros(0)
        self._known: set[bytes] = set()

    @property
    def model(self) -> AdditiveModel:
        """The model of the loss, with its interval."""
        return self._model

    @property
    def informed(self) -> bool:
        """Whether there are enough trials to predict anything."""
        return self._attained is not None

    def learn(self, told: Told) -> None:
        """Take note of a finished trial."""
        self._known.add(_key(np.array(told.genome)))
        if self._learned is not None and all(name in told.values for name in self._names):
            self._learned.add(told.genome, self._costs_of(told.values)[len(self._priced):])
        if not told.complete:
            if "divergence" in told.values:
                self._model.add(told.genome, told.values["divergence"])
            return
        if self._attained is None:
            self._early.append(told)
            if len(self._early) >= FEWEST:
                self._begin()
            return
        self._learn(told)

    def propose(self, number: int, pending: Collection[Genome] = ()) -> Genome | None:
        """The genome that promises most of those that are neither learnt nor pending; None where all are known.

        Args:
            number: Of the trial.
            pending: What is being evaluated: it is expected to come out as predicted.
        """
        if self._attained is None or not len(self._front.rows) or not len(self._movable):
            return None
        generator = np.random.default_rng(self._number(number))
        waiting = {_key(np.array(genome)) for genome in pending}
        for reach in REACHES:
            rows, ratios = self._candidates(generator, reach)
            new = [place for place, row in enumerate(rows.astype(np.int16))
                   if (key := row.tobytes()) not in self._known and key not in waiting]
            if new:
                rows, ratios = rows[new], ratios[new]
                break
        else:
            return None
        if number % WANDERING_EVERY == WANDERING_EVERY - 1:
            best = int(generator.integers(len(rows)))
        else:
            best = int(np.argmax(self._gains(rows, ratios, pending)))
        return tuple(rows[best].tolist())

    def improvements(self, genomes: Sequence[Genome]) -> Array:
        """Expected hypervolume improvements of genomes; zeros until there are enough trials."""
        if self._attained is None:
            return np.zeros(len(genomes))
        rows = np.array(genomes, dtype=np.int64).reshape(len(genomes), len(self._sizes))
        losses, errors = self._expected(rows)
        return self._attained.improvements(self._costs(rows), losses, errors)

    def _begin(self) -> None:
        """Fix the reference and the box of costs by the first trials, and learn these."""
        early, self._early = self._early, []
        signed = [self._signs[self._metric] * told.values[self._metric] for told in early]
        dense = [loss for loss, told in zip(signed, early, strict=True) if told.genome == self._space.dense]
        self._baseline = dense[0] if dense else min(signed)
        self._worst = self._worst_loss(signed)
        costs = np.array([self._costs_of(told.values) for told in early])
        known = self._tables.at(np.array([self._space.dense], dtype=np.int64))[0]
        high = costs.max(axis=0)
        high[: len(known)] = np.where(known > 0.0, known, high[: len(known)])
        high = np.minimum(high, self._limits)
        low = np.minimum(costs.min(axis=0), high)
        self._low, self._high = low - (1.0 - LOWEST) * np.abs(low), high
        self._attained = Attained(self._low, self._high, self._worst)
        if any("divergence" in told.values for told in early):
            self._link = MetricLink(self._worst)
        else:   # differences of the metric are coarser than those of the divergence
            self._model.smallest = RESOLUTION * self._guide.hopeless
        for told in early:
            self._learn(told)

    def _worst_loss(self, signed: Sequence[float]) -> float:
        """The reference: what a budget allows, else a fifth of a share or as far as the first trials reach."""
        allowed = math.inf
        if self._guide.worst_value is not None:
            allowed = self._signs[self._metric] * self._guide.worst_value - self._baseline
        if all(abs(loss) <= 1.0 for loss in signed):
            usual = WORST_LOSS
        else:
            usual = max(WORST_LOSS * abs(self._baseline), max(signed) - self._baseline)
            self._open_ended = not math.isfinite(allowed)
        return min(allowed, usual) if allowed > 0.0 else usual

    def _learn(self, told: Told) -> None:
        assert self._attained is not None
        costs = self._costs_of(told.values)
        loss = self._signs[self._metric] * told.values[self._metric] - self._baseline
        if self._link is not None and "divergence" in told.values:
            divergence = told.values["divergence"]
            self._link.add(math.log(max(divergence, SMALLEST)), loss)
        else:
            divergence = max(loss, 0.0) + RESOLUTION * self._worst
        if told.genome != self._space.dense:   # nothing is to be learnt of what loses nothing by definition
            self._model.add(told.genome, divergence)
        if told.feasible:
            row = np.array(told.genome, dtype=np.int64)
            priced = self._tables.at(row[None])[0]
            self._extend(costs, loss)
            self._attained.add(costs, loss)
            self._front.add(row, np.append(costs, loss), _ratios(costs, priced))
        trials = self._model.trials
        if trials - self._multipliers[0] >= max(DECODED_EVERY, trials // 8):
            draw = np.random.default_rng(self._number(trials, "reweighting"))
            self._multipliers = trials, np.stack([self._model.multipliers(draw) for _ in range(2)])

    def _extend(self, costs: Array, loss: float) -> None:
        """Make the box larger where a point comes near its end, and enter what is on the front again."""
        beyond = self._open_ended and loss > self._worst / 2.0
        if not beyond and (costs >= self._low).all():
            return
        if beyond:
            self._worst = 2.0 * loss
        self._low = np.where(costs < self._low, costs - (1.0 - LOWEST) * np.abs(costs), self._low)
        self._attained = Attained(self._low, self._high, self._worst)
        for objectives in self._front.objectives:
            self._attained.add(objectives[:-1], float(objectives[-1]))

    def _costs_of(self, values: Mapping[str, float]) -> Array:
        return np.array([self._signs[name] * values[name] for name in self._names])

    def _candidates(self, generator: np.random.Generator, reach: int) -> tuple[IntArray, Array]:
        """Genomes to choose from, up to `reach` units from the front, and how much more each costs than predicted."""
        front = self._front.rows
        parents = generator.integers(len(front), size=CHANGED + STEPPED + MIXED)
        rows = front[parents]
        for change in range(reach):
            changed = np.flatnonzero(generator.integers(reach, size=CHANGED) >= change)
            units = self._movable[generator.integers(len(self._movable), size=len(changed))]
            rows[changed, units] = generator.integers(self._sizes[units])
        for _ in range(2):
            stepped = CHANGED + np.arange(STEPPED)
            units = self._movable[generator.integers(len(self._movable), size=STEPPED)]
            steps = generator.choice([-1, 1], size=STEPPED)
            rows[stepped, units] = np.clip(rows[stepped, units] + steps, 0, self._sizes[units] - 1)
        others = front[generator.integers(len(front), size=MIXED)]
        taken = generator.random((MIXED, rows.shape[1])) < generator.random((MIXED, 1))
        rows[CHANGED + STEPPED :][taken] = others[taken]
        ratios = self._front.ratios[parents]
        decoded = self._decode()
        if decoded:
            rows = np.concatenate([rows, np.array(decoded, dtype=np.int64)])
            ratios = np.concatenate([ratios, np.ones((len(decoded), ratios.shape[1]))])
        return self._space.canonical_rows(rows), ratios

    def _decode(self) -> list[Genome]:
        """Policies that the solver finds for the table as the trials reweighted it last."""
        if not self._decodes or not self._priced or not self._guide.losses:
            return []
        at, multipliers = self._multipliers
        if self._decoded[0] != at:
            if self._decoder is None:
                self._decoder = Decoder(self._space, self._guide.losses, self._guide.terms, self._guide.hopeless)
            generator = np.random.default_rng(self._number(at, "decoding"))
            draws = np.atleast_2d(multipliers)
            found = [
                self._decoder.decode(
                    draws[number % len(draws)], generator.dirichlet(np.ones(len(self._decoder.costs))),
                    self._decoder.price_at((number + generator.random()) / DECODED),
                ) for number in range(DECODED)
            ]
            self._decoded = at, list(dict.fromkeys(found))
        return self._decoded[1]

    def _gains(self, rows: IntArray, ratios: Array, pending: Collection[Genome]) -> Array:
        """Expected hypervolume improvements, minus infinity where a budget on costs is not met."""
        assert self._attained is not None
        attained, costs = self._attained, self._costs(rows, ratios)
        losses, errors = self._expected(rows)
        if pending:   # the believer's assumption (Ginsbourger et al. 2010)
            attained = attained.copy()
            waiting = np.array(list(pending), dtype=np.int64)
            for cost, loss in zip(self._costs(waiting), self._expected(waiting)[0], strict=True):
                attained.add(cost, float(loss))
        gains = attained.improvements(costs, losses, errors)
        gains[(costs > self._limits).any(axis=1)] = -math.inf
        return gains

    def _costs(self, rows: IntArray, ratios: Array | None = None) -> Array:
        found = self._tables.at(rows)
        if ratios is not None:
            found = found * ratios
        if self._learned is not None:
            found = np.concatenate([found, self._learned.at(rows)], axis=1)
        return found

    def _expected(self, rows: IntArray) -> tuple[Array, Array]:
        """Losses of the metric to be expected, and their standard errors."""
        logs, errors = self._model.predict(rows)
        if self._link is not None:
            return self._link.at(logs, errors)
        # The mean and the deviation of a log-normal variable, whose logarithm is held within what makes sense.
        errors = np.minimum(errors, 1.0)
        means = np.exp(np.minimum(logs, math.log(10.0 * self._worst)) + 0.5 * errors**2)
        return means - RESOLUTION * self._worst, means * np.sqrt(np.expm1(errors**2)) + 1e-12

    def _number(self, number: int, purpose: str = "") -> int:
        return int.from_bytes(hashlib.sha256(f"{self._seed}/{number}/{purpose}/pareto".encode()).digest()[:16], "big")


class _Front:
    """The feasible front so far: genomes, objectives, and how much more each costs than the tables say."""

    def __init__(self, units: int, costs: int, priced: int) -> None:
        self.rows = np.zeros((0, units), dtype=np.int64)
        self.ratios = np.zeros((0, priced))
        self.objectives = np.zeros((0, costs + 1))

    def add(self, row: IntArray, objectives: Array, ratios: Array) -> None:
        if (self.objectives <= objectives).all(axis=1).any():
            return
        kept = ~(objectives <= self.objectives).all(axis=1)
        self.objectives = np.concatenate([self.objectives[kept], objectives[None]])
        self.rows = np.concatenate([self.rows[kept], row[None]])
        self.ratios = np.concatenate([self.ratios[kept], ratios[None]])


def _ratios(costs: Array, priced: Array) -> Array:
    """True costs over those that the tables say; 1 where these are zero."""
    found: Array = costs[: len(priced)] / np.where(priced > 0.0, priced, 1.0)
    return np.where(priced > 0.0, found, 1.0)


def _key(row: IntArray) -> bytes:
    return row.astype(np.int16).tobytes()
