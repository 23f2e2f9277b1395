"""The sensitivity table: the loss of every (unit, choice), measured by substitution, label-free.

Each entry is built with the same compensation that builds the final model, then one forward pass from
the layer it changes. Losses are made monotone: a stronger choice never looks better than a weaker one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from paretopress.compressors.entries import Entries
from paretopress.compressors.refit import settle
from paretopress.evaluators.divergence import divergence
from paretopress.spaces.choices import Choice, Factorised, Keep, Weights, choice_to_plain
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.space import Options, SearchSpace

WORST_LOSS = 1e6   # of a choice whose outputs are not finite: it stays comparable, and finite in files


@dataclass(frozen=True)
class SensitivityTable:
    """Losses in nats (or relative squared error) per unit, in the order of the unit's options.

    Attributes:
        losses: Unit to one loss per option; 0 for dense.
    """

    losses: Mapping[str, tuple[float, ...]]

    def to_plain(self, space: SearchSpace) -> dict[str, list[dict[str, object]]]:
        """Return the table as plain data: per unit its options with their losses."""
        return {
            unit: [
                {"choice": None if choice is None else choice_to_plain(choice), "loss": loss}
                for choice, loss in zip(space.options[unit], losses, strict=True)
            ]
            for unit, losses in self.losses.items()
        }


def measure_sensitivity(
    entries: Entries, space: SearchSpace, progress: Callable[[int, int], None] | None = None
) -> SensitivityTable:
    """Measure the loss of every choice of a space, one substitution each.

    Args:
        entries: Memoised compressed layers of the model.
        space: The choices.
        progress: Called with choices done and in all.
    """
    total = sum(1 for options in space.options.values() for choice in options if choice is not None)
    done = 0
    losses: dict[str, tuple[float, ...]] = {}
    for unit, options in space.options.items():
        row = []
        for choice in options:
            row.append(0.0 if choice is None else substitution_loss(entries, Policy.of({unit: choice})))
            done += choice is not None
            if progress and choice is not None:
                progress(done, total)
        losses[unit] = monotone(options, row)
    return SensitivityTable(_share_activation_noise(entries, space, losses))


def _share_activation_noise(
    entries: Entries, space: SearchSpace, losses: Mapping[str, tuple[float, ...]]
) -> dict[str, tuple[float, ...]]:
    """Scale the 8-bit losses so that they add up to the loss of all layers in 8 bits at once.

    Neighbouring layers share the tensors between them, so that single substitutions count the noise of
    every quantised tensor twice or more. What a narrower weight loses on top of 8 bits stays as it is.
    """
    integer = {unit: Weights(8) for unit, options in space.options.items() if Weights(8) in options}
    alone = sum(losses[unit][space.options[unit].index(choice)] for unit, choice in integer.items())
    if len(integer) < 2 or alone <= 0.0:
        return dict(losses)
    factor = min(1.0, substitution_loss(entries, Policy.of(integer)) / alone)
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
    program, calibration = entries.program, entries.calibration
    _, values = settle(entries, plan(program.structure, policy))
    dense = [calibration.values[name] for name in program.graph.outputs]
    return min(WORST_LOSS, divergence(dense, [values[name] for name in program.graph.outputs]))


def strength(choice: Choice | None) -> tuple[float, ...]:
    """How strongly a choice compresses; choices are comparable where all entries are ordered alike."""
    match choice:
        case None:
            return (0.0, 0.0)
        case Keep(ratio):
            return (1.0 - ratio, 0.0)
        case Factorised(_, rank):
            return (1.0 / rank, 0.0)
        case Weights(bits, activations):
            return (32.0 - bits, 32.0 - activations)


def monotone(options: Options, losses: list[float]) -> tuple[float, ...]:
    """Raise each loss to the largest loss of any choice that is no stronger in every respect."""
    strengths = [strength(choice) for choice in options]
    repaired = []
    for own in strengths:
        weaker = [
            loss for other, loss in zip(strengths, losses, strict=True)
            if all(a <= b for a, b in zip(other, own, strict=True))
        ]
        repaired.append(max(weaker))
    return tuple(repaired)
