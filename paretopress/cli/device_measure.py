"""`paretopress device measure`, `probe` and `import`: profiles of this machine and of others."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from paretopress.cli.options import common, next_command, print_json, terminal_width
from paretopress.spaces.errors import ConfigError, ProfileError

if TYPE_CHECKING:
    from paretopress.hardware_profiles.profile import DeviceProfile

Command = TypeVar("Command", bound=Callable[..., Any])
RUNTIMES = ("onnxruntime", "openvino", "torch", "executorch")
SECONDS = 60.0


def _output_options(command: Command) -> Command:
    for option in (
        click.option("--id", "identifier", help="Id of the profile that is written.  [default: the file's name]"),
        click.option(
            "-o", "--output", "output", type=click.Path(path_type=Path, dir_okay=False),
            help="Profile to write, a .yaml file for --target. Raw samples stand beside it as .samples.csv; the same "
            "command continues from them.",
        ),
    ):
        command = option(command)
    return command


@click.command("measure")
@click.option(
    "--runtime", metavar="NAME", default="onnxruntime", show_default=True,
    help=f"What runs the models: {', '.join(RUNTIMES)}.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads per inference.")
@click.option("--time", "duration", metavar="5m", help="Time for measuring.  [default: 60s]")
@click.option("--seconds", type=click.FloatRange(min=1, max=3600), hidden=True, help="As --time, in seconds.")
@click.option("--model", metavar="PKG.MOD:FUNCTION", help="Measure the kernels that this model's search space reaches.")
@click.option("--data", metavar="PKG.MOD:FUNCTION", help="Data of --model, for the shapes of its inputs.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of what is timed.")
@click.option("--fresh", is_flag=True, help="Measure anew instead of continuing from raw samples.")
@_output_options
@common
def measure_command(
    runtime: str, threads: int, duration: str | None, seconds: float | None, model: str | None, data: str | None,
    seed: int, output: Path | None, identifier: str | None, *, fresh: bool, as_json: bool,
) -> int:
    """Measure this machine and fit its profile.

    With ONNX Runtime on one thread the result also takes the place of the cached profile 'local'. Everything else
    needs --output.
    """
    from paretopress.hardware_profiles.local import cache_path, store_profile

    limit = _seconds(duration, seconds)
    own_id = own_id_of(output, identifier)
    is_local = runtime == "onnxruntime" and threads == 1 and model is None
    if output is None and not is_local:
        raise ConfigError("the profile 'local' is ONNX Runtime on one thread; give --output for any other measurement")
    if (model is None) != (data is None):
        raise ConfigError("--model and --data go together: the data say what the model's inputs are")
    if output is None or own_id is None:
        from paretopress.cli.device import measured_here

        profile = measured_here(limit, refresh=True, plain=as_json)
        _show(profile, None, [str(cache_path())], as_json=as_json)
        return 0
    from paretopress.measuring import measure_with_samples, samples_path

    samples = samples_path(output)
    if fresh:
        samples.unlink(missing_ok=True)
    profile = measure_with_samples(
        runtime, threads, limit, own_id, samples, seed=seed, factories=(model, data) if model and data else None,
        plain=as_json,
    )
    _write(output, profile)
    stored = [str(output), str(samples)]
    if is_local:
        from paretopress.hardware_profiles.measure import as_local

        stored.append(str(store_profile(as_local(profile))))
    _show(profile, output, stored, as_json=as_json)
    return 0


@click.command("probe")
@click.option(
    "--export", "destination", metavar="FOLDER|FILE.zip", required=True, type=click.Path(path_type=Path),
    help="Where to write it: a new folder, or a .zip that Python runs as it is.",
)
@click.option("--networks", type=click.IntRange(12, 2000), default=240, show_default=True, help="Networks to time.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the networks.")
@common
def probe_command(destination: Path, networks: int, seed: int, *, as_json: bool) -> int:
    """Write a script with ONNX models that measures another machine.

    There it needs Python, numpy and the runtime (onnxruntime or openvino), nothing else. Its results come back with
    'paretopress device import'.
    """
    from paretopress.hardware_profiles.probe import export_probe

    written = export_probe(destination, networks, seed)
    if as_json:
        print_json({"probe": str(destination), "networks": networks, "bytes": written})
        return 0
    click.echo(f"{destination}: {networks} networks, {written / 1e6:.1f} MB")
    click.echo(
        f"on the other machine: python {destination.name} --runtime onnxruntime -o results.csv (or --runtime openvino)",
        err=True,
    )
    next_command("paretopress device import results.csv -o board.yaml")
    return 0


@click.command("import")
@click.argument("results", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--expect-version", metavar="VERSION", help="Refuse results of any other version of the runtime.")
@_output_options
@common
def import_command(
    results: Path, expect_version: str | None, output: Path | None, identifier: str | None, *, as_json: bool
) -> int:
    """Fit a profile to the RESULTS of a probe that ran on another machine, or to raw samples."""
    from paretopress.hardware_profiles.probe import import_results

    if output is None:
        raise ConfigError("give --output: the profile to write")
    own_id = own_id_of(output, identifier)
    assert own_id is not None
    profile = import_results(results, own_id, expect_version)
    _write(output, profile)
    _show(profile, output, [str(output)], as_json=as_json)
    return 0


def _seconds(duration: str | None, seconds: float | None) -> float:
    from paretopress.settings import parse_duration

    if duration is not None and seconds is not None:
        raise ConfigError("--time and --seconds are the same; give one of them")
    if duration is not None:
        return parse_duration(duration, "--time")
    return SECONDS if seconds is None else seconds


def own_id_of(output: Path | None, identifier: str | None) -> str | None:
    """Return the id of the profile to write, None where none is written; checked before a minute is spent.

    Raises:
        ConfigError: The file cannot be written, or nothing is written.
        ProfileError: The id is malformed or taken.
    """
    from paretopress.hardware_profiles.measure import profile_id

    if output is None:
        if identifier is not None:
            raise ConfigError("--id names the profile that --output writes; give --output as well")
        return None
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: the folder {output.parent} does not exist")
    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output {output}: a profile is YAML; write it to a .yaml file")
    if identifier is not None:
        return profile_id(identifier)
    derived = re.sub(r"[^a-z0-9._-]+", "-", output.stem.lower()).strip("._-")
    try:
        return profile_id(derived)
    except ProfileError as error:
        raise ProfileError(f"--output {output}: {error}; name the profile with --id") from None


def _write(output: Path, profile: DeviceProfile) -> None:
    from paretopress.hardware_profiles.writing import profile_text as document_text
    from paretopress.spaces.documents import write_text

    write_text(output, document_text(profile.plain))


def _show(profile: DeviceProfile, output: Path | None, stored: list[str], *, as_json: bool) -> None:
    from paretopress.cli.device import profile_text

    if as_json:
        print_json(profile.plain)
        return
    click.echo(profile_text(profile, terminal_width()), nl=False)
    click.echo(f"stored: {', '.join(stored)}", err=True)
    next_command(f"paretopress device show {shlex.quote(str(output))}" if output else "paretopress demo")
