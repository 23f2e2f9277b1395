"""The picture of `sensitivity --svg`: a small plot per unit, all with the same loss axis, so that they compare.

Like every picture here it is one self-contained SVG without scripts, fonts or anything that is fetched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from paretopress.svg import COLOURS, GREY, INK, PALE, STYLE, shortened, text_at, tooltip

MARGIN, PANEL_WIDTH, PANEL_HEIGHT, GAP_X, GAP_Y = 24.0, 168.0, 96.0, 22.0, 46.0
AXIS_WIDTH, HEADING, LEGEND_ROW, COLUMNS = 46.0, 34.0, 18.0, 6
LONGEST_NAME, MOST_DECADES = 26, 8
SHAPES = ("circle", "square", "triangle", "diamond")
TITLES: Mapping[str, tuple[str, str]] = {
    "channels": ("Channels", "% of the channels removed"),
    "rank": ("Ranks", "% of the full rank removed"),
    "sparsity": ("Sparsity", "% of the weights removed"),
    "weights": ("Weight formats", "bits of a weight"),
}


@dataclass(frozen=True, slots=True)
class Scale:
    """Where values stand on an axis of a panel.

    Attributes:
        low: Value at the left or the bottom, already in the axis' own measure.
        high: Value at the right or the top.
        length: Of the axis.
    """

    low: float
    high: float
    length: float

    def at(self, value: float) -> float:
        """Distance from the start of the axis; values beyond an end stand at it."""
        inside = min(max(value, min(self.low, self.high)), max(self.low, self.high))
        return self.length * (inside - self.low) / (self.high - self.low)


def sensitivity_svg(found: Mapping[str, Any]) -> str:
    """Return the picture of what `sensitivity` found: units by kind, in the order of the model."""
    families = {name: index for index, name in enumerate(dict.fromkeys(c["family"] for c in found["curves"]))}
    losses = _loss_scale(found["curves"])
    top = MARGIN + 16
    body = [text_at(MARGIN, top, "Sensitivity: what each choice alone does to the model's outputs", "h")]
    body += [text_at(MARGIN, top + 17, f"vertical, the same in all: {found['loss']}; smaller is better", "s")]
    legend, legend_height = _legend(families, MARGIN, top + 30)
    body += legend
    y = top + 30 + legend_height
    width = MARGIN + AXIS_WIDTH + COLUMNS * (PANEL_WIDTH + GAP_X)
    for kind, (title, meaning) in TITLES.items():
        curves = [curve for curve in found["curves"] if curve["unit"].endswith(f"/{kind}")]
        if not curves:
            continue
        body.append(text_at(MARGIN, y + 20, f"{title}: {meaning}", "h"))
        parts, height = _section(curves, families, losses, y + HEADING)
        body += parts
        y += HEADING + height
    if not found["curves"]:
        body.append(text_at(MARGIN, y + 20, "Nothing of this model can be compressed on these targets."))
        y += HEADING
    size = f'viewBox="0 0 {width:.0f} {y + MARGIN:.0f}" width="{width:.0f}" height="{y + MARGIN:.0f}"'
    return "".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="Loss of every choice, unit by unit">',
        f'<style>{STYLE}</style><rect width="{width:.0f}" height="{y + MARGIN:.0f}" fill="#fff"/>', *body, "</svg>\n",
    ))


def _loss_scale(curves: Iterable[Mapping[str, Any]]) -> Scale:
    """Whole decades around all losses above 0 that were measured; at most eight."""
    known = [point["loss"] for curve in curves for point in curve["points"]
             if point["loss"] > 0.0 and not point["failed"]] or [1.0]
    high = math.ceil(math.log10(max(known)) - 1e-9)
    low = max(math.floor(math.log10(min(known)) + 1e-9), high - MOST_DECADES)
    return Scale(low, max(high, low + 1), PANEL_HEIGHT)


def _section(
    curves: Sequence[Mapping[str, Any]], families: Mapping[str, int], losses: Scale, top: float
) -> tuple[list[str], float]:
    """The panels of one kind of unit, and the height they take."""
    amounts, ticks = _amount_scale(curves)
    units = list(dict.fromkeys(curve["unit"] for curve in curves))
    parts: list[str] = []
    for place, unit in enumerate(units):
        row, column = divmod(place, COLUMNS)
        x = MARGIN + AXIS_WIDTH + column * (PANEL_WIDTH + GAP_X)
        y = top + 16 + row * (PANEL_HEIGHT + GAP_Y)
        parts += _frame(unit, x, y, amounts, ticks, losses, labelled=column == 0)
        for curve in curves:
            if curve["unit"] == unit:
                parts += _curve(curve, families[curve["family"]], x, y, amounts, losses)
        parts.append("</g>")
    rows = -(-len(units) // COLUMNS)
    return parts, 16 + rows * (PANEL_HEIGHT + GAP_Y)


def _amount_scale(curves: Sequence[Mapping[str, Any]]) -> tuple[Scale, list[tuple[float, str]]]:
    """The horizontal axis of a kind of unit, stronger choices to the right, and its ticks."""
    if curves[0]["axis"] == "removed":
        ticks = [(share, f"{100 * share:.0f}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
        return Scale(0.0, 1.0, PANEL_WIDTH), ticks
    bits = sorted({point["amount"] for curve in curves for point in curve["points"]})
    most, least = math.log2(bits[-1]) + 0.4, math.log2(bits[0]) - 0.4
    shown = [value for value in bits if value in (1, 2, 3, 4, 8, 16)] or bits
    return Scale(most, least, PANEL_WIDTH), [(math.log2(value), f"{value:g}") for value in shown]


def _frame(
    unit: str, x: float, y: float, amounts: Scale, ticks: Sequence[tuple[float, str]], losses: Scale, *, labelled: bool
) -> list[str]:
    """A group with the panel's name, grid and axis labels; the caller closes it."""
    name = unit.rpartition("/")[0]
    place = f'x="{x:.1f}" y="{y:.1f}" width="{PANEL_WIDTH:.1f}" height="{PANEL_HEIGHT:.1f}"'
    parts = [f"<g>{tooltip(unit)}", text_at(x, y - 6, shortened(name, LONGEST_NAME), "n"),
             f'<rect {place} fill="#fff" stroke="{GREY}"/>']
    for decade in range(round(losses.low), round(losses.high) + 1):
        at = y + PANEL_HEIGHT - losses.at(decade)
        if losses.low < decade < losses.high:
            parts.append(_line(x, at, x + PANEL_WIDTH, at, PALE))
        if labelled and (losses.high - decade) % 2 == 0:
            parts.append(text_at(x - 5, at + 3.5, _power(decade), "s", "end"))
    for value, label in ticks:
        at = x + amounts.at(value)
        parts += [_line(at, y + PANEL_HEIGHT, at, y + PANEL_HEIGHT + 3, GREY),
                  text_at(at, y + PANEL_HEIGHT + 14, label, "s", "middle")]
    return parts


