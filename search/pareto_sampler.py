"""`ParetoSampler`: the search of Paretopress as a sampler for any Optuna study."""

from __future__ import annotations

import copy
import hashlib
import math
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, check_distribution_compatibility
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from paretopress.search.option_space import Genome, OptionSpace
from paretopress.search.pareto_proposals import ParetoProposals, Told
from paretopress.search.surrogate import Guide, no_costs
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.policy import Policy

if TYPE_CHECKING:
    from paretopress.search.measured_problem import MeasuredProblem

_DIRECTIONS = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)
_LOCAL_ATTEMPTS = 64


class _Distributions(dict[str, BaseDistribution]):
    """Distributions that all trials share. They never change: a deep copy of a trial, as `tell` makes, holds them."""

    def __deepcopy__(self, memo: dict[int, object]) -> dict[str, BaseDistribution]:
        return dict(self)


class ParetoSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """Proposes policies: seeds from the exact front first, then what promises the largest hypervolume improvement.

    The study has one categorical parameter per unit, which `suggest` asks for, and the objectives of the problem in
    their order. No policy is proposed twice, whoever evaluated it. A trial teaches more where its objective sets the
    user attribute `divergence` (nats from the dense model, smoother than an accuracy); constraints are Optuna's
    (`trial.set_constraint`, at most 0 is met). What is proposed depends on the seed, the trial's number and the
    finished trials alone, so that a study that is stored can be continued by a new sampler.

        problem = measured_problem(model, data, SearchSettings(targets=("cortex-a76-tflite",)))
        sampler = ParetoSampler(problem, seed=0)
        study = optuna.create_study(directions=sampler.directions, sampler=sampler)
        study.optimize(lambda trial: my_scores(sampler.suggest(trial)), n_trials=100)

    Attributes:
        space: Units and their choices.
        objectives: Names and directions (`"min"`, `"max"`), in the order of the study.
    """

    def __init__(
        self, problem: MeasuredProblem, *, objectives: Mapping[str, str] | None = None, seed: int = 0
    ) -> None:
        """Make a sampler for a model.

        Args:
            problem: The model with its table and costs: see `measured_problem`.
            objectives: What the study optimises, in its order; by default the problem's. Names that are costs of the
                problem are looked up before a trial; the first other one is the metric, which is modelled.
            seed: Seed of everything that is drawn.

        Raises:
            ConfigError: No objective is left to measure, or a cost is to be maximised.
        """
        seeds = [problem.space.genome(policy) for policy in problem.seeds]
        wanted = dict(objectives or problem.objectives)
        terms = {name: terms for name, terms in problem.guide.terms.items() if name in wanted}
        self._prepare(problem.space, wanted, replace(problem.guide, terms=terms), seeds, seed)

    @classmethod
    def over(
        cls, space: OptionSpace, objectives: Mapping[str, str], *, guide: Guide | None = None,
        seeds: Sequence[Policy] = (), seed: int = 0,
    ) -> Self:
        """Make a sampler for options of one's own.

        Args:
            space: Units and their choices.
            objectives: Names and directions, in the order of the study.
            guide: Losses, cost terms and limits, as far as they are known.
            seeds: Policies to begin with.
            seed: Seed of everything that is drawn.
        """
        sampler = cls.__new__(cls)
        sampler._prepare(space, dict(objectives), guide or Guide.empty(), [space.genome(one) for one in seeds], seed)
        return sampler

    def _prepare(
        self, space: OptionSpace, objectives: dict[str, str], guide: Guide, seeds: Sequence[Genome], seed: int
    ) -> None:
        self.space, self.objectives, self._seed = space, objectives, seed
        self._seeds = [*dict.fromkeys(space.canonical(one) for one in [space.dense, *seeds])]
        self._proposals = ParetoProposals(space, objectives, replace(guide, costs=no_costs), seed)
        self._distributions: dict[str, BaseDistribution] = {
            unit: CategoricalDistribution(labels) for unit, labels in space.labels.items()
        }
        self._recorded_distributions = _Distributions(self._distributions)
        self._asked = {unit: one for unit, one in self._distributions.items() if not one.single()}
        self._places = {unit: {label: place for place, label in enumerate(labels)}
                        for unit, labels in space.labels.items()}
        self._known: set[Genome] = set()
        self._next = 0                      # trials below this number were looked at
        self._waiting: dict[int, Genome] = {}   # of those, the unfinished ones
        self._lock = threading.Lock()

    @property
    def directions(self) -> list[StudyDirection]:
        """The directions of a study of these objectives."""
        return [_DIRECTIONS[direction] for direction in self.objectives.values()]

    def suggest(self, trial: optuna.trial.BaseTrial) -> Policy:
        """The policy of a trial: asks for one categorical parameter per unit.

        Args:
            trial: A trial, fixed or frozen ones too.
        """
        proposed = self._recorded(trial) if isinstance(trial, optuna.trial.Trial) else None
        if proposed is not None:
            return self.space.policy(proposed)
        labels = {unit: trial.suggest_categorical(unit, labels) for unit, labels in self.space.labels.items()}
        return self.space.policy(self.space.canonical(self.space.genome_of_labels(labels)))

    def _recorded(self, trial: optuna.trial.Trial) -> Genome | None:
        """Record what was proposed for a live trial, unit by unit, and return it; None where it was asked otherwise.

        That is what as many calls of `suggest_categorical` do, which compare every choice of every unit five times:
        for 60 units they take as long as the proposal itself. Each write to a storage in memory copies the trial.
        """
        known = getattr(trial, "_cached_frozen_trial", None)
        if trial.study.sampler is not self or known is None or known.params or getattr(trial, "_fixed_params", True):
            return None
        asked = trial.relative_params   # proposes
        genome: Genome | None = self._waiting.get(trial.number)
        if genome is None or not asked or asked != self._labelled(genome, asked):
            return None
        params = {unit: self.space.labels[unit][index] for unit, index in zip(self.space.units, genome, strict=True)}
        if type(trial.storage) is InMemoryStorage:
            self._record_in_memory(trial.storage, trial._trial_id, params)
        else:
            for unit, index in zip(self.space.units, genome, strict=True):
                trial.storage.set_trial_param(trial._trial_id, unit, float(index), self._distributions[unit])
        known.params.update(params)
        known.distributions.update(self._distributions)
        return genome

    def _record_in_memory(self, storage: InMemoryStorage, number: int, params: dict[str, Any]) -> None:
        """Record all parameters of a trial at once; their distributions are stored once for all trials."""
        with storage._lock:
            stored = copy.copy(storage._get_trial(number))
            storage.check_trial_is_updatable(number, stored.state)
            study, _ = storage._trial_id_to_study_id_and_number[number]
            earlier = storage._studies[study].param_distribution
            for unit, one in self._distributions.items():
                if earlier.setdefault(unit, one) is not one:
                    check_distribution_compatibility(earlier[unit], one)
                    earlier[unit] = one
            stored.params, stored.distributions = params, self._recorded_distributions
            storage._set_trial(number, stored)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial  # noqa: ARG002 - as in Optuna
    ) -> dict[str, BaseDistribution]:
        """One categorical distribution per unit that has a choice. Raises `ConfigError` for a study of other goals."""
        if study.directions != self.directions:
            wanted = ", ".join(f"{name} ({direction})" for name, direction in self.objectives.items())
            raise ConfigError(f"the study's directions do not fit the sampler's objectives: {wanted}")
        return self._asked.copy()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Learn what has finished since the last call, and propose a policy."""
        with self._lock:
            self._catch_up(study, trial.number)
            genome = self._genome(trial.number)
            self._waiting[trial.number] = genome
        return self._labelled(genome, search_space)

    def _labelled(self, genome: Genome, units: Collection[str]) -> dict[str, Any]:
        """The labels of a genome's choices for some units."""
        labels = self.space.labels
        pairs = zip(self.space.units, genome, strict=True)
        return {unit: labels[unit][index] for unit, index in pairs if unit in units}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:  # noqa: ANN401 - as in Optuna
        """A random value for parameters of the user's own."""
        digest = hashlib.sha256(f"{self._seed}/{trial.number}/{param_name}".encode()).digest()
        chance = optuna.samplers.RandomSampler(seed=int.from_bytes(digest[:4], "big"))
        return chance.sample_independent(study, trial, param_name, param_distribution)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock, so that samplers can be stored."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _genome(self, number: int) -> Genome:
        under_way = set(self._waiting.values())
        while self._seeds and (self._seeds[0] in self._known or self._seeds[0] in under_way):
            self._seeds.pop(0)
        if self._seeds:
            return self._seeds[0]
        found = self._proposals.propose(number, under_way)
        if found is not None:
            return found
        generator = np.random.default_rng([self._seed, number])
        sizes = np.array([len(choices) for choices in self.space.options])
        start = np.array(self.space.dense)
        genome = self.space.dense
        for attempt in range(_LOCAL_ATTEMPTS):   # nothing is known yet, or nearly everything
            drawn = generator.integers(sizes)
            share = generator.random() if attempt < _LOCAL_ATTEMPTS // 2 else 1.0
            taken = generator.random(len(sizes)) < share
            genome = self.space.canonical(tuple(np.where(taken, drawn, start).tolist()))
            if genome not in self._known and genome not in under_way:
                break
        return genome

    def _catch_up(self, study: optuna.Study, number: int) -> None:
        """Learn finished trials in the order of their numbers, as far as they are finished."""
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        fresh = [one for one in trials[self._next:] if one.number != number]
        for one in [*(trials[index] for index in sorted(self._waiting)), *fresh]:
            genome = self._genome_of(one)
            if one.state in _UNFINISHED:
                if genome is not None:
                    self._waiting[one.number] = genome
                elif one.number not in self._waiting:
                    self._waiting[one.number] = self.space.dense
                continue
            self._waiting.pop(one.number, None)
            if genome is not None:
                self._known.add(genome)
                self._proposals.learn(self._told(one, genome))
        self._next = len(trials)

    def _genome_of(self, trial: FrozenTrial) -> Genome | None:
        """The genome of a trial's parameters, None where it has others; units that were not asked for are dense."""
        params = trial.params
        if not any(unit in params for unit in self.space.units):
            return None
        genome = tuple(places.get(params[unit], -1) if unit in params else 0 for unit, places in self._places.items())
        return None if -1 in genome else self.space.canonical(genome)

    def _told(self, trial: FrozenTrial, genome: Genome) -> Told:
        complete = trial.state is TrialState.COMPLETE
        values = dict(zip(self.objectives, trial.values, strict=True)) if complete else {}
        divergence = trial.user_attrs.get("divergence")
        if isinstance(divergence, int | float) and math.isfinite(divergence):
            values["divergence"] = float(divergence)
        feasible = complete and all(value <= 0.0 for value in trial.constraints.values())
        return Told(genome, values, complete, feasible)
