"""Options that several verbs share, and how they print."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

TYPED = "paretopress.typed"   # in the context: what the user typed
Command = TypeVar("Command", bound=Callable[..., Any])

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
MODEL_OPTION = click.option(
    "--model",
    metavar="PKG.MOD:FUNCTION",
    required=True,
    help="Function that returns the model, a torch.nn.Module.",
)
DATA_OPTION = click.option(
    "--data", metavar="PKG.MOD:FUNCTION", required=True, help="Function that returns a paretopress.Data."
)


def devices(_context: click.Context, _option: click.Parameter, typed: str) -> list[str]:
    """Complete the ids of device profiles."""
    from paretopress.hardware_profiles.catalogue import list_profiles

    return [name for name in ("local", *list_profiles()) if name.startswith(typed)]


def words(*allowed: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Complete one of some words; that only these are allowed is checked elsewhere, with the nearest."""
    return lambda _context, _option, typed: [word for word in allowed if word.startswith(typed)]


def debug_option(command: Command) -> Command:
    """Add `--debug`, which `main` reads before anything is parsed."""
    return click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")(command)


def common(command: Command) -> Command:
    """Add the options of every verb: `--json` and `--debug`."""
    return JSON_OPTION(debug_option(command))


def print_json(value: object) -> None:
    """Print one indented JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def next_command(text: str) -> None:
    """Tell on stderr what to run next."""
    click.echo(f"next: {text}", err=True)


def terminal_width() -> int:
    """Return the width for tables: the terminal's, between 80 and 120, and 100 where there is none."""
    if not sys.stdout.isatty():
        return 100
    return min(max(shutil.get_terminal_size((100, 24)).columns, 80), 120)


def in_colour() -> bool:
    """Whether stdout is a terminal that wants colours."""
    import os

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
