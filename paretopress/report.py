"""`report.html`: a run as one page that needs nothing else, neither a network nor another file.

The page's parts are files of `report_page/`, put together here. Its Content-Security-Policy allows the one script and
the one style sheet that it carries, by their hashes, and forbids everything else: a name that a model brings along can
neither run nor fetch anything. The data is JSON in which no character can end the element that holds it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from paretopress.report_data import read_content, report_data
from paretopress.spaces.documents import write_text

FILE = "report.html"
PAGE, STYLE = "page.html", "style.css"
# In the order in which they are read: what a script uses as it starts stands before it.
SCRIPTS = (
    "dom.js", "format.js", "scales.js", "items.js", "marks.js", "explorer.js", "limits.js", "points_table.js",
    "reasons.js", "policy.js", "sensitivity.js", "history.js", "trust.js", "main.js",
)
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_report(run: str | Path, path: str | Path | None = None) -> Path:
    """Write the report of a run, finished or not.

    Args:
        run: The run directory.
        path: The file, by default `report.html` in the run.

    Returns:
        The file.

    Raises:
        ConfigError: There is no such run.
        ArtifactError: A file of the run is damaged.
        DiskError: The file cannot be written.
    """
    target = Path(run) / FILE if path is None else Path(path)
    write_text(target, report_page(report_data(read_content(run))))
    return target


def report_page(data: Mapping[str, Any]) -> str:
    """Return the page that shows data of `report_data`."""
    style, script = _part(STYLE), page_script()
    parts = {
        "policy": html.escape(content_policy(live=bool(data.get("live")))),
        "title": html.escape(f"{data['title']} – Paretopress report"),
        "style": style, "data": embedded_json(data), "script": script,
    }
    page = _part(PAGE)
    head, *rest = page.split("{{")
    pieces = [head]
    for piece in rest:   # no part is looked through again: data may hold the marks of another one
        name, _, tail = piece.partition("}}")
        pieces += [parts[name], tail]
    return "".join(pieces)


def content_policy(*, live: bool = False) -> str:
    """Return the page's Content-Security-Policy; a live page may fetch from where it came from."""
    rules = [
        "default-src 'none'",
        f"script-src '{_hash(page_script())}'",
        f"style-src '{_hash(_part(STYLE))}'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    return "; ".join([*rules, *(["connect-src 'self'"] if live else [])])


def embedded_json(value: Any) -> str:  # noqa: ANN401 - a document has any shape
    """Return JSON that may stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return "".join(_ESCAPES.get(character, character) for character in text)


@cache
def page_script() -> str:
    """Return the page's scripts as one."""
    return '(() => {\n"use strict";\n' + "\n".join(_part(name) for name in SCRIPTS) + "\n})();\n"


@cache
def _part(name: str) -> str:
    return (files("paretopress") / "report_page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
