"""What proposals may know of a problem before its first trial: losses, cost terms, stages, limits."""

from __future__ import annotations

import math

import numpy as np

from paretopress.evaluators.costs import CostModel
from paretopress.evaluators.sensitivity import SensitivityTable
from paretopress.search.factors import CostTerm
from paretopress.search.problem import Problem
from paretopress.search.seeds import FactorGraph, terms_of
from paretopress.search.surrogate import Guide
from paretopress.spaces.structure import Structure

STAGES = 4   # parts of equal depth


def guide_of(problem: Problem, table: SensitivityTable, worst_value: float | None = None) -> Guide:
    """The guide of a problem: the table's losses, and cost terms of every device's time and of the stored bytes.

    Args:
        problem: The problem.
        table: Its sensitivity table.
        worst_value: The worst value of the metric that candidates may have, None without such a budget.
    """
    limits = {name: limit for _, name, limit in problem.limits_without_accuracy().costs}
    return Guide(
        lambda policy: problem.costs.predict(problem.plan(policy)), limits, table.losses, cost_terms(problem),
        stages(problem.program.structure), worst_value,
    )


def cost_terms(problem: Problem) -> dict[str, tuple[CostTerm, ...]]:
    """Per objective that the kernels add up to, the terms whose sum it is: exact for stored bytes.

    Time is exact up to what neighbouring kernels do to each other, which is left out, as in `search.seeds`.
    """
    structure, space = problem.program.structure, problem.space
    found: dict[str, tuple[CostTerm, ...]] = {}
    for device in problem.costs.devices:
        alone = CostModel((device,))
        graph = FactorGraph(structure, space, alone)
        time, size = terms_of(structure, space, alone)
        for name in alone.latency_names:
            dense = problem.baseline[name]
            if not math.isfinite(dense):   # the terms are relative to the 8-bit model's time then
                dense = alone.predict(graph.contexts[8])[name]
            found[name] = _absolute(time, dense if math.isfinite(dense) else 1.0, problem.baseline[name])
        if "size" not in found:
            found["size"] = _absolute(size, problem.baseline["size"], problem.baseline["size"])
    return {name: terms for name, terms in found.items() if name in problem.objectives}


def _absolute(terms: list[tuple[tuple[str, ...], np.ndarray]], scale: float, dense: float) -> tuple[CostTerm, ...]:
    """Terms in the cost's unit, and one without units for what no choice changes."""
    scaled = [CostTerm(units, values * scale) for units, values in terms]
    free = sum(float(term.table[(0,) * term.table.ndim]) for term in scaled)
    fixed = max(0.0, dense - free) if math.isfinite(dense) else 0.0
    return (*scaled, CostTerm((), np.array(fixed)))


def stages(structure: Structure) -> dict[str, int]:
    """The stage of every unit: the quarter of the layers, in execution order, that makes what it decides about."""
    count = max(1, len(structure.layers))
    of_layer = {layer.name: index * STAGES // count for index, layer in enumerate(structure.layers)}
    found = {f"{name}/{kind}": stage for name, stage in of_layer.items() for kind in ("rank", "sparsity", "weights")}
    for group in structure.coupling.groups:
        made_by = [of_layer[layer] for layer in group.producers if layer in of_layer]
        found[f"{group.name}/channels"] = min(made_by, default=0)
    return found
