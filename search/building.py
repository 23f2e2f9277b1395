"""Building finalists in rounds: what a round teaches about the refit decides what the next one builds.

Where finalists are distilled, rehearsals come first (`rehearsal`).
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from paretopress.evaluators.candidate import Limits
from paretopress.evaluators.evaluation import State
from paretopress.search.executors import Executor
from paretopress.search.finalists import choose, least_divergent, next_builds, surest, unlike, widest_gaps
from paretopress.search.outlook import Prospect, outlook
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.rehearsal import Allowance, Rehearsals, rehearse
from paretopress.search.tasks import Construction
from paretopress.search.workload import Built
from paretopress.spaces.documents import disk_error
from paretopress.spaces.errors import ArtifactError
from paretopress.spaces.policy import Policy

if TYPE_CHECKING:
    from paretopress.search.observer import Observer

ROUNDS = 8                 # a round builds an eighth of what may be built, or what can be under way at a time
DISTILLATION_SHARE = 0.8   # of the time for building
WELL_TRAINED = 0.05        # nats from the dense model: what longer training gains from there on is little
LONGER = 3.0               # times as many steps for what short training left farther off
DRAWN_SHARE = 2.0 / 3.0    # of the builds, of policies that were drawn at random
LEAST_BUILT = 3            # candidates where even the fewest that are wanted take too long
LEAST_SHARE = 2            # thirds of the finalists that time is divided among at least: a front needs its points
BUILDS_PER_FINALIST = 2    # as many are built as are verified, and once more
TRAINING_GAIN = 2.0        # by which the whole training divides the divergence that a rehearsal leaves
REHEARSED_AT_ONCE = 3      # of a round, for each worker
SMALLEST_DOUBT = 0.25      # of the logarithm of a divergence after a rehearsal, before there was one
HASTE = 0.2                # of the rehearsals' time that the first of them may take: else all of it is needed elsewhere


@dataclass(frozen=True)
class BuildSettings:
    """How much is built, and by what it is chosen.

    Attributes:
        objectives: Objective names and directions.
        limits: Budgets.
        samples: Samples that accuracies were measured on.
        finalists: How many candidates are verified, besides the named ones.
        fewest: How many are built however short the time.
        deadline: Of `time.monotonic()`, None for no limit.
        distilled: Whether every build is distilled, which takes longer than all else: as many are built as
            are verified then.
        enough: Seconds that a distillation should take at least, where that leaves enough builds: a few that are
            well trained beat many that hardly are.
        rehearsed: Whether candidates are trained for a few steps first, to tell which to build.
        latest: Of `time.monotonic()`: from then on `LEAST_BUILT` candidates are enough; None for no such time.
        drawn: Hashes of policies that were drawn at random: two thirds of what is built. Where few samples are scored,
            the best of thousands of explored ones lose more on others than these do (DS-CNN, 128 scored samples: 4.6
            points on average, of 8, against 3.1, of 10).
    """

    objectives: Mapping[str, str]
    limits: Limits
    samples: int
    finalists: int
    fewest: int
    deadline: float | None = None
    distilled: bool = False
    enough: float = 0.0
    rehearsed: bool = False
    latest: float | None = None
    drawn: frozenset[str] = frozenset()

    @property
    def most(self) -> int:
        """How many are built at most, besides the named ones."""
        return self.finalists if self.distilled else BUILDS_PER_FINALIST * self.finalists

    def seconds_each(self, named: int, workers: int) -> float | None:
        """The time for each distillation, so that as many builds as possible are distilled well.

        Args:
            named: How many builds there are besides the candidates.
            workers: How many are under way at a time.

        Returns:
            Seconds, None where there is no limit.
        """
        if self.deadline is None or not self.distilled:
            return None
        seconds = DISTILLATION_SHARE * max(0.0, self.deadline - time.monotonic()) * workers
        builds = int(seconds / self.enough) if self.enough else named + self.finalists
        least = max(self.fewest, LEAST_SHARE * self.finalists // 3)
        return seconds / (named + min(self.finalists, max(least, builds - named)))

    def wanted(self, tried: int) -> int:
        """How many more candidates are built however short the time, when so many were tried."""
        late = self.latest is not None and time.monotonic() > self.latest
        return max(0, (min(LEAST_BUILT, self.fewest) if late else self.fewest) - tried)

    def in_time(self, seconds: float | None = None) -> bool:
        """Whether there is time to build another one, whose distillation takes so many seconds."""
        return self.deadline is None or time.monotonic() + (seconds or 0.0) < self.deadline


@dataclass
class Workshop:
    """What has been built so far, each in a folder of its own.

    Attributes:
        folder: Where everything is built.
        executor: Does the building; its file system is this one's.
        observer: Hears about progress.
        seconds: Time for each distillation, None for no limit.
        evaluated: Accuracy and divergence of complete trials by policy hash.
        built: Records by policy hash.
        probes: Likewise, of what was built on trial and dropped since.
        failed: One line by policy hash.
        rehearsals: What was trained for a few steps.
    """

    folder: Path
    executor: Executor
    observer: Observer
    seconds: float | None = None
    evaluated: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    built: dict[str, Built] = field(default_factory=dict)
    probes: dict[str, Built] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    rehearsals: Rehearsals = field(default_factory=Rehearsals)

    def open(self) -> None:
        """Make the folder, without what an interrupted run left in it. Raises `DiskError`."""
        try:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise disk_error(self.folder, error) from None

    def place(self, policy: Policy) -> Path:
        """Where a policy's artefact is built."""
        return self.folder / policy.hash

    def forget(self, policy: Policy) -> None:
        """Drop what was built of a policy, to build it anew. Raises `DiskError`."""
        if policy.hash in self.built:
            self.probes[policy.hash] = self.built.pop(policy.hash)
            try:
                shutil.rmtree(self.place(policy))
            except OSError as error:
                raise disk_error(self.folder, error) from None

    def tried(self, named: Sequence[Policy]) -> int:
        """How many candidates besides the named ones were built or failed."""
        return len((self.built.keys() | self.failed.keys()) - {policy.hash for policy in named})

    def build(self, policies: Sequence[Policy], settings: BuildSettings, fewest: int) -> None:
        """Build policies, the first `fewest` of them however short the time."""
        waiting = list(enumerate(policies))
        while True:
            while waiting and self.executor.pending < self.executor.capacity:
                if waiting[0][0] >= fewest and not settings.in_time(self.seconds):
                    waiting.clear()
                    break
                number, policy = waiting.pop(0)
                known = self.evaluated.get(policy.hash)
                self.executor.submit(number, Construction(policy, str(self.place(policy)), self.seconds, known))
            if not self.executor.pending:
                return
            outcome = self.executor.next_result()
            if outcome is None:
                continue
            policy = policies[outcome.number]
            if outcome.evaluation.state is State.COMPLETE:
                self.built[policy.hash] = Built.load(self.place(policy))
            else:
                self.failed[policy.hash] = outcome.evaluation.reason
                self.observer.warning(f"finalist {policy.hash[:12]} could not be built: {outcome.evaluation.reason}")
            self.observer.advance(1, policy.hash[:8])


