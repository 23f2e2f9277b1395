"""Debian's Chromium without a window, for measuring and picturing reports."""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)


@contextmanager
def opened(address: str, width: int = 1280, height: int = 1000) -> Iterator[Any]:
    """Open a page, wait until it has drawn itself, and close the browser in the end.

    Raises:
        TimeoutError: The page does not get ready within a minute.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = "/usr/bin/chromium"
        for argument in (*ARGUMENTS, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
            options.add_argument(argument)
        driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        try:
            driver.get(address)
            wait_until(driver, "document.documentElement.dataset.ready !== undefined")
            yield driver
        finally:
            driver.quit()


def wait_until(driver: Any, condition: str, seconds: float = 60.0) -> None:  # noqa: ANN401 - Selenium's driver
    """Wait for a condition of the page. Raises `TimeoutError`."""
    end = time.monotonic() + seconds
    while not driver.execute_script(f"return Boolean({condition})"):
        if time.monotonic() > end:
            raise TimeoutError(f"still not true: {condition}")
        time.sleep(0.05)


def picture(driver: Any, path: Path, selectors: list[str], margin: int = 14) -> None:  # noqa: ANN401 - Selenium's driver
    """Write what a page shows from the first to the last of some elements, as PNG."""
    box = driver.execute_script("""
        const boxes = arguments[0].map((one) => document.querySelector(one).getBoundingClientRect());
        const top = Math.min(...boxes.map((box) => box.top)) + scrollY;
        const bottom = Math.max(...boxes.map((box) => box.bottom)) + scrollY;
        return { top, height: bottom - top, width: document.documentElement.clientWidth };
    """, selectors)
    top, height = max(0, box["top"] - margin), box["height"] + 2 * margin
    wanted = {"format": "png", "captureBeyondViewport": True,
              "clip": {"x": 0, "y": top, "width": box["width"], "height": height, "scale": 1}}
    found = driver.execute_cdp_cmd("Page.captureScreenshot", wanted)
    path.write_bytes(base64.b64decode(found["data"]))
