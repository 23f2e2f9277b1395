"""Proposals: which policy to evaluate next.

A proposal is a pure function of (run seed, trial number, trials told so far in their order, what is
pending). The sampler's generators are seeded anew for every ask, and finished trials enter the study as
finished trials, so telling the ledger's records to a new proposer continues a search exactly.

Order of proposals: the seeds; then every `local_moves_every`-th trial a local move and the others from the
sampler. A local move takes a random incumbent and moves 1 to 3 of its units one step along their options; where the
dense model exceeds a budget, every second one takes one of the feasible policies that diverge least from it.
Every third trial, later every twelfth, is a descent on a surrogate of the divergence: from an incumbent to what
should lose less at no higher costs, or from the least divergent ones to what should lose least within the budgets.
While the sampler has too few trials to learn from, its place is taken by scattered incumbents: uniformly
random policies compress everything at once and are hopeless in wide spaces.
"""

from __future__ import annotations

import hashlib
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paretopress.search.incumbents import Incumbents, ViolationScale
from paretopress.search.option_space import Genome, OptionSpace
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.surrogate import Guide, Surrogate, descend
from paretopress.spaces.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("nsga2", "tpe", "random")
_TPE_STARTUP = 10
_SAMPLER_ATTEMPTS = 4   # asks that may repeat a known policy before a local move takes over
_ATTEMPTS = 24          # attempts before the space is walked through in order
GUIDED_EVERY = 3        # trials: one of them is the surrogate's proposal
OFTEN_UNTIL = 240       # trials
LATER_GUIDED_EVERY = 12


@dataclass(frozen=True)
class ExplorationSettings:
    """How to explore.

    Attributes:
        sampler: `"nsga2"`, `"tpe"` (multivariate) or `"random"`.
        trials: Total number of trials in the run, resumed ones included; None sets no limit.
        seconds: Wall-clock limit of this call; evaluations under way are still finished. None: no limit.
        seed: The run's seed.
        population: Population size of NSGA-II, at least 2.
        local_moves_every: Every how many trials one is a local move; 1 makes all of them local moves.
    """

    sampler: str = "nsga2"
    trials: int | None = None
    seconds: float | None = None
    seed: int = 0
    population: int = 50
    local_moves_every: int = 2

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ConfigError(unknown_name("sampler", self.sampler, SAMPLERS))
        if self.population < 2:
            raise ConfigError(f"population: {self.population} is below 2")
        if self.local_moves_every < 1:
            raise ConfigError(f"local_moves_every: {self.local_moves_every} is below 1")
        if self.trials is None and self.seconds is None:
            raise ConfigError("an exploration needs a number of trials or a time")


