"""`paretopress worker`, and the options of shared searches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paretopress.cli.options import DATA_OPTION, MODEL_OPTION, Command, common, print_json
from paretopress.spaces.errors import ConfigError

if TYPE_CHECKING:
    from paretopress.search.shared_search import Sharing

STORAGE_OPTION = click.option(
    "--storage",
    envvar="PARETOPRESS_STORAGE",
    metavar="URL",
    help="Share the search: sqlite (a file in the run directory), journal, sqlite:///FILE, journal:///FILE, "
    "postgresql://HOST/DATABASE, or grpc://127.0.0.1:PORT. Also from $PARETOPRESS_STORAGE.",
)


def limits_options(command: Command) -> Command:
    """Add what limits one evaluation and the patience with a storage."""
    for option in reversed(
        (
            click.option(
                "--trial-timeout", metavar="10m", help="How long one evaluation may take.  [default: no limit]"
            ),
            click.option(
                "--trial-memory", metavar="8GiB", help="Address space of a process that evaluates.  [default: no limit]"
            ),
            click.option(
                "--storage-timeout", metavar="10m", help="How long the storage may be away.  [default: 10m]"
            ),
        )
    ):
        command = option(command)
    return command


def sharing_of(
    storage: str | None, trial_timeout: str | None, trial_memory: str | None, storage_timeout: str | None
) -> Sharing | None:
    """What the options say, None where the search is not shared. Raises `ConfigError`."""
    given = {"--trial-timeout": trial_timeout, "--trial-memory": trial_memory, "--storage-timeout": storage_timeout}
    if storage is None:
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{name}: only with --storage")
        return None
    from paretopress.evaluators.budgets import parse_budget
    from paretopress.search.shared_search import Sharing
    from paretopress.settings import parse_duration

    values: dict[str, Any] = {}
    if trial_timeout is not None:
        values["trial_seconds"] = parse_duration(trial_timeout, "--trial-timeout")
    if storage_timeout is not None:
        values["storage_timeout"] = parse_duration(storage_timeout, "--storage-timeout")
    if trial_memory is not None:
        budget = parse_budget(trial_memory, "size")
        if budget.kind != "absolute":
            raise ConfigError(f"--trial-memory: got {trial_memory!r} (allowed: bytes such as 8GiB)")
        values["trial_memory"] = int(budget.limit)
    return Sharing(storage, **values)


@click.command("worker")
@STORAGE_OPTION
@MODEL_OPTION
@DATA_OPTION
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory of results that are not told yet: the search's run directory where it is shared, else any.",
)
@click.option("--study", help="Name of the search, its run directory's; needed where the storage has several.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that evaluate.")
@click.option("--idle", metavar="5m", default="5m", show_default=True, help="End after this long without a trial.")
@limits_options
@common
def worker_command(
    storage: str | None,
    model: str,
    data: str,
    run: Path,
    study: str | None,
    workers: int,
    idle: str,
    trial_timeout: str | None,
    trial_memory: str | None,
    storage_timeout: str | None,
    as_json: bool,
) -> int:
    """Join a search that was started with 'paretopress search --storage', on this host or another one.

    Model and data are named as for the search and must be the same; all settings come from the storage. Ctrl-C
    finishes or gives back what is under way.
    """
    from paretopress.factories import load_data, load_model
    from paretopress.progress import observing
    from paretopress.search.joined_search import join_search
    from paretopress.settings import parse_duration

    sharing = sharing_of(storage, trial_timeout, trial_memory, storage_timeout)
    if sharing is None:
        raise ConfigError("worker: name the search's storage with --storage, or in $PARETOPRESS_STORAGE")
    with observing(plain=as_json) as observer:
        count = join_search(
            load_model(model), load_data(data), sharing, run, study=study, workers=workers,
            idle_seconds=parse_duration(idle, "--idle"), observer=observer,
        )
    if as_json:
        print_json({"evaluated": count})
    else:
        click.echo(f"evaluated {count} trials", err=True)
    return 0
