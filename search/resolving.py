"""Solving a run again: other budgets or another device, from the sensitivities that it has measured already.

Nothing is trained or scored: the table is read, what it does not cover is measured and counted, and the fronts are
solved exactly. The result is predicted, not verified.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from paretopress.evaluators.budgets import Budget
from paretopress.evaluators.costs import runs_everywhere, violations
from paretopress.evaluators.data import Data
from paretopress.evaluators.proxies import ProxyTable, policy_of_cell
from paretopress.evaluators.sensitivity import Cell, SensitivityTable, cells_in_order, monotone, substitution_loss
from paretopress.search.conditions import NO_CONDITIONS, Conditions
from paretopress.search.exact import FrontPoint
from paretopress.search.exchange import Exchange, cheapest_rates, drop_per_nat, exchanges
from paretopress.search.executors import torch_threads
from paretopress.search.ledger import read_run
from paretopress.search.pareto import non_dominated
from paretopress.search.problem import Problem, SearchSettings, prepare_problem
from paretopress.search.proxy_tables import metric_of, scored
from paretopress.search.reachability import check_feasible, reachable
from paretopress.search.records import TrialRecord
from paretopress.search.seeds import exact_fronts, policy_of, spread_by_loss, within
from paretopress.spaces.choices import choice_from_plain, choice_to_plain
from paretopress.spaces.documents import RUN_BYTES, canonical_json, finite, read_document
from paretopress.spaces.errors import ArtifactError, ConfigError, InfeasibleError
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SpaceSettings

if TYPE_CHECKING:
    from paretopress.search.observer import Observer

POINTS = 16    # of every mix of time and size
SHOWN = 24     # points of the predicted front
LABEL = "predicted, not verified"


@dataclass(frozen=True)
class Solved:
    """One point of a predicted front.

    Attributes:
        policy: What to do to each unit.
        loss: The table's loss in nats.
        predicted: Predicted costs by name.
        drop: Loss of the metric to be expected by the run's trials of about this loss, None where too few say.
        within: Whether it meets all budgets on costs.
        best: Whether it loses least of those that do.
    """

    policy: Policy
    loss: float
    predicted: Mapping[str, float]
    drop: float | None
    within: bool
    best: bool = False

    def to_plain(self) -> dict[str, Any]:
        """Return the point as plain data."""
        return {
            "policy_hash": self.policy.hash, "loss": self.loss, "drop_expected": self.drop,
            "predicted": {name: finite(value) for name, value in self.predicted.items()},
            "within": self.within, "best": self.best,
            "policy": {unit: choice_to_plain(choice) for unit, choice in self.policy},
        }


@dataclass(frozen=True)
class Resolved:
    """A run solved again.

    Attributes:
        problem: With the new targets and budgets.
        table: Losses of its choices.
        points: The predicted front by falling loss, the dense model left out.
        computed: How many choices the run had not measured.
        covered: How many it had.
        seconds: For all of it.
        scored: The table's loss and the metric's loss of the run's scored trials.
        drop_is_share: Whether the metric is a share, so that its losses are percentage points.
        conditions: Pins and shared units that the points keep to.
    """

    problem: Problem
    table: SensitivityTable
    points: tuple[Solved, ...]
    computed: int
    covered: int
    seconds: float
    scored: tuple[tuple[float, float], ...] = ()
    drop_is_share: bool = True
    conditions: Conditions = NO_CONDITIONS

    @property
    def best(self) -> Solved:
        """The point that loses least within the budgets."""
        return next(point for point in self.points if point.best)

    def exchange(self, point: Solved) -> list[dict[str, Any]]:
        """Return what every change of one unit of a point does, as plain data."""
        return [one.to_plain() for one in self._exchanges(point)]

    def rates_along(self) -> list[dict[str, Any]]:
        """Return per point, layer and cost what saving more there loses at least: see `cheapest_rates`."""
        return [
            {"point": number, "loss": point.loss, "layers": cheapest_rates(self._exchanges(point))}
            for number, point in enumerate(self.points, 1)
        ]

    def _exchanges(self, point: Solved) -> list[Exchange]:
        worth = drop_per_nat([loss for loss, _ in self.scored], [drop for _, drop in self.scored], point.loss)
        return exchanges(self.problem.space, self.table, point.policy, self._prices, worth)

    def _prices(self, policies: Sequence[Policy]) -> list[Mapping[str, float]]:
        """Costs of many policies at once."""
        pricer = self.problem.pricer
        found = pricer.predict(pricer.rows(policies))
        return [{name: float(values[row]) for name, values in found.items()} for row in range(len(policies))]

    def to_plain(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "schema": 1, "label": LABEL, "targets": [device.id for device in self.problem.costs.devices],
            "budgets": [{"objective": b.objective, "limit": b.text} for b in self.problem.settings.budgets],
            **self.conditions.to_plain(), "drop_is_share": self.drop_is_share,
            "baseline": {name: finite(value) for name, value in self.problem.baseline.items()},
            "choices_covered": self.covered, "choices_computed": self.computed, "seconds": self.seconds,
            "points": [point.to_plain() for point in self.points],
        }


def settings_of(plain: Mapping[str, Any], source: str) -> SearchSettings:
    """Return the settings that decide a run's space and losses, from its `run.yaml`.

    Raises:
        ArtifactError: They are missing or damaged.
    """
    try:
        own, space = plain["config"]["settings"], plain["config"]["settings"]["space"]
        pins = {unit: choice_from_plain(choice, f"{source}: pin.{unit}") for unit, choice in space["pin"].items()}
        values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in space.items()}
        return SearchSettings(
            targets=tuple(own["targets"]), trials=1, seed=own["seed"], importance=own["importance"],
            ranges=own["ranges"], distil="off", space=SpaceSettings(**(values | {"pin": pins})),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{source}: the settings are missing or damaged: {error}") from None


def resolve(
    run: Path, model: nn.Module, data: Data, *, targets: Sequence[str] = (), budgets: Sequence[Budget] = (),
    pins: Sequence[str] = (), shares: Sequence[str] = (), observer: Observer,
) -> Resolved:
    """Solve a run again.

    Args:
        run: The run directory; it is not changed.
        model: The run's model.
        data: The run's data; of it only calibration samples are used, and only where choices are missing.
        targets: Other devices, by default the run's.
        budgets: Budgets on costs.
        pins: `UNIT=CHOICE` each: units that take one choice, see `Conditions.parse`.
        shares: `UNIT,UNIT` each: units that take the same choice.
        observer: Hears about progress.

    Raises:
        ConfigError: No run, a budget that makes no sense, or a run of another model.
        ArtifactError: A file of the run is damaged or there is no table yet.
        InfeasibleError: The budgets are out of reach; the message states the best reachable.
    """
    start = time.perf_counter()
    plain, records = read_run(run)
    measured, key = _measured(run / "sensitivity.json")
    settings = settings_of(plain, str(run / "run.yaml"))
    settings = replace(settings, targets=tuple(targets) or settings.targets, budgets=tuple(budgets))
    observer.stage("capture", None)
    problem = prepare_problem(model, data, settings)
    if key.get("model") != problem.model_fingerprint:
        raise ConfigError(f"{run} is a run of another model: its layers or weights differ from those of the one given")
    conditions = Conditions.parse(pins, shares, problem.space)
    check_feasible(problem, reachable(problem))
    table, computed = covered_table(problem, measured, observer)
    return solved_again(problem, table, computed, start, records, observer, conditions)


def solved_again(
    problem: Problem, table: SensitivityTable, computed: int, start: float, records: Sequence[TrialRecord],
    observer: Observer, conditions: Conditions = NO_CONDITIONS,
) -> Resolved:
    """Solve the fronts of a table.

    Args:
        problem: With the targets and budgets that are wanted.
        table: Losses of its choices.
        computed: How many of them were measured for this.
        start: When that began, by `time.perf_counter`.
        records: Trials that say what a loss is worth, none where there are none.
        observer: Hears about progress.
        conditions: Pins and shared units that the points keep to.

    Raises:
        InfeasibleError: The budgets are out of reach together.
    """
    observer.stage("solve", None)
    policies, drops = scored(problem, records)
    losses = ProxyTable("", table, 0.0).scores(problem.space, policies)
    trials = tuple(zip(losses, drops, strict=True))
    points = _points(problem, table, trials, conditions)
    cells = sum(len(options) - 1 for options in problem.space.options.values())
    return Resolved(problem, table, points, computed, cells - computed, time.perf_counter() - start, trials,
                    metric_of(problem, records).is_share, conditions)


def _measured(path: Path) -> tuple[dict[tuple[str, str], float], Mapping[str, Any]]:
    """The measured losses of a run by unit and choice, and what they depend on."""
    if not path.exists():
        raise ArtifactError(f"{path.parent} holds no {path.name}: no run directory, or its table is not measured yet")
    plain = read_document(path, RUN_BYTES)
    try:
        found = {(unit, canonical_json(entry["choice"])): float(entry["loss"])
                 for unit, row in plain["options"].items() for entry in row if not entry.get("estimated")}
        return found, plain["key"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{path}: missing or damaged: {error}") from None


def covered_table(
    problem: Problem, measured: Mapping[tuple[str, str], float], observer: Observer
) -> tuple[SensitivityTable, int]:
    """The table of the problem's space, with what `measured` lacks, and how much that is.

    Args:
        problem: The problem.
        measured: Losses by unit and choice as canonical JSON.
        observer: Hears about progress.
    """
    space = problem.space
    known: dict[Cell, float] = {}
    missing = []
    for unit, index in cells_in_order(space):
        choice = space.options[unit][index]
        assert choice is not None
        loss = measured.get((unit, canonical_json(choice_to_plain(choice))))
        if loss is None:
            missing.append((unit, index))
        else:
            known[unit, index] = loss
    if missing:
        from paretopress.search.preparation import calibrated_entries

        entries = calibrated_entries(problem, observer)
        observer.stage("sensitivity", len(missing))
        with torch_threads(1), torch.random.fork_rng(devices=[]):
            for cell in missing:
                known[cell] = substitution_loss(entries, policy_of_cell(space, cell))
                observer.advance()
    losses = {unit: monotone(options, [known.get((unit, index), 0.0) for index in range(len(options))])
              for unit, options in space.options.items()}
    return SensitivityTable(losses), len(missing)


def _points(
    problem: Problem, table: SensitivityTable, trials: Sequence[tuple[float, float]], conditions: Conditions
) -> tuple[Solved, ...]:
    """The predicted front: what the exact fronts of all mixes hold, priced with the whole plan."""
    structure, limits = problem.program.structure, problem.limits_without_accuracy().costs
    priced: dict[Policy, tuple[float, dict[str, float]]] = {}

    def look_at(point: FrontPoint) -> bool:
        policy = policy_of(problem.space, point.assignment, structure.fingerprint)
        if policy not in priced:
            priced[policy] = (point.loss, problem.costs.predict(problem.plan(policy)))
        return _meets(limits, priced[policy][1])

    for front in exact_fronts(structure, problem.space, table, problem.costs, conditions).values():
        for point in (*spread_by_loss(front.points, POINTS), *within(front.points, look_at)[:1]):
            look_at(point)
    kept = {policy: found for policy, found in priced.items()
            if runs_everywhere(found[1]) and not policy.is_dense and conditions.met_by(policy)}
    inside = [policy for policy, (_, costs) in kept.items() if _meets(limits, costs)]
    if not inside:
        kept_to = "" if conditions == NO_CONDITIONS else " and keeps to the pins and shared units"
        raise InfeasibleError(
            f"no policy of the exact fronts meets all budgets together{kept_to} (each budget alone can be met)"
        )
    best = min(inside, key=lambda policy: (kept[policy][0], policy.hash))
    names = problem.cost_objectives
    rows = [(policy, *found) for policy, found in kept.items()]
    front_rows = non_dominated(_objectives(rows, names))
    chosen = [row for row, on in zip(rows, front_rows, strict=True) if on and row[0] != best]
    chosen.sort(key=lambda row: row[1])
    step = max(1.0, len(chosen) / (SHOWN - 1))
    thin = [chosen[int(place * step)] for place in range(min(len(chosen), SHOWN - 1))]
    losses, drops = [loss for loss, _ in trials], [drop for _, drop in trials]
    found = []
    for policy, loss, costs in sorted([*thin, (best, *kept[best])], key=lambda row: row[1]):
        worth = drop_per_nat(losses, drops, loss)
        drop = None if worth is None else worth * loss
        found.append(Solved(policy, loss, costs, drop, _meets(limits, costs), policy == best))
    return tuple(found)


def _objectives(rows: Sequence[tuple[Policy, float, Mapping[str, float]]], names: Sequence[str]) -> Any:  # noqa: ANN401
    import numpy as np

    return np.array([[loss, *(costs[name] for name in names)] for _, loss, costs in rows], dtype=np.float64)


def _meets(limits: Sequence[tuple[str, str, float]], costs: Mapping[str, float]) -> bool:
    return runs_everywhere(costs) and not any(over > 0.0 for over in violations(limits, costs).values())
