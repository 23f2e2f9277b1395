"""A mirror of a search as an Optuna study, for dashboards and analyses: finished trials, one transaction each.

The mirror is a projection of the run's records in their order: the study's n-th trial is the n-th record. It proposes
nothing and nothing is read back from it, so that it may be behind, and catches up when the storage is back.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paretopress.search.fault_points import fault_point
from paretopress.search.option_space import OptionSpace
from paretopress.search.records import TrialRecord, TrialState
from paretopress.search.storages.storage_url import StorageUrl
from paretopress.spaces.errors import ConfigError

if TYPE_CHECKING:
    import optuna

_STATES = {TrialState.COMPLETE: "COMPLETE", TrialState.PRUNED: "PRUNED", TrialState.FAIL: "FAIL"}
_LONGEST = 2000   # characters of an attribute; MySQL and old schemas cut longer ones


class OptunaMirror:
    """Writes records of a run into an Optuna study."""

    def __init__(
        self, url: StorageUrl, name: str, objectives: Mapping[str, str], space: OptionSpace
    ) -> None:
        """Args are where to, the study's name, objectives with directions, and the options of the units."""
        self._url, self._name, self._objectives, self._space = url, name, dict(objectives), space
        self._study: optuna.Study | None = None
        self._distributions: dict[str, optuna.distributions.CategoricalDistribution] = {}
        self._count = 0

    def catch_up(self, records: Sequence[TrialRecord]) -> int:
        """Write the records that the study does not have yet; returns how many these were.

        Raises:
            ConfigError: The study exists with other objectives.
            Exception: What Optuna's storage raises where it does not answer; the next call goes on.
        """
        study = self._open()
        written = 0
        for record in records[self._count:]:
            fault_point("before mirror")
            study.add_trial(self._trial(record))
            self._count += 1
            written += 1
            fault_point("after mirror")
        return written

    def scrubbed(self, error: Exception) -> str:
        """An error as one line without credentials."""
        text = " ".join(str(error).split()) or type(error).__name__
        return self._url.scrubbed(text)[:300]

    def _open(self) -> optuna.Study:
        if self._study is None:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            directions = ["maximize" if way == "max" else "minimize" for way in self._objectives.values()]
            study = optuna.create_study(
                storage=optuna_storage(self._url), study_name=self._name, directions=directions, load_if_exists=True
            )
            found = [direction.name.lower() for direction in study.directions]
            if found != directions:
                raise ConfigError(f"{self._url}: study {self._name!r} has the directions {', '.join(found)}, "
                                  f"the search {', '.join(directions)}")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(list(self._objectives))
            self._distributions = {unit: optuna.distributions.CategoricalDistribution(self._space.labels[unit])
                                   for unit in self._space.units}
            self._count = len(study.get_trials(deepcopy=False))
            self._study = study
        return self._study

    def _trial(self, record: TrialRecord) -> optuna.trial.FrozenTrial:
        import optuna

        state = optuna.trial.TrialState[_STATES[record.state]]
        genome = self._space.genome(record.policy)
        labels = self._space.labels
        attributes: dict[str, Any] = {
            "number": record.number, "policy_hash": record.policy.hash, "seconds": record.seconds,
            **{name: value for name, value in record.values.items() if name not in self._objectives},
            **{f"constraint {name}": value for name, value in record.constraints.items()},
        }
        if record.reason:
            attributes["reason"] = record.reason[:_LONGEST]
        complete = record.state is TrialState.COMPLETE
        trial = optuna.trial.create_trial(
            state=state,
            values=[record.values[name] for name in self._objectives] if complete else None,
            user_attrs=attributes,
            constraints=dict(record.constraints) if record.state is not TrialState.FAIL else None,
        )
        # `create_trial` compares every distribution with its own copy; `add_trial` checks the parameters all the same.
        trial.params = {unit: labels[unit][index] for unit, index in zip(self._space.units, genome, strict=True)}
        trial.distributions = dict(self._distributions)
        return trial


def optuna_storage(url: StorageUrl) -> optuna.storages.BaseStorage:
    """Optuna's own storage at an address, apart from the tables and files of the trial protocol.

    SQLite and PostgreSQL hold it in the same database, a journal in the file NAME.optuna beside it.
    """
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match url.kind:
            case "journal":
                from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

                from paretopress.search.storages.finished_trials import FinishedTrialsJournal

                path = f"{url.path}.optuna"
                return FinishedTrialsJournal(JournalFileBackend(path, JournalFileOpenLock(path)))
            case "grpc":
                host, port = url.address
                return optuna.storages.GrpcStorageProxy(host=host, port=port)
            case "postgresql":
                from paretopress.search.storages.finished_trials import FinishedTrials

                return FinishedTrials(url.secret.replace("postgresql://", "postgresql+psycopg://", 1))
            case _:
                from paretopress.search.storages.finished_trials import FinishedTrials

                return FinishedTrials(
                    f"sqlite:///{url.path}", engine_kwargs={"connect_args": {"timeout": 20.0}}
                )
