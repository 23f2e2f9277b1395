"""`paretopress verify`: measures an exported model again, on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paretopress.cli.options import DATA_OPTION, MODEL_OPTION, common, next_command, print_json, terminal_width

if TYPE_CHECKING:
    from paretopress.evaluators.primary_metric import PrimaryMetric

_OF_METRIC = ("accuracy", "accuracy_baseline", "accuracy_drop")

@click.command("verify")
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@MODEL_OPTION
@DATA_OPTION
@click.option("--runs", type=click.IntRange(min=1), default=200, show_default=True, help="Timed runs.")
@common
def verify_command(output: Path, model: str, data: str, runs: int, as_json: bool) -> int:
    """Check an exported model: files, accuracy on the holdout data, and time in ONNX Runtime here."""
    from paretopress.evaluators.metrics import normalise_metric
    from paretopress.evaluators.primary_metric import PrimaryMetric
    from paretopress.factories import load_data, load_model
    from paretopress.progress import observing
    from paretopress.search.session import verify_artifact
    from paretopress.spaces.errors import ArtifactError

    if not output.is_dir():
        raise ArtifactError(f"{output}: not a folder with an exported model")
    with observing(plain=as_json) as observer:
        network, sets = load_model(model), load_data(data)
        found = verify_artifact(output, network, sets, observer, timing_runs=runs)
    if as_json:
        print_json(found)
    else:
        measured = found["measured"]
        values = (measured["accuracy"], measured["accuracy_baseline"])
        metric = PrimaryMetric.of(normalise_metric(sets.metric)[0], values)
        click.echo(measured_text(measured, terminal_width(), metric), nl=False)
    if found["parity_problem"]:
        raise ArtifactError(f"{output}: {found['parity_problem']}")
    if not as_json:
        next_command(f"python -c \"import paretopress; paretopress.load({str(output)!r}, MODEL_FACTORY)\"")
    return 0


def measured_text(measured: Mapping[str, Any], width: int, metric: PrimaryMetric) -> str:
    """Return measured values as a table of names and values with their units.

    Args:
        measured: What `verify_artifact` measured.
        width: Columns of the terminal.
        metric: What `accuracy` stands for.
    """
    from paretopress.tables import plain_table, render

    flat: dict[str, Any] = {}
    for key, value in measured.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}: {name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    rows = []
    for key, value in flat.items():
        name = _name(key)
        if key in _OF_METRIC:
            name = name.replace("accuracy", metric.label, 1)
            is_drop = key == "accuracy_drop"
            text = metric.drop_shown(value, flat.get("accuracy_baseline")) if is_drop else metric.shown(value)
        else:
            text = _value(key, value)
        rows.append([name, text])
    return render([plain_table("", ("measured", "value"), rows)], width)


def _name(key: str) -> str:
    return key.removesuffix("_bytes").removesuffix("_ms").replace("_ms_", "_").replace("_", " ")


def _value(key: str, value: object) -> str:
    from paretopress.evaluators.budgets import shown
    from paretopress.evaluators.metrics import RESERVED

    if isinstance(value, list | tuple):
        return " to ".join(_value(key, item) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if key in RESERVED and "_bytes" in key:
        return shown("size", value)
    if key in RESERVED and "_ms" in key:
        return shown("latency", value)
    return shown("macs", value) if key == "macs" else f"{value:g}"
