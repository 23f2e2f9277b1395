"""`paretopress inspect`: what may be decided about a model, and whether the budgets can be met."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from paretopress.cli.options import (
    DATA_OPTION,
    MODEL_OPTION,
    common,
    next_command,
    print_json,
    terminal_width,
)
from paretopress.spaces.errors import InfeasibleError

MOST_ROWS = 40


@click.command("inspect")
@click.argument(
    "settings_file",
    metavar="[SETTINGS.yaml]",
    required=False,
    type=click.Path(path_type=Path, dir_okay=False),
)
@MODEL_OPTION
@DATA_OPTION
@click.option("--target", "targets", multiple=True, metavar="DEVICE", help="Device; may be repeated.")
@click.option("--max", "limits", multiple=True, metavar="NAME=BUDGET", help="Limit a cost, as for search.")
@click.option("--max-drop", metavar="1pp", help="Allowed loss of accuracy.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override one key of the settings."
)
@click.option("--all", "show_all", is_flag=True, help="Every layer, group and dropped choice.")
@common
def inspect_command(
    settings_file: Path | None,
    model: str,
    data: str,
    targets: Sequence[str],
    limits: Sequence[str],
    max_drop: str | None,
    assignments: Sequence[str],
    show_all: bool,
    as_json: bool,
) -> int:
    """Show a model's layers, channel groups and options, and whether budgets can be met, before searching."""
    from paretopress.cli.search import limits_of, read_plain
    from paretopress.factories import load_data, load_model
    from paretopress.progress import observing
    from paretopress.search.session import inspect_model
    from paretopress.settings import search_settings, with_arguments

    plain = with_arguments(read_plain(settings_file, assignments), targets, limits_of(limits), max_drop)
    settings = search_settings(plain)
    with observing(plain=as_json) as observer:
        found = inspect_model(load_model(model), load_data(data), settings, observer)
    if as_json:
        print_json(found)
    else:
        click.echo(inspection_text(found, terminal_width(), None if show_all else MOST_ROWS), nl=False)
    impossible = [
        name for name, row in found.get("objectives", {}).items() if row.get("satisfiable") is False
    ]
    if impossible:
        raise InfeasibleError(_impossible(found["objectives"], impossible))
    if not as_json:
        next_command(f"paretopress search --model {shlex.quote(model)} --data {shlex.quote(data)} --time 5m")
    return 0


def inspection_text(found: Mapping[str, Any], width: int, most: int | None = MOST_ROWS) -> str:
    """Return what `inspect_model` found as tables.

    Args:
        found: Its result.
        width: Columns of the terminal.
        most: Rows per table, None for all.
    """
    from paretopress.tables import plain_table, render

    options = found.get("options", {})
    layers = [_layer_cells(layer) for layer in found.get("layers", [])]
    groups = [_group_cells(group, options) for group in found.get("groups", [])]
    dropped = [list(map(str, entry)) for entry in found.get("dropped", [])]
    parts = [
        plain_table("Layers", ("layer", "kind", "shape", "MACs"), layers[:most], right=("MACs",)),
        plain_table(
            "Channel groups",
            ("group", "channels", "options", "made by"),
            groups[:most],
            right=("channels", "options"),
        ),
    ]
    if dropped:
        parts.append(plain_table("Not offered", ("unit", "choice", "reason"), dropped[:most]))
    parts.append(
        plain_table(
            "Feasibility",
            ("objective", "minimum", "baseline", "maximum", "budget", ""),
            [_objective_cells(name, row) for name, row in found.get("objectives", {}).items()],
            right=("minimum", "baseline", "maximum"),
        )
    )
    text = render(parts, width)
    more = sum(max(0, len(rows) - (most or len(rows))) for rows in (layers, groups, dropped))
    units = f"{len(options)} units, 10^{found.get('log10_size', 0.0):.1f} policies\n"
    return text + units + (f"{more} more rows (--all)\n" if more else "")


def _layer_cells(layer: Mapping[str, Any]) -> list[str]:
    from paretopress.tables import shown

    shape = "×".join(str(size) for size in layer.get("shape", []))
    return [str(layer.get("name")), str(layer.get("kind", "")), shape, shown("macs", layer.get("macs"))]


def _group_cells(group: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    offered = options.get(f"{group.get('name')}/channels", 0)
    count = offered if isinstance(offered, int) else len(offered)
    frozen = group.get("frozen")
    makers = ", ".join(map(str, group.get("producers", [])))
    return [
        str(group.get("name")),
        str(group.get("size", "")),
        "frozen" if frozen else str(count),
        str(frozen or makers),
    ]


def _objective_cells(name: str, row: Mapping[str, Any]) -> list[str]:
    from paretopress.tables import shown

    verdict = {True: "can be met", False: "impossible"}.get(row.get("satisfiable"), "")  # type: ignore[arg-type]
    values = [shown(name, row.get(key)) for key in ("min", "baseline", "max")]
    return [name, *values, str(row.get("budget") or "–"), verdict]


def _impossible(objectives: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    from paretopress.tables import shown

    parts = []
    for name in names:
        row = objectives[name]
        best = row.get("max") if name == "accuracy" else row.get("min")
        parts.append(f"budget {name} {row.get('budget')!r} (best reachable: {shown(name, best)})")
    return "impossible: " + "; ".join(parts)
