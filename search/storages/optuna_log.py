"""A log in a study behind Optuna's gRPC proxy: one finished trial of that study is one record.

The proxy passes on what Optuna's storages can do and nothing else. What they do exactly is to number trials: a trial
that is created as finished is one durable record with a place in one order. Their clock shows in trials that are
created as running; the log has them as ticks.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from paretopress.search.storages.log_store import Stamped
from paretopress.search.storages.storage_url import StorageUrl
from paretopress.search.storages.trial_store import StorageUnavailable
from paretopress.spaces.errors import ConfigError

if TYPE_CHECKING:
    import optuna

T = TypeVar("T")
PREFIX = "paretopress-ledger/"
_RECORD = "record"


class OptunaLog:
    """A `Log` in an Optuna study of the proxy's storage."""

    def __init__(self, url: StorageUrl, study: str) -> None:
        # Processes that evaluate begin as copies of this one, and gRPC's own preparations for that abort them.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
        try:
            import grpc  # noqa: F401
        except ImportError:
            raise ConfigError("gRPC storages need grpcio; install it with: pip install 'paretopress[grpc]'") from None
        self._url = url
        self.where = str(url)
        self._name = PREFIX + study
        self._storage: optuna.storages.BaseStorage | None = None
        self._process = 0
        self._study = -1
        self._count = 0

    def read(self) -> list[Stamped]:
        """The records since the last call. See `Log.read`."""
        return self._call(lambda storage: self._unread(storage, None))

    def append(self, record: Mapping[str, Any]) -> list[Stamped]:
        """Append a record durably; a tick is a trial that the proxy dates. See `Log.append`."""
        import optuna

        def create(storage: optuna.storages.BaseStorage) -> list[Stamped]:
            template = None
            if record["op"] != "tick":
                template = optuna.trial.create_trial(
                    state=optuna.trial.TrialState.FAIL, user_attrs={_RECORD: dict(record)}
                )
            return self._unread(storage, storage.create_new_trial(self._study, template))

        return self._call(create)

    def _unread(self, storage: optuna.storages.BaseStorage, last: int | None) -> list[Stamped]:
        """Records from the first unread one, up to the trial with the identifier `last`."""
        found: list[Stamped] = []
        for trial in storage.get_all_trials(self._study, deepcopy=False)[self._count:]:
            self._count += 1
            if _RECORD in trial.user_attrs:
                found.append((trial.user_attrs[_RECORD], None))
            else:
                assert trial.datetime_start is not None
                started = trial.datetime_start.replace(tzinfo=datetime.UTC)   # one clock, whatever its zone
                found.append(({"op": "tick"}, started.timestamp()))
            if trial._trial_id == last:
                break
        return found

    def now(self) -> None:
        """Only ticks tell the time."""

    def names(self) -> list[str]:
        """The names of all studies in the storage."""
        def listed(storage: optuna.storages.BaseStorage) -> list[str]:
            return [study.study_name.removeprefix(PREFIX) for study in storage.get_all_studies()
                    if study.study_name.startswith(PREFIX)]

        return self._call(listed, joined=False)

    def _call(self, action: Callable[[optuna.storages.BaseStorage], T], *, joined: bool = True) -> T:
        """Do something with the storage. Raises `StorageUnavailable`."""
        import grpc

        try:
            storage = self._open()
            if joined and self._study < 0:
                self._study = self._joined(storage)
            return action(storage)
        except (grpc.RpcError, ConnectionError) as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            details = f": {code.name}" if code is not None else ""
            raise StorageUnavailable(f"{self.where}: the gRPC proxy does not answer{details}") from None

    def _open(self) -> optuna.storages.BaseStorage:
        import warnings

        import optuna

        if self._storage is None or self._process != os.getpid():
            host, port = self._url.address
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._storage = optuna.storages.GrpcStorageProxy(host=host, port=port)
            self._process = os.getpid()
        return self._storage

    def _joined(self, storage: optuna.storages.BaseStorage) -> int:
        import optuna

        try:
            return int(storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], self._name))
        except optuna.exceptions.DuplicatedStudyError:
            return int(storage.get_study_id_from_name(self._name))

    def close(self) -> None:
        """Drop the connection."""
        storage, self._storage = self._storage, None
        if storage is not None and self._process == os.getpid():
            storage.close()
