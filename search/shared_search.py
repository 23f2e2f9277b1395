"""A search that several processes and hosts do together: what is joined, led, worked on and mirrored."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretopress.search.executors import Evaluate, Executor
from paretopress.search.exploration import complete_or_failed
from paretopress.search.ledger import Run
from paretopress.search.option_space import OptionSpace
from paretopress.search.outbox import Outbox
from paretopress.search.patience import STORAGE_TIMEOUT, Patience
from paretopress.search.process_executor import ProcessExecutor
from paretopress.search.process_identity import process_name
from paretopress.search.records import TrialRecord
from paretopress.search.storage_executor import TERM_SECONDS, Leadership, StorageExecutor
from paretopress.search.storage_worker import LEASE_SECONDS, StorageWorker
from paretopress.search.storages.opening import open_store
from paretopress.search.storages.optuna_mirror import OptunaMirror
from paretopress.search.storages.storage_url import StorageUrl
from paretopress.search.storages.trial_store import Study, TrialStore
from paretopress.spaces.documents import disk_error
from paretopress.spaces.errors import ConfigError, InterruptedSearch
from paretopress.spaces.policy import Policy

if TYPE_CHECKING:
    from paretopress.search.observer import Observer
    from paretopress.search.problem import Problem

WIND_DOWN_SECONDS = 4.0   # what is under way after a signal is finished in this time, or given back
MIRROR_SECONDS = 1.0    # between two writes of the mirror


@dataclass(frozen=True)
class Sharing:
    """How a search is shared.

    Attributes:
        storage: Address of the storage, see `StorageUrl.parse`.
        lease_seconds: How long a worker is believed to live without a sign of life.
        term_seconds: The same of the coordinator.
        storage_timeout: How long the storage may be away.
        trial_seconds: How long one evaluation may take; None sets no limit.
        trial_memory: Address space in bytes that a process that evaluates may take; None sets no limit.
        mirrored: Whether finished trials also go into an Optuna study of the storage.
    """

    storage: str
    lease_seconds: float = LEASE_SECONDS
    term_seconds: float = TERM_SECONDS
    storage_timeout: float = STORAGE_TIMEOUT
    trial_seconds: float | None = None
    trial_memory: int | None = None
    mirrored: bool = True

    def processes(self, evaluate: Evaluate, workers: int) -> ProcessExecutor:
        """Child processes that evaluate, within these limits. A child that dies is no retry: the protocol counts it."""
        return ProcessExecutor(
            evaluate, workers, self.trial_seconds, memory_bytes=self.trial_memory, tries=1
        )

    def __repr__(self) -> str:
        """Without credentials."""
        return f"Sharing({self.storage.partition('://')[0]}://...)"


def study_name(path: Path) -> str:
    """The name of a run's study: its folder's."""
    return path.absolute().name


@dataclass
class Coordination:
    """A search as its coordinator has it: joined, and led by this process."""

    sharing: Sharing
    url: StorageUrl
    store: TrialStore
    leadership: Leadership
    patience: Patience
    name: str
    path: Path
    message: Callable[[str], None]

    @contextlib.contextmanager
    def executor(self, local: Executor) -> Iterator[StorageExecutor]:
        """Evaluate by whoever claims, this process's own executor among them."""
        worker = StorageWorker(
            self.store, Outbox(self.path), local, self.name, self.patience,
            lease_seconds=self.sharing.lease_seconds, message=self.message,
        )
        try:
            yield StorageExecutor(self.store, self.leadership, self.patience, worker, self.sharing.lease_seconds / 4)
        finally:
            worker.wind_down(WIND_DOWN_SECONDS, close=False)

    def mirror(self, objectives: Mapping[str, str], space: OptionSpace) -> Mirroring:
        """The mirror of this search."""
        made = OptunaMirror(self.url, study_name(self.path), objectives, space) if self.sharing.mirrored else None
        return Mirroring(made, self.message)


