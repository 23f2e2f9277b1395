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
    describe,
)
from paretopress.spaces.coupling import ChannelGroup
from paretopress.spaces.factor_forms import (
    break_even,
    factor_weights,
    own_inner,
    part_shapes,
    why_not_factorised,
    why_too_large,
    with_inner,
)
from paretopress.spaces.kernels import product
from paretopress.spaces.layer_formats import why_no_format, why_not_searched
from paretopress.spaces.layers import Layer
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
    layer: Layer, devices: Sequence[Capabilities], wanted: Sequence[WeightFormat], fewest: int = 0, end: str = ""
) -> tuple[list[WeightFormat], Refused]:
    """Return the formats of a layer's weights that every device knows.

    Args:
        layer: The layer.
        devices: The targets.
        wanted: The formats that the user wants offered.
        fewest: Fewest bits of a layer at an end of the model.
        end: Which end that is, `""` for a layer in between.
    """
    legal: list[WeightFormat] = []
    refused: Refused = [] if wanted else [("*", "space.bits is empty")]
    # Where only narrow integers are wanted, the widest of them.
    fewest = min(fewest, max((choice.bits for choice in wanted if isinstance(choice, Weights)), default=fewest))
    for choice in wanted:
        why = _why_no_format(layer, devices, choice)
        if not why and end and not isinstance(choice, Half) and value_bits(choice) < fewest:
            why = f"the {end} layer keeps at least {fewest} bits (space.end_bits)"
        if why:
            refused.append((describe(choice), why))
        else:
            legal.append(choice)
    return legal, refused


def _why_no_format(layer: Layer, devices: Sequence[Capabilities], choice: WeightFormat) -> str:
    """Why a layer in between cannot have a format, `""` where it can: what stands for floats runs as floats."""
    if reason := why_not_searched(choice) or why_no_format(layer, choice):
        return reason
    if isinstance(choice, Binary):
        widths = (8, 8) if choice.activations == 8 else None
    else:
        widths = (choice.bits, choice.activations) if isinstance(choice, Weights) else None
    return "; ".join(
        f"{device.device}: {device.refused.get(widths, 'no kernel for this format')}"
        for device in devices if widths is not None and widths not in device.formats
    )


def sparse_choices(wanted: Sequence[str | float]) -> tuple[list[Sparse], Refused]:
    """Return the densities and patterns of stored weights; any layer may have any of them."""
    return [Sparse.of(one) for one in wanted], []


def rank_choices(
    layer: Layer, devices: Sequence[Capabilities], fractions: Sequence[float], kinds: Sequence[str] = ("svd",)
) -> tuple[list[Factorised], Refused]:
    """Return the ranks of a layer that have fewer weights than it, of every kind of factors that it can have.

    Args:
        layer: The layer.
        devices: The targets.
        fractions: Of the rank at which factors of a kind hold as many weights as the layer.
        kinds: Of factors that the user wants offered.
    """
    if not fractions:
        return [], [("*", "space.rank is empty")]
    if not kinds:
        return [], [("*", "space.rank_kinds is empty")]
    legal: list[Factorised] = []
    refused: Refused = []
    for kind in dict.fromkeys(kinds):
        every = "*" if len(kinds) == 1 else kind
        if reason := why_not_factorised(layer, kind):
            refused.append((every, reason))
            continue
        found, why = _ranks_of_kind(layer, kind, devices, fractions, every)
        legal += found
        refused += why
    return legal, refused


def _ranks_of_kind(
    layer: Layer, kind: str, devices: Sequence[Capabilities], fractions: Sequence[float], every: str
) -> tuple[list[Factorised], Refused]:
    step = math.lcm(1, *(device.rank_step for device in devices))
    if kind == "nmf":
        step //= math.gcd(step, 2)   # the layers between which it is are twice as wide
    even, total = break_even(kind, layer), product(layer.shape)
    ranks: set[Factorised] = set()
    refused: Refused = []
    for fraction in sorted(set(fractions), reverse=True):
        rank = round(fraction * even / step) * step
        if rank == 0:
            reason = f"{fraction:g} of the break-even rank {even:.3g} rounds to none of its steps of {step}"
            refused.append((f"{'' if kind == 'svd' else f'{kind} '}rank at {fraction:g}", reason))
            continue
        choice = Factorised(kind, rank)
        if kind == "tucker" and own_inner(rank, layer.shape) % step:
            choice = Factorised(kind, rank, max(step, round(rank * layer.shape[1] / layer.shape[0] / step) * step))
        # Weights are counted at the rank that is asked for: above the layer's own it has no factors at all.
        too_many = why_too_large(choice, layer) or factor_weights(choice, layer, layer.shape) >= total
        if too_many or rank >= even:
            refused.append((describe(choice), _why_too_many(choice, layer)))
        else:
            ranks.add(choice)
    if not ranks:
        shown = "" if kind == "svd" else f"{kind} "
        return [], [(every, f"no {shown}rank that is a multiple of {step} has fewer weights than the dense layer")]
    return sorted(ranks, key=lambda choice: -choice.rank), refused


def _why_too_many(choice: Factorised, layer: Layer) -> str:
    if choice.kind != "svd":
        count = sum(map(product, part_shapes(with_inner(choice, layer), layer.shape, transposed=False)))
        return f"{count} weights of {describe(choice)} are no fewer than the {product(layer.shape)} of the layer"
    rows, columns = layer.sides(layer.shape)
    return f"{choice.rank} x ({rows} + {columns}) weights are no fewer than {rows} x {columns}"
