"""Paretopress: a model and a device in, a verified Pareto front of really compressed models out.

    result = paretopress.compress(model, data=data, target="local", max_drop="1pp", time="5m")
    print(result.front.table())
    result.export("model.onnx", pick="knee")

One method alone, without a search:

    smaller = paretopress.quantize(model, inputs, bits=4)
    smaller.save("small/")

Names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Set before anything is imported, because the libraries read these once, at import. A user's own values win.
# OpenVINO's telemetry package has no variable of its own: NNCF_CI silences its caller NNCF, and Paretopress
# imports neither.
_ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "NNCF_CI": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

if TYPE_CHECKING:
    from paretopress.api import compress, load
    from paretopress.callbacks import Callback
    from paretopress.compressors.augmentation import Augmentation
    from paretopress.compressors.distillation import DistillationSettings
    from paretopress.evaluators.data import Data
    from paretopress.evaluators.metrics import Metric
    from paretopress.evaluators.parquet import parquet_set
    from paretopress.one_method import (
        apply,
        binarize,
        cluster,
        distill,
        factorize,
        halve,
        prune,
        quantize,
        sparsify,
    )
    from paretopress.result import Front, Point, Result
    from paretopress.searching import Search
    from paretopress.spaces.policy import Policy
    from paretopress.spaces.recipe import Recipe
    from paretopress.trackers import Mlflow, TensorBoard, WeightsAndBiases

    __version__: str

__all__ = [
    "Augmentation", "Callback", "Data", "DistillationSettings", "Front", "Metric", "Mlflow", "Point", "Policy",
    "Recipe", "Result", "Search", "TensorBoard", "WeightsAndBiases", "__version__",
    "apply", "binarize", "cluster", "compress", "distill", "factorize", "halve", "load", "parquet_set", "prune",
    "quantize", "sparsify",
]

_METHODS = ("apply", "binarize", "cluster", "distill", "factorize", "halve", "prune", "quantize", "sparsify")

_HOMES = {
    "Callback": "paretopress.callbacks",
    "Search": "paretopress.searching",
    **dict.fromkeys(("Mlflow", "TensorBoard", "WeightsAndBiases"), "paretopress.trackers"),
    "compress": "paretopress.api",
    "load": "paretopress.api",
    **dict.fromkeys(_METHODS, "paretopress.one_method"),
    "Augmentation": "paretopress.compressors.augmentation",
    "DistillationSettings": "paretopress.compressors.distillation",
    "Data": "paretopress.evaluators.data",
    "Metric": "paretopress.evaluators.metrics",
    "parquet_set": "paretopress.evaluators.parquet",
    "Front": "paretopress.result",
    "Point": "paretopress.result",
    "Result": "paretopress.result",
    "Policy": "paretopress.spaces.policy",
    "Recipe": "paretopress.spaces.recipe",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - module attributes have any type
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("paretopress")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'paretopress' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
