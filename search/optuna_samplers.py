"""Optuna's samplers on an in-memory study that holds finished trials and pending asks."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paretopress.search.encodings import Encoding
from paretopress.search.option_space import Genome
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.samplers import ExplorationSettings

if TYPE_CHECKING:
    import optuna

_TPE_STARTUP = 10
_GENETIC = ("nsga2", "nsga3", "pareto")


class OptunaSampler:
    """NSGA-II, NSGA-III, multivariate TPE, a Gaussian process, or chance.

    The sampler's generators are seeded anew for every ask, and finished trials enter the study as finished trials, so
    telling the ledger's records to a new one continues a search exactly.
    """

    def __init__(self, encoding: Encoding, objectives: Mapping[str, str], settings: ExplorationSettings) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._encoding = encoding
        self._objectives = dict(objectives)
        self._population, self._seed = settings.population, settings.seed
        self._sampler = _make_sampler(settings)
        directions = {"min": "minimize", "max": "maximize"}
        self._study = optuna.create_study(
            directions=[directions[direction] for direction in objectives.values()], sampler=self._sampler
        )
        self._genetic = settings.sampler in _GENETIC
        startup = {"tpe": _TPE_STARTUP, "gp": _TPE_STARTUP, "random": 0}
        self._needed = startup.get(settings.sampler, settings.population)
        self._told = 0
        self._generation = 0
        self._members = 0
        self._asked: dict[Genome, Any] = {}
        self._worst: dict[str, float] = {}

    @property
    def informed(self) -> bool:
        """Whether the sampler has enough trials to do better than chance."""
        return self._told >= self._needed

    @property
    def replayed(self) -> bool:
        """Whether a resumed run has to ask again for what it learns."""
        return self._encoding.replayed

    def ask(self, seed: int, seen: set[Genome]) -> Genome:
        """Return the sampler's proposal; one that is `seen` is closed again, others stay pending."""
        import optuna

        _reseed(self._sampler, seed)
        trial = self._study.ask(self._encoding.distributions)
        genome = self._encoding.genome(trial.params)
        if genome in seen:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._asked[genome] = trial
        return genome

    def forget(self, genome: Genome) -> None:
        """Close a pending ask."""
        import optuna

        asked = self._asked.pop(genome, None)
        if asked is not None:
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)

    def learn(self, genome: Genome, record: TrialRecord, violations: Mapping[str, float]) -> None:
        """Add a finished trial to the study, in place of the pending ask where there is one.

        A screened trial's accuracy is unknown. Where its violations are known, NSGA-II and TPE rank it by
        them alone, below every feasible trial, so it is told with the worst value seen for what is
        missing; otherwise it is told as pruned, which TPE counts as bad and NSGA-II ignores. One that was scored on a
        part of the samples has values for everything: those to be expected.
        """
        import optuna

        asked = self._asked.get(genome)
        parameters = self._encoding.parameters(genome) if asked is None else dict(asked.params)
        self.forget(genome)
        if record.state is TrialState.FAIL or parameters is None:
            return
        values = self._values(record, violations)
        state = optuna.trial.TrialState.PRUNED if values is None else optuna.trial.TrialState.COMPLETE
        self._study.add_trial(optuna.trial.create_trial(
            state=state,
            values=values,
            params=parameters,
            distributions=self._encoding.distributions,
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
        elif any(name not in record.values for name in self._objectives) and (
            not self._worst or all(value <= 0 for value in violations.values())
        ):
            return None
        return [record.values.get(name, self._worst.get(name, 0.0)) for name in self._objectives]

    def _join_generation(self) -> dict[str, int]:
        if not self._genetic:
            return {}
        self._members += 1
        # Optuna writes this attribute when it asks; without it its genetic samplers ignore added trials.
        sampler: Any = self._sampler
        return {sampler._get_generation_key(): self._generation}

    def _close_generation(self) -> None:
        """Let the sampler choose the next generation's parents as soon as a generation is full.

        The first ask of a generation chooses them, and sees them in another order than the later asks do.
        This ask, which nobody uses, makes a resumed run see the order that the whole run saw. NSGA-III draws
        in it, so that it is seeded like every other.
        """
        import optuna

        if self._genetic and self._members >= self._population:
            self._generation, self._members = self._generation + 1, 0
            digest = hashlib.sha256(f"{self._seed}/generation/{self._generation}".encode()).digest()
            _reseed(self._sampler, int.from_bytes(digest[:16], "big"))
            self._study.tell(self._study.ask(self._encoding.distributions), state=optuna.trial.TrialState.FAIL)


def _make_sampler(settings: ExplorationSettings) -> optuna.samplers.BaseSampler:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match settings.sampler:
            case "nsga2" | "pareto":
                return optuna.samplers.NSGAIISampler(population_size=settings.population, seed=0)
            case "nsga3":
                return optuna.samplers.NSGAIIISampler(population_size=settings.population, seed=0)
            case "tpe":
                return optuna.samplers.TPESampler(multivariate=True, n_startup_trials=_TPE_STARTUP, seed=0)
            case "gp":
                return optuna.samplers.GPSampler(
                    n_startup_trials=_TPE_STARTUP, seed=0, warn_independent_sampling=False
                )
            case _:
                return optuna.samplers.RandomSampler(seed=0)


def _reseed(sampler: Any, seed: int) -> None:  # noqa: ANN401 - the generators are private to Optuna's samplers
    """Seed a sampler's generators, and let it forget the fits it would start from: they depend on earlier asks.

    Its own `reseed_rng` takes a seed from the operating system.
    """
    words = [(seed >> shift) & 0xFFFFFFFF for shift in range(0, 128, 32)]
    for offset, name in enumerate((None, "_random_sampler", "_independent_sampler")):
        owner = sampler if name is None else getattr(sampler, name, None)
        if owner is not None:
            owner._rng.rng.seed([min(offset, 1), *words])
    for name in ("_gprs_cache_list", "_constraints_gprs_cache_list"):
        if hasattr(sampler, name):
            setattr(sampler, name, None)