class Proposer:
    """Proposes policies and learns from finished trials."""

    def __init__(
        self,
        space: OptionSpace,
        objectives: Mapping[str, str],
        seeds: Sequence[Genome],
        settings: ExplorationSettings,
        guide: Guide | None = None,
    ) -> None:
        self._space = space
        self._seeds = list(dict.fromkeys(map(space.canonical, seeds)))
        self._settings = settings
        self._seen: set[Genome] = set()
        self._incumbents = Incumbents(objectives, self._seeds or [space.dense])
        self._scale = ViolationScale()
        self._sampler = _Sampler(space, objectives, settings)
        self._guide = guide
        names = tuple(name for name in objectives if name != "accuracy") if guide else ()
        self._surrogate = Surrogate(space, guide.losses if guide else {}, names)

    def propose(self, number: int) -> Genome | None:
        """Return the genome of trial `number`, new to this run, or None where the space is exhausted.

        The genome counts as pending until `learn` gets its record.
        """
        genome = self._next(number)
        if genome is not None:
            self._seen.add(genome)
        return genome

    def learn(self, genome: Genome, record: TrialRecord) -> None:
        """Take note of a finished trial of this run."""
        self._seen.add(genome)
        violations = self._scale.scaled(record.constraints)
        self._incumbents.add(genome, record, violations)
        if record.state is not TrialState.FAIL:
            self._surrogate.add(genome, record.values)
        self._sampler.learn(genome, record, violations)

    def _next(self, number: int) -> Genome | None:
        while self._seeds:
            genome = self._seeds[0]
            if genome not in self._seen:
                return genome
            self._seeds.pop(0)
        if len(self._seen) >= self._space.size:
            return None
        for attempt in range(_ATTEMPTS):
            genome = self._space.canonical(self._attempt(number, attempt))
            if genome not in self._seen:
                return genome
        start, step = self._rng(number, _ATTEMPTS).randrange(self._space.size), 0
        while step < self._space.size:
            genome = self._space.canonical(self._space.genome_at(start + step))
            if genome not in self._seen:
                return genome
            step += 1
        return None

    def _attempt(self, number: int, attempt: int) -> Genome:
        rng = self._rng(number, attempt)
        if attempt == 0 and self._is_guided(number) and (guided := self._guided(number, rng)) is not None:
            return guided
        local = number % self._settings.local_moves_every == 0
        if not local and attempt < _SAMPLER_ATTEMPTS:
            if self._sampler.informed:
                return self._sampler.ask(_seed(self._settings.seed, number, attempt), self._seen)
            return self._space.scattered(rng.choice(self._incumbents.genomes), rng)
        farther = attempt // 4
        turn = number // self._settings.local_moves_every
        starts = self._incumbents.closest if turn % 2 else []
        return self._space.stepped(rng.choice(starts or self._incumbents.genomes), rng.randint(1, 3 + farther), rng)

    def _is_guided(self, number: int) -> bool:
        """Whether it is the surrogate's turn: often at first, later every so often, as a descent takes its time."""
        often = GUIDED_EVERY if number < OFTEN_UNTIL else LATER_GUIDED_EVERY
        return self._guide is not None and self._surrogate.informed and number % often == 1

    def _guided(self, number: int, rng: random.Random) -> Genome | None:
        """What should diverge less than an incumbent at no higher costs, or least of all within the budgets."""
        assert self._guide is not None
        costs, names = self._guide.costs, self._surrogate.names

        def price(genome: Genome) -> list[float]:
            found = costs(self._space.policy(genome))
            return [found[name] for name in names]

        closest, turn = self._incumbents.closest, number // GUIDED_EVERY
        if closest and turn % 2 == 0:
            start = rng.choice(closest)
            limits = [self._guide.limits.get(name, math.inf) for name in names]
        else:
            start = rng.choice(self._incumbents.genomes)
            limits = price(start)
        return descend(self._surrogate, self._space, start, price, limits, self._seen, rng)

    def _rng(self, number: int, attempt: int) -> random.Random:
        return random.Random(_seed(self._settings.seed, number, attempt))  # noqa: S311 - no secret


