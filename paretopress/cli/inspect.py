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
LAYER_HEADINGS = ("layer", "kind", "shape", "MACs", "bytes")
GROUP_HEADINGS = ("group", "channels", "options", "made by, or why it is frozen")
COST_HEADINGS = ("objective", "dense", "best reachable", "limit", "")


@click.command("inspect")
@click.argument(
    "settings_file",
    metavar="[SETTINGS.yaml]",
    required=False,
    type=click.Path(path_type=Path, dir_okay=False),
)
@MODEL_OPTION
@DATA_OPTION
@click.option("--target", "targets", multiple=True, metavar="DEVICE", help="As for search; may be repeated.")
@click.option("--max", "limits", multiple=True, metavar="NAME=BUDGET", help="Limit a cost, as for search.")
@click.option("--max-drop", metavar="1pp", help="Allowed loss, as for search.")
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
    from paretopress.measuring import measure_if_targeted
    from paretopress.progress import observing
    from paretopress.search.session import inspect_model
    from paretopress.settings import search_settings, with_arguments

    plain = with_arguments(read_plain(settings_file, assignments), targets, limits_of(limits), max_drop)
    settings = search_settings(plain)
    with observing(plain=as_json) as observer:
        network, sets = load_model(model), load_data(data)
        measure_if_targeted(settings.targets, observer)
        found = inspect_model(network, sets, settings, observer)
    if as_json:
        print_json(found)
    else:
        click.echo(inspection_text(found, terminal_width(), None if show_all else MOST_ROWS), nl=False)
    impossible = {name: row for name, row in found["objectives"].items() if row["satisfiable"] is False}
    if impossible:
        raise InfeasibleError(_impossible(impossible))
    if not as_json:
        next_command(_search_command(settings_file, model, data, targets, limits, max_drop, assignments, plain))
    return 0


def _search_command(
    settings_file: Path | None,
    model: str,
    data: str,
    targets: Sequence[str],
    limits: Sequence[str],
    max_drop: str | None,
    assignments: Sequence[str],
    plain: Mapping[str, Any],
) -> str:
    """Return the command that searches for what was inspected, with the same targets, budgets and settings."""
    words = ["paretopress", "search", *([str(settings_file)] if settings_file else [])]
    words += ["--model", model, "--data", data]
    for option, values in (("--target", targets), ("--max", limits), ("--set", assignments)):
        for value in values:
            words += [option, value]
    if max_drop is not None:
        words += ["--max-drop", max_drop]
    if not {"time", "trials"} & set(plain.get("search") or {}):
        words += ["--time", "5m"]
    return shlex.join(words)


def inspection_text(found: Mapping[str, Any], width: int, most: int | None = MOST_ROWS) -> str:
    """Return what `inspect_model` found as tables.

    Args:
        found: Its result.
        width: Columns of the terminal.
        most: Rows per table, None for all.
    """
    from paretopress.tables import plain_table, plain_text, render

    options = found["options"]
    targets = [target["id"] for target in found["targets"]]
    layers = [_layer_cells(layer, targets[0] if targets else "") for layer in found["layers"]]
    groups = [_group_cells(group, options) for group in found["groups"]]
    dropped = _dropped_rows(found["dropped"], whole=most is None)
    share = f"time on {targets[0]}" if targets else "time"
    parts = [
        plain_table(
            "Layers", (*LAYER_HEADINGS, share, ""), layers[:most], right=(*LAYER_HEADINGS[3:], share)
        ),
        plain_table("Channel groups", GROUP_HEADINGS, groups[:most], right=GROUP_HEADINGS[1:3]),
    ]
    if dropped:
        parts.append(plain_table("Not offered", ("unit", "choice", "reason"), dropped))
    rows = [_objective_cells(name, row) for name, row in found["objectives"].items()]
    title = "Feasibility (predicted; the best of each on its own)"
    parts.append(plain_table(title, COST_HEADINGS, rows, right=COST_HEADINGS[1:4]))
    more = sum(max(0, len(rows) - (most or len(rows))) for rows in (layers, groups))
    lines = [f"{len(options)} units, 10^{found['space_log10']:.1f} policies"]
    lines += [f"note: {plain_text(note)}" for note in found["notes"]]
    lines += [f"{more} more rows (--all)"] if more else []
    return render(parts, width) + "\n".join(lines) + "\n"


def _dropped_rows(dropped: Sequence[Mapping[str, str]], *, whole: bool) -> list[list[str]]:
    """Return one row per dropped choice, or one per reason with its first choice and the number of others."""
    if whole:
        return [[entry["unit"], entry["choice"], entry["reason"]] for entry in dropped]
    grouped: dict[str, list[Mapping[str, str]]] = {}
    for entry in dropped:
        grouped.setdefault(entry["reason"], []).append(entry)
    more = {reason: f" and {len(rest) - 1} more" if rest[1:] else "" for reason, rest in grouped.items()}
    return [[rest[0]["unit"], rest[0]["choice"] + more[reason], reason] for reason, rest in grouped.items()]


def _layer_cells(layer: Mapping[str, Any], target: str) -> list[str]:
    from paretopress.tables import shown

    shape = "×".join(str(size) for size in layer["shape"])
    share = layer["share"].get(f"latency@{target}")
    frozen = f"frozen: {layer['frozen']}" if layer["frozen"] else ""
    return [
        layer["name"],
        layer["kind"],
        shape,
        shown("macs", layer["macs"]),
        shown("size", layer["bytes"]),
        "–" if share is None else f"{100 * share:.1f} %",
        frozen,
    ]


def _group_cells(group: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    count = len(options.get(f"{group['name']}/channels", ()))
    made_by = ", ".join(group["producers"])
    frozen = group["frozen"]
    return [group["name"], str(group["channels"]), "frozen" if frozen else str(count), frozen or made_by]


def _objective_cells(name: str, row: Mapping[str, Any]) -> list[str]:
    from paretopress.tables import shown

    verdict = "" if row["satisfiable"] is None else "can be met" if row["satisfiable"] else "impossible"
    return [name, *(shown(name, row[key]) for key in ("baseline", "minimum", "limit")), verdict]


def _impossible(rows: Mapping[str, Mapping[str, Any]]) -> str:
    from paretopress.tables import shown

    parts = [
        f"{name} cannot be at most {shown(name, row['limit'])}: best reachable {shown(name, row['minimum'])}"
        for name, row in rows.items()
    ]
    return "; ".join(parts)
