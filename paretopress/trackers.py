"""Callbacks for TensorBoard, MLflow and Weights & Biases: each is an extra, imported when it is made."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretopress.callbacks import Callback
from paretopress.spaces.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from paretopress.result import Point, Result
    from paretopress.search.events import SearchedFront, SearchStarted
    from paretopress.search.records import TrialRecord

__all__ = ["TRACKERS", "Mlflow", "TensorBoard", "WeightsAndBiases", "tracker"]

TRACKERS = ("tensorboard", "mlflow", "wandb")
MEASURED = ("accuracy", "accuracy_drop", "latency_ms", "speedup", "size_bytes", "onnx_bytes", "macs")
BATCH = 200   # metrics that MLflow is sent at once


def tracker(name: str) -> Callback:
    """Return the callback of `--log NAME`.

    Args:
        name: One of `TRACKERS`.

    Raises:
        ConfigError: An unknown name, or its package is not installed.
    """
    kinds: dict[str, type[Callback]] = {"tensorboard": TensorBoard, "mlflow": Mlflow, "wandb": WeightsAndBiases}
    if name not in kinds:
        raise ConfigError(f"--log: {unknown_name('tracker', name, TRACKERS)}")
    return kinds[name]()


class TensorBoard(Callback):
    """Writes TensorBoard event files: trials, the front while it grows, and the verified models.

    Scalars are `trial/OBJECTIVE` and `trial/feasible` by trial number, `front/points`, `front/hypervolume`,
    `front/trials_per_second` and `front/feasible_share` by number of trials, and `verified/NAME` by point id.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Write to a folder.

        Args:
            folder: Where to; by default `tensorboard` inside the run directory.

        Raises:
            ConfigError: The package `tensorboard` is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(_missing("tensorboard")) from None
        self._open, self._folder = SummaryWriter, None if folder is None else Path(folder)
        self._writer: Any = None

    def on_start(self, start: SearchStarted) -> None:
        """Open the event file and write the settings as text."""
        self._writer = self._open(str(self._folder or start.run / "tensorboard"))
        text = json.dumps(dict(start.settings), indent=2, default=str)
        self._writer.add_text("settings", "    " + text.replace("\n", "\n    "))

    def on_trial(self, trial: TrialRecord) -> None:
        """Write a trial's scalars."""
        for name, value in _of_trial(trial):
            self._writer.add_scalar(f"trial/{name}", value, trial.number)

    def on_front(self, front: SearchedFront) -> None:
        """Write the figures of the front."""
        for name, value in _of_front(front):
            self._writer.add_scalar(f"front/{name}", value, front.status.trials)
        self._writer.flush()

    def on_finalist(self, point: Point) -> None:
        """Write measured values."""
        for name, value in _of_point(point):
            self._writer.add_scalar(f"verified/{name}", value, point.id)

    def on_end(self, result: Result | None) -> None:
        """Write the verified front as a table and close the file."""
        if self._writer is None:
            return
        if result is not None:
            from paretopress.front_formats import markdown_text
            from paretopress.tables import shown_points

            self._writer.add_text("front", markdown_text(result.front, shown_points(result.front, show_all=False)))
        self._writer.close()
        self._writer = None


class Mlflow(Callback):
    """Logs a run to MLflow: settings as parameters, trials and front as metrics, the front's files as artefacts."""

    def __init__(self, tracking_uri: str | None = None, experiment: str = "paretopress") -> None:
        """Log to a tracking server or store.

        Args:
            tracking_uri: Such as `http://HOST:PORT`, `sqlite:///mlflow.db` or `file:///folder`; by default what
                `MLFLOW_TRACKING_URI` says, else MLflow's own default.
            experiment: Name of the experiment, made where it is missing.

        Raises:
            ConfigError: The package `mlflow-skinny` (or `mlflow`) is not installed.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        if tracking_uri is not None and tracking_uri.partition(":")[0] == "file":
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")   # MLflow 3 asks for a yes to its oldest store
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
        except ImportError:
            raise ConfigError(_missing("mlflow")) from None
        self._client = MlflowClient(tracking_uri=tracking_uri)
        self._metric, self._param = Metric, Param
        self._experiment = experiment
        self._run = ""
        self._waiting: list[Any] = []

    def on_start(self, start: SearchStarted) -> None:
        """Open an MLflow run."""
        found = self._client.get_experiment_by_name(self._experiment)
        identifier = found.experiment_id if found else self._client.create_experiment(self._experiment)
        self._run = self._client.create_run(identifier, run_name=start.run.name).info.run_id
        settings = [(name, str(value)[:500]) for name, value in _flat(start.settings)]
        parameters = [self._param(name, value) for name, value in [("run", str(start.run)), *settings]]
        for begin in range(0, len(parameters), 100):   # MLflow's limit
            self._client.log_batch(self._run, params=parameters[begin : begin + 100])

    def on_trial(self, trial: TrialRecord) -> None:
        """Collect a trial's metrics; they are sent in batches."""
        self._collect("trial", _of_trial(trial), trial.number)

    def on_front(self, front: SearchedFront) -> None:
        """Send the figures of the front and what has been collected."""
        self._collect("front", _of_front(front), front.status.trials)
        self._send()

    def on_finalist(self, point: Point) -> None:
        """Collect measured values."""
        self._collect("verified", _of_point(point), point.id)

    def on_end(self, result: Result | None) -> None:
        """Store the front's files and close the MLflow run, as failed where there is no front."""
        if not self._run:
            return
        self._send()
        for name in ("front.json", "front.csv", "run.yaml") if result is not None else ():
            if result is not None and (result.run / name).exists():
                self._client.log_artifact(self._run, str(result.run / name))
        self._client.set_terminated(self._run, "FAILED" if result is None else "FINISHED")
        self._run = ""

    def _collect(self, prefix: str, values: Iterator[tuple[str, float]], step: int) -> None:
        import time

        now = int(1000 * time.time())
        # `@` of `latency@DEVICE` is not allowed in MLflow's names.
        named = [(f"{prefix}/{name.replace('@', '.')}", value) for name, value in values]
        self._waiting += [self._metric(name, value, now, step) for name, value in named]
        if len(self._waiting) >= BATCH:
            self._send()

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for begin in range(0, len(waiting), BATCH):
            self._client.log_batch(self._run, metrics=waiting[begin : begin + BATCH])


