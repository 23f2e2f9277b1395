"""Timing the candidates that finalists are chosen from, where the target is this machine.

Predicted times err by several percent, and a search finds those that err most: of thousands of candidates the best ones
are also those whose time is predicted too low. Building a finalist takes many seconds, timing it in ONNX Runtime before
it is trained far less. So a small share of the time for building times those that would be built, in rounds; what each
round shows of the predictions' errors also corrects the times of all others.

A search by a number of trials alone does without: what is measured differs from run to run, and the same seed shall
give the same candidates.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paretopress.evaluators.candidate import CandidateEvaluator, Limits
from paretopress.evaluators.costs import CostModel
from paretopress.evaluators.policy_times import RUNS, WARM_UP, policy_times
from paretopress.search.bayesian_regression import regress
from paretopress.search.finalists import next_builds, surest, widest_gaps
from paretopress.search.outlook import outlook
from paretopress.search.records import TrialRecord, TrialState
from paretopress.spaces.choices import Keep
from paretopress.spaces.policy import Policy

if TYPE_CHECKING:
    from paretopress.search.observer import Observer

Array = NDArray[np.float64]
Timer = Callable[[Sequence[Policy], int], Sequence[float | None]]

SHARE = 0.08         # of the time for building
MOST = 48            # candidates at most
EACH_ROUND = 8
EACH_MARGIN = 2      # of those that are likeliest to meet the budgets
FEWEST_RUNS = 30     # counted calls: where more would take too long
PREPARING_SECONDS = 0.5   # of a share, for stitching and exporting one
# Of logarithms of measured over predicted times, of networks of one model:
WEIGHT = 0.05        # prior deviation of what one choice adds
DEVIATION = 0.04     # of what choices do not explain


@dataclass
class TrialTimes:
    """What was timed.

    Attributes:
        ratios: Measured over predicted time by policy hash, relative to the dense model's; None where it could not be
            exported.
    """

    ratios: dict[str, float | None] = field(default_factory=dict)

    def corrected(self, records: Sequence[TrialRecord], names: Sequence[str], limits: Limits) -> list[TrialRecord]:
        """Trials with the times that are measured or, by what was measured of others, to be expected.

        Args:
            records: All trials; those without such times stay as they are.
            names: The times on this machine among the objectives.
            limits: Budgets, which constraints are computed anew by.
        """
        priced = [row for row, one in enumerate(records) if one.state is not TrialState.FAIL
                  and all(one.values.get(name, 0.0) > 0.0 for name in names)]
        ratios = [self.ratios.get(records[row].policy.hash) for row in priced]
        known = [place for place, ratio in enumerate(ratios) if ratio is not None]
        if not known:
            return list(records)
        found = np.log([ratio for ratio in ratios if ratio is not None])
        expected, _ = regress(choices_made([records[row].policy for row in priced]), known, found, WEIGHT, DEVIATION)
        result = list(records)
        for row, factor in zip(priced, np.exp(expected), strict=True):
            one = records[row]
            values = {**one.values, **{name: float(factor) * one.values[name] for name in names}}
            anew = {label: excess for label, excess in limits.check(values, None).items() if label in one.constraints}
            result[row] = replace(one, values=values, constraints={**one.constraints, **anew})
        return result


def choices_made(policies: Sequence[Policy]) -> Array:
    """Policies as numbers: the share of the channels that a group loses, and 0 or 1 for every other choice."""
    columns: dict[object, int] = {}
    cells = []
    for row, policy in enumerate(policies):
        for unit, choice in policy:
            key, value = ((unit, Keep), 1.0 - choice.ratio) if isinstance(choice, Keep) else ((unit, choice), 1.0)
            cells.append((row, columns.setdefault(key, len(columns)), value))
    found = np.zeros((len(policies), len(columns)))
    for row, column, value in cells:
        found[row, column] = value
    return found


def times_here(costs: CostModel, objectives: Mapping[str, str]) -> list[str]:
    """The objectives that are times on this machine, not on one that only shares its instructions."""
    return [name for device, name in zip(costs.devices, costs.latency_names, strict=True)
            if device.runs_here() and device.cpu_matches() and device.tier != "T0" and name in objectives]


def timer_of(evaluator: CandidateEvaluator) -> Timer:
    """Times policies by networks that are stitched from the evaluator's layers."""
    entries = evaluator.entries
    return lambda policies, runs: policy_times(entries, policies, entries.calibration.inputs, runs, series=2)


