"""SearchSpace: the units of a model with their legal choices, and why the others were dropped."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.choices import (
    KINDS,
    Binary,
    Choice,
    Clustered,
    Half,
    Keep,
    WeightFormat,
    Weights,
    choice_to_plain,
    conflict,
    describe,
)
from paretopress.spaces.documents import fingerprint
from paretopress.spaces.errors import ConfigError, PolicyError, nearest, unknown_name
from paretopress.spaces.layer_formats import why_not_searched
from paretopress.spaces.left_dense import left_dense
from paretopress.spaces.legality import (
    keep_choices,
    rank_choices,
    sparse_choices,
    weight_choices,
)
from paretopress.spaces.policy import Policy
from paretopress.spaces.structure import Structure

Options = tuple[Choice | None, ...]


@dataclass(frozen=True, slots=True)
class SpaceSettings:
    """What a user may set about the space.

    Attributes:
        keep: Fractions of channels offered (1 is always offered as dense).
        rank: Fractions of a layer's break-even rank offered.
        rank_kinds: Kinds of factors offered: `"svd"`, `"nmf"`, `"spatial"`, `"tucker"`.
        bits: Weight widths offered, those the device allows.
        end_bits: Fewest weight bits of the first and the last layers, 2 for no difference. A `pin` of such a
            layer's weights goes before it; where all of `bits` are fewer, the widest of them is offered.
        schemes: How integers are laid out: `"symmetric"`, `"asymmetric"`, `"tensor"`.
        groups: Inputs that share a scale, 0 for all inputs of an output.
        halves: 16-bit floats offered: `"fp16"`, `"bf16"`.
        clusters: Bits of the indices of shared weights offered.
        binary: Numbers of bases of signs offered.
        sparsity: What may be kept: densities, `"n:m"`, or densities in blocks such as `"0.25 in 4x1"`.
        depth: Whether whole residual branches may be dropped, where nothing else needs their inside.
        exclude: Globs of layers and groups that stay dense.
        pin: Glob of unit names (`fc/weights`) to the one choice they take.
    """

    keep: tuple[float, ...] = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
    rank: tuple[float, ...] = (0.25, 0.5, 0.75)
    rank_kinds: tuple[str, ...] = ("svd",)
    bits: tuple[int, ...] = (8, 4, 3, 2)
    end_bits: int = 8
    schemes: tuple[str, ...] = ("symmetric",)
    groups: tuple[int, ...] = (0,)
    halves: tuple[str, ...] = ()
    clusters: tuple[int, ...] = ()
    binary: tuple[int, ...] = ()
    sparsity: tuple[str | float, ...] = ()
    depth: bool = True
    exclude: tuple[str, ...] = ()
    pin: Mapping[str, Choice] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class SearchSpace:
    """Legal choices per unit; None is the dense choice and always stands first where it is legal.

    Attributes:
        options: Unit name to its choices, in execution order.
        dropped: `(unit, choice or "*", reason)` for everything that is not offered.
        model: Fingerprint of the model's structure.
    """

    options: Mapping[str, Options]
    dropped: tuple[tuple[str, str, str], ...]
    model: str

    @cached_property
    def log10_size(self) -> float:
        """Decimal logarithm of the number of policies."""
        return sum(math.log10(len(options)) for options in self.options.values())

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the options."""
        plain = [[unit, [None if c is None else choice_to_plain(c) for c in options]]
                 for unit, options in sorted(self.options.items())]
        return fingerprint([self.model, plain])

    def without(self, removed: Mapping[str, Sequence[Choice]], reasons: Mapping[str, str]) -> SearchSpace:
        """Return the space with some choices dropped.

        Args:
            removed: Unit to the choices to drop. The dense choice and a pinned one cannot be dropped.
            reasons: Unit to the reason shown to the user.
        """
        options = dict(self.options)
        dropped = list(self.dropped)
        for unit, choices in removed.items():
            if unit not in options:
                raise PolicyError(unknown_name("unit", unit, options))
            if len(options[unit]) == 1:
                continue   # the user pinned it
            options[unit] = tuple(c for c in options[unit] if c is None or c not in choices)
            dropped += [(unit, describe(choice), reasons[unit]) for choice in choices]
            if options[unit] == (None,):
                del options[unit]
        return replace(self, options=options, dropped=tuple(dropped))

    def check(self, policy: Policy) -> None:
        """Check that every choice of a policy is one of the space's options. Raises `PolicyError`."""
        for unit, choice in policy:
            if unit not in self.options:
                raise PolicyError(unknown_name("unit", unit, self.options))
            if choice not in self.options[unit]:
                shown = ", ".join("dense" if c is None else describe(c) for c in self.options[unit])
                raise PolicyError(f"unit {unit!r} does not offer {describe(choice)} (allowed: {shown})")


