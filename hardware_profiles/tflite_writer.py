"""Writes an int8 network as a TFLite flatbuffer, which is what Arm's Vela compiler reads.

Shapes and stored weights are those of the ONNX file; scales are one and the same everywhere, because cycles, memory
and compressed weights do not depend on them. Needs the extra `ethos-u`, whose package brings the schema's classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretopress.hardware_profiles.onnx_view import OnnxKernels
from paretopress.spaces.errors import ProfileError
from paretopress.spaces.kernels import Family, Kernel

SCALE = 0.05
_INT8, _INT32 = 9, 2                       # TensorType
_SAME, _VALID = 0, 1                       # Padding
_RELU = 1                                  # ActivationFunctionType
# BuiltinOperator and the number of its options in BuiltinOptions.
_ADD, _AVERAGE_POOL, _CONCATENATION, _CONV, _DEPTHWISE, _FULLY_CONNECTED, _MAX_POOL = 0, 1, 2, 3, 4, 9, 17
_OPTIONS = {
    _CONV: ("Conv2DOptions", 1), _DEPTHWISE: ("DepthwiseConv2DOptions", 2), _AVERAGE_POOL: ("Pool2DOptions", 5),
    _MAX_POOL: ("Pool2DOptions", 5), _FULLY_CONNECTED: ("FullyConnectedOptions", 8),
    _CONCATENATION: ("ConcatenationOptions", 10), _ADD: ("AddOptions", 11),
}


def tflite_bytes(network: OnnxKernels, source: str) -> bytes:
    """Return the flatbuffer of an int8 network.

    Args:
        network: Kernels, what connects them, and their weights.
        source: The file, for messages.

    Raises:
        ProfileError: A kernel that does not compute in integers, or that has no TFLite operator here.
    """
    return _Writer(source).write(network)


class _Writer:
    """Collects the vectors of one model; flatbuffers are written from the leaves to the root."""

    def __init__(self, source: str) -> None:
        import flatbuffers

        self.builder: Any = flatbuffers.Builder(1 << 20)
        self.source = source
        self.buffers: list[bytes] = [b""]
        self.tensors: list[int] = []
        self.operators: list[int] = []
        self.codes: list[int] = []

    def write(self, network: OnnxKernels) -> bytes:
        kernels, made = network.view.kernels, {-1: self._input(network)}
        for index, kernel in enumerate(kernels):
            self._check(kernel)
            made[index] = self._operator(network, index, [made[one] for one in network.sources[index]])
        return self._finish(made[-1], made[len(kernels) - 1])

    def _check(self, kernel: Kernel) -> None:
        if kernel.activation_bits != 8:
            raise ProfileError(
                f"{self.source}: kernel {kernel.name!r} ({kernel.family}) computes in floats; Ethos-U runs int8 only"
            )
        if kernel.family not in _SUPPORTED or len(kernel.input_size) not in (0, 2):
            supported = ", ".join(sorted(family.value for family in _SUPPORTED))
            raise ProfileError(
                f"{self.source}: kernel {kernel.name!r} ({kernel.family}, {len(kernel.input_size)} dimensions) is not "
                f"written as TFLite (allowed: {supported}, in two dimensions)"
            )

    def _input(self, network: OnnxKernels) -> int:
        first = next(
            kernel for kernel, sources in zip(network.view.kernels, network.sources, strict=True) if -1 in sources
        )
        return self._tensor("input", (1, *(first.input_size or (1, 1)), first.cin))

    def _operator(self, network: OnnxKernels, index: int, inputs: list[int]) -> int:
        kernel, weights = network.view.kernels[index], network.weights[index]
        size = kernel.output_size or (1, 1)
        code, options = self._code(kernel, network.operators[index])
        if weights is not None:
            bias = self._tensor(f"{kernel.name}_bias", (kernel.cout,), _INT32, b"\0" * (4 * kernel.cout))
            inputs = [*inputs, self._weights(kernel, weights), bias]
        shape = (1, kernel.cout) if kernel.family is Family.LINEAR else (1, *size, kernel.cout)
        output = self._tensor(kernel.name, shape)
        self._add_operator(code, options, inputs, [output])
        return output

    def _code(self, kernel: Kernel, operator: str) -> tuple[int, dict[str, int]]:
        relu = {"FusedActivationFunction": _RELU} if kernel.fused else {}
        window, stride = kernel.window or (1, 1), kernel.stride or (1, 1)
        strides = {"StrideH": stride[0], "StrideW": stride[-1]}
        if kernel.family is Family.CONV:
            return _CONV, {"Padding": self._padding(kernel), **strides, **relu}
        if kernel.family is Family.DEPTHWISE:
            multiplier = {"DepthMultiplier": kernel.cout // kernel.cin}
            return _DEPTHWISE, {"Padding": self._padding(kernel), **strides, **multiplier, **relu}
        if kernel.family is Family.LINEAR:
            return _FULLY_CONNECTED, relu
        if kernel.family is Family.ADD:
            return _ADD, relu
        if kernel.family is Family.CONCAT:
            return _CONCATENATION, {"Axis": 3}
        if kernel.family is Family.GLOBAL_POOL:
            whole = {"FilterHeight": kernel.input_size[0], "FilterWidth": kernel.input_size[1]}
            return _AVERAGE_POOL, {"Padding": _VALID, "StrideH": 1, "StrideW": 1, **whole}
        filters = {"FilterHeight": window[0], "FilterWidth": window[-1]}
        code = _MAX_POOL if operator == "MaxPool" else _AVERAGE_POOL
        return code, {"Padding": self._padding(kernel), **strides, **filters}

    def _padding(self, kernel: Kernel) -> int:
        """SAME or VALID, whichever gives the sizes of the ONNX operator."""
        pairs = list(zip(kernel.input_size, kernel.window, kernel.stride, kernel.output_size, strict=True))
        if all(after == -(-before // stride) for before, _, stride, after in pairs):
            return _SAME
        if all(after == (before - window) // stride + 1 for before, window, stride, after in pairs):
            return _VALID
        raise ProfileError(
            f"{self.source}: kernel {kernel.name!r} is padded in a way that TFLite has no name for "
            f"({kernel.input_size} to {kernel.output_size}); write the padding as an operator of its own"
        )

    def _weights(self, kernel: Kernel, weights: NDArray[Any]) -> int:
        stored = weights.astype(np.int8)
        if kernel.family is Family.CONV:
            stored = stored.transpose(0, 2, 3, 1)
        elif kernel.family is Family.DEPTHWISE:
            stored = stored.transpose(1, 2, 3, 0)
        elif stored.shape != (kernel.cout, kernel.cin):
            stored = stored.T
        channel = 3 if kernel.family is Family.DEPTHWISE else 0
        return self._tensor(
            f"{kernel.name}_weights", stored.shape, _INT8, np.ascontiguousarray(stored).tobytes(), kernel.cout, channel
        )

    def _tensor(
        self, name: str, shape: Sequence[int], kind: int = _INT8, data: bytes = b"", channels: int = 1, channel: int = 0
    ) -> int:
        from ethosu.vela.tflite import QuantizationParameters, Tensor

        builder = self.builder
        buffer = 0
        if data:
            buffer = len(self.buffers)
            self.buffers.append(data)
        scales = builder.CreateNumpyVector(np.full(channels, SCALE * (SCALE if kind == _INT32 else 1), np.float32))
        zeros = builder.CreateNumpyVector(np.zeros(channels, np.int64))
        QuantizationParameters.Start(builder)
        QuantizationParameters.AddScale(builder, scales)
        QuantizationParameters.AddZeroPoint(builder, zeros)
        QuantizationParameters.AddQuantizedDimension(builder, channel)
        quantisation = QuantizationParameters.End(builder)
        text = builder.CreateString(name)
        sizes = builder.CreateNumpyVector(np.array(shape, np.int32))
        Tensor.Start(builder)
        Tensor.AddShape(builder, sizes)
        Tensor.AddType(builder, kind)
        Tensor.AddBuffer(builder, buffer)
        Tensor.AddName(builder, text)
        Tensor.AddQuantization(builder, quantisation)
        self.tensors.append(Tensor.End(builder))
        return len(self.tensors) - 1

    def _add_operator(self, code: int, options: dict[str, int], inputs: list[int], outputs: list[int]) -> None:
        from importlib import import_module

        from ethosu.vela.tflite import Operator

        builder, (name, kind) = self.builder, _OPTIONS[code]
        if code not in self.codes:
            self.codes.append(code)
        module = import_module(f"ethosu.vela.tflite.{name}")
        module.Start(builder)
        for option, value in options.items():
            getattr(module, f"Add{option}")(builder, value)
        table = module.End(builder)
        read, written = (builder.CreateNumpyVector(np.array(one, np.int32)) for one in (inputs, outputs))
        Operator.Start(builder)
        Operator.AddOpcodeIndex(builder, self.codes.index(code))
        Operator.AddInputs(builder, read)
        Operator.AddOutputs(builder, written)
        Operator.AddBuiltinOptionsType(builder, kind)
        Operator.AddBuiltinOptions(builder, table)
        self.operators.append(Operator.End(builder))

    def _vector(self, offsets: Sequence[int]) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())

    def _finish(self, first: int, last: int) -> bytes:
        from ethosu.vela.tflite import Buffer, Model, OperatorCode, SubGraph

        builder = self.builder
        buffers = []
        for data in self.buffers:
            stored = builder.CreateByteVector(data) if data else None
            Buffer.Start(builder)
            if stored is not None:
                Buffer.AddData(builder, stored)
            buffers.append(Buffer.End(builder))
        codes = []
        for code in self.codes:
            OperatorCode.Start(builder)
            OperatorCode.AddDeprecatedBuiltinCode(builder, code)
            OperatorCode.AddVersion(builder, 3)
            OperatorCode.AddBuiltinCode(builder, code)
            codes.append(OperatorCode.End(builder))
        tensors, operators = self._vector(self.tensors), self._vector(self.operators)
        inputs, outputs = (builder.CreateNumpyVector(np.array([one], np.int32)) for one in (first, last))
        SubGraph.Start(builder)
        SubGraph.AddTensors(builder, tensors)
        SubGraph.AddInputs(builder, inputs)
        SubGraph.AddOutputs(builder, outputs)
        SubGraph.AddOperators(builder, operators)
        graphs = self._vector([SubGraph.End(builder)])
        vectors = self._vector(codes), self._vector(buffers)
        Model.Start(builder)
        Model.AddVersion(builder, 3)
        Model.AddOperatorCodes(builder, vectors[0])
        Model.AddSubgraphs(builder, graphs)
        Model.AddBuffers(builder, vectors[1])
        builder.Finish(Model.End(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


_SUPPORTED = (
    Family.CONV, Family.DEPTHWISE, Family.LINEAR, Family.ADD, Family.CONCAT, Family.POOL, Family.GLOBAL_POOL,
)
