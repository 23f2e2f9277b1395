"""`paretopress front` and `paretopress export`: what a finished run holds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paretopress.cli.options import common, in_colour, next_command, print_json, terminal_width
from paretopress.spaces.errors import ConfigError, InfeasibleError

if TYPE_CHECKING:
    from paretopress.result import Front, Point

RUN_ARGUMENT = click.argument("run", type=click.Path(path_type=Path))


@click.command("front")
@RUN_ARGUMENT
@click.option(
    "--max",
    "limits",
    multiple=True,
    metavar="NAME=BUDGET",
    help="Only points within a limit, such as latency=5ms or size=-50%.",
)
@click.option(
    "--all", "show_all", is_flag=True, help="Also the verified points that fell off, with the reason."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "md"]),
    default="table",
    show_default=True,
    help="How to print.",
)
@common
def front_command(run: Path, limits: Sequence[str], show_all: bool, form: str, as_json: bool) -> int:
    """Print the verified front of a finished run."""
    from paretopress.result import Result
    from paretopress.selection import limit_budget, within

    front = Result.load(run).front
    budgets = [limit_budget(limit) for limit in limits]
    kept = within(front, budgets) if budgets else None
    if kept is not None and not kept:
        raise InfeasibleError(f"no verified point of {run} meets {' and '.join(map(str, budgets))}")
    _print(front, kept, "json" if as_json else form, show_all=show_all)
    if not front.feasible:
        raise InfeasibleError(f"no verified point of {run} meets all budgets of the run")
    if form == "table" and not as_json:
        next_command(f"paretopress export {shlex.quote(str(run))} --pick knee --format onnx -o model.onnx")
    return 0


@click.command("export")
@RUN_ARGUMENT
@click.option(
    "--pick",
    default="knee",
    show_default=True,
    help="knee, fastest, smallest, id:N, or a limit: 'latency<=5ms' (the most accurate within it) or "
    "'accuracy>=0.97' (the fastest).",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["safetensors", "onnx"]),
    default="safetensors",
    show_default=True,
    help="A folder that paretopress.load reads, or one ONNX file.",
)
@click.option("-o", "--output", "output", required=True, type=click.Path(path_type=Path), help="Destination.")
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@click.option("--huffman", is_flag=True, help="Code the packed tensors of a folder where that takes fewer bytes.")
@common
def export_command(
    run: Path, pick: str, form: str, output: Path, force: bool, huffman: bool, as_json: bool
) -> int:
    """Copy one verified model out of a run."""
    from paretopress.exporting import export_folder, export_onnx_file
    from paretopress.result import Result
    from paretopress.selection import pick_point
    from paretopress.tables import shown

    front = Result.load(run).front
    point = pick_point(front, pick)
    if form == "onnx" and huffman:
        raise ConfigError("--huffman: runtimes read no coded ONNX file (allowed with --format safetensors)")
    if form == "onnx":
        path = export_onnx_file(point, output, force=force)
    else:
        path = export_folder(point, output, force=force, huffman=huffman)
    if as_json:
        print_json(
            {
                "output": str(path),
                "format": form,
                "id": point.id,
                "policy_hash": point.policy_hash,
                "measured": dict(point.measured),
            }
        )
        return 0
    values = ", ".join(f"{name} {shown(name, point.value(name))}" for name in ("latency", "size"))
    metric = f"{front.metric.label} {front.metric.shown(point.value('accuracy'))}"
    click.echo(f"{path}: point {point.id}, {metric}, {values}")
    if form == "safetensors":
        next_command(
            f"paretopress verify {shlex.quote(str(path))} --model PKG.MOD:FUNCTION --data PKG.MOD:FUNCTION"
        )
    return 0


def _print(front: Front, kept: Sequence[Point] | None, form: str, *, show_all: bool) -> None:
    from paretopress.front_formats import csv_text, front_rows, markdown_text
    from paretopress.tables import front_text, shown_points

    points = shown_points(front, show_all)
    if kept is not None:
        points = [point for point in points if point in kept]
    if form == "json":
        ids = {point.id for point in points} if kept is not None else None
        plain = dict(front.plain)
        if ids is not None:
            plain["points"] = [point for point in plain["points"] if point["id"] in ids]
        print_json(plain)
    elif form == "csv":
        click.echo(csv_text(front_rows(front, points)), nl=False)
    elif form == "md":
        click.echo(markdown_text(front, points), nl=False)
    else:
        text = front_text(
            front,
            width=terminal_width(),
            show_all=show_all,
            colour=in_colour(),
            points=points if kept is not None else None,
        )
        click.echo(text, nl=False)
