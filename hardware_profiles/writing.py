"""Turning fitted models into profile documents: plain data with a basis and a source on every number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from paretopress.hardware_profiles.accuracy import Accuracy
from paretopress.hardware_profiles.correction import Trees, to_text
from paretopress.hardware_profiles.features import Alignment
from paretopress.hardware_profiles.predictor import FamilyModel, LatencyModel


def number(value: float, basis: str, source: str) -> dict[str, Any]:
    """One leaf of a profile, six significant digits where it is not a whole number."""
    exact = float(value).is_integer()
    return {"value": float(value) if exact else float(f"{value:.6g}"), "basis": basis, "source": source}


def latency_section(
    model: LatencyModel, basis: str, source: str, sources: Mapping[tuple[str, str], str] | None = None
) -> dict[str, Any]:
    """Return the `latency` section of a profile.

    Args:
        model: The fitted model.
        basis: Basis of the coefficients, such as `"measured"`.
        source: Where they come from.
        sources: Other sources by (family, executed type).
    """
    predictors = []
    for (family, executed), item in sorted(model.families.items()):
        origin = (sources or {}).get((family.value, executed), source)
        predictors.append(_predictor(family.value, executed, item, basis, origin))
    return {
        "session_us": number(model.session_us, basis, source),
        "alignment": {name: _blocks(item) for name, item in model.alignment.items()},
        "predictors": predictors,
        "boundaries": [
            {
                "kind": kind,
                "terms": {
                    name: number(value, basis, source) for name, value in zip(names, values, strict=True)
                },
            }
            for kind, (names, values) in sorted(model.boundaries.items())
        ],
        "calibration": {name: number(value, basis, source) for name, value in model.calibration.items()},
        "interval_low": number(model.low, basis, source),
        "interval_high": number(model.high, basis, source),
    }


def _blocks(item: Alignment) -> dict[str, Any]:
    origin = "how the runtime's kernels round channels up (blocked layouts and packed products)"
    return {
        "input_channels": number(item.input_channels, "published", origin),
        "output_channels": number(item.output_channels, "published", origin),
        "odd": number(item.odd, "published", origin),
    }


def _predictor(family: str, executed: str, item: FamilyModel, basis: str, source: str) -> dict[str, Any]:
    terms = {
        name: number(value, basis, source) for name, value in zip(item.names, item.coefficients, strict=True)
    }
    result: dict[str, Any] = {"family": family, "executes": executed, "terms": terms}
    if item.trees is not None:
        result["correction"] = _correction(item.trees, basis, source)
    return result


def _correction(trees: Trees, basis: str, source: str) -> dict[str, Any]:
    return {
        "depth": trees.depth,
        "features": to_text(trees.features),
        "thresholds": to_text(trees.thresholds),
        "leaves": to_text(trees.leaves),
        "lower": to_text(trees.lower),
        "upper": to_text(trees.upper),
        "basis": basis,
        "source": source,
    }


def validation_entry(
    name: str, result: Accuracy, source: str, calibrated_on: int | None = None, unknown: int | None = None
) -> dict[str, Any]:
    """One entry of the `validation` section.

    Args:
        name: What was measured.
        result: The errors.
        source: Where the measurements come from.
        calibrated_on: Measurements that the coefficients rest on, where that is known.
        unknown: Rows that the profile has no figures for.
    """
    entry = {
        "set": name,
        "n": result.n,
        "mape": round(result.mape, 4),
        "within10": round(result.within10, 4),
        "within5": round(result.within5, 4),
        "bias": round(result.bias, 4),
        "spearman": round(result.spearman, 4),
        "calibrated_on": calibrated_on,
        "unknown": unknown,
        "source": source,
    }
    return {key: value for key, value in entry.items() if value is not None}


class _Dumper(yaml.SafeDumper):
    """Block style, with each number's three fields on one line."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:  # noqa: ANN401
        leaf = hasattr(mapping, "keys") and set(mapping) == {"value", "basis", "source"}
        return super().represent_mapping(tag, mapping, flow_style=True if leaf else flow_style)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401, ARG002 - profiles are read without aliases
        return True


def profile_text(content: Mapping[str, Any]) -> str:
    """Return the YAML text of a profile."""
    return yaml.dump(
        dict(content),
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        width=10_000,
        allow_unicode=True,
    )
