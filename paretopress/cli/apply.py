"""`paretopress apply`: builds one policy, without a search, and measures what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paretopress.cli.options import DATA_OPTION, MODEL_OPTION, common, next_command, print_json, terminal_width

if TYPE_CHECKING:
    from torch import nn

    from paretopress.compressors.compressed_model import CompressedModel
    from paretopress.compressors.quantisation import RoundingMethod
    from paretopress.evaluators.data import Data
    from paretopress.evaluators.primary_metric import PrimaryMetric
    from paretopress.progress import ProgressObserver

MOST_UNITS = 3   # named per reason


@click.command("apply")
@click.option("--policy", "policy_file", metavar="FILE", required=True, type=click.Path(path_type=Path),
              help="YAML or JSON file with what to do to each unit.")
@MODEL_OPTION
@DATA_OPTION
@click.option("-o", "--output", "output", required=True, type=click.Path(path_type=Path), help="A new folder.")
@click.option("--onnx", metavar="FILE", type=click.Path(path_type=Path), help="Also write it as an ONNX file.")
@click.option("--no-refit", is_flag=True, help="Only fit each layer on its own to the dense statistics.")
@click.option("--distil", is_flag=True, help="Train the result against the dense model, without labels.")
@click.option("--time", metavar="TIME", help="Limit of the distillation, such as 5m.")
@click.option(
    "--schedule", default="one-shot", show_default=True,
    help="How what is removed goes: one-shot; iterative: in cuts, trained after each; lasso: trained to zero first.",
)
@click.option("--rounds", type=int, default=4, show_default=True, help="Cuts of the iterative schedule.")
@click.option(
    "--importance", default="obs", show_default=True,
    help="How channels are ranked: obs, taylor, fisher, hessian, bn_scale, fpgm, l2, l1.",
)
@click.option("--rounding", default="feedback", show_default=True,
              help="How weights find their integers: feedback, nearest, learned.")
@click.option("--equalise", is_flag=True, help="First rescale layers against those that read them.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--force", is_flag=True, help="Replace an earlier model and ONNX file there.")
@common
def apply_command(
    policy_file: Path, model: str, data: str, output: Path, onnx: Path | None, no_refit: bool, distil: bool,
    time: str | None, schedule: str, rounds: int, importance: str, rounding: RoundingMethod, equalise: bool, seed: int,
    force: bool, as_json: bool,
) -> int:
    """Build one policy, store it, and measure it on the holdout data in a fresh process."""
    from paretopress.applying import apply_policy, distillation_settings
    from paretopress.compressors.artefact_folder import refuse_in_use
    from paretopress.factories import load_data, load_model
    from paretopress.progress import observing
    from paretopress.spaces.errors import ArtifactError, ConfigError
    from paretopress.spaces.policy import Policy

    if time is not None and not distil:
        raise ConfigError("--time limits the distillation: give --distil as well")
    policy, distillation = Policy.load(policy_file), distillation_settings(time or distil)
    refuse_in_use(output, force)
    if onnx is not None:
        _refuse_onnx(onnx, output, force)
    with observing(plain=as_json) as observer:
        network, sets = load_model(model), load_data(data)
        compressed = apply_policy(
            network, sets, policy, refit=not no_refit, distillation=distillation, schedule=schedule, rounds=rounds,
            importance=importance, rounding=rounding, equalise=equalise, seed=seed, observer=observer,
        )
        stored = compressed.save(output, overwrite=force)
        if onnx is not None:
            compressed.export_onnx(onnx)
        found = measured_artifact(compressed, output, onnx, network, sets, observer)
        found["measured"] |= stored   # not of the copy that was exported
    if as_json:
        print_json(found)
    else:
        click.echo(applied_text(found, terminal_width(), primary_metric(sets, found)), nl=False)
        next_command(f"paretopress verify {shlex.quote(str(output))} --model {model} --data {data}")
    if found["parity_problem"]:
        raise ArtifactError(f"{output}: {found['parity_problem']}")
    return 0


def _refuse_onnx(path: Path, output: Path, force: bool) -> None:
    from paretopress.spaces.errors import ConfigError

    if path.parent.resolve() == output.resolve():
        raise ConfigError(f"--onnx {path}: the folder {output} holds the model alone; choose another")
    if path.is_dir() or (path.exists() and not force):
        raise ConfigError(f"--onnx {path} exists; choose another path or replace it with --force")
    if not path.parent.is_dir():
        raise ConfigError(f"--onnx {path}: the folder {path.parent} does not exist")


def measured_artifact(
    compressed: CompressedModel, output: Path, onnx: Path | None, model: nn.Module, data: Data,
    observer: ProgressObserver,
) -> dict[str, Any]:
    """Measure an artefact in a fresh process; see the JSON of `apply`."""
    from paretopress.search.session import verify_artifact

    found = verify_artifact(output, model, data, observer, timing_runs=0)
    timed = ("latency", "speedup", "runs")
    return {
        "output": str(output),
        "onnx": None if onnx is None else str(onnx),
        "policy_hash": compressed.policy.hash,
        "tier": compressed.tier,
        "equalised": compressed.equalised,
        "measured": {name: value for name, value in found["measured"].items() if not name.startswith(timed)},
        "parity_problem": found["parity_problem"],
        "left_dense": [{"unit": unit, "reason": reason} for unit, reason in compressed.left_dense],
    }


def primary_metric(data: Data, found: Mapping[str, Any]) -> PrimaryMetric:
    """What `accuracy` stands for, with the measured values."""
    from paretopress.evaluators.metrics import normalise_metric
    from paretopress.evaluators.primary_metric import PrimaryMetric

    measured = found["measured"]
    values = (measured["accuracy"], measured["accuracy_baseline"])
    return PrimaryMetric.of(normalise_metric(data.metric)[0], values)


def applied_text(found: Mapping[str, Any], width: int, metric: PrimaryMetric) -> str:
    """Return what `apply` measured as tables.

    Args:
        found: Its JSON document.
        width: Columns of the terminal.
        metric: What `accuracy` stands for.
    """
    from paretopress.evaluators.budgets import shown
    from paretopress.tables import plain_table, render

    measured = found["measured"]
    value, dense = measured["accuracy"], measured["accuracy_baseline"]
    size, before = measured["size_bytes"], measured["size_bytes_baseline"]
    rows = [
        [f"{metric.label} (holdout)", metric.shown(dense), metric.shown(value), metric.change(value, dense)],
        ["stored tensors", shown("size", before), shown("size", size), f"{before / max(size, 1):.2f} x smaller"],
        ["all files", "", shown("size", measured["disk_bytes"]), ""],
        ["ONNX file", "", shown("size", measured["onnx_bytes"]), ""],
    ]
    headings = ("measured", "dense", "compressed", "change")
    title = f"{found['output']} ({found['tier']})"
    parts = [plain_table(title, headings, rows, right=headings[1:])]
    if found["left_dense"]:
        parts.append(plain_table("Left dense", ("units", "reason"), _by_reason(found["left_dense"])))
    return render(parts, width)


def _by_reason(entries: Sequence[Mapping[str, str]]) -> list[list[str]]:
    units: dict[str, list[str]] = {}
    for entry in entries:
        units.setdefault(entry["reason"], []).append(entry["unit"])
    return [[", ".join(own[:MOST_UNITS]) + (f" and {len(own) - MOST_UNITS} more" if own[MOST_UNITS:] else ""), reason]
            for reason, own in units.items()]
