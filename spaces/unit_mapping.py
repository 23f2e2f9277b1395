"""Which units of one model stand for which of another: by structure within a family, by features across families.

Layers and channel groups (the subjects of units, as `unit_features` names them) are mapped, with all their units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretopress.spaces.unit_features import GROUP, UnitFeatures

Array = NDArray[np.float64]
SAME, STRUCTURE, FEATURES = "same", "structure", "features"
FARTHEST = 2.5    # distance from which on nothing is alike: about one kind of operator and half the depth
NEIGHBOURS = 3    # sources by features
# What one unit of each feature counts: squares add up, and at a distance of 1 two units are clearly different.
PLACE, STAGE, WIDTH, WINDOW, STRIDE = 1.5, 0.5, 0.2, 0.15, 0.3
SHARE, ACTIVATION, RANK, TAILS, MEMBERS, DROPPABLE = 0.2, 0.15, 1.0, 0.15, 0.3, 0.4
OTHER_OPERATOR, SIMILAR_OPERATOR, OTHER_ROLE, OTHER_PATTERN = 1.0, 0.5, 0.5, 0.3
_MIXING = frozenset(("conv", "linear", "transposed"))   # every output reads every input


@dataclass(frozen=True)
class MappedSubject:
    """What stands for a layer or a channel group.

    Attributes:
        sources: Subjects of the other model with weights that add up to 1.
        distance: Mean distance of their features, 0 for the same.
        how: `"same"`: name and shape; `"structure"`: the same part of the same pattern of names; `"features"`.
    """

    sources: tuple[tuple[str, float], ...]
    distance: float
    how: str


@dataclass(frozen=True)
class UnitMapping:
    """A mapping from one model's layers and channel groups to another's.

    Attributes:
        found: What stands for each subject of the target.
        missing: Subjects that nothing stands for, with the reason.
        coverage: Share of the target's subjects that have something, in [0, 1].
        macs_coverage: Share of the target's multiply-accumulates in layers that have something.
        unused: Subjects of the source that stand for nothing.
    """

    found: Mapping[str, MappedSubject]
    missing: Mapping[str, str]
    coverage: float
    macs_coverage: float
    unused: tuple[str, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return the mapping as plain data."""
        return {
            "coverage": self.coverage, "macs_coverage": self.macs_coverage,
            "subjects": {name: {"sources": dict(one.sources), "distance": round(one.distance, 4), "how": one.how}
                         for name, one in self.found.items()},
            "missing": dict(self.missing), "unused": list(self.unused),
        }


def map_units(
    source: Mapping[str, UnitFeatures], target: Mapping[str, UnitFeatures], *, structure_only: bool = False
) -> UnitMapping:
    """Map layers to layers and channel groups to channel groups.

    Args:
        source: Features of the model that something is known of.
        target: Features of the other model.
        structure_only: Whether features alone map nothing.
    """
    places = _structural(source, target)
    found: dict[str, MappedSubject] = {}
    missing: dict[str, str] = {}
    for kind in ("layer", GROUP):
        theirs = [name for name in source if name.rpartition("/")[2] == kind]
        ours = [name for name in target if name.rpartition("/")[2] == kind]
        if not ours:
            continue
        apart = distances(target, ours, source, theirs) if theirs else np.zeros((len(ours), 0))
        column = {name: index for index, name in enumerate(theirs)}
        for row, name in enumerate(ours):
            sources = places.get(name)
            if sources is not None:
                apart_by = sum(weight * apart[row, column[one]] for one, weight in sources)
                same = len(sources) == 1 and _is_same(name, sources[0][0], source, target)
                found[name] = MappedSubject(tuple(sources), 0.0 if same else float(apart_by),
                                            SAME if same else STRUCTURE)
            elif structure_only:
                missing[name] = f"no layer of the source is named like {target[name].pattern!r} and of that kind"
            else:
                one = _nearest(apart[row], theirs)
                if one is None:
                    nearest = f" (nearest: {apart[row].min():.2g})" if theirs else ""
                    missing[name] = f"nothing in the source is nearer than {FARTHEST:g}{nearest}"
                else:
                    found[name] = one
    used = {name for one in found.values() for name, _ in one.sources}
    macs = {name: features.macs_share for name, features in target.items() if name.endswith("/layer")}
    return UnitMapping(
        found, missing, len(found) / max(1, len(target)),
        sum(share for name, share in macs.items() if name in found) / max(sum(macs.values()), 1e-12),
        tuple(name for name in source if name not in used),
    )


def _key(features: UnitFeatures, name: str) -> tuple[object, ...]:
    """What layers of one family have in common when they do the same in another block."""
    return (name.rpartition("/")[2], features.pattern, features.operator, features.window, features.stride,
            features.droppable)


