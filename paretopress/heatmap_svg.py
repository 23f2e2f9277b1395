"""The picture of `sensitivity --heatmap`: units by choices, coloured by the logarithm of the loss.

Like every picture here it is one self-contained SVG without scripts, fonts or anything that is fetched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from paretopress.sensitivity_svg import TITLES
from paretopress.svg import GREY, INK, STYLE, shortened, text_at, tooltip

MARGIN, NAME_WIDTH, CELL_WIDTH, CELL_HEIGHT = 24.0, 190.0, 42.0, 17.0
HEADING, LABEL_HEIGHT, LONGEST_NAME, LONGEST_LABEL, MOST_DECADES = 30.0, 70.0, 30, 20, 7
SLANT = 56.0   # how far a label reaches to the right of the middle of its column
# Light to dark and monotone in lightness, so that it prints in grey: viridis, backwards (Smith, van der Walt 2015).
SCALE = ("#fde725", "#90d743", "#35b779", "#21918c", "#31688e", "#443983", "#440154")


def heatmap_svg(found: Mapping[str, Any]) -> str:
    """Return the heat map of what `sensitivity` found: units down, choices across, a block per kind of unit."""
    low, high = _decades(found["curves"])
    y = MARGIN + 16
    body = [text_at(MARGIN, y, "Sensitivity: loss of each choice alone", "h"),
            text_at(MARGIN, y + 17, str(found["loss"]), "s")]
    y += 28
    body += _legend(low, high, y)
    y += 44
    width = MARGIN + NAME_WIDTH + 12 * CELL_WIDTH
    for kind, (title, _) in TITLES.items():
        curves = [curve for curve in found["curves"] if curve["unit"].endswith(f"/{kind}")]
        if not curves:
            continue
        parts, height, across = _block(title, curves, low, high, y)
        body += parts
        y += height
        width = max(width, across)
    if not found["curves"]:
        body.append(text_at(MARGIN, y + 14, "Nothing of this model can be compressed on these targets."))
        y += HEADING
    width += MARGIN
    size = f'viewBox="0 0 {width:.0f} {y + MARGIN:.0f}" width="{width:.0f}" height="{y + MARGIN:.0f}"'
    return "".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="Loss of every choice as a heat map">',
        f'<style>{STYLE}</style><rect width="{width:.0f}" height="{y + MARGIN:.0f}" fill="#fff"/>', *body, "</svg>\n",
    ))


def _decades(curves: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Whole decades around all losses above 0 that were measured, at most seven: smaller ones look alike."""
    known = [point["loss"] for curve in curves for point in curve["points"]
             if point["loss"] > 0.0 and not point["failed"]] or [1.0]
    high = math.ceil(math.log10(max(known)) - 1e-9)
    low = max(math.floor(math.log10(min(known)) + 1e-9), high - MOST_DECADES)
    return low, max(high, low + 1)


def _block(
    title: str, curves: Sequence[Mapping[str, Any]], low: float, high: float, top: float
) -> tuple[list[str], float, float]:
    """The cells of one kind of unit, the height they take, and where they end on the right."""
    columns = _columns(curves)
    units = list(dict.fromkeys(curve["unit"] for curve in curves))
    cells = {(curve["unit"], curve["family"], _tag(point)): point for curve in curves for point in curve["points"]}
    parts = [text_at(MARGIN, top + 18, title, "h")]
    left, start = MARGIN + NAME_WIDTH, top + HEADING + LABEL_HEIGHT
    for place, (family, tag) in enumerate(columns):
        x = left + (place + 0.5) * CELL_WIDTH
        parts.append(f'<g transform="translate({x + 4:.1f} {start - 6:.1f}) rotate(-55)">{tooltip(f"{family}: {tag}")}'
                     f'{text_at(0, 0, _label(family, tag, curves[0]["axis"]), "s")}</g>')
    for row, unit in enumerate(units):
        y = start + row * CELL_HEIGHT
        name = shortened(unit.rpartition("/")[0], LONGEST_NAME)
        parts.append(f'<g>{tooltip(unit)}{text_at(left - 8, y + 12.5, name, "n", "end")}</g>')
        for place, column in enumerate(columns):
            point = cells.get((unit, *column))
            if point is not None:
                parts.append(_cell(unit, point, left + place * CELL_WIDTH, y, low, high))
    right = left + (len(columns) - 0.5) * CELL_WIDTH + SLANT
    return parts, HEADING + LABEL_HEIGHT + len(units) * CELL_HEIGHT + 12, right


