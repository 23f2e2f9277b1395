"""`paretopress sensitivity`: what every choice alone does to a model's outputs, as a table, JSON and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from paretopress.cli.inspect import check_drawing, suggested_search
from paretopress.cli.options import (
    DATA_OPTION,
    MODEL_OPTION,
    common,
    devices,
    next_command,
    print_json,
    terminal_width,
)

HEADINGS = ("unit", "choices", "choice=loss")


@click.command("sensitivity")
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
@click.option(
    "--time",
    metavar="1m",
    help="Time for the measurement; what is not measured by then is estimated.  [default: as long as it takes]",
)
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override one key of the settings."
)
@click.option(
    "--svg",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.svg",
    help="Draw the losses, a small plot per unit.",
)
@click.option(
    "--heatmap",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.svg",
    help="Draw the losses as a heat map, units by choices.",
)
@common
def sensitivity_command(
    settings_file: Path | None,
    model: str,
    data: str,
    targets: Sequence[str],
    time: str | None,
    assignments: Sequence[str],
    svg: Path | None,
    heatmap: Path | None,
    as_json: bool,
) -> int:
    """Measure what every choice alone does to a model's outputs, before searching.

    The loss is measured without labels, on calibration samples, with the compensation that a search uses.
    """
    check_drawing(svg)
    check_drawing(heatmap, "--heatmap")
    from paretopress.cli.search import read_plain
    from paretopress.factories import load_data, load_model
    from paretopress.measuring import measure_if_targeted
    from paretopress.progress import observing
    from paretopress.search.session import measure_sensitivity
    from paretopress.settings import search_settings, with_arguments

    plain = with_arguments(read_plain(settings_file, assignments), targets, search={"time": time})
    settings = search_settings(plain)
    limited = (plain.get("search") or {}).get("time") is not None
    with observing(plain=as_json) as observer:
        network, sets = load_model(model), load_data(data)
        measure_if_targeted(settings.targets, observer)
        found = measure_sensitivity(network, sets, settings, settings.seconds if limited else None, observer)
    if as_json:
        print_json(found)
    else:
        click.echo(sensitivity_text(found, terminal_width()), nl=False)
    if svg is not None:
        _draw(found, svg)
    if heatmap is not None:
        _draw_heatmap(found, heatmap)
    if not as_json:
        next_command(suggested_search(settings_file, model, data, targets, (), None, assignments, plain))
    return 0


def _draw(found: Mapping[str, Any], path: Path) -> None:
    from paretopress.sensitivity_svg import sensitivity_svg
    from paretopress.spaces.documents import write_text

    write_text(path, sensitivity_svg(found))
    click.echo(f"curves: {path}", err=True)


def _draw_heatmap(found: Mapping[str, Any], path: Path) -> None:
    from paretopress.heatmap_svg import heatmap_svg
    from paretopress.spaces.documents import write_text

    write_text(path, heatmap_svg(found))
    click.echo(f"heat map: {path}", err=True)


def sensitivity_text(found: Mapping[str, Any], width: int) -> str:
    """Return what `measure_sensitivity` found as a table: a row per unit and family of choices.

    Args:
        found: Its result.
        width: Columns of the terminal.
    """
    from paretopress.tables import plain_table, render

    rows, before = [], ""
    for curve in found["curves"]:
        unit = curve["unit"]
        rows.append(["" if unit == before else unit, curve["family"], "  ".join(map(_shown, curve["points"]))])
        before = unit
    points = [point for curve in found["curves"] for point in curve["points"]]
    estimated = sum(point["estimated"] for point in points)
    lines = [
        f"loss: {found['loss']}",
        f"{len(points)} choices on {found['samples']} calibration samples, channels ranked by {found['importance']}"
        + (f"; ~: {estimated} estimated from their neighbours" if estimated else ""),
    ]
    if not rows:
        return "nothing of this model can be compressed on these targets ('paretopress inspect --all' says why)\n"
    table = plain_table("Loss of each choice alone", HEADINGS, rows, whole=())
    return render([table], width) + "\n".join(lines) + "\n"


def _shown(point: Mapping[str, Any]) -> str:
    """A choice by what tells it from others of its family, and its loss."""
    choice = point["choice"]
    tag = next(iter(choice))
    pattern = choice.get("pattern", "")
    name = choice["rank"] if tag == "factorised" else pattern if ":" in pattern else choice[tag]
    loss = "not measurable" if point["failed"] else f"{'~' * point['estimated']}{point['loss']:.2g}"
    return f"{name:.3g}={loss}" if isinstance(name, float) else f"{name}={loss}"
