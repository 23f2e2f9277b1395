"""Export through `torch.onnx`: for graphs that hold an operator without a rule of our own."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paretopress.compressors.network import Network
from paretopress.compressors.onnx_lowering import OPSET, Lowering
from paretopress.compressors.onnx_values import convolution_attributes
from paretopress.compressors.program import Program, Values, apply_operator, call
from paretopress.spaces.graph import Node
from paretopress.spaces.layers import Layer


def traced_model(program: Program, network: Network) -> Any:  # noqa: ANN401 - onnx protobufs have no useful types
    """Return the network as a `ModelProto` that `torch.onnx` made."""
    module = _ExportModule(program, network)
    nodes = [program.graph.by_name[name] for name in program.graph.inputs]
    inputs = tuple(torch.zeros(node.shape, dtype=getattr(torch, node.dtype)) for node in nodes)
    shapes = tuple({0: torch.export.Dim.AUTO} if program.graph.dynamic_batch else None for _ in inputs)
    with _quiet(), torch.no_grad():
        module(*inputs)   # registers every initialiser: torch.export wants them all before it traces
        exported = torch.export.export(module, inputs, dynamic_shapes={"inputs": shapes}, strict=False)
        onnx_program = torch.onnx.export(
            exported, dynamo=True, opset_version=OPSET, verbose=False, optimize=True,
            input_names=list(program.graph.inputs),
        )
    assert onnx_program is not None
    return onnx_program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
    """The backend that runs PyTorch operators; ONNX's quantisation operators stand as symbols among them."""

    def __init__(self, program: Program, network: Network) -> None:
        super().__init__()
        self.program = program
        self.lowering: Lowering[Tensor] = Lowering(program, network, self)

    def forward(self, *inputs: Tensor) -> Any:  # noqa: ANN401
        return self.program.outputs(self.lowering.run(inputs))

    def constant(self, name: str, tensor: Tensor) -> Tensor:
        """Register a tensor once, so that it becomes an initialiser."""
        key = name.replace(".", "_").replace(":", "_")
        if not hasattr(self, key):
            self.register_buffer(key, tensor.detach().clone().contiguous())
        return getattr(self, key)  # type: ignore[no-any-return]

    def quantise(self, name: str, value: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:  # noqa: ARG002
        """`QuantizeLinear` to uint8."""
        integers: Tensor = torch.onnx.ops.symbolic(
            "QuantizeLinear", [value, scale, zero_point], dtype=torch.uint8, shape=value.shape, version=OPSET
        )
        return integers

    def dequantise(
        self, name: str, integers: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None  # noqa: ARG002
    ) -> Tensor:
        """`DequantizeLinear`."""
        value: Tensor = torch.onnx.ops.symbolic(
            "DequantizeLinear", [integers, scale, zero_point], {} if axis is None else {"axis": axis},
            dtype=torch.float32, shape=integers.shape, version=OPSET,
        )
        return value

    def expand(self, name: str, integers: Tensor, scale: Tensor) -> Tensor:  # noqa: ARG002
        """`Cast` and `Mul`; torch.onnx may compute them at once, which makes the file larger."""
        return integers.to(torch.float32) * scale

    def widen(self, name: str, halves: Tensor) -> Tensor:  # noqa: ARG002
        """`Cast`; torch.onnx may compute it at once."""
        return halves.to(torch.float32)

    def shared(self, name: str, codebook: Tensor, indices: Tensor, scale: Tensor) -> Tensor:  # noqa: ARG002
        """`Cast`, `Gather` and `Mul`; torch.onnx may compute them at once."""
        return codebook[indices.to(torch.int64)] * scale

    def offset(self, name: str, codes: Tensor, zeros: Tensor, scale: Tensor) -> Tensor:  # noqa: ARG002
        """`Cast`, `Sub` and `Mul`; torch.onnx may compute them at once."""
        return (codes.to(torch.float32) - zeros) * scale

    def block_product(
        self, name: str, x: Tensor, blocks: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None,  # noqa: ARG002
        columns: int, group: int,
    ) -> Tensor:
        """`MatMulNBits`."""
        read = [x, blocks, scales] if zeros is None else [x, blocks, scales, zeros]
        product: Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits", read, {"K": columns, "N": len(blocks), "bits": 4, "block_size": group},
            dtype=torch.float32, shape=(*x.shape[:-1], len(blocks)), version=1,
        )
        return product if bias is None else product + bias

    def signs(
        self, name: str, x: Tensor, thresholds: Tensor, positive: Tensor, negative: Tensor  # noqa: ARG002
    ) -> Tensor:
        """`GreaterOrEqual` and `Where`."""
        return torch.where(x >= thresholds, positive, negative)

    def rounded(self, name: str, x: Tensor, step: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:  # noqa: ARG002
        """`Div`, `Round`, `Clip` and `Mul`."""
        return torch.clamp(torch.round(x / step), lowest, highest) * step

    def quantise_dynamically(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`DynamicQuantizeLinear`."""
        codes, scale, zero_point = torch.onnx.ops.symbolic_multi_out(
            "DynamicQuantizeLinear", [x], dtypes=(torch.uint8, torch.float32, torch.uint8), shapes=(x.shape, (), ()),
            version=OPSET,
        )
        return codes, scale, zero_point

    def integer_layer(
        self, name: str, layer: Layer, x: Tensor, zero_point: Tensor, weight: Tensor, weight_zero: Tensor,  # noqa: ARG002
        groups: int,
    ) -> Tensor:
        """`MatMulInteger` or `ConvInteger`."""
        read = [x, weight, zero_point, weight_zero]
        operator, attributes, shape = "MatMulInteger", {}, (*x.shape[:-1], weight.shape[1])
        if layer.window:
            operator, attributes = "ConvInteger", convolution_attributes(layer, groups)
            shape = tuple(apply_operator(layer, x.float(), weight.float(), None, groups).shape)   # values are not used
        sums: Tensor = torch.onnx.ops.symbolic(
            operator, read, attributes, dtype=torch.int32, shape=shape, version=OPSET)
        return sums

    def scaled_sums(
        self, name: str, sums: Tensor, scale: Tensor, factors: Tensor, bias: Tensor | None  # noqa: ARG002
    ) -> Tensor:
        """`Cast`, `Mul` and `Add`."""
        product = sums.to(torch.float32) * (scale * factors)
        return product if bias is None else product + bias

    def layer(
        self, name: str, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int  # noqa: ARG002
    ) -> Tensor:
        """A convolution or linear layer."""
        return apply_operator(layer, x, weight, bias, groups)

    def call(self, node: Node, values: Values, changes: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Any other operator."""
        return call(self.program, node, values, changes)