def time_trials(
    records: Sequence[TrialRecord],
    named: Sequence[Policy],
    objectives: Mapping[str, str],
    limits: Limits,
    names: Sequence[str],
    timer: Timer,
    deadline: float,
    observer: Observer,
    samples: int = 0,
) -> list[TrialRecord]:
    """Time the candidates that would be built, in rounds, and correct all predicted times by that.

    Args:
        records: All trials.
        named: What is verified anyway, the dense model first: every round is relative to its time.
        objectives: Names and directions.
        limits: Budgets.
        names: The objectives that are times on this machine (`times_here`).
        timer: Returns milliseconds of policies by so many calls, all in turn.
        deadline: Of `time.monotonic()`: a share of what is left until then is used.
        observer: Is told what came of it.
        samples: Samples that accuracies were measured on.

    Returns:
        The trials, with times as `TrialTimes.corrected` gives them.
    """
    predicted = {one.policy.hash: one.values for one in records if all(one.values.get(name) for name in names)}
    dense = named[0]
    if not names or dense.hash not in predicted:
        return list(records)
    known, begin = TrialTimes(), time.monotonic()
    seconds = SHARE * (deadline - begin)
    waiting = [policy for policy in named[1:] if policy.hash in predicted]
    while len(known.ratios) < MOST:
        corrected = known.corrected(records, names, limits)
        count = min(EACH_ROUND, MOST - len(known.ratios)) - len(waiting)
        waiting += _next(corrected, named, objectives, limits, known, count, samples)
        batch, left = waiting, seconds - (time.monotonic() - begin)
        each = sum(predicted[policy.hash][names[0]] for policy in [dense, *batch]) * 2e-3
        runs = min(RUNS, int((left - PREPARING_SECONDS) / each) - WARM_UP) if batch else 0
        if runs < FEWEST_RUNS:
            break
        base, *found = timer([dense, *batch], runs)
        if base is None:
            break
        for policy, measured in zip(batch, found, strict=True):
            known.ratios[policy.hash] = None if measured is None else (
                measured / base * predicted[dense.hash][names[0]] / predicted[policy.hash][names[0]])
        waiting = []
    _tell(known, observer)
    return known.corrected(records, names, limits)


def _next(
    records: Sequence[TrialRecord], named: Sequence[Policy], objectives: Mapping[str, str], limits: Limits,
    known: TrialTimes, count: int, samples: int,
) -> list[Policy]:
    """The candidates that would be built by the present knowledge and are not timed yet."""
    view = outlook(records, {}, limits, named, samples)
    by_hand = {policy.hash for policy in named[1:]}
    rivals = [one for one in records if one.policy.hash in by_hand and one.state is TrialState.COMPLETE]
    picked = surest(view.prospects, rivals, objectives, limits, EACH_MARGIN)
    picked = [one for one in picked if one.record.policy.hash not in known.ratios][:count - count // 4]
    picked += widest_gaps(view, objectives, (count - len(picked)) // 2, picked)
    others = tuple(one for one in view.prospects if one not in picked and one.record.policy.hash not in known.ratios)
    picked += next_builds(replace(view, prospects=others), objectives, limits, max(0, count - len(picked)), samples)
    fresh = dict.fromkeys(one.record.policy for one in picked if one.record.policy.hash not in known.ratios)
    return list(fresh)[:max(0, count)]


def _tell(known: TrialTimes, observer: Observer) -> None:
    ratios = [ratio for ratio in known.ratios.values() if ratio is not None]
    if ratios:
        error = 100.0 * statistics.median(abs(math.log(ratio)) for ratio in ratios)
        observer.message(f"{len(ratios)} candidates timed before they are built: predicted speed-ups are "
                         f"{error:.0f}% off (median)")
