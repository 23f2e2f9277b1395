"""Small problems that can be enumerated, and what enumerating them gives."""

from __future__ import annotations

import itertools

import numpy as np

from paretopress.search.exact import CostTerm, ExactProblem, evaluate
from paretopress.search.pareto import non_dominated


def separable_problem(seed, *, units=5, most_options=5, integers=True):
    """Every table depends on one unit; small integers give ties."""
    rng = np.random.default_rng(seed)
    options = {f"u{i}": int(rng.integers(1, most_options + 1)) for i in range(units)}

    def table(count, high):
        return (rng.integers(0, high, count) if integers else high * rng.random(count)).astype(float)

    costs = [CostTerm((unit,), table(count, 9)) for unit, count in options.items()]
    costs += [CostTerm(("u0",), table(options["u0"], 4))]
    losses = {unit: table(count, 7) for unit, count in options.items() if rng.random() < 0.9}
    return ExactProblem(options, losses, tuple(costs), constant_cost=10.0)


def all_rows(problem):
    return np.array(list(itertools.product(*(range(n) for n in problem.options.values()))), dtype=np.int64)


def front_of(problem, rows):
    values = np.stack(evaluate(problem, rows), axis=1)
    return sorted(map(tuple, values[non_dominated(values)].tolist()))


def layers_by_choices(seed, layers=56, choices=40):
    """A table like a real one: losses that grow as costs fall, of very different sizes, with noise."""
    rng = np.random.default_rng(seed)
    options, losses, costs = {}, {}, []
    for number in range(layers):
        unit = f"layer{number}"
        left = np.sort(rng.uniform(0.03, 1.0, choices))[::-1]
        loss = 0.01 * rng.lognormal(0, 1.5) * (1 - left) ** 2 * rng.lognormal(0, 0.5, choices)
        loss[0] = 0.0
        options[unit], losses[unit] = choices, loss
        costs.append(CostTerm((unit,), left * rng.lognormal(0, 0.7) * rng.uniform(0.9, 1.1, choices)))
    return ExactProblem(options, losses, tuple(costs))
