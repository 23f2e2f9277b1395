"""Judging verified finalists: feasible on measured values, on the front or why not, the knee."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from paretopress.evaluators.budgets import Budget, shown
from paretopress.evaluators.costs import ROBUST, runs_everywhere
from paretopress.evaluators.primary_metric import PrimaryMetric
from paretopress.evaluators.verification import Verified, drop_interval, measured_plain
from paretopress.search.correlation import kendall, spearman
from paretopress.search.finalists import Finalist
from paretopress.search.pareto import hypervolume, non_dominated
from paretopress.search.problem import Problem

NEIGHBOUR_GAP = 0.05
ACCURACY_GAP = 0.005   # of a share; of the dense model's value where the metric is none
WORST_DROP = 0.1       # the box of the hypervolume; likewise
DENSE_NAME = "dense"


@dataclass(frozen=True)
class Candidate:
    """A finalist with its predictions and its verification.

    Attributes:
        finalist: The finalist.
        predicted: Predicted costs by name.
        interval: Predicted interval (low, high) of every `latency@ID`.
        verified: Measured values, or one line that says why verification failed.
    """

    finalist: Finalist
    predicted: Mapping[str, float]
    interval: Mapping[str, tuple[float, float]]
    verified: Verified | str


@dataclass(frozen=True)
class Judged:
    """A candidate with its place.

    Attributes:
        candidate: The candidate.
        costs: Measured (or, where the target cannot run here, predicted) objectives to be minimised;
            infinite where a target cannot execute the candidate, which is then infeasible.
        feasible: Whether it meets every budget on these values.
        knee: Whether it is the knee of the front.
        why_not: Why it is not on the front, None where it is.
        measured: Plain measured values for the JSON contract.
    """

    candidate: Candidate
    costs: tuple[float, ...]
    feasible: bool
    knee: bool
    why_not: str | None
    measured: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """All judged points and figures about them.

    Attributes:
        points: Every verified finalist, the dense baseline first.
        latency_error: Predicted against measured latency.
        proxy: Rank correlations of cheaper scores with dearer ones.
        hypervolume: Of the front, relative to the box between nothing and the dense model.
    """

    points: tuple[Judged, ...]
    latency_error: Mapping[str, Any]
    proxy: Mapping[str, float | None]
    hypervolume: float


def judge(problem: Problem, candidates: Sequence[Candidate]) -> Verdict:
    """Recompute the front on verified values and say of everything else why it fell off."""
    dense = candidates[0]
    if isinstance(dense.verified, str):
        raise_failed_baseline(dense.verified)
    found = [one.verified.scores["accuracy"] for one in candidates if isinstance(one.verified, Verified)]
    metric = PrimaryMetric.of(problem.data.metrics[0], found)
    scale = metric.scale(found[0])
    judged = [_judge_alone(problem, candidate, dense, metric) for candidate in candidates]
    judged = _mark_dominated(judged)
    judged = _mark_crowded(judged, ACCURACY_GAP * scale)
    judged = _mark_knee(judged)
    return Verdict(tuple(judged), _latency_error(problem, candidates), _proxies(candidates),
                   _volume(judged, problem.cost_objectives, WORST_DROP * scale))


def raise_failed_baseline(reason: str) -> None:
    """Raise the error of a baseline that cannot be verified."""
    from paretopress.spaces.errors import ArtifactError

    raise ArtifactError(f"the dense baseline cannot be verified: {reason}")


def _judge_alone(problem: Problem, candidate: Candidate, dense: Candidate, metric: PrimaryMetric) -> Judged:
    verified, baseline = candidate.verified, dense.verified
    assert isinstance(baseline, Verified)
    if isinstance(verified, str):
        return Judged(candidate, (), False, False, f"verification failed: {verified}", {})
    accuracy, dense_accuracy = verified.scores["accuracy"], baseline.scores["accuracy"]
    drop = metric.drop(accuracy, dense_accuracy)
    interval = drop_interval(baseline.correct, verified.correct)
    measured = {
        **measured_plain(verified),
        "accuracy_baseline": dense_accuracy,
        "accuracy_drop": drop,
        "accuracy_drop_interval": None if interval is None else list(interval),
        "size_bytes_baseline": baseline.size_bytes,
        "macs": int(candidate.predicted["macs"]),
    }
    values, base = _values(problem, candidate, verified), _beside(problem, dense, verified)
    if problem.costs.dense:
        values[ROBUST], base[ROBUST] = float(problem.costs.robust(values, base)), 1.0
        if verified.timing is not None:   # targets that cannot run here count as they are predicted
            measured[ROBUST] = values[ROBUST] if math.isfinite(values[ROBUST]) else None
    broken = _refusals(problem, candidate)
    broken += _broken_budgets(problem, candidate, dense, values, base, metric)
    if verified.parity.problem:
        broken.append(f"parity: {verified.parity.problem}")
    costs = (drop, *(values[name] for name in problem.cost_objectives))
    return Judged(candidate, costs, not broken, False, "; ".join(broken) or None, measured)


def _refusals(problem: Problem, candidate: Candidate) -> list[str]:
    """Why targets cannot execute a candidate, one line each."""
    if runs_everywhere(candidate.predicted):
        return []
    return list(problem.costs.refusals(problem.plan(candidate.finalist.policy)).values())


def _values(problem: Problem, candidate: Candidate, verified: Verified) -> dict[str, float]:
    """Cost objectives as they are judged: measured where they can be, else the predicted upper bound."""
    values = dict(candidate.predicted)
    for device in problem.costs.devices:
        name = f"latency@{device.id}"
        if name in candidate.interval:
            values[name] = candidate.interval[name][1]
            if device.runs_here() and verified.timing is not None:
                values[name] = verified.timing.median
    values["size"] = float(verified.size_bytes)
    return values


def _beside(problem: Problem, dense: Candidate, verified: Verified) -> dict[str, float]:
    """The dense model's costs as they are judged: a candidate is compared with the baseline timed beside it."""
    assert isinstance(dense.verified, Verified)
    baseline = _values(problem, dense, dense.verified)
    if verified.timing is not None:
        for device in problem.costs.devices:
            if device.runs_here():
                baseline[f"latency@{device.id}"] = verified.timing.baseline
    return baseline


