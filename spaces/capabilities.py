"""Capabilities: what a device can do at all, apart from what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What is legal on a device. Returned by `DeviceProfile.capabilities()`.

    Attributes:
        device: The profile's id, for messages.
        formats: Legal `(weight bits, activation bits)` pairs beyond (32, 32), such as `(8, 8)`.
        size_only: The pairs among `formats` that save bytes but no time on this device, with the reason.
        refused: Pairs that are not legal, with the reason, such as `{(8, 8): "int8 is unknown here"}`.
        channel_step: Channel counts must be multiples of this (hard alignment).
        rank_step: Ranks must be multiples of this.
    """

    device: str
    formats: tuple[tuple[int, int], ...] = ()
    size_only: Mapping[tuple[int, int], str] = field(default_factory=dict, hash=False)
    refused: Mapping[tuple[int, int], str] = field(default_factory=dict, hash=False)
    channel_step: int = 1
    rank_step: int = 1
