"""What the policies that a run ends with make of every layer: written into the run, read by its report.

A run's other files hold policies and totals. Which channels a layer is left with, what its weights take and how much
of the predicted time goes to it follow from the structure and the profile, which the run directory does not hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paretopress.evaluators.curves import LOSS, sensitivity_curves
from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.hardware_profiles.profile import DeviceProfile
from paretopress.search.inspection import priced
from paretopress.search.ledger import ANATOMY, ANATOMY_SCHEMA
from paretopress.search.pareto import non_dominated
from paretopress.search.problem import Problem
from paretopress.search.records import TrialRecord
from paretopress.spaces.choices import describe
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.documents import write_json
from paretopress.spaces.errors import ProfileError
from paretopress.spaces.layers import Layer
from paretopress.spaces.plan import LayerPlan, Plan
from paretopress.spaces.policy import DENSE, Policy

MOST_TRIALS = 60    # policies beside the finalists: a plan takes milliseconds
DIGITS = 4          # of a share


def write_anatomy(
    path: Path, problem: Problem, table: SensitivityTable, policies: Iterable[Policy] = (),
) -> None:
    """Write `anatomy.json`. Raises `DiskError`.

    Args:
        path: The run directory.
        problem: The run's problem.
        table: What every choice loses.
        policies: Those whose layers are shown; the dense one always is.
    """
    write_json(path / ANATOMY, anatomy(problem, table, policies))


def anatomy(problem: Problem, table: SensitivityTable, policies: Iterable[Policy]) -> dict[str, Any]:
    """Return objectives, layers, channel groups, sensitivity curves and what policies make of layers, as plain data.

    `policies` holds by hash: `layers`, per layer None where it is gone, else outputs, inputs, rank (None), format,
    sparsity (None), stored bytes and share of the predicted time (None where the device cannot execute the policy);
    and `other_time`, the shares of conversions, of kernels without weights and of the call.
    """
    structure = problem.program.structure
    device = problem.costs.devices[0]   # what shares of time are of
    plans = {policy.hash: problem.plan(policy) for policy in dict.fromkeys((DENSE, *policies))}
    made = {name: group.name for group in structure.coupling.groups for name in group.producers}
    read = {name: group.name for group in structure.coupling.groups for name in group.consumers}
    macs: Counter[str] = Counter()
    for kernel in cost_view(plans[DENSE.hash]).kernels:
        macs[kernel.layer] += kernel.macs
    metric = problem.data.metrics[0]
    return {
        "schema": ANATOMY_SCHEMA,
        "metric": {"name": metric.label or metric.name, "direction": metric.direction},
        "objectives": dict(problem.objectives),
        "time": problem.costs.latency_names[0],
        "loss": LOSS,
        "layers": [
            {"name": layer.name, "kind": layer.kind.value, "shape": list(layer.shape), "macs": macs[layer.name],
             "makes": made.get(layer.name), "reads": read.get(layer.name), "end": structure.ends.get(layer.name),
             "frozen": layer.frozen or None}
            for layer in structure.layers
        ],
        "groups": [
            {"name": group.name, "channels": group.size, "frozen": group.frozen or None}
            for group in structure.coupling.groups
        ],
        "dropped": [{"unit": unit, "choice": choice, "reason": why} for unit, choice, why in problem.space.dropped],
        "size_only": dict(problem.size_only),
        "curves": [curve.to_plain() for curve in sensitivity_curves(structure, problem.space, table)],
        "policies": {key: _dissected(planned, structure.layers, device) for key, planned in plans.items()},
    }


def shown_policies(
    problem: Problem, finalists: Iterable[Policy], records: Sequence[TrialRecord], most: int = MOST_TRIALS,
) -> list[Policy]:
    """The policies that a reader is likely to open: the finalists, and the trials that nothing dominates.

    Args:
        problem: The run's problem: its objectives decide what dominates.
        finalists: Always shown.
        records: The run's trials; of those on their front an even choice of at most `most`, by accuracy.
        most: See there.
    """
    signs = {name: -1.0 if direction == "max" else 1.0 for name, direction in problem.objectives.items()}
    feasible = [record for record in records if record.feasible and signs.keys() <= record.values.keys()]
    if not feasible:
        return list(dict.fromkeys(finalists))
    costs = np.array([[sign * record.values[name] for name, sign in signs.items()] for record in feasible])
    order = [index for index in np.argsort(costs[:, 0], kind="stable") if non_dominated(costs)[index]]
    step = max(1.0, len(order) / most)
    front = [feasible[order[int(place * step)]].policy for place in range(min(len(order), most))]
    return list(dict.fromkeys((*finalists, *front)))


def _dissected(planned: Plan, layers: Sequence[Layer], device: DeviceProfile) -> dict[str, Any]:
    """What a plan makes of every layer of the dense model, in its order."""
    shares, other = _shares(planned, device)
    by_name = {one.layer.name: one for one in planned.layers}
    rows = [_row(by_name.get(layer.name), shares.get(layer.name)) for layer in layers]
    return {"layers": rows, "other_time": other}


def _row(one: LayerPlan | None, share: float | None) -> list[Any] | None:
    if one is None:
        return None
    return [
        one.shape[0], one.shape[1] * one.groups, one.rank, "32-bit floats" if one.form is None else describe(one.form),
        None if one.sparse is None else describe(one.sparse), one.stored_bytes,
        None if share is None else round(share, DIGITS),
    ]


def _shares(planned: Plan, device: DeviceProfile) -> tuple[dict[str, float], dict[str, float] | None]:
    """Shares of the predicted time by layer, and of what is no layer's."""
    try:
        prices = priced(device, device.id, "", cost_view(planned))
    except ProfileError:   # what the device cannot execute has no time
        return {}, None
    row = prices.row
    other = {"kernels": row.kernels, "conversions": row.conversions, "call": row.call}
    return dict(prices.by_layer), {name: round(value, DIGITS) for name, value in other.items()}
