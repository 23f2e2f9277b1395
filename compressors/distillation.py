"""Distillation: a finalist's weights are trained against the outputs of the dense model, without labels.

Closed-form compensation solves one layer at a time for the values of its own outputs. Training solves all of them
at once for the outputs of the model (Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015),
through the rounding of weights and activations (straight-through). The dense model labels whatever it is shown,
so that a few hundred calibration samples give as many training inputs as augmentation makes of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.utils import _pytree as pytree

from paretopress.compressors.augmentation import Augmenter
from paretopress.compressors.block_reconstruction import reconstruct
from paretopress.compressors.calibration import base_network
from paretopress.compressors.compressed_model import run_batches
from paretopress.compressors.distillation_latents import (
    LatentPart,
    channels_last,
    latent_parts,
    outside_inference,
    quantise_activation,
)
from paretopress.compressors.distillation_loss import output_loss, relative_error, variance
from paretopress.compressors.distillation_optimiser import Optimiser
from paretopress.compressors.distillation_schedule import relative_step, schedule
from paretopress.compressors.distillation_settings import DistillationSettings
from paretopress.compressors.goals import layer_goals
from paretopress.compressors.network import Network, Part, apply_parts, runner, select
from paretopress.compressors.program import Program, Values
from paretopress.compressors.tuning import with_integer_biases
from paretopress.spaces.plan import LayerPlan

__all__ = [
    "DistillationSettings", "Distilled", "Student", "computes_in_bfloat16", "distil", "output_divergence", "train",
]

BLOCK_SAMPLES = 2048   # variations that blocks are trained on, again and again
TIMED_SIZE, TIMED_PRODUCTS = 384, 8   # of the products that tell which type is faster
COMPARED = 256   # variations of the samples that were held out, which before and after are compared on


@dataclass(frozen=True)
class Distilled:
    """What came of a distillation.

    Attributes:
        network: The trained network, or the one before where training did not bring it nearer to the dense model.
        before: Divergence from the dense model before, on varied samples that were held out: larger than on
            samples as they are.
        after: Divergence of `network` on them.
    """

    network: Network
    before: float
    after: float


def distil(
    program: Program,
    network: Network,
    inputs: Sequence[Tensor],
    settings: DistillationSettings | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Distilled:
    """Train a network's weights and biases against the dense model.

    The scales of integers, shared values and signs are trained with them. Everything else stays: the plan, ranges of
    activations, codebooks and kept channels, and layers that are frozen. With the same seed and one thread the result
    is the same, unless `settings.seconds` cuts it short.

    Args:
        program: The captured dense model, the teacher.
        network: A finished network of any plan; it is not changed.
        inputs: Samples as one batch, one tensor per model input.
        settings: How; defaults where not given.
        seed: Seed of the split, the batches and the augmentation.
        progress: Called with steps done and in all.

    Returns:
        The network, with its divergence on variations of the samples that were held out before and after.
    """
    settings = settings or DistillationSettings()
    if network.plan.policy.is_dense:   # realised as a copy of the user's own model
        return Distilled(network, 0.0, 0.0)
    with torch.inference_mode(mode=False), torch.enable_grad():
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(inputs[0]), generator=generator)
        count = max(1, round(settings.held_out * len(order)))
        held_out, training = ([tensor[rows] for tensor in inputs] for rows in (order[:count], order[count:]))
        # The refit has seen these samples themselves: variations of them are as new to it as to the training.
        held_out = list(Augmenter(held_out, settings.augmentation, generator).batch(max(count, COMPARED)))
        before = output_divergence(program, network, held_out)
        if not len(training[0]):
            return Distilled(network, before, before)
        augmenter = Augmenter(training, settings.augmentation, generator)
        trained = trained_network(program, network, augmenter, settings, progress)
        if trained is network:
            return Distilled(network, before, before)
        after = output_divergence(program, trained, held_out)
    return Distilled(trained, before, after) if after < before else Distilled(network, before, before)


def trained_network(
    program: Program,
    network: Network,
    augmenter: Augmenter,
    settings: DistillationSettings,
    progress: Callable[[int, int], None] | None = None,
) -> Network:
    """Train block by block, then all layers together, as the settings divide the time; untrained it is the same."""
    if settings.seconds is not None and settings.seconds <= 0.0:
        return network
    if settings.blocks:
        size, total, report = batch_size(program, augmenter, settings), settings.steps, progress
        steps = round(settings.blocks * total)
        batches = [augmenter.batch(size) for _ in range(max(2, -(-BLOCK_SAMPLES // size)))]
        network = reconstruct(
            program, network, batches, steps=steps, learning_rate=settings.learning_rate,
            seconds=None if settings.seconds is None else settings.blocks * settings.seconds,
            progress=None if report is None else lambda done: report(done, total))
        if steps == total:
            return network
        seconds = None if settings.seconds is None else (1.0 - settings.blocks) * settings.seconds
        settings = replace(settings, steps=total - steps, seconds=seconds, blocks=0.0)
        progress = None if report is None else lambda done, _: report(steps + done, total)
    student = Student(program, network, settings)
    return student.finished() if student.trained and train(student, augmenter, settings, progress) else network


class Student:
    """A network in training: latent tensors, and how the captured graph runs on them."""

    def __init__(self, program: Program, network: Network, settings: DistillationSettings) -> None:
        self.program, self.settings = program.under(network.plan.structure), settings
        self.bfloat16 = settings.bfloat16 and computes_in_bfloat16()
        self.network = outside_inference(network)
        self.latents = latent_parts(self.network)
        self.trained = [tensor for parts in self.latents.values() for part in parts for tensor in part.trained()]
        self.features = feature_nodes(program, network, settings.narrowed) if settings.features else ()
        # Of an equalised student the teacher is equalised as well: their values are compared inside the model too.
        teacher = base_network(program, equalise=network.equalised > 0)
        self.teacher_program, self.teacher = program, _with_channels_last(teacher)
        self.variances: dict[str, Tensor] = {}

    def with_parts(self, make: Callable[[LatentPart], Part]) -> Network:
        """The network with its trained parts made of the latent ones."""
        parts = {node: tuple(make(part) for part in parts) for node, parts in self.latents.items()}
        return replace(self.network, parts={**self.network.parts, **parts})

    def finished(self) -> Network:
        """The network to store."""
        return with_integer_biases(self.with_parts(LatentPart.finished))

    def distance(self, inputs: Sequence[Tensor]) -> float:
        """Relative squared error of the layers' outputs, their mean, or of the model's where that is more."""
        with torch.no_grad():
            wanted, found = self._values(inputs)
            pairs = zip(self.teacher_program.graph.outputs, self.program.graph.outputs, strict=True)
            errors = [float(relative_error(wanted[one], found[other])) for one, other in pairs
                      if isinstance(wanted[one], Tensor) and wanted[one].is_floating_point()]
            return max([*errors, float(self._feature_loss(wanted, found)) if self.features else 0.0])

    def loss(self, inputs: Sequence[Tensor]) -> Tensor:
        """Loss of the current weights on a mini-batch."""
        wanted, found = self._values(inputs)
        loss = output_loss(
            [wanted[name] for name in self.teacher_program.graph.outputs],
            [found[name] for name in self.program.graph.outputs], self.settings.temperature,
        )
        return loss + self.settings.features * self._feature_loss(wanted, found) if self.features else loss

    def _values(self, inputs: Sequence[Tensor]) -> tuple[Values, Values]:
        """Outputs of the model and of the layers that are compared: the teacher's and the student's."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            wanted, found = self._run(frozenset(self.features), [channels_last(tensor) for tensor in inputs])
        if self.bfloat16:
            wanted, found = ({name: in_32_bits(value) for name, value in one.items()} for one in (wanted, found))
        return wanted, found

    def _run(self, keep: frozenset[str], inputs: Sequence[Tensor]) -> tuple[Values, Values]:
        with torch.no_grad():
            wanted = self.teacher_program.run(inputs, runner(self.teacher_program, self.teacher), keep=keep)
        network = self.with_parts(LatentPart.current)
        arithmetic = network.plan.arithmetic

        def quantise(tensor: str, value: Tensor) -> Tensor:
            return quantise_activation(value.float(), *network.ranges[arithmetic.range_of(tensor)])

        def apply(layer: LayerPlan, x: Tensor, _: Values) -> Tensor:
            return apply_parts(network, layer, x, quantise)

        run = runner(self.program, network, apply=apply, quantise=quantise)
        return wanted, self.program.run(inputs, run, keep=keep)

    def _feature_loss(self, wanted: Values, found: Values) -> Tensor:
        network, total = self.network, torch.zeros(())
        for name in self.features:
            axes = network.plan.structure.coupling.values.get(name) or (None,) * found[name].ndim
            target = channels_last(select(wanted[name], axes, network.selection))
            if name not in self.variances:
                self.variances[name] = variance(target)
            total = total + mse_loss(found[name], target) / self.variances[name]
        return total / len(self.features)


