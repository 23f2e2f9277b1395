"""The runtimes that devices are measured with, by name."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from paretopress.hardware_profiles.timing_protocol import Runtime, runtime_of
from paretopress.spaces.errors import ConfigError, unknown_name

# Name to the module that opens models with it, the package it needs, and what installs that.
RUNTIMES = {
    "onnxruntime": ("runtime_onnxruntime", "onnxruntime", "pip install onnxruntime"),
    "openvino": ("runtime_openvino", "openvino", "pip install 'paretopress[openvino]'"),
    "torch": ("runtime_torch", "torch", "pip install torch"),
    "executorch": ("runtime_executorch", "executorch", "pip install 'paretopress[executorch]'"),
}


def open_runtime(name: str, threads: int = 1) -> Runtime:
    """Return a runtime of this machine.

    Args:
        name: One of `RUNTIMES`.
        threads: Threads per inference.

    Raises:
        ConfigError: Unknown name (with the nearest match), or its package is not installed.
    """
    if name not in RUNTIMES:
        raise ConfigError(unknown_name("runtime", name, list(RUNTIMES)))
    module, package, command = RUNTIMES[name]
    if find_spec(package) is None:
        raise ConfigError(f"runtime {name}: the package {package} is not installed; install it with: {command}")
    return runtime_of(import_module(f"paretopress.hardware_profiles.{module}"), threads)
