"""The profile document of a measured CPU: what it executes as what, with the fitted figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paretopress.hardware_profiles.fit import Fitted
from paretopress.hardware_profiles.schema import SCHEMA
from paretopress.hardware_profiles.timing_protocol import RuntimeFacts
from paretopress.hardware_profiles.writing import latency_section, number

TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch", "executorch": "ExecuTorch"}

FORMATS: tuple[dict[str, Any], ...] = (
    {"weights": 32, "activations": 32, "status": "legal", "executes": "float32"},
    {"weights": 8, "activations": 8, "status": "fast", "executes": "int8"},
    *(
        {
            "weights": bits,
            "activations": 8,
            "status": "legal",
            "executes": "int8",
            "reason": f"{bits}-bit weights are stored packed and run in an int8 container: the speed of int8",
        }
        for bits in (4, 3, 2)
    ),
    *(
        {
            "weights": bits,
            "activations": 32,
            "status": "size_only",
            "executes": "float32",
            "reason": "weight-only: convolutions run in float32 after the weights are expanded",
        }
        for bits in (8, 4, 3, 2)
    ),
)
_FLOAT_FORMATS: tuple[dict[str, Any], ...] = (
    FORMATS[0],
    *(
        {"weights": bits, "activations": 32, "status": "size_only", "executes": "float32",
         "reason": "weight-only: layers run in float32 after the weights are expanded"}
        for bits in (8, 4, 3, 2)
    ),
    *(
        {"weights": bits, "activations": 8, "status": "refused", "reason": "not measured in this runtime"}
        for bits in (8, 4, 3, 2)
    ),
)
_STEPS = {
    "onnxruntime": "int8 convolutions of ONNX Runtime copy channels whose count is no multiple of 4: they lose time",
}
_STEP = "vector registers hold multiples of 4 channels: what is left over is computed apart"
FLOAT_FAMILIES = {
    "elementwise": "activations that no kernel absorbs are exported in float",
    "norm": "runtimes have no int8 kernel for this normalisation on CPU",
    "matmul": "products of two activations are exported in float",
    "other": "operators without a rule stay in float",
}


def profile_document(
    identifier: str,
    tier: str,
    notes: str,
    fitted: Fitted,
    entries: list[dict[str, Any]],
    host: Mapping[str, Any],
    source: str,
    runtime: RuntimeFacts,
) -> dict[str, Any]:
    """Return the profile document of a CPU with a runtime.

    Args:
        identifier: Id of the profile.
        tier: Its tier.
        notes: What a reader should know.
        fitted: The fitted model.
        entries: Its validation.
        host: The `host` section: which CPUs it stands for.
        source: Where the figures come from.
        runtime: What ran the networks.
    """
    rule = _STEPS.get(runtime.name, _STEP)
    quantises = "int8" in runtime.executes
    latency = latency_section(fitted.model, "measured", source)
    measured = {(family.value, executed) for family, executed in fitted.measured}
    for predictor in latency["predictors"]:
        if (predictor["family"], predictor["executes"]) not in measured:
            origin = f"derived: in no timed network, priced like kernels that do similar work; {source}"
            predictor["terms"] = {
                name: number(leaf["value"], "derived", origin) for name, leaf in predictor["terms"].items()
            }
    return {
        "schema": SCHEMA,
        "id": identifier,
        "kind": "cpu",
        "tier": tier,
        "notes": notes,
        "runtime": {
            "name": runtime.name,
            "version": runtime.version,
            "threads": runtime.threads,
            "batch": 1,
            "removes_dead_branches": True,
        },
        "host": dict(host),
        "formats": list(FORMATS if quantises else _FLOAT_FORMATS),
        "float_families": FLOAT_FAMILIES if quantises else {},
        "align": {"channel_step": number(4, "measured", rule), "rank_step": number(4, "measured", rule)},
        "latency": latency,
        "validation": entries,
    }