def _structural(
    source: Mapping[str, UnitFeatures], target: Mapping[str, UnitFeatures]
) -> dict[str, list[tuple[str, float]]]:
    """Per subject of the target the one or two at the same relative position among those of the same key."""
    theirs: dict[tuple[object, ...], list[str]] = {}
    ours: dict[tuple[object, ...], list[str]] = {}
    for features, members in ((source, theirs), (target, ours)):
        for name, one in features.items():
            members.setdefault(_key(one, name), []).append(name)
    found = {}
    for key, names in ours.items():
        if key not in theirs:
            continue
        known = sorted(theirs[key], key=lambda name: source[name].place)
        ordered = sorted(names, key=lambda name: target[name].place)
        for index, name in enumerate(ordered):
            found[name] = interpolated(known, index / (len(ordered) - 1) if len(ordered) > 1 else 0.5)
    return found


def interpolated(names: Sequence[str], at: float) -> list[tuple[str, float]]:
    """The one or two of evenly spaced names around a relative position in [0, 1], with weights."""
    place = at * (len(names) - 1)
    lower = min(int(place), len(names) - 1)
    share = place - lower
    if share < 1e-9 or lower + 1 >= len(names):
        return [(names[lower], 1.0)]
    return [(names[lower], 1.0 - share), (names[lower + 1], share)]


def _is_same(
    name: str, other: str, source: Mapping[str, UnitFeatures], target: Mapping[str, UnitFeatures]
) -> bool:
    ours, theirs = target[name], source[other]
    return name == other and (ours.inputs, ours.outputs) == (theirs.inputs, theirs.outputs)


def _nearest(apart: Array, names: Sequence[str]) -> MappedSubject | None:
    order = [index for index in np.argsort(apart, kind="stable")[:NEIGHBOURS] if apart[index] <= FARTHEST]
    if not order:
        return None
    weights = np.exp(-0.5 * (apart[order] ** 2 - apart[order[0]] ** 2))
    weights /= weights.sum()
    kept = [(names[index], float(weight)) for index, weight in zip(order, weights, strict=True) if weight >= 0.05]
    total = sum(weight for _, weight in kept)
    return MappedSubject(
        tuple((name, weight / total) for name, weight in kept), float(weights @ apart[order]), FEATURES
    )


def distances(
    first: Mapping[str, UnitFeatures], rows: Sequence[str], second: Mapping[str, UnitFeatures], columns: Sequence[str]
) -> Array:
    """Distances of the features of subjects of two models, shape (rows, columns).

    Shares count relative to the mean of the own model, so that a deeper model's are no smaller.
    """
    one, other = _numbers(first, rows), _numbers(second, columns)
    squared = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None, :] - 2.0 * one @ other.T
    squared = np.maximum(squared, 0.0)
    for row, name in enumerate(rows):
        ours = first[name]
        squared[row] += [_categories(ours, second[column]) for column in columns]
    found: Array = np.sqrt(squared)
    return found


def _categories(one: UnitFeatures, other: UnitFeatures) -> float:
    total = 0.0
    if one.operator != other.operator:
        similar = one.operator in _MIXING and other.operator in _MIXING
        total += (SIMILAR_OPERATOR if similar else OTHER_OPERATOR) ** 2
    total += OTHER_ROLE**2 if one.role != other.role else 0.0
    return total + (OTHER_PATTERN**2 if one.pattern != other.pattern else 0.0)


def _numbers(features: Mapping[str, UnitFeatures], names: Sequence[str]) -> Array:
    """One row of weighted numbers per subject."""
    kinds = {name: name.rpartition("/")[2] for name in features}
    means: dict[tuple[str, str], float] = {}
    for kind in set(kinds.values()):
        members = [one for name, one in features.items() if kinds[name] == kind]
        for column in ("macs_share", "bytes_share", "activation"):
            means[kind, column] = float(np.mean([getattr(one, column) for one in members])) or 1.0

    def relative(one: UnitFeatures, kind: str, column: str) -> float:
        return float(np.log2(getattr(one, column) / means[kind, column] + 2.0**-6))

    return np.array([[
        PLACE * one.place, STAGE * one.stage, WIDTH * np.log2(one.inputs), WIDTH * np.log2(one.outputs),
        WINDOW * np.log2(one.window), STRIDE * np.log2(one.stride), SHARE * relative(one, kind, "macs_share"),
        SHARE * relative(one, kind, "bytes_share"), ACTIVATION * relative(one, kind, "activation"),
        RANK * one.rank_share, TAILS * np.arcsinh(one.kurtosis), MEMBERS * np.log2(one.members),
        DROPPABLE * one.droppable,
    ] for one, kind in ((features[name], kinds[name]) for name in names)], dtype=np.float64).reshape(len(names), 13)
