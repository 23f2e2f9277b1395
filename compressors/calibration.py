"""Calibration: one pass of the dense model that collects everything compensation needs.

Per layer, with batch normalisation folded: the second moments of its inputs augmented with a constant
1, and mean and spread of its outputs. The values of all nodes on the first samples are kept too, so
that substitutions resume from the layer they change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paretopress.compressors.equalisation import equalised
from paretopress.compressors.folding import folded_layers, remaining_state
from paretopress.compressors.moments import Moments
from paretopress.compressors.network import Network, Part, apply_parts, runner
from paretopress.compressors.program import Program, Values
from paretopress.compressors.quantisation import RangeMethod
from paretopress.spaces.coupling import Axis, ChannelGroup
from paretopress.spaces.errors import DataError
from paretopress.spaces.layers import Layer, LayerKind
from paretopress.spaces.plan import LayerPlan, plan
from paretopress.spaces.policy import DENSE

POSITIONS_PER_SAMPLE = 32
VALUE_BYTES = 2 ** 31   # that the values of all nodes may take: every worker of a search holds a copy
FEWEST_TUNED = 16       # samples, however much their values take


@dataclass(frozen=True)
class LayerStatistics:
    """Dense statistics of one layer.

    Attributes:
        moments: `(columns + 1, columns + 1)` float64, or `(groups, ...)` for grouped and depthwise layers.
        output_mean: `(out,)` mean of its folded output per channel, on the samples that candidates are tuned on: on
            others it differs by chance, and matching it would change a network that nothing else changes.
        output_std: `(out,)` standard deviation per channel, likewise.
    """

    moments: Tensor
    output_mean: Tensor
    output_std: Tensor


@dataclass(frozen=True)
class Calibration:
    """Dense statistics of a model.

    Attributes:
        folded: Layer node to folded weight and bias.
        layers: Layer node to its statistics; frozen layers and embeddings have none.
        base: The folded dense network.
        inputs: The samples that candidates are tuned on, one tensor per model input.
        values: Values of every node of the folded dense network on `inputs`.
        ranges: How ranges of quantised activations are chosen.
    """

    folded: Mapping[str, tuple[Tensor, Tensor]]
    layers: Mapping[str, LayerStatistics]
    base: Network
    inputs: tuple[Tensor, ...]
    values: Mapping[str, Any]
    ranges: RangeMethod = "mse"

    def taylor(self, program: Program, group: ChannelGroup) -> Tensor:
        """Gradient times activation per sample and channel of a group, `(samples, channels)`.

        The loss is the cross entropy to the dense model's own prediction, summed over producers
        (Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019).
        """
        return torch.stack([product for _, product in self._gated(program, group)]).sum(dim=0)

    def gradient_activations(self, program: Program, group: ChannelGroup) -> dict[str, Tensor]:
        """The same of each producer's own outputs: layer node to `(samples, channels)`.

        Uses of a shared layer are summed: its weights are removed from all of them.
        """
        found: dict[str, Tensor] = {}
        for node, product in self._gated(program, group):
            found[node] = found[node] + product if node in found else product
        return found

    def _gated(self, program: Program, group: ChannelGroup) -> list[tuple[str, Tensor]]:
        """Gradient times activation `(samples, channels)` of every use of every producer, with its layer's node."""
        layers = {layer.node for layer in program.structure.layers if layer.name in group.producers}
        products: list[tuple[str, Tensor]] = []

        def apply(layer: LayerPlan, x: Tensor, _: Values) -> Tensor:
            y = apply_parts(self.base, layer, x, _no_ranges)
            node = layer.layer.node
            if node in layers:
                y = y.detach().requires_grad_(True) if not y.requires_grad else y
                axis = program.structure.weight_axes(layer.layer)[0]
                place = 1 if layer.layer.window else y.ndim - 1
                y.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient, y=y, node=node, axis=axis, place=place: products.append(
                        (node, _per_channel(gradient * y, place, axis, group, len(self.inputs[0]))))
                )
            return y

        with torch.inference_mode(mode=False), torch.enable_grad():
            values = program.run(self.inputs, runner(program, self.base, apply=apply))
            loss = own_prediction_loss([values[name] for name in program.graph.outputs])
            loss.backward()  # type: ignore[no-untyped-call]
        if not products:
            raise DataError(f"group {group.name!r}: no gradient reaches its producers")
        return products


