"""This machine's CPU, and whether a profile stands for it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:   # a probe takes this module to machines without pydantic
    from paretopress.hardware_profiles.schema import Host


@dataclass(frozen=True)
class HostInfo:
    """What identifies a CPU.

    Attributes:
        model: The model name as the kernel reports it.
        family: CPU family number, None where unknown. Virtual machines often shorten the model name, and
            then the family is what tells generations apart.
        flags: Instruction-set flags.
        machine: Architecture, such as `"x86_64"`.
    """

    model: str
    family: int | None
    flags: frozenset[str]
    machine: str

    @property
    def description(self) -> str:
        """Model and family for messages."""
        return self.model + (f" (family {self.family})" if self.family is not None else "")

    @property
    def text(self) -> str:
        """Architecture, model and family, as files of raw samples have them."""
        return f"{self.machine}: {self.description}"


def parse_cpuinfo(text: str, machine: str) -> HostInfo:
    """Read the first processor of a /proc/cpuinfo text."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    family = fields.get("cpu family", "")
    flags = fields.get("flags", fields.get("Features", ""))
    model = fields.get("model name") or fields.get("CPU part") or platform.processor() or "unknown CPU"
    return HostInfo(model, int(family) if family.isdigit() else None, frozenset(flags.split()), machine)


@lru_cache(maxsize=1)
def host_info() -> HostInfo:
    """Return this machine's CPU; without /proc/cpuinfo only the architecture is known."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return parse_cpuinfo(text, platform.machine())


def matches(wanted: Host, host: HostInfo) -> bool:
    """Whether a host is the CPU a profile stands for."""
    return (
        wanted.machine == host.machine
        and wanted.cpu_model.lower() in host.model.lower()
        and set(wanted.flags) <= host.flags
        and (wanted.cpu_family is None or wanted.cpu_family == host.family)
    )
