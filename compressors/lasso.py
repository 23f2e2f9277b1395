"""Training with the lasso: weights, or the weights that read a channel, are driven to zero before they are removed.

A proximal step follows every step of the optimiser: each magnitude shrinks by the same amount, down to zero (the
L1 penalty of Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996; for channels the group lasso of Yuan
and Lin, 2006, as Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016, use it). Only the
smallest shrink, as many as are to go (the trimmed lasso of Bertsimas, Copenhaver and Mazumder, 2017): a penalty on all
takes from those that stay what they then lack. Which ones these are may change on the way. The strength is not asked
for: it is what brings the largest of them to zero in the time. Then the zeros stay and the rest is trained on.

Channels are zero where they are read, in every layer that reads them: that is what removing them means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from paretopress.compressors.augmentation import Augmenter
from paretopress.compressors.distillation import DistillationSettings, Student, train
from paretopress.compressors.network import Network, channels_along
from paretopress.compressors.program import Program
from paretopress.spaces.choices import Keep, Sparse
from paretopress.spaces.coupling import Axis, ChannelGroup
from paretopress.spaces.plan import plan
from paretopress.spaces.policy import Policy

SHRINKING = 0.6     # of the training, in which what is to go becomes zero
SMALLEST = 1e-12


@dataclass
class Shrunk(ABC):
    """What shrinks together: items of one kind, of which the smallest become zero.

    Attributes:
        zeros: How many are to be zero at the end.
        done: Fraction of the training at the last step.
        gone: Which are zero for good, bool `(items,)`; None while the penalty is at work.
    """

    zeros: int
    done: float = field(init=False, default=0.0)
    gone: Tensor | None = field(init=False, default=None)

    @abstractmethod
    def magnitudes(self) -> Tensor:
        """Magnitude of each item, `(items,)`."""

    @abstractmethod
    def multiply(self, factors: Tensor) -> None:
        """Multiply each item by its factor, in place."""

    @torch.no_grad()
    def shrink(self, done: float) -> None:
        """Take a proximal step.

        Args:
            done: Fraction of the training done.
        """
        if self.gone is None:
            magnitudes = self.magnitudes()
            smallest = torch.zeros(len(magnitudes), dtype=torch.bool)
            smallest[magnitudes.sort(stable=True).indices[: self.zeros]] = True
            if done < SHRINKING:
                share = (done - self.done) / (SHRINKING - self.done)
                amount = share * float(magnitudes[smallest].max()) if self.zeros else 0.0
                self.multiply(torch.where(smallest, 1.0 - amount / magnitudes.clamp_min(SMALLEST), 1.0).clamp_min(0.0))
                self.done = done
                return
            self.gone = smallest
        self.multiply((~self.gone).float())


@dataclass
class ShrunkWeights(Shrunk):
    """The weights of one layer, each on its own.

    Attributes:
        latent: The latent weight.
    """

    latent: Tensor = field(kw_only=True)

    def magnitudes(self) -> Tensor:
        """Magnitude of each weight, `(weights,)`."""
        return self.latent.detach().abs().flatten()

    def multiply(self, factors: Tensor) -> None:
        """Multiply each weight by its factor, in place."""
        self.latent.mul_(factors.reshape(self.latent.shape))


@dataclass
class ShrunkChannels(Shrunk):
    """The blocks of one group's channels, each all weights that read it.

    Attributes:
        latents: The latent weights of the layers that read the group, with the block of each position along
            their inputs, `(in,)`, -1 where it is another group's.
        blocks: How many there are.
    """

    latents: Sequence[tuple[Tensor, Tensor]] = field(kw_only=True)
    blocks: int = field(kw_only=True)

    def magnitudes(self) -> Tensor:
        """Root of the mean square of what reads each block, every layer counting alike, `(blocks,)`."""
        total = torch.zeros(self.blocks)
        for latent, block in self.latents:
            squares = latent.detach().square().transpose(0, 1).flatten(1).mean(dim=1)
            mine = block >= 0
            sums = torch.zeros(self.blocks).index_add_(0, block[mine], squares[mine])
            total += sums / squares[mine].mean().clamp_min(SMALLEST)
        return total.sqrt()

    def multiply(self, factors: Tensor) -> None:
        """Multiply what reads each block by its factor, in place."""
        for latent, block in self.latents:
            columns = torch.where(block >= 0, factors[block.clamp_min(0)], 1.0)
            latent.mul_(columns.reshape(1, -1, *(1,) * (latent.ndim - 2)))


def trained_to_zero(
    program: Program,
    base: Network,
    policy: Policy,
    inputs: Sequence[Tensor],
    settings: DistillationSettings,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Network, dict[str, Tensor]]:
    """Train a dense network until what a policy removes is zero.

    Args:
        program: The captured dense model, which is the teacher.
        base: The network to start from, in the shapes of the dense model.
        policy: Channels and weights to remove (`gradual.gradual_units`).
        inputs: Samples as one batch, one tensor per model input.
        settings: How it is trained.
        seed: Of the batches and the augmentation.
        progress: Called with steps done and in all.

    Returns:
        The trained network, and the blocks of every group that are zero.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        generator = torch.Generator().manual_seed(seed)
        augmenter = Augmenter([one.detach().clone() for one in inputs], settings.augmentation, generator)
        student = Student(program, _with_true_biases(program, base), settings)
        channels, weights = _shrunk(program, student, policy)

        def shrink(done: float) -> None:
            for one in (*channels.values(), *weights):
                one.shrink(done)

        def rate(done: float) -> float:
            left = 1.0 - max(0.0, done - SHRINKING) / (1.0 - SHRINKING)   # full until nothing is taken away any more
            return settings.learning_rate * min(1.0, left)

        train(student, augmenter, settings, progress, rate=rate, after=shrink)
        shrink(1.0)
        gone = {name: one.gone.nonzero().flatten() for name, one in channels.items() if one.gone is not None}
        return _with_all_biases(student.finished()), gone


