"""Rates of kernels from few whole networks: least squares of relative errors, pulled towards given ratios.

Three to eight published networks cannot tell many rates apart. Every term of a kernel family is a rate that families
may share; a prior gives the ratios of the rates, the data one scale, and as much of a departure from the ratios as
the weight of the prior leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from paretopress.hardware_profiles.features import Alignment, columns, matrix
from paretopress.hardware_profiles.nnls import non_negative_least_squares
from paretopress.hardware_profiles.predictor import FamilyModel, LatencyModel
from paretopress.spaces.kernels import CostView, Family

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rates:
    """What is fitted for one arithmetic.

    Attributes:
        terms: Feature to the name of its rate, by family.
        prior: Ratios of the rates, per thousand of what their features count.
        weight: How hard the prior pulls: an error of 100% in a rate counts as much as `weight` times an error of
            100% in a network's time.
        alignment: How kernels round channels up.
    """

    terms: Mapping[Family, Mapping[str, str]]
    prior: Mapping[str, float]
    weight: float = 0.1
    alignment: Alignment = field(default_factory=Alignment)

    def rows(self, views: Sequence[CostView]) -> Array:
        """How much of every rate networks need, shape (networks, rates)."""
        return np.array([self._row(view) for view in views])

    def _row(self, view: CostView) -> Array:
        total = dict.fromkeys(self.prior, 0.0)
        for family in {kernel.family for kernel in view.kernels}:
            table = columns([kernel for kernel in view.kernels if kernel.family == family])
            terms = self.terms[family]
            sums = matrix(table, list(terms), self.alignment).sum(axis=0)
            for rate, amount in zip(terms.values(), sums, strict=True):
                total[rate] += float(amount)
        return np.array(list(total.values()))

    def families(self, values: Array) -> dict[Family, FamilyModel]:
        """The predictors of all families with terms."""
        by_name = dict(zip(self.prior, values, strict=True))
        return {
            family: FamilyModel(tuple(terms), np.array([by_name[rate] for rate in terms.values()]), None)
            for family, terms in self.terms.items()
        }


@dataclass(frozen=True)
class Part:
    """The networks of one arithmetic.

    Attributes:
        rates: What is fitted.
        names: Names of the networks.
        rows: How much of every rate they need, shape (networks, rates).
        microseconds: What was published, shape (networks,).
    """

    rates: Rates
    names: tuple[str, ...]
    rows: Array
    microseconds: Array

    def without(self, name: str) -> Part:
        """All networks but one."""
        keep = np.array([other != name for other in self.names])
        names = tuple(other for other in self.names if other != name)
        return Part(self.rates, names, self.rows[keep], self.microseconds[keep])


def fit(parts: Mapping[str, Part], session: bool = False) -> tuple[float, dict[str, Array]]:
    """Fit the rates of several arithmetics that share the overhead of a call.

    Returns:
        Microseconds of a call (0 without `session`), and microseconds per rate by arithmetic, none negative.
    """
    width = int(session) + sum(len(part.rates.prior) for part in parts.values())
    blocks, targets, start = [], [], int(session)
    for part in parts.values():
        ratios = np.array(list(part.rates.prior.values()))
        columns_of = slice(start, start + len(ratios))
        relative = np.zeros((len(part.rows), width))
        relative[:, columns_of] = part.rows / part.microseconds[:, None]
        scale = float(np.exp(np.mean(-np.log(relative[:, columns_of] @ ratios))))
        if session:
            relative[:, 0] = 1.0 / part.microseconds
        pull = np.zeros((len(ratios), width))
        pull[:, columns_of] = np.diag(part.rates.weight / (ratios * scale))
        blocks += [relative, pull]
        targets += [np.ones(len(relative)), np.full(len(ratios), part.rates.weight)]
        start += len(ratios)
    solution = non_negative_least_squares(np.concatenate(blocks), np.concatenate(targets))
    values, start = {}, int(session)
    for executed, part in parts.items():
        values[executed] = solution[start : start + len(part.rates.prior)]
        start += len(part.rates.prior)
    return (float(solution[0]) if session else 0.0), values


def leave_one_network_out(parts: Mapping[str, Part], session: bool = False) -> dict[str, Array]:
    """Predict every network from a fit to all others, in every arithmetic; microseconds by arithmetic."""
    result = {executed: np.zeros(len(part.names)) for executed, part in parts.items()}
    for name in dict.fromkeys(name for part in parts.values() for name in part.names):
        call, values = fit({executed: part.without(name) for executed, part in parts.items()}, session)
        for executed, part in parts.items():
            if name in part.names:
                index = part.names.index(name)
                result[executed][index] = call + part.rows[index] @ values[executed]
    return result


def geometric_scale(shape: Array, microseconds: Array) -> float:
    """The one factor that brings predictions nearest to measurements: the geometric mean of their ratio."""
    return float(np.exp(np.mean(np.log(microseconds / shape))))


def scaled_leave_one_out(shape: Array, microseconds: Array) -> Array:
    """Predict every network from its fixed shape and one factor that the others give, shape (networks,)."""
    everyone = np.arange(len(shape))
    return np.array([
        shape[index] * geometric_scale(shape[everyone != index], microseconds[everyone != index])
        for index in everyone
    ])


def latency_model(
    device: str, rates: Mapping[str, Rates], values: Mapping[str, Array], session_us: float, conversion: str
) -> LatencyModel:
    """A predictor for several arithmetics; a conversion costs the rate `conversion` of the integers, if any."""
    families = {
        (family, executed): model
        for executed, one in rates.items() for family, model in one.families(values[executed]).items()
    }
    boundaries = {}
    if conversion:
        per_element = values["int8"][list(rates["int8"].prior).index(conversion)]
        boundaries = dict.fromkeys(("quantize", "dequantize"), (("elements",), np.array([per_element])))
    alignment = {executed: one.alignment for executed, one in rates.items()}
    return LatencyModel(device, alignment, families, boundaries, {}, session_us, 1.0, 1.0)
