"""Starting a search from what was learnt on other models.

The table is predicted from theirs and corrected by a few measurements (`warm_table`), their policies are carried over
unit by unit (`spaces.policy_transfer`), and what both suggest is evaluated among seeds that owe them nothing
(`seed_mix`). Everything that is decided follows from the run's own trials, so that a continued run decides alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paretopress.evaluators.costs import runs_everywhere, uniform_width
from paretopress.evaluators.sensitivity import USUAL_EXPONENT, Cell, SensitivityTable, amount, monotone
from paretopress.evaluators.sensitivity_prior import SensitivityPrior
from paretopress.search.executors import Executor
from paretopress.search.pareto import spread_order
from paretopress.search.problem import EVEN_WIDTHS, Problem
from paretopress.search.records import TrialRecord
from paretopress.search.seed_mix import SeedMix, judged, volumes
from paretopress.search.seeds import exact_seeds
from paretopress.search.table import SENSITIVITY, TableRun, read_table, write_table
from paretopress.search.warm_table import Refinement, Round, WarmTable, measured_whole, warm_table
from paretopress.spaces.choice_families import kind_of
from paretopress.spaces.documents import read_document, write_json
from paretopress.spaces.errors import ConfigError, PolicyError
from paretopress.spaces.policy import Policy
from paretopress.spaces.policy_transfer import PolicyTransfer, transfer_policy
from paretopress.spaces.recipe import Recipe
from paretopress.spaces.unit_features import UnitFeatures, unit_features

if TYPE_CHECKING:
    from paretopress.search.observer import Observer

TRANSFER = "transfer.json"
SEEDS = 40
BEST = 12        # seeds whose choices are measured first
ROUND = 8        # trials between two looks at how transferred and cold seeds do
ROUNDS = 5       # in all
USUAL_LOSS = 0.02    # nats: of half of anything, where nothing is known
WORST_SEED_LOSS = 0.5    # nats: seeds that lose more promise nothing more
LEAST_SEED_LOSS = 1e-3   # nats: seeds that lose less are as good as dense
MUCH = 2.0               # times the loss of another policy: interactions that the table knows nothing of explain less


@dataclass(frozen=True)
class WarmStart:
    """What a search starts from.

    Attributes:
        warm: The table and how it came about.
        transfers: What each carried policy did to the model's units.
        mix: The seeds.
        refinement: Corrects a predicted table while the seeds are evaluated; None where it is measured.
    """

    warm: WarmTable
    transfers: tuple[PolicyTransfer, ...]
    mix: SeedMix
    refinement: Refinement | None = None


def features_of(problem: Problem) -> dict[str, UnitFeatures]:
    """The features of a problem's layers and groups."""
    return unit_features(problem.program.structure, problem.program.state)


def carried(
    problem: Problem, features: Mapping[str, UnitFeatures], recipes: Sequence[Recipe]
) -> tuple[PolicyTransfer, ...]:
    """The recipes' policies carried to the problem's model, those that fit in part too; others are left out."""
    found: dict[Policy, PolicyTransfer] = {}
    for recipe in recipes:
        for one in recipe.policies:
            if one.policy.is_dense:
                continue
            try:
                transfer = transfer_policy(
                    one.policy, problem.program.structure, features, recipe.features, options=problem.space.options,
                    partial=True, model=problem.model_fingerprint, space=problem.space.fingerprint,
                )
            except PolicyError:
                continue
            found.setdefault(transfer.policy, transfer)
    return tuple(one for policy, one in found.items() if not policy.is_dense)


