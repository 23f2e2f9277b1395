"""What the cheapest policies of a problem cost, and whether its budgets can be met at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from paretopress.evaluators.costs import ROBUST, integer_policy, runs_everywhere
from paretopress.evaluators.pricing import PolicyPricer
from paretopress.search.exact import CostTerm, ExactProblem, cheapest
from paretopress.search.option_space import Genome
from paretopress.search.problem import Problem
from paretopress.search.seeds import policy_of, terms_of
from paretopress.spaces.errors import InfeasibleError
from paretopress.spaces.policy import DENSE, Policy


def reachable(problem: Problem) -> dict[str, float]:
    """The lowest predicted value of every cost over what every target can execute; infinite without any.

    Exact for stored bytes, and for time up to the conversions between formats. What a budget asks for and
    neither policy reaches, such as memory or the time on one of several devices, is descended to.
    """
    structure = problem.program.structure
    time, size = terms_of(structure, problem.space, problem.costs)
    options = {unit: len(choices) for unit, choices in problem.space.options.items()}
    policies = [DENSE] if runs_everywhere(problem.baseline) else [DENSE, integer_policy(problem.space)]
    for terms in (time, size):
        if options:
            exact = ExactProblem(options=options, losses={}, costs=tuple(CostTerm(u, t) for u, t in terms))
            policies.append(policy_of(problem.space, cheapest(exact).assignment, structure.fingerprint))
    priced = [(problem.costs.predict(problem.plan(policy)), policy) for policy in policies]
    priced = [pair for pair in priced if runs_everywhere(pair[0])] or priced
    lowest = {name: min(costs[name] for costs, _ in priced) for name in priced[0][0]}
    for _, name, limit in problem.limits_without_accuracy().costs:
        if math.isfinite(lowest[name]) and lowest[name] > limit:
            start = min(priced, key=lambda pair: pair[0][name])[1]
            lowest[name] = _descend(problem, name, start, lowest[name])
    return lowest


def _descend(problem: Problem, name: str, policy: Policy, value: float) -> float:
    """The value of one cost where no change of a single unit lowers it further.

    All changes of single units are priced side by side; then the best ones together, as many as lower it most.
    """
    space, pricer = problem.option_space, problem.pricer
    current = space.genome(policy)
    while True:
        single = [(place, option) for place, options in enumerate(space.options) for option in range(len(options))
                  if option != current[place]]
        values = _runnable_values(pricer, name, [space.canonical(changed(current, [one])) for one in single])
        order = [single[index] for index in np.argsort(values, kind="stable") if values[index] < value]
        best = [*{place: (place, option) for place, option in order[::-1]}.values()]
        best.sort(key=order.index)   # of each unit the option that lowers it most
        if not best:
            return value
        together = [space.canonical(changed(current, best[:count])) for count in range(1, len(best) + 1)]
        values = _runnable_values(pricer, name, together)
        current, value = together[int(np.argmin(values))], float(values.min())


def _runnable_values(pricer: PolicyPricer, name: str, genomes: Sequence[Genome]) -> NDArray[np.float64]:
    """One cost of genomes, infinite where some target cannot execute them."""
    found = pricer.predict(np.array(genomes, dtype=np.int64).reshape(len(genomes), len(pricer.units)))
    runs = np.all([np.isfinite(values) for values in found.values()], axis=0)
    values: NDArray[np.float64] = np.where(runs, found[name], np.inf)
    return values


def changed(genome: Genome, changes: Iterable[tuple[int, int]]) -> Genome:
    """A genome with options at some places changed."""
    result = list(genome)
    for place, option in changes:
        result[place] = option
    return tuple(result)


def check_feasible(problem: Problem, lowest: Mapping[str, float]) -> None:
    """Stop before the search where no candidate can be executed or a cost budget is out of reach.

    Raises:
        InfeasibleError: With the operator that a target cannot execute, or the best reachable value.
    """
    if not runs_everywhere(lowest):
        refusals = problem.costs.refusals(problem.plan(integer_policy(problem.space))).values()
        raise InfeasibleError(
            f"no candidate can run on every target: with 8 bits wherever they are offered, {'; '.join(refusals)}"
        )
    for label, name, limit in problem.limits_without_accuracy().costs:
        if lowest[name] > limit:
            raise InfeasibleError(
                f"budget {label} cannot be met: the best reachable is {show_cost(name, lowest[name])} "
                f"(dense {show_cost(name, problem.baseline[name])}, asked for at most {show_cost(name, limit)})"
            )


def show_cost(name: str, value: float) -> str:
    """Return a cost with its unit."""
    base = name.partition("@")[0]
    if not math.isfinite(value):
        return "nothing that runs"
    if base == "latency":
        return f"{value:.4g} ms predicted"
    if base in ("size", "peak_memory"):
        return f"{value:,.0f} bytes"
    if base == ROBUST:
        return f"{100.0 * value:.3g}% of the dense model's time on the worst target"
    if base == "energy":
        return f"{value:.4g} uJ predicted"
    return f"{value:,.4g} MACs" if base == "macs" else f"{value:.4g}"
