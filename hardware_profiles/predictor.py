"""The latency predictor: an aligned roofline per family and executed type, vectorised over kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretopress.hardware_profiles import schema
from paretopress.hardware_profiles.correction import INPUTS, Trees, from_text, shape_inputs
from paretopress.hardware_profiles.features import Alignment, Columns, boundary_matrix, columns, matrix
from paretopress.spaces.errors import ProfileError
from paretopress.spaces.kernels import Boundary, Family, Kernel

Array = NDArray[np.float64]
SMALLEST_US = 1e-3
FACTOR_RANGE = (0.3, 3.0)
# Families that most profiles have no figures for, and what their kernels are priced as.
STAND_INS = {Family.TRANSPOSED: Family.CONV}
# What a kernel that is priced as another's family may really take, as a factor: seven transposed convolutions
# took 0.54 to 1.82 times as long as their products in ONNX Runtime 1.31 on an AMD EPYC.
STAND_IN_RANGE = (0.4, 2.5)


@dataclass(frozen=True, slots=True)
class FamilyModel:
    """Roofline coefficients of one family in one executed type, with an optional correction."""

    names: tuple[str, ...]
    coefficients: Array
    trees: Trees | None

    def predict(self, table: Columns, alignment: Alignment) -> Array:
        """Return microseconds, shape (n,), all > 0."""
        base = np.maximum(matrix(table, self.names, alignment) @ self.coefficients, SMALLEST_US)
        if self.trees is None:
            return base
        factors = 1 + self.trees.predict(shape_inputs(table, alignment))
        return base * np.clip(factors, *FACTOR_RANGE)


@dataclass(frozen=True)
class LatencyModel:
    """All predictors of a profile.

    Attributes:
        device: The profile's id, for messages.
        alignment: How kernels round channels up, by executed type.
        families: Models by (family, executed type).
        boundaries: Feature names and coefficients by kind of conversion.
        calibration: Whole-network scalar by executed type.
        session_us: Overhead of one call.
        low: 5% quantile of measured / predicted over whole networks.
        high: 95% quantile.
    """

    device: str
    alignment: Mapping[str, Alignment]
    families: Mapping[tuple[Family, str], FamilyModel]
    boundaries: Mapping[str, tuple[tuple[str, ...], Array]]
    calibration: Mapping[str, float]
    session_us: float
    low: float
    high: float

    @classmethod
    def from_document(cls, device: str, document: schema.ProfileDocument) -> LatencyModel:
        """Build the arrays. Raises ValueError for malformed correction texts."""
        latency = document.latency
        assert latency is not None
        return cls(
            device,
            {
                name: Alignment(
                    int(item.input_channels.value), int(item.output_channels.value), int(item.odd.value)
                )
                for name, item in latency.alignment.items()
            },
            {(Family(item.family), item.executes): _family_model(item) for item in latency.predictors},
            {item.kind: _terms(item.terms) for item in latency.boundaries},
            {name: number.value for name, number in latency.calibration.items()},
            latency.session_us.value,
            latency.interval_low.value,
            latency.interval_high.value,
        )

    def kernel_us(self, kernels: Sequence[Kernel], executes: Sequence[str]) -> Array:
        """Return microseconds of each kernel, shape (n,).

        Raises:
            ProfileError: No figures for a family in its executed type.
        """
        result = np.empty(len(kernels))
        groups: dict[tuple[Family, str], list[int]] = {}
        for index, (kernel, executed) in enumerate(zip(kernels, executes, strict=True)):
            groups.setdefault((kernel.family, executed), []).append(index)
        for (family, executed), members in groups.items():
            stand_in = STAND_INS.get(family, family)
            model = self.families.get((family, executed)) or self.families.get((stand_in, executed))
            if model is None:
                kernel = kernels[members[0]]
                raise ProfileError(
                    f"{self.device} has no figures for {executed} {family} kernels "
                    f"(first: {kernel.name!r}, {kernel.weight_bits}-bit weights)"
                )
            table = columns([kernels[index] for index in members])
            result[members] = model.predict(
                table, self.alignment.get(executed, Alignment())
            ) * self.calibration.get(executed, 1.0)
        return result

    def stand_ins(self, kernels: Sequence[Kernel], executes: Sequence[str]) -> list[int]:
        """Positions of the kernels whose family is priced as another one."""
        known = zip(kernels, executes, strict=True)
        return [index for index, (kernel, executed) in enumerate(known)
                if kernel.family in STAND_INS and (kernel.family, executed) not in self.families]

    def boundary_us(self, boundaries: Sequence[Boundary]) -> Array:
        """Return microseconds of each conversion, shape (n,).

        Raises:
            ProfileError: No figures for a kind of conversion.
        """
        result = np.empty(len(boundaries))
        for kind in {item.kind for item in boundaries}:
            if kind not in self.boundaries:
                raise ProfileError(f"{self.device} has no figures for {kind!r} conversions")
            names, coefficients = self.boundaries[kind]
            members = [index for index, item in enumerate(boundaries) if item.kind == kind]
            result[members] = boundary_matrix([boundaries[index] for index in members], names) @ coefficients
        return result


def _terms(terms: Mapping[str, schema.NotNegative]) -> tuple[tuple[str, ...], Array]:
    return tuple(terms), np.array([number.value for number in terms.values()], dtype=np.float64)


def _family_model(item: schema.Predictor) -> FamilyModel:
    names, coefficients = _terms(item.terms)
    return FamilyModel(names, coefficients, None if item.correction is None else trees_from(item.correction))


def trees_from(item: schema.Correction) -> Trees:
    """Decode a stored correction.

    Raises:
        ValueError: A text holds anything but finite numbers, or the counts do not fit the depth.
    """
    splits = 2**item.depth - 1
    leaves, thresholds = from_text(item.leaves), from_text(item.thresholds)
    features = from_text(item.features).astype(np.int64)
    lower, upper = from_text(item.lower), from_text(item.upper)
    count = len(leaves) // (splits + 1)
    if (
        len(leaves) != count * (splits + 1)
        or len(thresholds) != count * splits
        or len(features) != count * splits
    ):
        raise ValueError(f"correction: counts do not fit {count} trees of depth {item.depth}")
    if len(lower) != INPUTS or len(upper) != INPUTS or ((features < 0) | (features >= INPUTS)).any():
        raise ValueError(f"correction: expected {INPUTS} inputs")
    return Trees(
        item.depth,
        features.reshape(count, splits),
        thresholds.reshape(count, splits),
        leaves.reshape(count, splits + 1),
        lower,
        upper,
    )
