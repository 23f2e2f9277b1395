"""Which choices of one unit are legal on all target devices, and why the others are not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paretopress.spaces.capabilities import Capabilities
from paretopress.spaces.choices import (
    Binary,
    Factorised,
    Half,
    Keep,
    Sparse,
    WeightFormat,
    Weights,
    activation_bits,
    describe,
)
from paretopress.spaces.coupling import ChannelGroup
from paretopress.spaces.layers import NO_INTEGER_KERNEL, Layer
from paretopress.spaces.stored_weights import value_bits

Refused = list[tuple[str, str]]
"""Choices in words, `"*"` for all, each with the reason."""


def keep_choices(
    group: ChannelGroup, devices: Sequence[Capabilities], ratios: Sequence[float]
) -> tuple[list[Keep], Refused]:
    """Return the shares of a group that may be kept: whole steps of every device, never none and never all.

    A share between two steps is moved to the nearest one.
    """
    step, aligned = _channel_step(group, devices)
    if not ratios:
        return [], [("*", "space.keep is empty")]
    if group.size <= step:
        reason = f"{group.size * group.inner} channels are not more than one step of {step * group.inner}"
        return [], [("*", reason)]
    counts: set[int] = set()
    refused: Refused = []
    for ratio in sorted({ratio for ratio in ratios if ratio < 1.0}, reverse=True):
        wanted = round(ratio * group.size)
        count = max(step, round(ratio * group.size / step) * step)
        if count < group.size:
            counts.add(count)
            if count == wanted:
                continue
        if count >= group.size:
            reason = f"rounds to all channels{aligned}"
        elif wanted == 0:
            reason = f"no channel would be left, and this is not the drop of a branch: one step is kept{aligned}"
        else:
            reason = f"not a whole number of steps of {step * group.inner} channels{aligned}: moved to the nearest"
        refused.append((describe(Keep(ratio)), reason))
    return [Keep(round(count / group.size, 6)) for count in sorted(counts, reverse=True)], refused


def _channel_step(group: ChannelGroup, devices: Sequence[Capabilities]) -> tuple[int, str]:
    """The step of a group on all devices, and in brackets the devices that ask for more than the group does."""
    step, asking = group.step, []
    for device in devices:
        # A channel of the group may be several of its layers, as a head is.
        own = device.channel_step // math.gcd(device.channel_step, group.inner)
        if group.step % own:
            asking.append(f"{device.device}: {device.channel_step}")
        step = math.lcm(step, own)
    return step, f" ({', '.join(asking)})" if asking else ""


def weight_choices(
    layer: Layer, devices: Sequence[Capabilities], widths: Sequence[int], fewest: int = 0, end: str = ""
) -> tuple[list[Weights], Refused]:
    """Return the formats of a layer's weights that every device knows.

    Args:
        layer: The layer.
        devices: The targets.
        widths: Weight bits that the user wants offered.
        fewest: Fewest bits of a layer at an end of the model.
        end: Which end that is, `""` for a layer in between.
    """
    legal: list[Weights] = []
    refused: Refused = [] if widths else [("*", "space.bits is empty")]
    fewest = min(fewest, max(widths, default=0))   # where only narrow weights are wanted, the widest of them
    for bits in widths:
        for activations in (8, 32):
            choice = Weights(bits, activations)
            if activations == 8 and not layer.runs_in_integers:
                refused.append((describe(choice), NO_INTEGER_KERNEL.format(kind=layer.kind)))
                continue
            why = [
                f"{device.device}: {device.refused.get((bits, activations), 'no kernel for this format')}"
                for device in devices if (bits, activations) not in device.formats
            ]
            if not why and end and bits < fewest:
                why = [f"the {end} layer keeps at least {fewest} bits (space.end_bits)"]
            if why:
                refused.append((describe(choice), "; ".join(why)))
            else:
                legal.append(choice)
    return legal, refused


def float_formats(
    layer: Layer, devices: Sequence[Capabilities], wanted: Sequence[WeightFormat], fewest: int = 0, end: str = ""
) -> tuple[list[WeightFormat], Refused]:
    """Return which of some formats a layer may have: other integers, 16-bit floats, shared values, signs.

    Args:
        layer: The layer.
        devices: The targets.
        wanted: The formats that the user wants offered.
        fewest: Fewest bits of a layer at an end of the model.
        end: Which end that is, `""` for a layer in between.
    """
    legal: list[WeightFormat] = []
    refused: Refused = []
    for choice in wanted:
        integer = activation_bits(choice) == 8
        why = [
            f"{device.device}: {device.refused.get((8, 8), 'no kernel for 8-bit integers')}"
            for device in devices if integer and (8, 8) not in device.formats
        ]
        if isinstance(choice, Weights):
            why = [f"{device.device}: {device.refused.get((choice.bits, 32), 'no kernel for this format')}"
                   for device in devices if (choice.bits, 32) not in device.formats]
        if integer and not layer.runs_in_integers:
            why = [NO_INTEGER_KERNEL.format(kind=layer.kind)]
        if isinstance(choice, Binary) and layer.why_no_signs:
            why = [layer.why_no_signs]
        if not why and end and not isinstance(choice, Half) and value_bits(choice) < fewest:
            why = [f"the {end} layer keeps at least {fewest} bits (space.end_bits)"]
        if why:
            refused.append((describe(choice), "; ".join(why)))
        else:
            legal.append(choice)
    return legal, refused


def sparse_choices(wanted: Sequence[str | float]) -> tuple[list[Sparse], Refused]:
    """Return the densities and patterns of stored weights; any layer may have any of them."""
    return [Sparse.of(one) for one in wanted], []


def rank_choices(
    layer: Layer, devices: Sequence[Capabilities], fractions: Sequence[float]
) -> tuple[list[Factorised], Refused]:
    """Return the ranks of a layer that have fewer weights than it: `r (m + n) < m n` for an m x n matrix."""
    step = math.lcm(1, *(device.rank_step for device in devices))
    rows, columns = layer.sides(layer.shape)
    break_even = rows * columns / (rows + columns)
    ranks: set[int] = set()
    refused: Refused = []
    for fraction in sorted(set(fractions), reverse=True):
        rank = round(fraction * break_even / step) * step
        if 0 < rank < break_even:
            ranks.add(rank)
        elif rank == 0:
            reason = f"{fraction:g} of the break-even rank {break_even:.3g} rounds to none of its steps of {step}"
            refused.append((f"rank at {fraction:g}", reason))
        else:
            reason = f"{rank} x ({rows} + {columns}) weights are no fewer than {rows} x {columns}"
            refused.append((f"rank {rank}", reason))
    if not fractions:
        return [], [("*", "space.rank is empty")]
    if not ranks:
        return [], [("*", f"no rank that is a multiple of {step} has fewer weights than the dense layer")]
    return [Factorised("svd", rank) for rank in sorted(ranks, reverse=True)], refused
