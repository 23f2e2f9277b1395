"""Draw the pictures of the documentation: `python docs/pictures/draw.py`.

Diagrams are drawn from this file alone. `--run RUN` also draws the front and the table of a finished run and stores
what they are drawn from (`front.json`), `--tables` what commands show without a run. Every picture is one
self-contained SVG, without scripts, fonts or anything that is fetched.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretopress.svg import COLOURS, GREY, INK, PALE, STYLE, text_at

FOLDER = Path(__file__).parent
BLUE, SAND, GREEN, ROSE, CYAN = COLOURS[:5]
DEMO = ["--model", "paretopress.demo.factories:model", "--data", "paretopress.demo.factories:data"]
ZEN4 = ["--target", "x86-zen4-vnni-onnxruntime"]
TABLES = {
    "table-devices": ["device", "list"],
    "table-inspect": ["inspect", *DEMO, *ZEN4, "--max", "latency=-50%"],
    "table-doctor": ["doctor"],
}
LONGEST_LINE, MOST_LINES = 118, 68


def main() -> None:
    """Draw what is asked for."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run", type=Path, help="a finished run, whose front and table are drawn")
    arguments.add_argument("--tables", action="store_true", help="also what commands show without a run")
    arguments.add_argument("--out", type=Path, default=FOLDER)
    given = arguments.parse_args()
    if given.run:
        points = front_points(json.loads((given.run / "front.json").read_text()))
        (given.out / "front.json").write_text(json.dumps(points, indent=1) + "\n")
        text = output_of(["front", str(given.run)]).replace(str(given.run), "runs/NAME")
        write(given.out, "table-front", terminal("paretopress front runs/NAME", text))
        solve = ["solve", str(given.run), *DEMO, "--max", "latency=-40%"]
        command = f"paretopress {' '.join(solve)}".replace(str(given.run), "runs/NAME")
        write(given.out, "table-solve", terminal(command, output_of(solve).replace(str(given.run), "runs/NAME")))
    if given.tables:
        for name, command in TABLES.items():
            write(given.out, name, terminal(f"paretopress {' '.join(command)}", output_of(command)))
        write_drawings(given.out)
    recorded = json.loads((FOLDER / "front.json").read_text())
    write(given.out, "front", front_svg(recorded))
    for name, drawing in (
        ("overview", overview()),
        ("coupling", coupling()),
        ("tiers", tiers()),
        ("search", search()),
        ("pareto", pareto()),
    ):
        write(given.out, name, drawing)


def write(folder: Path, name: str, drawing: str) -> None:
    """Write one picture."""
    (folder / f"{name}.svg").write_text(drawing + "\n", encoding="utf-8")


def svg(width: float, height: float, body: Sequence[str], title: str) -> str:
    """A picture on white, so that it can be read on dark pages too."""
    inner = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'role="img" aria-label="{title}">\n<title>{title}</title>\n<style>{STYLE}</style>\n'
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{inner}\n</svg>'
    )


def box(x: float, y: float, width: float, height: float, lines: Sequence[str], colour: str = INK) -> str:
    """A rounded box with lines of text in its middle, the first one bold."""
    first = y + height / 2 - 7 * (len(lines) - 1) + 3.5
    texts = [
        text_at(x + width / 2, first + 14 * index, line, "n" if index == 0 else "s", "middle")
        for index, line in enumerate(lines)
    ]
    size = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    frame = f'<rect {size} rx="5" fill="#fff" stroke="{colour}" stroke-width="1.6"/>'
    return frame + "".join(texts)


def arrow(*points: tuple[float, float], dashed: bool = False) -> str:
    """A line through points with a head at its end."""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<path d="{path}" fill="none" stroke="{INK}" stroke-width="1.2"{dashes} marker-end="url(#a)"/>'


def overview() -> str:
    """What goes in and what comes out."""
    body = []
    for row, (name, what) in enumerate(
        (("Model", "any nn.Module"), ("Data", "few samples"), ("Device", "a profile"), ("Budget", "5 ms, -50 %, 1pp"))
    ):
        body += [box(10, 14 + 52 * row, 110, 42, [name, what], BLUE), arrow((120, 35 + 52 * row), (176, 113))]
    body += [
        box(178, 78, 150, 70, ["Search", "channels × ranks × bits", "per layer, jointly"], GREEN),
        arrow((328, 113), (384, 113)),
    ]
    body += [box(386, 78, 150, 70, ["Verification", "rebuilt, reloaded,", "scored anew, timed"], ROSE)]
    for row, (name, what) in enumerate(
        (
            ("Front", "all good compromises"),
            ("Models", "safetensors, really smaller"),
            ("ONNX files", "integer kernels"),
            ("Policies", "small, to be used again"),
        )
    ):
        body += [arrow((536, 113), (592, 35 + 52 * row)), box(594, 14 + 52 * row, 170, 42, [name, what], BLUE)]
    return svg(776, 228, body, "A model, data, a device and a budget go in; a verified front comes out")


