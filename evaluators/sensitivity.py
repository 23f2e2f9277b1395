"""The sensitivity table: the loss of every (unit, choice), measured by substitution, label-free.

Each cell is built with the same compensation that builds the final model, then one forward pass from the
layer it changes. Losses are made monotone: a stronger choice never looks better than a weaker one. Where
time is short the cells come in an order that serves estimates: first the middle of every family of choices,
then its ends, then what lies between.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paretopress.compressors.entries import Entries
from paretopress.evaluators.construction import stitched
from paretopress.spaces.choice_families import kind_of
from paretopress.spaces.choices import (
    Binary,
    Choice,
    Clustered,
    Factorised,
    Half,
    Keep,
    Sparse,
    Weights,
    choice_to_plain,
)
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import Options, SearchSpace

WORST_LOSS = 1e6   # of a choice whose outputs are not finite: it stays comparable, and finite in files
SMALLEST_LOSS = 1e-9
# A small change of weights changes the output in proportion, and the divergence with its square.
USUAL_EXPONENT = 2.0

Cell = tuple[str, int]


@dataclass(frozen=True)
class SensitivityTable:
    """Losses in nats (or relative squared error) per unit, in the order of the unit's options.

    Attributes:
        losses: Unit to one loss per option; 0 for dense.
        estimated: Cells (unit, option) that were not measured but estimated from their neighbours.
    """

    losses: Mapping[str, tuple[float, ...]]
    estimated: frozenset[Cell] = field(default=frozenset())

    def to_plain(self, space: SearchSpace) -> dict[str, list[dict[str, object]]]:
        """Return the table as plain data: per unit its options with their losses."""
        return {
            unit: [self._cell(unit, index, space.options[unit][index]) for index in range(len(losses))]
            for unit, losses in self.losses.items()
        }

    def _cell(self, unit: str, index: int, choice: Choice | None) -> dict[str, object]:
        plain: dict[str, object] = {
            "choice": None if choice is None else choice_to_plain(choice), "loss": self.losses[unit][index],
        }
        return {**plain, "estimated": True} if (unit, index) in self.estimated else plain


def cells_in_order(space: SearchSpace) -> list[Cell]:
    """All cells that are not dense, those first that say most about the others.

    Of every unit the middle of each family of choices (`kind_of`) comes first, then the ends, then the
    middles of what is left.
    """
    ranked: list[tuple[int, int, Cell]] = []
    for place, (unit, options) in enumerate(space.options.items()):
        for members in _families(options).values():
            levels = _levels(len(members))
            ranked += [(level, place, (unit, index)) for level, index in zip(levels, members, strict=True)]
    return [cell for _, _, cell in sorted(ranked)]


def first_cells(space: SearchSpace) -> int:
    """How many cells at the head of `cells_in_order` every estimate needs: one of each family."""
    return sum(len(_families(options)) for options in space.options.values())


def _families(options: Options) -> dict[tuple[str, ...], list[int]]:
    """Indices of a unit's options by family, in order of strength."""
    families: dict[tuple[str, ...], list[int]] = {}
    for index, choice in enumerate(options):
        if choice is not None:
            families.setdefault(kind_of(choice), []).append(index)
    return {kind: sorted(members, key=lambda index: amount(options[index])) for kind, members in families.items()}


