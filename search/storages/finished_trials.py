"""Optuna's storages, with finished trials written in a few statements, and read back only where somebody reads them.

Optuna 5.0 asks the database three times for every parameter of a trial that is added whole (does the trial exist, which
distribution had the parameter before, insert it): 450 statements at 150 parameters. Here they are one insert. The
trials of a journal it parses again as soon as they are written; a mirror that reads nothing leaves that to readers.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.storages.journal._storage import JournalOperation

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# What is written below; where another version of Optuna has other tables it writes them itself.
_COLUMNS = {
    "TrialParamModel": {"param_id", "trial_id", "param_name", "param_value", "distribution_json"},
    "TrialValueModel": {"trial_value_id", "trial_id", "objective", "value", "value_type"},
    "TrialUserAttributeModel": {"trial_user_attribute_id", "trial_id", "key", "value_json"},
    "TrialSystemAttributeModel": {"trial_system_attribute_id", "trial_id", "key", "value_json"},
}


def has_known_tables() -> bool:
    """Whether this version of Optuna keeps trials in the tables that `FinishedTrials` knows."""
    return all(
        hasattr(models, name) and {column.name for column in getattr(models, name).__table__.columns} == columns
        for name, columns in _COLUMNS.items()
    )


class FinishedTrials(optuna.storages.RDBStorage):  # type: ignore[misc]  # Optuna is not typed for us
    """Writes the first trial of a process as Optuna does, with all its checks, and later ones of the same kind fast."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - Optuna's own
        super().__init__(*arguments, **options)
        self._checked: dict[str, tuple[BaseDistribution, str]] | None = None
        self._known = has_known_tables()

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Any) -> Any:  # noqa: ANN401
        """Add a trial inside a transaction. Optuna calls this once it has locked the study."""
        checked = self._checked
        if (template_trial is None or checked is None or template_trial.intermediate_values
                or not _are_checked(template_trial, checked)):
            found = super()._get_prepared_new_trial(study_id, template_trial, session)
            if template_trial is not None and self._known:
                self._checked = {name: (one, distribution_to_json(one))
                                 for name, one in template_trial.distributions.items()}
            return found
        trial = models.TrialModel(
            study_id=study_id, number=None, state=template_trial.state,
            datetime_start=template_trial.datetime_start, datetime_complete=template_trial.datetime_complete,
        )
        session.add(trial)
        session.flush()   # gives it its id
        trial.number = trial.count_past_trials(session)
        _insert(session, trial.trial_id, template_trial, checked)
        return trial


def _are_checked(trial: FrozenTrial, checked: Mapping[str, tuple[BaseDistribution, str]]) -> bool:
    """Whether Optuna has compared this trial's distributions with the study's already."""
    return trial.distributions.keys() == checked.keys() and all(
        checked[name][0] is one for name, one in trial.distributions.items()
    )


def _insert(
    session: Any, trial_id: int, trial: FrozenTrial, checked: Mapping[str, tuple[BaseDistribution, str]]  # noqa: ANN401
) -> None:
    values = []
    for objective, value in enumerate(trial.values or ()):
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        values.append({"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind})
    parameters = [
        {"trial_id": trial_id, "param_name": name, "distribution_json": checked[name][1],
         "param_value": checked[name][0].to_internal_repr(value)}
        for name, value in trial.params.items()
    ]
    attributes = [
        [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in own.items()]
        for own in (trial.user_attrs, trial.system_attrs)
    ]
    tables = (models.TrialParamModel, models.TrialValueModel, models.TrialUserAttributeModel,
              models.TrialSystemAttributeModel)
    for table, rows in zip(tables, (parameters, values, *attributes), strict=True):
        if rows:
            session.connection().execute(table.__table__.insert(), rows)


class FinishedTrialsJournal(optuna.storages.JournalStorage):  # type: ignore[misc]  # Optuna is not typed for us
    """Appends finished trials without reading them back; whoever asks for trials reads what has been appended."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - Optuna's own
        super().__init__(*arguments, **options)
        self._texts: dict[str, tuple[BaseDistribution, str]] = {}

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a trial; returns its id, -1 of finished ones: nobody knows it before the journal is read."""
        if template_trial is None or template_trial.datetime_complete is None:
            found: int = super().create_new_trial(study_id, template_trial)
            return found
        own = template_trial.distributions
        if any(name not in self._texts or self._texts[name][0] is not one for name, one in own.items()):
            self._texts = {name: (one, distribution_to_json(one)) for name, one in own.items()}
        values = template_trial.values
        single = values is None or len(values) == 1
        log = {
            "study_id": study_id, "state": template_trial.state,
            "value": template_trial.value if single else None, "values": None if single else values,
            "datetime_start": _written(template_trial.datetime_start),
            "datetime_complete": _written(template_trial.datetime_complete),
            "distributions": {name: self._texts[name][1] for name in own},
            "params": {name: own[name].to_internal_repr(value) for name, value in template_trial.params.items()},
            "user_attrs": template_trial.user_attrs, "system_attrs": template_trial.system_attrs,
            "intermediate_values": template_trial.intermediate_values,
        }
        with self._thread_lock:
            self._write_log(JournalOperation.CREATE_TRIAL, log)
        return -1


def _written(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(datetime.UTC).isoformat(timespec="microseconds")