def coupling() -> str:
    """Channels that only go together."""
    body = [
        box(20, 20, 120, 40, ["first", "conv 3x3"], BLUE),
        arrow((140, 40), (188, 40)),
        box(190, 20, 120, 40, ["depthwise", "conv 3x3"], BLUE),
        arrow((310, 40), (358, 40)),
        box(360, 20, 120, 40, ["second", "conv 1x1"], BLUE),
        arrow((480, 40), (524, 40)),
        f'<circle cx="536" cy="40" r="10" fill="#fff" stroke="{INK}"/>',
        text_at(536, 44, "+", "n", "middle"),
        arrow((164, 40), (164, 84), (536, 84), (536, 52)),
        arrow((546, 40), (594, 40)),
        box(596, 20, 120, 40, ["last", "linear"], GREEN),
    ]
    for x in (164, 334, 502, 560):
        body += [
            f'<rect x="{x - 9}" y="{100 + 9 * row}" width="18" height="8" fill="{ROSE if row == 3 else PALE}" '
            f'stroke="{GREY}" stroke-width="0.6"/>'
            for row in range(8)
        ]
    body.append(text_at(8, 140, "channel 3 goes everywhere", "s"))
    body.append(text_at(8, 154, "at once, or nowhere", "s"))
    body.append(text_at(596, 140, "and the last layer loses", "s"))
    body.append(text_at(596, 154, "the column that read it", "s"))
    return svg(740, 186, body, "Channels of a residual sum and of a depthwise convolution are one group")


def tiers() -> str:
    """What profiles rest on."""
    rows = (
        ("T0", "datasheet peaks", "a rank: which is faster", "latency=-50%", GREY),
        ("T1", "published times", "milliseconds, with an interval", "latency=5ms, -50%", CYAN),
        ("T2", "measured on the device", "milliseconds, with an interval", "latency=5ms, -50%", GREEN),
    )
    body = [text_at(80, 18, "rests on", "g"), text_at(270, 18, "gives", "g"), text_at(480, 18, "budgets", "g")]
    for row, (name, basis, gives, budget, colour) in enumerate(rows):
        y = 28 + 44 * row
        body += [
            f'<rect x="10" y="{y}" width="640" height="36" rx="5" fill="{colour}" fill-opacity="0.25"/>',
            text_at(24, y + 22, name, "h"),
            text_at(80, y + 22, basis),
            text_at(270, y + 22, gives),
            text_at(480, y + 22, budget),
        ]
    return svg(660, 166, body, "Three tiers of device profiles")


def search() -> str:
    """The steps of a search."""
    steps = (
        ("Capture", "graph, groups", BLUE),
        ("Calibrate", "what layers read", BLUE),
        ("Score once", "loss of every choice", SAND),
        ("Solve", "exact fronts", GREEN),
        ("Explore", "Optuna, surrogate", GREEN),
        ("Rebuild", "layer by layer", ROSE),
        ("Verify", "holdout, clock", ROSE),
    )
    body = []
    for index, (name, what, colour) in enumerate(steps):
        x = 8 + 120 * index
        body.append(box(x, 30, 104, 44, [name, what], colour))
        if index:
            body.append(arrow((x - 16, 52), (x - 2, 52)))
    body += [
        arrow((540, 74), (540, 96), (300, 96), (300, 76), dashed=True),
        text_at(420, 110, "true scores correct the table", "s", "middle"),
        text_at(300, 20, "once per model", "s", "middle"),
        text_at(430, 20, "seconds per budget", "s", "middle"),
        text_at(730, 20, "few finalists", "s", "middle"),
    ]
    return svg(850, 122, body, "The steps of a search")


def axes(width: float, height: float, across: str, up: str) -> list[str]:
    """Two axes with what they measure."""
    left, bottom = 60.0, height - 40
    middle = round(bottom / 2)
    return [
        f'<path d="M{left} 16V{bottom}H{width - 16}" fill="none" stroke="{INK}"/>',
        text_at((left + width) / 2, height - 8, across, "s", "middle"),
        f'<text x="16" y="{middle}" class="s" text-anchor="middle" transform="rotate(-90 16 {middle})">{up}</text>',
    ]


