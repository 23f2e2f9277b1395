"""`paretopress init`, `schema` and `completion`: what helps to write settings and commands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from paretopress.cli.options import common, devices, next_command, print_json, words
from paretopress.spaces.errors import ConfigError, unknown_name

SHELLS = ("bash", "zsh", "fish")
SCHEMA_FILE = "settings.schema.json"
VARIABLE = "_PARETOPRESS_COMPLETE"
WHERE = {
    "bash": "~/.local/share/bash-completion/completions/paretopress",
    "zsh": "~/.zfunc/_paretopress   # with 'fpath+=~/.zfunc' before compinit in ~/.zshrc",
    "fish": "~/.config/fish/completions/paretopress.fish",
}


@click.command("init")
@click.option(
    "-o", "--output", "output", type=click.Path(path_type=Path, dir_okay=False), default=Path("settings.yaml"),
    show_default=True, help="The settings file to write.",
)
@click.option(
    "--target", "targets", multiple=True, metavar="DEVICE", shell_complete=devices,
    help="As for search; may be repeated.",
)
@click.option("--max", "limits", multiple=True, metavar="NAME=BUDGET", help="Limit a cost, as for search.")
@click.option("--max-drop", metavar="1pp", help="Allowed loss, as for search.")
@click.option("--effort", shell_complete=words("quick", "balanced", "thorough"), help="quick, balanced or thorough.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set one key of the settings.")
@click.option("--force", is_flag=True, help="Replace the files that are there.")
@common
def init_command(
    output: Path, targets: Sequence[str], limits: Sequence[str], max_drop: str | None, effort: str | None,
    assignments: Sequence[str], force: bool, as_json: bool,
) -> int:
    """Write a commented settings file for search, and its JSON Schema for editors beside it."""
    from paretopress.cli.search import limits_of, read_plain
    from paretopress.json_schemas import shipped_settings_schema
    from paretopress.settings import check_settings, with_arguments
    from paretopress.spaces.documents import write_text
    from paretopress.starter import starter_text

    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"-o {output}: settings are YAML; write them to a .yaml file")
    schema = output.parent / SCHEMA_FILE
    if not output.parent.is_dir():
        raise ConfigError(f"-o {output}: the folder {output.parent} does not exist")
    for path in (output, schema):
        # The schema is ours alone: one that is as it was shipped may stay.
        same = path == schema and path.exists() and path.read_text(encoding="utf-8") == shipped_settings_schema()
        if path.exists() and not force and not same:
            raise ConfigError(f"{path} exists; choose another file or replace it with --force")
    plain = with_arguments(read_plain(None, assignments), targets, limits_of(limits), max_drop, {"effort": effort})
    check_settings(plain, "init")
    given = {"version": 1, "targets": ["local"], "max_drop": "1pp", **_without_empty(plain)}
    given["search"] = {"effort": "balanced", **given.get("search", {})}
    write_text(schema, shipped_settings_schema())
    write_text(output, starter_text(output.name, schema.name, given))
    if as_json:
        print_json({"settings": str(output), "schema": str(schema)})
        return 0
    click.echo(f"{output}: settings, every key explained; {schema}: their JSON Schema, for editors")
    next_command(f"paretopress search {shlex.quote(str(output))} --model PKG.MOD:FUNCTION --data PKG.MOD:FUNCTION "
                 "--dry-run")
    return 0


def _without_empty(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if value not in ({}, [], None)}


@click.command("schema")
@click.argument("name", required=False)
@common
def schema_command(name: str | None, as_json: bool) -> int:
    """Print a JSON Schema: of the settings file, or of what a verb prints with --json.

    NAME is settings, or a verb such as front or device-list; without it all names are listed.
    """
    from paretopress.json_schemas import schema_names, schema_of, schema_text

    if name is not None:
        click.echo(schema_text(schema_of(name)), nl=False)
        return 0
    if as_json:
        print_json(schema_names())
        return 0
    click.echo("\n".join(schema_names()))
    next_command("paretopress schema settings > settings.schema.json")
    return 0


@click.command("completion")
@click.argument("shell")
@common
def completion_command(shell: str, as_json: bool) -> int:
    """Print a completion script for SHELL: bash, zsh or fish."""
    from click.shell_completion import get_completion_class

    from paretopress.cli import command

    if shell not in SHELLS:
        raise ConfigError(unknown_name("shell", shell, SHELLS))
    kind = get_completion_class(shell)
    assert kind is not None
    one = kind(command, {}, "paretopress", VARIABLE)
    # Not `source()`: that of bash starts a shell to look at its version.
    script = one.source_template % one.source_vars()
    if as_json:
        print_json({"shell": shell, "script": script})
        return 0
    click.echo(script)
    next_command(f"paretopress completion {shell} > {WHERE[shell]}")
    return 0