def _broken_budgets(
    problem: Problem,
    candidate: Candidate,
    dense: Candidate,
    values: Mapping[str, float],
    baseline: Mapping[str, float],
    metric: PrimaryMetric,
) -> list[str]:
    assert isinstance(dense.verified, Verified)
    assert isinstance(candidate.verified, Verified)
    accuracy, dense_accuracy = candidate.verified.scores["accuracy"], dense.verified.scores["accuracy"]
    broken = []
    for budget in problem.settings.budgets:
        if not budget.on_cost:
            if budget.violation(accuracy, dense_accuracy) > 0.0:
                broken.append(f"{_loss(budget, metric, accuracy, dense_accuracy)} exceeds {budget.text}")
            continue
        broken += [
            f"{name} {shown(name, values[name])} exceeds {budget.text}"
            for name in problem.costs.resolve(budget.objective)
            if math.isfinite(values[name]) and budget.violation(values[name], baseline[name]) > 0.0
        ]
    return broken


def _loss(budget: Budget, metric: PrimaryMetric, accuracy: float, dense: float) -> str:
    """A loss as text, in the metric's unit and, where the budget is relative, in percent of the dense model's value."""
    drop = metric.drop(accuracy, dense)
    amount = f"{100 * drop:.2f}pp" if metric.is_share else f"{drop:.4g}"
    relative = f" ({drop / abs(dense):.2%})" if budget.kind == "relative" and dense else ""
    return f"{metric.label} {metric.loss_word} {amount}{relative}"


def _mark_dominated(judged: list[Judged]) -> list[Judged]:
    """Give feasible points that another feasible point dominates the reason; the dense baseline stays."""
    rows = [index for index, point in enumerate(judged) if point.feasible]
    if not rows:
        return judged
    costs = np.array([judged[index].costs for index in rows])
    on_front = non_dominated(costs)
    result = list(judged)
    for place, index in enumerate(rows):
        if on_front[place] or judged[index].candidate.finalist.name == DENSE_NAME:
            continue
        better = next(r for p, r in enumerate(rows) if on_front[p] and np.all(costs[p] <= costs[place]))
        result[index] = replace(judged[index], why_not=f"dominated by #{judged[better].candidate.finalist.number}")
    return result


def _mark_crowded(judged: list[Judged], gap: float) -> list[Judged]:
    """Thin out points that differ from a neighbour by less than 5% in every cost and by less than `gap` in the drop."""
    kept: list[int] = []
    result = list(judged)
    order = sorted((i for i, p in enumerate(judged) if p.why_not is None),
                   key=lambda i: (judged[i].candidate.finalist.name != DENSE_NAME, judged[i].costs))
    for index in order:
        twin = next((other for other in kept if not _differ(judged[index].costs, judged[other].costs, gap)), None)
        if twin is None:
            kept.append(index)
        else:
            number = judged[twin].candidate.finalist.number
            result[index] = replace(judged[index], why_not=f"within 5% of #{number} in every objective")
    return result


def _differ(first: Sequence[float], second: Sequence[float], gap: float) -> bool:
    """Whether two points differ by at least 5% in a cost, or by at least `gap` in the drop."""
    if abs(first[0] - second[0]) >= gap:
        return True
    return any(abs(a - b) >= NEIGHBOUR_GAP * max(abs(a), abs(b)) for a, b in zip(first[1:], second[1:], strict=True))


