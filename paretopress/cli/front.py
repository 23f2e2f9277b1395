"""`paretopress front` and `paretopress export`: what a finished run holds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paretopress.cli.options import common, in_colour, next_command, print_json, terminal_width
from paretopress.spaces.errors import ConfigError, InfeasibleError

if TYPE_CHECKING:
    from paretopress.result import Front, Point, Result

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
    type=click.Choice(["safetensors", "onnx", "pt2", "openvino"]),
    default="safetensors",
    show_default=True,
    help="A folder that paretopress.load reads; one ONNX file; a .pt2 file of torch.export; OpenVINO IR (.xml).",
)
@click.option("-o", "--output", "output", required=True, type=click.Path(path_type=Path), help="Destination.")
@click.option("--model", metavar="PKG.MOD:FUNCTION", help="Function that returns the model, for pt2 and openvino.")
@click.option("--data", metavar="PKG.MOD:FUNCTION", help="Function that returns the data, for pt2 and openvino.")
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@click.option("--huffman", is_flag=True, help="Code the packed tensors of a folder where that takes fewer bytes.")
@click.option("--packed", is_flag=True, help="Store the integers of a .pt2 file packed: smaller and slower.")
@common
def export_command(
    run: Path, pick: str, form: str, output: Path, model: str | None, data: str | None, force: bool, huffman: bool,
    packed: bool, as_json: bool,
) -> int:
    """Copy one verified model out of a run, or convert it and check and time the conversion.

    What cannot be shown to compute what was verified is refused, and nothing is written.
    """
    from paretopress.exporting import stored_plain
    from paretopress.result import Result
    from paretopress.selection import pick_point

    result = Result.load(run)
    point = pick_point(result.front, pick)
    if form != "safetensors" and huffman:
        raise ConfigError("--huffman: runtimes read no coded ONNX file (allowed with --format safetensors)")
    if form != "pt2" and packed:
        raise ConfigError("--packed: other formats hold integers as they are (allowed with --format pt2)")
    if form in ("pt2", "openvino"):
        path, checks = output, _converted(result.front, point, output, form, model, data, force=force, packed=packed)
    else:
        path, checks = _copied(result, point, output, form, force=force, huffman=huffman), stored_plain(point)
    if as_json:
        print_json({"output": str(path), "format": form, "id": point.id, "policy_hash": point.policy_hash,
                    "measured": dict(point.measured), **checks})
        return 0
    click.echo(f"{path}: point {point.id}, {_exported_text(result.front, point, checks)}")
    named = f"--model {model or 'PKG.MOD:FUNCTION'} --data {data or 'PKG.MOD:FUNCTION'}"
    if form == "safetensors":
        next_command(f"paretopress verify {shlex.quote(str(path))} {named}")
    else:
        folder = f"paretopress export {shlex.quote(str(run))} --pick id:{point.id} -o FOLDER"
        next_command(f"{folder}   # with its model card")
    return 0


def _copied(result: Result, point: Point, output: Path, form: str, *, force: bool, huffman: bool) -> Path:
    from paretopress.exporting import export_folder, export_onnx_file
    from paretopress.point_card import point_card

    if form == "onnx":
        return export_onnx_file(point, output, force=force)
    return export_folder(point, output, force=force, huffman=huffman, card=point_card(result.front, point, result.run))


def _converted(
    front: Front, point: Point, output: Path, form: str, model: str | None, data: str | None, *, force: bool,
    packed: bool,
) -> dict[str, Any]:
    from paretopress.exporting import conversion_plain, convert_point
    from paretopress.factories import load_data, load_model

    if model is None or data is None:
        raise ConfigError(f"--format {form}: give --model and --data: it is converted and checked on holdout inputs")
    network, sets = load_model(model), load_data(data)
    return conversion_plain(convert_point(front, point, output, form, network, sets, force=force, packed=packed))


def _exported_text(front: Front, point: Point, checks: Mapping[str, Any]) -> str:
    """Metric, size, and how parity and time were checked."""
    from paretopress.evaluators.budgets import shown

    parity, timing = checks["parity"], checks["timing"]
    converted = timing["source"] == "export"
    time = timing["latency_ms"] if converted else point.value("latency")
    parts = [f"{front.metric.label} {front.metric.shown(point.value('accuracy'))}", f"latency {shown('latency', time)}"]
    if converted:
        parts[-1] += f" in {timing['runtime']} (dense {shown('latency', timing['latency_ms_baseline'])})"
    parts.append(f"size {shown('size', point.value('size'))}")
    if parity["difference"] is not None:
        samples = "" if parity["samples"] is None else f" on {parity['samples']} samples"
        same = f"{parity['agreement']:.1%} the same first output{samples}"
        parts.append(f"{'' if converted else 'ONNX '}differs by {parity['difference']:.2g}, {same}")
    return ", ".join(parts)


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
