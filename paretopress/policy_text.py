"""Policies, recipes and transfers as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_ROWS = 40   # of units: the JSON has them all


def list_text(rows: Sequence[Mapping[str, Any]], width: int) -> str:
    """Recipes as a table.

    Args:
        rows: As `policies.listed` returns them.
        width: Columns of the terminal.
    """
    from paretopress.tables import plain_table, render

    cells = [[row["name"], row["model_name"] or row["model"] or "–", ", ".join(row["devices"]) or "–",
              str(row["layers"]), str(row["choices"]), ", ".join(row["policies"]) or "–"] for row in rows]
    headings = ("recipe", "model", "devices", "layers", "choices", "policies")
    return render([plain_table("Recipes", headings, cells, right=("layers", "choices"))], width)


def show_text(found: Mapping[str, Any], width: int) -> str:
    """A recipe as tables.

    Args:
        found: As `policies.shown` returns it.
        width: Columns of the terminal.
    """
    from paretopress.tables import plain_table, render

    told = found["provenance"]
    origin = [["model", f"{found['model_name'] or '–'} {found['model']}".strip()], ["run", str(told.get("run", "–"))],
              ["devices", ", ".join(found["devices"]) or "–"],
              ["layers, groups", f"{found['layers']}, {found['groups']}"],
              ["choices with a loss", str(found["choices"])], ["fingerprint", found["fingerprint"]]]
    parts = [plain_table(found["name"], ("", ""), origin)]
    for one in found["contents"]:
        title = f"policy {one['name']}" + ("" if one["verified"] else " (not verified)") + _figures(one["values"])
        rows = [[unit, text] for unit, text in one["units"].items()]
        parts.append(plain_table(title, ("unit", "choice"), _cut(rows, 2)))
    return render(parts, width)


def diff_text(first: str, second: str, rows: Sequence[Mapping[str, Any]], width: int) -> str:
    """Differences of two policies as a table."""
    from paretopress.tables import plain_table, render

    if not rows:
        return "the policies are the same\n"
    cells = [[row["unit"], row["first"], row["second"]] for row in rows]
    return render([plain_table(f"{len(rows)} units differ", ("unit", first, second), cells)], width)


def transfer_text(document: Mapping[str, Any], width: int) -> str:
    """What was carried over as tables.

    Args:
        document: The JSON document of `policy transfer`.
        width: Columns of the terminal.
    """
    from paretopress.cli.solve import solved_text
    from paretopress.tables import plain_table, render

    parts = []
    if document["policies"]:
        first = document["policies"][0]
        rows = [[one["unit"], ", ".join(f"{name} ({weight:.0%})" for name, weight in one["sources"].items()),
                 "–" if one["distance"] is None else f"{one['distance']:.2f}", one["how"]] for one in first["units"]]
        title = f"policy {first['name']}: {first['coverage']:.0%} of the units have a source"
        parts.append(plain_table(title, ("unit", "stands for it", "distance", "by"), _cut(rows, 4)))
    text = render(parts, width) if parts else ""
    for one in document["refused"]:
        text += f"policy {one['name']} is not carried over: {one['reason']}\n"
    if document["front"] is not None:
        same = document["kind"] == "device"
        label = "predicted, not verified" if same else "predicted from another model, not verified"
        text += solved_text({**document["front"], "run": document["source"], "label": label}, width)
    return text


def _figures(values: Mapping[str, float]) -> str:
    known = [(name, values[name]) for name in ("accuracy", "accuracy_drop", "speedup", "size_bytes") if name in values]
    return "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in known)


def _cut(rows: Sequence[Sequence[str]], columns: int) -> list[list[str]]:
    kept = [list(row) for row in rows[:MOST_ROWS]]
    if len(rows) > MOST_ROWS:
        kept.append([f"and {len(rows) - MOST_ROWS} more", *[""] * (columns - 1)])
    return kept
