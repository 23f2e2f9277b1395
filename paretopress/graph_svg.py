"""The drawn graph of `inspect --svg`: one self-contained SVG, without scripts, fonts or anything that is fetched.

Everything written into it that comes from the model (names of layers, reasons) is text that nobody checked: it is
stripped of control characters and escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from paretopress.graph_layout import Box, Layout, Point, lay_out
from paretopress.svg import COLOURS, GREY, INK, PALE, STYLE, shortened, text_at, tooltip

PATTERNS = ("", "stripes", "dots", "bars")   # over the colours, once all of them are used
MARGIN, LINE, BAR, LEGEND_WIDTH = 24.0, 17.0, 9.0, 350.0
LAYER_HEIGHT, PILL_HEIGHT = 36.0, 20.0
LONGEST_NAME, LONGEST_OPERATORS = 38, 3

_PATTERN = '<pattern id="pp-{}" width="6" height="6" patternUnits="userSpaceOnUse">{}</pattern>'
_DEFINITIONS = "".join((
    "<defs>",
    _PATTERN.format("stripes", '<path d="M-1 7 7 -1M-1 1 1 -1M5 7 7 5" stroke="#fff" stroke-width="1.8"/>'),
    _PATTERN.format("dots", '<circle cx="3" cy="3" r="1.6" fill="#fff"/>'),
    _PATTERN.format("bars", '<path d="M0 3H6" stroke="#fff" stroke-width="2"/>'),
    "</defs>",
))


@dataclass(frozen=True, slots=True)
class Paint:
    """How a channel group is drawn: its number, colour and pattern; frozen ones are grey and have none."""

    number: str
    colour: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """A box of the picture.

    Attributes:
        name: The node, or the last one of a run of operators without weights that is drawn as one.
        title: First line: the layer, or the operators.
        facts: Second line, `""` for none.
        tooltip: Everything about it.
        groups: Channel groups of its value.
        frozen: Whether it is a layer that is left as it is.
        share: Share of the first target's time, 0 where it is not known.
        width: Of the box.
        height: Of the box.
    """

    name: str
    title: str
    facts: str
    tooltip: str
    groups: tuple[str, ...]
    frozen: bool
    share: float
    width: float
    height: float


def graph_svg(found: Mapping[str, Any]) -> str:
    """Return the picture of what `inspect` found: fused kernels from top to bottom, groups by colour, the legend."""
    nodes, edges = _runs(found["graph"])
    frozen = {group["name"]: group["frozen"] for group in found["groups"]}
    paints = _paints(found["groups"])
    targets = [row["name"] for row in found["other_time"]]
    drawn = [_drawn(run, paints, targets) for run in nodes]
    layout = lay_out([Box(one.name, one.width, one.height) for one in drawn], [edge[:2] for edge in edges])
    residual = {edge[:2] for edge in edges if edge[2]}
    by_name = {one.name: one for one in drawn}
    most = max((one.share for one in drawn), default=0.0)
    body = [_edge(points, by_name[edge[0]], paints, residual=edge in residual) for edge, points in layout.routes]
    body += [_box(one, layout.places[one.name], paints, most) for one in drawn]
    body += _ports(layout, by_name, paints)
    legend, legend_width, legend_height = _legend(found, paints, frozen, targets, layout.height)
    width = layout.width + legend_width + 3 * MARGIN
    height = max(layout.height, legend_height) + 2 * MARGIN
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return "".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="Fused layers and channel groups">',
        f"<style>{STYLE}</style>{_DEFINITIONS}",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>',
        f'<g transform="translate({MARGIN:.0f} {MARGIN:.0f})">', *body, "</g>",
        f'<g transform="translate({layout.width + 2 * MARGIN:.0f} {MARGIN:.0f})">', *legend, "</g></svg>\n",
    ))


def _runs(graph: Mapping[str, Any]) -> tuple[list[list[Mapping[str, Any]]], list[tuple[str, str, bool]]]:
    """Nodes with runs of operators without weights drawn as one, and the edges between them.

    Returns:
        The runs in an order in which edges point forward, each named by its last node, and the edges.
    """
    nodes = {node["name"]: node for node in graph["nodes"]}
    readers: dict[str, list[str]] = {name: [] for name in nodes}
    sources: dict[str, list[str]] = {name: [] for name in nodes}
    for edge in graph["edges"]:
        readers[edge["source"]].append(edge["target"])
        sources[edge["target"]].append(edge["source"])
    runs: dict[str, list[Mapping[str, Any]]] = {}
    last: dict[str, str] = {}
    for name, node in nodes.items():
        before = sources[name][0] if len(sources[name]) == 1 else ""
        joins = before and len(readers[before]) == 1 and _is_light(nodes[before]) and _is_light(node)
        run = [*runs.pop(before), node] if joins else [node]
        runs[name] = run
        last.update((one["name"], name) for one in run)
    edges = {(last[edge["source"]], last[edge["target"]]): edge["residual"] for edge in graph["edges"]}
    return list(runs.values()), [(source, target, kind) for (source, target), kind in edges.items() if source != target]


def _is_light(node: Mapping[str, Any]) -> bool:
    return node["layer"] is None and node["kind"] not in ("input", "output")


def _paints(groups: Iterable[Mapping[str, Any]]) -> dict[str, Paint]:
    paints: dict[str, Paint] = {}
    free = 0
    for group in groups:
        if group["frozen"]:
            paints[group["name"]] = Paint("", GREY, "")
            continue
        pattern = PATTERNS[free // len(COLOURS) % len(PATTERNS)]
        paints[group["name"]] = Paint(str(free + 1), COLOURS[free % len(COLOURS)], pattern)
        free += 1
    return paints


def _drawn(run: Sequence[Mapping[str, Any]], paints: Mapping[str, Paint], targets: Sequence[str]) -> Drawn:
    node = run[-1]
    shares = {name: sum(one["share"].get(name, 0.0) for one in run) for name in targets
              if any(name in one["share"] for one in run)}
    percent = " | ".join(f"{100 * shares[name]:.1f} %" if name in shares else "–" for name in targets) if shares else ""
    shape = "×".join(map(str, node["shape"]))
    if node["layer"] is not None:
        title = shortened(node["layer"], LONGEST_NAME)
        facts = " · ".join(filter(None, (node["kind"], "×".join(map(str, node["weight"])), percent)))
    else:
        names = ["part" if name.endswith("getitem") else name for one in run for name in one["operators"]]
        shown = names if len(names) <= LONGEST_OPERATORS else [*names[:LONGEST_OPERATORS - 1], "…", names[-1]]
        title = " · ".join(shown) or f"{node['kind']} {node['name']}" * (node["kind"] == "input") or node["kind"]
        title = " · ".join(filter(None, (shortened(title, 48), shape if node["kind"] == "input" else "", percent)))
        facts = ""
    groups = tuple(dict.fromkeys(node["groups"]))
    about = [node["layer"] or title, f"value {shape}" if shape else "",
             *(f"{100 * share:.2f} % of {name} (predicted)" for name, share in shares.items()),
             f"groups: {', '.join(groups)}" if groups else "", f"frozen: {node['frozen']}" if node["frozen"] else ""]
    numbers = _numbers(groups, paints)
    text = max(7.2 * len(title) if facts else 6.0 * len(title), 6.0 * len(facts))
    width = text + 2 * BAR + 14 + 6.5 * len(numbers)
    height = LAYER_HEIGHT if facts else PILL_HEIGHT
    share = shares.get(targets[0], 0.0) if targets else 0.0
    return Drawn(node["name"], title, facts, "\n".join(filter(None, about)), groups, bool(node["frozen"]), share,
                 width, height)


def _numbers(groups: Sequence[str], paints: Mapping[str, Paint]) -> str:
    numbers = [paints[name].number for name in groups if paints[name].number]
    return "+".join(numbers if len(numbers) <= 3 else [*numbers[:2], "…"])


def _swatch(x: float, y: float, width: float, height: float, paint: Paint) -> str:
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill='
    return f'{shape}"{paint.colour}"/>' + (f'{shape}"url(#pp-{paint.pattern})"/>' if paint.pattern else "")


def _colour(groups: Sequence[str], paints: Mapping[str, Paint]) -> str:
    """The colour of a value: of its first group that can be pruned, else grey."""
    return next((paints[name].colour for name in groups if paints[name].number), GREY)


def _box(one: Drawn, place: Point, paints: Mapping[str, Paint], most: float) -> str:
    x, y = place[0] - one.width / 2, place[1]
    colour = _colour(one.groups, paints)
    fill = PALE if one.frozen else "#fff" if one.facts else "#f8f8f8"
    stroke = f'stroke="{GREY if one.frozen else colour}" stroke-width="{1.6 if one.facts else 1}"'
    dashes = ' stroke-dasharray="3 2"' if one.frozen else ""
    radius = 4 if one.facts else PILL_HEIGHT / 2
    size = f'x="{x:.1f}" y="{y:.1f}" width="{one.width:.1f}" height="{one.height:.1f}" rx="{radius:g}"'
    parts = [f"<g>{tooltip(one.tooltip)}", f'<rect {size} fill="{fill}" {stroke}{dashes}/>']
    if one.facts:
        count = max(1, len(one.groups))
        inner = one.height - 2
        parts += [_swatch(x + 1, y + 1 + index * inner / count, BAR, inner / count, paints[name])
                  for index, name in enumerate(one.groups)]
        parts += [text_at(x + BAR + 8, y + 14, one.title, "n"), text_at(x + BAR + 8, y + 27, one.facts, "s")]
        if most > 0.0:   # how much of the time it takes, beside the layer that takes most
            length = (one.width - BAR - 10) * one.share / most
            parts.append(f'<rect x="{x + BAR + 5:.1f}" y="{y + one.height - 4.5:.1f}" width="{length:.1f}" '
                         f'height="2.5" fill="{INK}"/>')
    else:
        parts.append(text_at(x + BAR, y + 13.5, one.title))
    parts += [text_at(x + one.width - 6, y + 14, _numbers(one.groups, paints), "g", "end"), "</g>"]
    return "".join(parts)


def _edge(points: Sequence[Point], source: Drawn, paints: Mapping[str, Paint], *, residual: bool) -> str:
    path = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (x, y), (to_x, to_y) in pairwise(points):
        middle = (y + to_y) / 2
        straight = abs(x - to_x) < 0.5
        path.append(f"V{to_y:.1f}" if straight else
                    f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}")
    colour = _colour(source.groups, paints)
    style = ' stroke-dasharray="7 3" stroke-width="2.6"' if residual else ' stroke-width="1.6"'
    x, y = points[-1]
    head = f'<path d="M{x - 3:.1f} {y - 5:.1f}h6l-3 5z" fill="{colour}"/>'
    return f'<path d="{"".join(path)}" fill="none" stroke="{colour}"{style}/>{head}'


def _ports(layout: Layout, by_name: Mapping[str, Drawn], paints: Mapping[str, Paint]) -> list[str]:
    """Circles with a letter where an edge goes on at the top of another column."""
    letters: dict[str, str] = {}
    parts = []
    for source, (x, y) in layout.ports:
        number = len(letters)
        letter = letters.setdefault(source, chr(65 + number % 26) + (str(number // 26) if number > 25 else ""))
        colour = _colour(by_name[source].groups, paints)
        parts.append(f'<circle cx="{x:.1f}" cy="{y + 9:.1f}" r="9" fill="#fff" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(text_at(x, y + 12.5, letter, "g", "middle"))
    return parts


def _legend(
    found: Mapping[str, Any], paints: Mapping[str, Paint], frozen: Mapping[str, str | None], targets: Sequence[str],
    height: float,
) -> tuple[list[str], float, float]:
    """The legend's elements, width and height: as many columns as the height of the graph asks for."""
    lines = [
        "A bar and its lines have the colour and number of the group that",
        "the value's channels belong to; grey: these cannot be pruned.",
        "Grey, dashed boxes: layers that are left as they are.",
        "Dashed lines: around a residual branch. Circles: on in the next column.",
        *_meaning_of_shares(targets),
    ]
    parts = [text_at(0, 12, "Channel groups", "h")]
    parts += [text_at(0, 30 + 13 * index, line, "s") for index, line in enumerate(lines)]
    head = 30 + 13 * len(lines) + 16
    parts += [text_at(0, head, "group", "g"), text_at(LEGEND_WIDTH - 16, head, "channels, step, options", "g", "end")]
    rows = sorted(found["groups"], key=lambda group: bool(frozen[group["name"]]))
    per_column = max(24, int((height - head) / LINE))
    for index, group in enumerate(rows):
        x, y = (LEGEND_WIDTH + 16) * (index // per_column), head + LINE * (1 + index % per_column)
        parts.append(_legend_row(group, paints[group["name"]], found["options"], x, y))
    columns = max(1, -(-len(rows) // per_column))
    return parts, (LEGEND_WIDTH + 16) * columns, head + LINE * (1 + min(len(rows), per_column))


def _meaning_of_shares(targets: Sequence[str]) -> list[str]:
    names = [shortened(name, 60) for name in targets]
    match names:
        case []:
            return ["No times: no target can execute the model."]
        case [name]:
            return ["% and black bar: share of the predicted time of one inference,", name]
        case _:
            first = "%: shares of the predicted time of one inference; black bar: the first of"
            return [first, *(f"{index}. {name}" for index, name in enumerate(names, 1))]


def _legend_row(
    group: Mapping[str, Any], paint: Paint, options: Mapping[str, Sequence[str]], x: float, y: float
) -> str:
    width = f"{group['channels']}" + (f" × {group['inner']}" if group["inner"] > 1 else "")
    count = len(options.get(f"{group['name']}/channels", ()))
    offered = "frozen" if group["frozen"] else f"{count} options" if count > 1 else "none"
    about = f"{group['name']}: {group['frozen'] or 'can be pruned'}"
    return "".join((
        f"<g>{tooltip(about)}", _swatch(x, y - 10, 22, 12, paint),
        text_at(x + 44, y, paint.number, "g", "end") if paint.number else "",
        text_at(x + 50, y, shortened(group["name"], 26)),
        text_at(x + LEGEND_WIDTH - 16, y, f"{width}, {group['step']}, {offered}", "s", "end"), "</g>",
    ))
