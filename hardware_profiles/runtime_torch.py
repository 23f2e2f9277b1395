"""Eager PyTorch on CPU, floats only: an ONNX model as a module of PyTorch's own functions.

Eager PyTorch fuses nothing, and its quantised models imitate integers with floats: its times stand for eager
PyTorch, never for int8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paretopress.hardware_profiles.timing_protocol import Call, Floats
from paretopress.spaces.errors import ConfigError

Attributes = Mapping[str, Any]
Operator = Callable[[list[Any], Attributes], Tensor]


@dataclass(frozen=True)
class EagerTorch:
    """Eager PyTorch on `threads` threads."""

    threads: int = 1
    name: str = "torch"
    sees_every_node: bool = False
    executes: tuple[str, ...] = ("float32",)

    @property
    def version(self) -> str:
        """Version of the installed package."""
        return torch.__version__

    def open(self, model: bytes, inputs: Floats) -> Call:
        """Load a model and return a function that runs it once on the inputs."""
        torch.set_num_threads(self.threads)
        module, value = OnnxModule(model), torch.from_numpy(inputs.copy())

        def call() -> object:
            with torch.inference_mode():
                return module(value)

        return call

    def profile(self, model: bytes, inputs: Floats) -> None:
        """Return None: the profiler of PyTorch slows small operators down many times over."""


create = EagerTorch


class OnnxModule(nn.Module):
    """The float operators that measured networks are made of, run one after the other."""

    def __init__(self, model: bytes) -> None:
        """Read a serialised ONNX model.

        Raises:
            ConfigError: An operator that no measured network in floats has.
        """
        super().__init__()
        import onnx
        from onnx import helper, numpy_helper

        graph = onnx.load_model_from_string(model).graph
        self.constants: dict[str, str] = {}
        self.numbers: dict[str, list[int]] = {}      # shapes and amounts of padding, which export must know
        for index, tensor in enumerate(graph.initializer):
            array = numpy_helper.to_array(tensor)
            if array.dtype.kind == "i":
                self.numbers[tensor.name] = array.tolist()
                continue
            self.constants[tensor.name] = f"constant_{index}"
            self.register_buffer(f"constant_{index}", torch.from_numpy(array.copy()))
        self.input, self.output = graph.input[0].name, graph.output[0].name
        self.steps: list[tuple[Operator, list[str], str, dict[str, Any]]] = []
        for node in graph.node:
            if node.op_type not in OPERATORS:
                raise ConfigError(f"runtime torch: no rule for the ONNX operator {node.op_type} ({node.name})")
            attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            self.steps.append((OPERATORS[node.op_type], list(node.input), node.output[0], attributes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the model."""
        values = {self.input: x}
        for operator, names, output, attributes in self.steps:
            values[output] = operator([self._value(name, values) for name in names if name], attributes)
        return values[self.output]

    def _value(self, name: str, values: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - a tensor or numbers
        if name in values:
            return values[name]
        return self.numbers[name] if name in self.numbers else getattr(self, self.constants[name])


def _convolution(inputs: list[Any], attributes: Attributes) -> Tensor:
    x, rank = inputs[0], inputs[0].ndim - 2
    pads = attributes["pads"]
    before, after = pads[:rank], pads[rank:]
    if before != after:
        x = functional.pad(x, [size for pair in zip(before[::-1], after[::-1], strict=True) for size in pair])
        before = [0] * rank
    apply: Callable[..., Tensor] = (functional.conv1d, functional.conv2d)[rank - 1]
    return apply(x, inputs[1], inputs[2], attributes["strides"], before, 1, attributes["group"])


def _maximum_pooling(inputs: list[Any], attributes: Attributes) -> Tensor:
    pool: Callable[..., Tensor] = (functional.max_pool1d, functional.max_pool2d)[inputs[0].ndim - 3]
    return pool(inputs[0], attributes["kernel_shape"], attributes["strides"])


def _average_pooling(inputs: list[Any], attributes: Attributes) -> Tensor:
    pool: Callable[..., Tensor] = (functional.avg_pool1d, functional.avg_pool2d)[inputs[0].ndim - 3]
    return pool(inputs[0], attributes["kernel_shape"], attributes["strides"])


def _layer_norm(inputs: list[Any], attributes: Attributes) -> Tensor:
    shape = list(inputs[1].shape)
    return functional.layer_norm(inputs[0], shape, inputs[1], eps=attributes.get("epsilon", 1e-5))


def _padding(inputs: list[Any], attributes: Attributes) -> Tensor:  # noqa: ARG001 - an operator
    amounts, rank = inputs[1], inputs[0].ndim
    pairs = [(amounts[axis], amounts[axis + rank]) for axis in reversed(range(rank))]
    return functional.pad(inputs[0], [size for pair in pairs for size in pair])


def _reshaped(inputs: list[Any], attributes: Attributes) -> Tensor:  # noqa: ARG001 - an operator
    found: Tensor = inputs[0].reshape(inputs[1])
    return found


OPERATORS: Mapping[str, Operator] = {
    **dict.fromkeys(("Add", "Sum"), lambda inputs, _: inputs[0] + inputs[1]),
    "AveragePool": _average_pooling,
    "BatchNormalization": lambda inputs, _: functional.batch_norm(*inputs[:1], *inputs[3:], *inputs[1:3]),
    "Concat": lambda inputs, attributes: torch.cat(inputs, attributes["axis"]),
    "Conv": _convolution,
    "DepthToSpace": lambda inputs, attributes: functional.pixel_shuffle(inputs[0], attributes["blocksize"]),
    "Flatten": lambda inputs, attributes: inputs[0].flatten(attributes["axis"]),
    "Gelu": lambda inputs, _: functional.gelu(inputs[0]),
    "Gemm": lambda inputs, _: functional.linear(*inputs),
    "GlobalAveragePool": lambda inputs, _: inputs[0].mean(tuple(range(2, inputs[0].ndim)), keepdim=True),
    "HardSigmoid": lambda inputs, a: (inputs[0] * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0.0, 1.0),
    "HardSwish": lambda inputs, _: functional.hardswish(inputs[0]),
    "LayerNormalization": _layer_norm,
    "MatMul": lambda inputs, _: inputs[0] @ inputs[1],
    "MaxPool": _maximum_pooling,
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "Pad": _padding,
    "Relu": lambda inputs, _: functional.relu(inputs[0]),
    "Reshape": _reshaped,
    "Sigmoid": lambda inputs, _: torch.sigmoid(inputs[0]),
    "Softmax": lambda inputs, attributes: torch.softmax(inputs[0], attributes["axis"]),
    "Tanh": lambda inputs, _: torch.tanh(inputs[0]),
    "Transpose": lambda inputs, attributes: inputs[0].permute(list(attributes["perm"])),
}
