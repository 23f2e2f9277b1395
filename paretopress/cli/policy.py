"""`paretopress policy`: what earlier runs learnt, listed, shown, compared, shared, and carried to other models."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from paretopress.cli.options import DATA_OPTION, MODEL_OPTION, common, next_command, print_json, terminal_width
from paretopress.spaces.errors import ConfigError, unknown_name

_VERBS = ("list", "show", "apply", "transfer", "diff", "export")
SOURCE = click.argument("source")
PARTIAL = click.option("--partial", is_flag=True, help="Leave units dense that nothing stands for, or nothing fits.")


class _PolicyVerbs(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _VERBS:
            raise ConfigError(unknown_name("policy command", args[0], _VERBS))
        return super().resolve_command(ctx, args)


@click.group("policy", cls=_PolicyVerbs)
def policy_command() -> None:
    """List, show, compare, share and reuse what earlier runs learnt.

    A SOURCE is a run directory, a recipe or policy file, or the name of a recipe that comes with the package;
    SOURCE:NAME is one policy of it.
    """


@policy_command.command("list")
@click.argument("library", required=False, type=click.Path(path_type=Path))
@common
def list_command(library: Path | None, as_json: bool) -> int:
    """List the recipes of a folder, or those that come with the package."""
    from paretopress.policies import listed
    from paretopress.policy_text import list_text

    rows = listed(library)
    if as_json:
        print_json(rows)
    else:
        click.echo(list_text(rows, terminal_width()), nl=False)
        next_command(f"paretopress policy show {shlex.quote(str(rows[0]['name'])) if rows else 'RECIPE'}")
    return 0


@policy_command.command("show")
@SOURCE
@common
def show_command(source: str, as_json: bool) -> int:
    """Show where a recipe or policy comes from, and what its policies do."""
    from paretopress.policies import shown, single
    from paretopress.policy_text import show_text

    found = shown(single(source))
    if as_json:
        print_json(found)
    else:
        click.echo(show_text(found, terminal_width()), nl=False)
        next_command(f"paretopress search --warm-start {shlex.quote(source)} --model MODULE:FUNCTION --data …")
    return 0


@policy_command.command("diff")
@click.argument("first")
@click.argument("second")
@common
def diff_command(first: str, second: str, as_json: bool) -> int:
    """Show the units that two policies decide differently."""
    from paretopress.policies import difference, picked
    from paretopress.policy_text import diff_text

    rows = difference(picked(first)[1], picked(second)[1])
    if as_json:
        print_json({"first": first, "second": second, "differences": rows})
    else:
        click.echo(diff_text(first, second, rows, terminal_width()), nl=False)
        next_command(f"paretopress policy apply {shlex.quote(second)} --model MODULE:FUNCTION --data … -o OUT")
    return 0


@policy_command.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", "output", metavar="FILE", type=click.Path(path_type=Path),
              help="A new file, such as resnet20.recipe.json.")
@click.option("--library", metavar="FOLDER", type=click.Path(path_type=Path), help="Add it to this folder instead.")
@click.option("--name", default="", help="Of the recipe.  [default: the run's]")
@click.option("--model", metavar="PKG.MOD:FUNCTION", help="The run's model, for runs that did not describe its units.")
@click.option("--data", metavar="PKG.MOD:FUNCTION", help="The run's data, likewise.")
@common
def export_command(
    run: Path, output: Path | None, library: Path | None, name: str, model: str | None, data: str | None, as_json: bool
) -> int:
    """Write what a run learnt as one recipe file: policies, sensitivities, features, provenance; no weights."""
    from paretopress.factories import load_data, load_model
    from paretopress.policies import exported
    from paretopress.search.policy_library import summary

    if (output is None) == (library is None):
        raise ConfigError("give either -o FILE or --library FOLDER")
    if (model is None) != (data is None):
        raise ConfigError("--model and --data go together")
    network, sets = None if model is None else load_model(model), None if data is None else load_data(data)
    path, recipe = exported(run, output, library, name, network, sets)
    found = {"output": str(path), "bytes": path.stat().st_size, **summary(recipe)}
    if as_json:
        print_json(found)
    else:
        click.echo(f"{path}: {recipe.cells} choices, {len(recipe.policies)} policies, {found['bytes']} bytes")
        next_command(f"paretopress policy show {shlex.quote(str(path))}")
    return 0


@policy_command.command("transfer")
@SOURCE
@MODEL_OPTION
@DATA_OPTION
@click.option("--target", "targets", multiple=True, metavar="DEVICE",
              help="Device or profile file; may be repeated.  [default: those of the source]")
@click.option("--max", "limits", multiple=True, metavar="NAME=BUDGET", help="Limit a cost, such as latency=-50%.")
@PARTIAL
@click.option("-o", "--output", "output", metavar="FOLDER", type=click.Path(path_type=Path),
              help="Write the policies there, for paretopress apply, and what stands for what.")
@common
def transfer_command(
    source: str, model: str, data: str, targets: Sequence[str], limits: Sequence[str], partial: bool,
    output: Path | None, as_json: bool,
) -> int:
    """Carry policies to another model, or a model's losses to another device: predicted, not verified.

    On the source's own model the losses are known and only costs change. On another one policies are carried over unit
    by unit, all or nothing without --partial, and losses are predicted from units that are alike. 'paretopress apply'
    builds and measures one of them, 'paretopress search --warm-start SOURCE' searches on from all.
    """
    from paretopress.cli.search import limits_of
    from paretopress.factories import load_data, load_model
    from paretopress.policies import single, write_reused
    from paretopress.policy_text import transfer_text
    from paretopress.progress import observing
    from paretopress.search.policy_reuse import reuse
    from paretopress.settings import parse_budgets

    recipe = single(source)
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"-o {output} exists; choose a new folder")
    devices = tuple(targets) or tuple(recipe.provenance.get("devices", ()))
    budgets = parse_budgets(limits_of(limits), None, devices)
    with observing(plain=as_json) as observer:
        found = reuse(recipe, load_model(model), load_data(data), targets=targets, budgets=budgets, partial=partial,
                      observer=observer)
    if output is not None:
        write_reused(found, output)
    document = {**found.to_plain(), "source": source, "output": None if output is None else str(output)}
    if as_json:
        print_json(document)
        return 0
    click.echo(transfer_text(document, terminal_width()), nl=False)
    if output is not None and (found.resolved is not None or found.transfers):
        first = "best" if found.resolved is not None else found.transfers[0][0]
        policy = shlex.quote(str(output / f"{first}.yaml"))
        next_command(f"paretopress apply --policy {policy} --model {model} --data {data} -o smaller")
    return 0


@policy_command.command("apply")
@SOURCE
@MODEL_OPTION
@DATA_OPTION
@click.option("-o", "--output", "output", required=True, type=click.Path(path_type=Path), help="A new folder.")
@PARTIAL
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--force", is_flag=True, help="Replace an earlier model there.")
@common
def apply_command(
    source: str, model: str, data: str, output: Path, partial: bool, seed: int, force: bool, as_json: bool
) -> int:
    """Carry one policy to a model, build it, store it, and measure it on the holdout data in a fresh process."""
    from paretopress.applying import apply_policy
    from paretopress.cli.apply import applied_text, measured_artifact, primary_metric
    from paretopress.compressors.artefact_folder import refuse_in_use
    from paretopress.factories import load_data, load_model
    from paretopress.policies import fitted_policy
    from paretopress.progress import observing
    from paretopress.spaces.errors import ArtifactError

    refuse_in_use(output, force)
    network, sets = load_model(model), load_data(data)
    policy, transfer = fitted_policy(source, network, sets, partial=partial)
    with observing(plain=as_json) as observer:
        compressed = apply_policy(network, sets, policy, seed=seed, observer=observer)
        stored = compressed.save(output, overwrite=force)
        found = measured_artifact(compressed, output, None, network, sets, observer)
        found["measured"] |= stored
    found |= {"source": source, "transfer": transfer}
    if as_json:
        print_json(found)
    else:
        if transfer is not None:
            click.echo(f"carried over from {source}: {transfer['coverage']:.0%} of the units have a source")
        click.echo(applied_text(found, terminal_width(), primary_metric(sets, found)), nl=False)
        next_command(f"paretopress verify {shlex.quote(str(output))} --model {model} --data {data}")
    if found["parity_problem"]:
        raise ArtifactError(f"{output}: {found['parity_problem']}")
    return 0
