"""Samplers by name, and what all of them have in common.

`pareto` and `nsga2` are described in `proposals.py`; the others are baselines to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from paretopress.search.option_space import Genome, OptionSpace
from paretopress.search.records import TrialRecord
from paretopress.search.surrogate import Guide
from paretopress.spaces.errors import ConfigError, unknown_name

SAMPLERS = ("pareto", "nsga2", "nsga3", "tpe", "gp", "random", "evolution", "ddpg")
ENCODINGS = ("auto", "reweighted", "full")
REWEIGHTED = ("pareto", "nsga2", "nsga3", "tpe", "gp", "random")   # samplers that can search a reweighted table
LARGEST_FOR_GP = 20   # units with a choice: beyond it a Gaussian process takes minutes per proposal


@dataclass(frozen=True)
class ExplorationSettings:
    """How to explore.

    Attributes:
        sampler: One of `SAMPLERS`.
        trials: Total number of trials in the run, resumed ones included; None sets no limit.
        seconds: Wall-clock limit of this call; evaluations under way are still finished. None: no limit.
        seed: The run's seed.
        population: Population size of NSGA-II, NSGA-III and regularised evolution, at least 2.
        local_moves_every: Every how many trials one is a local move; 1 makes all of them local moves. `pareto` has
            local moves of its own.
        encoding: What a sampler proposes: `"full"`, a choice per unit; `"reweighted"`, a few weights of the
            sensitivity table, a split of the budget and a price, which the exact solver turns into a policy;
            `"auto"`: what is better for the sampler.
    """

    sampler: str = "pareto"
    trials: int | None = None
    seconds: float | None = None
    seed: int = 0
    population: int = 50
    local_moves_every: int = 2
    encoding: str = "auto"

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ConfigError(unknown_name("sampler", self.sampler, SAMPLERS))
        if self.encoding not in ENCODINGS:
            raise ConfigError(unknown_name("encoding", self.encoding, ENCODINGS))
        if self.encoding == "reweighted" and self.sampler not in REWEIGHTED:
            raise ConfigError(f"encoding: reweighted: sampler {self.sampler} proposes a choice per unit "
                              f"(allowed: full, or one of the samplers {', '.join(REWEIGHTED)})")
        if self.population < 2:
            raise ConfigError(f"population: {self.population} is below 2")
        if self.local_moves_every < 1:
            raise ConfigError(f"local_moves_every: {self.local_moves_every} is below 1")
        if self.trials is None and self.seconds is None:
            raise ConfigError("an exploration needs a number of trials or a time")


class Sampler(Protocol):
    """Proposes genomes: a pure function of the seed of an ask and of the trials learnt, in their order."""

    @property
    def informed(self) -> bool:
        """Whether there are enough trials to do better than chance."""

    def ask(self, seed: int, seen: set[Genome]) -> Genome:
        """Return a proposal; one that is not `seen` counts as pending until it is learnt."""

    def learn(self, genome: Genome, record: TrialRecord, violations: Mapping[str, float]) -> None:
        """Take note of a finished trial; `violations` are the record's, brought to one scale."""

    def forget(self, genome: Genome) -> None:
        """Drop a pending proposal that is not evaluated after all."""


def make_sampler(
    space: OptionSpace, objectives: Mapping[str, str], settings: ExplorationSettings, guide: Guide | None
) -> Sampler:
    """Make the sampler that the settings name; for `pareto` NSGA-II, which stands in where it knows nothing new.

    Raises:
        ConfigError: The space is too large for the sampler, or there is no table to reweight.
    """
    if settings.sampler == "evolution":
        from paretopress.search.evolution import RegularisedEvolution

        return RegularisedEvolution(space, objectives, settings.population)
    if settings.sampler == "ddpg":
        from paretopress.search.policy_gradient import PolicyGradient

        return PolicyGradient(space, objectives, guide or Guide.empty(), settings.seed)
    from paretopress.search.encodings import FullEncoding, ReweightedEncoding
    from paretopress.search.optuna_samplers import OptunaSampler

    if settings.encoding == "reweighted" and settings.sampler != "pareto":
        if guide is None or not guide.losses or not guide.terms:
            raise ConfigError("encoding: reweighted: there is no sensitivity table to reweight (allowed: full)")
        return OptunaSampler(ReweightedEncoding(space, guide), objectives, settings)
    if settings.sampler == "gp":
        units = sum(len(choices) > 1 for choices in space.options)
        if units > LARGEST_FOR_GP:
            raise ConfigError(
                f"sampler gp: {units} units are too many for a Gaussian process (allowed: at most {LARGEST_FOR_GP}; "
                "or encoding reweighted, or one of the samplers pareto, nsga2, nsga3, tpe, random, evolution, ddpg)"
            )
    return OptunaSampler(FullEncoding(space), objectives, settings)
