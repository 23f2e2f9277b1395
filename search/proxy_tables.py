"""Which proxy a search goes by: the tables of proxies, how they do on its candidates, and falling back to a better one.

A search goes by the divergence of single choices unless it is told otherwise. Once enough candidates are scored, their
accuracies say how well that orders them; where it does badly, the cheaper proxies are measured too, and the one that
orders the same candidates best takes its place if it is clearly better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.primary_metric import PrimaryMetric
from paretopress.evaluators.proxies import (
    LOCAL,
    Interactions,
    ProxyTable,
    check_proxy,
    interactions,
    local_tables,
    policy_of_cell,
)
from paretopress.evaluators.sensitivity import (
    SensitivityTable,
    assemble,
    cells_in_order,
    integer_choices,
    substitution_loss,
)
from paretopress.search.problem import Problem
from paretopress.search.proxy_check import CLOSE, FEWEST, GOOD, ProxyReport, assess, preferred
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.table import table_from_plain
from paretopress.spaces.documents import read_document, write_json
from paretopress.spaces.errors import ConfigError
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import SearchSpace

if TYPE_CHECKING:
    from paretopress.search.observer import Observer

AUTO, DIVERGENCE = "auto", "divergence"
CHECKED = 24          # trials, the first of a run, after which the proxy is checked
SCALED_BY = 12        # choices whose divergence is measured to bring another proxy to nats
REFERENCE_LOSS = 0.1  # nats: around a policy of this loss interactions are made additive
PROXIES_FILE = "proxies.json"


def proxy_table(
    problem: Problem, evaluator: CandidateEvaluator, name: str, observer: Observer, seconds: float | None = None
) -> SensitivityTable:
    """Measure the table of a proxy other than the divergence, in nats.

    Args:
        problem: The run's problem.
        evaluator: Holds the compressed layers.
        name: One of `evaluators.proxies.PROXIES`.
        observer: Hears about progress.
        seconds: When to stop; what is not measured by then is estimated.
    """
    check_proxy(name)
    entries, space = evaluator.entries, problem.space
    stop: Callable[[], bool] | None = getattr(observer, "should_stop", None)
    if name == "interactions":
        return _additive(problem, evaluator, interactions(entries, space, seconds=seconds, should_stop=stop,
                                                          progress=observer.advance))
    tables = local_tables(entries, space, (name,), seed=problem.settings.seed, seconds=seconds, should_stop=stop,
                          progress=observer.advance)
    return in_nats(tables[name].table, space, lambda policy: substitution_loss(entries, policy))


def _additive(problem: Problem, evaluator: CandidateEvaluator, found: Interactions) -> SensitivityTable:
    """The table of interactions around a policy on the front of the single choices' divergences."""
    from paretopress.search.seeds import exact_fronts, nearest_below, policy_of

    space, structure = problem.space, problem.program.structure
    together = None
    if integer_choices(space):
        together = substitution_loss(evaluator.entries, Policy.of(integer_choices(space)))
    alone = assemble(space, found.divergences, together)
    front = exact_fronts(structure, space, alone, problem.costs)[0.5]
    reference = nearest_below(front.points, [REFERENCE_LOSS])
    policy = policy_of(space, reference[0].assignment, structure.fingerprint) if reference else Policy.of({})
    return found.table_around(space, policy)


def in_nats(
    table: SensitivityTable, space: SearchSpace, divergence_of: Callable[[Policy], float]
) -> SensitivityTable:
    """Scale a proxy's table so that a few of its choices come out at their divergences in the geometric mean.

    Args:
        table: The table.
        space: The choices.
        divergence_of: Measures a policy.
    """
    cells = [(unit, index) for unit, index in cells_in_order(space)
             if table.losses[unit][index] > 0.0 and (unit, index) not in table.estimated]
    cells.sort(key=lambda cell: table.losses[cell[0]][cell[1]])
    picked = [cells[int(place)] for place in np.unique(np.linspace(0, len(cells) - 1, SCALED_BY).astype(int))
              ] if cells else []
    ratios = []
    for unit, index in picked:
        found = divergence_of(policy_of_cell(space, (unit, index)))
        if found > 0.0:
            ratios.append(np.log(found / table.losses[unit][index]))
    factor = float(np.exp(np.mean(ratios))) if ratios else 1.0
    scaled = {unit: tuple(factor * loss for loss in row) for unit, row in table.losses.items()}
    return SensitivityTable(scaled, table.estimated)