def _seed(seed: int, number: int, attempt: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{attempt}".encode()).digest()[:16], "big")


class _Sampler:
    """An Optuna sampler on an in-memory study that holds finished trials and pending asks."""

    def __init__(
        self, space: OptionSpace, objectives: Mapping[str, str], settings: ExplorationSettings
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._objectives = dict(objectives)
        self._population = settings.population
        self._sampler = _make_sampler(settings)
        directions = {"min": "minimize", "max": "maximize"}
        self._study = optuna.create_study(
            directions=[directions[direction] for direction in objectives.values()], sampler=self._sampler
        )
        categorical = optuna.distributions.CategoricalDistribution
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            unit: categorical(labels) for unit, labels in space.labels.items()
        }
        self._needed = {"nsga2": settings.population, "tpe": _TPE_STARTUP, "random": 0}[settings.sampler]
        self._told = 0
        self._generation = 0
        self._members = 0
        self._asked: dict[Genome, Any] = {}
        self._worst: dict[str, float] = {}

    @property
    def informed(self) -> bool:
        """Whether the sampler has enough trials to do better than chance."""
        return self._told >= self._needed

    def ask(self, seed: int, seen: set[Genome]) -> Genome:
        """Return the sampler's proposal; one that is `seen` is closed again, others stay pending."""
        import optuna

        _reseed(self._sampler, seed)
        trial = self._study.ask(self._distributions)
        genome = self._space.canonical(self._space.genome_of_labels(trial.params))
        if genome in seen:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._asked[genome] = trial
        return genome

    def learn(self, genome: Genome, record: TrialRecord, violations: Mapping[str, float]) -> None:
        """Add a finished trial to the study, in place of the pending ask where there is one.

        A screened trial's accuracy is unknown. Where its violations are known, NSGA-II and TPE rank it by
        them alone, below every feasible trial, so it is told with the worst value seen for what is
        missing; otherwise it is told as pruned, which TPE counts as bad and NSGA-II ignores.
        """
        import optuna

        asked = self._asked.pop(genome, None)
        if asked is not None:
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        if record.state is TrialState.FAIL:
            return
        values = self._values(record, violations)
        state = optuna.trial.TrialState.PRUNED if values is None else optuna.trial.TrialState.COMPLETE
        labels = self._space.labels
        self._study.add_trial(optuna.trial.create_trial(
            state=state,
            values=values,
            params={unit: labels[unit][index] for unit, index in zip(self._space.units, genome, strict=True)},
            distributions=self._distributions,
            constraints=dict(violations),
            system_attrs=self._join_generation() if values is not None else {},
        ))
        if values is not None:
            self._close_generation()
            self._told += 1

    def _values(self, record: TrialRecord, violations: Mapping[str, float]) -> list[float] | None:
        if record.state is TrialState.COMPLETE:
            for name, direction in self._objectives.items():
                worse = min if direction == "max" else max
                value = record.values[name]
                self._worst[name] = worse(self._worst.get(name, value), value)
        elif not self._worst or all(value <= 0 for value in violations.values()):
            return None
        return [record.values.get(name, self._worst.get(name, 0.0)) for name in self._objectives]

    def _join_generation(self) -> dict[str, int]:
        import optuna

        if not isinstance(self._sampler, optuna.samplers.NSGAIISampler):
            return {}
        self._members += 1
        # Optuna writes this attribute when it asks; without it its genetic samplers ignore added trials.
        return {self._sampler._get_generation_key(): self._generation}

    def _close_generation(self) -> None:
        """Let the sampler choose the next generation's parents as soon as a generation is full.

        The first ask of a generation chooses them, and sees them in another order than the later asks do.
        This ask, which nobody uses, makes a resumed run see the order that the whole run saw.
        """
        import optuna

        if isinstance(self._sampler, optuna.samplers.NSGAIISampler) and self._members >= self._population:
            self._generation, self._members = self._generation + 1, 0
            self._study.tell(self._study.ask(self._distributions), state=optuna.trial.TrialState.FAIL)


def _make_sampler(settings: ExplorationSettings) -> optuna.samplers.BaseSampler:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.sampler == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=settings.population, seed=0)
        if settings.sampler == "tpe":
            return optuna.samplers.TPESampler(multivariate=True, n_startup_trials=_TPE_STARTUP, seed=0)
        return optuna.samplers.RandomSampler(seed=0)


def _reseed(sampler: Any, seed: int) -> None:  # noqa: ANN401 - the generators are private to Optuna's samplers
    """Seed a sampler's generators; its own `reseed_rng` takes a seed from the operating system."""
    words = [(seed >> shift) & 0xFFFFFFFF for shift in range(0, 128, 32)]
    for offset, owner in enumerate((sampler, getattr(sampler, "_random_sampler", None))):
        if owner is not None:
            owner._rng.rng.seed([offset, *words])