def warm_table_and_seeds(
    problem: Problem, executor: Executor, path: Path, key: Mapping[str, str], observer: Observer,
    seconds_left: Callable[[], float | None],
    explore: Callable[[SensitivityTable, Sequence[Policy], int], list[TrialRecord]],
) -> tuple[SensitivityTable, tuple[Policy, ...]]:
    """The table and the seeds of a search that starts from its problem's library, as its first trials judge them.

    Args:
        problem: The run's problem.
        executor: Does `Substitution` tasks.
        path: The run directory: `transfer.json` and `sensitivity.json` are written there.
        key: What they depend on.
        observer: Hears about progress.
        seconds_left: For measuring.
        explore: Evaluates seeds by a table until there are so many trials in all, and returns all records.
    """
    observer.stage("sensitivity", None)
    begun = start(problem, problem.library, executor, path, key, observer, seconds_left())
    earlier = read_table(path / SENSITIVITY, key, problem.space)
    table, seeds = believed(problem, begun, explore, executor, observer, seconds_left(), earlier,
                            lambda: _store(path, key, begun))
    stop = getattr(observer, "should_stop", None)
    if stop is None or not stop():
        write_table(path / SENSITIVITY, key, table, problem.space)
    return table, seeds


def start(
    problem: Problem, recipes: Sequence[Recipe], executor: Executor, path: Path, key: Mapping[str, str],
    observer: Observer, seconds: float | None = None,
) -> WarmStart:
    """Predict and measure the table, carry the policies, and order the seeds.

    Args:
        problem: The run's problem.
        recipes: What is known of other models.
        executor: Does `Substitution` tasks.
        path: The run directory, where the measurements are kept.
        key: What they depend on.
        observer: Hears about progress.
        seconds: When to stop measuring.
    """
    features, stop = features_of(problem), getattr(observer, "should_stop", None)
    warm = _stored(path, key, problem)
    if warm is None:
        warm = warm_table(problem.space, features, recipes, executor, observer, seconds, stop)
        for failure in warm.failures:
            observer.warning(failure)
    transfers = carried(problem, features, recipes)
    _say(warm, transfers, observer)
    refinement = None
    if warm.predicted:
        prior = SensitivityPrior(recipes, features, problem.space.options)
        prior.learn(warm.run.measured)
        refinement = Refinement(problem.space, prior, warm.run, _stored_refinement(path, key))
    result = WarmStart(warm, transfers, _mix(problem, warm, transfers), refinement)
    if stop is None or not stop():
        _store(path, key, result)
    return result


def believed(
    problem: Problem, begun: WarmStart,
    explore: Callable[[SensitivityTable, Sequence[Policy], int], list[TrialRecord]],
    executor: Executor, observer: Observer, seconds: float | None = None, earlier: SensitivityTable | None = None,
    on_refined: Callable[[], None] | None = None,
) -> tuple[SensitivityTable, tuple[Policy, ...]]:
    """Evaluate seeds of both origins in rounds, and return the table and the seeds to go on with.

    After each round a predicted table is corrected where its best policies rest on predictions, and solved again.

    Args:
        problem: The run's problem.
        begun: What the search starts from.
        explore: Evaluates seeds by a table until there are so many trials in all, and returns all records.
        executor: Measures choices: a few after each round, the rest of the table where the prior is dropped.
        observer: Hears about it.
        seconds: When to stop measuring, each time.
        earlier: The table that an earlier start of this run ended with.
        on_refined: Called when choices were measured.
    """
    mix, table, stop = begun.mix, begun.warm.table, getattr(observer, "should_stop", None)
    refinement = begun.refinement
    for number in range(1, ROUNDS + 1):
        most = len(mix.common) + number * ROUND
        records = explore(table, mix.order(), most)
        first = sorted((record for record in records if record.number < most), key=lambda record: record.number)
        mix = judged(mix, volumes(mix, first, problem.objectives))
        if mix.dropped or (stop is not None and stop()) or len(first) < most:
            break
        if refinement is not None:
            best = promising(problem, table, cold_seeds(problem, table))[:BEST]
            if refinement.step(best, executor, observer, seconds, stop):
                table = refinement.table()
                mix = mix.renewed(promising(problem, table, cold_seeds(problem, table)))
                if on_refined is not None:
                    on_refined()
    if not mix.dropped:
        return table, mix.order()
    observer.warning("what other models' runs suggest does worse than seeds without them: the search goes on without")
    if begun.warm.predicted:
        observer.stage("sensitivity", None)
        run = begun.warm.run
        table = earlier or measured_whole(problem.space, run, (), executor, observer, seconds, stop, ()).table
    return table, (*mix.common, *promising(problem, table, cold_seeds(problem, table)))


