"""`paretopress solve`: other budgets or another device, from what a run has measured already."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paretopress.cli.front import RUN_ARGUMENT
from paretopress.cli.options import (
    DATA_OPTION,
    MODEL_OPTION,
    common,
    devices,
    next_command,
    print_json,
    terminal_width,
)
from paretopress.spaces.errors import ConfigError

if TYPE_CHECKING:
    from paretopress.search.resolving import Resolved

RATES_SHOWN = 8
POINTS_SHOWN = 5   # of the front, beside each other


@click.command("solve")
@RUN_ARGUMENT
@MODEL_OPTION
@DATA_OPTION
@click.option("--target", "targets", multiple=True, metavar="DEVICE", shell_complete=devices,
              help="Another device or profile file; may be repeated.  [default: those of the run]")
@click.option("--max", "limits", multiple=True, metavar="NAME=BUDGET",
              help="Limit a cost: latency=-50%, latency=5ms, size=200KB, macs=10M, peak_memory=256KiB, energy=3mJ.")
@click.option("--pin", "pins", multiple=True, metavar="UNIT=CHOICE",
              help="Let a unit take one choice: 'conv1/channels=keep 0.5', fc/weights=dense, "
              "'fc/weights={weights: 8}'; may be repeated.")
@click.option("--share", "shares", multiple=True, metavar="UNIT,UNIT",
              help="Let units take the same choice, such as a/weights,b/weights; may be repeated.")
@click.option("--rates", is_flag=True,
              help="Also what each further change of the best point would cost and save, unit by unit, and the "
              "cheapest of every layer along the whole front.")
@click.option("-o", "--output", "output", metavar="FOLDER", type=click.Path(path_type=Path),
              help="Write the policies there, best.yaml and 1.yaml, 2.yaml, ..., for paretopress apply.")
@common
def solve_command(
    run: Path, model: str, data: str, targets: Sequence[str], limits: Sequence[str], pins: Sequence[str],
    shares: Sequence[str], rates: bool, output: Path | None, as_json: bool,
) -> int:
    """Solve a run again for other budgets or another device: predicted, not verified.

    The run's sensitivities are read, choices that it has not measured are measured now, and the front is solved
    exactly. No candidate is built; 'paretopress apply' builds and measures one, 'paretopress search' searches on.
    """
    from paretopress.cli.search import limits_of
    from paretopress.factories import load_data, load_model
    from paretopress.progress import observing
    from paretopress.search.resolving import resolve
    from paretopress.settings import parse_budgets

    wanted = limits_of(limits)
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"-o {output} exists; choose a new folder")
    budgets = parse_budgets(wanted, None, tuple(targets) or _targets_of(run))
    with observing(plain=as_json) as observer:
        found = resolve(run, load_model(model), load_data(data), targets=targets, budgets=budgets, pins=pins,
                        shares=shares, observer=observer)
    document = found.to_plain() | {"run": str(run)}
    if rates:
        document["rates"] = found.exchange(found.best)
        document["rates_along"] = found.rates_along()
    if output is not None:
        _write(found, output)
        document["policies"] = str(output)
    if as_json:
        print_json(document)
        return 0
    click.echo(solved_text(document, terminal_width()), nl=False)
    if output is not None:
        policy = shlex.quote(str(output / "best.yaml"))
        next_command(f"paretopress apply --policy {policy} --model {model} --data {data} -o smaller")
    else:
        asked = [word for limit in limits for word in ("--max", limit)]
        asked = [*(word for target in targets for word in ("--target", target)), *asked]
        next_command(shlex.join(["paretopress", "solve", str(run), "--model", model, "--data", data, *asked,
                                 "-o", "policies"]))
    return 0


def _targets_of(run: Path) -> tuple[str, ...]:
    """The run's own targets, which a budget may name. Raises as `read_run` does."""
    from paretopress.search.ledger import read_run
    from paretopress.search.resolving import settings_of

    return settings_of(read_run(run)[0], str(run / "run.yaml")).targets


def _write(found: Resolved, folder: Path) -> None:
    from paretopress.spaces.documents import disk_error

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from None
    for number, point in enumerate(found.points, 1):
        point.policy.save(folder / f"{number}.yaml")
    found.best.policy.save(folder / "best.yaml")


