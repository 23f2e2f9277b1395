"""`paretopress report`: a run as one self-contained page."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from paretopress.cli.options import common, next_command, print_json


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page.  [default: RUN/report.html]",
)
@common
def report_command(run: Path, output: Path | None, as_json: bool) -> int:
    """Write a run, finished or not, as one HTML page that needs neither a network nor other files."""
    from paretopress.report import write_report

    path = write_report(run, output)
    size = path.stat().st_size
    if as_json:
        print_json({"output": str(path), "bytes": size})
        return 0
    click.echo(f"{path}: {size / 1000:.0f} kB, open it in a browser")
    next_command(f"paretopress dashboard {shlex.quote(str(run))}")
    return 0
