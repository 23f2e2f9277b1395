"""Make the pictures of docs/report.md from a run.

    paretopress demo --run runs/demo
    python docs/pictures/make_report_pictures.py runs/demo

Needs Debian's `chromium` and `chromium-driver`, Selenium and Pillow (the extra `test`). Pictures of more than 150 kB
are reduced to a palette.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1] / "benchmarks" / "report"))
from browser import opened, picture, wait_until  # noqa: E402 - the benchmarks are no package

from paretopress.report import write_report  # noqa: E402

MOST_BYTES = 150_000
# File, width of the window, theme, and from which to which element.
PICTURES = (
    ("report_explorer.png", 1280, "light", ["header.top", "#shown"]),
    ("report_policy.png", 1280, "light", ["#policy"]),
    ("report_sensitivity.png", 1280, "light", ["#sensitivity"]),
    ("report_search.png", 1280, "light", ["#history", "#trust"]),
    ("report_dark.png", 1280, "dark", ["header.top", "#points"]),
    ("report_narrow.png", 390, "light", ["header.top", "#scatter"]),
)


def main() -> None:
    """Make all pictures of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    page = write_report(arguments.run).resolve().as_uri()
    with opened(page) as driver:
        for name, width, theme, selectors in PICTURES:
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
                "width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False})
            driver.get(page)   # drawn as wide as the window is
            wait_until(driver, "document.documentElement.dataset.ready !== undefined")
            if driver.execute_script("return document.documentElement.dataset.theme") != theme:
                driver.find_element("id", "theme").click()
            picture(driver, arguments.out / name, selectors)
            reduced(arguments.out / name)


def reduced(path: Path) -> None:
    """Store a picture tightly, with all its colours where that is small enough: rare ones tell marks apart."""
    with Image.open(path) as image:
        full = image.convert("RGB")
    full.save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        full.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
