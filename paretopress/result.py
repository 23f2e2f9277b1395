"""Result of a search: the verified front, and points that load and export as models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretopress.evaluators.budgets import shown
from paretopress.evaluators.primary_metric import PrimaryMetric
from paretopress.spaces.documents import RUN_BYTES, read_document
from paretopress.spaces.errors import ArtifactError, ConfigError, InfeasibleError, nearest
from paretopress.spaces.policy import Policy

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from torch import nn

    from paretopress.evaluators.data import Data

FRONT_FILE = "front.json"
RUN_DOCUMENT = "run.yaml"
FAILURES = 0.1   # share of failed trials from which on a run is partial
_MEASURED = {
    "accuracy": "accuracy",
    "latency": "latency_ms",
    "size": "size_bytes",
    "macs": "macs",
    "peak_memory": "peak_memory_bytes",
}


@dataclass(frozen=True)
class Point:
    """One verified model.

    Attributes:
        id: Number in the run.
        name: `dense`, `uniform int8` or `uniform half width`, None for what the search found.
        policy: What was decided per unit.
        feasible: Whether the measured values meet all budgets.
        knee: Whether it is the front's knee.
        predicted: Predicted values by objective, such as `latency@local` (ms), `size` (bytes), `macs`.
        measured: Measured values by name, such as `accuracy` (the first metric), `latency_ms`, `size_bytes`.
        why_not: Why the point is not on the front, None where it is.
        folder: The stored model.
    """

    id: int
    policy: Policy
    measured: Mapping[str, Any] = field(hash=False)
    predicted: Mapping[str, float | None] = field(hash=False)
    name: str | None = None
    feasible: bool = True
    knee: bool = False
    why_not: str | None = None
    folder: Path = Path()

    def __str__(self) -> str:
        """One line: number and name, the first metric, and time and bytes beside the dense model's."""
        measured, size, whole = self.measured, self.value("size"), self.measured.get("size_bytes_baseline")
        words = [f"accuracy {measured['accuracy']:.4f}"] if "accuracy" in measured else []
        if (latency := self.value("latency")) is not None:
            speedup = measured.get("speedup")
            words.append(f"{shown('latency', latency)}{'' if 'latency_ms' in measured else ' predicted'}"
                         f"{f' ({speedup:.2f}x)' if speedup else ''}")
        if size:
            words.append(f"{shown('size', size)}{f' ({whole / size:.2f}x)' if whole else ''}")
        name = f" {self.name}" if self.name else ""
        return f"#{self.id}{name}: {', '.join(words) or 'not measured'}"

    @property
    def policy_hash(self) -> str:
        """Sixteen hexadecimal digits of the choices."""
        return self.policy.hash

    @property
    def on_front(self) -> bool:
        """Whether no other verified point is better in everything."""
        return self.why_not is None

    def value(self, objective: str) -> float | None:
        """Return what a limit or a comparison reads.

        Measured where it was measured. A latency is the measured one unless the target cannot run on the
        machine that verified the point: then it is the predicted upper bound.

        Args:
            objective: `accuracy`, `latency`, `latency@DEVICE`, `size`, `macs`, `peak_memory`, `energy`,
                `robust`.

        Returns:
            Milliseconds, bytes, multiply-accumulates, microjoules or the metric's value; None where unknown.
        """
        base, _, device = objective.partition("@")
        measured = self.measured.get(_MEASURED.get(base, base))
        if measured is not None and (not device or (base == "latency" and self._timed_on(device))):
            return float(measured)
        return self.predicted_value(objective)

    def predicted_value(self, objective: str) -> float | None:
        """Return the predicted upper bound, or the prediction where no bound is stored."""
        base, _, device = objective.partition("@")
        bound = self._largest(f"{base}_upper", device)
        return bound if bound is not None else self._largest(base, device)

    def load(self, model_factory: Callable[[], nn.Module]) -> nn.Module:
        """Return the compressed model on the user's class, in eval mode.

        Args:
            model_factory: Returns the dense model.

        Raises:
            ArtifactError: The stored model is missing, damaged, or belongs to another class.
        """
        from paretopress.compressors.compressed_model import load

        return load(self.stored(), model_factory)

    def stored(self) -> Path:
        """Return the stored model's folder. Raises `ArtifactError` where it is missing."""
        if not self.folder.is_dir():
            raise ArtifactError(f"{self.folder}: the model of point {self.id} is missing from the run")
        return self.folder

    def _timed_on(self, device: str) -> bool:
        only = {name.partition("@")[2] for name in self.predicted if name.startswith("latency@")} == {device}
        return only or self.measured.get("device") == device

    def _largest(self, base: str, device: str) -> float | None:
        names = [f"{base}@{device}"] if device else [n for n in self.predicted if n.partition("@")[0] == base]
        known = [value for name in names if (value := self.predicted.get(name)) is not None]
        return max(known, default=None)