@contextlib.contextmanager
def coordinated(
    sharing: Sharing | None, path: Path, fingerprints: Mapping[str, str], objectives: Mapping[str, str],
    settings: Mapping[str, Any], observer: Observer, *, fresh: bool = False,
) -> Iterator[Coordination | None]:
    """Join a search's storage and lead the search inside the block; None where it is not shared.

    Raises:
        ConfigError: The address is malformed, or the study there is another one's; the message names what differs. Or
            the search is to start anew and the storage has it: workers elsewhere may be at it.
        StorageError: The storage has been away for too long.
        InterruptedSearch: The user wanted to stop while another coordinator led.
    """
    if sharing is None:
        yield None
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path, error) from None
    url = StorageUrl.parse(sharing.storage, path)
    store = open_store(url, study_name(path))
    patience = Patience(sharing.storage_timeout, observer.warning)
    stop: Callable[[], bool] = getattr(observer, "should_stop", lambda: False)
    study = Study(study_name(path), fingerprints, objectives, settings)
    try:
        def join() -> bool:
            if fresh and store.study() is not None:
                raise ConfigError(
                    f"--fresh: {url} has study {study.name!r} already; start anew in another --run or storage"
                )
            store.join(study)
            return True

        while patience.attempt(join) is None and not stop():
            time.sleep(0.1)
        name = process_name()
        leadership = Leadership(store, name, patience, sharing.term_seconds)
        if not leadership.wait(stop, observer.message):
            raise InterruptedSearch("stopped while standing by", getattr(observer, "exit_code", 130))
        observer.message(f"shared at {url}; others join with: paretopress worker --storage URL --model ... --data ...")
        try:
            yield Coordination(sharing, url, store, leadership, patience, name, path, observer.message)
        finally:
            leadership.resign()
    finally:
        store.close()


@contextlib.contextmanager
def exploring(
    together: Coordination | None, local: Executor, run: Run, problem: Problem, constraints: Sequence[str],
) -> Iterator[tuple[Executor, Mirroring]]:
    """Where to evaluate inside the block, and what mirrors the records: this process alone where nothing is shared."""
    if together is None:
        yield local, Mirroring(None, lambda _: None)
        return
    mirror = together.mirror(problem.objectives, problem.option_space)
    with together.executor(local) as executor:
        record_what_is_stored(executor, run, problem.objectives, constraints)
        mirror.catch_up(run.records(), now=True)
        yield executor, mirror
        mirror.catch_up(run.records(), now=True)


def record_what_is_stored(
    executor: StorageExecutor, run: Run, objectives: Mapping[str, str], constraints: Sequence[str]
) -> None:
    """Write what the storage has beyond a run's records into the run, waiting for what is under way.

    Raises:
        DiskError: A record could not be written.
        ArtifactError: What the storage has is damaged.
    """
    prints = run.fingerprints
    for row, outcome in executor.unrecorded(run.records()):
        policy = policy_of(row.policy, prints.get("model", ""), prints.get("space", ""))
        evaluation = complete_or_failed(outcome.evaluation, objectives, constraints)
        run.append(TrialRecord.of(row.number, policy, evaluation, outcome.seconds))


def policy_of(text: str, model: str, space: str) -> Policy:
    """A stored policy. Raises `PolicyError` or `ConfigError` where it is none, or another model's."""
    from paretopress.spaces.documents import parse_json

    policy = Policy.from_plain(parse_json(text, "storage"), "storage")
    if (policy.model, policy.space) != (model, space):
        raise ConfigError("the storage has a policy of another model or space")
    return policy


class Mirroring:
    """Keeps an Optuna study behind a run, or does nothing; its failures are warnings."""

    def __init__(self, mirror: OptunaMirror | None, warn: Callable[[str], None]) -> None:
        self._mirror, self._warn = mirror, warn
        self._next = 0.0
        self._failed = False

    def catch_up(self, records: Sequence[TrialRecord], *, now: bool = False) -> None:
        """Write what is missing, at most once in a while."""
        if self._mirror is None or (not now and time.monotonic() < self._next):
            return
        try:
            self._mirror.catch_up(records)
            self._failed = False
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - Optuna's storages raise whatever their libraries do
            if not self._failed:
                self._warn(f"the Optuna study is behind: {self._mirror.scrubbed(error)}")
            self._failed = True
        self._next = time.monotonic() + MIRROR_SECONDS
