"""Carrying a policy to another model: unit by unit what stands for it, and the choice nearest to what was made there.

Nothing is applied here. The result is a policy of the other model that its plan accepts, or a refusal that names the
first unit that does not fit and leaves everything as it was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paretopress.spaces.choice_families import kind_of, left
from paretopress.spaces.choices import (
    Choice,
    Factorised,
    Keep,
    Sparse,
    choice_to_plain,
    compatible,
    conflict,
    describe,
)
from paretopress.spaces.errors import PolicyError
from paretopress.spaces.plan import check_units
from paretopress.spaces.policy import Policy
from paretopress.spaces.structure import Structure
from paretopress.spaces.unit_features import UnitFeatures, subject_of
from paretopress.spaces.unit_mapping import STRUCTURE, MappedSubject, UnitMapping, interpolated, map_units

Options = tuple[Choice | None, ...]
Places = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class MappedUnit:
    """What one unit of the target got.

    Attributes:
        unit: The unit.
        sources: Units of the other model with weights.
        distance: Between their features and this unit's, None where only names are known.
        how: How they were found, see `MappedSubject`.
        choice: What the unit gets, None for dense.
    """

    unit: str
    sources: tuple[tuple[str, float], ...]
    distance: float | None
    how: str
    choice: Choice | None


@dataclass(frozen=True)
class PolicyTransfer:
    """A policy carried to another model.

    Attributes:
        policy: For that model.
        units: What each of its units got and from where.
        left_out: Units that stay dense although the policy speaks of their kind, with the reason.
        unused: Units of the policy that stand for nothing there.
    """

    policy: Policy
    units: tuple[MappedUnit, ...]
    left_out: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]

    @property
    def coverage(self) -> float:
        """Share of the units, of the kinds that the policy speaks of, that have a source, in [0, 1]."""
        return len(self.units) / max(1, len(self.units) + len(self.left_out))

    def to_plain(self) -> dict[str, Any]:
        """Return the transfer as plain data."""
        return {
            "policy": self.policy.to_plain(), "policy_hash": self.policy.hash, "coverage": self.coverage,
            "units": [{
                "unit": one.unit, "sources": dict(one.sources), "how": one.how,
                "distance": None if one.distance is None else round(one.distance, 4),
                "choice": None if one.choice is None else choice_to_plain(one.choice),
            } for one in self.units],
            "left_out": [{"unit": unit, "reason": reason} for unit, reason in self.left_out],
            "unused": list(self.unused),
        }


def transfer_policy(
    policy: Policy,
    structure: Structure,
    features: Mapping[str, UnitFeatures],
    source: Mapping[str, UnitFeatures],
    *,
    options: Mapping[str, Options] | None = None,
    partial: bool = False,
    model: str = "",
    space: str = "",
) -> PolicyTransfer:
    """Carry a policy to another model.

    Args:
        policy: The policy.
        structure: Of the other model.
        features: Of the other model's layers and groups.
        source: Of the model that the policy was made for; empty where only the policy is known: then names decide.
        options: What the other model's search space offers; each choice becomes the nearest one of its family there.
            None: whatever the model itself can take.
        partial: Whether units without a source, or without a fitting choice, stay dense instead of being refused.
        model: Fingerprint that the new policy carries.
        space: The same of the space.

    Raises:
        PolicyError: Nothing fits, or something does not and `partial` was not asked for; the message names it.
    """
    units = [unit for unit, frozen in structure.units.items() if not frozen and (options is None or unit in options)]
    kinds = {unit.rpartition("/")[2] for unit, _ in policy}
    if options is None:
        units = [unit for unit in units if _takes_kind(structure, unit)]
    wanted = [unit for unit in units if unit.rpartition("/")[2] in kinds]
    known = dict(structure.units) | dict.fromkeys(options or (), "")
    for unit, _ in policy:
        if not source and unit in known and known[unit] and not partial:
            raise PolicyError(f"unit {unit!r} is frozen there: {known[unit]}")
    places = _places(policy, wanted, features, source)
    found: list[MappedUnit] = []
    left_out: list[tuple[str, str]] = []
    for unit in wanted:
        one = places.get(unit)
        if one is None:
            left_out.append((unit, "nothing in the source stands for it"))
            continue
        sources, mapped = one
        choice = _chosen(policy, sources, features.get(subject_of(unit)), source)
        fitted, reason = _fitted(structure, unit, choice, None if options is None else options[unit])
        if reason:
            left_out.append((unit, reason))
            continue
        how, distance = (STRUCTURE, None) if mapped is None else (mapped.how, mapped.distance)
        found.append(MappedUnit(unit, tuple(sources), distance, how, fitted))
    return _finished(policy, structure, found, left_out, by_names=not source, partial=partial, model=model,
                     space=space)


def _finished(
    policy: Policy, structure: Structure, found: Sequence[MappedUnit], left_out: Sequence[tuple[str, str]], *,
    by_names: bool, partial: bool, model: str, space: str,
) -> PolicyTransfer:
    chosen = {one.unit: one.choice for one in found if one.choice is not None}
    if not chosen and not policy.is_dense:
        reason = f": {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise PolicyError(f"the policy does not fit this model: none of its {len(policy)} units stands for one{reason}")
    if left_out and not partial:
        unit, reason = left_out[0]
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise PolicyError(f"unit {unit!r}: {reason}{more}; --partial leaves such units dense")
    kept = _together(compatible(chosen))
    used = {name for one in found for name, _ in one.sources}
    unused = tuple(unit for unit, _ in policy if unit not in used)
    if unused and by_names and not partial:
        more = f" (and {len(unused) - 1} more)" if len(unused) > 1 else ""
        raise PolicyError(f"unit {unused[0]!r} of the policy stands for nothing here{more}; --partial leaves it out")
    result = Policy.of(kept, model=model, space=space)
    check_units(structure, result)
    rows = tuple(replace(one, choice=kept.get(one.unit)) for one in found)
    return PolicyTransfer(result, rows, tuple(left_out), unused)


def _together(chosen: Mapping[str, Choice]) -> dict[str, Choice]:
    """Choices without ranks that the formats of their layers exclude."""
    kept = dict(chosen)
    for unit in chosen:
        name, _, kind = unit.rpartition("/")
        if kind == "rank" and conflict(kept[unit], kept.get(f"{name}/weights")):
            del kept[unit]
    return kept


def _takes_kind(structure: Structure, unit: str) -> bool:
    """Whether a free unit can take anything: a channel group of one channel cannot be narrowed."""
    name, _, kind = unit.rpartition("/")
    return kind != "channels" or structure.group(name).size > structure.group(name).step


def _places(
    policy: Policy, wanted: Sequence[str], features: Mapping[str, UnitFeatures], source: Mapping[str, UnitFeatures]
) -> dict[str, tuple[Places, MappedSubject | None]]:
    """Per unit the units of the source that stand for it."""
    if not source:
        return {unit: (sources, None) for unit, sources in _by_names([u for u, _ in policy], wanted).items()}
    mapping: UnitMapping = map_units(source, features)
    found: dict[str, tuple[Places, MappedSubject | None]] = {}
    for unit in wanted:
        one = mapping.found.get(subject_of(unit))
        if one is not None:
            kind = unit.rpartition("/")[2]
            sources = [(f"{name.rpartition('/')[0]}/{kind}", weight) for name, weight in one.sources]
            found[unit] = (sources, one)
    return found


def _by_names(known: Sequence[str], wanted: Sequence[str]) -> dict[str, Places]:
    """Units of the same name, or at the same relative position where the lists of modules have other lengths.

    Names are all there is: what a policy does not name is dense, and the length of a list is the largest position that
    it names there.
    """
    theirs, ours = _lengths(known), _lengths(wanted)
    found: dict[str, Places] = {}
    for unit in wanted:
        listed = _listed(unit)
        if listed is None or listed[0] not in theirs or theirs[listed[0]] == ours[listed[0]]:
            found[unit] = [(unit, 1.0)]
            continue
        head, place, tail = listed
        names = [f"{head}{number}{tail}" for number in range(theirs[head] + 1)]
        found[unit] = interpolated(names, place / ours[head] if ours[head] else 0.0)
    return found


def _listed(unit: str) -> tuple[str, int, str] | None:
    """What stands before the first position in a list of modules, the position, and what stands behind it."""
    match = re.match(r"((?:[^0-9.][^.]*\.)*)([0-9]+)(?=[./])", unit)
    return None if match is None else (match.group(1), int(match.group(2)), unit[match.end():])


def _lengths(units: Sequence[str]) -> dict[str, int]:
    """The largest position by what stands before it."""
    found: dict[str, int] = {}
    for unit in units:
        listed = _listed(unit)
        if listed is not None:
            found[listed[0]] = max(found.get(listed[0], 0), listed[1])
    return found


def _chosen(
    policy: Policy, sources: Places, ours: UnitFeatures | None, source: Mapping[str, UnitFeatures]
) -> Choice | None:
    """The family that most of the sources' weight is in, at the mean of how much they leave."""
    votes: dict[tuple[str, ...], list[tuple[Choice, float, str]]] = {}
    dense = 0.0
    for unit, weight in sources:
        choice = policy.choices.get(unit)
        if choice is None:
            dense += weight
        else:
            votes.setdefault(kind_of(choice), []).append((choice, weight, unit))
    if not votes:
        return None
    family = max(votes, key=lambda one: sum(weight for _, weight, _ in votes[one]))
    members = votes[family]
    total = sum(weight for _, weight, _ in members)
    if dense >= total:
        return None
    first = max(members, key=lambda member: member[1])[0]
    if isinstance(first, Keep) and first.ratio > 0.0:
        return Keep(sum(weight * c.ratio for c, weight, _ in members if isinstance(c, Keep)) / total)
    if isinstance(first, Factorised) and ours is not None and source:
        share = sum(
            weight * left(choice, source[subject_of(unit)].full_rank) for choice, weight, unit in members
        ) / total
        return replace(first, rank=max(1, round(share * ours.full_rank)), inner=0)
    return first


