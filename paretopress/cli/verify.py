"""`paretopress verify`: measures an exported model again, on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from paretopress.cli.options import DATA_OPTION, MODEL_OPTION, common, print_json, terminal_width


@click.command("verify")
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@MODEL_OPTION
@DATA_OPTION
@click.option("--runs", type=click.IntRange(min=1), default=200, show_default=True, help="Timed runs.")
@common
def verify_command(output: Path, model: str, data: str, runs: int, as_json: bool) -> int:
    """Check an exported model: files, accuracy on the holdout data, and time in ONNX Runtime here."""
    from paretopress.factories import load_data, load_model
    from paretopress.progress import observing
    from paretopress.search.session import verify_artifact
    from paretopress.spaces.errors import ArtifactError

    if not output.is_dir():
        raise ArtifactError(f"{output}: not a folder with an exported model")
    with observing(plain=as_json) as observer:
        found = verify_artifact(output, load_model(model), load_data(data), observer, timing_runs=runs)
    if as_json:
        print_json(found)
    else:
        click.echo(measured_text(found["measured"], terminal_width()), nl=False)
    if found["parity_problem"]:
        raise ArtifactError(f"{output}: {found['parity_problem']}")
    return 0


def measured_text(measured: Mapping[str, Any], width: int) -> str:
    """Return measured values as a table of names and values with their units."""
    from paretopress.tables import plain_table, render

    flat: dict[str, Any] = {}
    for key, value in measured.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}: {name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    rows = [[_name(key), _value(key, value)] for key, value in flat.items()]
    return render([plain_table("", ("measured", "value"), rows)], width)


def _name(key: str) -> str:
    return key.removesuffix("_bytes").removesuffix("_ms").replace("_ms_", "_").replace("_", " ")


def _value(key: str, value: object) -> str:
    from paretopress.tables import shown

    if isinstance(value, list | tuple):
        return " to ".join(_value(key, item) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if "_bytes" in key:
        return shown("size", value)
    if "_ms" in key:
        return shown("latency", value)
    if key.startswith("accuracy"):
        return f"{100 * value:+.2f} pp" if "drop" in key else shown("accuracy", value)
    return shown("macs", value) if key == "macs" else f"{value:g}"
