"""The Python interface: `compress` and `load`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretopress.searching import Search

if TYPE_CHECKING:
    from torch import nn

    from paretopress.evaluators.data import Data
    from paretopress.result import Result
    from paretopress.spaces.policy import Policy
    from paretopress.spaces.recipe import Recipe
    from paretopress.spaces.space import SpaceSettings

__all__ = ["compress", "load"]


def compress(
    model: nn.Module, *, data: Data, target: str | Sequence[str] | None = None,
    max_latency: str | None = None, max_size: str | None = None, max_drop: str | None = None,
    max_macs: str | None = None, max_memory: str | None = None, max_energy: str | None = None,
    max_robust: str | None = None,
    time: str | None = None, trials: int | None = None, seed: int | None = None, workers: int | None = None,
    distil: str | None = None, effort: str | None = None, sampler: str | None = None,
    warm_start: str | os.PathLike[str] | Policy | Recipe | None = None,
    executor: str | None = None, ray: str | None = None, tune_callbacks: Sequence[Any] = (),
    run: str | os.PathLike[str] | None = None, fresh: bool = False, space: SpaceSettings | None = None,
    settings: str | os.PathLike[str] | Mapping[str, Any] | None = None, callbacks: Iterable[Any] = (),
    progress: bool = True,
) -> Result:
    """Search compressed models that meet budgets on a device, and verify the best.

    The model is not changed. The same call continues an interrupted run. `Search` is the same as an object.

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
        warm_start: What the search starts from: a run, a recipe or policy (or its file), a folder of recipes, or the
            name of a recipe that comes with the package.
        executor: Where trials run: `serial`, `processes`, `ray` or `tune`; by default as `workers` and `ray` say.
        ray: A Ray cluster, `auto`, `local` or `HOST:PORT`.
        tune_callbacks: Of type `ray.tune.Callback`, with the executor `tune`.
        run: Run directory, by default `runs/NAME-FINGERPRINT`.
        fresh: Start anew where the run directory exists.
        space: What may be chosen.
        settings: A settings file or its content; the other arguments override it.
        callbacks: Objects with methods of `paretopress.Callback`, which hear how the search goes on.
        progress: Show progress on stderr.

    Returns:
        The run with its verified front.

    Raises:
        ConfigError: A malformed argument.
        DataError: Data that is empty, not finite, of a wrong shape, or overlaps.
        UnsupportedModelError: The model cannot be captured.
        InfeasibleError: The budgets cannot be met; the message states the best reachable values.
    """
    return Search(
        model, data=data, target=target, max_latency=max_latency, max_size=max_size, max_drop=max_drop,
        max_macs=max_macs, max_memory=max_memory, max_energy=max_energy, max_robust=max_robust, settings=settings,
        space=space, run=run, callbacks=callbacks, progress=progress, time=time, trials=trials, seed=seed,
        workers=workers, distil=distil, effort=effort, sampler=sampler, warm_start=warm_start, executor=executor,
        ray=ray, tune_callbacks=tune_callbacks,
    ).run(fresh=fresh)


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