def _mark_knee(judged: list[Judged]) -> list[Judged]:
    """Mark the knee among the points that beat most of what people would try by hand, in every objective."""
    rows = [i for i, p in enumerate(judged) if p.why_not is None]
    if not rows:
        return judged
    by_hand = [p.costs for p in judged if p.costs and p.candidate.finalist.name not in (None, DENSE_NAME)]
    beaten = [sum(_dominates(judged[index].costs, other) for other in by_hand) for index in rows]
    rows = [index for index, count in zip(rows, beaten, strict=True) if count == max(beaten)]
    best = rows[_knee([judged[index].costs for index in rows])]
    return [replace(point, knee=index == best) for index, point in enumerate(judged)]


def _dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether a point is at least as good in every objective and better in one."""
    return all(a <= b for a, b in zip(first, second, strict=True)) and tuple(first) != tuple(second)


def _knee(front: Sequence[Sequence[float]]) -> int:
    """The point farthest in front of the plane through the normalised extremes (Das 1999).

    Costs enter by their logarithm, because people compare times and bytes by ratios; every objective is
    then scaled to 0 (best on the front) to 1 (worst), so that the plane's normal is (1, ..., 1).
    """
    table = np.array([(point[0], *np.log(np.maximum(point[1:], 1e-12))) for point in front])
    low, high = table.min(axis=0), table.max(axis=0)
    scaled = (table - low) / np.where(high > low, high - low, 1.0)
    return int(np.argmin(scaled.sum(axis=1)))


def _latency_error(problem: Problem, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Predicted against measured latency of the verified points on the target that runs here.

    Times also err by how fast the machine happens to be while finalists are timed. Speed-ups over the dense baseline,
    which is timed in turn with each, do not.
    """
    device = next((d for d in problem.costs.devices if d.runs_here() and d.tier != "T0"), None)
    name = "" if device is None else f"latency@{device.id}"
    timed = [
        (candidate.predicted[name], candidate.verified.timing, candidate.finalist.name == DENSE_NAME)
        for candidate in candidates
        if device is not None and isinstance(candidate.verified, Verified) and candidate.verified.timing is not None
        and math.isfinite(candidate.predicted[name])
    ]
    if device is None or not timed:
        return {"device": None, "points": 0, "spearman": None, "median_abs_pct": None}
    errors = np.array([(predicted / timing.median - 1.0) * 100.0 for predicted, timing, _ in timed])
    low, middle, high = np.percentile(errors, [5, 50, 95])
    dense = candidates[0].predicted[name]
    ratios = [(dense / predicted) / (timing.baseline / timing.median) for predicted, timing, own in timed if not own]
    return {
        "device": device.id, "points": len(timed),
        "spearman": spearman([predicted for predicted, _, _ in timed], [timing.median for _, timing, _ in timed]),
        "median_abs_pct": float(np.median(np.abs(errors))), "median_pct": float(middle), "p5_pct": float(low),
        "p95_pct": float(high), "within_15_pct": float(np.mean(np.abs(errors) <= 15.0)),
        "speedup_median_abs_pct":
            float(np.median(np.abs(np.array(ratios) - 1.0))) * 100.0 if ratios and math.isfinite(dense) else None,
    }


def _proxies(candidates: Sequence[Candidate]) -> dict[str, float | None]:
    rows = [(c.finalist.stitched, c.finalist.refitted, c.verified.scores["accuracy"]) for c in candidates
            if isinstance(c.verified, Verified)]
    stitched = [before for before, after, _ in rows if before is not None and after is not None]
    stored = [after for before, after, _ in rows if before is not None and after is not None]
    truth = [found for before, after, found in rows if before is not None and after is not None]
    return {
        "kendall_stitched_refitted": kendall(stitched, stored),
        "kendall_search_holdout": kendall(stored, truth),
        "spearman_search_holdout": spearman(stored, truth),
    }


def _volume(judged: Sequence[Judged], names: Sequence[str], worst: float) -> float:
    """Hypervolume of (accuracy drop, time on the first target, size) against the dense model and the `worst` drop.

    Where the target cannot execute the dense model, the slowest verified point that it can stands for its time.
    """
    rows = [point for point in judged if point.why_not is None]
    if not rows:
        return 0.0
    columns = [1, 1 + names.index("size")]
    known = np.array([np.array(point.costs)[columns] for point in judged if point.costs])
    slowest = np.where(np.isfinite(known), known, 0.0).max(axis=0)
    dense = np.where(np.isfinite(known[0]), known[0], slowest)
    dense = np.maximum(dense, 1e-12)   # a model without weights has no bytes
    costs = np.array([[max(0.0, point.costs[0] / worst), *(np.array(point.costs)[columns] / dense)] for point in rows])
    return hypervolume(costs, np.ones(costs.shape[1]))