@dataclass(frozen=True)
class Front:
    """The verified finalists of a run; iterating yields those on the front.

    Attributes:
        verified: All verified finalists, the dense model among them.
        baseline: The dense model.
        comparisons: Uniform int8 and uniform half width, verified alike.
        plain: The stored document.
    """

    verified: tuple[Point, ...]
    baseline: Point
    comparisons: tuple[Point, ...] = ()
    plain: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)

    @cached_property
    def metric(self) -> PrimaryMetric:
        """The metric that `accuracy` stands for: its name, and whether more or less of it is better."""
        points = (self.baseline, *self.verified, *self.comparisons)
        return PrimaryMetric.of_front([point.measured for point in points], self.plain.get("metric"))

    @property
    def points(self) -> tuple[Point, ...]:
        """The verified points that no other one beats in everything."""
        return tuple(point for point in self.verified if point.on_front)

    @property
    def feasible(self) -> tuple[Point, ...]:
        """The points of the front that meet all budgets of the run."""
        return tuple(point for point in self.points if point.feasible)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def knee(self) -> Point:
        """Return the knee: the point past which one objective costs much of another.

        Raises:
            InfeasibleError: The front has no point that meets the budgets.
        """
        for point in self.verified:
            if point.knee:
                return point
        if not self.feasible:
            raise InfeasibleError("no verified point meets all budgets, so the front has no knee")
        from paretopress.selection import knee_of

        return knee_of(self.feasible, self.metric)

    def select(
        self, *, minimize: str = "latency", max_drop: str | None = None, **limits: str | None
    ) -> Point:
        """Return the best feasible point within limits.

        Args:
            minimize: The objective: `latency`, `size`, `macs`, `peak_memory`, `energy`, `robust`, or `accuracy` for the
                best in the first metric, in its direction.
            max_drop: The allowed loss of the first metric: `1pp`, or relative such as `2%`.
            **limits: `max_latency="5ms"`, `max_size="-50%"`, `max_macs`, `max_memory`, `max_energy`,
                `max_robust`.

        Raises:
            InfeasibleError: No point fits; the message states the nearest.
            ConfigError: An unknown objective or a malformed limit.
        """
        from paretopress.selection import best, keyword_budgets

        return best(self, minimize, keyword_budgets(max_drop, limits, self.metric.direction))

    def table(self, width: int = 100, *, show_all: bool = False) -> str:
        """Return the front as text.

        Args:
            width: Columns of the terminal; notes are shortened to it.
            show_all: Whether verified points that are not on the front stand there too, with the reason.
        """
        from paretopress.tables import front_text

        return front_text(self, width=width, show_all=show_all)

    def to_dataframe(self) -> pandas.DataFrame:
        """Return one row per verified point, indexed by id. Raises `ConfigError` where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise ConfigError("the package pandas is not installed: pip install 'paretopress[plot]'") from None
        from paretopress.front_formats import front_rows

        return pandas.DataFrame(front_rows(self)).set_index("id")

    def leaderboard(self, *, show_all: bool = False) -> pandas.DataFrame | list[dict[str, Any]]:
        """Return the points of the front, the best metric first.

        Args:
            show_all: Also the verified points that are not on it, with the reason in `why_not`.

        Returns:
            A data frame indexed by id where pandas is installed, else a list of rows as dictionaries. Times are in ms,
            sizes in bytes.
        """
        from paretopress.front_formats import front_rows

        points = [point for point in self.verified if show_all or point.on_front]
        known = [(point, point.value("accuracy")) for point in points]
        ordered = sorted(known, key=lambda pair: float("inf") if pair[1] is None else self.metric.cost(pair[1]))
        rows = front_rows(self, [point for point, _ in ordered])
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.DataFrame(rows).set_index("id")

    def plot(self, x: str = "latency", y: str = "accuracy", axes: Axes | None = None) -> Axes:
        """Draw the verified points, the front as a line, the dense model, the comparisons and the knee.

        Args:
            x: A cost: `latency` (ms), `size` (bytes), `macs`, `peak_memory` (bytes), `energy` (microjoules).
            y: `accuracy`, the first metric, or another cost.
            axes: Of matplotlib, to draw on; by default new ones.

        Returns:
            The axes, for `axes.figure.savefig(...)`.

        Raises:
            ConfigError: Matplotlib is not installed, an unknown objective, or one that no point has a value for.
        """
        from paretopress.front_plot import plot_front

        return plot_front(self, x, y, axes)

    def to_json(self) -> str:
        """Return the stored document as JSON text."""
        return json.dumps(self.plain, indent=2, allow_nan=False)


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        run: The run directory.
        front: Its verified front.
    """

    run: Path
    front: Front

    @classmethod
    def load(cls, run: str | Path) -> Result:
        """Return the run of a directory.

        Args:
            run: A folder that a search has finished, such as `runs/NAME-FINGERPRINT`.

        Raises:
            ConfigError: There is no such run.
            ArtifactError: The front is not written yet, or damaged.
        """
        folder = Path(run)
        path = folder / FRONT_FILE
        if not folder.is_dir():
            siblings = [
                str(other) for other in sorted(folder.parent.glob("*")) if (other / FRONT_FILE).exists()
            ]
            close = nearest(str(folder), siblings)
            raise ConfigError(f"no run directory {folder}" + (f"; did you mean {close[0]}?" if close else ""))
        if not path.exists():
            raise ArtifactError(
                f"{folder} holds no {FRONT_FILE}: not a run directory, or its search has not finished "
                "(the command that started it continues it)"
            )
        from paretopress.front_document import read_front

        try:
            return cls(folder, read_front(read_document(path, RUN_BYTES), folder))
        except ConfigError as error:
            raise ArtifactError(str(error)) from None

    @property
    def partial(self) -> tuple[str, ...]:
        """What is missing of what was asked for, one line each; empty where nothing is.

        The time ended before the number of trials was reached, finalists could not be verified, or more than a tenth of
        the trials failed. The front is good all the same.
        """
        trials, found = self.front.plain.get("trials") or {}, []
        total, failed, asked = trials.get("total", 0), trials.get("FAIL", 0), self._trials_asked_for()
        if asked is not None and total < asked:
            found.append(f"{total} of {asked} trials: the time was up")
        if failed > FAILURES * total:
            found.append(f"{failed} of {total} trials failed; trials.jsonl has the reasons")
        broken = [point for point in self.front.verified if not point.measured]
        if broken:
            found.append(f"{len(broken)} of {len(self.front.verified)} finalists could not be verified: "
                         f"#{broken[0].id}: {broken[0].why_not}")
        return tuple(found)

    def _trials_asked_for(self) -> int | None:
        """The number of trials that the run's settings name, None without one."""
        path = self.run / RUN_DOCUMENT
        document = read_document(path) if path.exists() else {}
        settings = ((document or {}).get("config") or {}).get("settings") or {}
        trials = settings.get("trials")
        return trials if isinstance(trials, int) else None

    def knee(self) -> Point:
        """Return the front's knee. Raises `InfeasibleError` where nothing meets the budgets."""
        return self.front.knee()

    def select(self, **arguments: Any) -> Point:  # noqa: ANN401 - those of `Front.select`
        """Return the best point within limits; see `Front.select`."""
        return self.front.select(**arguments)

    def save_pretrained(
        self, folder: str | Path, pick: str | Point = "knee", *, overwrite: bool = False, huffman: bool = False
    ) -> Path:
        """Copy a point's model (safetensors, delta, policy, manifest, ONNX) to a new folder, with a model card.

        Args:
            folder: The destination; must not exist or be empty.
            pick: `knee`, `fastest`, `smallest`, `id:7`, `latency<=5ms`, `accuracy>=0.97`, or a point.
            overwrite: Replace an earlier export there.
            huffman: Code packed tensors where that takes fewer bytes; loading decodes them.

        Returns:
            The folder.

        Raises:
            ConfigError: The destination is in use, or `pick` is malformed.
            InfeasibleError: No point fits.
        """
        from paretopress.exporting import export_folder
        from paretopress.point_card import point_card

        point = self._picked(pick)
        card = point_card(self.front, point, self.run)
        return export_folder(point, Path(folder), force=overwrite, huffman=huffman, card=card)

    def export(
        self, path: str | Path, pick: str | Point = "knee", format: str | None = None, *,  # noqa: A002
        model: nn.Module | None = None, data: Data | None = None, packed: bool = False,
    ) -> Path:
        """Write a point as one file: the verified ONNX file, or a conversion that is checked and timed here.

        Args:
            path: The destination; a file there is replaced.
            pick: As for `save_pretrained`.
            format: `onnx`, `pt2`, `openvino`, or `safetensors` for `save_pretrained`; by default what the suffix of
                `path` says, else `onnx`.
            model: The dense model, for `pt2` and `openvino`.
            data: Its data, likewise: the conversion is compared with the stored model on holdout inputs.
            packed: For `pt2`: store integers packed; smaller and slower.

        Returns:
            The destination.

        Raises:
            ArtifactError: The point has no ONNX file, or a conversion computes something else; nothing is written then.
            ConfigError: An unknown format, or no model or data for a conversion.
        """
        from paretopress.compressors.exports import SUFFIXES, format_of
        from paretopress.exporting import CONVERTED, convert_point, export_onnx_file

        destination, point = Path(path), self._picked(pick)
        form = "onnx" if format is None and destination.suffix not in SUFFIXES else format_of(destination, format)
        if form == "safetensors":
            return self.save_pretrained(destination, point, overwrite=True)
        if form not in CONVERTED:
            return export_onnx_file(point, destination, force=True)
        if model is None or data is None:
            raise ConfigError(f"export: {form}: give model= and data=: it is converted and checked on holdout inputs")
        convert_point(self.front, point, destination, form, model, data, force=True, packed=packed)
        return destination

    def report(self, path: str | Path | None = None) -> Path:
        """Write the run as one HTML page that needs neither a network nor other files.

        Args:
            path: The page, by default `report.html` in the run.

        Returns:
            The page.

        Raises:
            ArtifactError: A file of the run is damaged.
            DiskError: The page cannot be written.
        """
        from paretopress.report import write_report

        return write_report(self.run, path)

    def _picked(self, pick: str | Point) -> Point:
        from paretopress.selection import pick_point

        return pick if isinstance(pick, Point) else pick_point(self.front, pick)
