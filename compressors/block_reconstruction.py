"""Block-wise reconstruction: the blocks of a network are trained one after the other to give the dense model's values.

Training all layers at once for the outputs of the model has many weights and, without a training set, few samples to
fit them to. A block has few weights and as many targets as its output has values (Li et al., "BRECQ: Pushing the limit
of post-training quantization by block reconstruction", ICLR 2021). Every block reads what the blocks before it, already
trained, really give, so that it also repairs their errors. No gradient passes a border: memory is that of one block.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from paretopress.compressors.calibration import base_network
from paretopress.compressors.distillation_latents import (
    LatentPart,
    channels_last,
    latent_parts,
    outside_inference,
    quantise_activation,
)
from paretopress.compressors.distillation_loss import output_loss, relative_error
from paretopress.compressors.distillation_optimiser import Optimiser
from paretopress.compressors.distillation_schedule import relative_step, schedule
from paretopress.compressors.network import Network, Part, apply_parts, runner, select
from paretopress.compressors.program import Evaluate, Program, Values
from paretopress.compressors.tuning import with_integer_biases
from paretopress.spaces.plan import LayerPlan
from paretopress.spaces.structure import Structure

HELD_OUT = 8   # one batch in so many tells whether a block got better


@dataclass(frozen=True, slots=True)
class Block:
    """A run of nodes that nothing but its last value leaves.

    Attributes:
        nodes: Names, in order of execution.
        border: The last one; `""` for the last block, whose values are the model's outputs.
        layers: Nodes of the layers that are trained in it.
    """

    nodes: tuple[str, ...]
    border: str
    layers: tuple[str, ...]


def blocks(structure: Structure, trained: Sequence[str], layers: int = 2) -> tuple[Block, ...]:
    """Divide a graph where the output of one kernel alone carries on what layers computed.

    Residual blocks end behind their sums, plain chains behind any kernel; a graph without such a border is one block.

    Args:
        structure: What is divided.
        trained: Nodes of the layers.
        layers: Fewest of them in a block.
    """
    graph, outputs = structure.graph, {kernel.output for kernel in structure.fusion.kernels}
    reached, trained_nodes = set(trained), frozenset(trained)
    for node in graph.nodes:
        if not reached.isdisjoint(node.inputs):
            reached.add(node.name)
    last = {name: max((graph.position[user] for user in users), default=-1) for name, users in graph.users.items()}
    found: list[Block] = []
    nodes: list[str] = []
    inside: list[str] = []
    live: set[str] = set()
    for position, node in enumerate(graph.nodes):
        if node.op in ("input", "output"):
            continue
        nodes.append(node.name)
        if node.name in trained_nodes:
            inside.append(node.name)
        live = {name for name in live if last[name] > position}
        if node.name in reached and last[node.name] > position:
            live.add(node.name)
        if live == {node.name} and node.name in outputs and len(inside) >= layers and node.name not in graph.outputs:
            found.append(Block(tuple(nodes), node.name, tuple(inside)))
            nodes, inside = [], []
    if inside or not found:
        return (*found, Block(tuple(nodes), "", tuple(inside)))
    return (*found[:-1], replace(found[-1], nodes=(*found[-1].nodes, *nodes), border=""))


def reconstruct(
    program: Program,
    network: Network,
    batches: Sequence[Sequence[Tensor]],
    *,
    steps: int,
    learning_rate: float,
    seconds: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Network:
    """Train a network block by block for the values of the dense model.

    Args:
        program: The captured dense model.
        network: A finished network of any plan; it is not changed.
        batches: At least two mini-batches, one tensor per model input each; one in eight is held out.
        steps: Gradient steps of all blocks together, divided by their layers.
        learning_rate: Peak step relative to the size of each row of weights.
        seconds: Time limit of all blocks together.
        progress: Called with the steps done so far.

    Returns:
        The network; blocks that training did not bring nearer to the dense model are as they were.
    """
    left, network = program.under(network.plan.structure), outside_inference(network)
    latents = latent_parts(network)
    divided = blocks(left.structure, tuple(latents))
    teacher = base_network(program, equalise=network.equalised > 0)
    wanted = _Progress(program, teacher, batches)
    found = _Progress(left, network, batches)
    begin, taken, solved = time.perf_counter(), 0, 0
    for block in divided:
        targets = wanted.advance(block.border)
        if block.layers:
            solved += len(block.layers)
            end = round(steps * solved / len(latents))
            until = None if seconds is None else begin + seconds * solved / len(latents)
            trainer = _BlockTraining(left, network, block, {name: latents[name] for name in block.layers}, targets)
            found.network = network = trainer.trained(found.values, range(taken, end), learning_rate, until, progress)
            taken = end
        found.advance(block.border)
    return with_integer_biases(network)


class _Progress:
    """How far a model has come on every mini-batch: the values that are still to be read."""

    def __init__(self, program: Program, network: Network, batches: Sequence[Sequence[Tensor]]) -> None:
        self.program, self.network, self.position = program, network, 0
        self.values: list[Values] = [dict(zip(program.graph.inputs, batch, strict=True)) for batch in batches]

    def advance(self, border: str) -> list[tuple[Any, ...]]:
        """Run on to a border, or to the end for `""`; returns its value, or the outputs', on every mini-batch."""
        graph = self.program.graph
        end = graph.position[border] + 1 if border else len(graph.nodes)
        evaluate, nodes = runner(self.program, self.network), graph.nodes[self.position:end]
        names = (border,) if border else tuple(graph.outputs)
        with torch.no_grad():
            for values in self.values:
                run_nodes(self.program, [node.name for node in nodes], evaluate, values)
        self.position = end
        return [tuple(values[name] for name in names) for values in self.values]