def build_finalists(
    workshop: Workshop, named: Sequence[Policy], records: Sequence[TrialRecord], settings: BuildSettings
) -> list[Policy]:
    """Build the named policies and the candidates that may be on the front.

    Args:
        workshop: Where they are built.
        named: Built whatever happens; the first is the dense baseline.
        records: All trials.
        settings: How many and how long.

    Returns:
        Candidates to verify, without the named ones, the most important first: the built ones, and those
        whose build failed, which are reported.

    Raises:
        ArtifactError: The dense baseline cannot be built.
        DiskError: An artefact cannot be written.
    """
    drain(workshop.executor)
    workshop.open()
    workshop.evaluated = {
        record.policy.hash: (record.values["accuracy"], record.values["divergence"]) for record in records
        if record.state is TrialState.COMPLETE and "divergence" in record.values
    }
    workshop.observer.stage("distil" if settings.distilled else "refit", len(named) + min(settings.most, len(records)))
    workshop.build(named[:1], settings, 1)
    baseline = named[0].hash
    if baseline in workshop.failed:
        raise ArtifactError(f"the dense baseline cannot be built: {workshop.failed[baseline]}")
    if settings.rehearsed:
        _rehearse(workshop, named, records, settings)
    _schedule(workshop, named, records, settings)
    workshop.build(named[1:], settings, len(named))
    # Builds that fail count as tried: once the time is over nothing else is begun, and nothing is waited for.
    while settings.in_time(workshop.seconds) or settings.wanted(workshop.tried(named)):
        policies = _next_round(workshop, named, records, settings)
        if not policies:
            break
        workshop.build(policies, settings, settings.wanted(workshop.tried(named)))
    view = outlook(records, workshop.built, settings.limits, named, settings.samples, rehearsals=workshop.rehearsals)
    ready = [one for one in view.prospects if one.built]
    picked = choose(ready, settings.objectives, settings.limits, settings.finalists, settings.samples)
    broken = [record.policy for record in records if record.policy.hash in workshop.failed]
    return [*(one.record.policy for one in picked), *(policy for policy in broken if policy not in named)]


def _schedule(
    workshop: Workshop, named: Sequence[Policy], records: Sequence[TrialRecord], settings: BuildSettings
) -> None:
    """Decide how long each distillation takes: short ones first, where these are not enough fewer and longer ones."""
    capacity = workshop.executor.capacity
    workshop.seconds = settings.seconds_each(len(named), capacity)
    if workshop.seconds is None or not settings.in_time():
        return
    probes = _next_round(workshop, named, records, settings)[:capacity]
    workshop.build(probes, settings, 0)
    losses = [workshop.built[policy.hash].divergence for policy in probes if policy.hash in workshop.built]
    if not losses or statistics.median(losses) <= WELL_TRAINED:
        return
    for policy in probes:
        workshop.forget(policy)
    workshop.seconds = replace(settings, enough=LONGER * settings.enough).seconds_each(len(named), capacity)


