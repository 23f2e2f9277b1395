"""Proposals: which policy to evaluate next.

A proposal is a pure function of (run seed, trial number, trials told so far in their order, what is
pending). The sampler's generators are seeded anew for every ask, and finished trials enter the study as
finished trials, so telling the ledger's records to a new proposer continues a search exactly.

The seeds come first. With the sampler `pareto` everything else is proposed by `pareto_proposals.py`, or by a local
move where that knows nothing new. With any other sampler every `local_moves_every`-th trial is a local move, and the
others are the sampler's. A local move takes a random incumbent and moves 1 to 3 of its units one step along their
options; where the dense model exceeds a budget, every second one takes one of the feasible policies that diverge least
from it.
Every third trial, later every twelfth, is a descent on a surrogate of the divergence: from an incumbent to what
should lose less at no higher costs, or from the least divergent ones to what should lose least within the budgets.
While the sampler has too few trials to learn from, its place is taken by scattered incumbents: uniformly
random policies compress everything at once and are hopeless in wide spaces.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence

from paretopress.search.incumbents import Incumbents, ViolationScale
from paretopress.search.option_space import Genome, OptionSpace
from paretopress.search.optuna_samplers import OptunaSampler
from paretopress.search.pareto_proposals import ParetoProposals, Told
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.samplers import ExplorationSettings, Sampler, make_sampler
from paretopress.search.surrogate import Guide, Surrogate, descend

_SAMPLER_ATTEMPTS = 4   # asks that may repeat a known policy before a local move takes over
_ATTEMPTS = 24          # attempts before the space is walked through in order
GUIDED_EVERY = 3        # trials: one of them is the surrogate's proposal
OFTEN_UNTIL = 240       # trials
LATER_GUIDED_EVERY = 12


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
        self._pareto: ParetoProposals | None = None
        self._sampler: Sampler | None = None
        if settings.sampler == "pareto":
            decodes = settings.encoding != "full"
            self._pareto = ParetoProposals(space, objectives, guide or Guide.empty(), settings.seed, decodes=decodes)
        else:
            self._sampler = make_sampler(space, objectives, settings, guide)
        self._pending: set[Genome] = set()
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
            self._pending.add(genome)
        return genome

    def replay(self, number: int, genome: Genome) -> None:
        """Propose an earlier trial of the run again where the sampler has to know how it came to that genome.

        Where other trials were under way at that time it proposes something else, which is forgotten.
        """
        if not isinstance(self._sampler, OptunaSampler) or not self._sampler.replayed:
            return
        found = self.propose(number)
        if found is not None and found != genome:
            self._seen.discard(found)
            self._pending.discard(found)
            self._sampler.forget(found)

    def learn(self, genome: Genome, record: TrialRecord) -> None:
        """Take note of a finished trial of this run."""
        self._seen.add(genome)
        self._pending.discard(genome)
        violations = self._scale.scaled(record.constraints)
        self._incumbents.add(genome, record, violations)
        if self._pareto is not None:
            self._pareto.learn(Told(genome, record.values, record.state is TrialState.COMPLETE, record.feasible))
            return
        if record.state is not TrialState.FAIL:
            self._surrogate.add(genome, record.values)
        assert self._sampler is not None
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
        if self._pareto is not None:
            found = self._pareto.propose(number, self._pending) if attempt == 0 else None
            if found is None and not self._pareto.informed and attempt < _SAMPLER_ATTEMPTS:
                return self._space.scattered(rng.choice(self._incumbents.genomes), rng)
            return found if found is not None else self._stepped(number, attempt, rng)
        assert self._sampler is not None
        if attempt == 0 and self._is_guided(number) and (guided := self._guided(number, rng)) is not None:
            return guided
        local = number % self._settings.local_moves_every == 0
        if not local and attempt < _SAMPLER_ATTEMPTS:
            if self._sampler.informed:
                return self._sampler.ask(_seed(self._settings.seed, number, attempt), self._seen)
            return self._space.scattered(rng.choice(self._incumbents.genomes), rng)
        return self._stepped(number, attempt, rng)

    def _stepped(self, number: int, attempt: int, rng: random.Random) -> Genome:
        """A local move, the farther the more attempts led to what is known."""
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