def run_nodes(program: Program, names: Sequence[str], evaluate: Evaluate, values: Values) -> None:
    """Compute nodes in order and forget what none of those still to come reads; the model's outputs stay."""
    graph, outputs = program.graph, frozenset(program.graph.outputs)
    for name in names:
        node = graph.by_name[name]
        if node.op in ("input", "output"):
            continue
        values[name] = evaluate(node, values)
        for read in node.inputs:
            if program.last_use[read] == graph.position[name] and read not in outputs:
                values.pop(read, None)


class _BlockTraining:
    """One block in training."""

    def __init__(
        self, program: Program, network: Network, block: Block, latents: Mapping[str, tuple[LatentPart, ...]],
        targets: Sequence[tuple[Any, ...]],
    ) -> None:
        self.program, self.network, self.block, self.latents = program, network, block, latents
        self.tensors = [tensor for parts in latents.values() for part in parts for tensor in part.trained()]
        if block.border:
            axes = network.plan.structure.coupling.values.get(block.border) or (None,) * targets[0][0].ndim
            targets = [(channels_last(select(value, axes, network.selection)),) for (value,) in targets]
        self.targets = targets

    def trained(
        self, starts: Sequence[Values], steps: range, learning_rate: float, until: float | None,
        progress: Callable[[int], None] | None,
    ) -> Network:
        """The network with the block as it is after training, or as it was where that is not nearer."""
        held_out = range(0, len(starts), HELD_OUT)
        training = [index for index in range(len(starts)) if index not in held_out]
        before = self._mean(self.network, starts, held_out)
        peak = learning_rate * relative_step(before)
        optimiser, begin = Optimiser(self.tensors), time.perf_counter()
        for step, number in enumerate(steps):
            done = step / len(steps)
            if until is not None:
                done = max(done, (time.perf_counter() - begin) / max(until - begin, 1e-9))
            if done >= 1.0:
                break
            optimiser.forget_gradients()
            index = training[step % len(training)]
            loss = self._loss(self._network(LatentPart.current), starts[index], self.targets[index])
            if not loss.requires_grad or not math.isfinite(float(loss.detach())):
                break
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step(schedule(done) * peak)
            if progress:
                progress(number + 1)
        network = self._network(LatentPart.finished)
        return network if self._mean(network, starts, held_out) < before else self.network

    def _network(self, make: Callable[[LatentPart], Part]) -> Network:
        parts = {node: tuple(make(part) for part in parts) for node, parts in self.latents.items()}
        return replace(self.network, parts={**self.network.parts, **parts})

    @torch.no_grad()
    def _mean(self, network: Network, starts: Sequence[Values], indices: Sequence[int]) -> float:
        return sum(float(self._loss(network, starts[i], self.targets[i])) for i in indices) / len(indices)

    def _loss(self, network: Network, start: Values, target: tuple[Any, ...]) -> Tensor:
        arithmetic, values = network.plan.arithmetic, dict(start)

        def quantise(tensor: str, value: Tensor) -> Tensor:
            return quantise_activation(value, *network.ranges[arithmetic.range_of(tensor)])

        def apply(layer: LayerPlan, x: Tensor, _: Values) -> Tensor:
            return apply_parts(network, layer, x, quantise)

        run_nodes(self.program, self.block.nodes, runner(self.program, network, apply=apply, quantise=quantise), values)
        if self.block.border:
            return relative_error(target[0], values[self.block.border])
        return output_loss(target, [values[name] for name in self.program.graph.outputs])