@cache
def computes_in_bfloat16() -> bool:
    """Whether products in bfloat16 are faster than in 32 bits on this CPU.

    That takes instructions for them, and not every CPU that has them gains: some take twice as long.
    """
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    wide, narrow = (_product_seconds(torch.ones(TIMED_SIZE, TIMED_SIZE, dtype=kind))
                    for kind in (torch.float32, torch.bfloat16))
    return narrow < wide


@torch.no_grad()
def _product_seconds(matrix: Tensor) -> float:
    """The shortest time that the product of a matrix with itself takes."""
    times = []
    for _ in range(TIMED_PRODUCTS):
        begin = time.perf_counter()
        torch.mm(matrix, matrix)
        times.append(time.perf_counter() - begin)
    return min(times)


def in_32_bits(value: Any) -> Any:  # noqa: ANN401 - whatever a node of the graph computes
    """A tensor of 16-bit floats as 32-bit floats, anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def feature_nodes(program: Program, network: Network, narrowed: bool = True) -> tuple[str, ...]:
    """Outputs of the layers' kernels that mean the same in the dense model, model outputs excepted.

    A layer that stands in for a dropped branch has another output than in the dense model. Layers that lost outputs
    count only if `narrowed`.
    """
    structure = network.plan.structure
    goals = layer_goals(program.graph, structure)
    standing_in = {node for node, goal in goals.items() if goal.stands_in}
    outputs = set(program.graph.outputs)
    kernels = {kernel.main: kernel.output for kernel in structure.fusion.kernels}
    nodes = (
        kernels[layer.layer.node] for layer in network.plan.layers
        if layer.layer.node in kernels and layer.layer.node not in standing_in
        and (narrowed or layer.shape[0] == layer.layer.shape[0])
    )
    return tuple(dict.fromkeys(name for name in nodes if name not in outputs and name in program.graph.by_name))


def _with_channels_last(network: Network) -> Network:
    parts = {node: tuple(replace(part, weight=channels_last(part.weight)) for part in parts)
             for node, parts in network.parts.items()}
    return replace(network, parts=parts)


def train(
    student: Student,
    augmenter: Augmenter,
    settings: DistillationSettings,
    progress: Callable[[int, int], None] | None = None,
    *,
    rate: Callable[[float], float] | None = None,
    after: Callable[[float], None] | None = None,
) -> int:
    """Run the schedule and return the steps taken; a loss that is not finite ends it.

    Args:
        student: What is trained.
        augmenter: Gives the batches.
        settings: How.
        progress: Called with steps done and in all.
        rate: Learning rate by the fraction of the training done; by default `schedule` up to a peak that is lower the
            nearer the student is to the teacher.
        after: Called after every step with the fraction of the training done.
    """
    size = batch_size(student.teacher_program, augmenter, settings)
    optimiser = Optimiser(student.trained)
    taken, start = 0, time.perf_counter()
    if rate is None:
        peak = settings.learning_rate * relative_step(student.distance(augmenter.batch(size)))

        def rate(done: float) -> float:
            return peak * schedule(done)

    for step in range(settings.steps):
        done = step / settings.steps
        if settings.seconds is not None:
            done = max(done, (time.perf_counter() - start) / max(settings.seconds, 1e-9))
        if done >= 1.0:
            break
        optimiser.forget_gradients()
        loss = student.loss(augmenter.batch(size))
        if not loss.requires_grad or not math.isfinite(float(loss.detach())):
            break
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(rate(done))
        if after:
            after(done)
        taken += 1
        if progress:
            progress(step + 1, settings.steps)
    return taken


def batch_size(program: Program, augmenter: Augmenter, settings: DistillationSettings) -> int:
    """Samples per step: what the settings say, as far as there are so many and the captured graph takes them."""
    return min(settings.batch_size, augmenter.count) if program.graph.dynamic_batch else program.graph.batch


def output_divergence(program: Program, network: Network, inputs: Sequence[Tensor]) -> float:
    """Divergence of a network's outputs from the dense model's, as finalists are compared; NaN counts as infinite."""
    with torch.inference_mode():
        dense, found = (
            pytree.tree_leaves(run_batches(program, one, list(inputs))) for one in (base_network(program), network)
        )
        loss = float(output_loss(dense, found))
    return math.inf if math.isnan(loss) else loss
