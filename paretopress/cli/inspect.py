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
    devices,
    next_command,
    print_json,
    terminal_width,
)
from paretopress.spaces.errors import ConfigError, InfeasibleError

MOST_ROWS = 40
MOST_MAKERS = 3
LONGEST_UNWRAPPED = 24
LAYER_HEADINGS = ("layer", "kind", "shape", "MACs", "bytes", "share", "options")
GROUP_HEADINGS = ("group", "channels", "MACs", "bytes", "share", "options", "made by")
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
@click.option(
    "--target", "targets", multiple=True, metavar="DEVICE", shell_complete=devices,
    help="As for search; may be repeated.",
)
@click.option("--max", "limits", multiple=True, metavar="NAME=BUDGET", help="Limit a cost, as for search.")
@click.option("--max-drop", metavar="1pp", help="Allowed loss, as for search.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override one key of the settings."
)
@click.option(
    "--svg",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.svg",
    help="Draw the fused layers, every channel group in its colour.",
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
    svg: Path | None,
    show_all: bool,
    as_json: bool,
) -> int:
    """Show a model's layers, channel groups and options, and whether budgets can be met, before searching."""
    check_drawing(svg)
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
    if svg is not None:
        _draw(found, svg)
    impossible = {name: row for name, row in found["objectives"].items() if row["satisfiable"] is False}
    if impossible:
        raise InfeasibleError(_impossible(impossible))
    if not as_json:
        next_command(suggested_search(settings_file, model, data, targets, limits, max_drop, assignments, plain))
    return 0


def check_drawing(path: Path | None, option: str = "--svg") -> None:
    """Refuse a file that cannot be written before anything is computed. Raises `ConfigError`."""
    if path is None:
        return
    if path.suffix != ".svg":
        raise ConfigError(f"{option} {path}: the picture is SVG; write it to a .svg file")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: the folder {path.parent} does not exist")


def _draw(found: Mapping[str, Any], path: Path) -> None:
    from paretopress.graph_svg import graph_svg
    from paretopress.spaces.documents import write_text

    write_text(path, graph_svg(found))
    click.echo(f"graph: {path}", err=True)


def suggested_search(
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

    options, times = found["options"], found["other_time"]
    names = [row["name"] for row in times]
    layers = [_layer_cells(layer, names, options) for layer in found["layers"]]
    groups = [_group_cells(group, names, options, whole=most is None) for group in found["groups"]]
    short = all(len(row[0]) <= LONGEST_UNWRAPPED for row in (*layers[:most], *groups[:most]))
    dropped = _dropped_rows(found["dropped"], whole=most is None)
    parts = [
        plain_table(
            "Layers",
            LAYER_HEADINGS,
            [*layers[:most], *_other_time(times)],
            right=LAYER_HEADINGS[3:6],
            whole=LAYER_HEADINGS[not short : 3],
        ),
        plain_table(
            "Channel groups",
            GROUP_HEADINGS,
            groups[:most],
            right=GROUP_HEADINGS[1:6],
            whole=GROUP_HEADINGS[:short],
        ),
    ]
    if dropped:
        headings = ("unit", "choice", "reason")
        parts.append(plain_table("Not offered", headings, dropped, whole=headings[:short]))
    rows = [objective_cells(name, row) for name, row in found["objectives"].items()]
    title = "Feasibility (predicted; the best of each on its own)"
    parts.append(plain_table(title, COST_HEADINGS, rows, right=COST_HEADINGS[1:4]))
    more = sum(max(0, len(rows) - (most or len(rows))) for rows in (layers, groups))
    lines = [f"{len(options)} units, 10^{found['space_log10']:.1f} policies", *_share_lines(times)]
    lines += [f"note: {plain_text(note)}" for note in _own_code_notes(found["groups"])]
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


def _layer_cells(layer: Mapping[str, Any], names: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    from paretopress.evaluators.budgets import shown

    counts = {kind: len(options.get(f"{layer['name']}/{kind}", ())) for kind in ("weights", "rank")}
    offered = [f"{counts['weights']} formats"] * (counts["weights"] > 0)
    offered += [f"{counts['rank'] - 1} ranks"] * (counts["rank"] > 1)
    frozen = f"frozen: {layer['frozen']}" if layer["frozen"] else ""
    return [
        layer["name"],
        layer["kind"],
        "×".join(str(size) for size in layer["shape"]),
        shown("macs", layer["macs"]),
        shown("size", layer["bytes"]),
        _share(layer["share"], names),
        frozen or ", ".join(filter(None, (*offered, layer["end"] and f"{layer['end']} layer"))) or "none",
    ]


def _share(shares: Mapping[str, float], names: Sequence[str]) -> str:
    """Shares of the predicted time of every target, in their order."""
    return " | ".join(f"{100 * shares[name]:.1f} %" if name in shares else "–" for name in names) or "–"


def _other_time(times: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows for the predicted time that is no layer's."""
    names = [row["name"] for row in times]
    rows = []
    for key, title in (
        ("kernels", "(other kernels)"),
        ("conversions", "(conversions)"),
        ("call", "(runtime call)"),
    ):
        shares = {row["name"]: row[key] for row in times}
        if any(shares.values()):
            rows.append([title, "", "", "", "", _share(shares, names), ""])
    return rows


def _share_lines(times: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the shares are of: one line, and one per target where they are several."""
    of = [f"{row['name']} ({row['model']})" for row in times]
    if len(of) < 2:
        return [f"share: of the predicted {of[0]}"] if of else ["share: no target can execute the model"]
    return ["share: of the predicted", *(f"  {number}. {text}" for number, text in enumerate(of, 1))]


def _own_code_notes(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why a compressed model would run its captured graph instead of the user's code, once per reason."""
    found: dict[str, list[str]] = {}
    for group in groups:
        if group["own_code"]:
            found.setdefault(group["own_code"], []).append(group["name"])
    return [f"without all of {', '.join(names)} the model runs as it was captured: {reason}"
            for reason, names in found.items()]


def _group_cells(
    group: Mapping[str, Any], names: Sequence[str], options: Mapping[str, Any], *, whole: bool
) -> list[str]:
    from paretopress.evaluators.budgets import shown

    count = len(options.get(f"{group['name']}/channels", ()))
    makers = group["producers"] if whole else group["producers"][:MOST_MAKERS]
    hidden = len(group["producers"]) - len(makers)
    made_by = ", ".join(makers) + f" and {hidden} more" * (hidden > 0)
    return [
        group["name"],
        f"{group['channels']}×{group['inner']}" if group["inner"] > 1 else str(group["channels"]),
        shown("macs", group["macs"]),
        shown("size", group["bytes"]),
        _share(group["share"], names),
        "frozen" if group["frozen"] else str(count),
        group["frozen"] or made_by,
    ]


def objective_cells(name: str, row: Mapping[str, Any]) -> list[str]:
    """Return a row of the table of feasibility, for `COST_HEADINGS`."""
    from paretopress.evaluators.budgets import shown

    verdict = "" if row["satisfiable"] is None else "can be met" if row["satisfiable"] else "impossible"
    return [name, *(shown(name, row[key]) for key in ("baseline", "minimum", "limit")), verdict]


def _impossible(rows: Mapping[str, Mapping[str, Any]]) -> str:
    from paretopress.evaluators.budgets import shown

    parts = [
        f"{name} cannot be at most {shown(name, row['limit'])}: best reachable {shown(name, row['minimum'])}"
        for name, row in rows.items()
    ]
    return "; ".join(parts)
