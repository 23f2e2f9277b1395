"""Pruning by one ranking of all channels: how much each group loses follows from its importances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from paretopress.compressors.entries import Entries
from paretopress.compressors.thresholds import above_threshold, global_ratio, normalised
from paretopress.spaces.errors import ConfigError, unknown_name
from paretopress.spaces.methods import Assignment, pruning
from paretopress.spaces.policy import Policy

Scope = Literal["each", "global", "threshold"]
SCOPES: tuple[Scope, ...] = ("each", "global", "threshold")


def ranked_pruning(level: float, scope: Scope, exclude: Sequence[str]) -> Callable[[Entries], Assignment]:
    """What decides, once the channels can be ranked.

    Args:
        level: `"global"`: fraction of the channels of all groups together that is kept; `"threshold"`: importance,
            relative to the average channel of a group, below which channels go. At most nine tenths of a group go.
        scope: Either of them.
        exclude: Globs of layers and groups that stay as they are.

    Raises:
        ConfigError: A level that is not a number of that range.
    """
    if scope not in SCOPES:
        raise ConfigError(f"prune: {unknown_name('scope', str(scope), SCOPES)}")
    number = isinstance(level, int | float) and not isinstance(level, bool)
    if not number or not 0.0 < level < (1.0 if scope == "global" else float("inf")):
        allowed = "a fraction in (0, 1)" if scope == "global" else "a number above 0"
        raise ConfigError(f"prune: ratio {level!r} is none of scope {scope!r} (allowed: {allowed}, for all groups)")

    def decide(entries: Entries) -> Assignment:
        structure = entries.program.structure
        free = pruning(0.5).assign(structure, exclude)
        dense = dict(free.left_dense)
        groups = [group for group in structure.coupling.groups if f"{group.name}/channels" not in dense]
        scores = {group.name: entries.ranking(group).scores for group in groups}
        if scope == "global":
            kept = global_ratio(groups, scores, float(level))
        else:
            kept = above_threshold(groups, normalised(scores), float(level))
        dense |= {f"{group.name}/channels": "its channels matter more than those of other groups" if scope == "global"
                  else "no channel is below the threshold" for group in groups if group.name not in kept}
        return Assignment(Policy.of({f"{name}/channels": keep for name, keep in kept.items()}), tuple(dense.items()))

    return decide