def build_space(
    structure: Structure, devices: Sequence[Capabilities], settings: SpaceSettings | None = None
) -> SearchSpace:
    """Return the legal space of a model on all of `devices` together.

    Raises:
        ConfigError: An exclude or pin pattern matches nothing (with the nearest name), or a pinned
            choice is not legal.
    """
    settings = settings or SpaceSettings()
    _check_patterns(structure, settings)
    options: dict[str, Options] = {}
    dropped: list[tuple[str, str, str]] = []
    for unit, frozen in structure.units.items():
        subject, _, kind = unit.rpartition("/")
        if kind == "sparsity" and not settings.sparsity:
            continue   # not asked for: no reason to explain layer by layer
        reason = frozen or _excluded(structure, subject, kind, settings)
        if reason:
            dropped.append((unit, "*", reason))
            continue
        legal, refused = _choices(structure, subject, kind, devices, settings)
        dropped += [(unit, name, why) for name, why in refused]
        if legal:
            options[unit] = (None, *legal)
    dropped += left_dense(structure)
    _apply_pins(options, dropped, settings)
    _drop_conflicts(options, dropped)
    return SearchSpace(_execution_order(structure, options), tuple(dropped), structure.fingerprint)


def _excluded(structure: Structure, subject: str, kind: str, settings: SpaceSettings) -> str:
    """Why a unit is excluded, `""` where it is not: a group goes with any layer that makes its channels."""
    names = (subject, *structure.group(subject).producers) if kind == "channels" else (subject,)
    patterns = (p for p in settings.exclude if any(fnmatch.fnmatchcase(name, p) for name in names))
    return next((f"excluded by {pattern!r}" for pattern in patterns), "")


def _choices(
    structure: Structure, subject: str, kind: str, devices: Sequence[Capabilities], settings: SpaceSettings
) -> tuple[Sequence[Choice], Sequence[tuple[str, str]]]:
    """The legal choices of a unit that is neither frozen nor excluded, and the others with their reasons."""
    if kind == "weights":
        pinned = any(fnmatch.fnmatchcase(f"{subject}/weights", pattern) for pattern in settings.pin)
        end, fewest = structure.ends.get(subject, ""), 0 if pinned else settings.end_bits
        return weight_choices(structure.layer(subject), devices, _formats(settings), fewest, end)
    if kind == "sparsity":
        return sparse_choices(settings.sparsity)
    if kind == "rank":
        return rank_choices(structure.layer(subject), devices, settings.rank, settings.rank_kinds)
    keeps, refused = keep_choices(structure.group(subject), devices, settings.keep)
    why_not = _keeps_branch(structure, subject, settings)
    if why_not:
        return keeps, [*refused, (describe(Keep(0.0)), why_not)] if keeps else refused
    return [*keeps, Keep(0.0)], [(choice, reason) for choice, reason in refused if choice != "*"]