def _power(decade: int) -> str:
    """A power of ten: 1, 10, 10⁻⁴."""
    digits = str(decade).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return {0: "1", 1: "10"}.get(decade, f"10{digits}")


def _curve(
    curve: Mapping[str, Any], family: int, x: float, y: float, amounts: Scale, losses: Scale
) -> list[str]:
    """The line and the markers of one family; markers of estimates are hollow, what failed is a cross at the top."""
    colour, shape = _look(family)
    places = []
    for point in curve["points"]:
        amount = math.log2(point["amount"]) if curve["axis"] == "bits" else point["amount"]
        height = math.log10(point["loss"]) if point["loss"] > 0.0 else losses.low
        places.append((x + amounts.at(amount), y + PANEL_HEIGHT - losses.at(height)))
    parts = [_line(*one, *other, colour, 1.4) for one, other in pairwise(places)]
    for point, place in zip(curve["points"], places, strict=True):
        note = "cannot be measured" if point["failed"] else f"loss {point['loss']:.3g}"
        about = f"{curve['unit']}: {point['text']}\n{note}{' (estimated)' if point['estimated'] else ''}"
        drawn = _cross(*place) if point["failed"] else _marker(*place, colour, shape, filled=not point["estimated"])
        parts.append(f"<g>{tooltip(about)}{drawn}</g>")
    return parts


def _look(family: int) -> tuple[str, str]:
    return COLOURS[family % len(COLOURS)], SHAPES[family % len(SHAPES)]


def _marker(x: float, y: float, colour: str, shape: str, *, filled: bool) -> str:
    style = f'fill="{colour if filled else "#fff"}" stroke="{colour}" stroke-width="1.3"'
    match shape:
        case "circle":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" {style}/>'
        case "square":
            return f'<rect x="{x - 2.7:.1f}" y="{y - 2.7:.1f}" width="5.4" height="5.4" {style}/>'
        case "triangle":
            return f'<path d="M{x:.1f} {y - 3.6:.1f}l3.4 6h-6.8z" {style}/>'
        case _:
            return f'<path d="M{x:.1f} {y - 3.8:.1f}l3.8 3.8 -3.8 3.8 -3.8 -3.8z" {style}/>'


def _cross(x: float, y: float) -> str:
    return f'<path d="M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6" stroke="{INK}" stroke-width="1.6"/>'


def _line(x: float, y: float, to_x: float, to_y: float, colour: str, width: float = 1.0) -> str:
    return f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="{colour}" stroke-width="{width:g}" fill="none"/>'


def _legend(families: Mapping[str, int], x: float, y: float) -> tuple[list[str], float]:
    """One entry per family and what markers mean, in rows that are no wider than the panels, and their height."""
    entries = [(name, _look(index), True) for name, index in families.items()]
    parts, right, row = [], x, 0
    widest = MARGIN + AXIS_WIDTH + COLUMNS * (PANEL_WIDTH + GAP_X)
    for name, (colour, shape), filled in [*entries, ("hollow: estimated", (GREY, "circle"), False)]:
        text = shortened(name, 48)
        width = 22 + 5.8 * len(text) + 14
        if right + width > widest:
            right, row = x, row + 1
        at = y + row * LEGEND_ROW
        parts += [_marker(right + 6, at + 4, colour, shape, filled=filled), text_at(right + 16, at + 7.5, text)]
        right += width
    return parts, (row + 1) * LEGEND_ROW + 6
