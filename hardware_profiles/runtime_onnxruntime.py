"""ONNX Runtime on CPU: sessions as verified models are timed in, and its profiler."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paretopress.hardware_profiles.timing_protocol import Array, Call, Floats, Node, quiet_mean

# The profiler reports whole microseconds, cut off: half a microsecond is what that loses on average.
CUT_OFF_US = 0.5


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime with the CPU provider on `threads` threads."""

    threads: int = 1
    name: str = "onnxruntime"
    sees_every_node: bool = True
    executes: tuple[str, ...] = ("float32", "int8")

    @property
    def version(self) -> str:
        """Version of the installed runtime."""
        return str(import_onnxruntime().__version__)

    def open(self, model: bytes, inputs: Floats) -> Call:
        """Load a model and return a function that runs it once on the inputs."""
        session = open_session(model, threads=self.threads)
        feed = {session.get_inputs()[0].name: inputs}
        return lambda: session.run(None, feed)

    def profile(self, model: bytes, inputs: Floats) -> ProfiledSession:
        """Load a model with the profiler switched on."""
        return ProfiledSession(model, inputs, self.threads)


create = OnnxRuntime


def import_onnxruntime() -> Any:  # noqa: ANN401 - a module without types
    """Import ONNX Runtime with its telemetry switched off first."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def open_session(model: bytes, profile_prefix: str | None = None, threads: int = 1) -> Any:  # noqa: ANN401 - untyped
    """Open a session, as verified models are timed.

    WeightBiasQuantization is disabled: it would turn float layers between quantised ones into int8.
    """
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    return runtime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )


class ProfiledSession:
    """A session whose profiler writes to a temporary folder."""

    def __init__(self, model: bytes, inputs: Floats, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="paretopress-")
        self._session = open_session(model, str(Path(self._folder.name) / "profile"), threads)
        self._feed = {self._session.get_inputs()[0].name: inputs}

    def call(self) -> object:
        """Run one inference."""
        return self._session.run(None, self._feed)

    def nodes(self, slowness: Array) -> list[Node]:
        """End profiling: executed nodes in order, by the steady ones of the last calls."""
        text = Path(self._session.end_profiling()).read_text(encoding="utf-8")
        self._folder.cleanup()
        times: dict[str, list[float]] = {}
        operators: dict[str, str] = {}
        for event in json.loads(text):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"][: -len("_kernel_time")]
                times.setdefault(name, []).append(float(event["dur"]))
                operators[name] = event["args"]["op_name"]
        result = []
        for name, values in times.items():
            calls = np.array(values[-len(slowness) :]) + CUT_OFF_US
            result.append(Node(name, operators[name], quiet_mean(calls, slowness[-len(calls) :])))
        return result