def pareto() -> str:
    """A front with everything that has a name."""
    front = ((90, 210), (120, 150), (160, 104), (220, 74), (330, 54), (460, 46))
    others = ((150, 200), (200, 150), (260, 128), (300, 110), (390, 92), (240, 180), (430, 130), (360, 160))
    body = axes(540, 280, "time of one inference", "accuracy")
    body.append(f'<rect x="61" y="16" width="315" height="74" fill="{GREEN}" fill-opacity="0.12"/>')
    body.append(text_at(70, 30, "meets both budgets", "s"))
    path = "M" + "L".join(f"{x} {y}" for x, y in front)
    body.append(f'<path d="{path}" fill="none" stroke="{BLUE}" stroke-width="1.4"/>')
    body += [f'<circle cx="{x}" cy="{y}" r="4" fill="{GREY}"/>' for x, y in others]
    body += [f'<circle cx="{x}" cy="{y}" r="5" fill="{BLUE}"/>' for x, y in front]
    body += [
        f'<circle cx="220" cy="74" r="9" fill="none" stroke="{ROSE}" stroke-width="2"/>',
        text_at(230, 96, "knee", "n"),
        text_at(470, 40, "dense", "n"),
        text_at(268, 196, "dominated: another is better in everything", "s"),
    ]
    return svg(540, 280, body, "A Pareto front with its knee, dominated points and budgets")


def front_points(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the picture of a front needs of `front.json`."""
    by_id = {point["id"]: point for point in (*document["comparisons"], *document["points"])}
    return [
        {
            "id": point["id"],
            "name": point["name"],
            "accuracy": point["measured"]["accuracy"],
            "latency_ms": point["measured"]["latency_ms"],
            "size_bytes": point["measured"]["size_bytes"],
            "on_front": point["why_not"] is None,
            "knee": point["knee"],
        }
        for _, point in sorted(by_id.items())
    ]


def front_svg(points: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over measured time, the area of a point its bytes; dense and uniform ones by name."""
    timed = [point for point in points if point["latency_ms"]]
    slowest, largest = (max(point[key] for point in timed) for key in ("latency_ms", "size_bytes"))
    scores = [point["accuracy"] for point in timed]
    low, high = min(scores), max(scores)
    width, height = 620.0, 320.0

    def place(point: Mapping[str, Any]) -> tuple[float, float]:
        share = (point["accuracy"] - low) / max(high - low, 1e-9)
        return 60 + (width - 100) * point["latency_ms"] / slowest, height - 62 - (height - 110) * share

    body = axes(width, height, "measured time of one inference, ms", "accuracy on the holdout set")
    for tick in range(5):
        value, score = slowest * tick / 4, low + (high - low) * tick / 4
        x, y = 60 + (width - 100) * tick / 4, height - 62 - (height - 110) * tick / 4
        body += [
            text_at(x, height - 26, f"{value:.3f}", "s", "middle"),
            text_at(56, y + 4, f"{100 * score:.1f}", "s", "end"),
        ]
    for point in timed:
        x, y = place(point)
        radius = 3 + 11 * math.sqrt(point["size_bytes"] / largest)
        colour = BLUE if point["on_front"] else GREY
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" fill-opacity="0.6"/>')
        if point["knee"]:
            body.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius + 4:.1f}" fill="none" stroke="{ROSE}" stroke-width="2"/>'
            )
        if label := "knee" if point["knee"] else point["name"]:
            body.append(text_at(x, y - radius - 6, label, "n", "middle"))
    return svg(width, height, body, "Accuracy over measured time; areas are stored bytes")


def terminal(command: str, text: str) -> str:
    """A command and what it printed, as lines of a monospace font."""
    lines = [line.rstrip()[:LONGEST_LINE] for line in text.rstrip("\n").splitlines()]
    lines = lines if len(lines) <= MOST_LINES else [*lines[:MOST_LINES], "..."]
    width = 20 + 6.05 * max(len(line) for line in (*lines, "$ " + command))
    body = [
        "<style>.m{font-family:'DejaVu Sans Mono',ui-monospace,Menlo,Consolas,monospace;white-space:pre}</style>",
        text_at(10, 20, "$ " + command, "m g"),
    ]
    body += [
        text_at(10, 38 + 14 * number, line, "m").replace("<text ", '<text xml:space="preserve" ', 1)
        for number, line in enumerate(lines)
    ]
    return svg(width, 50 + 14 * len(lines), body, command)


def output_of(arguments: Sequence[str]) -> str:
    """What a command prints on stdout, 118 columns wide, without the names of folders of this machine."""
    import os

    environment = {**os.environ, "COLUMNS": str(LONGEST_LINE), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "paretopress.cli", *arguments]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return text.replace(str(FOLDER.parents[1]), "~/paretopress").replace(str(Path.home()), "~")


def write_drawings(folder: Path) -> None:
    """The pictures that `inspect` and `sensitivity` draw of the demo's network."""
    output_of(["inspect", *DEMO, *ZEN4, "--svg", str(folder / "graph.svg")])
    drawn = ["--svg", str(folder / "curves.svg"), "--heatmap", str(folder / "heatmap.svg")]
    output_of(["sensitivity", *DEMO, *ZEN4, "--time", "60s", *drawn])


if __name__ == "__main__":
    main()
