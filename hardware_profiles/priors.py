"""What is measured: distributions of small networks that the kernels of a model, or of most models, occur in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from paretopress.hardware_profiles.networks import Network, random_network


class Prior(Protocol):
    """A distribution of networks; the same seed and mode always give the same network."""

    @property
    def name(self) -> str:
        """Name in files of raw samples."""

    @property
    def drawn(self) -> int:
        """Networks drawn for each that is timed."""

    def network(self, seed: int, mode: str) -> Network:
        """Draw a network in `float32`, `int8` or `mixed`."""


@dataclass(frozen=True, slots=True)
class GeneralPrior:
    """Networks of the kind that users compress: see `networks`."""

    name: str = "general"
    drawn: int = 3

    def network(self, seed: int, mode: str) -> Network:
        """Draw a network."""
        return random_network(seed, mode)


GENERAL = GeneralPrior()
