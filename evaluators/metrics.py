"""Metrics: what a model's outputs are worth, as finite numbers with a direction."""

from __future__ import annotations

import hashlib
import inspect
import math
import numbers
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paretopress.spaces.errors import ConfigError, DataError, ParetopressError, unknown_name

Direction = Literal["max", "min"]
Array = NDArray[np.float64]
PRIMARY = "accuracy"
# Names that costs and figures of a candidate carry beside the metrics, in trials, in `measured` and in tables.
COST_NAMES = frozenset({"latency", "relative", "size", "macs", "peak_memory", "energy", "robust"})
RESERVED = COST_NAMES | {
    "divergence", "feasible", "knee", "why_not", "id", "name", "policy", "policy_hash", "tier", "host", "device",
    "latency_ms", "latency_ms_iqr", "latency_ms_baseline", "latency_ms_baseline_iqr", "slowdown", "speedup",
    "runs", "parity", "size_bytes", "size_bytes_baseline", "disk_bytes", "onnx_bytes", "peak_memory_bytes",
    "accuracy_baseline", "accuracy_drop", "accuracy_drop_interval", "accuracy_interval", "accuracy_search",
    "accuracy_stitched",
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def top1(outputs: Any, targets: Tensor) -> float:  # noqa: ANN401 - models return any structure
    """Return the share of correct first guesses, 0 to 1.

    >>> import torch
    >>> top1(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    0.5

    Args:
        outputs: Scores `(n, classes, ...)` with the classes on dimension 1 as in PyTorch's cross entropy;
            of a tuple the first member counts, of a mapping or a Hugging Face output the member `logits`.
        targets: Class numbers `(n, ...)`.

    Raises:
        DataError: The scores are not finite, or the shapes do not belong together.
    """
    return float(right_first(outputs, targets).double().mean())


def right_first(outputs: Any, targets: Tensor) -> Tensor:  # noqa: ANN401
    """Return which first guesses are correct, booleans in the shape of `targets`. See `top1`."""
    scores = _logits(outputs)
    if scores.ndim < 2 or scores.shape[1] < 2 or scores.shape[:1] + scores.shape[2:] != targets.shape:
        raise DataError(
            f"top1 needs outputs (n, classes, ...) and targets (n, ...), got {tuple(scores.shape)} and "
            f"{tuple(targets.shape)}; pass metric=your_function for other tasks"
        )
    if not bool(torch.isfinite(scores).all()):
        raise DataError("the model's outputs hold NaN or infinities")
    return scores.argmax(dim=1) == targets


def _logits(outputs: Any) -> Tensor:  # noqa: ANN401
    if isinstance(outputs, Mapping) and "logits" in outputs:
        outputs = outputs["logits"]
    elif isinstance(outputs, tuple) and outputs:
        outputs = outputs[0]
    if isinstance(outputs, Tensor):
        return outputs
    raise DataError(f"top1 needs a tensor, a tuple or a mapping with 'logits', got {type(outputs).__name__}")


@dataclass(frozen=True)
class Metric:
    """A named function of the whole set's outputs and targets.

    Attributes:
        function: `(outputs, targets) -> float`, called once on the concatenated outputs on the CPU.
        direction: Whether more (`max`) or less (`min`) is better.
        name: The objective's name; the first metric of a run is always `accuracy`.
        label: What the user called it, for reports.
        samples: `(outputs, targets)` to one value per sample, each from 0 to 1, whose mean is the metric. With it a
            search need not score hopeless candidates on every sample; `top1` has one of its own.
    """

    function: Callable[[Any, Tensor], float]
    direction: Direction = "max"
    name: str = PRIMARY
    label: str = ""
    samples: Callable[[Any, Tensor], Any] | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            got = type(self.function).__name__
            raise ConfigError(f"metric {self.name!r}: expected a callable, got {got}")
        if self.direction not in ("max", "min"):
            problem = unknown_name("direction", str(self.direction), ("max", "min"))
            raise ConfigError(f"metric {self.name!r}: {problem}")

    def __call__(self, outputs: Any, targets: Tensor) -> float:  # noqa: ANN401
        """Return the metric of concatenated outputs.

        Raises:
            DataError: The result is not one finite number, or the function raised; the message names the metric.
        """
        shown = self.label or self.name
        try:
            result = self.function(outputs, targets)
        except ParetopressError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise DataError(f"metric {shown!r} raised {what} at {place.filename}:{place.lineno}") from error
        if isinstance(result, Tensor):
            if result.numel() != 1:
                shape = tuple(result.shape)
                raise DataError(f"metric {shown!r} returned a tensor of shape {shape}, not a number")
            result = result.item()
        if isinstance(result, bool) or not isinstance(result, numbers.Real):
            raise DataError(f"metric {shown!r} returned {type(result).__name__}, not a number")
        value = float(result)
        if not math.isfinite(value):
            raise DataError(f"metric {shown!r} returned {value}, not a finite number")
        return value

    @property
    def is_mean(self) -> bool:
        """Whether it is known to be the mean of values of single samples; others may depend on the samples' order."""
        return self.samples is not None or self.function is top1

    def sample_scores(self, outputs: Any, targets: Tensor) -> Array | None:  # noqa: ANN401
        """Return one value per sample whose mean is the metric, `(n,)`, None where none are known.

        Args:
            outputs: What the model returned for all samples, on the CPU.
            targets: `(n, ...)`.

        Raises:
            DataError: The user's function returned what no sample values can be; the message names the metric.
        """
        own = self.samples or (right_first if self.function is top1 else None)
        if own is None:
            return None
        found = np.asarray(own(outputs, targets), dtype=np.float64)
        shown = self.label or self.name
        if found.ndim == 0 or len(found) != len(targets):
            raise DataError(f"metric {shown!r}: samples returned shape {found.shape} for {len(targets)} samples "
                            f"(allowed: one value per sample)")
        found = np.asarray(found.reshape(len(found), -1).mean(axis=1), dtype=np.float64)
        if not bool(((found >= 0.0) & (found <= 1.0)).all()):   # also where one is not a number
            raise DataError(f"metric {shown!r}: samples returned values outside 0 to 1 (allowed: values from 0 to 1)")
        return found

    def identity(self) -> list[str]:
        """Return what tells this metric from another: name, direction, function and hash of its source."""
        function = getattr(self.function, "func", self.function)  # of a functools.partial
        try:
            source = inspect.getsource(function)
        except (OSError, TypeError):
            source = ""
        name = getattr(function, "__qualname__", type(function).__qualname__)
        where = f"{getattr(function, '__module__', '')}.{name}"
        return [self.name, self.direction, where, hashlib.sha256(source.encode()).hexdigest()[:16]]


MetricLike = Callable[[Any, Tensor], float] | Metric


def normalise_metric(metric: MetricLike | Mapping[str, MetricLike]) -> tuple[Metric, ...]:
    """Return the metrics of a run; the first is named `accuracy`.

    Args:
        metric: A callable (maximised), a `Metric`, or a mapping of names to either.

    Raises:
        ConfigError: The mapping is empty, or a name is malformed, taken twice, or reserved.
    """
    if not isinstance(metric, Mapping):
        return (_named(metric, PRIMARY, ""),)
    if not metric:
        raise ConfigError("metric: the mapping is empty (allowed: a callable, a Metric, or {name: callable})")
    for name in metric:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"metric name {name!r}: allowed are letters, digits and _, a letter first")
        if name in RESERVED:
            raise ConfigError(
                f"metric name {name!r} is reserved for a cost or another figure of a candidate "
                f"(allowed: any other name, such as {f'my_{name}'!r})"
            )
    first, *others = metric.items()
    if PRIMARY in dict(others):
        raise ConfigError(
            f"metric name {PRIMARY!r} belongs to the first metric, which is {first[0]!r} here "
            f"(allowed: put {PRIMARY!r} first, or name it otherwise)"
        )
    return (_named(first[1], PRIMARY, first[0]), *(_named(value, name, name) for name, value in others))


