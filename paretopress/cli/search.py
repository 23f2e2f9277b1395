"""`paretopress search` and `paretopress demo`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paretopress.cli.options import (
    DATA_OPTION,
    MODEL_OPTION,
    Command,
    common,
    devices,
    in_colour,
    next_command,
    print_json,
    terminal_width,
    words,
)
from paretopress.cli.sharing import STORAGE_OPTION, limits_options, sharing_of
from paretopress.spaces.errors import ConfigError, InfeasibleError

if TYPE_CHECKING:
    from paretopress.result import Result
    from paretopress.search.problem import SearchSettings
    from paretopress.search.shared_search import Sharing

PARTIAL = 4   # exit code: the front is written, but part of what was asked for is missing
DEMO = "paretopress.demo.factories"
DEMO_SETTINGS: dict[str, Any] = {"max_drop": "5pp", "search": {"time": "170s"}}


SET_OPTION = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one key of the settings, such as space.bits=[8,4].",
)


def effort_options(command: Command) -> Command:
    """Add the options of `demo` and `search` alike."""
    for option in reversed(
        (
            click.option(
                "--effort",
                shell_complete=words("quick", "balanced", "thorough"),
                help="How much is spent: quick (90s, 10 finalists), balanced (5m, 22) or thorough (30m, 40); --time, "
                "--trials and settings win.  [default: balanced]",
            ),
            click.option(
                "--time",
                metavar="5m",
                help="Time for calibration, search and verification. Every start gets it anew: repeating the command "
                "searches a finished run further.",
            ),
            click.option(
                "--trials",
                type=click.IntRange(min=1),
                help="Number of trials in all, for repeatable runs; a larger number searches a finished run further.",
            ),
            click.option(
                "--seed", type=click.IntRange(min=0), help="Seed of everything that is drawn.  [default: 0]"
            ),
            click.option(
                "--workers",
                type=click.IntRange(min=1),
                help="Processes that evaluate.  [default: one per core, at most 8; 1 with --trials]",
            ),
            click.option(
                "--run",
                "run",
                type=click.Path(path_type=Path),
                help="Run directory; an existing one is continued.  [default: runs/NAME-FINGERPRINT]",
            ),
            click.option("--fresh", is_flag=True, help="Start anew where the run directory exists."),
            click.option(
                "--log",
                "trackers",
                multiple=True,
                metavar="TRACKER",
                shell_complete=words("tensorboard", "mlflow", "wandb"),
                help="Also write what happens to tensorboard (in the run directory), mlflow or wandb; may be repeated.",
            ),
        )
    ):
        command = option(command)
    return command


@click.command("demo")
@effort_options
@SET_OPTION
@common
def demo_command(
    effort: str | None,
    time: str | None,
    trials: int | None,
    seed: int | None,
    workers: int | None,
    run: Path | None,
    fresh: bool,
    trackers: Sequence[str],
    assignments: Sequence[str],
    as_json: bool,
) -> int:
    """Compress the built-in digits network for this machine, in less than three minutes.

    Before that it measures this machine, once, for a minute. Then it searches, verifies the finalists on
    data that the search never saw, times them in ONNX Runtime, and prints the front. Once more, it searches
    that run further.
    """
    from paretopress.settings import override, search_settings, with_arguments

    flags = {"effort": effort, "time": time, "trials": trials, "seed": seed, "workers": workers}
    base: dict[str, Any] = DEMO_SETTINGS if effort is None else {**DEMO_SETTINGS, "search": {}}
    for assignment in assignments:
        base = override(base, assignment)
    settings = search_settings(with_arguments(base, search=flags), name="demo")
    return run_and_print(
        f"{DEMO}:model", f"{DEMO}:data", settings, run, fresh=fresh, as_json=as_json, trackers=trackers
    )


@click.command("search")
@click.argument(
    "settings_file",
    metavar="[SETTINGS.yaml]",
    required=False,
    type=click.Path(path_type=Path, dir_okay=False),
)
@MODEL_OPTION
@DATA_OPTION
@click.option(
    "--target",
    "targets",
    multiple=True,
    shell_complete=devices,
    metavar="DEVICE",
    help="Device id or profile file, as in 'paretopress device list'; may be repeated.  [default: local]",
)
@click.option(
    "--max",
    "limits",
    multiple=True,
    metavar="NAME=BUDGET",
    help="Limit a cost: latency=-50%, latency=5ms, size=200KB, macs=10M, peak_memory=256KiB, energy=3mJ, "
    "robust=-40% (the worst target).",
)
@click.option("--max-drop", metavar="1pp", help="Allowed loss of accuracy, or 2%: of whatever the metric is.")
@effort_options
@click.option(
    "--executor",
    metavar="NAME",
    help="Where trials run: serial, processes, ray or tune (trials of Ray Tune).  [default: by --workers and --ray]",
)
@click.option("--ray", metavar="ADDRESS", help="Evaluate on a Ray cluster ('auto', 'local' or its address).")
@click.option(
    "--worker-resources",
    metavar="cpu=1,gpu=0.5",
    help="What each worker takes of its node of a Ray cluster: cpu, gpu, or the cluster's own names.  [default: cpu=1]",
)
@click.option(
    "--sampler",
    shell_complete=words("pareto", "nsga2", "nsga3", "tpe", "gp", "random", "evolution", "ddpg"),
    help="How trials are proposed: pareto, nsga2, nsga3, tpe, gp, random, evolution or ddpg.  [default: pareto]",
)
@click.option(
    "--importance",
    shell_complete=words("obs", "taylor", "fisher", "hessian", "fpgm", "bn_scale", "l2", "l1"),
    help="How channels are ranked: obs, taylor, fisher, hessian, fpgm, bn_scale, l2 or l1.  [default: obs]",
)
@click.option(
    "--distil",
    shell_complete=words("auto", "train", "calibration", "off"),
    help="Train finalists against the dense model, without labels, on these inputs: train, calibration, off, or auto: "
    "on train where the data has it.  [default: auto]",
)
@SET_OPTION
@click.option(
    "--warm-start",
    "warm_start",
    metavar="SOURCE",
    help="Start from what is known of other models: a run, a recipe or policy file, a folder of recipes, or the name "
    "of a recipe in 'paretopress policy list'.",
)
@click.option(
    "--dry-run", is_flag=True, help="Say what would be searched, what budgets can reach and for how long; no search."
)
@STORAGE_OPTION
@limits_options
@common
def search_command(
    settings_file: Path | None,
    model: str,
    data: str,
    targets: Sequence[str],
    limits: Sequence[str],
    max_drop: str | None,
    effort: str | None,
    time: str | None,
    trials: int | None,
    seed: int | None,
    workers: int | None,
    run: Path | None,
    fresh: bool,
    executor: str | None,
    ray: str | None,
    worker_resources: str | None,
    sampler: str | None,
    importance: str | None,
    distil: str | None,
    warm_start: str | None,
    assignments: Sequence[str],
    storage: str | None,
    trial_timeout: str | None,
    trial_memory: str | None,
    storage_timeout: str | None,
    trackers: Sequence[str],
    dry_run: bool,
    as_json: bool,
) -> int:
    """Search compressed models that meet budgets on a device, and verify the best.

    Flags override --set, which overrides the settings file. The same command continues an interrupted run, and
    with --time also searches a finished one further; 'paretopress front RUN' only prints it.
    """
    from paretopress.settings import search_settings, with_arguments

    flags = {
        "effort": effort,
        "time": time,
        "trials": trials,
        "seed": seed,
        "workers": workers,
        "executor": executor,
        "ray": ray,
        "worker_resources": worker_resources,
        "sampler": sampler,
        "importance": importance,
        "distil": distil,
        "warm_start": warm_start,
    }
    plain = with_arguments(
        read_plain(settings_file, assignments), targets, limits_of(limits), max_drop, flags
    )
    name = settings_file.stem if settings_file else model.rpartition(":")[2].rpartition(".")[2]
    settings = search_settings(plain, name=name)
    sharing = sharing_of(storage, trial_timeout, trial_memory, storage_timeout)
    if dry_run:
        from paretopress.cli.dry_run import print_forecast

        return print_forecast(model, data, settings, run, as_json=as_json)
    return run_and_print(
        model, data, settings, run, fresh=fresh, as_json=as_json, sharing=sharing, trackers=trackers
    )


def read_plain(settings_file: Path | None, assignments: Sequence[str]) -> dict[str, Any]:
    """Read the settings file, if any, and apply `--set`. Raises `ConfigError`."""
    from paretopress.settings import override, read_settings

    plain = {} if settings_file is None else read_settings(settings_file)
    for assignment in assignments:
        plain = override(plain, assignment)
    return plain


def limits_of(texts: Sequence[str]) -> dict[str, str]:
    """Split `--max NAME=BUDGET`. Raises `ConfigError`."""
    limits = {}
    for text in texts:
        objective, equals, limit = (part.strip() for part in text.partition("="))
        if not equals or not objective or not limit:
            raise ConfigError(f"--max {text!r}: write NAME=BUDGET, such as latency=-50%")
        limits[objective] = limit
    return limits


def run_and_print(
    model: str, data: str, settings: SearchSettings, run: Path | None, *, fresh: bool, as_json: bool,
    sharing: Sharing | None = None,
    trackers: Sequence[str] = (),
) -> int:
    """Run a search and print its front.

    The exit code is 3 where no verified point meets all budgets, and 4 where the run is partial: see `Result.partial`.
    """
    from paretopress.callbacks import heard, tell_end
    from paretopress.factories import load_data, load_model
    from paretopress.measuring import measure_if_targeted
    from paretopress.progress import duration, observing
    from paretopress.result import FRONT_FILE, Result
    from paretopress.search.session import run_search
    from paretopress.trackers import tracker

    callbacks = [tracker(name) for name in trackers]
    with observing(plain=as_json) as observer, heard(observer, callbacks) as hearing:
        network, sets = load_model(model), load_data(data)
        measure_if_targeted(settings.targets, observer)
        seconds = settings.seconds if settings.trials is None else None
        if run is not None and not fresh and seconds is not None and (run / FRONT_FILE).exists():
            observer.message(f"{run} has a front already: it is searched for {duration(seconds)} more")
        folder = run_search(
            network, sets, settings, run, fresh=fresh, observer=hearing, model_name=model, data_name=data,
            sharing=sharing,
        )
        result = Result.load(folder)
        tell_end(hearing, result)
        report = result.report()
    print_result(result, seconds, as_json=as_json)
    click.echo(f"report: {report} (one page for a browser)", err=True)
    if not result.front.feasible:
        raise InfeasibleError(f"no verified point meets all budgets (the front is in {folder})")
    for reason in result.partial:
        click.echo(f"partial: {reason}", err=True)
    return PARTIAL if result.partial else 0


def print_result(result: Result, seconds: float | None, *, as_json: bool) -> None:
    """Print a finished search: the contract's JSON, or the table and what to do next.

    Args:
        result: The finished run.
        seconds: What a repeated command would search it for, None where a number of trials ends it.
        as_json: Print JSON only.
    """
    from paretopress.progress import duration
    from paretopress.tables import front_text

    if as_json:
        print_json(result.front.plain)
        return
    click.echo(front_text(result.front, width=terminal_width(), colour=in_colour()), nl=False)
    more = "" if seconds is None else f"; the same command searches it for {duration(seconds)} more"
    click.echo(f"run: {result.run} (paretopress front prints it again{more})", err=True)
    if result.front.feasible:
        next_command(
            f"paretopress export {shlex.quote(str(result.run))} --pick knee --format onnx -o model.onnx"
        )
