"""Finalists: which candidates are worth verifying, built by the refit pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paretopress.compressors.entries import Entries
from paretopress.compressors.network import Network
from paretopress.compressors.refit import refit
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.search.pareto import non_dominated, spread_subset
from paretopress.search.records import TrialRecord, TrialState
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy


@dataclass(frozen=True)
class Finalist:
    """A candidate chosen for verification.

    Attributes:
        number: Its number in the front: 0 is the dense baseline.
        policy: The policy.
        name: `"dense"`, `"uniform int8"`, `"uniform half width"` or None.
        stitched: Accuracy on the search set before the refit; None until it is built.
        refitted: Accuracy on the search set of what is stored; None until it is built.
        tier: `"dense"`, `"entries"` or `"refit"`: which build is stored; `""` until it is built.
    """

    number: int
    policy: Policy
    name: str | None
    stitched: float | None = None
    refitted: float | None = None
    tier: str = ""


def costs_of(records: Sequence[TrialRecord], objectives: Mapping[str, str]) -> np.ndarray:
    """Objective values to be minimised, `(records, objectives)`."""
    sign = {"min": 1.0, "max": -1.0}
    return np.array([[sign[objectives[name]] * record.values[name] for name in objectives] for record in records])


def choose(
    records: Sequence[TrialRecord], objectives: Mapping[str, str], count: int, keep: Sequence[Policy] = ()
) -> list[TrialRecord]:
    """Pick well-spread members of the front of complete trials, feasible ones first.

    Args:
        records: All trials.
        objectives: Names and directions.
        count: How many to pick.
        keep: Policies that are verified anyway and need not be picked.
    """
    kept = {policy.hash for policy in keep}
    complete = [r for r in records if r.state is TrialState.COMPLETE and r.policy.hash not in kept]
    feasible = [record for record in complete if record.feasible]
    pool = feasible or sorted(complete, key=lambda r: sum(max(0.0, v) for v in r.constraints.values()))[:count]
    if not pool:
        return []
    costs = costs_of(pool, objectives)
    front = [int(index) for index in np.flatnonzero(non_dominated(costs))]
    picked = spread_subset(costs[front], min(count, len(front)))
    chosen = [pool[front[index]] for index in picked]
    if len(chosen) < count:   # near misses of the front: verification may rank them otherwise
        rest = [index for index in range(len(pool)) if pool[index] not in chosen]
        left = costs[rest]
        for index in np.flatnonzero(non_dominated(left))[: count - len(chosen)] if len(rest) else []:
            chosen.append(pool[rest[int(index)]])
    return sorted(chosen, key=lambda record: record.number)


def build(
    evaluator: CandidateEvaluator,
    policy: Policy,
    inputs: Sequence[Tensor],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Network, str, float, float]:
    """Build a finalist by the refit pass; keep the stitched build where it scores better on the search set.

    Args:
        evaluator: Scores networks on the search set.
        policy: What to build.
        inputs: Calibration samples as one batch.
        seed: Seed of the refit's sampled positions.
        progress: Called with nodes done and in all.

    Returns:
        The network, which build it is, the stitched and the stored accuracy on the search set.
    """
    entries: Entries = evaluator.entries
    stitched, _ = evaluator.build(policy)
    before = evaluator.score(stitched)["accuracy"]
    if policy.is_dense:
        return stitched, "dense", before, before
    with torch.inference_mode():
        refitted = refit(entries.program, entries, plan(entries.program.structure, policy), inputs, seed=seed,
                         progress=progress)
    after = evaluator.score(refitted)["accuracy"]
    better = after >= before if evaluator.limits.direction == "max" else after <= before
    return (refitted, "refit", before, after) if better else (stitched, "entries", before, before)
