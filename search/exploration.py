"""Exploration: the loop that proposes, evaluates, records and learns.

The driver owns the loop: executors only evaluate, the ledger only records. With one worker a run is
deterministic in (seed, trials), also when it is killed and started again. With several, policies depend on
the order in which evaluations finish, and so does on how many samples a hopeless candidate is scored; what a candidate
that is scored in full is worth does not.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from paretopress.evaluators.evaluation import Evaluation, State
from paretopress.search.executors import Executor, failed
from paretopress.search.ledger import Run
from paretopress.search.option_space import Genome, OptionSpace
from paretopress.search.proposals import Proposer
from paretopress.search.records import TrialRecord
from paretopress.search.rivalry import Rivalry
from paretopress.search.samplers import ExplorationSettings
from paretopress.search.surrogate import Guide
from paretopress.spaces.choices import Choice
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.policy import Policy

__all__ = ["ExplorationSettings", "explore"]

_POLL_SECONDS = 0.25    # how often `should_stop` is looked at while evaluations run


def explore(
    options: Mapping[str, tuple[Choice | None, ...]],
    objectives: Mapping[str, str],
    seeds: Sequence[Policy],
    executor: Executor,
    run: Run,
    settings: ExplorationSettings,
    constraints: Sequence[str] = (),
    on_record: Callable[[TrialRecord], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    inside: Mapping[str, tuple[str, ...]] | None = None,
    guide: Guide | None = None,
    rivalry: Rivalry | None = None,
) -> list[TrialRecord]:
    """Evaluate the seeds, then what the sampler and local moves propose, each policy once.

    The run's earlier trials are learnt first and count. Trials are numbered 0..N-1 without holes: numbers
    that a killed run with several workers left out are given again.

    Args:
        options: Per unit its legal choices in order of strength, first None (dense).
        objectives: Objective names and their directions, `"min"` or `"max"`.
        seeds: Evaluated first, in order; repetitions are left out.
        executor: Where evaluations run; at most `executor.capacity` are under way.
        run: The open run that records them.
        settings: Sampler, limits and seed.
        constraints: Names of the constraints that every complete evaluation has.
        on_record: Called with each new record once it is durable.
        should_stop: Asked between trials and about four times a second while waiting; evaluations under
            way are then dropped (a serial evaluation is finished first).
        inside: Units inside the branch that another unit may drop: without the branch they decide nothing, and
            policies that differ there alone are one.
        guide: What proposals may know beside the trials; without one no surrogate proposes anything.
        rivalry: What candidates are compared with while they are scored; without it each is scored in full.

    Returns:
        All records of the run, in the order in which they were written.

    Raises:
        ConfigError: An unknown direction, or options that do not start with dense.
        PolicyError: A seed or an earlier trial is outside the options.
        DiskError: A record or an evaluation could not be written; every earlier record is on disk.
    """
    prints = run.fingerprints
    space = OptionSpace.of(options, model=prints.get("model", ""), space=prints.get("space", ""), inside=inside)
    proposer = _proposer(space, objectives, seeds, run, settings, guide)
    if rivalry is not None:
        for record in run.records():
            rivalry.learn(record)
    pending: dict[int, Genome] = {}
    proposals = _proposals(proposer, run, settings)
    while should_stop is None or not should_stop():
        for number, genome in itertools.islice(proposals, max(0, executor.capacity - len(pending))):
            pending[number] = genome
            policy = space.policy(genome)
            executor.submit(number, policy if rivalry is None else rivalry.task(number, policy))
        if not pending:
            break
        outcome = executor.next_result(timeout_seconds=_POLL_SECONDS)
        if outcome is None:
            continue
        genome = pending.pop(outcome.number)
        evaluation = complete_or_failed(outcome.evaluation, objectives, constraints)
        record = TrialRecord.of(outcome.number, space.policy(genome), evaluation, outcome.seconds)
        run.append(record)
        proposer.learn(genome, record)
        if rivalry is not None:
            rivalry.learn(record)
        if on_record is not None:
            on_record(record)
    return run.records()


def _proposer(
    space: OptionSpace,
    objectives: Mapping[str, str],
    seeds: Sequence[Policy],
    run: Run,
    settings: ExplorationSettings,
    guide: Guide | None,
) -> Proposer:
    """Return a proposer that knows the run's earlier trials."""
    for name, direction in objectives.items():
        if direction not in ("min", "max"):
            raise ConfigError(f"objective {name!r}: direction {direction!r} is not 'min' or 'max'")
    proposer = Proposer(space, objectives, [space.genome(policy) for policy in seeds], settings, guide)
    for record in run.records():
        genome = space.genome(record.policy)
        proposer.replay(record.number, genome)
        proposer.learn(genome, record)
    return proposer


def _proposals(
    proposer: Proposer, run: Run, settings: ExplorationSettings
) -> Iterator[tuple[int, Genome]]:
    """Yield numbers and genomes until the trials, the time or the space are used up."""
    earlier = {record.number for record in run.records()}
    total = len(earlier)
    start = time.monotonic()
    for number in itertools.count():
        if number in earlier:
            continue
        if settings.trials is not None and total >= settings.trials:
            return
        if settings.seconds is not None and time.monotonic() - start >= settings.seconds:
            return
        genome = proposer.propose(number)
        if genome is None:
            return
        total += 1
        yield number, genome


def complete_or_failed(evaluation: Evaluation, objectives: Mapping[str, str], constraints: Sequence[str]) -> Evaluation:
    """Return the evaluation itself, or a failed one naming what a complete one lacks."""
    if evaluation.state is not State.COMPLETE:
        return evaluation
    missing = [name for name in objectives if name not in evaluation.values]
    missing += [name for name in constraints if name not in evaluation.constraints]
    return failed(f"the evaluation lacks {', '.join(missing)}") if missing else evaluation
