"""One method for the whole model: every unit that can have it gets its choice, and each of the others has a reason.

A level is one value for all units, or a mapping of globs of layer and group names to values; a name goes before a
glob, a later glob before an earlier one, and None leaves dense what it matches.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from paretopress.spaces.choices import (
    ACTIVATIONS,
    DYNAMIC,
    STATIC,
    WEIGHT_BITS,
    Binary,
    Choice,
    Clustered,
    Factorised,
    Half,
    Keep,
    Sparse,
    WeightFormat,
    Weights,
    activation_bits,
    describe,
)
from paretopress.spaces.errors import ConfigError, PolicyError, nearest
from paretopress.spaces.factor_forms import break_even, why_not_factorised
from paretopress.spaces.layer_formats import in_floats, why_not_such_activations
from paretopress.spaces.layers import Layer
from paretopress.spaces.left_dense import left_dense
from paretopress.spaces.legality import keep_choices, rank_choices
from paretopress.spaces.policy import Policy
from paretopress.spaces.stored_weights import stored_size, value_bits
from paretopress.spaces.structure import Structure

END_BITS = 8

Value = TypeVar("Value", int, float, str, "int | float", "float | str")
Reasons = tuple[tuple[str, str], ...]
Offer = tuple[Choice | None, str]
"""The choice of a unit, None where it stays dense; and why, or why the choice is not the one that was asked for."""


@dataclass(frozen=True)
class Assignment:
    """What a method decides.

    Attributes:
        policy: The choices.
        left_dense: `(unit, reason)` of every unit of the method's kind without one.
        adjusted: `(unit, reason)` of every unit whose choice is not the one that was asked for.
    """

    policy: Policy
    left_dense: Reasons = ()
    adjusted: Reasons = ()


@dataclass(frozen=True)
class Method:
    """A method and its level, its values known to be ones that it takes.

    Attributes:
        name: What it is called in messages.
        kind: Kind of the units that it decides about.
        levels: Glob to value; a level for all units stands under `"*"`.
        offer: From the structure, a unit's subject and a value to the choice.
        for_all: Whether one value is for all units: those that cannot have it stay dense then. Of those that a
            mapping names, at least one of each glob must be able to have it.
    """

    name: str
    kind: str
    levels: Mapping[str, object]
    offer: Callable[[Structure, str, object], Offer]
    for_all: bool

    def assign(self, structure: Structure, exclude: Sequence[str] = ()) -> Assignment:
        """Decide about every unit of the model.

        Args:
            structure: The model.
            exclude: Globs of layers and groups that stay dense; a group goes with any layer that makes its channels.

        Raises:
            ConfigError: A glob matches nothing; the message names the nearest.
            PolicyError: None of what a glob names can have its value; the message has the first reason.
        """
        subjects = {unit.rpartition("/")[0]: unit for unit in structure.units if unit.endswith(f"/{self.kind}")}
        names = {subject: self._names(structure, subject) for subject in subjects}
        for where, globs in ((self.name, self.levels), ("exclude", exclude)):
            _refuse_strangers(where, globs, names.values())
        choices: dict[str, Choice] = {}
        dense: dict[str, str] = {}
        adjusted: dict[str, str] = {}
        for subject, unit in subjects.items():
            choice, reason = self._decide(structure, subject, unit, names[subject], exclude)
            if choice is not None:
                choices[unit] = choice
            if reason:
                (dense if choice is None else adjusted)[unit] = reason
        if not self.for_all:
            self._refuse_impossible(names, subjects, choices, dense)
        if self.kind != "channels":
            dense |= {unit: reason for unit, _, reason in left_dense(structure)}
        return Assignment(Policy.of(choices), tuple(dense.items()), tuple(adjusted.items()))

    def _names(self, structure: Structure, subject: str) -> tuple[str, ...]:
        return (subject, *structure.group(subject).producers) if self.kind == "channels" else (subject,)

    def _decide(
        self, structure: Structure, subject: str, unit: str, names: Sequence[str], exclude: Sequence[str]
    ) -> Offer:
        glob = next((one for one in exclude if _matches(one, names)), None)
        if glob is not None:
            return None, f"excluded by {glob!r}"
        glob = _glob_of(self.levels, names)
        if glob is None:
            return None, f"{self.name} does not name it"
        if self.levels[glob] is None:
            return None, f"{self.name} leaves {glob!r} dense"
        if structure.units[unit]:
            return None, structure.units[unit]
        return self.offer(structure, subject, self.levels[glob])

    def _refuse_impossible(
        self, names: Mapping[str, Sequence[str]], subjects: Mapping[str, str], choices: Mapping[str, Choice],
        dense: Mapping[str, str],
    ) -> None:
        for glob, value in self.levels.items():
            units = [subjects[subject] for subject, own in names.items() if _glob_of(self.levels, own) == glob]
            if value is not None and units and not any(unit in choices for unit in units):
                raise PolicyError(f"{self.name}: unit {units[0]!r}: {dense[units[0]]}")


def pruning(ratio: float | Mapping[str, float | None]) -> Method:
    """Really remove channels: keep `ratio` of every group, in (0, 1); of a mapping 0 drops a residual branch.

    Raises:
        ConfigError: Not a ratio.
    """
    levels, for_all = _levels(ratio, "ratio")
    for glob, value in levels.items():
        if value is None:
            continue
        number = _number("ratio", value)
        if not (0.0 < number < 1.0 or (number == 0.0 and not for_all)):
            keeps = " (it keeps no channel)" if number == 0.0 else ""
            raise ConfigError(f"prune: ratio{_of(glob, for_all)} {value!r}{keeps} is outside (0, 1): it is the "
                              "fraction of the channels that is kept")

    def offer(structure: Structure, subject: str, value: object) -> Offer:
        kept = float(value)  # type: ignore[arg-type]
        group = structure.group(subject)
        if kept == 0.0:
            if subject in structure.branches:
                return Keep(0.0), ""
            return None, "only channels inside a residual branch that can be dropped may go whole"
        found, refused = keep_choices(group, (), (kept,))
        return (found[0] if found else None), "; ".join(why for _, why in refused)

    return Method("prune", "channels", levels, offer, for_all)


def factorisation(rank: int | float | Mapping[str, int | float | None], kind: str = "svd") -> Method:
    """Smaller layers: a whole number is a rank, a fraction in (0, 1) one of the rank that just would not pay.

    Raises:
        ConfigError: Neither.
        PolicyError: A kind of factors that there is not.
    """
    levels, for_all = _levels(rank, "rank")
    Factorised(kind, 1)   # refuses an unknown kind
    for glob, value in levels.items():
        if value is None:
            continue
        number = _number("rank", value)
        if isinstance(value, int):
            Factorised(kind, value)
        elif not 0.0 < number < 1.0:
            raise ConfigError(f"factorize: rank{_of(glob, for_all)} {value!r} is neither a whole number from 1 nor a "
                              "fraction in (0, 1) of the break-even rank")

    def offer(structure: Structure, subject: str, value: object) -> Offer:
        layer = structure.layer(subject)
        if reason := why_not_factorised(layer, kind):
            return None, reason
        even = break_even(kind, layer)
        share = value / even if isinstance(value, int) else float(value)  # type: ignore[arg-type]
        found, _ = rank_choices(layer, (), (share,), (kind,))
        if found:
            return found[0], ""
        if isinstance(value, int):
            return None, f"rank {value} is not below the break-even rank {even:.3g}: it has no fewer weights"
        return None, f"{value:g} of its break-even rank {even:.3g} rounds to none that pays"

    return Method("factorize", "rank", levels, offer, for_all)


def sparsification(density: float | str | Mapping[str, float | str | None]) -> Method:
    """Store a part of the weights: a density, `"2:4"` or `"0.25 in 4x1"`. Raises `PolicyError` for anything else."""
    levels, for_all = _levels(density, "density")
    choices = {value: Sparse.of(value) if isinstance(value, str) else Sparse(_number("density", value))
               for value in levels.values() if value is not None}

    def offer(structure: Structure, subject: str, value: object) -> Offer:
        return _if_smaller(structure.layer(subject), None, choices[value])

    return Method("sparsify", "sparsity", levels, offer, for_all)


def quantisation(
    bits: int | Mapping[str, int | None], activations: int | str = 8, end_bits: int = END_BITS,
    scheme: str = "symmetric", group: int = 0,
) -> Method:
    """Integers of 8, 4, 3 or 2 bits, in floats where a layer cannot have such activations.

    Raises:
        PolicyError: Other bits, or activations that are neither offered bits nor `"dynamic"`.
    """
    width: int | str = 8 if activations == DYNAMIC else activations
    if not isinstance(width, int) or isinstance(width, bool) or width not in ACTIVATIONS:
        allowed = ", ".join(map(str, ACTIVATIONS))
        shown = f"{width} activation bits are" if isinstance(width, int) else f"activations {width!r} are"
        raise PolicyError(f"{shown} not offered (allowed: {allowed}, {DYNAMIC!r})")
    ranges = DYNAMIC if activations == DYNAMIC else STATIC
    return _formats("quantize", bits, "bits", lambda value: Weights(value, width, scheme, group, ranges), end_bits)


def clustering(bits: int | Mapping[str, int | None], end_bits: int = END_BITS) -> Method:
    """Shared weights with indices of 2 to 8 bits. Raises `PolicyError` for others."""
    return _formats("cluster", bits, "bits", Clustered, end_bits)


def binarisation(
    bases: int | Mapping[str, int | None], activations: int = 32, end_bits: int = END_BITS
) -> Method:
    """Signs with 1 to 3 bases. Raises `PolicyError` for others."""
    return _formats("binarize", bases, "bases", lambda value: Binary(value, activations), end_bits)


def halving(kind: str | Mapping[str, str | None]) -> Method:
    """16-bit floats, `"fp16"` or `"bf16"`. Raises `PolicyError` for others."""
    return _formats("halve", kind, "kind", Half, END_BITS)


def _formats(
    name: str, level: Value | Mapping[str, Value | None], what: str, make: Callable[..., WeightFormat], end_bits: int
) -> Method:
    if end_bits not in WEIGHT_BITS:
        raise ConfigError(f"{name}: end_bits {end_bits!r} is not offered (allowed: 2, 3, 4, 8; 2 for no difference)")
    levels, for_all = _levels(level, what)
    wanted = {value: _read(name, what, make, value) for value in levels.values() if value is not None}

    def offer(structure: Structure, subject: str, value: object) -> Offer:
        named = subject in levels   # a layer's own name goes before what holds for the ends
        return _format_of(structure, structure.layer(subject), wanted[value], 2 if named else end_bits)

    return Method(name, "weights", levels, offer, for_all)


def _read(name: str, what: str, make: Callable[..., WeightFormat], value: object) -> WeightFormat:
    if isinstance(value, bool) or not isinstance(value, str if what == "kind" else int):
        raise ConfigError(f"{name}: {what} {value!r} is not {'a name' if what == 'kind' else 'a whole number'}")
    return make(value)


def _format_of(structure: Structure, layer: Layer, form: WeightFormat, end_bits: int) -> Offer:
    """A format as a layer can have it: wider at the ends of the model, in floats where there is no integer kernel."""
    reasons: list[str] = []
    if isinstance(form, Binary) and layer.why_no_signs:
        return None, layer.why_no_signs
    end = structure.ends.get(layer.name, "")
    if end and (wider := _at_an_end(form, end_bits)) != form:
        form = wider
        reasons.append(f"{describe(form)}: the {end} layer keeps at least {end_bits} bits (end_bits)")
    if isinstance(form, Weights | Binary) and (reason := why_not_such_activations(layer, form)):
        form = in_floats(form)
        reasons.append(reason)
    choice, why_not = _if_smaller(layer, form, None)
    return choice, why_not or "; ".join(reasons)


def _at_an_end(form: WeightFormat, end_bits: int) -> WeightFormat:
    """A format as the first or the last layer has it: integers where it has too few bits, and no narrower an input."""
    if isinstance(form, Weights) and min(form.bits, form.activations) < end_bits:
        activations = 8 if form.activations < end_bits else form.activations
        return Weights(max(form.bits, end_bits), activations, ranges=form.ranges)
    if isinstance(form, Weights) or value_bits(form) >= end_bits:
        return form
    return Weights(end_bits, activation_bits(form))


def _if_smaller(layer: Layer, form: WeightFormat | None, sparse: Sparse | None) -> Offer:
    """The choice where it stores fewer bytes than the dense weight."""
    before, after = stored_size(None, None, layer.shape), stored_size(form, sparse, layer.shape)
    if after >= before:
        return None, f"it would store {after:,} bytes, no fewer than the {before:,} of its floats"
    return form or sparse, ""


def _levels(level: object, what: str) -> tuple[dict[str, object], bool]:
    """Glob to value, and whether one value is for all."""
    if not isinstance(level, Mapping):
        if level is None:
            raise ConfigError(f"{what}: None is no value")
        return {"*": level}, True
    if not level:
        raise ConfigError(f"{what}: the mapping of layers to values is empty")
    return {str(glob): value for glob, value in level.items()}, False


def _of(glob: str, for_all: bool) -> str:
    return "" if for_all else f" of {glob!r}"


def _number(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{what} {value!r} is not a number")
    return float(value)


def _matches(glob: str, names: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in names)


def _glob_of(levels: Mapping[str, object], names: Sequence[str]) -> str | None:
    """The glob that decides about what has these names: one of them itself, else the last that matches."""
    exact = (name for name in names if name in levels)
    return next(exact, next((glob for glob in reversed(list(levels)) if _matches(glob, names)), None))


def _refuse_strangers(where: str, globs: Iterable[str], names: Iterable[Sequence[str]]) -> None:
    known = dict.fromkeys(name for own in names for name in own)
    for glob in globs:
        if glob != "*" and not _matches(glob, known):
            close = nearest(glob, known)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{where}: {glob!r} matches no layer or channel group that it could change{hint}")
