"""What the drawn pictures have in common: colours, the style of text, and text that nobody checked.

Names that come from a model are stripped of control characters and escaped.
"""

from __future__ import annotations

from xml.sax.saxutils import escape

from paretopress.tables import plain_text

# Paul Tol's "muted" scheme, which people with any colour blindness can tell apart (personal.sron.nl/~pault).
COLOURS = ("#332288", "#DDCC77", "#117733", "#CC6677", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499")
GREY, INK, PALE = "#9a9a9a", "#1b1b1b", "#ececec"
STYLE = (
    "text{font-family:system-ui,'DejaVu Sans',Helvetica,Arial,sans-serif;font-size:10px;fill:#1b1b1b}"
    ".n{font-weight:bold;font-size:11px}.s{fill:#4a4a4a}.h{font-weight:bold;font-size:14px}.g{font-weight:bold}"
)


def text_at(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    """A line of text at a place, of a class of `STYLE`."""
    attributes = f' class="{kind}"' * bool(kind) + f' text-anchor="{anchor}"' * bool(anchor)
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(plain_text(text))}</text>'


def shortened(name: str, longest: int) -> str:
    """A name of at most so many characters: the end of a path says most."""
    text = plain_text(name)
    return text if len(text) <= longest else "…" + text[1 - longest:]


def tooltip(text: str) -> str:
    """What a browser shows over the element that holds it, line by line."""
    return f"<title>{escape(chr(10).join(plain_text(line) for line in text.splitlines()))}</title>"
