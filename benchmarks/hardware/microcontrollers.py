"""What microcontrollers cost per operation: ratios of kernel families by kind of library, and who published them.

Two kinds of int8 libraries stand apart in the MLPerf Tiny results on Cortex-M: what vendors and specialists submit
for their own libraries (depthwise networks as fast per multiply-accumulate as plain ones), and stock libraries as
users find them (CMSIS-NN, microTVM, X-CUBE-AI as downloaded; depthwise networks at 0.55 to 0.8 of that rate). The
division was found in these very data; what shows that it carries over is ST's model zoo, which no ratio has seen.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rates import Part, Rates, fit

from paretopress.hardware_profiles.reference_networks import MLPERF_TINY, PUBLISHED_MACS
from paretopress.spaces.kernels import Family

Array = NDArray[np.float64]
NETWORKS = tuple(MLPERF_TINY)
VENDOR, STOCK = "vendor libraries", "stock libraries"
KINDS = {
    **dict.fromkeys(("STMicroelectronics", "plumerai", "Skymizer", "Nuvoton"), VENDOR),
    **dict.fromkeys(("Krai", "bosch", "cTuning"), STOCK),
}
_BOARDS = re.compile(r"L4R5|H7A3|U575|F746|U385|U3C5|M467|NRF5340|CY8C|G0B1")

_WEIGHTED = {"outputs": "output"}
_MOVED = (Family.ADD, Family.GLOBAL_POOL, Family.ELEMENTWISE, Family.CONCAT, Family.DATA)
_BY_ELEMENTS = {"inputs": "element"}
TERMS: Mapping[Family, Mapping[str, str]] = {
    Family.CONV: {
        "work_1x1": "pointwise", "work_3x3": "dense", "work_other": "dense", "work_shallow": "shallow", **_WEIGHTED,
    },
    Family.GROUPED: {"work": "dense", **_WEIGHTED},
    Family.DEPTHWISE: {"window_reads": "depthwise", **_WEIGHTED},
    Family.LINEAR: {"work": "linear", **_WEIGHTED},
    Family.POOL: {"window_reads": "element"},
    **dict.fromkeys(_MOVED, _BY_ELEMENTS),
}
# Cycles on a Cortex-M4 or M7, whose dual multiply-accumulates do two products of 16 bits per cycle: where the data
# say nothing. `shallow` is what windows over one to three channels cost on top.
PRIOR = {
    "dense": 0.9, "pointwise": 0.7, "depthwise": 1.5, "linear": 1.5, "output": 10.0, "element": 4.0, "shallow": 2.0,
}
RATES = Rates(TERMS, PRIOR)
# Multiply-accumulates per cycle of ic, vww, kws and ad with vendor libraries, from the reference's list of devices
# (where it gives a range, its middle).
REFERENCE_RATES = {
    "stm32-f746": (0.92, 1.02, 0.69, 0.72),
    "stm32-h7a3": (0.86, 0.90, 0.62, 0.52),
    "stm32-l4r5": (0.56, 0.615, 0.43, 0.43),
    "stm32-u575": (0.71, 0.79, 0.57, 0.51),
    "stm32-u385": (0.71, 0.79, 0.57, 0.51),
}


@dataclass(frozen=True, slots=True)
class Submission:
    """One system of the MLPerf Tiny results.

    Attributes:
        round: Such as `v1.1`.
        submitter: Who submitted it.
        system: Its name there.
        microseconds: By network.
        microjoules: By network, where energy was measured.
    """

    round: str
    submitter: str
    system: str
    microseconds: Mapping[str, float]
    microjoules: Mapping[str, float]

    @property
    def board(self) -> str:
        """The chip, `""` where it is no Cortex-M."""
        match = _BOARDS.search(self.system.upper())
        return match[0] if match else ""

    @property
    def kind(self) -> str:
        """Kind of library, `""` where it is no Cortex-M."""
        return KINDS.get(self.submitter, "") if self.board else ""

    @property
    def title(self) -> str:
        """Name for tables."""
        return f"{self.round} {self.submitter} {self.system}"

    def times(self) -> tuple[tuple[str, ...], Array]:
        """Networks in order, and their microseconds."""
        names = tuple(name for name in NETWORKS if name in self.microseconds)
        return names, np.array([self.microseconds[name] for name in names])


def read_submissions(path: Path) -> list[Submission]:
    """Read mlperf_tiny.csv."""
    times: dict[tuple[str, str, str], dict[str, float]] = {}
    energies: dict[tuple[str, str, str], dict[str, float]] = {}
    with path.open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            key = row["round"], row["submitter"], row["system"]
            times.setdefault(key, {})[row["network"]] = 1e6 / float(row["inferences_per_second"])
            if row["energy_uj_per_inference"]:
                energies.setdefault(key, {})[row["network"]] = float(row["energy_uj_per_inference"])
    return [Submission(*key, found, energies.get(key, {})) for key, found in times.items()]


def network_rows(names: Iterable[str] = NETWORKS) -> Array:
    """How much of every rate the MLPerf Tiny networks need, shape (networks, rates)."""
    return RATES.rows([MLPERF_TINY[name](8) for name in names])


def ratios(times: Sequence[Array]) -> Array:
    """Rates, up to a scale, from the times of all four networks on several systems.

    Args:
        times: Of every system, shape (4,), in any unit.
    """
    relative = np.exp(np.mean([np.log(item / item[0]) for item in times], axis=0))
    _, values = fit({"int8": Part(RATES, NETWORKS, network_rows(), relative)})
    return values["int8"]


def reference_ratios() -> Array:
    """Rates, up to a scale, from the reference's multiply-accumulates per cycle."""
    work = np.array([PUBLISHED_MACS[name] for name in NETWORKS], dtype=np.float64)
    return ratios([work / np.array(found) for found in REFERENCE_RATES.values()])


def ratios_of(submissions: Iterable[Submission], kind: str, without: str = "") -> Array:
    """Rates, up to a scale, of one kind of library, from all boards but one."""
    chosen = [one for one in submissions if one.kind == kind and one.board != without and len(one.microseconds) == 4]
    return ratios([one.times()[1] for one in chosen])
