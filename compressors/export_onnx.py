"""Export a network to ONNX, and run ONNX files.

Every operator of the network is written by a rule of `onnx_operators`; a graph with an operator that has no
rule goes through `torch.onnx`, which takes seconds instead of hundredths of one. What is quantised where is the
same for both: `onnx_lowering`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paretopress.compressors.network import Network
from paretopress.compressors.onnx_builder import Builder
from paretopress.compressors.onnx_lowering import OPSET, Lowering
from paretopress.compressors.onnx_operators import RULES
from paretopress.compressors.onnx_passes import rewrite
from paretopress.compressors.onnx_values import UntranslatableError, Value
from paretopress.compressors.program import Program
from paretopress.spaces.documents import write_atomic


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
    try:
        proto = translated_model(program, network)
    except UntranslatableError:
        from paretopress.compressors.onnx_tracing import traced_model

        proto = traced_model(program, network)
    content = rewrite(proto).SerializeToString(deterministic=True)
    write_atomic(path, lambda stream: stream.write(content))


def translated_model(program: Program, network: Network) -> Any:  # noqa: ANN401 - onnx protobufs have no useful types
    """Return the network as a `ModelProto`, every operator written by its rule.

    Raises:
        UntranslatableError: An operator has no rule, or none that covers its arguments.
    """
    graph = program.graph
    builder = Builder(program, OPSET, RULES)
    inputs = [_input(builder, program, name) for name in graph.inputs]
    with torch.no_grad():
        values = Lowering(program, network, builder).run(inputs)
    outputs = [values[name] for name in graph.outputs]
    if not all(isinstance(value, Value) for value in outputs):
        raise UntranslatableError("an output that is no tensor")
    return builder.model(inputs, outputs)


def _input(builder: Builder, program: Program, name: str) -> Value:
    node = program.graph.by_name[name]
    more = 1 if program.graph.dynamic_batch else 0
    one, other = (
        torch.empty(node.shape[0] + extra, *node.shape[1:], dtype=getattr(torch, node.dtype), device="meta")
        for extra in (0, more)
    )
    return builder.input(name, (one, other))


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
