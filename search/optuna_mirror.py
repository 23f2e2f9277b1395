"""A run's trials as an Optuna study: for optuna-dashboard, and for whoever wants Optuna's own analyses of a run.

The ledger stays the truth: a mirror is made from it after the fact, trial by trial, and can be made again at any time.
Every unit is one categorical parameter of the words for its choices, `dense` first.
"""

from __future__ import annotations

import datetime
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretopress.search.ledger import ANATOMY, read_run
from paretopress.search.records import TrialRecord, TrialState
from paretopress.spaces.choices import choice_from_plain, describe
from paretopress.spaces.documents import RUN_BYTES, read_document
from paretopress.spaces.errors import ArtifactError, ConfigError, StorageError

if TYPE_CHECKING:
    import optuna

SCHEMA_ATTR, SCHEMA = "paretopress:mirror", 1
DENSE = "dense"
JOURNAL = (".log", ".journal")
_SIDE_FIGURES = ("divergence",)   # of trials, beside the objectives


class Mirror:
    """A study that follows a run. Made by `Mirror.of`; `update` takes in what the run has finished since.

    Attributes:
        study: The Optuna study.
    """

    def __init__(
        self, run: Path, study: optuna.Study, objectives: Sequence[str], labels: Mapping[str, Sequence[str]]
    ) -> None:
        self.study = study
        self._run = run
        self._objectives = tuple(objectives)
        self._labels = {unit: tuple(words) for unit, words in labels.items()}
        self._mirrored = {int(trial.user_attrs["number"]) for trial in study.get_trials(deepcopy=False)}

    @classmethod
    def of(cls, run: str | Path, storage: str | Path | optuna.storages.BaseStorage | None = None) -> Mirror:
        """Open the mirror of a run, making it where it is missing, and take in all finished trials.

        Args:
            run: The run directory; it is not changed.
            storage: An Optuna storage, its address, or a file: a journal where its name ends in `.log` or `.journal`,
                else SQLite. None keeps the study in memory.

        Raises:
            ConfigError: There is no such run, or the storage's study of this name has other objectives.
            ArtifactError: A file of the run is damaged, or it has neither a trial nor `anatomy.json` yet.
            StorageError: The storage cannot be opened.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = Path(run)
        records = read_run(path)[1]
        objectives = _objectives(path, records)
        study = _study(path, objectives, storage)
        mirror = cls(path, study, list(objectives), _labels(path))
        mirror.take(records)
        return mirror

    def update(self) -> int:
        """Take in what the run has finished since; returns how many trials. Raises `ArtifactError`."""
        return self.take(read_run(self._run)[1])

    def take(self, records: Sequence[TrialRecord]) -> int:
        """Add the trials that the study does not have yet; returns how many."""
        added = 0
        for record in records:
            if record.number in self._mirrored:
                continue
            self.study.add_trial(self._trial(record))
            self._mirrored.add(record.number)
            added += 1
        return added

    def _trial(self, record: TrialRecord) -> optuna.trial.FrozenTrial:
        """A finished trial.

        Optuna 5 keeps named constraints; optuna-dashboard 0.21 reads only the list that Optuna 4 kept, as a system
        attribute. Both are written, so that Optuna has every constraint twice, by name and by number.
        """
        import optuna

        parameters, others = self._parameters(record)
        ended = datetime.datetime.now()
        complete = record.state is TrialState.COMPLETE
        trial = optuna.create_trial(
            state={
                TrialState.COMPLETE: optuna.trial.TrialState.COMPLETE,
                TrialState.PRUNED: optuna.trial.TrialState.PRUNED,
                TrialState.FAIL: optuna.trial.TrialState.FAIL,
            }[record.state],
            values=[record.values[name] for name in self._objectives] if complete else None,
            params=parameters,
            distributions={
                unit: optuna.distributions.CategoricalDistribution(self._labels[unit]) for unit in parameters
            },
            user_attrs={
                "number": record.number, "policy": record.policy.hash, "seconds": record.seconds,
                **({"reason": record.reason} if record.reason else {}),
                **{n: value for n, value in record.values.items() if not complete or n not in self._objectives},
                **others,
            },
            system_attrs={"constraints": list(record.constraints.values())} if record.constraints else {},
            constraints=dict(record.constraints),
        )
        trial.datetime_start = ended - datetime.timedelta(seconds=record.seconds)
        return trial

    def _parameters(self, record: TrialRecord) -> tuple[dict[str, str], dict[str, str]]:
        """Parameters, and choices that the run's table does not list: these become user attributes."""
        chosen = {unit: describe(choice) for unit, choice in record.policy}
        parameters = {
            unit: chosen.get(unit, DENSE) for unit, words in self._labels.items() if chosen.get(unit, DENSE) in words
        }
        return parameters, {unit: words for unit, words in chosen.items() if unit not in parameters}