def _next_round(
    workshop: Workshop, named: Sequence[Policy], records: Sequence[TrialRecord], settings: BuildSettings
) -> list[Policy]:
    """The candidates that add most to the front by the present knowledge, as many as a round builds.

    The surest first; then one half fills the front's widest gaps, the other adds most by what is expected.
    """
    size = max(settings.most // ROUNDS, workshop.executor.capacity)
    size = min(size, settings.most - workshop.tried(named))
    if size <= 0:
        return []
    view = outlook(records, workshop.built, settings.limits, named, settings.samples, workshop.probes,
                   workshop.rehearsals)
    sound = tuple(one for one in view.prospects if one.record.policy.hash not in workshop.failed)
    first = surest(sound, _rivals(named, records), settings.objectives, settings.limits, 2 if settings.distilled else 1,
                   apart=settings.distilled)
    tried = workshop.built.keys() | workshop.failed.keys()
    owed = round(DRAWN_SHARE * (workshop.tried(named) + size)) - len(tried & settings.drawn)
    picked = _drawn(sound, settings, min(size, max(0, owed)))
    picked += [one for one in first if not one.built and one not in picked][: size - len(picked)]
    if settings.distilled and settings.limits.costs:   # what meets them is asked for, not variety in bytes
        known = [one for one in sound if one.built or one in picked]
        sound = (*known, *unlike([one for one in sound if one not in known], known))
    view = replace(view, prospects=sound)
    picked += widest_gaps(view, settings.objectives, (size - len(picked)) // 2, picked)
    left = tuple(one for one in sound if one not in picked)
    picked += next_builds(replace(view, prospects=left), settings.objectives, settings.limits, size - len(picked),
                          settings.samples)
    return [one.record.policy for one in picked]


def _drawn(prospects: Sequence[Prospect], settings: BuildSettings, count: int) -> list[Prospect]:
    """Those of the candidates drawn at random within the budgets on costs that promise to diverge least."""
    pool = [one for one in prospects
            if one.record.policy.hash in settings.drawn and not one.built and one.excess == 0.0]
    return least_divergent(pool, count)


def _rivals(named: Sequence[Policy], records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Trials of what people would try by hand."""
    by_hand = {policy.hash for policy in named[1:]}
    return [one for one in records if one.policy.hash in by_hand and one.state is TrialState.COMPLETE]


def _rehearse(
    workshop: Workshop, named: Sequence[Policy], records: Sequence[TrialRecord], settings: BuildSettings
) -> None:
    """Train the candidates that promise most for a few steps each, in rounds, and learn from each round."""
    capacity = workshop.executor.capacity
    workshop.rehearsals.begun = True
    allowance = Allowance.of(settings.finalists, settings.deadline, capacity)
    left, size, begin = allowance.most, capacity, time.monotonic()
    while left > 0 and allowance.in_time():
        policies = _next_rehearsals(workshop, named, records, settings, min(size, left))
        if not policies:
            return
        left -= rehearse(workshop.executor, policies, allowance, workshop.rehearsals)
        if size == capacity and allowance.hurried(begin, HASTE):
            return
        size = REHEARSED_AT_ONCE * capacity
        workshop.observer.message(f"{len(workshop.rehearsals.losses)} candidates rehearsed")


def _next_rehearsals(
    workshop: Workshop, named: Sequence[Policy], records: Sequence[TrialRecord], settings: BuildSettings, size: int
) -> list[Policy]:
    """The candidates of which a rehearsal may show most: every second is one of those that meet the budgets best."""
    losses = workshop.rehearsals.losses
    view = outlook(records, {}, settings.limits, named, settings.samples, rehearsals=workshop.rehearsals)
    found = tuple(
        replace(one, divergence=one.promise, built=one.record.policy.hash in losses,
                error=0.0 if one.record.policy.hash in losses else max(one.doubt, SMALLEST_DOUBT))
        for one in view.prospects
    )
    each = 2 + len(losses) // REHEARSED_AT_ONCE
    first = surest(found, _rivals(named, records), settings.objectives, settings.limits, each, apart=True)
    picked = _drawn(found, settings, size // 3)
    picked += [one for one in first if not one.built and one not in picked][:-(-size // 2)]
    left = tuple(one for one in found if one not in picked)
    if settings.limits.costs:
        known = [one for one in found if one.built or one in picked]
        left = (*(one for one in known if one.built), *unlike([one for one in left if not one.built], known))
    wider = replace(view, prospects=left, worst_divergence=TRAINING_GAIN * view.worst_divergence)
    picked += next_builds(wider, settings.objectives, settings.limits, size - len(picked), settings.samples)
    return [one.record.policy for one in picked]


def drain(executor: Executor) -> None:
    """Wait for what an exploration that was stopped early left under way."""
    while executor.pending:
        executor.next_result()
