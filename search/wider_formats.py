"""Policies whose weights have as many bits as the budgets allow: what is left to training is then the widths.

By the table 4 bits lose hardly more than 8, and an exploration keeps what is smaller. But what distillation has to make
up for adds up: on DS-CNN, 4 bits instead of 8 added a third to the divergence that was left after it. Where weights
compute in 8-bit integers anyway, their width costs bytes and no time, and bytes beyond a budget are not asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from paretopress.search.option_space import Genome, OptionSpace
from paretopress.spaces.choices import Choice, Weights


def widened(
    space: OptionSpace, genome: Genome, losses: Mapping[str, Sequence[float]], fits: Callable[[Genome], bool]
) -> Genome:
    """A policy with the widest integers of the same kind in as many layers as fit, where that gains most first.

    Args:
        space: Units and their options.
        genome: A policy that fits.
        losses: Loss of every option of a unit alone.
        fits: Whether a policy is within the budgets.

    Returns:
        The widened policy; the same one where nothing can be widened.
    """
    changes = []
    for column, (unit, options) in enumerate(zip(space.units, space.options, strict=True)):
        widest = _widest(options, genome[column])
        if widest != genome[column]:
            known = losses.get(unit)
            gain = 0.0 if known is None else known[genome[column]] - known[widest]
            changes.append((gain, column, widest))
    changes.sort(key=lambda change: -change[0])

    def after(count: int) -> Genome:
        changed = list(genome)
        for _, column, option in changes[:count]:
            changed[column] = option
        return space.canonical(tuple(changed))

    if not changes or fits(after(len(changes))):
        return after(len(changes))
    least, most = 0, len(changes)   # the first fits, the second does not
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(after(middle)) else (least, middle)
    return after(least)


def _widest(options: Sequence[Choice | None], chosen: int) -> int:
    """The option that only has more bits than the chosen one, the most of all."""
    now = options[chosen]
    if not isinstance(now, Weights):
        return chosen
    kind = (now.activations, now.scheme, now.group, now.ranges)
    wider = [(one.bits, index) for index, one in enumerate(options)
             if isinstance(one, Weights) and (one.activations, one.scheme, one.group, one.ranges) == kind]
    return max([*wider, (now.bits, chosen)])[1]
