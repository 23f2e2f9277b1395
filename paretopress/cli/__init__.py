"""The command line: `paretopress VERB`. Results go to stdout, progress and messages to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from paretopress.cli.failures import run_guarded
from paretopress.cli.options import TYPED, debug_option

COMPLETE = "_PARETOPRESS_COMPLETE"   # set by the script of `paretopress completion`
# Verb to the module that holds its command; a module is imported when its verb, or the list, is shown.
_VERBS = {
    "demo": "search",
    "init": "init",
    "inspect": "inspect",
    "sensitivity": "sensitivity",
    "search": "search",
    "worker": "sharing",
    "front": "front",
    "solve": "solve",
    "export": "front",
    "verify": "verify",
    "apply": "apply",
    "policy": "policy",
    "report": "report",
    "dashboard": "dashboard",
    "device": "device",
    "doctor": "doctor",
    "schema": "init",
    "completion": "init",
}


class _Verbs(click.Group):
    """Commands loaded by name, in the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        from importlib import import_module

        if cmd_name not in _VERBS:
            return None
        found = getattr(import_module(f"paretopress.cli.{_VERBS[cmd_name]}"), f"{cmd_name}_command")
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from paretopress.spaces.errors import ConfigError, unknown_name

        if args and not args[0].startswith("-") and args[0] not in _VERBS:
            raise ConfigError(unknown_name("command", args[0], _VERBS))
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="paretopress", message="paretopress %(version)s")
@debug_option
def command() -> None:
    """Make a trained PyTorch model fit a device.

    A joint search over pruning, rank and bit width gives a verified Pareto front of really compressed
    models. `paretopress demo` shows it in four minutes.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 usage, 3 nothing meets the budgets, 4 partial, 74 disk, 130 interrupted.

    Args:
        arguments: What the user typed, `sys.argv[1:]` by default.
    """
    if instruction := os.environ.get(COMPLETE):
        sys.exit(_complete(instruction))
    typed = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run_guarded(lambda: _invoke(typed), debug="--debug" in typed))


def _complete(instruction: str) -> int:
    """Answer the shell that completes a command line: words on stdout, and never a message."""
    from click.shell_completion import shell_complete

    try:
        return shell_complete(command, {}, "paretopress", COMPLETE, instruction)
    except Exception:  # noqa: BLE001 - a mistyped verb must not print into the line that is being typed
        return 1


def _invoke(typed: list[str]) -> object:
    """Parse and run. Not by Click's own `main`, which turns interrupts and closed pipes into other errors."""
    with command.make_context("paretopress", list(typed)) as context:
        context.meta[TYPED] = tuple(typed)
        return command.invoke(context)
