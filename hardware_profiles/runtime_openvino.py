"""OpenVINO on CPU: reads the same ONNX files, floats stay 32 bits wide, one stream."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretopress.hardware_profiles.timing_protocol import Array, Call, Floats, Node

# Every call's microseconds are cut off and so is their mean: half a microsecond each, on average.
CUT_OFF_US = 1.0
# Shorter nodes are mostly reported as not run: their times say nothing.
SHORTEST_US = 3.0


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO's CPU plugin on `threads` threads."""

    threads: int = 1
    name: str = "openvino"
    sees_every_node: bool = False
    executes: tuple[str, ...] = ("float32", "int8")

    @property
    def version(self) -> str:
        """Release of the installed runtime, such as `2026.4.1`."""
        return str(import_openvino().__version__).partition("-")[0]

    def open(self, model: bytes, inputs: Floats) -> Call:
        """Load a model and return a function that runs it once on the inputs."""
        request = self._request(model, inputs, {})
        return lambda: request.infer(share_outputs=True)

    def profile(self, model: bytes, inputs: Floats) -> ProfiledRequest:
        """Load a model with performance counters."""
        return ProfiledRequest(self._request(model, inputs, {"PERF_COUNT": True}))

    def _request(self, model: bytes, inputs: Floats, extra: dict[str, Any]) -> Any:  # noqa: ANN401 - untyped class
        runtime = import_openvino()
        core = runtime.Core()
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",   # some CPUs would take bfloat16 by themselves
            **extra,
        }
        read = core.read_model(model)
        read.reshape(list(inputs.shape))         # a dynamic batch dimension would cost shape inference on every call
        request = core.compile_model(read, "CPU", settings).create_infer_request()
        request.set_input_tensor(runtime.Tensor(np.ascontiguousarray(inputs)))
        return request


create = OpenVino


def import_openvino() -> Any:  # noqa: ANN401 - a module without types
    """Import OpenVINO with its telemetry switched off first."""
    os.environ["OPENVINO_TELEMETRY_DISABLE"] = "1"
    import openvino

    return openvino


class ProfiledRequest:
    """An inference request with performance counters, which hold means over all calls."""

    def __init__(self, request: Any) -> None:  # noqa: ANN401 - untyped class
        self._request = request

    def call(self) -> object:
        """Run one inference."""
        return self._request.infer(share_outputs=True)

    def nodes(self, slowness: Array) -> list[Node]:
        """Return the longer executed nodes in order, scaled to the fastest state of the machine."""
        finite = slowness[np.isfinite(slowness)]
        slow = float(finite.mean()) if len(finite) else 1.0
        result = []
        for item in self._request.profiling_info:
            spent = item.real_time.total_seconds() * 1e6
            if spent >= SHORTEST_US:
                result.append(Node(item.node_name, item.node_type, (spent + CUT_OFF_US) / slow))
        return result