def trusted_table(
    problem: Problem, evaluator: CandidateEvaluator, table: SensitivityTable, records: Sequence[TrialRecord],
    path: Path, key: Mapping[str, str], observer: Observer, seconds: float | None = None,
) -> SensitivityTable:
    """Return the table to go on with: the one given, or that of a proxy that orders the first candidates better.

    Args:
        problem: The run's problem.
        evaluator: Holds the compressed layers.
        table: The divergences of single choices.
        records: The run's trials; the first `CHECKED` count, so that a continued run decides alike.
        path: The run directory, where the decision is kept.
        key: What it depends on.
        observer: Hears of a change.
        seconds: Time for measuring other proxies.
    """
    if (stored := _stored(path, key, problem.space)) is not None:
        return stored
    first = [record for record in records if record.number < CHECKED]
    policies, drops = scored(problem, first)
    if len(policies) < FEWEST:
        return table
    close = _close(problem, first, drops)
    tables = {DIVERGENCE: ProxyTable(DIVERGENCE, table, 0.0)}
    reports = {DIVERGENCE: _assessed(problem, tables[DIVERGENCE], policies, drops, close)}
    if preferred(reports, DIVERGENCE) == DIVERGENCE and (reports[DIVERGENCE].kendall or 0.0) >= GOOD:
        return table
    found = local_tables(evaluator.entries, problem.space, LOCAL, seed=problem.settings.seed, seconds=seconds)
    tables |= found
    reports |= {name: _assessed(problem, one, policies, drops, close) for name, one in found.items()}
    chosen = preferred(reports, DIVERGENCE)
    result = table
    if chosen != DIVERGENCE:
        entries = evaluator.entries
        result = in_nats(found[chosen].table, problem.space, lambda policy: substitution_loss(entries, policy))
        observer.message(
            f"the divergences of single choices order {len(policies)} candidates badly (Kendall's tau "
            f"{reports[DIVERGENCE].kendall or 0.0:.2f}); the search goes on by {chosen} ({reports[chosen].kendall:.2f})"
        )
    write_json(path / PROXIES_FILE, {
        "key": dict(key), "used": chosen, "proxies": [one.to_plain() for one in reports.values()],
        "losses": {unit: list(row) for unit, row in result.losses.items()},
        "estimated": [list(cell) for cell in sorted(result.estimated)],
    })
    return result


def scored(problem: Problem, records: Sequence[TrialRecord]) -> tuple[list[Policy], list[float]]:
    """The policies of complete trials whose choices are all of the space, and what they lose of the metric."""
    complete = [record for record in records
                if record.state is TrialState.COMPLETE and "accuracy" in record.values and not record.policy.is_dense]
    dense = [record.values["accuracy"] for record in records
             if record.state is TrialState.COMPLETE and record.policy.is_dense]
    best = dense[0] if dense else 0.0
    sign = 1.0 if problem.data.metrics[0].direction == "max" else -1.0
    offered = [record for record in complete
               if all(choice in problem.space.options.get(unit, ()) for unit, choice in record.policy)]
    return [record.policy for record in offered], [sign * (best - record.values["accuracy"]) for record in offered]


def _assessed(
    problem: Problem, table: ProxyTable | Interactions, policies: Sequence[Policy], drops: Sequence[float],
    close: float, *, used: bool = False,
) -> ProxyReport:
    return assess(table.name, table.scores(problem.space, policies), drops, close=close,
                  seconds=table.seconds or None, used=used)


def metric_of(problem: Problem, records: Sequence[TrialRecord]) -> PrimaryMetric:
    """The first metric, described by the values of a run's trials."""
    values = [record.values["accuracy"] for record in records if "accuracy" in record.values]
    return PrimaryMetric.of(problem.data.metrics[0], values)


def _close(problem: Problem, records: Sequence[TrialRecord], drops: Sequence[float]) -> float:
    """Up to which loss of the metric a candidate is close: of other metrics than shares a share of their range."""
    is_share = metric_of(problem, records).is_share
    return CLOSE if is_share else CLOSE * max((abs(drop) for drop in drops), default=1.0)


def proxy_reports(
    problem: Problem, table: SensitivityTable, records: Sequence[TrialRecord], path: Path, seconds: float | None = None
) -> list[dict[str, Any]]:
    """Report, over all scored candidates of a run, on the proxy in use, and on the whole candidate's divergence.

    What the check of the first candidates found of other proxies stands beside it.

    Args:
        problem: The run's problem.
        table: What the search went by in the end.
        records: All trials.
        path: The run directory.
        seconds: That the table took, where it is known.
    """
    policies, drops = scored(problem, records)
    earlier = _document(path)
    used = str(earlier.get("used", DIVERGENCE)) if problem.settings.proxy == AUTO else problem.settings.proxy
    close, own = _close(problem, records, drops), ProxyTable(used, table, seconds or 0.0)
    reports = [_assessed(problem, own, policies, drops, close, used=True).to_plain()]
    known = {record.policy: record.values.get("divergence") for record in records}
    whole = [(known[policy], drop) for policy, drop in zip(policies, drops, strict=True)]
    pairs = [(value, drop) for value, drop in whole if value is not None]
    reports.append(assess("divergence of the candidate", [value for value, _ in pairs], [drop for _, drop in pairs],
                          close=close).to_plain())
    return reports + [one for one in earlier.get("proxies", []) if one.get("name") != used]


def _document(path: Path) -> dict[str, Any]:
    try:
        plain = read_document(path / PROXIES_FILE) if (path / PROXIES_FILE).exists() else {}
    except ConfigError:
        return {}
    return plain if isinstance(plain, dict) else {}


def _stored(path: Path, key: Mapping[str, str], space: SearchSpace) -> SensitivityTable | None:
    """The table that an earlier start of this run decided on."""
    return table_from_plain(_document(path), key, space)