def optuna_study(
    run: str | Path, storage: str | Path | optuna.storages.BaseStorage | None = None
) -> optuna.Study:
    """Return a run's finished trials as an Optuna study: parameters, objectives, constraints and user attributes.

    Args:
        run: The run directory; it is not changed.
        storage: Where the study is kept, see `Mirror.of`. A study that is there already is brought up to date.

    Raises:
        ConfigError: There is no such run, or the storage's study of this name has other objectives.
        ArtifactError: A file of the run is damaged, or it has no trial yet.
        StorageError: The storage cannot be opened.
    """
    return Mirror.of(run, storage).study


def _objectives(run: Path, records: Sequence[TrialRecord]) -> dict[str, str]:
    """Names and directions: those that the search wrote, else what the first scored trial holds."""
    path = run / ANATOMY
    if path.exists():
        plain = read_document(path, RUN_BYTES)
        found = plain.get("objectives") if isinstance(plain, dict) else None
        if not isinstance(found, dict) or not found:
            raise ArtifactError(f"{path}: objectives: missing or damaged")
        return {str(name): str(direction) for name, direction in found.items()}
    scored = next((record for record in records if record.state is TrialState.COMPLETE), None)
    if scored is None:
        raise ArtifactError(f"{run}: no trial is finished yet")
    return {name: "max" if name == "accuracy" else "min" for name in scored.values if name not in _SIDE_FIGURES}


def _labels(run: Path) -> dict[str, tuple[str, ...]]:
    """The words of every unit's options, those of the sensitivity table; none where there is no table."""
    path = run / "sensitivity.json"
    if not path.exists():
        return {}
    plain = read_document(path, RUN_BYTES)
    try:
        choices = {
            unit: [choice_from_plain(one["choice"], f"{path}: {unit}") for one in row if one["choice"] is not None]
            for unit, row in plain["options"].items()
        }
        return {unit: tuple(dict.fromkeys((DENSE, *map(describe, row)))) for unit, row in choices.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: missing or damaged: {error}") from None


def _study(
    run: Path, objectives: Mapping[str, str], storage: str | Path | optuna.storages.BaseStorage | None
) -> optuna.Study:
    import optuna

    directions = ["maximize" if direction == "max" else "minimize" for direction in objectives.values()]
    name = run.resolve().name
    try:
        study = optuna.create_study(
            storage=opened_storage(storage), study_name=name, directions=directions, load_if_exists=True,
        )
    except ValueError as error:
        raise ConfigError(f"study {name!r} in {_shown(storage)}: {error}") from None
    if [direction.name.lower() for direction in study.directions] != directions:
        place = f"study {name!r} in {_shown(storage)}"
        raise ConfigError(f"{place} has other objectives than {run} (choose another storage)")
    if SCHEMA_ATTR not in study.user_attrs:
        if study.get_trials(deepcopy=False):
            raise ConfigError(f"study {name!r} in {_shown(storage)} is no mirror of a run (choose another storage)")
        study.set_user_attr(SCHEMA_ATTR, SCHEMA)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(objectives))
    return study


def opened_storage(storage: Any) -> Any:  # noqa: ANN401 - one of Optuna's storages
    """Return an Optuna storage: itself, of an address, of a file, or in memory. Raises `StorageError`."""
    import optuna
    from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.exc import SQLAlchemyError

    if storage is None:
        return InMemoryStorage()
    if not isinstance(storage, str | Path):
        return storage
    text = str(storage)
    try:
        if "://" not in text and Path(text).suffix in JOURNAL:
            return JournalStorage(JournalFileBackend(text))
        return RDBStorage(text if "://" in text else f"sqlite:///{text}")
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, ImportError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StorageError(f"{_shown(text)}: cannot be opened as an Optuna storage: {reason}") from None


def _shown(storage: object) -> str:
    """A storage for messages, without the name and the password that an address may hold."""
    return re.sub(r"//[^@/]*@", "//…@", str(storage))