def _columns(curves: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The choices that any unit offers, family by family, the weakest first: ranks by their share of the full rank."""
    found: dict[tuple[str, str], float] = {}
    for curve in curves:
        sign = -1.0 if curve["axis"] == "bits" else 1.0
        for point in curve["points"]:
            found.setdefault((curve["family"], _tag(point)), sign * point["amount"])
    families = list(dict.fromkeys(family for family, _ in found))
    return sorted(found, key=lambda column: (families.index(column[0]), found[column], column[1]))


def _tag(point: Mapping[str, Any]) -> str:
    """What tells a choice from others of its family; ranks, which no two layers share, by tenths of the full rank."""
    choice = point["choice"]
    tag = next(iter(choice))
    if tag == "factorised":
        return f"{10 * round(10 * (1.0 - point['amount']))}%"
    pattern = str(choice.get("pattern", ""))
    if ":" in pattern:
        return pattern
    value = choice[tag]
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"


def _label(family: str, tag: str, axis: str) -> str:
    """A column in a few words: `keep 0.5`, `rank 30%`, `4 bits, a8`."""
    if axis == "bits":
        words = family.replace("16-bit floats", "").replace("integers", "bits").replace("8-bit activations", "a8")
        return shortened(f"{tag} {words}".strip(), LONGEST_LABEL)
    return shortened(family if tag == "0" else f"{family} {tag}", LONGEST_LABEL)   # a dropped branch has no amount


def _cell(unit: str, point: Mapping[str, Any], x: float, y: float, low: float, high: float) -> str:
    note = "cannot be measured" if point["failed"] else f"loss {point['loss']:.3g}"
    about = tooltip(f"{unit}: {point['text']}\n{note}{' (estimated)' if point['estimated'] else ''}")
    box = f'x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{CELL_WIDTH - 1:.1f}" height="{CELL_HEIGHT - 1:.1f}"'
    if point["failed"]:
        cross = f"M{x + 17:.1f} {y + 4.5:.1f}l8 8m0 -8l-8 8"
        return f'<g>{about}<rect {box} fill="#fff" stroke="{GREY}"/><path d="{cross}" stroke="{INK}"/></g>'
    share = (math.log10(point["loss"]) - low) / (high - low) if point["loss"] > 0.0 else 0.0
    share = min(max(share, 0.0), 1.0)
    ink = "#fff" if share > 0.45 else INK
    text = f"{'~' * point['estimated']}{_number(point['loss'])}"
    label = (f'<text x="{x + CELL_WIDTH / 2:.1f}" y="{y + 12.3:.1f}" text-anchor="middle" '
             f'style="fill:{ink};font-size:9px">')
    return f'<g>{about}<rect {box} fill="{colour(share)}"/>{label}{text}</text></g>'


def _number(value: float) -> str:
    """Two digits: 0.012, 3e-5."""
    if value == 0.0:
        return "0"
    if 1e-3 <= value < 100.0:
        return f"{value:.2g}"
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def colour(share: float) -> str:
    """The colour of a share of the scale, 0 to 1: between the two nearest of `SCALE`."""
    place = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    first = min(int(place), len(SCALE) - 2)
    one, two = SCALE[first], SCALE[first + 1]
    mixed = [round(int(one[i : i + 2], 16) + (place - first) * (int(two[i : i + 2], 16) - int(one[i : i + 2], 16)))
             for i in (1, 3, 5)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _legend(low: float, high: float, y: float) -> list[str]:
    """The scale, with its decades, and what the marks mean."""
    steps, width = 48, 240.0
    parts = [f'<rect x="{MARGIN + width * step / steps:.1f}" y="{y:.1f}" width="{width / steps + 0.5:.1f}" height="10" '
             f'fill="{colour((step + 0.5) / steps)}"/>' for step in range(steps)]
    for decade in range(round(low), round(high) + 1):
        x = MARGIN + width * (decade - low) / (high - low)
        parts.append(text_at(x, y + 22, f"1e{decade}" if decade else "1", "s", "middle"))
    parts.append(text_at(MARGIN + width + 24, y + 9, "~ estimated · × cannot be measured · blank: not offered", "s"))
    return parts