def cold_seeds(problem: Problem, table: SensitivityTable) -> tuple[Policy, ...]:
    """Seeds of a table, as a search without a library has them."""
    limits = problem.limits_without_accuracy().costs
    return exact_seeds(problem.program.structure, problem.space, table, problem.costs, SEEDS, limits).policies[1:]


def uniform_seeds(problem: Problem) -> tuple[Policy, ...]:
    """Policies that treat all units alike: every format of weights with every width, and floats with every width."""
    options = problem.space.options
    formats = dict.fromkeys(choice for unit, choices in options.items() if unit.endswith("/weights")
                            for choice in choices if choice is not None)
    found = []
    for form in (None, *formats):
        stored = {unit: form for unit, choices in options.items() if form is not None and form in choices}
        for width in (1.0, *EVEN_WIDTHS):
            narrow = uniform_width(problem.space, width).choices if width < 1.0 else {}
            found.append(problem.policy({**narrow, **stored}))
    return tuple(policy for policy in dict.fromkeys(found) if not policy.is_dense)


def plain_table(problem: Problem, measured: Mapping[Cell, float]) -> SensitivityTable:
    """A table that knows no units: every loss follows the strength of its choice, at the level of those measured."""
    logs: dict[tuple[str, ...], list[float]] = {}
    for (unit, option), loss in measured.items():
        choice = problem.space.options[unit][option]
        if choice is not None:
            level = np.log(max(loss, 1e-6)) - USUAL_EXPONENT * np.log(amount(choice))
            logs.setdefault(kind_of(choice), []).append(float(level))
    usual = float(np.log(USUAL_LOSS) - USUAL_EXPONENT * np.log(0.5))
    levels = {family: float(np.median(found)) for family, found in logs.items()}
    losses = {}
    for unit, options in problem.space.options.items():
        row = [0.0 if one is None else float(min(
            10.0, np.exp(levels.get(kind_of(one), usual) + USUAL_EXPONENT * np.log(amount(one)))
        )) for one in options]
        losses[unit] = monotone(options, row)
    return SensitivityTable(losses)


def _mix(problem: Problem, warm: WarmTable, transfers: Sequence[PolicyTransfer]) -> SeedMix:
    structure, space = problem.program.structure, problem.space
    dense = Policy.of({}, model=structure.fingerprint, space=space.fingerprint)
    common = (dense, *problem.comparisons().values())
    if problem.distillation_samples() is not None:
        common = tuple(dict.fromkeys((*common, *problem.even_widths())))
    policies = [one.policy for one in transfers]
    if warm.predicted:
        transferred = [*policies, *cold_seeds(problem, warm.table)]
        plain = plain_table(problem, warm.run.measured)
        return SeedMix(common, promising(problem, warm.table, transferred),
                       promising(problem, plain, uniform_seeds(problem)))
    cold = promising(problem, warm.table, cold_seeds(problem, warm.table))   # the table owes the library nothing
    policies = list(worth_trying(problem, warm.table, policies, cold))
    return SeedMix(common, promising(problem, warm.table, policies), cold)


def promising(problem: Problem, table: SensitivityTable, policies: Sequence[Policy]) -> tuple[Policy, ...]:
    """Policies in the order in which they should enlarge the dominated volume most, by the table and their costs."""
    distinct = tuple(dict.fromkeys(policies))
    rows = _expected(problem, table, distinct)
    if not rows:
        return distinct
    kept = tuple(rows)
    # The metric falls with the root of small divergences: Pinsker's inequality bounds it so.
    array = np.array([[min(loss, WORST_SEED_LOSS) ** 0.5, *costs] for loss, *costs in rows.values()])
    order = spread_order(array, len(kept), relative_gap=0.0)
    rest = [row for row in range(len(kept)) if row not in set(order)]
    return tuple(kept[row] for row in (*order, *rest))


def worth_trying(
    problem: Problem, table: SensitivityTable, policies: Sequence[Policy], rivals: Sequence[Policy]
) -> tuple[Policy, ...]:
    """Policies without those that lose much more, by a table that is measured, than rivals of no higher costs."""
    own, others = _expected(problem, table, policies), np.array(list(_expected(problem, table, rivals).values()))
    if not len(others):
        return tuple(own)

    def beaten(row: Sequence[float]) -> bool:
        no_dearer = others[(others[:, 1:] <= np.array(row[1:])).all(axis=1), 0]
        return bool((row[0] > MUCH * np.maximum(no_dearer, LEAST_SEED_LOSS)).any())

    return tuple(policy for policy, row in own.items() if not beaten(row))