def _fitted(
    structure: Structure, unit: str, choice: Choice | None, options: Options | None
) -> tuple[Choice | None, str]:
    """The choice that a unit can take, and why it cannot take any."""
    if choice is None:
        if options is not None and None not in options:
            return options[0], ""   # pinned: there is no other choice
        return None, ""
    if options is None:
        try:
            check_units(structure, Policy.of({unit: choice}))
        except PolicyError as error:
            return None, str(error).removeprefix(f"unit {unit!r}").lstrip(": ")
        return choice, ""
    alike = [one for one in options if one is not None and _same_kind(one, choice)]
    if not alike:
        return (None, "") if None in options and _is_mild(choice) else (
            None, f"{describe(choice)} is not offered there, nor anything like it")
    return min(alike, key=lambda one: (_apart(one, choice), options.index(one))), ""


def _same_kind(one: Choice, other: Choice) -> bool:
    """Whether one choice may stand for the other: the same family, or formats of weights of any kind."""
    if kind_of(one) == kind_of(other):
        return True
    return kind_of(one)[0] == kind_of(other)[0] == "weights" or (
        isinstance(one, Sparse) and isinstance(other, Sparse))


def _is_mild(choice: Choice) -> bool:
    """Whether dense is the nearest thing to it: a little is removed where the space offers no less."""
    return isinstance(choice, Keep) and choice.ratio > 0.5


def _apart(one: Choice, other: Choice) -> float:
    """How much two choices differ in what they leave, families first."""
    other_family = 10.0 if kind_of(one) != kind_of(other) else 0.0
    return other_family + abs(math.log2(max(left(one, 1), 1e-3)) - math.log2(max(left(other, 1), 1e-3)))

