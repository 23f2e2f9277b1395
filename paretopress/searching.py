"""`Search`: a search as an object, configured step by step, run, and continued."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretopress.callbacks import checked_callbacks, heard, tell_end
from paretopress.result import RUN_DOCUMENT, Result
from paretopress.settings import override, read_settings, search_settings, with_arguments
from paretopress.settings import replaced as with_value
from paretopress.spaces.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from paretopress.evaluators.data import Data
    from paretopress.progress import ProgressObserver
    from paretopress.search.problem import SearchSettings
    from paretopress.spaces.recipe import Recipe
    from paretopress.spaces.space import SpaceSettings

LIMITS = {"max_latency": "latency", "max_size": "size", "max_macs": "macs", "max_memory": "peak_memory",
          "max_energy": "energy", "max_robust": "robust"}


class Search:
    """A search of one model on some data.

    ```
    search = paretopress.Search(model, data=data, target="local", max_drop="1pp", time="5m")
    search.set("search.finalists=12").add(paretopress.TensorBoard("logs"))
    result = search.run()                # the same again continues an interrupted run
    result = search.resume(time="10m")   # searches the finished run further
    ```
    """

    def __init__(
        self, model: nn.Module, *, data: Data, target: str | Sequence[str] | None = None,
        max_latency: str | None = None, max_size: str | None = None, max_drop: str | None = None,
        max_macs: str | None = None, max_memory: str | None = None, max_energy: str | None = None,
        max_robust: str | None = None, settings: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        space: SpaceSettings | None = None, run: str | os.PathLike[str] | None = None,
        callbacks: Iterable[Any] = (), progress: bool = True, name: str | None = None,
        replaced: Mapping[str, Any] | None = None, tune_callbacks: Sequence[Any] = (), **search: Any,  # noqa: ANN401
    ) -> None:
        """Configure a search; nothing is computed yet.

        Args:
            model: A trained model; it is searched in eval mode and not changed.
            data: Calibration, search and holdout sets.
            target: Device id or profile file, or several; `local`, this machine, by default.
            max_latency: `5ms` or `-50%` of the dense model, on every target.
            max_size: `200KB` or `-50%`.
            max_drop: Allowed loss of accuracy, `1pp` or `2%`.
            max_macs: `10M` or `-50%`.
            max_memory: Peak memory, `256KiB` or `-50%`.
            max_energy: `3mJ` or `-50%`.
            max_robust: `-40%`: the time on whichever target saves least, relative to the dense model there.
            settings: A settings file or its content; the other arguments override it.
            space: What may be chosen, in place of the settings' `space`.
            run: Run directory, by default `runs/NAME-FINGERPRINT`.
            callbacks: Objects with methods of `paretopress.Callback`.
            progress: Show progress on stderr.
            name: Part of the default run directory; the settings file's stem, else the class of the model in small
                letters.
            replaced: Fields of `SearchSettings` that no settings file can hold.
            tune_callbacks: Of type `ray.tune.Callback`, with the executor `tune`.
            **search: Keys of the settings' `search` section: `time`, `trials`, `seed`, `workers`, `effort`, `sampler`,
                `distil` and the others; `warm_start` may also be a `Policy` or a `Recipe`.

        Raises:
            ConfigError: A malformed argument.
        """
        from torch import nn

        from paretopress.evaluators.data import Data

        if not isinstance(model, nn.Module):
            raise ConfigError(f"compress: the model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(data, Data):
            parts = "calibration=inputs, search=(inputs, targets), holdout=(inputs, targets)"
            raise ConfigError(f"compress: data must be a paretopress.Data({parts}), got {type(data).__name__}")
        given = {"max_latency": max_latency, "max_size": max_size, "max_macs": max_macs, "max_memory": max_memory,
                 "max_energy": max_energy, "max_robust": max_robust}
        self.model, self.data = model, data
        if settings is None or isinstance(settings, Mapping):
            self._source, plain, stem = "compress", dict(settings or {}), type(model).__name__.lower()
        else:
            self._source, plain, stem = str(settings), read_settings(Path(settings)), Path(settings).stem
        targets = [target] if isinstance(target, str) else list(target or ())
        limits = {objective: given[keyword] for keyword, objective in LIMITS.items()}
        library = recipes_in_memory(search.get("warm_start"))
        if library:
            search = {**search, "warm_start": None}
        elif search.get("warm_start") is not None:
            search = {**search, "warm_start": os.fspath(search["warm_start"])}
        self._plain = with_arguments(plain, targets, limits, max_drop, search)
        in_memory = {"space": space, "library": library or None, "tune_callbacks": tuple(tune_callbacks) or None}
        self._replaced = {
            **(replaced or {}), **{field: value for field, value in in_memory.items() if value is not None},
        }
        self._name = name or stem
        self._run = None if run is None else Path(run)
        self._last: Path | None = None   # what `resume` continues where no directory was named
        self._callbacks = checked_callbacks(callbacks)
        self._progress = progress
        executor = self.settings.executor   # a wrong argument is refused here, not after minutes
        if tune_callbacks and executor != "tune":
            raise ConfigError(f"compress: tune_callbacks are for executor tune, not {executor}")

    @property
    def settings(self) -> SearchSettings:
        """The resolved settings. Raises `ConfigError` where one is malformed."""
        return replace(search_settings(self._plain, self._source, self._name), **self._replaced)

    @property
    def callbacks(self) -> tuple[Any, ...]:
        """Who hears of events, in the order in which they are called."""
        return self._callbacks

    def set(self, *assignments: str) -> Search:
        """Override settings, as `--set` does, and return this search.

        Args:
            *assignments: A dotted key and a YAML value each, such as `"search.finalists=12"`.

        Returns:
            This search.

        Raises:
            ConfigError: An unknown key or a malformed value.
        """
        for assignment in assignments:
            self._plain = override(self._plain, assignment)
        _ = self.settings
        return self

    def add(self, *callbacks: Any) -> Search:  # noqa: ANN401 - any object with some of the methods
        """Add callbacks, which are called after those that are there, and return this search.

        Args:
            *callbacks: Objects with methods of `paretopress.Callback`.

        Returns:
            This search.

        Raises:
            ConfigError: One is a class, or has none of the methods.
        """
        self._callbacks = (*self._callbacks, *checked_callbacks(callbacks))
        return self

    def dry_run(self) -> dict[str, Any]:
        """Say what a run would do, without searching or writing anything.

        Returns:
            The document of `search --dry-run`: space, targets, what budgets can reach, and estimated seconds.

        Raises:
            ParetopressError: As `run`, before it begins to search; not where budgets are out of reach.
        """
        from paretopress.measuring import measure_if_targeted
        from paretopress.search.forecast import forecast

        settings = self.settings
        with _shown(self._progress) as observer:
            measure_if_targeted(settings.targets, observer)
            return forecast(self.model, self.data, settings, self._run, observer)

    def run(self, *, fresh: bool = False) -> Result:
        """Search, verify, and return the run. The same search continues an interrupted run.

        Args:
            fresh: Start anew where the run directory exists.

        Returns:
            The run with its verified front.

        Raises:
            DataError: Data that is empty, not finite, of a wrong shape, or overlaps.
            UnsupportedModelError: The model cannot be captured.
            InfeasibleError: The budgets cannot be met; the message states the best reachable values.
            InterruptedSearch: A signal ended it; what was finished is stored.
        """
        return self._started(self._run, fresh=fresh)

    def _started(self, run: Path | None, *, fresh: bool = False) -> Result:
        from paretopress.measuring import measure_if_targeted
        from paretopress.search.session import run_search

        settings, name = self.settings, type(self.model).__qualname__
        with _shown(self._progress) as observer, heard(observer, self._callbacks) as hearing:
            measure_if_targeted(settings.targets, observer)
            folder = run_search(self.model, self.data, settings, run, fresh=fresh, observer=hearing,
                                model_name=name)
            result = Result.load(folder)
            tell_end(hearing, result)
        result.report()
        self._last = result.run
        return result

    def resume(self, *, time: str | None = None, trials: int | None = None) -> Result:
        """Continue the run, or search a finished one further.

        Args:
            time: How long this time, in place of the settings' time.
            trials: Number of trials in all, in place of the settings' number.

        Returns:
            The run with its verified front.

        Raises:
            ConfigError: There is no run to continue; a time where a number of trials ends it, or the other way round.
                Otherwise as `run`.
        """
        path = self._run or self._last or self._default_run()
        if not (path / RUN_DOCUMENT).exists():
            raise ConfigError(f"resume: there is no run in {path}; run() starts one")
        ended_by = "time" if self.settings.trials is None else "trials"
        for name, value in (("time", time), ("trials", trials)):
            if value is None:
                continue
            if name != ended_by and name not in self._plain["search"]:
                raise ConfigError(f"resume: {name}: this run is ended by {ended_by} (allowed: {ended_by}=)")
            self._plain = with_value(self._plain, ["search", name], value)
        return self._started(path)

    def _default_run(self) -> Path:
        from paretopress.measuring import measure_if_targeted
        from paretopress.search.problem import default_run_path, prepare_problem

        settings = self.settings
        with _shown(self._progress) as observer:
            measure_if_targeted(settings.targets, observer)
        return default_run_path(prepare_problem(self.model, self.data, settings))


def recipes_in_memory(source: object) -> tuple[Recipe, ...]:
    """A policy or recipe that is in memory, as recipes."""
    from paretopress.spaces.policy import Policy
    from paretopress.spaces.recipe import Recipe

    if isinstance(source, Recipe):
        return (source,)
    return (Recipe.of_policy(source, "policy"),) if isinstance(source, Policy) else ()


@contextmanager
def _shown(progress: bool) -> Iterator[Any]:
    """An observer on stderr that turns signals into a wish to stop, or one that shows warnings of callbacks alone."""
    from paretopress.progress import ProgressObserver, observing

    if progress:
        with observing() as observer:
            yield observer
    else:
        yield _Quiet(ProgressObserver())


class _Quiet:
    """Has no wish to stop and shows nothing, but a callback that fails must be heard of."""

    def __init__(self, inner: ProgressObserver) -> None:
        self.stage, self.advance, self.message = inner.stage, inner.advance, inner.message

    def warning(self, text: str) -> None:
        """Pass on what is said of callbacks."""
        if text.startswith("callback "):
            warnings.warn(text, UserWarning, stacklevel=2)
