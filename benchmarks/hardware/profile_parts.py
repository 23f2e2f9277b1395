"""Parts that generated profiles share: what widths execute as, and errors of held-out networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from paretopress.hardware_profiles.accuracy import Accuracy
from paretopress.hardware_profiles.predictor import LatencyModel
from paretopress.hardware_profiles.writing import number

NARROW = (4, 3, 2)


def _format(weights: int, activations: int, status: str, executes: str = "", reason: str = "") -> dict[str, Any]:
    entry = {"weights": weights, "activations": activations, "status": status, "executes": executes, "reason": reason}
    return {key: value for key, value in entry.items() if value != ""}


def integer_formats(float_reason: str) -> list[dict[str, Any]]:
    """8-bit tensors only; narrower weights are expanded to 8 bits where they are stored."""
    expanded = "weights below 8 bits are expanded to int8 in flash: no saving on the device"
    return [
        _format(8, 8, "fast", "int8"),
        *(_format(bits, 8, "legal", "int8", expanded) for bits in NARROW),
        *(_format(bits, 32, "refused", reason=float_reason) for bits in (32, 8, *NARROW)),
    ]


def mixed_formats(floats: str, integers: bool = True, refused: str = "") -> list[dict[str, Any]]:
    """Floats as `floats` and, where published, 8-bit integers; narrower weights are storage only."""
    expanded = f"weight-only: runs in {floats} after the weights are expanded"
    narrow = "stored packed, runs in an int8 container: the speed of int8"
    eight = [_format(8, 8, "fast", "int8"), *(_format(bits, 8, "legal", "int8", narrow) for bits in NARROW)]
    none = [_format(bits, 8, "refused", reason=refused) for bits in (8, *NARROW)]
    return [
        _format(32, 32, "legal", floats),
        *(eight if integers else none),
        *(_format(bits, 32, "size_only", floats, expanded) for bits in (8, *NARROW)),
    ]


def with_interval(model: LatencyModel, *results: Accuracy) -> LatencyModel:
    """Store the widest quantiles of measured / predicted over the checks; the prediction itself lies inside."""
    return replace(
        model, low=min(1.0, *(one.low for one in results)), high=max(1.0, *(one.high for one in results))
    )


def step(value: int, basis: str, source: str) -> dict[str, Any]:
    """The same hard step for channels and ranks."""
    leaf = number(value, basis, source)
    return {"channel_step": leaf, "rank_step": leaf}
