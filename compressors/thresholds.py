"""How many channels of every group to keep: given ratios, one ratio for all groups, a threshold, and schedules.

Pure functions of scores, one per block of `group.step` channels, as `ranking.rank_channels` gives them. Which channels
stay follows from the group's order; what is returned holds for any choice of a `GROUP/channels` unit. Groups that keep
all channels are left out, as in a policy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from paretopress.spaces.choices import Keep
from paretopress.spaces.coupling import ChannelGroup
from paretopress.spaces.errors import PolicyError, unknown_name
from paretopress.spaces.plan import kept_channels

MOST_REMOVED = 0.9   # of a group: what is ranked over all groups must not cut the network in two
Schedule = Literal["linear", "cubic"]
SCHEDULES: tuple[Schedule, ...] = ("linear", "cubic")


def given_ratios(groups: Sequence[ChannelGroup], ratios: float | Mapping[str, float]) -> dict[str, Keep]:
    """Keep the fraction that is given of every group.

    Args:
        groups: The groups of a model; frozen ones keep all channels.
        ratios: One fraction for all groups, or by the name of a group or of a layer that produces it; what is not
            named keeps all. Fractions are above 0, to 1.

    Raises:
        PolicyError: A ratio is out of range, a name is unknown, frozen, or names a group again with another ratio.
    """
    if not isinstance(ratios, Mapping):
        return _keeps(groups, {group.name: _blocks_of(group, ratios, "all groups") for group in groups})
    wanted: dict[str, tuple[str, float]] = {}
    for name, ratio in ratios.items():
        found = [group for group in groups if group.name == name] or [g for g in groups if name in g.producers]
        if not found:
            known = {group.name for group in groups} | {layer for group in groups for layer in group.producers}
            raise PolicyError(unknown_name("group or layer", name, known))
        for group in found:
            if group.frozen:
                raise PolicyError(f"group {group.name!r} is frozen: {group.frozen}")
            before, same = wanted.setdefault(group.name, (name, ratio))
            if same != ratio:
                both = f"{same:g} (by {before!r}) and {ratio:g} (by {name!r})"
                raise PolicyError(f"group {group.name!r} cannot keep {both}")
    named = [group for group in groups if group.name in wanted]
    return _keeps(named, {group.name: _blocks_of(group, *wanted[group.name][::-1]) for group in named})


def normalised(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each group's scores over their mean, so that groups can be ranked together; below 0 counts as 0.

    The unit of an importance depends on the layer: magnitudes and distances grow with the number of weights of a
    filter and shrink with the scale that the next layer makes up for, gradients with the depth. Compared as they are,
    whole layers would go first. Over the mean an average channel of every group counts 1, and what is ranked is how
    much less than the others of its group a channel matters (Molchanov et al., ICLR 2017, section 2.2, normalise
    layers for the same reason). A group whose scores are all 0 keeps them: nothing depends on it.

    Args:
        scores: Group name to `(blocks,)`.

    Raises:
        PolicyError: A score is not finite.
    """
    found = {}
    for name, values in scores.items():
        if not bool(torch.isfinite(values).all()):
            raise PolicyError(f"group {name!r}: an importance is not finite")
        positive = values.double().clamp_min(0.0)
        mean = float(positive.mean())
        found[name] = positive / mean if mean > 0.0 else positive
    return found


