"""What `inspect` shows: layers, groups, options, what is frozen and why, and what budgets can reach."""

from __future__ import annotations

from typing import Any

from paretopress.evaluators.costs import integer_policy
from paretopress.search.problem import Problem, reachable
from paretopress.spaces.choices import describe
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.documents import finite
from paretopress.spaces.policy import DENSE


def inspection(problem: Problem) -> dict[str, Any]:
    """Return a model's structure and space as plain data.

    `objectives` holds, by cost, `minimum`: the lowest predicted value that is reachable, each cost on its own;
    `baseline`: the dense model's; `limit`: the budget; `satisfiable`: whether the minimum meets it.
    """
    structure, space = problem.program.structure, problem.space
    view = cost_view(problem.plan(DENSE))
    kernels = {kernel.layer: kernel for kernel in view.kernels if kernel.layer}
    shares = _shares(problem)
    layers = [
        {
            "name": layer.name, "kind": layer.kind.value, "shape": list(layer.shape),
            "macs": kernels[layer.name].macs if layer.name in kernels else 0,
            "bytes": 4 * layer.out_channels * layer.columns, "share": shares.get(layer.name, {}),
            "frozen": layer.frozen or None,
        }
        for layer in structure.layers
    ]
    groups = [
        {
            "name": group.name, "channels": group.size, "step": group.step, "producers": list(group.producers),
            "consumers": list(group.consumers), "frozen": structure.units[f"{group.name}/channels"] or None,
        }
        for group in structure.coupling.groups
    ]
    anchors = [f"{device.id}: {device.anchors}" for device in problem.costs.devices if device.anchors]
    lowest = reachable(problem)
    limits = {name: limit for _, name, limit in problem.limits_without_accuracy().costs}
    feasibility = {
        name: {
            "minimum": finite(lowest[name]), "baseline": finite(value), "limit": limits.get(name),
            "satisfiable": None if name not in limits else bool(lowest[name] <= limits[name]),
        }
        for name, value in problem.baseline.items()
    }
    return {
        "layers": layers,
        "groups": groups,
        "options": {unit: ["dense" if c is None else describe(c) for c in options]
                    for unit, options in space.options.items()},
        "dropped": [{"unit": unit, "choice": choice, "reason": reason} for unit, choice, reason in space.dropped],
        "size_only": dict(problem.size_only),
        "space_log10": space.log10_size,
        "objectives": feasibility,
        "targets": [{"id": d.id, "tier": d.tier, "runs_here": d.runs_here()} for d in problem.costs.devices],
        "notes": [*structure.graph.notes, *anchors, *_refusals(problem)],
    }


def _refusals(problem: Problem) -> list[str]:
    """Which targets cannot execute the dense model, and which not the 8-bit model either."""
    dense = problem.costs.refusals(problem.plan(DENSE))
    integer = problem.costs.refusals(problem.plan(integer_policy(problem.space))) if dense else {}
    return [*(f"dense: {line}" for line in dense.values()),
            *(f"8 bits wherever they are offered: {line}" for line in integer.values())]


def _shares(problem: Problem) -> dict[str, dict[str, float]]:
    """Each layer's share of the kernels' time by target: of the dense model, or of the 8-bit one where only that runs.

    A target that executes neither has no shares.
    """
    plans = [problem.plan(DENSE), problem.plan(integer_policy(problem.space))]
    shares: dict[str, dict[str, float]] = {}
    for device, name in zip(problem.costs.devices, problem.costs.latency_names, strict=True):
        runnable = next((found for found in plans if device.id not in problem.costs.refusals(found)), None)
        if runnable is None:
            continue
        kernels = cost_view(runnable).kernels
        prices = device.kernel_cost(kernels)
        total = float(prices.sum()) or 1.0
        for kernel, price in zip(kernels, prices, strict=True):
            if kernel.layer:
                shares.setdefault(kernel.layer, {})[name] = float(price) / total
    return shares
