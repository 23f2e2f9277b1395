"""What a device can execute and what a plan costs there: the object that evaluators and search ask."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretopress.hardware_profiles.host import HostInfo, host_info, matches
from paretopress.hardware_profiles.memory import MemoryEstimate, peak_bytes, written_in_place
from paretopress.hardware_profiles.predictor import STAND_IN_RANGE, LatencyModel
from paretopress.hardware_profiles.schema import Format, ProfileDocument, parse_profile
from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.documents import fingerprint
from paretopress.spaces.errors import ProfileError
from paretopress.spaces.kernels import Boundary, CostView, Family, Kernel

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A predicted quantity with its interval.

    Attributes:
        low: 5% quantile of measured values for this prediction.
        mid: The prediction.
        high: 95% quantile.
        unit: `"ms"` or `"mJ"`.
        basis: The tier and what the coefficients rest on.
    """

    low: float
    mid: float
    high: float
    unit: str = "ms"
    basis: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Capacities in bytes, None where unknown."""

    sram_bytes: int | None
    flash_bytes: int | None


@dataclass(frozen=True)
class DeviceProfile:
    """A device with one runtime. All costs are for `batch` and `threads` of this profile.

    Attributes:
        document: The validated content.
    """

    document: ProfileDocument

    @classmethod
    def from_plain(cls, content: Any, source: str) -> DeviceProfile:  # noqa: ANN401 - unvalidated document
        """Build a profile from a parsed document.

        Raises:
            ProfileError: With `source` and the path inside the document.
        """
        profile = cls(parse_profile(content, source))
        if profile.document.latency is not None:
            try:
                profile._model  # noqa: B018 - builds the arrays now, so that faults are reported with their file
            except ValueError as error:
                raise ProfileError(f"{source}: latency: {error}") from None
        return profile

    @property
    def id(self) -> str:
        """Name of the device and runtime."""
        return self.document.id

    @property
    def tier(self) -> str:
        """`"T0"` datasheet (ranks only), `"T1"` calibrated on published figures, `"T2"` measured."""
        return self.document.tier

    @property
    def runtime(self) -> str:
        """Name of the runtime."""
        return self.document.runtime.name

    @property
    def runtime_version(self) -> str:
        """Version of the runtime."""
        return self.document.runtime.version

    @property
    def threads(self) -> int:
        """Threads per inference."""
        return self.document.runtime.threads

    @property
    def batch(self) -> int:
        """Batch size that costs are for."""
        return self.document.runtime.batch

    @property
    def anchors(self) -> str:
        """What the profile was corrected by, `""` where it was not: see `anchoring`."""
        return self.document.latency.anchors if self.document.latency else ""

    @property
    def notes(self) -> str:
        """What a reader should know before trusting the figures."""
        return self.document.notes

    @cached_property
    def plain(self) -> dict[str, Any]:
        """The content as dicts, lists, strings and numbers."""
        return self.document.model_dump(mode="json", by_alias=True, exclude_none=True)

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the hash of the content."""
        return fingerprint(self.plain)

    @cached_property
    def _model(self) -> LatencyModel:
        if self.document.latency is None:
            raise ProfileError(
                f"{self.id} is a {self.tier} profile: it ranks candidates only, never milliseconds; "
                f"use a T1 or T2 profile or a relative budget"
            )
        return LatencyModel.from_document(self.id, self.document)

    @cached_property
    def _formats(self) -> dict[tuple[int, int], Format]:
        return {(item.weights, item.activations): item for item in self.document.formats}

    def capabilities(self) -> Capabilities:
        """Return what is legal on the device."""
        formats = {pair: item for pair, item in self._formats.items() if pair != (32, 32)}
        return Capabilities(
            device=self.id,
            formats=tuple(
                sorted((pair for pair, item in formats.items() if item.status != "refused"), reverse=True)
            ),
            size_only={pair: item.reason for pair, item in formats.items() if item.status == "size_only"},
            refused={pair: item.reason for pair, item in formats.items() if item.status == "refused"},
            channel_step=int(self.document.align.channel_step.value),
            rank_step=int(self.document.align.rank_step.value),
        )

    @property
    def limits(self) -> Limits:
        """Memory capacities of the device."""
        memory = self.document.memory
        return Limits(
            int(memory.sram_bytes.value) if memory.sram_bytes else None,
            int(memory.flash_bytes.value) if memory.flash_bytes else None,
        )

    def executes(self, kernel: Kernel) -> str:
        """Return the arithmetic that a kernel runs in: `"float32"`, `"int8"`, ...

        Raises:
            ProfileError: The device does not know or refuses the kernel's widths.
        """
        return self._executes(kernel.family, kernel.weight_bits, kernel.activation_bits, kernel.name)

    def arithmetic(self, weight_bits: int, activation_bits: int) -> str:
        """Return what a format of weights and activations runs in, `""` where the device does not know it."""
        item = self._formats.get((weight_bits, activation_bits))
        return "" if item is None or item.executes is None else item.executes

    def _executes(self, family: Family, weight_bits: int, activation_bits: int, name: str) -> str:
        # A kernel without weights runs in the type of its tensors.
        if activation_bits < 32 and weight_bits == 32 and family not in _WEIGHTED:
            weight_bits = activation_bits
        item = self._formats.get((weight_bits, activation_bits))
        if item is None or item.executes is None:
            reason = item.reason if item else "the profile does not know this pair"
            raise ProfileError(
                f"{self.id} cannot run kernel {name!r} ({family}) with {weight_bits}-bit weights and "
                f"{activation_bits}-bit activations: {reason}"
            )
        if item.executes == "int8" and family in self.document.float_families:
            return "float32"
        return item.executes

    def kernel_us(self, kernels: Sequence[Kernel]) -> Array:
        """Predict microseconds of each kernel, shape (n,), float64, without the per-call overhead.

        The whole-network calibration of each executed type is included, so that a network is
        `session + sum(kernel_us) + sum(boundary_us)`.

        Raises:
            ProfileError: T0 profile, unknown format, or a family that the profile has no figures for.
        """
        return self._model.kernel_us(kernels, self._types(kernels))

    def boundary_us(self, boundaries: Sequence[Boundary]) -> Array:
        """Predict microseconds of each conversion, shape (n,), float64.

        Raises:
            ProfileError: T0 profile, or the profile has no figures for such a conversion.
        """
        return self._model.boundary_us(boundaries)

    def _types(self, kernels: Sequence[Kernel]) -> list[str]:
        known: dict[tuple[Family, int, int], str] = {}
        result = []
        for kernel in kernels:
            key = (kernel.family, kernel.weight_bits, kernel.activation_bits)
            found = known.get(key)
            if found is None:
                found = known[key] = self.executes(kernel)
            result.append(found)
        return result

    def kernel_cost(self, kernels: Sequence[Kernel]) -> Array:
        """Return a unit-free cost of each kernel, shape (n,), at every tier.

        T0: the roofline `max(MACs / peak, bytes / bandwidth)` (Williams et al., CACM 2009) on datasheet
        peaks; otherwise `kernel_us`.

        Raises:
            ProfileError: Unknown format or executed type.
        """
        if self.document.latency is not None:
            return self.kernel_us(kernels)
        peaks: dict[str, float] = {peak.executes: peak.macs_s.value for peak in self.document.peaks}
        bandwidth = self.document.memory.bandwidth_bytes_s
        assert bandwidth is not None
        costs = np.empty(len(kernels))
        for index, (kernel, executed) in enumerate(zip(kernels, self._types(kernels), strict=True)):
            width = _BYTES[executed]
            moved = (kernel.input_elements + kernel.output_elements + kernel.weight_elements) * width
            costs[index] = max(kernel.macs / peaks[executed], moved / bandwidth.value) * 1e6
        return costs

    def boundary_cost(self, boundaries: Sequence[Boundary]) -> Array:
        """Return a unit-free cost of each conversion, shape (n,), at every tier."""
        if self.document.latency is not None:
            return self.boundary_us(boundaries)
        bandwidth = self.document.memory.bandwidth_bytes_s
        assert bandwidth is not None
        return np.array([item.elements * 5 / bandwidth.value * 1e6 for item in boundaries], dtype=np.float64)

    def relative_cost(self, view: CostView) -> float:
        """Return a unit-free cost that ranks plans on this device, at every tier."""
        return float(
            self.session_cost + self.kernel_cost(view.kernels).sum() + self.boundary_cost(view.boundaries).sum()
        )

    @property
    def session_cost(self) -> float:
        """What `relative_cost` adds to the costs of kernels and conversions, at every tier."""
        return self.document.latency.session_us.value if self.document.latency else 0.0

    @property
    def session_us(self) -> float:
        """Overhead of one call of the runtime in microseconds. Raises `ProfileError` on T0."""
        return self._model.session_us

    def latency_ms(self, view: CostView) -> Estimate:
        """Predict the latency of a whole plan.

        Raises:
            ProfileError: T0 profile, unknown format, or missing figures.
        """
        model, kernels = self._model, self.kernel_us(view.kernels)
        mid = (model.session_us + kernels.sum() + self.boundary_us(view.boundaries).sum()) / 1e3
        runtime = f"{self.runtime} {self.runtime_version}"
        basis = f"{self.tier}, {runtime}, {self.threads} thread(s), batch {self.batch}"
        low, high = mid * model.low, mid * model.high
        guessed = model.stand_ins(view.kernels, self._types(view.kernels))
        if guessed:   # a wider interval for what no figure of its own prices
            low -= (1 - STAND_IN_RANGE[0]) * kernels[guessed].sum() / 1e3 * model.low
            high += (STAND_IN_RANGE[1] - 1) * kernels[guessed].sum() / 1e3 * model.high
            names = ", ".join(sorted({view.kernels[index].family.value for index in guessed}))
            basis += f"; {len(guessed)} kernel(s) ({names}) priced as products of the same size, not measured"
        return Estimate(float(low), float(mid), float(high), "ms", basis)

    def memory(self, view: CostView) -> MemoryEstimate:
        """Return peak activation bytes by liveness, weight bytes, and the runtime's own bytes where known."""
        memory, lifetimes = self.document.memory, view.lifetimes
        if memory.in_place is not None:
            lifetimes = written_in_place(lifetimes, view.kernels, memory.in_place.families)
        runtime = None
        if memory.runtime_bytes is not None or memory.runtime_bytes_per_kernel is not None:
            fixed = memory.runtime_bytes.value if memory.runtime_bytes else 0.0
            each = memory.runtime_bytes_per_kernel.value if memory.runtime_bytes_per_kernel else 0.0
            runtime = round(fixed + each * len(view.kernels))
        return MemoryEstimate(peak_bytes(lifetimes, len(view.kernels)), view.weight_bytes, runtime)

    def over_capacity(self, view: CostView) -> str:
        """Return one line that says what of a network the device has no room for, `""` where it fits.

        Activations and the runtime's own data must fit the SRAM, weights the flash; a capacity that the profile does
        not know limits nothing.
        """
        need, limits = self.memory(view), self.limits
        found = []
        if limits.sram_bytes is not None and need.ram_bytes > limits.sram_bytes:
            runtime = f" and {need.runtime_bytes} of the runtime" if need.runtime_bytes else ""
            activations = f"{need.peak_activation_bytes} bytes of activations{runtime}"
            found.append(f"{activations} exceed its {limits.sram_bytes} bytes of SRAM")
        if limits.flash_bytes is not None and need.weight_bytes > limits.flash_bytes:
            found.append(f"{need.weight_bytes} bytes of weights exceed its {limits.flash_bytes} bytes of flash")
        return "; ".join(found)

    def energy_mj(self, view: CostView) -> Estimate | None:
        """Return active power times latency in millijoules, None where the profile has no sourced power."""
        power = self.document.active_power_mw
        if power is None or self.document.latency is None:
            return None
        time = self.latency_ms(view)
        watts = power.value / 1e3
        return Estimate(
            time.low * watts, time.mid * watts, time.high * watts, "mJ", f"{power.basis} power x {time.basis}"
        )

    def cpu_matches(self, host: HostInfo | None = None) -> bool:
        """Whether this machine's CPU is the one the profile stands for."""
        return self.document.host is not None and matches(self.document.host, host or host_info())

    def runs_here(self) -> bool:
        """Whether this machine can really run the target: ONNX Runtime, one thread, a CPU with its instructions."""
        wanted = self.document.host
        if self.runtime != "onnxruntime" or self.threads != 1 or wanted is None or wanted.machine != platform.machine():
            return False
        return set(wanted.flags) <= host_info().flags

    def host_warning(self) -> str | None:
        """Return why host timings differ from this profile, None where they should agree."""
        if not self.runs_here() or self.cpu_matches():
            return None
        assert self.document.host is not None
        return (
            f"{self.id} describes {self.document.host.cpu_model}, this machine is {host_info().description}: "
            f"timings here will differ from predictions; use the target 'local' for this machine"
        )

    def warn_host(self) -> None:
        """Issue `host_warning()` as a Python warning."""
        message = self.host_warning()
        if message:
            warnings.warn(message, stacklevel=2)


_WEIGHTED = (Family.CONV, Family.GROUPED, Family.DEPTHWISE, Family.TRANSPOSED, Family.LINEAR)
_BYTES = {"float32": 4, "int8": 1, "float16": 2, "bfloat16": 2}