def global_ratio(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    ratio: float,
    most_removed: float = MOST_REMOVED,
) -> dict[str, Keep]:
    """Keep a fraction of the channels of all groups together: the least important ones go, wherever they are.

    Args:
        groups: The groups of a model; frozen ones keep all channels and do not count.
        scores: `(blocks,)` for every group that is not frozen, as they are: `normalised` is applied here.
        ratio: Fraction of all channels kept, above 0, to 1.
        most_removed: Of each group at most this fraction goes, and never its last block.

    Returns:
        Group name to what it keeps. As many channels as the blocks allow go, never more than asked for.

    Raises:
        PolicyError: A ratio is out of range or out of reach, a group has no scores, or they are of another size.
    """
    free = [group for group in groups if not group.frozen]
    limits = {group.name: _removable(group, most_removed) for group in free}
    total = sum(group.size for group in free)
    budget = math.floor((1.0 - _checked(ratio, "all groups")) * total + 1e-9)
    reachable = sum(limits[group.name] * group.step for group in free)
    if budget > reachable:
        raise PolicyError(
            f"keeping {ratio:g} of all channels is out of reach with at most {most_removed:g} of a group removed "
            f"(allowed: {_rounded_up(1.0 - reachable / total):g} to 1)"
        )
    ranked = sorted(
        (score, place, index)
        for place, (group, values) in enumerate(zip(free, _ordered(free, normalised(scores)), strict=True))
        for index, score in enumerate(values[: limits[group.name]])
    )
    kept = {group.name: group.size // group.step for group in free}
    for _, place, _ in ranked:
        group = free[place]
        if group.step <= budget:
            kept[group.name] -= 1
            budget -= group.step
    return _keeps(free, kept)


def above_threshold(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    threshold: float,
    most_removed: float = MOST_REMOVED,
) -> dict[str, Keep]:
    """Keep the channels whose importance reaches a threshold.

    Args:
        groups: The groups of a model; frozen ones keep all channels.
        scores: `(blocks,)` for every group that is not frozen, in the unit of the threshold; give `normalised`
            scores for a threshold relative to the average channel of each group.
        threshold: Blocks with a lower score go.
        most_removed: Of each group at most this fraction goes, and never its last block.

    Raises:
        PolicyError: The threshold or a score is not finite, a group has no scores, or they are of another size.
    """
    if not math.isfinite(threshold):
        raise PolicyError(f"threshold {threshold} is not finite")
    free = [group for group in groups if not group.frozen]
    kept = {}
    for group, values in zip(free, _ordered(free, scores), strict=True):
        below = sum(value < threshold for value in values)
        kept[group.name] = group.size // group.step - min(below, _removable(group, most_removed))
    return _keeps(free, kept)


def cumulative_keep(step: int, steps: int, final: float, schedule: Schedule = "cubic") -> float:
    """Fraction of the dense channels left after step `step` of `steps`, with recovery between the steps.

    `"cubic"` removes most at first, where it costs least: `s_t = s_f - s_f (1 - t / n)^3` (Zhu, Gupta: "To prune, or
    not to prune", 2017, equation 1, from no sparsity); `"linear"` as much in every step.

    Args:
        step: 0 for dense to `steps` for the end.
        steps: Number of steps, at least 1.
        final: Fraction left at the end, above 0, to 1.
        schedule: How it is approached.

    Raises:
        PolicyError: A number is out of range or the schedule unknown.
    """
    if steps < 1 or not 0 <= step <= steps:
        raise PolicyError(f"step {step} of {steps} (allowed: 0 to the number of steps, which is at least 1)")
    if schedule not in SCHEDULES:
        raise PolicyError(unknown_name("schedule", schedule, SCHEDULES))
    left = 1.0 - step / steps
    removed = 1.0 - _checked(final, "the schedule")
    return final if step == steps else 1.0 - removed * (1.0 - (left**3 if schedule == "cubic" else left))


def at_step(
    groups: Sequence[ChannelGroup], final: Mapping[str, Keep], step: int, steps: int, schedule: Schedule = "cubic"
) -> dict[str, Keep]:
    """What every group keeps after a step on the way to `final`; arguments as `cumulative_keep`.

    Raises:
        PolicyError: As there, or `final` names an unknown group or one that keeps nothing.
    """
    known = {group.name: group for group in groups}
    for name in final:
        if name not in known:
            raise PolicyError(unknown_name("group", name, known))
    ratios = {name: cumulative_keep(step, steps, keep.ratio, schedule) for name, keep in final.items()}
    return _keeps([known[name] for name in final], {name: _blocks_of(known[name], ratio, name)
                                                    for name, ratio in ratios.items()})


def _checked(ratio: float, where: str) -> float:
    if not 0.0 < ratio <= 1.0:
        raise PolicyError(f"keep ratio {ratio:g} for {where} is out of range (allowed: above 0, to 1)")
    return ratio


def _blocks_of(group: ChannelGroup, ratio: float, where: str) -> int:
    """Blocks that a ratio leaves, rounded as a plan does it."""
    return kept_channels(group, _checked(ratio, where)) // group.step


def _removable(group: ChannelGroup, most_removed: float) -> int:
    if not 0.0 <= most_removed <= 1.0:
        raise PolicyError(f"at most {most_removed:g} of a group removed is out of range (allowed: 0 to 1)")
    blocks = group.size // group.step
    return min(blocks - 1, math.floor(most_removed * blocks + 1e-9))


def _ordered(free: Iterable[ChannelGroup], scores: Mapping[str, Tensor]) -> list[list[float]]:
    """Each group's scores from low to high. Raises `PolicyError` where they are missing, too few or not finite."""
    found = []
    for group in free:
        if group.name not in scores:
            raise PolicyError(f"group {group.name!r} has no importances")
        values = scores[group.name]
        if tuple(values.shape) != (group.size // group.step,):
            size = group.size // group.step
            raise PolicyError(f"group {group.name!r}: importances of shape {tuple(values.shape)} (allowed: ({size},))")
        if not bool(torch.isfinite(values).all()):
            raise PolicyError(f"group {group.name!r}: an importance is not finite")
        found.append(sorted(values.tolist()))
    return found


def _keeps(groups: Iterable[ChannelGroup], blocks: Mapping[str, int]) -> dict[str, Keep]:
    """Blocks left as choices, of the groups that lose any and are not frozen."""
    return {
        group.name: Keep(blocks[group.name] * group.step / group.size)
        for group in groups if not group.frozen and blocks[group.name] * group.step < group.size
    }


def _rounded_up(value: float) -> float:
    return math.ceil(value * 1e4) / 1e4