def _levels(count: int) -> list[int]:
    """Per member of an ordered family when it is measured: 0 the middle, 1 the ends, then by halving."""
    levels = [-1] * count
    levels[count // 2] = 0
    for end in (0, count - 1):
        levels[end] = max(levels[end], 1) if levels[end] != 0 else 0
    level = 2
    while -1 in levels:
        known = [index for index, value in enumerate(levels) if value >= 0]
        for left, right in itertools.pairwise(known):
            if right - left > 1:
                levels[(left + right) // 2] = level
        level += 1
    return levels


def amount(choice: Choice | None) -> float:
    """How much of a layer a choice takes away or perturbs, > 0: the base of the power law of its family."""
    match choice:
        case None:
            return 0.0
        case Keep(ratio):
            return 1.0 - ratio
        case Factorised(_, rank):
            return 1.0 / rank
        case Sparse(density):
            return 1.0 - density
        case Weights(bits) | Clustered(bits):
            return float(2.0**-bits)
        case Half(kind):
            return 2.0**-11 if kind == "fp16" else 2.0**-8
        case Binary(bases):
            return float(2.0**-bases)


def assemble(space: SearchSpace, measured: Mapping[Cell, float], together: float | None) -> SensitivityTable:
    """Make a table of measured cells: estimate the others, repair the order, share the noise of activations.

    Args:
        space: The choices.
        measured: Losses by cell; at least one of every family of a unit.
        together: The loss of all layers in 8 bits at once, None where the space has no such choices.
    """
    losses: dict[str, tuple[float, ...]] = {}
    estimated: set[Cell] = set()
    for unit, options in space.options.items():
        row = [0.0] * len(options)
        for members in _families(options).values():
            known = [index for index in members if (unit, index) in measured]
            for index in members:
                if (unit, index) in measured:
                    row[index] = measured[unit, index]
                else:
                    points = [(amount(options[other]), measured[unit, other]) for other in known]
                    row[index] = power_law(points, amount(options[index]))
                    estimated.add((unit, index))
        losses[unit] = monotone(options, row)
    shared = _share_activation_noise(space, losses, together)
    repaired = {unit: monotone(options, list(shared[unit])) for unit, options in space.options.items()}
    return SensitivityTable(repaired, frozenset(estimated))


def power_law(points: Sequence[tuple[float, float]], at: float) -> float:
    """Estimate a loss between, or beyond, measured ones: linear in the logarithms of amount and loss.

    Args:
        points: (amount, loss), amounts > 0 and rising; one point takes the usual exponent 2.
        at: The amount to estimate the loss of.
    """
    if not points:
        return WORST_LOSS
    logs = [(math.log(x), math.log(max(y, SMALLEST_LOSS))) for x, y in points]
    wanted = math.log(at)
    if len(logs) == 1:
        (x, y), slope = logs[0], USUAL_EXPONENT
    else:
        right = next((index for index, (x, _) in enumerate(logs) if x >= wanted), len(logs) - 1)
        (x, y), (later_x, later_y) = logs[max(right, 1) - 1], logs[max(right, 1)]
        slope = (later_y - y) / (later_x - x)
    return min(WORST_LOSS, math.exp(min(y + slope * (wanted - x), math.log(WORST_LOSS))))


def integer_choices(space: SearchSpace) -> dict[str, Choice]:
    """8 bits for every unit that may have them, empty where fewer than two may."""
    found: dict[str, Choice] = {unit: Weights(8) for unit, options in space.options.items() if Weights(8) in options}
    return found if len(found) > 1 else {}


def _share_activation_noise(
    space: SearchSpace, losses: Mapping[str, tuple[float, ...]], together: float | None
) -> dict[str, tuple[float, ...]]:
    """Scale the 8-bit losses so that they add up to the loss of all layers in 8 bits at once.

    Neighbouring layers share the tensors between them, so that single substitutions count the noise of
    every quantised tensor twice or more. What a narrower weight loses on top of 8 bits stays as it is.
    """
    integer = integer_choices(space)
    alone = sum(losses[unit][space.options[unit].index(choice)] for unit, choice in integer.items())
    if together is None or alone <= 0.0:
        return dict(losses)
    factor = min(1.0, together / alone)
    shared = dict(losses)
    for unit in integer:
        options = space.options[unit]
        base = losses[unit][options.index(Weights(8))]
        saved = base * (1.0 - factor)
        shared[unit] = tuple(
            loss - saved if isinstance(choice, Weights) and choice.activations == 8 else loss
            for choice, loss in zip(options, losses[unit], strict=True)
        )
    return shared


def substitution_loss(entries: Entries, policy: Policy) -> float:
    """The divergence of the model under a policy, on the calibration's tuning samples."""
    return min(WORST_LOSS, stitched(entries, policy)[1])


def is_weaker(one: Choice | None, other: Choice | None) -> bool:
    """Whether a choice compresses no more than another in every respect; only choices of one kind can be compared."""
    match one, other:
        case None, _:
            return True
        case Keep(ratio), Keep(least):
            # A branch that is dropped whole is compensated by other layers than one that is thinned out.
            return ratio >= least if ratio > 0.0 and least > 0.0 else ratio == least
        case Weights(bits, activations, scheme, group), Weights(fewest, least, other_scheme, other_group):
            return (scheme, group) == (other_scheme, other_group) and bits >= fewest and activations >= least
        case _:
            assert one is not None
            return other is not None and kind_of(one) == kind_of(other) and amount(one) <= amount(other)


def monotone(options: Options, losses: list[float]) -> tuple[float, ...]:
    """Raise each loss to the largest loss of any choice that is no stronger in every respect."""
    return tuple(
        max(loss for other, loss in zip(options, losses, strict=True) if is_weaker(other, own)) for own in options
    )