def solved_text(document: Mapping[str, Any], width: int) -> str:
    """Return a solved run as tables.

    Args:
        document: Its JSON document.
        width: Columns of the terminal.
    """
    from paretopress.evaluators.budgets import shown
    from paretopress.tables import plain_table, render

    baseline = document["baseline"]
    costs = [name for name in baseline if name.partition("@")[0] in ("latency", "relative", "size")]
    columns = [name if len(document["targets"]) > 1 else name.partition("@")[0] for name in costs]
    headings = ("#", "loss (nats)", "drop expected", *columns, "within")
    rows = []
    for number, point in enumerate(document["points"], 1):
        rows.append([
            f"{number}{' best' if point['best'] else ''}", f"{point['loss']:.3g}",
            _drop(point["drop_expected"], share=document["drop_is_share"]),
            *(_relative(name, point["predicted"][name], baseline[name], shown) for name in costs),
            "yes" if point["within"] else "no",
        ])
    parts = [plain_table(f"{document['run']}: {document['label']}", headings, rows, right=headings[1:])]
    lines = []
    if "rates" in document:
        for name in costs:
            parts += [_rates(document["rates"], name, share=document["drop_is_share"]),
                      _along(document, name, share=document["drop_is_share"])]
    if document.get("pins") or document.get("shared"):
        kept = [f"{unit}: {choice}" for unit, choice in document["pins"].items()]
        lines.append("kept to: " + "; ".join([*kept, *(" = ".join(group) for group in document["shared"])]))
    lines.append(
        f"{document['choices_covered']} choices read from the run, {document['choices_computed']} measured now; "
        f"{document['seconds']:.1f} s"
    )
    return render(parts, width) + "\n".join(lines) + "\n"


def _relative(name: str, value: float | None, dense: float | None, shown: Any) -> str:  # noqa: ANN401
    text = f"{value:.3g}" if name.startswith("relative") and value is not None else shown(name, value)
    return str(text) if not value or not dense else f"{text} ({value / dense:.0%})"


def _drop(value: float | None, *, share: bool) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.2f}pp" if share else f"{value:.3g}"


def _rates(rates: Sequence[Mapping[str, Any]], cost: str, *, share: bool) -> Any:  # noqa: ANN401
    """The cheapest ways to save a cost, as a table."""
    from paretopress.evaluators.budgets import shown
    from paretopress.tables import plain_table

    unit, per = _unit_of(cost)
    saving = sorted((one for one in rates if one["costs"].get(cost, 0.0) < 0.0),
                    key=lambda one: one["loss"] / -one["costs"][cost])[:RATES_SHOWN]
    rows = [[one["unit"], f"{one['before']} → {one['after']}", shown(cost, -one["costs"][cost]),
             f"{one['loss']:.2g}", _drop(one["drop"], share=share),
             f"{per * one['loss'] / -one['costs'][cost]:.2g}"] for one in saving]
    headings = ("unit", "change of the best point", "saves", "loss (nats)", "drop expected", f"nats per {unit}")
    return plain_table(f"What would it take? {cost}", headings, rows, right=headings[2:])


def _along(document: Mapping[str, Any], cost: str, *, share: bool) -> Any:  # noqa: ANN401
    """What saving more of a cost loses at least, layer by layer, at some points of the front, as a table."""
    from paretopress.tables import plain_table

    along = document["rates_along"]
    unit, per = _unit_of(cost)
    last = max(1, len(along) - 1)
    places = sorted({round(place * last / (POINTS_SHOWN - 1)) for place in range(POINTS_SHOWN)} & {*range(len(along))})
    points = [along[place] for place in places]
    known = share and all(rate["drop"] is not None for point in points for layer in point["layers"].values()
                          for name, rate in layer.items() if name == cost)
    key, factor = ("drop", 100.0 * per) if known else ("nats", per)

    def rate(point: Mapping[str, Any], layer: str) -> float | None:
        found = point["layers"].get(layer, {}).get(cost)
        return None if found is None else factor * found[key]

    layers = list(dict.fromkeys(layer for point in points for layer in point["layers"]))
    layers = [layer for layer in layers if any(rate(point, layer) is not None for point in points)]
    layers.sort(key=lambda layer: min(found for point in points if (found := rate(point, layer)) is not None))
    rows = [[layer, *("–" if (found := rate(point, layer)) is None else f"{found:.2g}" for point in points)]
            for layer in layers[:RATES_SHOWN]]
    headings = ("along the front", *(f"at #{point['point']}" for point in points))
    what = "pp" if known else "nats"
    title = f"{what} per {unit} of {cost}"
    return plain_table(title, headings, rows, right=headings[1:])


def _unit_of(cost: str) -> tuple[str, float]:
    """The unit that rates are told in, and how many of the cost's own it has."""
    unit = {"latency": "ms", "size": "KB"}.get(cost.partition("@")[0], cost)
    return unit, 1000.0 if unit == "KB" else 1.0
