"""Networks that are narrow at random places and just meet the budgets: what distillation may recover best.

The table adds up what single choices lose before any training, and a search by it stays with a few patterns of widths,
whose formats it permutes. Which layers may be narrow decides what training makes of a network, and losses before it
tell little of that: on DS-CNN at two thirds of the dense time, 22 random patterns of widths diverged after training by
0.08 to 0.2 nats on inputs that nothing had seen, and their divergences before it ranked them with a correlation of
0.53; of 17 others with 0.29, and how narrow they are in all with 0.61 (see `rehearsal`). Nearly even widths are made
up for best: at 0.6 of the dense time, patterns whose logarithms deviate by 0.15 diverged by 0.131 nats on average, by
0.4 by 0.206; of each those that have to be narrowed least by 0.105 and 0.151 (five of each, 250 steps, 64 stimuli that
nothing had seen, one seed). So a search whose finalists are trained begins with such patterns and rehearses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from paretopress.evaluators.candidate import DROP
from paretopress.search.problem import Problem
from paretopress.search.records import TrialRecord, TrialState
from paretopress.spaces.choices import Choice, Keep, Weights
from paretopress.spaces.policy import Policy

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

PATTERNS = 24
DRAWN = 40          # times as many patterns are drawn and priced: those that have to be narrowed least are among them
BEST = 4            # the fourth part of them that is narrowed least counts as that
APART = 0.25        # of the channels of one or several groups: no two of those are nearer to each other
SPREAD = 0.15       # standard deviation of the logarithms of widths around their common factor
LEAST_SHARE = 0.88  # of the budgets on costs: each pattern is for a share between this and 1, as predicted times err
FINER = 48          # patterns of widths that get 8 bits
HALVINGS = 12       # of the interval that the common factor lies in


def scattered_widths(problem: Problem, count: int = PATTERNS) -> list[Policy]:
    """Random patterns of widths in 8-bit weights, each as wide as the budgets on costs allow.

    A quarter is as drawn; the others, of many that are drawn, have the least sum of logarithms of what widths are
    divided by: they are narrow where that saves most.

    Args:
        problem: The run's problem; its seed decides the patterns.
        count: How many to draw.

    Returns:
        Distinct policies that meet the budgets as predicted; none where there are no budgets on costs, or no widths.
    """
    limits = problem.limits_without_accuracy().costs
    groups = {unit: _by_width(options) for unit, options in problem.space.options.items()
              if sum(isinstance(option, Keep) and option.ratio > 0.0 for option in options)}
    if not limits or len(groups) < 2:
        return []
    generator = np.random.default_rng(problem.settings.seed)
    shapes = np.exp(SPREAD * generator.standard_normal((DRAWN * count, len(groups))))
    shares = generator.uniform(LEAST_SHARE, 1.0, len(shapes))
    (floats, first), (integers, second) = (
        _widest(problem, groups, shapes, shares, problem.eight_bit_weights(activations)) for activations in (32, 8)
    )
    wider = first.prod(axis=1) >= second.prod(axis=1)
    rows, widths = np.where(wider[:, None], floats, integers), np.where(wider[:, None], first, second)
    fits = np.flatnonzero(widths.all(axis=1))
    chosen: list[int] = []
    for most, parts in ((0.5 * (1.0 + LEAST_SHARE), 1), (1.0, 2)):   # a third for where predicted times are too short
        chosen = _least_narrowed(widths, fits[shares[fits] <= most], chosen, parts * count // 4)
    chosen += [int(row) for row in fits if row < count and row not in chosen][: count - len(chosen)]
    option_space = problem.option_space
    genomes = (option_space.canonical(tuple(map(int, rows[row]))) for row in chosen)
    return list(dict.fromkeys(map(option_space.policy, genomes)))


def _least_narrowed(widths: Array, fits: Integers, others: Sequence[int], count: int) -> list[int]:
    """`others`, and behind them rows of the best patterns by the product of widths, none near another."""
    chosen = [*others]
    for row in fits[np.argsort(-widths[fits].prod(axis=1), kind="stable")][: -(-len(fits) // BEST)]:
        if len(chosen) == len(others) + count:
            break
        if all(np.abs(widths[row] - widths[other]).sum() >= APART for other in chosen):
            chosen.append(int(row))
    return chosen


def finer_formats(problem: Problem, records: Sequence[TrialRecord]) -> list[Policy]:
    """The widths of the candidates that diverge least within the budgets on costs, with 8 bits where they have fewer.

    Exploring trades bits for bytes that no budget asks for, and 4 bits instead of 8 add a third to what a narrow
    network loses after training.

    Args:
        problem: The run's problem.
        records: Its trials.

    Returns:
        Policies that meet the budgets on costs as predicted, at most `FINER`; none where nothing is trained.
    """
    limits = problem.limits_without_accuracy().costs
    if not limits or problem.distillation_samples() is None:
        return []
    best: dict[tuple[tuple[str, Choice], ...], TrialRecord] = {}
    for record in records:
        widths = tuple((unit, choice) for unit, choice in record.policy if isinstance(choice, Keep))
        over = any(value > 0.0 for label, value in record.constraints.items() if not label.startswith(DROP))
        if not widths or over or record.state is not TrialState.COMPLETE or "divergence" not in record.values:
            continue
        if widths not in best or record.values["divergence"] < best[widths].values["divergence"]:
            best[widths] = record
    formats = {activations: problem.eight_bit_weights(activations) for activations in (32, 8)}
    found: dict[Policy, None] = {}
    for record in sorted(best.values(), key=lambda one: one.values["divergence"])[:FINER]:
        policy = problem.policy({unit: _eight_bits(unit, choice, formats) for unit, choice in record.policy})
        costs = problem.costs.predict(problem.plan(policy))
        if policy != record.policy and all(costs[name] <= limit for _, name, limit in limits):
            found.setdefault(policy)
    return list(found)


def _eight_bits(unit: str, choice: Choice, formats: Mapping[int, Mapping[str, Choice]]) -> Choice:
    """The plain 8-bit format in place of fewer bits, with activations as they are."""
    if not isinstance(choice, Weights) or choice.bits >= 8:
        return choice
    return formats[8 if choice.activations == 8 else 32].get(unit, choice)


def _by_width(options: Sequence[Choice | None]) -> dict[int, float]:
    """The options that keep channels, with the share that they keep; the first is dense."""
    return {number: one.ratio if isinstance(one, Keep) else 1.0 for number, one in enumerate(options)
            if one is None or (isinstance(one, Keep) and one.ratio > 0.0)}


def _widest(
    problem: Problem, groups: Mapping[str, Mapping[int, float]], shapes: Array, shares: Array,
    formats: Mapping[str, Choice],
) -> tuple[Integers, Array]:
    """Genomes of patterns, scaled by bisection until they just meet the budgets, and widths, 0 where none does.

    Of shapes (patterns, units) and (patterns, groups).
    """
    units = problem.option_space.units
    base = np.zeros((len(shapes), len(units)), dtype=np.int64)
    for unit, choice in formats.items():
        base[:, units.index(unit)] = problem.space.options[unit].index(choice)

    def genomes(factors: Array) -> tuple[Integers, Array]:
        rows, widths = base.copy(), np.empty(shapes.shape)
        for column, (unit, ratios) in enumerate(groups.items()):
            numbers, kept = np.array([*ratios]), np.array([*ratios.values()])
            nearest = np.abs(kept[None] - (factors * shapes[:, column])[:, None]).argmin(axis=1)
            rows[:, units.index(unit)], widths[:, column] = numbers[nearest], kept[nearest]
        return rows, widths

    def meets(rows: Integers) -> NDArray[np.bool_]:
        costs, columns = problem.pricer.predict(rows), problem.limits_without_accuracy().costs
        found: NDArray[np.bool_] = np.all([costs[name] <= shares * limit for _, name, limit in columns], axis=0)
        return found

    low, high = np.zeros(len(shapes)), np.full(len(shapes), float(1.0 / shapes.min()))
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        fits = meets(genomes(middle)[0])
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    rows, widths = genomes(low)
    return rows, np.where(meets(rows)[:, None], widths, 0.0)
