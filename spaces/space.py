"""SearchSpace: the units of a model with their legal choices, and why the others were dropped."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.choices import Choice, Factorised, Keep, Weights, choice_to_plain
from paretopress.spaces.coupling import ChannelGroup
from paretopress.spaces.documents import fingerprint
from paretopress.spaces.errors import ConfigError, PolicyError, nearest, unknown_name
from paretopress.spaces.layers import NO_INTEGER_KERNEL, Layer
from paretopress.spaces.left_dense import left_dense
from paretopress.spaces.policy import Policy
from paretopress.spaces.structure import Structure

Options = tuple[Choice | None, ...]


@dataclass(frozen=True, slots=True)
class SpaceSettings:
    """What a user may set about the space.

    Attributes:
        keep: Fractions of channels offered (1 is always offered as dense).
        rank: Fractions of a layer's break-even rank offered.
        bits: Weight widths offered, those the device allows.
        depth: Whether whole residual branches may be dropped, where nothing else needs their inside.
        exclude: Globs of layers and groups that stay dense.
        pin: Glob of unit names (`fc/weights`) to the one choice they take.
    """

    keep: tuple[float, ...] = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
    rank: tuple[float, ...] = (0.25, 0.5, 0.75)
    bits: tuple[int, ...] = (8, 4, 3, 2)
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


def describe(choice: Choice) -> str:
    """Return a choice in a few words, such as `keep 0.5` or `4-bit weights, 8-bit activations`."""
    match choice:
        case Keep(0.0):
            return "drop the branch"
        case Keep(ratio):
            return f"keep {ratio:g}"
        case Factorised(_, rank):
            return f"rank {rank}"
        case Weights(bits, activations):
            return f"{bits}-bit weights" + (f", {activations}-bit activations" if activations != 32 else "")


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
        reason = frozen or _excluded(structure, subject, kind, settings)
        if reason:
            dropped.append((unit, "*", reason))
            continue
        legal: Sequence[Choice]
        if kind == "channels":
            legal, refused = _keep_options(structure.group(subject), devices, settings)
            if settings.depth and _may_drop(structure, subject, settings):
                legal, refused = [*legal, Keep(0.0)], []
        elif kind == "weights":
            legal, refused = _weight_options(structure.layer(subject), devices, settings)
        else:
            legal, refused = _rank_options(structure.layer(subject), devices, settings)
        dropped += [(unit, name, why) for name, why in refused]
        if legal:
            options[unit] = (None, *legal)
    dropped += left_dense(structure)
    _apply_pins(options, dropped, settings)
    return SearchSpace(_execution_order(structure, options), tuple(dropped), structure.fingerprint)


def _excluded(structure: Structure, subject: str, kind: str, settings: SpaceSettings) -> str:
    """Why a unit is excluded, `""` where it is not: a group goes with any layer that makes its channels."""
    names = (subject, *structure.group(subject).producers) if kind == "channels" else (subject,)
    patterns = (p for p in settings.exclude if any(fnmatch.fnmatchcase(name, p) for name in names))
    return next((f"excluded by {pattern!r}" for pattern in patterns), "")


def _may_drop(structure: Structure, group: str, settings: SpaceSettings) -> bool:
    """Whether a group is the inside of a droppable branch of which no layer is excluded."""
    branch = structure.branches.get(group)
    return branch is not None and not any(_excluded(structure, n, "weights", settings) for n in branch.layers)


def _execution_order(structure: Structure, options: dict[str, Options]) -> dict[str, Options]:
    place = {layer.name: index for index, layer in enumerate(structure.layers)}
    kinds = {"channels": 0, "rank": 1, "weights": 2}

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
                raise ConfigError(f"space.pin: {unit!r} does not offer {describe(choice)}")
            options[unit] = (choice,)


def _keep_options(
    group: ChannelGroup, devices: Sequence[Capabilities], settings: SpaceSettings
) -> tuple[list[Keep], list[tuple[str, str]]]:
    step = group.step
    for device in devices:
        # A channel of the group may be several of its layers, as a head is.
        step = math.lcm(step, device.channel_step // math.gcd(device.channel_step, group.inner))
    if group.size <= step:
        reason = f"{group.size * group.inner} channels are not more than one step of {step * group.inner}"
        return [], [("*", reason)]
    counts = {max(step, round(ratio * group.size / step) * step) for ratio in settings.keep if ratio < 1.0}
    counts = {count for count in counts if count < group.size}
    return [Keep(round(count / group.size, 6)) for count in sorted(counts, reverse=True)], []


def _weight_options(
    layer: Layer, devices: Sequence[Capabilities], settings: SpaceSettings
) -> tuple[list[Weights], list[tuple[str, str]]]:
    legal: list[Weights] = []
    refused: list[tuple[str, str]] = []
    for bits in settings.bits:
        for activations in (8, 32):
            choice = Weights(bits, activations)
            if activations == 8 and not layer.runs_in_integers:
                refused.append((describe(choice), NO_INTEGER_KERNEL.format(kind=layer.kind)))
                continue
            why = [
                f"{device.device}: {device.refused.get((bits, activations), 'no kernel for this format')}"
                for device in devices if (bits, activations) not in device.formats
            ]
            if not why:
                legal.append(choice)
            else:
                refused.append((describe(choice), "; ".join(why)))
    return legal, refused


def _rank_options(
    layer: Layer, devices: Sequence[Capabilities], settings: SpaceSettings
) -> tuple[list[Factorised], list[tuple[str, str]]]:
    step = 1
    for device in devices:
        step = math.lcm(step, device.rank_step)
    rows, columns = layer.sides(layer.shape)
    break_even = rows * columns / (rows + columns)
    ranks = {round(fraction * break_even / step) * step for fraction in settings.rank}
    ranks = {rank for rank in ranks if 0 < rank < break_even}   # always below full rank
    if not ranks:
        return [], [("*", f"no rank that is a multiple of {step} has fewer weights than the dense layer")]
    return [Factorised("svd", rank) for rank in sorted(ranks, reverse=True)], []
