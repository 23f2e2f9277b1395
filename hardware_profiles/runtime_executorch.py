"""ExecuTorch with XNNPACK on CPU, floats only: the kernels that phones and single-board computers run."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from paretopress.hardware_profiles.runtime_torch import OnnxModule
from paretopress.hardware_profiles.timing_protocol import Call, Floats
from paretopress.spaces.errors import ConfigError


@dataclass(frozen=True)
class ExecuTorch:
    """ExecuTorch's runtime, everything that XNNPACK takes delegated to it.

    Its thread pool is as large as the machine: only one thread on a machine of one core, or where the process is
    bound to one, is one thread.
    """

    threads: int = 1
    name: str = "executorch"
    sees_every_node: bool = False
    executes: tuple[str, ...] = ("float32",)

    @property
    def version(self) -> str:
        """Version of the installed package."""
        return version("executorch")

    def open(self, model: bytes, inputs: Floats) -> Call:
        """Lower a model, load it and return a function that runs it once on the inputs.

        Raises:
            ConfigError: XNNPACK's thread pool cannot have this many threads.
        """
        _set_threads(self.threads)
        from executorch.runtime import Runtime

        value = torch.from_numpy(inputs.copy())
        method = Runtime.get().load_program(lowered(model, value)).load_method("forward")
        return lambda: method.execute([value])

    def profile(self, model: bytes, inputs: Floats) -> None:
        """Return None: the installed runtime is built without its event tracer."""


create = ExecuTorch


def lowered(model: bytes, value: torch.Tensor) -> bytes:
    """Return a serialised ONNX model in floats as an ExecuTorch program."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported: Any = torch.export.export(OnnxModule(model).eval(), (value,))
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    return bytes(program.buffer)


def _set_threads(threads: int) -> None:
    """Bind the process to as many processors as it may use threads: the pool follows the affinity."""
    import os

    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("runtime executorch: this system cannot bind a process to processors; measure on Linux")
    allowed = sorted(os.sched_getaffinity(0))
    if threads > len(allowed):
        raise ConfigError(f"runtime executorch: {threads} threads, but {len(allowed)} processors to run on")
    os.sched_setaffinity(0, set(allowed[:threads]))