def _formats(settings: SpaceSettings) -> list[WeightFormat]:
    """All formats of weights that the user wants offered."""
    wanted: list[WeightFormat] = [Weights(bits, activations) for bits in settings.bits for activations in (8, 32)]
    wanted += [
        Weights(bits, 32, scheme, group) for bits in settings.bits for scheme in settings.schemes
        for group in settings.groups if (scheme, group) != ("symmetric", 0) and not (scheme == "tensor" and group)
    ]
    wanted += [*map(Half, settings.halves), *map(Clustered, settings.clusters)]
    return wanted + [Binary(bases, activations) for bases in settings.binary
                     for activations in ((8, 32) if bases == 1 else (32,))]


def _keeps_branch(structure: Structure, group: str, settings: SpaceSettings) -> str:
    """Why a group may not go whole, `""` where it may: it is the inside of a residual branch."""
    branch = structure.branches.get(group)
    if branch is None:
        return "only channels inside a residual branch that can be dropped may go whole"
    if not settings.depth:
        return "space.depth is off"
    excluded = {name: _excluded(structure, name, "weights", settings) for name in branch.layers}
    return next((f"{name} in the branch is {reason}" for name, reason in excluded.items() if reason), "")


def _execution_order(structure: Structure, options: dict[str, Options]) -> dict[str, Options]:
    place = {layer.name: index for index, layer in enumerate(structure.layers)}
    kinds = {kind: place for place, kind in enumerate(KINDS)}

    def key(unit: str) -> tuple[int, int]:
        subject, _, kind = unit.rpartition("/")
        return place.get(subject, len(place)), kinds[kind]

    return {unit: options[unit] for unit in sorted(options, key=key)}


def _check_patterns(structure: Structure, settings: SpaceSettings) -> None:
    subjects = {unit.rpartition("/")[0] for unit in structure.units}
    for pattern in settings.exclude:
        if not any(fnmatch.fnmatchcase(subject, pattern) for subject in subjects):
            raise ConfigError(f"space.exclude: {pattern!r} matches no layer{_hint(pattern, subjects)}")
    for pattern in settings.pin:
        if not any(fnmatch.fnmatchcase(unit, pattern) for unit in structure.units):
            raise ConfigError(f"space.pin: {pattern!r} matches no unit{_hint(pattern, structure.units)}")


def _hint(pattern: str, names: Iterable[str]) -> str:
    close = nearest(pattern, names)
    return f"; did you mean {close[0]!r}?" if close else ""


def _apply_pins(
    options: dict[str, Options], dropped: Sequence[tuple[str, str, str]], settings: SpaceSettings
) -> None:
    for pattern, choice in settings.pin.items():
        if not fnmatch.filter(options, pattern):
            unit, _, reason = next(drop for drop in dropped if fnmatch.fnmatchcase(drop[0], pattern))
            raise ConfigError(f"space.pin: {unit!r} cannot be pinned: {reason}")
        for unit in fnmatch.filter(options, pattern):
            if choice not in options[unit]:
                reason = why_not_searched(choice)
                shown = describe(choice) + (f": {reason}" if reason else "")
                raise ConfigError(f"space.pin: {unit!r} does not offer {shown}")
            options[unit] = (choice,)


def _drop_conflicts(options: dict[str, Options], dropped: list[tuple[str, str, str]]) -> None:
    """Drop what does not go together with the pinned choice of another unit of the same layer."""
    for unit, choices in list(options.items()):
        subject = unit.rpartition("/")[0]
        for other in (f"{subject}/{kind}" for kind in KINDS if f"{subject}/{kind}" in options):
            if other == unit or len(choices) > 1:
                continue
            clashing = {c: conflict(choices[0], c) for c in options[other] if c and conflict(choices[0], c)}
            if len(options[other]) == 1 and clashing:
                raise ConfigError(f"space.pin: {unit!r} and {other!r}: {next(iter(clashing.values()))}")
            options[other] = tuple(c for c in options[other] if c not in clashing)
            dropped += [(other, describe(c), reason) for c, reason in clashing.items()]
            if options[other] == (None,):
                del options[other]