def _per_channel(product: Tensor, place: int, axis: Axis, group: ChannelGroup, samples: int) -> Tensor:
    """Sums over positions and over the elements of each of the group's channels, `(samples, channels)`.

    Windows and other parts that the user's code puts into the first dimension are positions too. What all samples
    share, such as embedded positions, is divided among them: its gradient is a sum over them.
    """
    rows = product.detach().movedim(place, -1)
    if len(rows) % samples:
        flat = (rows.reshape(-1, rows.shape[-1]).sum(dim=0) / samples).expand(samples, -1)
    else:
        flat = rows.reshape(samples, -1, rows.shape[-1]).sum(dim=1)
    total, offset = flat.new_zeros(len(flat), group.size), 0
    for segment in axis or ():
        if segment.group == group.name:
            total = total + flat[:, offset : offset + segment.length].reshape(len(flat), segment.size, -1).sum(dim=2)
        offset += segment.length
    return total


def own_prediction_loss(outputs: Sequence[Any]) -> Tensor:
    """The label-free loss of a model: the cross entropy to its own prediction, summed over samples and positions.

    Outputs that are no scores of classes, of one number per sample, give the sum of their squares.
    """
    total = torch.zeros(())
    for output in outputs:
        if isinstance(output, Tensor) and output.is_floating_point():
            if output.ndim >= 2 and output.shape[-1] > 1:
                logits = output.reshape(-1, output.shape[-1])
                total = total + torch.nn.functional.cross_entropy(logits, logits.argmax(dim=-1), reduction="sum")
            else:
                total = total + output.square().sum()
    return total


def _no_ranges(_: str, value: Tensor) -> Tensor:
    return value


def base_network(program: Program, *, equalise: bool = False) -> Network:
    """The dense model with batch normalisation folded, and with its layers equalised where asked."""
    folded = folded_layers(program)
    parts = {node: (Part(weight, bias),) for node, (weight, bias) in folded.items()}
    dense = plan(program.structure, DENSE)
    network = Network(dense, parts, remaining_state(program, folded=True), {}, {}, folded=True)
    return equalised(network) if equalise else network


