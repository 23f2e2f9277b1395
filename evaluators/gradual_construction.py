"""The way to a policy in steps with training between them: what its last step is built from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from paretopress.compressors.distillation import DistillationSettings, distil
from paretopress.compressors.distillation_loss import output_loss
from paretopress.compressors.entries import Entries
from paretopress.compressors.gradual import gradual_units, in_dense_shapes, on_the_way, removed_blocks
from paretopress.compressors.lasso import trained_to_zero
from paretopress.compressors.network import Network, runner
from paretopress.compressors.program import Program
from paretopress.evaluators.batches import Batches
from paretopress.evaluators.construction import calibrated, stitched
from paretopress.spaces.choices import Keep
from paretopress.spaces.errors import PolicyError
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

Approach = Literal["one-shot", "iterative", "lasso"]
APPROACHES: tuple[Approach, ...] = ("one-shot", "iterative", "lasso")
ROUNDS = 4            # cuts of an iterative approach, the last one included
SAME = 1e-4           # relative error of outputs up to which zeros stand for removed channels
SAMPLES_COMPARED = 8


@dataclass(frozen=True)
class Gradual:
    """How a policy is approached.

    Attributes:
        approach: `"iterative"`: cut by cut with training between them; `"lasso"`: trained to zero before the cut.
        rounds: Cuts of `"iterative"`, the last one included, at least 2.
        training: How a network is trained in all; every cut, and each half of `"lasso"`, gets its share.
    """

    approach: Approach
    rounds: int
    training: DistillationSettings

    @property
    def shares(self) -> int:
        """In how many equal parts the training falls, the one behind the last cut included."""
        return self.rounds if self.approach == "iterative" else 2

    @property
    def share(self) -> DistillationSettings:
        """How each part is trained."""
        seconds = None if self.training.seconds is None else self.training.seconds / self.shares
        return replace(self.training, steps=max(1, self.training.steps // self.shares), seconds=seconds)


def approached(
    entries: Entries,
    policy: Policy,
    samples: Batches,
    inputs: Sequence[Tensor],
    gradual: Gradual,
    *,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Entries:
    """Go all of the way to a policy but the last cut.

    Formats, ranks, patterns `n:m`, dropped branches, and channels that a normalisation runs over come with the last
    cut alone.

    Args:
        entries: Of the dense model.
        policy: The end.
        samples: To calibrate on.
        inputs: To train on, as one batch, one tensor per model input.
        gradual: How.
        seed: Of everything that is drawn.
        progress: Called after every step of the training.

    Returns:
        Entries of a network in the shapes of the dense model, from which the policy is built like from the dense one.

    Raises:
        PolicyError: Nothing of the policy can be approached.
    """
    program = entries.program
    names = [unit.rpartition("/")[0] for unit, choice in policy if isinstance(choice, Keep) and choice.ratio > 0.0]
    units = gradual_units(program, policy, {name: stands_for_removal(entries, name) for name in names})
    if units.is_dense:
        raise PolicyError(
            f"schedule {gradual.approach!r}: the policy removes no channels or weights that steps could approach"
        )
    if gradual.approach == "lasso":
        base, gone = trained_to_zero(program, entries.calibration.base, units, inputs, gradual.share, seed=seed,
                                     progress=lambda *_: progress())
        return _on(entries, base, gone, samples, seed)
    current = entries
    for step in range(1, gradual.rounds):
        network, _ = stitched(current, on_the_way(units, step, gradual.rounds))
        found = distil(program, network, inputs, gradual.share, seed=seed + step, progress=lambda *_: progress())
        base = in_dense_shapes(program, found.network, current.calibration.base)
        current = _on(current, base, removed_blocks(program, network.selection), samples, seed)
    return current


def stands_for_removal(entries: Entries, group: str) -> bool:
    """Whether zeros in place of half of a group's channels compute what is left without them.

    Not where a normalisation runs over the channels: zeros are among what it takes the mean of.
    """
    program, calibration = entries.program, entries.calibration
    half = plan(program.structure, Policy.of({f"{group}/channels": Keep(0.5)}))
    network = Entries(program, calibration, "l2", compensate=False).stitch(half)
    zeros = in_dense_shapes(program, network, calibration.base)
    inputs = [tensor[:SAMPLES_COMPARED] if program.graph.dynamic_batch else tensor[: program.graph.batch]
              for tensor in calibration.inputs]
    small, large = (_outputs(program, one, inputs) for one in (network, zeros))
    return float(output_loss(small, large)) <= SAME


def _outputs(program: Program, network: Network, inputs: Sequence[Tensor]) -> list[object]:
    left = program.under(network.plan.structure)
    with torch.inference_mode():
        values = left.run(inputs, runner(program, network))
    return [values[name] for name in left.graph.outputs]


def _on(
    entries: Entries, base: Network, gone: dict[str, Tensor], samples: Batches, seed: int
) -> Entries:
    found = calibrated(entries.program, samples, entries.importance, seed=seed, ranges=entries.calibration.ranges,
                       base=base)
    return replace(found, gone=gone)
