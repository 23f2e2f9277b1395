"""The Python interface: `compress` and `load`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretopress.result import Result
from paretopress.spaces.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from paretopress.evaluators.data import Data
    from paretopress.search.problem import SearchSettings
    from paretopress.spaces.space import SpaceSettings

__all__ = ["compress", "load"]


def compress(
    model: nn.Module, *, data: Data, target: str | Sequence[str] | None = None,
    max_latency: str | None = None, max_size: str | None = None, max_drop: str | None = None,
    max_macs: str | None = None, max_memory: str | None = None, max_energy: str | None = None,
    max_robust: str | None = None,
    time: str | None = None, trials: int | None = None, seed: int | None = None, workers: int | None = None,
    distil: str | None = None, effort: str | None = None, sampler: str | None = None,
    executor: str | None = None, ray: str | None = None, tune_callbacks: Sequence[Any] = (),
    run: str | os.PathLike[str] | None = None, fresh: bool = False, space: SpaceSettings | None = None,
    settings: str | os.PathLike[str] | Mapping[str, Any] | None = None, progress: bool = True,
) -> Result:
    """Search compressed models that meet budgets on a device, and verify the best.

    The model is not changed. The same call continues an interrupted run.

    Args:
        model: A trained model; it is searched in eval mode.
        data: Calibration, search and holdout sets.
        target: Device id or profile file, or several; `local`, this machine, by default.
        max_latency: `5ms` or `-50%` of the dense model, on every target.
        max_size: `200KB` or `-50%`.
        max_drop: Allowed loss of accuracy, `1pp` or `2%`.
        max_macs: `10M` or `-50%`.
        max_memory: Peak memory, `256KiB` or `-50%`.
        max_energy: `3mJ` or `-50%`.
        max_robust: `-40%`: the time on whichever target saves least, relative to the dense model there.
        time: Search time such as `5m`, the default where `trials` is not given either.
        trials: Number of trials, for repeatable runs.
        seed: Of everything that is drawn, 0 by default.
        workers: Processes that evaluate; by default one per core, or 1 where `trials` is given.
        distil: Train finalists against the dense model, without labels, on these inputs: `train`, `calibration`,
            `off`, or `auto` (the default): on the train set where the data has one.
        effort: How much is spent, `quick`, `balanced` (the default) or `thorough`, where nothing else says so.
        sampler: How trials are proposed, one of `search.samplers.SAMPLERS`.
        executor: Where trials run: `serial`, `processes`, `ray` or `tune`; by default as `workers` and `ray` say.
        ray: A Ray cluster, `auto`, `local` or `HOST:PORT`.
        tune_callbacks: Of type `ray.tune.Callback`, with the executor `tune`.
        run: Run directory, by default `runs/NAME-FINGERPRINT`.
        fresh: Start anew where the run directory exists.
        space: What may be chosen.
        settings: A settings file or its content; the other arguments override it.
        progress: Show progress on stderr.

    Returns:
        The run with its verified front.

    Raises:
        ConfigError: A malformed argument.
        DataError: Data that is empty, not finite, of a wrong shape, or overlaps.
        UnsupportedModelError: The model cannot be captured.
        InfeasibleError: The budgets cannot be met; the message states the best reachable values.
    """
    limits = {
        "latency": max_latency, "size": max_size, "macs": max_macs, "peak_memory": max_memory,
        "energy": max_energy, "robust": max_robust,
    }
    search = {"time": time, "trials": trials, "seed": seed, "workers": workers, "distil": distil,
              "effort": effort, "sampler": sampler, "executor": executor, "ray": ray}
    targets = [target] if isinstance(target, str) else list(target or ())
    name = type(model).__name__.lower()
    resolved = _resolve(settings, targets, limits, max_drop, search, name)
    if space is not None:
        resolved = replace(resolved, space=space)
    if tune_callbacks:
        if resolved.executor != "tune":
            raise ConfigError(f"compress: tune_callbacks are for executor tune, not {resolved.executor}")
        resolved = replace(resolved, tune_callbacks=tuple(tune_callbacks))
    return _search(model, data, resolved, None if run is None else Path(run), fresh=fresh, progress=progress)


def _resolve(
    settings: str | os.PathLike[str] | Mapping[str, Any] | None, targets: Sequence[str],
    limits: Mapping[str, str | None], max_drop: str | None, search: Mapping[str, Any], name: str,
) -> SearchSettings:
    from paretopress.settings import read_settings, search_settings, with_arguments

    if settings is None or isinstance(settings, Mapping):
        source, plain = "compress", settings or {}
    else:
        source, plain = str(settings), read_settings(Path(settings))
    return search_settings(with_arguments(plain, targets, limits, max_drop, search), source, name)


def _search(
    model: nn.Module, data: Data, settings: SearchSettings, run: Path | None, *, fresh: bool, progress: bool
) -> Result:
    from torch import nn

    from paretopress.evaluators.data import Data
    from paretopress.measuring import measure_if_targeted
    from paretopress.progress import observing
    from paretopress.search.session import run_search

    if not isinstance(model, nn.Module):
        raise ConfigError(f"compress: the model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(data, Data):
        raise ConfigError(f"compress: data must be a paretopress.Data, got {type(data).__name__}")
    with observing() if progress else nullcontext() as observer:
        measure_if_targeted(settings.targets, observer)
        folder = run_search(
            model, data, settings, run, fresh=fresh, observer=observer, model_name=type(model).__qualname__
        )
    return Result.load(folder)


def load(
    folder: str | os.PathLike[str],
    model_factory: Callable[[], nn.Module],
    *,
    packed: bool = False,
    sparse: bool = False,
) -> nn.Module:
    """Rebuild a compressed model that `save_pretrained` or `paretopress export` wrote.

    Args:
        folder: The exported folder.
        model_factory: Returns the dense model; its weights are not used.
        packed: Whether float weights are computed from the packed ones on every access: slower, with the memory of the
            artefact.
        sparse: Whether linear layers that are stored sparse multiply with their sparse weights where that is faster;
            `compressors.sparse_execution.execute_sparse` does the same and says which ones do.

    Returns:
        The compressed model in eval mode.

    Raises:
        ArtifactError: A file is missing or altered, or belongs to another model.
        ConfigError: Both `packed` and `sparse`: sparse products need their weights unpacked.
    """
    from paretopress.compressors.compressed_model import load as load_stored
    from paretopress.compressors.sparse_execution import execute_sparse
    from paretopress.spaces.errors import ConfigError

    if packed and sparse:
        raise ConfigError("packed and sparse exclude each other: sparse products need their weights unpacked")
    loaded = load_stored(Path(folder), model_factory, packed=packed)
    if sparse:
        execute_sparse(loaded)
    return loaded