def _named(metric: MetricLike, name: str, label: str) -> Metric:
    if isinstance(metric, Metric):
        return replace(metric, name=name, label=metric.label or label)
    return Metric(metric, "max", name, label or getattr(metric, "__name__", ""))


def score(metrics: Sequence[Metric], outputs: Any, targets: Tensor) -> dict[str, float]:  # noqa: ANN401
    """Return every metric's value by name. Raises `DataError` naming the metric that is not finite."""
    return {metric.name: metric(outputs, targets) for metric in metrics}


def concatenate_outputs(outputs: Sequence[Any]) -> Any:  # noqa: ANN401
    """Join the outputs of consecutive batches along the sample dimension, in the structure returned.

    Tensors move to the CPU and are concatenated; tuples, named tuples, lists, mappings and Hugging Face
    outputs are joined member by member; a tensor without dimensions becomes one entry per batch; anything
    else must be equal in all batches.

    Raises:
        DataError: There is no batch, or the batches differ in structure or in sample shape.
    """
    if not outputs:
        raise DataError("there are no outputs to score")
    first = outputs[0]
    if any(type(other) is not type(first) for other in outputs):
        raise DataError(f"the model's outputs differ in type between batches: {_types(outputs)}")
    if isinstance(first, Tensor):
        return _concatenate_tensors(outputs)
    if isinstance(first, Mapping):
        if any(list(other) != list(first) for other in outputs):
            raise DataError("the model's outputs differ in their keys between batches")
        joined = {key: concatenate_outputs([other[key] for other in outputs]) for key in first}
        return joined if type(first) is dict else type(first)(**joined)
    if isinstance(first, tuple | list):
        if len({len(other) for other in outputs}) > 1:
            raise DataError("the model's outputs differ in length between batches")
        members = [concatenate_outputs(list(column)) for column in zip(*outputs, strict=True)]
        return type(first)(*members) if hasattr(first, "_fields") else type(first)(members)
    if any(other != first for other in outputs):
        raise DataError(f"outputs of type {type(first).__name__} differ between batches and cannot be joined")
    return first


def _concatenate_tensors(outputs: Sequence[Tensor]) -> Tensor:
    parts = [part.detach().cpu() for part in outputs]
    if parts[0].ndim == 0:
        return torch.stack(parts)
    shapes = sorted({str(tuple(part.shape[1:])) for part in parts})
    if len(shapes) > 1:
        raise DataError(f"the model's outputs differ in sample shape between batches: {', '.join(shapes)}")
    return torch.cat(parts)


def _types(values: Sequence[Any]) -> str:
    return ", ".join(sorted({type(value).__name__ for value in values}))
