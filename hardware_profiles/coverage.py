"""Which network to time next: the one whose kernels are least known yet.

Kernels are told apart by strata: family, executed type, window, how their channels fill the runtime's blocks. At
first the networks that fill empty strata are timed; once a fit exists, those with strata whose held-out error is
above a tenth, as the adaptive sampler of nn-Meter does (Zhang et al., MobiSys 2021).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from paretopress.hardware_profiles.fit import Fitted, executed_type, fit_model, kernel_rows
from paretopress.hardware_profiles.networks import Network
from paretopress.hardware_profiles.timing import Timed
from paretopress.spaces.kernels import Kernel, product

TOLERATED = 0.10
_FOLDS = 4
_SHORTEST_US = 5.0
# How much a stratum that is predicted well enough still counts, against one that is not.
_KNOWN = 0.1

Stratum = tuple[str, str, int, str, str, bool]


def stratum_of(kernel: Kernel) -> Stratum:
    """The stratum of a kernel: family, type, window, how input and output channels are aligned, stride."""
    window = min(product(kernel.window), 10)
    strided = product(kernel.stride) > 1
    return (
        kernel.family.value, executed_type(kernel), window, _residue(kernel.cin), _residue(kernel.cout), strided,
    )


def _residue(channels: int) -> str:
    """How a channel count fills blocks of 16, 8 and 4; fewer than one block are their own class."""
    if channels % 16 == 0:
        return "16"
    if channels < 16:
        return "few"
    return "8" if channels % 8 == 0 else "4" if channels % 4 == 0 else "odd"


@dataclass
class Coverage:
    """How well every stratum is known.

    Attributes:
        counts: Timed kernels by stratum.
        errors: Mean held-out error by stratum, of strata with kernels that the profiler resolves.
    """

    counts: Counter[Stratum] = field(default_factory=Counter)
    errors: Mapping[Stratum, float] = field(default_factory=dict)

    def add(self, network: Network) -> None:
        """Count a network that was timed."""
        self.counts.update(map(stratum_of, network.view.kernels))

    def need(self, network: Network) -> float:
        """How much a network would teach: the sum over its strata of what one more kernel of each does."""
        total = 0.0
        for stratum in set(map(stratum_of, network.view.kernels)):
            known = self.errors.get(stratum)
            weight = 1.0 if known is None else max(_KNOWN, known / TOLERATED if known > TOLERATED else 0.0)
            total += weight / (1 + self.counts[stratum])
        return total

    def choose(self, networks: Sequence[Network]) -> int:
        """Position of the network that teaches most."""
        return int(np.argmax([self.need(network) for network in networks]))


def held_out_errors(timed: Sequence[Timed]) -> dict[Stratum, float]:
    """Mean relative error by stratum of kernels that the fit has not seen, over a few folds."""
    errors: dict[Stratum, list[float]] = {}
    for fold in range(_FOLDS):
        fitted = fit_model("coverage", [item for i, item in enumerate(timed) if i % _FOLDS != fold], trees=False)
        for stratum, error in _kernel_errors(fitted, timed[fold::_FOLDS]):
            errors.setdefault(stratum, []).append(error)
    return {stratum: float(np.mean(values)) for stratum, values in errors.items()}


def _kernel_errors(fitted: Fitted, held: Sequence[Timed]) -> Iterable[tuple[Stratum, float]]:
    families = fitted.model.families
    known = [
        item for item in held
        if all((kernel.family, executed_type(kernel)) in families for kernel in item.network.view.kernels)
    ]
    for (_, executed), (kernels, measured) in kernel_rows(known, fitted).items():
        predicted = fitted.model.kernel_us(kernels, [executed] * len(kernels))
        for kernel, guess, truth in zip(kernels, predicted, measured, strict=True):
            if guess >= _SHORTEST_US and truth > 0:
                yield stratum_of(kernel), abs(guess / truth - 1)
