"""`paretopress dashboard`: the report of a run while it goes on, and Optuna's dashboard beside it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from paretopress.cli.options import common, print_json


@click.command("dashboard")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8787, show_default=True, help="0 takes any free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="A loopback address; others are refused.")
@click.option(
    "--study",
    metavar="STORAGE",
    help="Serve nothing: write the trials as an Optuna study there, an address (sqlite:///trials.db) or a file.",
)
@common
def dashboard_command(run: Path, port: int, host: str, study: str | None, as_json: bool) -> int:
    """Show a run in a browser, refreshed while the search goes on, and its trials in optuna-dashboard.

    It listens on this machine only and changes nothing. Ctrl-C ends it.
    """
    if study is not None:
        return _write_study(run, study, as_json=as_json)
    from paretopress.dashboard import EXTRA, Dashboard, has_optuna_dashboard, listen

    optuna = has_optuna_dashboard()
    server = listen(Dashboard(run, with_optuna=optuna), host, port)
    name = f"[{server.server_name}]" if ":" in server.server_name else server.server_name
    url = f"http://{name}:{server.server_port}/"
    if as_json:
        print_json({"url": url, "run": str(run), "optuna": f"{url}dashboard" if optuna else None})
    else:
        click.echo(f"report: {url}")
        click.echo(f"trials: {url}dashboard" if optuna else f"optuna-dashboard is not installed: {EXTRA}")
    sys.stdout.flush()
    try:
        server.serve_forever()
    except KeyboardInterrupt:   # the usual way to end it
        return 0
    finally:
        server.server_close()
    return 0


def _write_study(run: Path, storage: str, *, as_json: bool) -> int:
    from paretopress.search.optuna_mirror import optuna_study

    study = optuna_study(run, storage)
    trials = len(study.get_trials(deepcopy=False))
    if as_json:
        print_json({"storage": storage, "study": study.study_name, "trials": trials})
    else:
        click.echo(f"{storage}: study {study.study_name}, {trials} trials")
    return 0
