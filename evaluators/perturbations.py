"""What a choice does to the outputs of the layers that it changes, everything before them dense.

The changed layers are built and corrected as in a candidate, and applied to the dense model's values of the tuning
samples: nothing behind them is computed, so that a choice costs little more than its own layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paretopress.compressors.calibration import own_prediction_loss
from paretopress.compressors.entries import Entries
from paretopress.compressors.network import apply_parts, runner, select
from paretopress.compressors.program import Values
from paretopress.compressors.tuning import Tuning
from paretopress.evaluators.divergence import divergence
from paretopress.spaces.layers import LayerKind
from paretopress.spaces.plan import LayerPlan, Plan, plan
from paretopress.spaces.policy import Policy
from paretopress.spaces.weights_applied import source_of

NOISE = 0.03     # of a layer's spread: as much as the second order still describes
PROBES = 2       # directions of noise per layer


@dataclass(frozen=True)
class Change:
    """The change of one layer's output.

    Attributes:
        node: The layer's node.
        difference: Candidate less dense output, at the outputs that are left.
        dense: The dense output there.
        gradient: Of the own-prediction loss there, shaped alike; None where none was asked for or none arrives.
        channel: The dimension of the layer's output channels.
    """

    node: str
    difference: Tensor
    dense: Tensor
    gradient: Tensor | None
    channel: int

    @property
    def noise_to_signal(self) -> float:
        """Mean squared change over the mean variance of the channels."""
        others = [place for place in range(self.dense.ndim) if place != self.channel % self.dense.ndim]
        signal = (self.dense - self.dense.mean(dim=others, keepdim=True)).square().mean()
        return float(self.difference.square().mean()) / max(float(signal), 1e-12)


def changes(entries: Entries, policy: Policy, gradients: Mapping[str, Tensor] | None = None) -> Iterator[Change]:
    """Yield the changes of the layers that a policy changes, each on the dense values before it.

    A branch that is dropped changes the output of its last layer to nothing.

    Args:
        entries: Memoised compressed layers of the model.
        policy: What is substituted, usually one choice.
        gradients: `output_gradients` of the model.
    """
    program, calibration = entries.program, entries.calibration
    planned = plan(program.structure, policy)
    for branch in planned.structure.dropped:
        inside = [layer for layer in program.structure.layers if layer.name in branch.layers]
        if inside:
            last = max(inside, key=lambda layer: program.graph.position[layer.node])
            dense = calibration.values[last.node]
            yield Change(last.node, -dense, dense, (gradients or {}).get(last.node), 1 if last.window else -1)
    with torch.inference_mode():
        tuning = Tuning(program, entries.stitch(planned), calibration)
        for layer in planned.layers:
            if _is_changed(layer):
                yield _change(tuning, planned, layer, gradients or {})


def _is_changed(layer: LayerPlan) -> bool:
    return not layer.layer.frozen and (layer.touched or layer.shape != layer.layer.shape)


def _change(tuning: Tuning, planned: Plan, layer: LayerPlan, gradients: Mapping[str, Tensor]) -> Change:
    values, node = tuning.calibration.values, layer.layer.node
    source = source_of(tuning.program.graph.by_name[node])
    selection = tuning.network.selection

    def left(tensor: Tensor, name: str) -> Tensor:
        return select(tensor, planned.structure.coupling.values.get(name) or (), selection)

    x = left(_value(tuning, source), source)
    if layer.activation_bits == 8 and layer.layer.kind is not LayerKind.EMBEDDING:
        x = tuning.quantise(source, x)
    y = tuning.apply(layer, x, dict(values))
    dense, gradient = left(values[node], node), gradients.get(node)
    gradient = None if gradient is None else left(gradient, node)
    return Change(node, y - dense, dense, gradient, 1 if layer.layer.window else -1)


def _value(tuning: Tuning, name: str) -> Tensor:
    """A dense value: of a model input, or of an operator on the tuning samples."""
    inputs = dict(zip(tuning.program.graph.inputs, tuning.calibration.inputs, strict=True))
    found: Tensor = inputs[name] if name in inputs else tuning.calibration.values[name]
    return found


def output_gradients(entries: Entries) -> dict[str, Tensor]:
    """Gradients of the cross entropy to the dense model's own prediction in every free layer's output.

    Summed over the tuning samples, so that each sample has its own gradient. One forward and one backward pass.
    Layers that no gradient reaches are left out.
    """
    program, calibration = entries.program, entries.calibration
    free = {layer.node for layer in program.structure.layers if not layer.frozen}
    outputs: dict[str, Tensor] = {}

    def apply(layer: LayerPlan, x: Tensor, _: Values) -> Tensor:
        y = apply_parts(calibration.base, layer, x, _as_it_is)
        node = layer.layer.node
        if node in free:
            y = y.detach().requires_grad_(True) if not y.requires_grad else y
            y.retain_grad()
            outputs[node] = y
        return y

    with torch.inference_mode(mode=False), torch.enable_grad():
        inputs = [one.clone() for one in calibration.inputs]
        values = program.run(inputs, runner(program, calibration.base, apply=apply))
        loss = own_prediction_loss([values[name] for name in program.graph.outputs])
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
    return {node: y.grad for node, y in outputs.items() if y.grad is not None}


def output_curvatures(entries: Entries, seed: int = 0, progress: Callable[[], None] | None = None) -> dict[str, float]:
    """Divergence per mean squared change of every free layer's output: half the mean curvature.

    The mean trace of the Hessian as in HAWQ-V2 (Dong et al., NeurIPS 2020), but in outputs, of the divergence, and by
    Hutchinson's estimator in finite differences: the divergence and its gradient are 0 at the dense model, so that
    what little noise does to it is the curvature. Needs no second derivatives; a forward pass from the layer each.

    Args:
        entries: Memoised compressed layers of the model.
        seed: Of the noise.
        progress: Called after every layer.
    """
    program, calibration = entries.program, entries.calibration
    generator = torch.Generator().manual_seed(seed)
    names = frozenset(node.name for node in program.graph.operators())
    dense = [calibration.values[name] for name in program.graph.outputs]
    found: dict[str, float] = {}
    for layer in program.structure.layers:
        if layer.frozen:
            continue
        y, losses = calibration.values[layer.node], []
        size = NOISE * float(y.std(correction=0))
        skip = names - program.downstream([layer.node])
        for _ in range(PROBES if size > 0.0 else 0):
            signs = torch.randint(0, 2, y.shape, generator=generator).to(y.dtype) * 2 - 1
            noisy = y + size * signs
            outputs = _continued(entries, {**{name: calibration.values[name] for name in skip}, layer.node: noisy},
                                 skip | {layer.node})
            losses.append(divergence(dense, outputs))
        found[layer.node] = sum(losses) / len(losses) / size**2 if losses else 0.0
        if progress:
            progress()
    return found


def _continued(entries: Entries, cached: Mapping[str, Any], skip: frozenset[str]) -> list[Any]:
    """Outputs of the dense model where some values are given."""
    program, base = entries.program, entries.calibration.base
    with torch.inference_mode():
        values = program.run(entries.calibration.inputs, runner(program, base), cached=cached, skip=skip)
    return [values[name] for name in program.graph.outputs]


def _as_it_is(_: str, value: Tensor) -> Tensor:
    return value


def per_sample(tensor: Tensor, samples: int) -> Tensor:
    """Sums over all that belongs to a sample, shape `(samples,)`: parts in the first dimension are a sample's.

    What all samples share, such as embedded positions, is divided among them: its gradient is a sum over them.
    """
    if len(tensor) % samples:
        return (tensor.sum() / samples).expand(samples)
    return tensor.reshape(samples, -1).sum(dim=1)