def _with_true_biases(program: Program, base: Network) -> Network:
    """Without the zeros that stand for biases which the user's code has no place for: they must not be trained."""
    parts = dict(base.parts)
    for layer in program.structure.layers:
        if not layer.takes_bias:
            parts[layer.node] = tuple(replace(part, bias=None) for part in base.parts[layer.node])
    return replace(base, parts=parts)


def _with_all_biases(network: Network) -> Network:
    parts = {
        node: tuple(replace(part, bias=torch.zeros(len(part.weight))) if part.bias is None else part for part in own)
        for node, own in network.parts.items()
    }
    return replace(network, parts=parts)


def _shrunk(
    program: Program, student: Student, policy: Policy
) -> tuple[dict[str, ShrunkChannels], list[ShrunkWeights]]:
    """What a policy removes, on a student's latent weights."""
    kept = plan(program.structure, policy).kept
    channels: dict[str, ShrunkChannels] = {}
    weights: list[ShrunkWeights] = []
    for unit, choice in policy:
        name = unit.rpartition("/")[0]
        if isinstance(choice, Keep):
            group = program.structure.group(name)
            latents = _readers(program, student, group)
            blocks = group.size // group.step
            if latents:
                removed = blocks - kept[name] // group.step
                channels[name] = ShrunkChannels(removed, latents=latents, blocks=blocks)
        elif isinstance(choice, Sparse):
            (part,) = student.latents[program.structure.layer(name).node]
            count = part.weight.numel()
            weights.append(ShrunkWeights(count - round(choice.density * count), latent=part.weight))
    return channels, weights


def _readers(program: Program, student: Student, group: ChannelGroup) -> list[tuple[Tensor, Tensor]]:
    found = []
    for layer in program.structure.layers:
        axis = program.structure.weight_axes(layer)[1] if layer.node in student.latents else None
        blocks = blocks_along(axis, group)
        if blocks is not None:
            (part,) = student.latents[layer.node]
            found.append((part.weight, blocks))
    return found


def blocks_along(axis: Axis, group: ChannelGroup) -> Tensor | None:
    """The block of a group that each position along a dimension belongs to, -1 for none; None where none does.

    Args:
        axis: The dimension's axis.
        group: The group.
    """
    channels = channels_along(axis, {group.name: 0})
    return None if channels is None else channels // group.step   # -1 stays -1: it is rounded down