def _expected(problem: Problem, table: SensitivityTable, policies: Sequence[Policy]) -> dict[Policy, list[float]]:
    """The table's loss and the predicted costs of each policy that all devices can run."""
    rows = {}
    for policy in dict.fromkeys(policies):
        costs = problem.costs.predict(problem.plan(policy))
        if runs_everywhere(costs):
            loss = sum(table.losses[unit][problem.space.options[unit].index(choice)] for unit, choice in policy)
            rows[policy] = [loss, *(costs[name] for name in problem.cost_objectives)]
    return rows


def _say(warm: WarmTable, transfers: Sequence[PolicyTransfer], observer: Observer) -> None:
    cells = sum(len(row) - 1 for row in warm.table.losses.values())
    if warm.predicted:
        count = cells - len(warm.run.measured)
        observer.message(f"{count} of {cells} losses are predicted from {', '.join(warm.sources)}")
    elif warm.sources:
        observer.warning(f"{', '.join(warm.sources)} predict this model badly: its own losses are measured")
    if transfers:
        coverage = float(np.mean([one.coverage for one in transfers]))
        observer.message(f"{len(transfers)} policies carried over, covering {coverage:.0%} of the units on average")


def _store(path: Path, key: Mapping[str, str], begun: WarmStart) -> None:
    warm, refinement = begun.warm, begun.refinement
    refined = refinement.known if refinement is not None else {}
    rounds = [*warm.rounds, *(refinement.rounds if refinement is not None else ())]
    write_json(path / TRANSFER, {
        "key": dict(key), **warm.to_plain(), "rounds": [asdict(one) for one in rounds],
        "losses": {unit: list(row) for unit, row in warm.table.losses.items()},
        "estimated": [list(cell) for cell in sorted(warm.table.estimated)],
        "cells": [[unit, option, loss] for (unit, option), loss in warm.run.measured.items()
                  if (unit, option) not in refined],
        "together": warm.run.together,
        "refined": [[unit, option, loss] for (unit, option), loss in refined.items()],
        "mapping": begun.transfers[0].to_plain() if begun.transfers else None,
        "coverage": [one.coverage for one in begun.transfers],
        "seeds": {"transferred": len(begun.mix.transferred), "cold": len(begun.mix.cold)},
    })


def _stored_refinement(path: Path, key: Mapping[str, str]) -> dict[Cell, float]:
    """What an earlier start of this run measured while it evaluated seeds."""
    plain = _document(path, key)
    return {} if plain is None else {(unit, option): loss for unit, option, loss in plain.get("refined", ())}


def _document(path: Path, key: Mapping[str, str]) -> dict[str, Any] | None:
    """The file of an earlier start of this run, None where there is none of exactly this problem."""
    file = path / TRANSFER
    if not file.exists():
        return None
    try:
        plain: Any = read_document(file)
    except ConfigError:
        return None
    return plain if isinstance(plain, dict) and plain.get("key") == dict(key) else None


def _stored(path: Path, key: Mapping[str, str], problem: Problem) -> WarmTable | None:
    """What an earlier start of this run measured before its first candidate."""
    plain = _document(path, key)
    if plain is None:
        return None
    losses = {unit: tuple(row) for unit, row in plain["losses"].items()}
    if {unit: len(row) for unit, row in losses.items()} != {u: len(o) for u, o in problem.space.options.items()}:
        return None
    run = TableRun(problem.space, {(unit, option): loss for unit, option, loss in plain["cells"]}, plain["together"])
    table = SensitivityTable(losses, frozenset((unit, option) for unit, option in plain["estimated"]))
    rounds = tuple(Round(**one) for one in plain["rounds"] if not one.get("relied_on"))
    return WarmTable(table, run, rounds, bool(plain["predicted"]), tuple(plain["sources"]))
