"""What one worker of a Ray cluster takes of its node: processors, accelerators, and names of the user's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from paretopress.spaces.errors import ConfigError

_EXACT = 10_000   # Ray counts ten-thousandths


@dataclass(frozen=True)
class WorkerResources:
    """What Ray reserves for a worker. Ray only counts: nothing stops a worker that computes more.

    Attributes:
        cpus: Processors, at least 1: an evaluation computes on one thread.
        gpus: Accelerators; a fraction shares one.
        custom: Amounts of the cluster's own resources by name, such as `{"licence": 1}`.
    """

    cpus: int = 1
    gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise ConfigError(f"worker resources: cpu {self.cpus} is below 1")
        amounts = {"gpu": self.gpus, **self.custom}
        for name, amount in amounts.items():
            if not 0.0 <= amount < math.inf or (amount > 1.0 and amount != int(amount)):
                raise ConfigError(f"worker resources: {name}={amount:g} (allowed: a whole number, or a part of 1)")
            if not name or name in ("CPU", "GPU") or "=" in name or "," in name:
                raise ConfigError(f"worker resources: {name!r} is no name (allowed: cpu, gpu, or the cluster's own)")

    @property
    def amounts(self) -> dict[str, float]:
        """What one worker takes, by Ray's names."""
        gpus = {"GPU": self.gpus} if self.gpus else {}
        return {"CPU": float(self.cpus), **gpus, **self.custom}

    def of(self, workers: int) -> dict[str, float]:
        """What a machine needs for so many workers, by Ray's names; devices are counted whole."""
        total = {name: round(amount * workers * _EXACT) / _EXACT for name, amount in self.amounts.items()}
        return {**total, "CPU": int(total["CPU"]), "GPU": math.ceil(total.get("GPU", 0.0))}


def parse_worker_resources(text: str) -> WorkerResources:
    """Read `cpu=1,gpu=0.5,NAME=AMOUNT`.

    Raises:
        ConfigError: A part has another form, a name comes twice, or an amount is outside its range.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, amount = (piece.strip() for piece in part.partition("="))
        try:
            number = float(amount)
        except ValueError:
            number = math.nan
        if not equals or not name or not math.isfinite(number) or name in found:
            raise ConfigError(f"worker resources {text!r}: expected cpu=1,gpu=0.5,NAME=AMOUNT, each name once")
        found[name] = number
    cpus, gpus = found.pop("cpu", 1.0), found.pop("gpu", 0.0)
    if cpus != int(cpus):
        raise ConfigError(f"worker resources {text!r}: cpu={cpus:g} is not a whole number")
    return WorkerResources(int(cpus), gpus, found)
