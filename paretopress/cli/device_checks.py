"""`paretopress device validate`, `lint` and `vela`: whether a profile can be believed, and what Arm's compiler says."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paretopress.cli.options import common, next_command, print_json, terminal_width
from paretopress.spaces.errors import ConfigError, ProfileError

if TYPE_CHECKING:
    from paretopress.hardware_profiles.validation import Checked, ValidationReport

FAULTS_FOUND = 2


@click.command("validate")
@click.argument("device")
@click.option(
    "--against", "table", type=click.Path(path_type=Path, dir_okay=False), required=True,
    help="CSV of measured networks (network,measured_ms) or kernels (op,cin,cout,...,measured_us).",
)
@click.option(
    "-o", "--output", "output", type=click.Path(path_type=Path, dir_okay=False),
    help="Write the profile with this check in its 'validation' to this .yaml file; DEVICE itself, where it is a file.",
)
@click.option("--source", help="What and where was measured, for the profile.  [default: the table's name and date]")
@common
def validate_command(device: str, table: Path, output: Path | None, source: str | None, as_json: bool) -> int:
    """Compare a profile's predictions with measured times.

    DEVICE is an id of 'paretopress device list' or a profile file. A network in the table is an .onnx file beside it,
    'nasbench201:|...|' or a known network such as resnet-50; the guide lists the columns. Operators and widths that
    the profile has no figures for are counted as unknown, and never as 0 ms.
    """
    from paretopress.hardware_profiles.catalogue import load_profile
    from paretopress.hardware_profiles.validation import validate
    from paretopress.hardware_profiles.writing import profile_text
    from paretopress.spaces.documents import write_text

    if output is not None:
        _check_output(output)
    report = validate(load_profile(device), table)
    content = report.updated(source or f"measured times in {table.name}, checked {_today()}")
    if output is not None:
        write_text(output, profile_text(content))
    if as_json:
        print_json({**report.plain(), "written": str(output) if output else None})
        return 0
    click.echo(report_text(report, terminal_width()), nl=False)
    for item in report.unknown:
        click.echo(f"unknown: line {item.row.line}, {item.row.name}: {item.reason}", err=True)
    if output is not None:
        next_command(f"paretopress device show {shlex.quote(str(output))}")
    else:
        next_command(
            f"paretopress device validate {shlex.quote(device)} --against {shlex.quote(str(table))} -o checked.yaml"
        )
    return 0


def _check_output(output: Path) -> None:
    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output {output}: a profile is YAML; write it to a .yaml file")
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: the folder {output.parent} does not exist")


def _today() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).date().isoformat()


def report_text(report: ValidationReport, width: int) -> str:
    """The table of errors and the worst rows."""
    from paretopress.tables import plain_table, render

    errors = report.errors
    figures = [
        ("rows", str(errors.n)), ("unknown rows", str(len(report.unknown))), ("mean error", f"{errors.mape:.1%}"),
        ("within 5 %", f"{errors.within5:.1%}"), ("within 10 %", f"{errors.within10:.1%}"),
        ("bias", f"{errors.bias:+.1%}"), ("Spearman", f"{errors.spearman:.3f}" if errors.n > 1 else "–"),
    ]
    worst = [_worst_row(item) for item in report.worst()]
    return render([
        plain_table(f"{report.profile.id} against {report.table.name}", ("", ""), figures),
        plain_table(
            "Largest errors", ("line", "measured", "predicted", "error", "name"), worst,
            right=("line", "measured", "predicted", "error"),
        ),
    ], width)


def _worst_row(item: Checked) -> tuple[str, ...]:
    assert item.predicted_ms is not None
    return (
        str(item.row.line), f"{item.row.milliseconds:.4g} ms", f"{item.predicted_ms:.4g} ms", f"{item.error:+.1%}",
        item.row.name,
    )


@click.command("vela")
@click.argument("model", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--accelerator", default="ethos-u55-128", show_default=True, help="ethos-u55-32 to -256, ethos-u65-256 or -512."
)
@click.option(
    "--optimise", default="performance", show_default=True, help="performance, or size: the least SRAM."
)
@common
def vela_command(model: Path, accelerator: str, optimise: str, as_json: bool) -> int:
    """Compile an int8 ONNX file for an Arm Ethos-U and show cycles, SRAM and flash.

    Needs the extra: pip install 'paretopress[ethos-u]'. Arm calls the cycles an estimate.
    """
    from dataclasses import asdict

    from paretopress.evaluators.budgets import shown
    from paretopress.hardware_profiles.vela import vela_estimate
    from paretopress.tables import plain_table, render

    found = vela_estimate(model, accelerator, optimise)
    if as_json:
        print_json(asdict(found))
        return 0
    figures = [
        ("cycles", f"{found.cycles:,.0f}"), ("time at its clock", f"{found.milliseconds:.3f} ms (estimate)"),
        ("SRAM", shown("size", found.sram_bytes)), ("flash or DRAM", shown("size", found.flash_bytes)),
        ("system", found.system), ("Vela", found.version),
    ]
    click.echo(render([plain_table(f"{model.name} on {accelerator}", ("", ""), figures)], terminal_width()), nl=False)
    other = "size" if optimise == "performance" else "performance"
    next_command(f"paretopress device vela {shlex.quote(str(model))} --accelerator {accelerator} --optimise {other}")
    return 0


@click.command("lint")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@common
def lint_command(files: tuple[str, ...], as_json: bool) -> int:
    """Check that profiles can be believed: sources, plausible figures, costs that grow with work.

    FILE is a profile's .yaml or .json file, or the id of a shipped one. Exit code 2 where anything is wrong.
    """
    from paretopress.hardware_profiles.catalogue import list_profiles, shipped_document
    from paretopress.hardware_profiles.lint import lint
    from paretopress.spaces.documents import read_document

    found: dict[str, list[str]] = {}
    for name in files:
        try:
            shipped = name in list_profiles()
            content = shipped_document(name) if shipped else read_document(Path(name))
        except (ConfigError, ProfileError) as error:
            found[name] = [str(error)]
            continue
        found[name] = lint(content, name, name if shipped else "")
    if as_json:
        print_json([{"file": name, "faults": faults} for name, faults in found.items()])
    else:
        for name, faults in found.items():
            click.echo("\n".join(faults) if faults else f"{name}: ok")
        if not any(found.values()):
            next_command(f"paretopress device show {shlex.quote(files[0])}")
    return FAULTS_FOUND if any(found.values()) else 0
