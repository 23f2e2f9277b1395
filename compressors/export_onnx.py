"""Export a network to ONNX: float operators as they are, integer kernels between Quantize/DequantizeLinear.

The integer initialisers, scales and zero points are the artefact's own; no tool re-quantises. Weights
are int8 per channel behind `DequantizeLinear`, activations uint8 per tensor, biases int32 at the product
of both scales, which is the form ONNX Runtime fuses into integer kernels. Widths below 8 bits are held in
int8 (exact values, int8 speed). Operators that only move data work on the integers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paretopress.compressors.network import Network, Part, argument_changes, pointwise
from paretopress.compressors.onnx_passes import rewrite
from paretopress.compressors.program import Program, Values, apply_layer, call
from paretopress.spaces.arithmetic import FIRST
from paretopress.spaces.documents import write_atomic
from paretopress.spaces.graph import Node
from paretopress.spaces.layers import Layer
from paretopress.spaces.plan import LayerPlan
from paretopress.spaces.shortcuts import Subsampling

OPSET = 20
_PADDINGS = ("pad", "constant_pad_nd")


def export_onnx(program: Program, network: Network, path: Path) -> None:
    """Write a network as one self-contained ONNX file, its batch dimension dynamic where the model's is.

    Args:
        program: The captured dense model.
        network: The network, ranges set where its plan computes in integers.
        path: Destination, written atomically.

    Raises:
        DiskError: The file cannot be written.
    """
    program = program.under(network.plan.structure)
    module = _ExportModule(program, network)
    inputs = tuple(_example(program, node) for node in program.graph.inputs)
    shapes = tuple({0: torch.export.Dim.AUTO} if program.graph.dynamic_batch else None for _ in inputs)
    with _quiet(), torch.no_grad():
        module(*inputs)   # registers every initialiser: torch.export wants them all before it traces
        exported = torch.export.export(module, inputs, dynamic_shapes={"inputs": shapes}, strict=False)
        onnx_program = torch.onnx.export(
            exported, dynamo=True, opset_version=OPSET, verbose=False, optimize=True,
            input_names=list(program.graph.inputs),
        )
    assert onnx_program is not None
    proto = rewrite(onnx_program.model_proto)
    write_atomic(path, lambda stream: stream.write(proto.SerializeToString(deterministic=True)))


def _example(program: Program, name: str) -> Tensor:
    node = program.graph.by_name[name]
    dtype = getattr(torch, node.dtype)
    return torch.zeros(node.shape, dtype=dtype)


@contextlib.contextmanager
def _quiet() -> Any:  # noqa: ANN401 - a generator context manager
    """Silence the exporter's progress and its warnings about packages that are not installed."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class _ExportModule(nn.Module):
    """Runs the graph with ONNX's own quantisation operators where the plan computes in integers."""

    def __init__(self, program: Program, network: Network) -> None:
        super().__init__()
        self.program, self.network = program, network
        self._integers: dict[str, Tensor] = {}

    def forward(self, *inputs: Tensor) -> Any:  # noqa: ANN401
        self._integers = {}
        return self.program.outputs(self.program.run(inputs, self._evaluate))

    def _constant(self, name: str, tensor: Tensor) -> Tensor:
        """Register a tensor once, so that it becomes an initialiser."""
        key = name.replace(".", "_").replace(":", "_")
        if not hasattr(self, key):
            self.register_buffer(key, tensor.detach().clone().contiguous())
        return getattr(self, key)  # type: ignore[no-any-return]

    def _evaluate(self, node: Node, values: Values) -> Any:  # noqa: ANN401
        network, arithmetic = self.network, self.network.plan.arithmetic
        if node.op in ("parameter", "constant"):
            tensor = network.state.get(node.target)
            return None if tensor is None else self._constant(node.target, tensor)
        if network.folded and node.name in self.program.structure.fusion.folds:
            value = values[node.inputs[0]]
        elif node.name in network.plan.by_node and not network.plan.by_node[node.name].layer.frozen:
            value = self._layer(network.plan.by_node[node.name], node, values)
        elif node.name in network.plan.subsamplings:
            return self._subsample(network.plan.subsamplings[node.name], node, values)
        elif node.name in arithmetic.shared:
            return self._move(node, values)
        else:
            seen: Mapping[str, Any] = {}
            if node.name in arithmetic.integer_kernels:
                seen = {name: self._read(name, values) for name in node.inputs if isinstance(values.get(name), Tensor)}
            value = call(self.program, node, {**values, **seen}, argument_changes(network.plan, node))
        if node.name in arithmetic.ranges and node.name not in arithmetic.sources:
            return self._dequantise(node.name, self._quantise(node.name, value))
        return value

    def _read(self, tensor: str, values: Values) -> Tensor:
        """A tensor as an integer kernel reads it: behind DequantizeLinear."""
        value: Tensor = values[tensor]
        if tensor in self.network.plan.arithmetic.sources:
            integers = self._integers.get(tensor)
            return self._dequantise(tensor, self._quantise(tensor, value) if integers is None else integers)
        return value

    def _range(self, tensor: str) -> tuple[Tensor, Tensor]:
        key = self.network.plan.arithmetic.range_of(tensor)
        scale, zero_point = self.network.ranges[key]
        return (
            self._constant(f"scale:{key}", torch.tensor(scale, dtype=torch.float32)),
            self._constant(f"zero_point:{key}", torch.tensor(zero_point, dtype=torch.uint8)),
        )

    def _quantise(self, tensor: str, value: Tensor) -> Tensor:
        integers: Tensor = torch.onnx.ops.symbolic(
            "QuantizeLinear", [value, *self._range(tensor)], dtype=torch.uint8, shape=value.shape, version=OPSET
        )
        self._integers[tensor] = integers
        return integers

    def _dequantise(self, tensor: str, integers: Tensor) -> Tensor:
        value: Tensor = torch.onnx.ops.symbolic(
            "DequantizeLinear", [integers, *self._range(tensor)], dtype=torch.float32, shape=integers.shape,
            version=OPSET,
        )
        return value

    def _move(self, node: Node, values: Values) -> Tensor:
        """Move integers instead of floats; zero padding pads with the zero point."""
        source = node.inputs[0]
        key = self.network.plan.arithmetic.range_of(node.name)
        if node.short_op.startswith("max_pool"):
            value = call(self.program, node, values)
            return self._dequantise(node.name, self._quantise(node.name, value))
        changes = dict(argument_changes(self.network.plan, node))
        if node.short_op in _PADDINGS:
            changes["value"] = self.network.ranges[key][1]
        integers = call(self.program, node, {**values, source: self._integers[source]}, changes)
        self._integers[node.name] = integers
        return self._dequantise(node.name, integers)

    def _subsample(self, chain: Subsampling, node: Node, values: Values) -> Tensor:
        """A chain of slices and paddings as one convolution; operators before its last pass their input on."""
        x: Tensor = values[node.inputs[0]]
        if node.name != chain.output:
            return x
        channels, wanted = (self.network.plan.shape(name)[1] for name in (chain.source, chain.output))
        identity = torch.zeros(wanted, channels, 1, 1)
        identity[torch.arange(channels) + chain.before, torch.arange(channels)] = 1.0
        # 64 / 64: a power of two keeps the requantisation exact, and pairs of products fit 16 bits.
        part = Part(identity, None, (64 * identity).to(torch.int8), torch.full((wanted,), 1 / 64), 8)
        value = torch.nn.functional.conv2d(x, self._weight(node.name, part), stride=chain.stride)
        return self._dequantise(node.name, self._quantise(node.name, value))

    def _layer(self, plan: LayerPlan, node: Node, values: Values) -> Tensor:
        layer, parts = plan.layer, self.network.parts[node.name]
        source = node.inputs[0]
        if plan.activation_bits != 8:
            x: Tensor = values[source]
            for index, part in enumerate(parts):
                x = self._apply_float(layer if index == 0 else pointwise(layer), f"{layer.name}.{index}", x, part,
                                      plan.groups if index == 0 else 1)
            return x
        x = self._read(source, values)
        x = self._apply_integer(layer, f"{layer.name}.0", x, parts[0], source, plan.groups)
        if len(parts) == 2:
            inner = layer.node + FIRST
            x = self._dequantise(inner, self._quantise(inner, x))
            x = self._apply_integer(pointwise(layer), f"{layer.name}.1", x, parts[1], inner, 1)
        return x

    def _apply_float(self, layer: Layer, name: str, x: Tensor, part: Part, groups: int) -> Tensor:
        if part.integers is None or part.scales is None:
            weight = self._constant(f"{name}.weight", part.weight)
        else:
            weight = self._weight(name, part)
        bias = None if part.bias is None else self._constant(f"{name}.bias", part.bias)
        return apply_layer(layer, x, weight, bias, groups)

    def _weight(self, name: str, part: Part) -> Tensor:
        """Integer weights behind DequantizeLinear, one scale per output channel."""
        assert part.integers is not None
        assert part.scales is not None
        integers = self._constant(f"{name}.weight_integers", part.integers.reshape(part.weight.shape))
        scales = self._constant(f"{name}.weight_scales", part.scales)
        zeros = self._constant(f"{name}.weight_zeros", torch.zeros_like(part.scales, dtype=torch.int8))
        weight: Tensor = torch.onnx.ops.symbolic(
            "DequantizeLinear", [integers, scales, zeros], {"axis": 0}, dtype=torch.float32, shape=part.weight.shape,
            version=OPSET,
        )
        return weight

    def _apply_integer(self, layer: Layer, name: str, x: Tensor, part: Part, source: str, groups: int) -> Tensor:
        weight = self._weight(name, part)
        if part.bias is None or part.scales is None:
            return apply_layer(layer, x, weight, None, groups)
        scales = part.scales * self.network.ranges[self.network.plan.arithmetic.range_of(source)][0]
        integers = (part.bias.double() / scales.double()).round().clamp(-(2**31) + 1, 2**31 - 1).to(torch.int32)
        bias: Tensor = torch.onnx.ops.symbolic(
            "DequantizeLinear",
            [self._constant(f"{name}.bias_integers", integers), self._constant(f"{name}.bias_scales", scales),
             self._constant(f"{name}.bias_zeros", torch.zeros_like(integers))],
            {"axis": 0}, dtype=torch.float32, shape=part.bias.shape, version=OPSET,
        )
        return apply_layer(layer, x, weight, bias, groups)


def session(path: Path, threads: int = 1) -> Any:  # noqa: ANN401 - onnxruntime has no types
    """Open an ONNX file in ONNX Runtime on the CPU.

    `WeightBiasQuantization` is off: it would turn float layers between integer ones into integer layers.

    Args:
        path: The file.
        threads: Intra-operator threads.
    """
    import os

    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # The default rounds the activations of weight-only linear layers to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )


def run_session(opened: Any, inputs: Sequence[Tensor]) -> list[Tensor]:  # noqa: ANN401
    """Run an open session on tensors and return its outputs in order."""
    names = [argument.name for argument in opened.get_inputs()]
    feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return [torch.from_numpy(output) for output in opened.run(None, feed)]
