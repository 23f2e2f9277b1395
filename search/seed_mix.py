"""Mixing seeds that another model's runs suggest with seeds that owe them nothing, and believing whichever do better.

Transferred seeds are never alone. At first every second seed is a cold one, so that few trials say which do better; as
long as the transferred ones do, every fourth is. Each time that they do worse than as many cold ones, their share
halves, or is quartered where they do not reach half as much. Below a quarter the prior is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paretopress.search.live import relative_hypervolume
from paretopress.search.records import TrialRecord
from paretopress.spaces.policy import Policy

FIRST = 0.5         # share of transferred seeds before any is evaluated
FULL = 0.75         # and while the prior is believed
DROPPED = 0.25      # share below which the prior is dropped
CLEARLY = 0.5       # of the hypervolume of cold seeds: what transferred ones must reach to be given another round
TOLERANCE = 0.1     # of the hypervolume: transferred seeds may do that much worse than cold ones, by chance
FEWEST = 3          # seeds of either kind that are compared


@dataclass(frozen=True)
class SeedMix:
    """Seeds of two origins.

    Attributes:
        common: What every search begins with: the dense model and what people would try by hand.
        transferred: What another model's runs suggest, the most promising first.
        cold: What owes them nothing, the most promising first.
        share: Of transferred seeds among the next ones.
    """

    common: tuple[Policy, ...]
    transferred: tuple[Policy, ...]
    cold: tuple[Policy, ...]
    share: float = FIRST

    @property
    def dropped(self) -> bool:
        """Whether the prior has lost."""
        return self.share < DROPPED

    def order(self) -> tuple[Policy, ...]:
        """All seeds in the order of evaluation: of every prefix the share of transferred ones is as wanted."""
        known = set(self.common)
        lists = [[policy for policy in dict.fromkeys(members) if policy not in known]
                 for members in (self.transferred, self.cold)]
        shared = set(lists[0])
        lists[1] = [policy for policy in lists[1] if policy not in shared]
        merged: list[Policy] = []
        taken = [0, 0]
        while taken[0] < len(lists[0]) or taken[1] < len(lists[1]):
            wanted = self.share * (len(merged) + 1)
            turn = 0 if taken[0] + 1 <= wanted + 1e-9 or taken[1] >= len(lists[1]) else 1
            if taken[turn] >= len(lists[turn]):
                turn = 1 - turn
            merged.append(lists[turn][taken[turn]])
            taken[turn] += 1
        return (*self.common, *merged)

    def renewed(self, transferred: Sequence[Policy]) -> SeedMix:
        """The mix with other transferred seeds first; those so far stay, as they may be evaluated."""
        return replace(self, transferred=tuple(dict.fromkeys((*transferred, *self.transferred))))

    def origin(self, policy: Policy) -> str | None:
        """`"transferred"`, `"cold"`, or None for a policy of both or neither."""
        transferred, cold = policy in self.transferred, policy in self.cold
        if transferred == cold or policy in self.common:
            return None
        return "transferred" if transferred else "cold"


def volumes(
    mix: SeedMix, records: Sequence[TrialRecord], objectives: Mapping[str, str]
) -> tuple[float, float, int] | None:
    """Hypervolumes of as many transferred as cold seeds, those evaluated first, and how many that are.

    Args:
        mix: The seeds.
        records: Finished trials in the order of their numbers.
        objectives: Names with directions, the metric first.

    Returns:
        None where there is nothing to compare yet.
    """
    signs = {name: -1.0 if direction == "max" else 1.0 for name, direction in objectives.items()}
    groups: dict[str, list[list[float]]] = {"transferred": [], "cold": []}
    dense = None
    for record in records:
        complete = all(name in record.values for name in objectives) and record.reason is None
        row = [sign * record.values[name] for name, sign in signs.items()] if complete else []
        if record.policy.is_dense and complete:
            dense = np.array(row)
        origin = mix.origin(record.policy)
        if origin is not None:
            groups[origin].append(row)   # a screened or failed one counts, with nothing
    count = min(map(len, groups.values()))
    if dense is None or not count:
        return None
    found = []
    for rows in groups.values():
        kept = [row for row in rows[:count] if row]
        array = np.array(kept, dtype=np.float64).reshape(len(kept), len(signs))
        found.append(relative_hypervolume(array, dense) or 0.0)
    return found[0], found[1], count


def judged(mix: SeedMix, found: tuple[float, float, int] | None) -> SeedMix:
    """The mix for the next round: a prior that loses against cold seeds counts for half of what it did."""
    if found is None or found[2] < FEWEST:
        return mix
    transferred, cold, _ = found
    share = min(FULL, mix.share * 1.5)
    if transferred < cold * (1.0 - TOLERANCE):
        share = mix.share / (4.0 if transferred < cold * CLEARLY else 2.0)
    return SeedMix(mix.common, mix.transferred, mix.cold, share)
