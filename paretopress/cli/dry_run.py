"""`paretopress search --dry-run`: what would be searched, whether budgets can be met, and how long it would take."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paretopress.cli.options import TYPED, next_command, print_json, terminal_width
from paretopress.spaces.errors import InfeasibleError

if TYPE_CHECKING:
    from paretopress.search.problem import SearchSettings

STATES = {
    "new": "new", "interrupted": "continued, {trials} trials so far",
    "finished": "searched further, {trials} trials so far",
    "refused": "refused: made with a different {differs} (--fresh starts anew)",
}


def print_forecast(model: str, data: str, settings: SearchSettings, run: Path | None, *, as_json: bool) -> int:
    """Print what a search would do. Raises `InfeasibleError` where a budget cannot be met."""
    from paretopress.factories import load_data, load_model
    from paretopress.measuring import measure_if_targeted
    from paretopress.progress import observing
    from paretopress.search.forecast import forecast

    with observing(plain=as_json) as observer:
        network, sets = load_model(model), load_data(data)
        measure_if_targeted(settings.targets, observer)
        found = forecast(network, sets, settings, run, observer)
    if as_json:
        print_json(found)
    else:
        click.echo(forecast_text(found, terminal_width()), nl=False)
    broken = [name for name, row in found["objectives"].items() if row["satisfiable"] is False]
    if broken:
        raise InfeasibleError(f"a search would stop at once: {', '.join(broken)} cannot be met")
    if not as_json:
        typed = click.get_current_context().meta[TYPED]
        next_command(shlex.join(["paretopress", *(word for word in typed if word != "--dry-run")]))
    return 0


def forecast_text(found: Mapping[str, Any], width: int) -> str:
    """Return a forecast as tables.

    Args:
        found: What `search.forecast.forecast` returned.
        width: Columns of the terminal.
    """
    from paretopress.cli.inspect import COST_HEADINGS, objective_cells
    from paretopress.progress import duration
    from paretopress.tables import plain_table, render

    state, samples = found["state"], found["samples"]
    shown = STATES[state["run"]].format(trials=state["trials"], differs=", ".join(state["differs"]))
    targets = ", ".join(f"{one['id']} ({one['tier']}, {'measured here' if one['runs_here'] else 'predicted'})"
                        for one in found["targets"])
    ends = "" if found["trials"] is None else f"{found['trials']} trials"
    ends += "" if found["time_limit"] is None else f"{' or ' if ends else ''}{duration(found['time_limit'])}"
    facts = [
        ("run", f"{found['run']} ({shown})"),
        ("targets", targets),
        ("model", f"{found['layers']} layers, {found['groups']} channel groups"),
        ("space", f"{found['units']} units, {found['choices']} choices, 10^{found['space_log10']:.1f} policies"),
        ("samples", ", ".join(f"{count} {name}" for name, count in samples.items())),
        ("evaluated by", f"{found['workers']} × {found['executor']}"),
        ("ends after", ends),
        ("verified", f"{found['finalists']} finalists{', distilled' if found['distilled'] else ''}"),
        ("max drop", found["max_drop"] or "no limit"),
    ]
    times = [(name, f"about {duration(seconds)}") for name, seconds in found["estimated_parts"].items()]
    total = found["estimated_seconds"]
    times.append(("all" if found["time_limit"] is None else "limited to", duration(total)))
    rows = [objective_cells(name, row) for name, row in found["objectives"].items()]
    parts = [
        plain_table("A search would be", ("", ""), facts),
        plain_table("Feasibility (predicted; the best of each on its own)", COST_HEADINGS, rows,
                    right=COST_HEADINGS[1:4]),
        plain_table("Estimated time (rough, on this machine as it is now)", ("part", "takes"), times, right=("takes",)),
    ]
    return render(parts, width) + "".join(f"note: {note}\n" for note in found["notes"])
