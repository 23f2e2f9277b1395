"""What `inspect` shows: layers, groups, options, what is frozen and why, and what budgets can reach."""

from __future__ import annotations

from typing import Any

from paretopress.search.problem import Problem, reachable
from paretopress.spaces.cost_view import cost_view
from paretopress.spaces.policy import DENSE
from paretopress.spaces.space import describe


def inspection(problem: Problem) -> dict[str, Any]:
    """Return a model's structure and space as plain data."""
    structure, space = problem.program.structure, problem.space
    view = cost_view(problem.plan(DENSE))
    kernels = {kernel.layer: kernel for kernel in view.kernels if kernel.layer}
    shares: dict[str, dict[str, float]] = {}
    for device, name in zip(problem.costs.devices, problem.costs.latency_names, strict=True):
        prices = device.kernel_cost(view.kernels)
        total = float(prices.sum()) or 1.0
        for kernel, price in zip(view.kernels, prices, strict=True):
            if kernel.layer:
                shares.setdefault(kernel.layer, {})[name] = float(price) / total
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
    lowest = reachable(problem)
    limits = {name: limit for _, name, limit in problem.limits_without_accuracy().costs}
    feasibility = {
        name: {
            "minimum": lowest[name], "baseline": value, "maximum": value, "limit": limits.get(name),
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
        "notes": list(structure.graph.notes),
    }