class WeightsAndBiases(Callback):
    """Logs a run to Weights & Biases; offline unless told otherwise, so that nothing leaves the machine unasked."""

    def __init__(
        self, project: str = "paretopress", mode: str | None = None, folder: str | os.PathLike[str] | None = None
    ) -> None:
        """Log to a project.

        Args:
            project: Its name.
            mode: `online`, `offline` or `disabled`; by default what `WANDB_MODE` says, else `offline`.
            folder: Where the files of the offline mode go; by default inside the run directory.

        Raises:
            ConfigError: The package `wandb` is not installed, or another mode.
        """
        chosen = mode or os.environ.get("WANDB_MODE", "offline")
        if chosen not in ("online", "offline", "disabled"):
            raise ConfigError(f"WeightsAndBiases: {unknown_name('mode', chosen, ('online', 'offline', 'disabled'))}")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except ImportError:
            raise ConfigError(_missing("wandb")) from None
        self._wandb, self._project, self._mode = wandb, project, chosen
        self._folder = None if folder is None else Path(folder)
        self._run: Any = None

    def on_start(self, start: SearchStarted) -> None:
        """Open a run of W&B."""
        self._run = self._wandb.init(
            project=self._project, name=start.run.name, dir=str(self._folder or start.run), mode=self._mode,  # type: ignore[arg-type, unused-ignore]
            config=json.loads(json.dumps(dict(start.settings), default=str)),
            settings=self._wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True),
        )
        for kind, step in (("trial", "number"), ("front", "trials"), ("verified", "id")):
            self._run.define_metric(f"{kind}/{step}", hidden=True)
            self._run.define_metric(f"{kind}/*", step_metric=f"{kind}/{step}")

    def on_trial(self, trial: TrialRecord) -> None:
        """Log a trial."""
        self._log("trial", _of_trial(trial), number=trial.number)

    def on_front(self, front: SearchedFront) -> None:
        """Log the figures of the front."""
        self._log("front", _of_front(front), trials=front.status.trials)

    def on_finalist(self, point: Point) -> None:
        """Log measured values."""
        self._log("verified", _of_point(point), id=point.id)

    def on_end(self, result: Result | None) -> None:
        """Put the knee into the summary and close the run of W&B."""
        if self._run is None:
            return
        if result is not None and result.front.feasible:
            self._run.summary.update({f"knee/{name}": value for name, value in _of_point(result.knee())})
        self._run.finish(exit_code=1 if result is None else 0)
        self._run = None

    def _log(self, prefix: str, values: Iterator[tuple[str, float]], **step: int) -> None:
        self._run.log({f"{prefix}/{name}": value for name, value in (*values, *step.items())})


def _missing(extra: str) -> str:
    package = {"mlflow": "mlflow-skinny"}.get(extra, extra)
    return f"the package {package} is not installed: pip install 'paretopress[{extra}]'"


def _of_trial(trial: TrialRecord) -> Iterator[tuple[str, float]]:
    yield from trial.values.items()
    yield "feasible", float(trial.feasible)
    yield "seconds", trial.seconds


def _of_front(front: SearchedFront) -> Iterator[tuple[str, float]]:
    status = front.status
    yield "points", float(status.front)
    if status.hypervolume is not None:
        yield "hypervolume", status.hypervolume
    yield "trials_per_second", status.per_second
    yield "feasible_share", status.feasible


def _of_point(point: Point) -> Iterator[tuple[str, float]]:
    for name in MEASURED:
        value = point.measured.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)
    yield "on_front", float(point.on_front)


def _flat(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in plain.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