def calibrate(
    program: Program,
    batches: Sequence[Sequence[Tensor]],
    *,
    tuning_samples: int = 256,
    seed: int = 0,
    ranges: RangeMethod = "mse",
    base: Network | None = None,
    equalise: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Run the dense model over calibration inputs once.

    Args:
        program: The captured dense model.
        batches: Inputs per batch, in the order of the graph's input nodes.
        tuning_samples: Samples whose node values are kept; candidates are tuned on them. Of large models fewer: see
            `tuning_count`.
        seed: Seed of the output positions that convolutions are sampled at.
        ranges: How ranges of quantised activations are chosen.
        base: Stands for the dense model, in its shapes; by default its own weights.
        equalise: Whether layers are rescaled against those that read them first: everything is then taken of the
            equalised network, which computes the same.
        progress: Called with batches done and in all.

    Raises:
        DataError: The activations are not finite.
    """
    base = base or base_network(program, equalise=equalise)
    free = [layer for layer in program.structure.layers if not layer.frozen and layer.kind is not LayerKind.EMBEDDING]
    moments = {layer.node: Moments() for layer in free}
    generator = torch.Generator().manual_seed(seed)

    def apply(layer: LayerPlan, x: Tensor, _: Values) -> Tensor:
        if layer.layer.node in moments:
            accumulate(moments[layer.layer.node], layer.layer, x, generator, groups=layer.groups)
        return apply_parts(base, layer, x, _no_ranges)

    with torch.inference_mode():
        for index, inputs in enumerate(batches):
            program.run(inputs, runner(program, base, apply=apply))
            if progress:
                progress(index + 1, len(batches))
    first = tuning_inputs(batches, tuning_count(program, tuning_samples))
    values, layers = all_values(program, base, first), {}
    for layer in free:
        second = with_intercept(layer, moments[layer.node].second_moments().clone())
        statistics = mean_and_std(values[layer.node], layer)
        layers[layer.node] = LayerStatistics(second[0] if layer.groups == 1 else second, *statistics)
    return Calibration(
        {node: (parts[0].weight, parts[0].bias) for node, parts in base.parts.items()},  # type: ignore[misc]
        layers, base, first, values, ranges,
    )


def tuning_count(program: Program, wanted: int) -> int:
    """How many samples' node values take at most `VALUE_BYTES`, as if none shared its memory; at most those wanted.

    Of MiniLM with 64 tokens 256 samples would take 4.6 GB, and every process of a search holds a copy or two. What
    a layer is corrected by are means over thousands of positions either way.
    """
    graph = program.graph
    elements = sum(math.prod(node.shape) for node in graph.operators() if node.dtype) / graph.batch
    count = max(FEWEST_TUNED, int(VALUE_BYTES / max(1.0, 4.0 * elements)))
    if not graph.dynamic_batch:
        count = max(1, count // graph.batch) * graph.batch
    return min(wanted, count)


def tuning_inputs(batches: Sequence[Sequence[Tensor]], count: int) -> tuple[Tensor, ...]:
    """The first `count` samples as one batch."""
    joined = [torch.cat([batch[index] for batch in batches]) for index in range(len(batches[0]))]
    return tuple(tensor[:count].clone() for tensor in joined)


def all_values(program: Program, network: Network, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """Values of every operator node of a network."""
    names = frozenset(node.name for node in program.graph.operators())
    with torch.no_grad():
        return program.run(inputs, runner(program, network), keep=names)


def accumulate(
    moments: Moments,
    layer: Layer,
    x: Tensor,
    generator: torch.Generator,
    *,
    groups: int,
    targets: Tensor | None = None,
) -> None:
    """Add a layer's inputs (and wanted outputs) to its moments."""
    if not layer.window:
        moments.accumulate_linear(x, targets)
        return
    if layer.kind is LayerKind.TRANSPOSED:
        x, padding = as_convolution_input(layer, x)
        ones = (1,) * len(layer.window)
        moments.accumulate_conv(
            x, layer.window, ones, padding, layer.dilation, groups, POSITIONS_PER_SAMPLE, generator, targets,
            backwards=True,
        )
        return
    moments.accumulate_conv(
        x, layer.window, layer.stride, layer.padding, layer.dilation, groups, POSITIONS_PER_SAMPLE, generator, targets
    )


def with_intercept(layer: Layer, moments: Tensor) -> Tensor:
    """The moments that a layer is solved on: without its mean inputs where it has no bias to absorb them."""
    if not layer.takes_bias:
        moments[..., :-1, -1] = 0.0
        moments[..., -1, :-1] = 0.0
    return moments


def as_convolution_input(layer: Layer, x: Tensor) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """What a transposed convolution reads as the input of a plain one of stride 1, its window backwards.

    Between neighbours stand `stride - 1` zeros, around them `dilation * (window - 1) - padding` (Dumoulin, Visin:
    "A guide to convolution arithmetic for deep learning", 2016, section 4).

    Returns:
        The input with zeros between, and zeros before and after it per spatial dimension.
    """
    padding = []
    for place, stride in enumerate(layer.stride, start=2):
        spread = x.new_zeros(*x.shape[:place], (x.shape[place] - 1) * stride + 1, *x.shape[place + 1 :])
        spread[(slice(None),) * place + (slice(None, None, stride),)] = x
        x = spread
        around = layer.dilation[place - 2] * (layer.window[place - 2] - 1) - layer.padding[place - 2]
        padding.append((around, around + layer.output_padding[place - 2]))
    return x, tuple(padding)


def mean_and_std(y: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a layer's output per channel, `(out,)` each.

    Two vectorised passes, several times faster than `torch.std_mean`.
    """
    axes = (0, *range(2, y.ndim)) if layer.window else tuple(range(y.ndim - 1))
    mean = y.mean(dim=axes, keepdim=True)
    return mean.flatten(), (y - mean).square().mean(dim=axes).sqrt()
