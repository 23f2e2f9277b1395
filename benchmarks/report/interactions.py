"""How long the report takes for what a reader does, measured in the page: 500 trials of a model with 200 layers.

    python benchmarks/report/interactions.py --out benchmarks/report/interactions.json

Each interaction is timed from the event to the end of the second frame that follows it: handler, style, layout and
paint. Chromium without a window and without a graphics card; needs Debian's `chromium` and `chromium-driver`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from browser import opened
from made_run import made_run

from paretopress.report import write_report

REPEATS = 9
# Name and what is done; `turn` counts the repetitions, so that each does something else.
INTERACTIONS = {
    "drag a slider by a step": """
        const slider = document.querySelectorAll('#limits input[type=range]')[1 + turn % 2];
        slider.value = 199 - 11 * turn; slider.dispatchEvent(new Event('input', { bubbles: true }));""",
    "click a point: policy and heat map of 200 layers": """
        const marks = document.querySelectorAll('#scatter .mark');
        marks[(3 * turn + 1) % marks.length].dispatchEvent(new MouseEvent('click', { bubbles: true }));""",
    "click a trial": """
        const dots = document.querySelectorAll('#scatter .dot');
        dots[(31 * turn + 5) % dots.length].dispatchEvent(new MouseEvent('click', { bubbles: true }));""",
    "hover over a point": """
        const shapes = document.querySelectorAll('#scatter .mark .shape');
        shapes[turn % shapes.length].dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));""",
    "move to the next point by key": """
        const mark = document.querySelector('#scatter .mark[tabindex="0"]'); mark.focus();
        mark.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }));""",
    "choose another axis": """
        const box = document.querySelectorAll('#axes select')[0];
        box.value = ['size', 'latency@local'][turn % 2]; box.dispatchEvent(new Event('change'));""",
    "show everything instead of the verified points": """
        const box = document.querySelectorAll('#axes select')[2];
        box.value = ['all', 'front'][turn % 2]; box.dispatchEvent(new Event('change'));""",
    "sort the table": "document.querySelectorAll('#points th button')[turn % 6].click();",
    "choose another unit's sensitivity": """
        const box = document.querySelectorAll('#sensitivity-controls select')[1];
        box.selectedIndex = (7 * turn + 1) % box.options.length; box.dispatchEvent(new Event('change'));""",
    "choose another kind of sensitivity": """
        const box = document.querySelectorAll('#sensitivity-controls select')[0];
        box.selectedIndex = (turn + 1) % box.options.length; box.dispatchEvent(new Event('change'));""",
    "switch between dark and light": "document.getElementById('theme').click();",
}
TIMED = """
const [code, turn, done] = arguments;
const act = () => {{ {body} }};
const start = performance.now();
act();
const handled = performance.now();
requestAnimationFrame(() => requestAnimationFrame(() => done([handled - start, performance.now() - start])));
"""


def measured(driver: Any, body: str) -> dict[str, float]:  # noqa: ANN401 - Selenium's driver
    """Milliseconds of the handler, and until it is on the screen: medians and the worst."""
    script = TIMED.format(body=body)
    pairs = [driver.execute_async_script(script, "", turn) for turn in range(REPEATS)]
    handler, painted = zip(*pairs, strict=True)
    return {"handler_ms": round(statistics.median(handler), 1), "handler_worst_ms": round(max(handler), 1),
            "painted_ms": round(statistics.median(painted), 1), "painted_worst_ms": round(max(painted), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = made_run(Path(folder) / "run", arguments.trials, arguments.layers)
        start = time.perf_counter()
        page = write_report(run)
        written = time.perf_counter() - start
        with opened(page.as_uri()) as driver:
            loaded = driver.execute_script("return performance.getEntriesByType('measure')[0]?.duration ?? null")
            found = {name: measured(driver, body) for name, body in INTERACTIONS.items()}
        result = {"trials": arguments.trials, "layers": arguments.layers, "bytes": page.stat().st_size,
                  "written_s": round(written, 2), "drawn_ms": None if loaded is None else round(loaded, 1),
                  "load_average": round(os.getloadavg()[0], 1), "cores": os.cpu_count(), "interactions": found}
    print(f"{result['bytes'] / 1000:.0f} kB, written in {result['written_s']} s, drawn in {result['drawn_ms']} ms "
          f"(load {result['load_average']} on {result['cores']} cores)")
    for name, one in found.items():
        print(f"{one['handler_ms']:7.1f} ms (worst {one['handler_worst_ms']:6.1f})  on screen {one['painted_ms']:7.1f} "
              f"(worst {one['painted_worst_ms']:6.1f})  {name}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
